"""Fits of lmfit and iminuit, done again: composite models, expressions, cost functions, MINOS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

import fitopt
from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter, report, with_priors


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


# Two peaks on a background that decays, one as wide as the other times 1.5: by lmfit's expr.

X = np.linspace(0.0, 10.0, 150)


def gaussian(x, amplitude, center, sigma):
    return amplitude / (np.sqrt(2 * np.pi) * sigma) * jnp.exp(-0.5 * ((x - center) / sigma) ** 2)


def background(state, x):
    return state["amplitude"] * jnp.exp(-x / state["decay"])


def first(state, x):
    return gaussian(x, state["amplitude1"], state["center1"], state["sigma1"])


def second(state, x):
    return gaussian(x, state["amplitude2"], state["center2"], state["sigma2"])


def composite(state, x):
    return background(state, x) + first(state, x) + second(state, x)


TRUE = {"amplitude": 5.0, "decay": 4.0, "amplitude1": 6.0, "center1": 3.5, "sigma1": 0.5}
TRUE |= {"amplitude2": 9.0, "center2": 6.4, "sigma2": 0.75}
Y = np.asarray(composite(TRUE, X)) + 0.15 * np.random.default_rng(7).normal(size=X.size)
FITTED = [name for name in TRUE if name != "sigma2"]


@pytest.fixture(scope="module")
def theirs():
    models = pytest.importorskip("lmfit").models
    model = models.ExponentialModel(prefix="b_") + models.GaussianModel(prefix="p_")
    model += models.GaussianModel(prefix="q_")
    start = {"b_amplitude": 4, "b_decay": 3, "p_amplitude": 5, "p_center": 3.4, "p_sigma": 0.6}
    parameters = model.make_params(**start, q_amplitude=7, q_center=6.5)
    parameters["q_sigma"].expr = "1.5 * p_sigma"
    return model.fit(Y, parameters, x=X, fit_kws={"ftol": 1e-13, "xtol": 1e-13})


THEIR_NAMES = dict(
    zip(
        TRUE,
        [
            "b_amplitude",
            "b_decay",
            *(f"{p}_{n}" for p in "pq" for n in ("amplitude", "center", "sigma")),
        ],
        strict=True,
    )
)


@pytest.fixture(scope="module")
def ours(in_float64):
    state = {name: Parameter(name, 1.1 * TRUE[name], lower=0) for name in FITTED}
    state["center1"], state["center2"] = Parameter("center1", 3.4), Parameter("center2", 6.5)
    state["sigma2"] = Derived("sigma2", lambda state: 1.5 * state["sigma1"])
    optimizer = LeastSquares(lambda state: composite(state, X) - Y)
    fitted, history = optimizer.run(state)
    return fitted, history, optimizer.uncertainty(fitted)


def test_values_and_errors_are_lmfits_that_of_the_expression_too(ours, theirs):
    rows = {row.name: row for row in report(*ours, data=Y).parameters}
    for name, theirs_name in THEIR_NAMES.items():
        expected = theirs.params[theirs_name]
        assert rows[name].value == pytest.approx(expected.value, rel=1e-5)
        assert rows[name].error == pytest.approx(expected.stderr, rel=1e-3)


def test_correlations_and_the_quality_of_the_fit_are_lmfits(ours, theirs):
    found = report(*ours, data=Y)
    for one in FITTED:
        correlations = theirs.params[THEIR_NAMES[one]].correl
        for other in FITTED:
            if other != one:
                expected = correlations[THEIR_NAMES[other]]
                assert ours[2].correlation[one, other] == pytest.approx(expected, abs=2e-4)
    quality = found.chi_square, found.reduced_chi_square, found.aic, found.bic, found.r_squared
    expected = theirs.chisqr, theirs.redchi, theirs.aic, theirs.bic, theirs.rsquared
    np.testing.assert_allclose(quality, expected, rtol=1e-5)


def test_components_and_the_bands_of_mean_and_new_data_are_lmfits(ours, theirs):
    fitted, _, uncertainty = ours
    at = np.linspace(0.0, 12.0, 25)
    value, error, data_error = uncertainty.predict(lambda state: composite(state, at))
    np.testing.assert_allclose(value, theirs.eval(x=at), rtol=1e-4)
    # With sigma=1 lmfit gives half an interval of one standard deviation by Student's t.
    from scipy.stats import norm, t

    quantile = t.ppf(norm.cdf(1.0), X.size - len(FITTED))
    np.testing.assert_allclose(quantile * error, theirs.eval_uncertainty(x=at, sigma=1), rtol=1e-3)
    np.testing.assert_allclose(quantile * data_error, theirs.dely_predicted, rtol=1e-3)
    parts = theirs.eval_components(x=at)
    for fn, prefix in ((background, "b_"), (first, "p_"), (second, "q_")):
        values = fitopt.values(fitted)
        np.testing.assert_allclose(fn(values, at), parts[prefix], rtol=1e-4, atol=1e-8)


def test_confidence_intervals_at_two_levels_are_lmfits(ours, theirs):
    names = ["sigma1", "decay"]
    levels = [0.6827, 0.9545]
    found = ours[2].confidence_intervals(levels, names)
    expected = theirs.conf_interval(sigmas=levels, p_names=[THEIR_NAMES[name] for name in names])
    for name in names:
        low, inner_low, _, inner_high, high = [value for _, value in expected[THEIR_NAMES[name]]]
        ends = [*found[name][0], *found[name][1]]
        np.testing.assert_allclose(ends, [inner_low, inner_high, low, high], rtol=1e-4)


# A peak on a falling background, counted or not, by the cost functions of iminuit.

RNG = np.random.default_rng(12)
DRAWN = np.concatenate([RNG.normal(1.0, 0.2, 300), RNG.exponential(1.2, 900)])
DRAWN = DRAWN[(DRAWN > 0) & (DRAWN < 3)]
COUNTS, EDGES = np.histogram(DRAWN, bins=30, range=(0, 3))


def cumulative(x, s, mu, sigma, tau):
    normal = jax.scipy.stats.norm.cdf
    peak = (normal((x - mu) / sigma) - normal(-mu / sigma)) / (
        normal((3 - mu) / sigma) - normal(-mu / sigma)
    )
    return s * peak + (1 - s) * (1 - jnp.exp(-x / tau)) / (1 - jnp.exp(-3 / tau))


def density(x, s, mu, sigma, tau):
    normal = jax.scipy.stats.norm
    peak = normal.pdf(x, mu, sigma) / (normal.cdf((3 - mu) / sigma) - normal.cdf(-mu / sigma))
    return s * peak + (1 - s) * jnp.exp(-x / tau) / tau / (1 - jnp.exp(-3 / tau))


START = {"s": 0.3, "mu": 1.02, "sigma": 0.2, "tau": 1.1}
NAMES = ("s", "mu", "sigma", "tau")


def unbinned(state):
    return -jnp.sum(jnp.log(density(DRAWN, *(state[name] for name in NAMES))))


def binned(state):
    expected = state["n"] * jnp.diff(cumulative(EDGES, *(state[name] for name in NAMES)))
    return jnp.sum(expected - COUNTS + COUNTS * jnp.log(jnp.where(COUNTS > 0, COUNTS, 1) / expected))


def their_cost(kind):
    cost = pytest.importorskip("iminuit.cost")
    compiled = {fn: jax.jit(fn) for fn in (density, cumulative)}

    def pdf(x, s, mu, sigma, tau):
        return np.asarray(compiled[density](x, s, mu, sigma, tau))

    def scaled_cdf(x, n, s, mu, sigma, tau):
        return n * np.asarray(compiled[cumulative](x, s, mu, sigma, tau))

    if kind == "unbinned":
        return cost.UnbinnedNLL(DRAWN, pdf)
    binned = cost.ExtendedBinnedNLL(COUNTS, EDGES, scaled_cdf)
    if kind == "binned Poisson":
        return binned
    return binned + cost.NormalConstraint(["mu", "sigma"], [1.1, 0.25], [0.02, 0.03])


class Normal:
    """A normal prior, with nothing but what is needed."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, x):
        return -0.5 * ((x - self.loc) / self.scale) ** 2


LOSSES = {
    "unbinned": unbinned,
    "binned Poisson": binned,
    "with constraints": with_priors(binned, {"mu": Normal(1.1, 0.02), "sigma": Normal(0.25, 0.03)}),
}


@pytest.fixture(scope="module", params=LOSSES)
def both(request, in_float64):
    """Our uncertainty and their Minuit, which has found minimum and errors."""
    Minuit = pytest.importorskip("iminuit").Minuit
    start = START if request.param == "unbinned" else {"n": 1150.0, **START}
    minuit = Minuit(their_cost(request.param), **start)
    minuit.limits["sigma"], minuit.limits["tau"] = (0.01, None), (0.01, None)
    minuit.strategy, minuit.tol = 2, 1e-6
    minuit.migrad()
    # Through limits, HESSE's differences have but three digits.
    minuit.limits["sigma"] = minuit.limits["tau"] = (None, None)
    minuit.hesse()
    state = {name: Parameter(name, value) for name, value in start.items()}
    state |= {name: Parameter(name, start[name], lower=0.01, scale=0.1) for name in ("sigma", "tau")}
    optimizer = OptaxOptimizer(LOSSES[request.param], fitopt.LBFGSB(rtol=1e-12))
    fitted, history = optimizer.run(state)
    return optimizer.uncertainty(fitted), minuit, history


def test_minimum_and_errors_are_those_of_migrad_and_hesse(both):
    uncertainty, minuit, history = both
    for name in minuit.parameters:
        row, error = uncertainty.names.index(name), minuit.errors[name]
        assert uncertainty.values[row] == pytest.approx(minuit.values[name], abs=1e-3 * error)
        assert uncertainty.standard_errors[name] == pytest.approx(error, rel=1e-3)
    for a, b in (("s", "sigma"), ("mu", "tau")):
        expected = minuit.covariance.correlation()[a, b]
        assert uncertainty.correlation[a, b] == pytest.approx(expected, abs=1e-3)


def test_asymmetric_errors_are_those_of_minos(both):
    uncertainty, minuit, _ = both
    found = uncertainty.confidence_intervals(0.682689492137, ["s", "sigma"])
    minuit.minos("s", "sigma")
    for name, interval in found.items():
        minos, error = minuit.merrors[name], minuit.errors[name]
        np.testing.assert_allclose(
            [-interval.minus, interval.plus], [minos.lower, minos.upper], atol=1e-3 * error
        )


def test_contours_at_two_levels_are_minuits_point_by_point(both):
    uncertainty, minuit, _ = both
    levels = [0.68, 0.95]
    contours = uncertainty.contour("s", "sigma", level=levels, points=40)
    axes = np.linalg.cholesky(
        uncertainty.covariance[np.ix_(*[[uncertainty.names.index(n) for n in ("s", "sigma")]] * 2)]
    )

    def polar(points, centre):
        x, y = np.linalg.solve(axes, (points - centre).T)
        return np.arctan2(y, x) % (2 * np.pi), np.hypot(x, y)

    for level, contour in zip(levels, contours, strict=True):
        angles, lengths = polar(contour.points[:-1], contour.values)
        order = np.argsort(angles)
        angles, lengths = angles[order], lengths[order]
        spline = CubicSpline(
            [*angles, angles[0] + 2 * np.pi], [*lengths, lengths[0]], bc_type="periodic"
        )
        points = minuit.mncontour("s", "sigma", cl=level, size=8, experimental=True)
        at, expected = polar(points, contour.values)
        np.testing.assert_allclose(spline(at), expected, atol=1e-3)
