"""From a minimum to samples, predictions and intervals, beside closed forms, lmfit and iminuit."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fitopt
from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter
from fitopt.uncertainty import NamedMatrix

RNG = np.random.default_rng(11)
X = np.linspace(0.0, 4.0, 40)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * RNG.normal(size=X.size)
NEW_X = np.linspace(0.0, 6.0, 9)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def curve(state, x):
    return state["height"] * jnp.exp(-state["rate"] * x) + state["floor"]


def at_new(state):
    return curve(state, NEW_X)


def start():
    return {
        "height": Parameter("height", 1.0),
        "rate": Parameter("rate", 1.0, lower=0, upper=5),
        "floor": Parameter("floor", 0.0),
        "half_life": Derived("half_life", lambda state: jnp.log(2) / state["rate"]),
    }


@pytest.fixture(scope="module")
def fit(in_float64):
    optimizer = LeastSquares(lambda state: curve(state, X) - Y)
    fitted, history = optimizer.run(start())
    return fitted, history, optimizer.uncertainty(fitted)


@pytest.fixture(scope="module")
def theirs():
    lmfit = pytest.importorskip("lmfit")
    model = lmfit.Model(lambda x, height, rate, floor: height * np.exp(-rate * x) + floor)
    return model.fit(Y, x=X, height=1.0, rate=1.0, floor=0.0)


# By name.


def test_correlations_and_covariances_go_by_name(fit):
    _, _, uncertainty = fit
    i, j = (uncertainty.names.index(name) for name in ("rate", "floor"))
    assert uncertainty.correlation["rate", "floor"] == np.asarray(uncertainty.correlation)[i, j]
    assert uncertainty.covariance["rate", "rate"] == pytest.approx(
        uncertainty.standard_errors["rate"] ** 2
    )
    np.testing.assert_array_equal(
        uncertainty.correlation["rate"], np.asarray(uncertainty.correlation)[i]
    )
    with pytest.raises(KeyError, match="no element 'k'; there are floor, height and rate"):
        uncertainty.correlation["rate", "k"]


def test_a_named_matrix_is_an_array_and_what_is_made_of_it_a_plain_one(fit):
    _, _, uncertainty = fit
    matrix = uncertainty.covariance
    for made in (matrix * 2, matrix[:2], matrix @ np.ones(3), np.linalg.inv(matrix), np.exp(matrix[0])):
        assert not isinstance(made, NamedMatrix)
    assert isinstance(matrix, np.ndarray) and np.diagonal(matrix).shape == (3,)
    assert pickle.loads(pickle.dumps(matrix))["rate", "rate"] == matrix["rate", "rate"]


def test_a_named_matrix_becomes_a_table(fit):
    pytest.importorskip("pandas")
    _, _, uncertainty = fit
    frame = uncertainty.correlation.to_dataframe()
    assert frame.loc["rate", "floor"] == uncertainty.correlation["rate", "floor"]


# Several levels.


def test_intervals_at_several_levels_are_those_at_each(fit):
    _, _, uncertainty = fit
    both = uncertainty.confidence_intervals([0.68, 0.95], ["rate"])["rate"]
    for interval, level in zip(both, (0.68, 0.95), strict=True):
        alone = uncertainty.confidence_intervals(level, ["rate"])["rate"]
        assert interval.level == level
        np.testing.assert_allclose([*interval], [*alone], rtol=1e-5)
    assert both[1].low < both[0].low < both[0].high < both[1].high


def test_intervals_at_several_levels_are_lmfits(fit, theirs):
    _, _, uncertainty = fit
    ours = uncertainty.confidence_intervals([0.6827, 0.95])
    for name, ends in theirs.conf_interval(sigmas=[0.6827, 0.95]).items():
        low, inner_low, _, inner_high, high = [value for _, value in ends]
        error = uncertainty.standard_errors[name]
        np.testing.assert_allclose([*ours[name][0]], [inner_low, inner_high], atol=2e-3 * error)
        np.testing.assert_allclose([*ours[name][1]], [low, high], atol=2e-3 * error)


def test_contours_at_several_levels_lie_in_each_other(fit):
    _, _, uncertainty = fit
    inner, outer = uncertainty.contour("rate", "floor", level=[0.68, 0.95], points=12)
    distance = lambda contour: np.linalg.norm(
        (contour.points - contour.values) / [uncertainty.standard_errors[n] for n in contour.names],
        axis=1,
    )
    assert (distance(inner) < distance(outer)).all()
    alone = uncertainty.contour("rate", "floor", level=0.95, points=12)
    np.testing.assert_allclose(outer.points, alone.points, rtol=1e-4)


def test_profiles_and_intervals_print_on_a_line(fit):
    _, _, uncertainty = fit
    profile = uncertainty.profile("rate", points=4)
    line = str(profile)
    assert line == (
        f"rate = {profile.value:.3f} (-{profile.minus:.2g}, +{profile.plus:.2g}): "
        f"95 % from {profile.low:.3f} to {profile.high:.3f}"
    )
    assert str(uncertainty.confidence_intervals(0.95, ["rate"])["rate"]) == line


@pytest.mark.parametrize("level", [1.5, [0.68, 2.0], []])
def test_levels_are_probabilities(fit, level):
    with pytest.raises(ValueError, match="level must be a probability"):
        fit[2].confidence_intervals(level)


# Predictions.


def test_predictions_and_their_errors_are_lmfits(fit, theirs):
    _, _, uncertainty = fit
    value, error, data_error = uncertainty.predict(at_new)
    np.testing.assert_allclose(value, theirs.eval(x=NEW_X), rtol=1e-6)
    # lmfit's uncertainties are half an interval by Student's t, of this probability.
    t = stats.t.ppf((1 + 0.95) / 2, X.size - 3)
    np.testing.assert_allclose(error, theirs.eval_uncertainty(x=NEW_X, sigma=0.95) / t, rtol=1e-4)
    np.testing.assert_allclose(data_error, theirs.dely_predicted / t, rtol=1e-4)


def test_new_data_of_a_linear_model_scatter_by_the_textbook_formula():
    optimizer = LeastSquares(lambda s: s["a"] + s["b"] * X - Y)
    fitted, _ = optimizer.run({"a": Parameter("a", 0.0), "b": Parameter("b", 0.0)})
    _, _, data_error = optimizer.uncertainty(fitted).predict(lambda s: s["a"] + s["b"] * NEW_X)
    left = Y - np.polyval(np.polyfit(X, Y, 1), X)
    scatter = np.sum(left**2) / (X.size - 2)
    spread = 1 + 1 / X.size + (NEW_X - X.mean()) ** 2 / np.sum((X - X.mean()) ** 2)
    np.testing.assert_allclose(data_error, np.sqrt(scatter * spread), rtol=1e-6)


def test_sigma_is_that_of_the_new_data():
    sigma = 0.1 + 0.0 * X
    residuals = lambda state: curve(state, X) - Y
    optimizer = LeastSquares(residuals, sigma=sigma, absolute_sigma=True)
    fitted, _ = optimizer.run(start())
    uncertainty = optimizer.uncertainty(fitted)
    _, error, by_default = uncertainty.predict(lambda state: curve(state, X))
    np.testing.assert_allclose(by_default, np.hypot(error, 0.1))
    _, error, given = uncertainty.predict(at_new, sigma=0.3)
    np.testing.assert_allclose(given, np.hypot(error, 0.3))
    with pytest.raises(
        ValueError, match=r"the sigma of the fit, of shape \(40,\), does not fit.*\(9,\)"
    ):
        uncertainty.predict(at_new)


def test_a_likelihood_needs_sigma_for_new_data():
    nll = lambda state: jnp.sum((curve(state, X) - Y) ** 2) / (2 * 0.05**2)
    optimizer = OptaxOptimizer(nll, fitopt.LBFGSB(rtol=1e-9))
    fitted, _ = optimizer.run(start())
    uncertainty = optimizer.uncertainty(fitted)
    with pytest.raises(ValueError, match="what new data scatter by is not known"):
        uncertainty.predict(at_new)
    _, error, data_error = uncertainty.predict(at_new, sigma=0.05)
    np.testing.assert_allclose(data_error, np.hypot(error, 0.05))


# Samples.


@pytest.fixture(scope="module")
def samples(fit):
    return fit[2].sample(jax.random.key(1), 20_000)


def test_samples_have_the_mean_and_the_covariance_of_the_fit(fit, samples):
    fitted, _, uncertainty = fit
    drawn = np.stack([samples.values(name) for name in uncertainty.names])
    errors = np.sqrt(np.diagonal(uncertainty.covariance))
    np.testing.assert_allclose((drawn.mean(axis=1) - uncertainty.values) / errors, 0, atol=0.05)
    np.testing.assert_allclose(drawn.std(axis=1) / errors, 1, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(drawn), uncertainty.correlation, atol=0.03)


def test_samples_are_a_sequence_of_states(fit, samples):
    fitted, *_ = fit
    assert len(samples) == 20_000 and len(samples[:10]) == 10
    state = samples[3]
    assert jax.tree.structure(state) == jax.tree.structure(fitted)
    assert float(state["rate"]) == samples.values("rate")[3] == samples[-19_997]["rate"]
    np.testing.assert_allclose(samples.values("half_life"), np.log(2) / samples.values("rate"))
    bands = samples[:50].map(at_new)
    np.testing.assert_allclose(bands[3], at_new(fitopt.values(state)))
    assert [*samples[:5].to_dataframe().columns] == ["floor", "half_life", "height", "rate"]
    with pytest.raises(IndexError, match="there are 20000 samples"):
        samples[20_000]
    with pytest.raises(KeyError, match="no 'k' that was drawn"):
        samples.values("k")


def test_samples_keep_bounds_masks_and_transforms():
    state = {
        "k": Parameter("k", [0.05, 3.0, 1.0], lower=0, upper=4, mask=[True, True, False]),
        "p": Parameter("p", [0.2, 0.3, 0.5], transform=fitopt.transforms.Simplex()),
    }
    target = jnp.array([0.05, 3.9])

    def loss(state):
        return jnp.sum((state["k"][:2] - target) ** 2) / 0.02 - 20 * jnp.sum(
            jnp.array([0.1, 0.3, 0.6]) * jnp.log(state["p"])
        )

    optimizer = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-10))
    fitted, _ = optimizer.run(state)
    samples = optimizer.uncertainty(fitted).sample(jax.random.key(0), 2000)
    k, p = samples.values("k"), samples.values("p")
    assert (k >= 0).all() and (k <= 4).all() and (k[:, 2] == 1.0).all()
    assert k[:, 0].std() > 0.01
    np.testing.assert_allclose(p.sum(axis=1), 1)
    errors = optimizer.uncertainty(fitted).standard_errors["p"]
    np.testing.assert_allclose(p.std(axis=0), errors, rtol=0.2)


def test_what_is_on_a_bound_stays_there_and_is_told_of():
    optimizer = LeastSquares(lambda s: jnp.stack([s["a"] - 1.0, s["b"] + 1.0, s["a"] - 1.5]))
    fitted, _ = optimizer.run({"a": Parameter("a", 0.0), "b": Parameter("b", 1.0, lower=0)})
    uncertainty = optimizer.uncertainty(fitted)
    with pytest.warns(RuntimeWarning, match="all samples have b on the bound"):
        samples = uncertainty.sample(jax.random.key(0), 100)
    assert (samples.values("b") == 0).all() and samples.values("a").std() > 0.1


def test_a_singular_covariance_cannot_be_sampled_from():
    optimizer = LeastSquares(lambda s: s["a"] + s["b"] - jnp.array([1.0, 2.0, 4.0]))
    fitted, _ = optimizer.run({"a": Parameter("a", 0.0), "b": Parameter("b", 0.0)})
    uncertainty = optimizer.uncertainty(fitted)
    with pytest.raises(ValueError, match="covariance is singular.*do not determine a and b"):
        uncertainty.sample(jax.random.key(0), 10)
    with pytest.raises(ValueError, match="covariance is singular"):
        _ = uncertainty.unconstrained_covariance
    exact = LeastSquares(lambda s: s["a"] - jnp.array([1.0]))
    with pytest.raises(ValueError, match="no scatter of the residuals"):
        exact.uncertainty(exact.run({"a": Parameter("a", 0.0)})[0]).sample(jax.random.key(0), 10)


@pytest.mark.parametrize("n, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_the_number_of_samples_is_a_positive_integer(fit, n, error):
    with pytest.raises(error, match="n must be a number of samples"):
        fit[2].sample(jax.random.key(0), n)


def test_the_covariance_by_position_is_the_inverse_of_the_hessian_by_position():
    state = {
        "z": Parameter("z", 1.0, lower=0),
        "a": Parameter("a", [2.0, 3.0], transform=fitopt.transforms.Affine(scale=-2.0)),
    }
    loss = lambda s: 3 * (s["z"] - 2) ** 2 + jnp.sum((s["a"] * s["z"] - 1) ** 2)
    optimizer = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-12))
    fitted, _ = optimizer.run(state)
    position, to_state, _ = fitopt.unconstrained(fitted)
    flat, unravel = jax.flatten_util.ravel_pytree(position)
    hessian = jax.jit(jax.hessian(lambda x: loss(fitopt.values(to_state(unravel(x))))))(flat)
    found = optimizer.uncertainty(fitted).unconstrained_covariance
    np.testing.assert_allclose(found, np.linalg.inv(hessian), rtol=1e-5)
