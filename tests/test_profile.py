"""Profile likelihood, against closed forms, lmfit and iminuit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

from fitopt import LeastSquares, OptaxOptimizer, Parameter
from fitopt.transforms import Exp, Simplex

from .conftest import counted_compilations

X = np.linspace(0.0, 4.0, 20)
NOISE = np.random.default_rng(0).normal(size=20)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.2 * NOISE
ONE_SIGMA = 0.6826894921370859


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def residuals(state):
    return state["A"] * jnp.exp(-state["k"] * X) + state["C"] - Y


def decay(**changes):
    state = {"A": Parameter("A", 2.0), "k": Parameter("k", 1.0), "C": Parameter("C", 0.5)}
    return {name: parameter.replace(**changes.get(name, {})) for name, parameter in state.items()}


@pytest.fixture(scope="module")
def uncertainty():
    opt = LeastSquares(residuals)
    return opt.uncertainty(opt.run(decay())[0])


@pytest.fixture(scope="module")
def line():
    """A straight line with one array of parameters, and what linear regression says of it."""
    design = np.stack([X, np.ones(20)], axis=1)
    solution, (sum_of_squares,), *_ = np.linalg.lstsq(design, Y)
    opt = LeastSquares(lambda state: design @ state["w"] - Y)
    uncertainty = opt.uncertainty({"w": Parameter("w", solution)})
    return uncertainty, solution, sum_of_squares / 18 * np.linalg.inv(design.T @ design)


# --- intervals ---


def test_the_intervals_of_a_line_are_those_of_student(line):
    uncertainty, solution, covariance = line
    intervals = uncertainty.confidence_intervals(level=0.9)
    assert list(intervals) == ["w[0]", "w[1]"]
    half = scipy.stats.t.ppf(0.95, 18) * np.sqrt(np.diag(covariance))
    for i, interval in enumerate(intervals.values()):
        np.testing.assert_allclose(interval, [solution[i] - half[i], solution[i] + half[i]], rtol=1e-4)
        assert interval.minus == pytest.approx(half[i], rel=1e-4)
        assert interval.plus == pytest.approx(half[i], rel=1e-4)
        assert interval.at_bound == (False, False) and not interval.messages


def test_absolute_sigma_has_the_normal_distribution():
    opt = LeastSquares(lambda state: state["mean"] - Y, sigma=0.3, absolute_sigma=True)
    uncertainty = opt.uncertainty({"mean": Parameter("mean", Y.mean())})
    low, high = uncertainty.confidence_intervals(0.95)["mean"]
    half = scipy.stats.norm.ppf(0.975) * 0.3 / 20**0.5
    assert (low, high) == pytest.approx((Y.mean() - half, Y.mean() + half), rel=1e-5)


@pytest.mark.parametrize("level", [ONE_SIGMA, 0.99])
def test_lmfit_gives_the_same_intervals(uncertainty, level):
    lmfit = pytest.importorskip("lmfit")
    parameters = lmfit.Parameters()
    for name, value in {"A": 2.0, "k": 1.0, "C": 0.5}.items():
        parameters.add(name, value=value)
    minimizer = lmfit.Minimizer(lambda p: p["A"] * np.exp(-p["k"] * X) + p["C"] - Y, parameters)
    expected = lmfit.conf_interval(minimizer, minimizer.minimize(), sigmas=[level])
    for name, interval in uncertainty.confidence_intervals(level).items():
        (_, low), _, (_, high) = expected[name]
        np.testing.assert_allclose(interval, [low, high], rtol=2e-4)


def poisson():
    counts = np.random.default_rng(1).poisson(30 * np.exp(-X / 0.8) + 0.7)

    def loss(A, tau, b):
        rate = A * jnp.exp(-X / tau) + b
        return jnp.sum(rate - counts * jnp.log(rate))

    return loss


def test_minos_gives_the_same_intervals_with_bounds():
    Minuit = pytest.importorskip("iminuit").Minuit
    loss = poisson()
    minuit = Minuit(jax.jit(loss), A=30.0, tau=0.8, b=0.7)
    minuit.errordef, minuit.tol = 0.5, 1e-5
    minuit.limits["tau"], minuit.limits["b"] = (0.1, 10), (0, 1.4)
    minuit.migrad()
    minuit.minos()
    assert minuit.merrors["b"].at_upper_limit
    state = {
        "A": Parameter("A", minuit.values["A"]),
        "tau": Parameter("tau", minuit.values["tau"], lower=0.1, upper=10.0),
        "b": Parameter("b", minuit.values["b"], lower=0.0, upper=1.4),
    }
    uncertainty = OptaxOptimizer(lambda s: loss(**s), optax.sgd(0.1)).uncertainty(state)
    for name, interval in uncertainty.confidence_intervals(ONE_SIGMA).items():
        minos = minuit.merrors[name]
        assert interval.minus == pytest.approx(-minos.lower, rel=5e-3)
        assert interval.plus == pytest.approx(minos.upper, rel=5e-3)
        assert interval.at_bound == (minos.at_lower_limit, minos.at_upper_limit)


def test_an_interval_ends_at_the_bound_that_it_reaches():
    opt = LeastSquares(lambda s: s["mean"] - Y, sigma=1.0, absolute_sigma=True)
    state = {"mean": Parameter("mean", Y.mean(), lower=Y.mean() - 0.1)}
    interval = opt.uncertainty(state).confidence_intervals(0.95)["mean"]
    assert interval.low == state["mean"].lower and interval.at_bound == (True, False)
    assert interval.plus == pytest.approx(scipy.stats.norm.ppf(0.975) / 20**0.5, rel=1e-4)


def test_a_positive_transform_ends_the_interval_at_zero():
    opt = LeastSquares(lambda s: s["mean"] - Y[:1] + Y[0] - 1, sigma=1.0, absolute_sigma=True)
    uncertainty = opt.uncertainty({"mean": Parameter("mean", 1.0, transform=Exp())})
    interval = uncertainty.confidence_intervals(0.95)["mean"]
    assert interval.low == 0 and interval.at_bound == (True, False)
    assert interval.high == pytest.approx(1 + scipy.stats.norm.ppf(0.975), rel=1e-4)


def test_a_parameter_on_a_bound_is_free_to_leave_it_while_others_are_held():
    opt = LeastSquares(residuals)
    fitted, _ = opt.run(decay(C={"value": 0.8, "lower": 0.7}))
    uncertainty = opt.uncertainty(fitted)
    intervals = uncertainty.confidence_intervals()
    assert uncertainty.at_bound == ("C",)
    assert intervals["C"].low == 0.7 and intervals["C"].at_bound == (True, False)
    assert not any(interval.messages for interval in intervals.values())
    # An independent search: where the least loss over all else, in bounds, has risen as far.
    rise = uncertainty.variance * scipy.stats.f.ppf(0.95, 1, uncertainty.degrees_of_freedom)
    for end in intervals["k"]:
        shapes = np.stack([np.exp(-end * X), np.ones(20)], axis=1)
        bounds = ([-np.inf, 0.7], [np.inf, np.inf])
        least = 2 * scipy.optimize.lsq_linear(shapes, Y, bounds, tol=1e-14).cost
        assert least - uncertainty.loss == pytest.approx(rise, rel=1e-3)


def test_what_is_not_determined_has_no_ends():
    opt = LeastSquares(lambda s: residuals({**s, "A": s["a"] * s["b"]}))
    start = {"a": Parameter("a", 1.0), "b": Parameter("b", 2.0)}
    fitted, _ = opt.run({**start, "k": Parameter("k", 1.0), "C": Parameter("C", 0.5)})
    intervals = opt.uncertainty(fitted).confidence_intervals(parameters=["a", "k"])
    assert tuple(intervals["a"]) == (-np.inf, np.inf)
    assert np.isfinite(intervals["k"]).all()


def test_without_scatter_there_is_no_interval(uncertainty):
    opt = LeastSquares(lambda s: s["mean"] - Y[:1])
    without = opt.uncertainty({"mean": Parameter("mean", Y[0] + 0.0)})
    interval = without.confidence_intervals()["mean"]
    assert tuple(interval) == (-np.inf, np.inf) and "no scatter" in interval.messages[0]
    with pytest.raises(ValueError, match="no scatter"):
        without.profile("mean")


def two_valleys(state):
    x = state["x"]
    return (x**2 - 1) ** 2 * 8 + 0.5 * x + state["y"] ** 2


def test_another_better_minimum_is_warned_of():
    opt = OptaxOptimizer(two_valleys, optax.sgd(0.1))
    slope = lambda x: 32 * x * (x**2 - 1) + 0.5
    worse = scipy.optimize.brentq(slope, 0.9, 1.1)
    uncertainty = opt.uncertainty({"x": Parameter("x", worse), "y": Parameter("y", 0.0)})
    with pytest.warns(RuntimeWarning, match="better minimum") as warned:
        interval = uncertainty.confidence_intervals(0.999999)["x"]
    assert any("x = -" in message for message in interval.messages)
    assert warned[0].filename == __file__


def test_a_profile_of_an_unfinished_fit_is_around_the_minimum_and_says_so(line):
    uncertainty, solution, covariance = line
    design = np.stack([X, np.ones(20)], axis=1)
    opt = LeastSquares(lambda state: design @ state["w"] - Y)
    with pytest.warns(RuntimeWarning, match="not come to the minimum"):
        early = opt.uncertainty({"w": Parameter("w", solution + 0.1)})
    interval = early.confidence_intervals()["w[0]"]
    assert interval.value == solution[0] + 0.1
    assert np.mean([*interval]) == pytest.approx(solution[0], rel=1e-4)
    assert "fit on first" in interval.messages[0]


def test_a_region_that_does_not_contain_the_fitted_values_is_refused(line):
    _, solution, _ = line
    design = np.stack([X, np.ones(20)], axis=1)
    opt = LeastSquares(lambda state: design @ state["w"] - Y)
    with pytest.warns(RuntimeWarning, match="not come to the minimum"):
        early = opt.uncertainty({"w": Parameter("w", solution + 1.0)})
    with pytest.raises(ValueError, match=r"interval of w\[0\], .* does not contain .* fit on"):
        early.confidence_intervals(0.68)
    with pytest.raises(ValueError, match="does not contain"):
        early.profile("w[0]", level=0.68)
    with pytest.raises(ValueError, match=r"region of w\[0\] and w\[1\] does not contain"):
        early.contour("w[0]", "w[1]", level=0.5)


# --- curves ---


def test_a_profile_holds_the_curve_around_its_interval(uncertainty):
    profile = uncertainty.profile("k", level=0.9, points=10)
    assert profile.values.shape == profile.losses.shape == (11,)
    assert np.all(np.diff(profile.values) > 0)
    assert profile.values[0] < profile.low < profile.value < profile.high < profile.values[-1]
    for i in (0, 7):  # with k held the model is linear
        shapes = np.stack([np.exp(-profile.values[i] * X), np.ones(20)], axis=1)
        solution, (least,), *_ = np.linalg.lstsq(shapes, Y)
        assert profile.losses[i] == pytest.approx(least, rel=1e-9)
        assert profile.others["A"][i] == pytest.approx(solution[0], rel=1e-5)
        assert profile.others["C"][i] == pytest.approx(solution[1], rel=1e-5)
    assert profile.losses.min() == pytest.approx(profile.best_loss)
    rise = np.interp([profile.low, profile.high], profile.values, profile.losses - profile.best_loss)
    np.testing.assert_allclose(rise, profile.threshold, rtol=0.1)


def test_a_profile_carries_the_standard_error_and_the_rise_that_belongs_to_it(line):
    uncertainty, _, covariance = line
    profile = uncertainty.profile("w[1]", points=8)
    assert profile.standard_error == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-9)
    assert profile.unit == pytest.approx(uncertainty.loss / 18)
    expected = profile.unit * ((profile.values - profile.value) / profile.standard_error) ** 2
    np.testing.assert_allclose(profile.losses - profile.best_loss, expected, rtol=1e-5, atol=1e-9)


def test_the_contour_of_a_line_is_an_ellipse(line):
    uncertainty, solution, covariance = line
    contour = uncertainty.contour("w[0]", "w[1]", level=0.9, points=12)
    assert contour.points.shape == (13, 2) and not contour.at_bound.any()
    np.testing.assert_array_equal(contour.points[0], contour.points[-1])
    np.testing.assert_array_equal(contour.values, solution)
    apart = contour.points - solution
    distances = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
    np.testing.assert_allclose(distances, 2 * scipy.stats.f.ppf(0.9, 2, 18), rtol=1e-4)


def test_a_contour_ends_at_bounds():
    opt = LeastSquares(lambda s: jnp.stack([s["a"], s["b"]]), sigma=1.0, absolute_sigma=True)
    state = {"a": Parameter("a", 0.0), "b": Parameter("b", 0.0, lower=-1.0, upper=5.0)}
    contour = opt.uncertainty(state).contour("a", "b", level=0.9, points=16)
    radius = scipy.stats.chi2.ppf(0.9, 2) ** 0.5
    lengths = np.hypot(*contour.points.T)
    np.testing.assert_allclose(lengths[~contour.at_bound], radius, rtol=1e-4)
    on_bound = contour.points[contour.at_bound]
    np.testing.assert_allclose(on_bound[:, 1], -1.0)
    # Those on rays, and the two corners.
    assert len(on_bound) == np.sum(np.sin(np.arange(16) * np.pi / 8) * radius < -1) + 2
    corners = [-np.sqrt(radius**2 - 1), np.sqrt(radius**2 - 1)]
    np.testing.assert_allclose([on_bound[:, 0].min(), on_bound[:, 0].max()], corners, rtol=1e-4)


def test_a_contour_around_a_corner_of_bounds_has_the_corner():
    state = {"a": Parameter("a", 0.5, lower=0.2), "b": Parameter("b", 0.5, lower=0.2)}
    opt = LeastSquares(lambda s: jnp.stack([s["a"], s["b"]]) - 0.5, sigma=1.0, absolute_sigma=True)
    contour = opt.uncertainty(state).contour("a", "b", level=0.5, points=9)
    assert np.any(np.all(contour.points == 0.2, axis=1))


def test_a_contour_of_minuit_is_the_same():
    Minuit = pytest.importorskip("iminuit").Minuit
    loss = poisson()
    minuit = Minuit(jax.jit(loss), A=30.0, tau=0.8, b=0.7)
    minuit.errordef, minuit.tol = 0.5, 1e-5
    minuit.migrad()
    state = {name: Parameter(name, minuit.values[name]) for name in minuit.parameters}
    uncertainty = OptaxOptimizer(lambda s: loss(**s), optax.sgd(0.1)).uncertainty(state)
    contour = uncertainty.contour("A", "tau", level=0.68, points=32)
    rows = [uncertainty.names.index(name) for name in ("A", "tau")]
    axes = np.linalg.cholesky(uncertainty.covariance[np.ix_(rows, rows)])

    def polar(points):
        x, y = np.linalg.solve(axes, (points - uncertainty.values[rows]).T)
        return np.arctan2(y, x), np.hypot(x, y)

    angles, lengths = polar(contour.points[:-1])
    theirs, expected = polar(minuit.mncontour("A", "tau", cl=0.68, size=20))
    order = np.argsort(angles)
    ours = np.interp(theirs, angles[order], lengths[order], period=2 * np.pi)
    np.testing.assert_allclose(ours, expected, rtol=0.02)


# --- the call ---


def test_all_profiles_share_one_program(uncertainty):
    uncertainty.confidence_intervals(parameters=["A"])
    with counted_compilations() as compilations:
        uncertainty.confidence_intervals(level=0.5)
        uncertainty.profile("C", points=4)
        uncertainty.contour("A", "k", points=4)
    assert not compilations


def test_it_says_what_it_cannot_do(uncertainty, line):
    with pytest.raises(KeyError, match="no element 'tau'; there are A, C and k"):
        uncertainty.profile("tau")
    with pytest.raises(KeyError, match=r"no element 'w'; there are w\[0\] and w\[1\]"):
        line[0].profile("w")
    with pytest.raises(KeyError, match="no parameter 'tau' is fitted"):
        uncertainty.confidence_intervals(parameters=["tau"])
    with pytest.raises(ValueError, match="level must be a probability between 0 and 1, got 95"):
        uncertainty.confidence_intervals(level=95)
    with pytest.raises(ValueError, match="two different elements"):
        uncertainty.contour("A", "A")
    opt = OptaxOptimizer(lambda s: -jnp.sum(jnp.log(s["p"])), optax.sgd(0.1))
    probabilities = opt.uncertainty({"p": Parameter("p", [0.5, 0.5], transform=Simplex())})
    message = (
        r"p\[0\] cannot be held by itself: the transform of Parameter 'p' does not act entry by entry"
    )
    for ask in (lambda: probabilities.profile("p[0]"), probabilities.confidence_intervals):
        with pytest.raises(ValueError, match=f"{message}.*propagate.*parameters="):
            ask()


def test_single_precision_is_enough_for_three_digits(uncertainty):
    with jax.enable_x64(False):
        x, y = X.astype(np.float32), Y.astype(np.float32)
        opt = LeastSquares(lambda s: s["A"] * jnp.exp(-s["k"] * x) + s["C"] - y)
        state = {name: Parameter(name, float(uncertainty.state[name])) for name in "AkC"}
        intervals = opt.uncertainty(state).confidence_intervals()
    for name, interval in uncertainty.confidence_intervals().items():
        np.testing.assert_allclose(intervals[name], interval, rtol=2e-3)
