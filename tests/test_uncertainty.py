"""Standard errors, against closed forms, certified values, scipy, lmfit and iminuit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import nist
from fitopt import LeastSquares, OptaxOptimizer, Parameter
from fitopt.transforms import Exp, Ordered, PositiveDefinite, Simplex
from fitopt.uncertainty import covariance

from .conftest import counted_compilations

X = np.linspace(0.0, 4.0, 40)
NOISE = np.random.default_rng(0).normal(size=40)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * NOISE


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def model(state):
    return state["A"] * jnp.exp(-state["k"] * X) + state["C"]


def residuals(state):
    return model(state) - Y


def decay(**changes):
    state = {"A": Parameter("A", 1.0), "k": Parameter("k", 1.0), "C": Parameter("C", 0.0)}
    return {name: parameter.replace(**changes.get(name, {})) for name, parameter in state.items()}


def errors_of(uncertainty, names):
    return np.array([uncertainty.standard_errors[name] for name in names])


@pytest.fixture(scope="module")
def fitted():
    return LeastSquares(residuals).run(decay())[0]


@pytest.fixture(scope="module")
def curve_fit():
    return lambda **options: scipy.optimize.curve_fit(
        lambda x, A, k, C: A * np.exp(-k * x) + C, X, Y, p0=[1.0, 1.0, 0.0], xtol=1e-12, **options
    )


# --- least squares ---


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-6, 6))
def test_a_straight_line_has_the_errors_of_linear_regression(seed, decades):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 12))
    x = x * 10**decades
    design = np.stack([x, np.ones(12)], axis=1)
    solution, (sum_of_squares,), *_ = np.linalg.lstsq(design / [10**decades, 1], y)
    state = {
        "slope": Parameter("slope", solution[0] / 10**decades),
        "offset": Parameter("offset", solution[1]),
        "x": x,
        "y": y,
    }
    uncertainty = LINE.uncertainty(state)
    scaled = np.linalg.inv((design / [10**decades, 1]).T @ (design / [10**decades, 1]))
    expected = sum_of_squares / 10 * scaled / np.outer([10**decades, 1], [10**decades, 1])
    assert uncertainty.names == ("offset", "slope")
    np.testing.assert_allclose(uncertainty.covariance, expected[::-1, ::-1], rtol=1e-8)
    assert uncertainty.degrees_of_freedom == 10


LINE = LeastSquares(lambda state: state["slope"] * state["x"] + state["offset"] - state["y"])


@pytest.mark.parametrize("name", ["Chwirut2", "Hahn1", "Thurber", "MGH10", "Bennett5", "Lanczos2"])
def test_nist_certifies_the_standard_errors(name):
    problem = nist.load(name)
    uncertainty = LeastSquares(problem.residuals).uncertainty(problem.state(problem.values))
    errors = errors_of(uncertainty, problem.names)
    np.testing.assert_allclose(errors, problem.standard_errors, rtol=1e-6)
    assert not uncertainty.messages


@pytest.mark.parametrize("absolute_sigma", [False, True])
def test_sigma_means_what_it_means_in_scipy(curve_fit, absolute_sigma):
    sigma = 0.05 + 0.02 * X
    values, expected = curve_fit(sigma=sigma, absolute_sigma=absolute_sigma)
    opt = LeastSquares(residuals, sigma=sigma, absolute_sigma=absolute_sigma)
    uncertainty = opt.uncertainty(opt.run(decay())[0])
    order = [0, 2, 1]  # scipy has A, k, C
    np.testing.assert_allclose(uncertainty.covariance, expected[np.ix_(order, order)], rtol=1e-4)
    assert uncertainty.absolute_sigma is absolute_sigma


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_have_the_errors_of_scipy(curve_fit, loss):
    options = {"loss": loss, "f_scale": 0.04}
    values, expected = curve_fit(method="trf", ftol=1e-12, gtol=1e-12, **options)
    uncertainty = LeastSquares(residuals, **options).uncertainty(
        decay(A={"value": values[0]}, k={"value": values[1]}, C={"value": values[2]})
    )
    order = [0, 2, 1]
    np.testing.assert_allclose(uncertainty.covariance, expected[np.ix_(order, order)], rtol=1e-4)


def test_more_parameters_than_scatter_can_tell_have_infinite_errors_and_a_reason(fitted):
    few = LeastSquares(lambda state: residuals(state)[::20])
    uncertainty = few.uncertainty(fitted)
    assert np.isinf(errors_of(uncertainty, "AkC")).all()
    assert "absolute_sigma=True" in uncertainty.messages[0]


def test_reverse_mode_gives_the_same_errors(fitted):
    opt = LeastSquares(residuals)
    forward, reverse = opt.uncertainty(fitted), opt.uncertainty(fitted, mode="rev")
    np.testing.assert_allclose(forward.covariance, reverse.covariance, rtol=1e-9)


# --- losses ---


def gaussian(state):
    mean, sigma = state["mean"], state["sigma"]
    return jnp.sum((state["data"] - mean) ** 2 / (2 * sigma**2) + jnp.log(sigma))


@pytest.fixture(scope="module")
def sample():
    data = 3.0 + 2.0 * NOISE
    return {
        "mean": Parameter("mean", data.mean()),
        "sigma": Parameter("sigma", data.std(), lower=0.0),
        "data": data,
    }


def test_a_normal_distribution_has_the_errors_of_the_textbook(sample):
    opt = OptaxOptimizer(lambda state: (gaussian(state), state["mean"]), optax.sgd(0.1), has_aux=True)
    uncertainty = opt.uncertainty(sample)
    sigma = float(sample["sigma"])
    expected = np.diag([sigma**2 / 40, sigma**2 / 80])
    np.testing.assert_allclose(uncertainty.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(uncertainty.correlation, np.eye(2), atol=1e-12)
    assert uncertainty.degrees_of_freedom is None


def test_forward_mode_differentiates_a_loss_with_a_while_loop(sample):
    def loss(state):
        total, _ = jax.lax.while_loop(
            lambda carry: carry[1] < 40,
            lambda carry: (
                carry[0] + gaussian({**state, "data": state["data"][carry[1]]}),
                carry[1] + 1,
            ),
            (0.0, 0),
        )
        return total

    uncertainty = OptaxOptimizer(loss, optax.sgd(0.1)).uncertainty(sample, mode="fwd")
    assert uncertainty.standard_errors["mean"] == pytest.approx(float(sample["sigma"]) / 40**0.5)


def test_errordef_1_is_for_a_sum_of_squares_in_units_of_the_variance(fitted):
    chi_square = OptaxOptimizer(lambda state: jnp.sum((residuals(state) / 0.05) ** 2), optax.sgd(0.1))
    likelihood = OptaxOptimizer(lambda s: jnp.sum((residuals(s) / 0.05) ** 2) / 2, optax.sgd(0.1))
    one = chi_square.uncertainty(fitted, errordef=1)
    half = likelihood.uncertainty(fitted)
    np.testing.assert_allclose(one.covariance, half.covariance, rtol=1e-9)
    exact = LeastSquares(residuals, sigma=0.05, absolute_sigma=True).uncertainty(fitted)
    np.testing.assert_allclose(errors_of(one, "AkC"), errors_of(exact, "AkC"), rtol=0.1)


def test_a_state_in_double_precision_needs_no_switch(fitted):
    opt = LeastSquares(residuals)
    expected = opt.uncertainty(fitted)
    with jax.enable_x64(False):
        uncertainty = opt.uncertainty(fitted)
        _, error = uncertainty.propagate(lambda state: state["A"])
    np.testing.assert_array_equal(uncertainty.covariance, expected.covariance)
    assert error == pytest.approx(expected.standard_errors["A"], rel=1e-12)


# --- the user's units ---


@pytest.mark.parametrize(
    "changes",
    [
        {"k": {"lower": 0.0}, "A": {"lower": 0.0, "upper": 10.0}},
        {"k": {"scale": 1e-3}, "A": {"scale": 1e4}},
        {"k": {"transform": Exp()}, "C": {"lower": -1.0, "scale": 0.1}},
    ],
    ids=["bounds", "scales", "transform"],
)
def test_bounds_scales_and_transforms_do_not_change_errors(fitted, changes):
    values = {name: {"value": float(fitted[name]), **changes.get(name, {})} for name in fitted}
    plain, other = (LeastSquares(residuals).uncertainty(s) for s in (fitted, decay(**values)))
    np.testing.assert_allclose(other.covariance, plain.covariance, rtol=1e-9)


def test_probabilities_have_the_covariance_of_the_multinomial_distribution():
    counts = np.array([10.0, 20.0, 30.0])
    p = counts / 60
    opt = OptaxOptimizer(lambda state: -jnp.sum(counts * jnp.log(state["p"])), optax.sgd(0.1))
    uncertainty = opt.uncertainty({"p": Parameter("p", p, transform=Simplex())})
    expected = (np.diag(p) - np.outer(p, p)) / 60
    np.testing.assert_allclose(uncertainty.covariance, expected, rtol=1e-9)
    value, error = uncertainty.propagate(lambda state: jnp.sum(state["p"]))
    assert value == pytest.approx(1) and error == pytest.approx(0, abs=1e-12)


def test_a_covariance_matrix_has_the_errors_of_the_wishart_distribution():
    data = np.random.default_rng(1).normal(size=(2, 50)) * [[1.0], [3.0]]
    S = data @ data.T / 50

    def loss(state):
        return 25 * (jnp.linalg.slogdet(state["S"])[1] + jnp.trace(jnp.linalg.solve(state["S"], S)))

    state = {"S": Parameter("S", S, transform=PositiveDefinite())}
    uncertainty = OptaxOptimizer(loss, optax.sgd(0.1)).uncertainty(state)
    expected = np.sqrt((S**2 + np.outer(np.diag(S), np.diag(S))) / 50)
    np.testing.assert_allclose(uncertainty.standard_errors["S"], expected, rtol=1e-8)
    assert uncertainty.names == ("S[0,0]", "S[0,1]", "S[1,0]", "S[1,1]")


def test_other_transforms_of_whole_vectors_do_not_change_errors():
    target = np.array([1.0, 2.0, 4.0])
    opt = LeastSquares(
        lambda state: (state["v"] - target) * jnp.array([1.0, 2.0, 4.0]), sigma=1.0, absolute_sigma=True
    )
    uncertainty = opt.uncertainty({"v": Parameter("v", target, transform=Ordered())})
    np.testing.assert_allclose(uncertainty.covariance, np.diag([1, 1 / 4, 1 / 16]), atol=1e-12)


def test_complex_parameters_have_errors_of_both_parts():
    opt = LeastSquares(lambda s: jnp.array([2.0, 4.0]) * s["z"] - 1j, sigma=1.0, absolute_sigma=True)
    uncertainty = opt.uncertainty({"z": Parameter("z", jnp.array([0.5j, 0.25j]))})
    assert uncertainty.names == ("z[0].real", "z[1].real", "z[0].imag", "z[1].imag")
    np.testing.assert_allclose(uncertainty.standard_errors["z"], [0.5 + 0.5j, 0.25 + 0.25j])
    _, error = uncertainty.propagate(lambda s: 1j * s["z"][0] + s["z"][1].imag)
    assert error == pytest.approx(np.hypot(0.5, 0.25) + 0.5j)


def test_a_part_of_a_complex_parameter_that_is_not_determined_leaves_the_other_its_error():
    opt = LeastSquares(lambda s: 2.0 * s["z"].real - jnp.ones(2), sigma=1.0, absolute_sigma=True)
    uncertainty = opt.uncertainty({"z": Parameter("z", 0.5 + 0j)})
    _, propagated = uncertainty.propagate(lambda s: s["z"])
    for error in (uncertainty.standard_errors["z"], propagated):
        assert error.real == pytest.approx(8**-0.5) and error.imag == np.inf
    assert uncertainty.undetermined == ("z.imag",)


def test_float32_gives_what_it_can(fitted):
    exact = LeastSquares(residuals).uncertainty(fitted)
    with jax.enable_x64(False):
        x, y = X.astype(np.float32), Y.astype(np.float32)
        opt = LeastSquares(lambda s: s["A"] * jnp.exp(-s["k"] * x) + s["C"] - y)
        state = {name: Parameter(name, float(fitted[name])) for name in fitted}
        single = opt.uncertainty(state)
    np.testing.assert_allclose(errors_of(single, "AkC"), errors_of(exact, "AkC"), rtol=1e-4)
    assert not single.messages


# --- what is left out ---


def test_fixed_and_masked_entries_are_left_out(fitted):
    state = {**fitted, "C": fitted["C"].fix()}
    uncertainty = LeastSquares(residuals).uncertainty(state)
    assert uncertainty.names == ("A", "k") and uncertainty.errors["C"] is None

    w = Parameter("w", [float(fitted["A"]), float(fitted["k"]), 7.0], mask=[True, True, False])
    opt = LeastSquares(lambda s: s["w"][0] * jnp.exp(-s["w"][1] * X) + s["C"] - Y)
    masked = opt.uncertainty({"w": w, "C": float(fitted["C"])})
    assert masked.names == ("w[0]", "w[1]")
    np.testing.assert_allclose(masked.covariance, uncertainty.covariance, rtol=1e-9)
    errors = masked.standard_errors["w"]
    np.testing.assert_allclose(errors, [*errors_of(uncertainty, "Ak"), np.nan], rtol=1e-9)
    np.testing.assert_array_equal(masked.errors["w"], errors)


def test_parameters_that_only_count_together_are_named_with_infinite_errors(fitted):
    def product(state):
        return model({**state, "A": state["a"] * state["b"]}) - Y

    state = {
        "a": Parameter("a", float(fitted["A"]) / 3),
        "b": Parameter("b", 3.0),
        "k": fitted["k"],
        "C": fitted["C"],
        "idle": Parameter("idle", 1.0),
    }
    uncertainty = LeastSquares(product).uncertainty(state)
    plain = LeastSquares(residuals).uncertainty(fitted)
    assert uncertainty.undetermined == ("a", "b", "idle")
    assert np.isinf(errors_of(uncertainty, ["a", "b", "idle"])).all()
    assert "together with b" in uncertainty.notes["a"] and "whatever" in uncertainty.notes["idle"]
    assert "a, b and idle" in uncertainty.messages[0] and "not determined" in repr(uncertainty)
    np.testing.assert_allclose(errors_of(uncertainty, "kC"), errors_of(plain, "kC"), rtol=1e-7)
    assert uncertainty.degrees_of_freedom == 37 and uncertainty.condition_number > 1e12
    row = uncertainty.names.index("a")
    assert np.isnan(np.delete(uncertainty.covariance[row], row)).all()

    values, errors = uncertainty.propagate(lambda s: {"A": s["a"] * s["b"], "a": s["a"]})
    assert errors["A"] == pytest.approx(plain.standard_errors["A"], rel=1e-7)
    assert errors["a"] == np.inf


def test_a_loss_tells_what_it_does_not_depend_on():
    opt = OptaxOptimizer(
        lambda s: jnp.sum((s["v"][0] + s["v"][1] - 1) ** 2 + s["u"] ** 2), optax.sgd(0.1)
    )
    state = {"v": Parameter("v", [0.5, 0.5, 0.5]), "u": Parameter("u", 0.0)}
    uncertainty = opt.uncertainty(state)
    assert uncertainty.undetermined == ("v[0]", "v[1]", "v[2]")
    assert uncertainty.standard_errors["u"] == pytest.approx(0.5**0.5)
    assert "together with v[1]" in uncertainty.notes["v[0]"]


def test_a_parameter_at_a_bound_is_flagged_and_the_others_have_the_errors_of_a_fit_with_it_fixed():
    opt = LeastSquares(residuals)
    bounded, _ = opt.run(decay(C={"value": 0.7, "lower": 0.6}))
    fixed, _ = opt.run({**decay(), "C": Parameter("C", 0.6, free=False)})
    at_bound, without = opt.uncertainty(bounded), opt.uncertainty(fixed)
    assert at_bound.at_bound == ("C",) and "lower bound 0.6" in at_bound.notes["C"]
    assert np.isnan(at_bound.standard_errors["C"])
    np.testing.assert_allclose(errors_of(at_bound, "Ak"), errors_of(without, "Ak"), rtol=1e-4)
    assert "bound" in repr(at_bound)


def test_a_small_value_near_a_bound_is_not_at_the_bound():
    opt = LeastSquares(lambda s: 1e12 * s["rate"] * X - X - 0.01 * NOISE)
    rate = (1 + 0.01 * (X @ NOISE) / (X @ X)) * 1e-12
    uncertainty = opt.uncertainty({"rate": Parameter("rate", rate, lower=0.0)})
    rest = 1e12 * rate * X - X - 0.01 * NOISE
    assert not uncertainty.at_bound
    expected = 1e-12 * np.sqrt(rest @ rest / 39 / (X @ X))
    assert uncertainty.standard_errors["rate"] == pytest.approx(expected)


PRECISION = np.array([[4.0, -1.5], [-1.5, 1.0]])
QUADRATIC = OptaxOptimizer(
    lambda s: jnp.array([s["a"], s["b"]]) @ PRECISION @ jnp.array([s["a"], s["b"]]) / 2, optax.sgd(0.1)
)


@pytest.mark.parametrize("errors_away", [0.01, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("upper", [None, 50.0])
def test_near_a_bound_the_errors_are_those_without_it(errors_away, upper):
    expected = np.sqrt(np.diag(np.linalg.inv(PRECISION)))
    a = Parameter("a", 0.0, lower=-errors_away * expected[0], upper=upper)
    uncertainty = QUADRATIC.uncertainty({"a": a, "b": Parameter("b", 0.0)})
    np.testing.assert_allclose(errors_of(uncertainty, "ab"), expected, rtol=1e-9)
    assert not uncertainty.at_bound and not uncertainty.messages


@pytest.mark.parametrize("distance", [0.0, 1e-9, 1e-4])
def test_on_a_bound_the_errors_of_the_others_are_those_with_it_held(distance):
    a, b = 0.7, 0.7 * 1.5  # the least loss where a is at least 0.7
    state = {"a": Parameter("a", a + distance, lower=a), "b": Parameter("b", b)}
    uncertainty = QUADRATIC.uncertainty(state)
    assert uncertainty.at_bound == ("a",) and np.isnan(uncertainty.standard_errors["a"])
    assert uncertainty.standard_errors["b"] == pytest.approx(1.0, rel=1e-9)


def test_a_state_on_a_bound_from_which_the_loss_falls_is_not_at_its_minimum():
    state = {"a": Parameter("a", -0.7, lower=-0.7), "b": Parameter("b", -0.7 * 1.5)}
    with pytest.warns(RuntimeWarning, match="a would still change"):
        uncertainty = QUADRATIC.uncertainty(state)
    expected = np.sqrt(np.diag(np.linalg.inv(PRECISION)))
    np.testing.assert_allclose(errors_of(uncertainty, "ab"), expected, rtol=1e-9)


def test_entries_between_equal_bounds_and_empty_parameters_are_not_fitted(fitted):
    state = {
        **fitted,
        "C": Parameter("C", [0.0, 1.0], lower=[-1.0, 1.0], upper=[2.0, 1.0]),
        "none": Parameter(np.zeros((0, 3))),
    }
    start = {**state, "C": state["C"].replace(value=[float(fitted["C"]), 1.0])}
    opt = LeastSquares(lambda s: residuals({**s, "C": s["C"][0] * s["C"][1]}))
    plain, found = LeastSquares(residuals).uncertainty(fitted), opt.uncertainty(start)
    assert found.names == ("A", "C[0]", "k")
    np.testing.assert_allclose(found.covariance, plain.covariance, rtol=1e-9)
    assert np.isnan(found.standard_errors["C"][1]) and found.standard_errors["none"].shape == (0, 3)
    low, high = found.confidence_intervals(parameters=["k"])["k"]
    assert low < float(fitted["k"]) < high

    for empty in (
        LeastSquares(lambda s: Y + s["w"].sum()),
        OptaxOptimizer(lambda s: 1.0, optax.sgd(1.0)),
    ):
        nothing = empty.uncertainty({"w": Parameter(np.zeros(0))})
        assert nothing.names == () and nothing.covariance.shape == (0, 0) and not nothing.messages
        assert nothing.confidence_intervals() == {} and "0 elements" in repr(nothing)


def test_a_saddle_is_no_minimum():
    opt = OptaxOptimizer(lambda s: s["x"] ** 2 - s["y"] ** 2, optax.sgd(0.1))
    with pytest.warns(RuntimeWarning, match="negative eigenvalues"):
        uncertainty = opt.uncertainty({"x": Parameter("x", 0.0), "y": Parameter("y", 0.0)})
    assert "not a minimum" in uncertainty.messages[0]
    assert uncertainty.standard_errors == {"x": pytest.approx(0.5**0.5), "y": np.inf}


def test_a_state_that_is_not_at_the_minimum_is_warned_of_with_its_distance(fitted):
    """For squares, the estimated distance is the distance: the loss above its minimum."""
    curvature = np.array([[4.0, 1.0], [1.0, 1.0]])
    loss = lambda s: s["x"] @ curvature @ s["x"] / 2
    opt = OptaxOptimizer(loss, optax.sgd(0.1))
    start = {"x": Parameter("x", [0.1, -0.5])}
    for parameters in (None, ["x"]):
        with pytest.warns(RuntimeWarning, match="not come to the minimum") as warned:
            (message,) = opt.uncertainty(start, errordef=2.0, parameters=parameters).messages
        assert warned[0].filename == __file__ and str(warned[0].message) == message
        assert f"the loss fall by {loss({'x': np.array([0.1, -0.5])}) / 2.0:.2g} of" in message
    assert not opt.uncertainty({"x": Parameter("x", [0.01, -0.05])}, errordef=2.0).messages

    state = {**fitted, "k": fitted["k"].replace(value=float(fitted["k"]) + 0.02)}
    opt = LeastSquares(residuals)
    with pytest.warns(RuntimeWarning, match="k would still change by"):
        uncertainty = opt.uncertainty(state)
    excess = (uncertainty.loss - opt.uncertainty(fitted).loss) / uncertainty.variance
    distance = float(uncertainty.messages[0].partition("fall by ")[2].split()[0])
    assert distance == pytest.approx(excess, rel=0.1)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_what_the_null_space_moves_is_open_and_the_rest_has_its_error(seed, lost, as_hessian):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(30, 8)) * np.logspace(-8, 8, 8)
    # Columns 1 to `lost` + 1 count together only; the others are as they were.
    design[:, 1 : lost + 2] = rng.normal(size=(30, 1)) * np.logspace(-3, 3, lost + 1)
    rest = [i for i in range(8) if not 1 <= i <= lost + 1]
    reduced = np.linalg.qr(design[:, [1, *rest]] / np.linalg.norm(design[:, [1, *rest]], axis=0))[1]
    inverse = np.linalg.inv(reduced.T @ reduced)
    expected = np.sqrt(np.diag(inverse))[1:] / np.linalg.norm(design[:, rest], axis=0)
    if as_hessian:
        found = covariance.invert(design.T @ design, 1e-12)
    else:
        found = covariance.invert_root(design, 1e-12)
    errors = covariance.errors(found, 1.0, 1e-12)
    assert np.isinf(errors[1 : lost + 2]).all() and found.flat.shape == (8, lost)
    np.testing.assert_allclose(errors[rest], expected, rtol=1e-6)


# --- prediction ---


def test_a_line_has_the_confidence_band_of_linear_regression():
    state = {"slope": Parameter("slope", 0.0), "offset": Parameter("offset", 0.0), "x": X, "y": Y}
    fitted, _ = LINE.run(state)
    uncertainty = LINE.uncertainty(fitted)
    new = np.array([-1.0, 2.0, 10.0])
    value, error = uncertainty.propagate(
        lambda state: state["slope"] * state["x"] + state["offset"], {**fitted, "x": new}
    )
    slope, offset = np.polyfit(X, Y, 1)
    variance = np.sum((slope * X + offset - Y) ** 2) / 38
    expected = np.sqrt(variance * (1 / 40 + (new - X.mean()) ** 2 / np.sum((X - X.mean()) ** 2)))
    np.testing.assert_allclose(value, slope * new + offset, rtol=1e-6)
    np.testing.assert_allclose(error, expected, rtol=1e-6)


def test_propagate_wants_the_same_free_parameters(fitted):
    uncertainty = LeastSquares(residuals).uncertainty(fitted)
    with pytest.raises(ValueError, match="A, C and k; it has A and k"):
        uncertainty.propagate(model, {**fitted, "C": 0.5})


# --- thousands of parameters ---


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(120, 60)) * np.logspace(-2, 2, 60)
    y = rng.normal(size=120)
    weights = np.linalg.lstsq(A, y)[0]
    loss = lambda s: jnp.sum((A @ s["w"] - y) ** 2) / 2 + s["at"] + s["at"] ** 2 + 0 * s["idle"]
    state = {
        "w": Parameter("w", weights),
        "at": Parameter("at", 1e-9, lower=0.0),
        "idle": Parameter("idle", 0.0),
    }
    return OptaxOptimizer(loss, optax.sgd(0.1)), state, np.linalg.inv(A.T @ A)


def test_some_errors_come_without_a_hessian(many):
    opt, state, expected = many
    some = opt.uncertainty(state, parameters=["w[3]", "w[50]", "at", "idle"])
    assert some.names == ("w[3]", "w[50]", "at", "idle")
    np.testing.assert_allclose(some.covariance[:2, :2], expected[np.ix_([3, 50], [3, 50])], rtol=1e-6)
    assert np.isnan(some.standard_errors["w"][4]) and some.standard_errors["idle"] == np.inf
    assert some.undetermined == ("idle",) and some.at_bound == ("at",)
    with pytest.raises(ValueError, match="all parameters"):
        some.propagate(lambda s: s["w"])
    with pytest.raises(KeyError, match="no parameter 'v'.*w, "):
        opt.uncertainty(state, parameters=["v"])


def test_some_errors_of_very_many_numbers_come_in_single_precision():
    n = 200_000
    with jax.enable_x64(False):
        sizes = np.exp(np.random.default_rng(0).normal(size=n)).astype(np.float32)

        def loss(state):
            w = state["w"]
            return jnp.sum(sizes * w**2) / 2 + jnp.sum((w[1:] - w[:-1]) ** 2) / 2

        state = {"w": Parameter("w", np.zeros(n, np.float32))}
        opt = OptaxOptimizer(loss, optax.sgd(0.1))
        some = opt.uncertainty(state, parameters=["w[0]", "w[7]"])
    # What is far away does not matter, so the first 60 are enough.
    hessian = np.diag(sizes[:60].astype(float) + 2) - np.eye(60, k=1) - np.eye(60, k=-1)
    hessian[0, 0] -= 1
    expected = np.linalg.inv(hessian)[np.ix_([0, 7], [0, 7])]
    np.testing.assert_allclose(some.covariance, expected, rtol=1e-4, atol=1e-5)
    assert not some.messages


def ill_conditioned(decades, dtype):
    """A loss whose Hessian has eigenvalues over so many decades, a state, and the inverse's diagonal."""
    directions, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))
    sizes = np.logspace(0, -decades / 2, 60)
    root = (sizes[:, None] * directions.T).astype(dtype)
    loss = lambda s: jnp.sum((root @ s["w"]) ** 2) / 2
    return loss, {"w": Parameter("w", np.zeros(60, dtype))}, np.sum((directions / sizes) ** 2, axis=1)


def test_what_single_precision_cannot_tell_is_said():
    with jax.enable_x64(False):
        loss, state, _ = ill_conditioned(8, np.float32)
        some = OptaxOptimizer(loss, optax.sgd(0.1)).uncertainty(state, parameters=["w[0]"])
    assert some.standard_errors["w"][0] == np.inf and some.undetermined == ("w[0]",)
    assert "single precision may be at fault" in some.messages[1]
    loss, state, variances = ill_conditioned(8, np.float64)
    some = OptaxOptimizer(loss, optax.sgd(0.1)).uncertainty(state, parameters=["w[0]"])
    assert some.standard_errors["w"][0] == pytest.approx(variances[0] ** 0.5, rel=1e-4)
    assert not some.messages


def test_errors_that_are_only_roughly_known_are_named():
    loss, state, variances = ill_conditioned(12, np.float64)
    some = OptaxOptimizer(loss, optax.sgd(0.1)).uncertainty(state, parameters=["w[3]"])
    assert some.standard_errors["w"][3] == pytest.approx(variances[3] ** 0.5, rel=0.1)
    assert some.messages == ("only roughly known, as conjugate gradients came no closer: w[3]",)


def test_the_dense_hessian_gives_the_same(many):
    opt, state, expected = many
    dense = opt.uncertainty(state)
    np.testing.assert_allclose(dense.standard_errors["w"], np.sqrt(np.diag(expected)), rtol=1e-9)
    assert dense.undetermined == ("idle",) and dense.at_bound == ("at",)


# --- the call ---


def test_a_second_call_compiles_nothing(fitted):
    opt = LeastSquares(residuals)
    opt.uncertainty(fitted)
    moved = {**fitted, "A": fitted["A"].replace(value=float(fitted["A"]) + 1e-4)}
    with counted_compilations() as compilations:
        opt.uncertainty(moved)
    assert not compilations


def test_it_says_what_it_cannot_do(fitted):
    opt = OptaxOptimizer(lambda s: jnp.sum(residuals(s) ** 2), optax.sgd(0.1))
    with pytest.raises(ValueError, match="errordef must be a positive number, got 0"):
        opt.uncertainty(fitted, errordef=0)
    with pytest.raises(ValueError, match='mode must be "rev", "fwd" or None'):
        opt.uncertainty(fitted, mode="forward")
    with pytest.raises(ValueError, match="nothing in the state is free"):
        opt.uncertainty({"A": 1.0})
    with pytest.raises(TypeError, match="not inside jit"):
        jax.jit(lambda A: opt.uncertainty({**fitted, "A": Parameter("A", A)}).loss)(1.0)
    root = OptaxOptimizer(lambda s: jnp.sqrt(s["x"]) + s["y"] ** 2, optax.sgd(0.1))
    with pytest.raises(ValueError, match="with respect to x are not finite"):
        root.uncertainty({"x": Parameter("x", 0.0), "y": Parameter("y", 0.0)})


def test_it_is_readable(fitted):
    text = repr(LeastSquares(residuals).uncertainty(fitted)).splitlines()
    assert text[0] == "Uncertainty of 3 elements" and text[3].split()[::2] == ["k", "±"]


# --- others ---


def test_lmfit_gives_the_same_errors_and_correlations_with_bounds():
    lmfit = pytest.importorskip("lmfit")
    parameters = lmfit.Parameters()
    parameters.add("A", value=1.0, min=0.0, max=5.0)
    parameters.add("k", value=1.0, min=0.0)
    parameters.add("C", value=0.0)
    result = lmfit.minimize(lambda p: p["A"] * np.exp(-p["k"] * X) + p["C"] - Y, parameters)
    opt = LeastSquares(residuals)
    fitted, _ = opt.run(decay(A={"lower": 0.0, "upper": 5.0}, k={"lower": 0.0}))
    uncertainty = opt.uncertainty(fitted)
    stderr = [result.params[name].stderr for name in "AkC"]
    np.testing.assert_allclose(errors_of(uncertainty, "AkC"), stderr, rtol=1e-3)
    correlation = uncertainty.correlation[uncertainty.names.index("A"), uncertainty.names.index("k")]
    assert correlation == pytest.approx(result.params["A"].correl["k"], abs=1e-3)


def test_iminuit_gives_the_same_errors_and_correlations_with_bounds():
    Minuit = pytest.importorskip("iminuit").Minuit
    counts = np.random.default_rng(1).poisson(30 * np.exp(-X / 0.8) + 2.0)

    def loss(A, tau, b):
        rate = A * jnp.exp(-X / tau) + b
        return jnp.sum(rate - counts * jnp.log(rate))

    minuit = Minuit(jax.jit(loss), A=20.0, tau=1.0, b=1.0)
    minuit.errordef, minuit.tol = 0.5, 1e-5
    minuit.limits["b"], minuit.limits["tau"] = (0, None), (0.1, 10)
    minuit.migrad()
    minuit.hesse()
    state = {
        "A": Parameter("A", minuit.values["A"]),
        "tau": Parameter("tau", minuit.values["tau"], lower=0.1, upper=10.0),
        "b": Parameter("b", minuit.values["b"], lower=0.0),
    }
    uncertainty = OptaxOptimizer(lambda s: loss(**s), optax.sgd(0.1)).uncertainty(state)
    errors = [minuit.errors[name] for name in uncertainty.names]
    np.testing.assert_allclose(np.sqrt(np.diag(uncertainty.covariance)), errors, rtol=0.01)
    order = [minuit.parameters.index(name) for name in uncertainty.names]
    correlation = np.asarray(minuit.covariance.correlation())[np.ix_(order, order)]
    np.testing.assert_allclose(uncertainty.correlation, correlation, atol=0.01)
