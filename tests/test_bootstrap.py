import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter, bootstrap, report

X = np.linspace(0.0, 3.0, 40)
RNG = np.random.default_rng(2)
NOISE = 0.1 * RNG.normal(size=40)
Y = 1.0 + 2.0 * X + NOISE


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def line(state):
    return state["offset"] + state["slope"] * X - state["y"]


@pytest.fixture(scope="module")
def fitted():
    fit = LeastSquares(line)
    state = {"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0), "y": Y}
    return fit, *fit.run(state)


def test_residual_errors_are_those_of_linear_regression(fitted):
    fit, state, _ = fitted
    made = bootstrap(fit, state, n=2000, seed=1)
    expected = scipy.stats.linregress(X, Y)
    assert made.names == ("offset", "slope")
    assert made.samples.shape == (2000, 2)
    np.testing.assert_allclose(made.standard_errors["slope"], expected.stderr, rtol=0.06)
    np.testing.assert_allclose(made.standard_errors["offset"], expected.intercept_stderr, rtol=0.06)
    assert abs(made.bias["slope"]) < 0.1 * expected.stderr
    assert not made.messages


def test_case_samples_are_the_fits_of_data_drawn_with_repetition(fitted):
    fit, state, _ = fitted
    made = bootstrap(fit, state, n=300, seed=3, kind="case")
    rng = np.random.default_rng(3)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=300)
    for sample, weight in zip(made.samples[:20], counts, strict=False):
        slope, offset = np.polyfit(X, Y, 1, w=np.sqrt(weight))
        np.testing.assert_allclose(sample, [offset, slope], rtol=1e-6)


def test_intervals_are_those_that_scipy_finds(fitted):
    def mean(x, axis=-1):
        return np.mean(x, axis=axis)

    data = np.random.default_rng(5).exponential(size=30)
    fit = LeastSquares(lambda state: state["mean"] - data)
    state, _ = fit.run({"mean": Parameter("mean", 0.5)})
    made = bootstrap(fit, state, n=4000, kind="case")
    for method, name in (("percentile", "percentile"), ("bca", "BCa")):
        expected = scipy.stats.bootstrap(
            (data,), mean, n_resamples=20000, method=name, rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = made.confidence_intervals(0.95, method)["mean"]
        np.testing.assert_allclose([low, high], [*expected], atol=0.02)
    low, high = made.confidence_intervals()["mean"]
    assert high - made.values[0] > made.values[0] - low  # as an exponential distribution is skewed


def test_intervals_stand_beside_the_errors_in_a_report(fitted):
    fit, state, history = fitted
    intervals = bootstrap(fit, state, n=100).confidence_intervals(0.9)
    shown = str(report(state, history, fit.uncertainty(state), intervals))
    assert "± error" in shown and "90 % interval" in shown


def test_weights_of_sigma_and_several_arrays_count():
    sigma = {"a": np.full(40, 0.1), "b": np.full(5, 10.0)}

    def two(state):
        return {"a": state["slope"] * X - Y + 1, "b": state["slope"] * jnp.ones(5) - 7.0}

    fit = LeastSquares(two, sigma=sigma, absolute_sigma=True)
    state, _ = fit.run({"slope": Parameter("slope", 1.0)})
    made = bootstrap(fit, state, n=300, kind="case")
    error = fit.uncertainty(state).standard_errors["slope"]
    np.testing.assert_allclose(made.standard_errors["slope"], error, rtol=0.3)


def test_the_same_seed_gives_the_same_samples(fitted):
    fit, state, _ = fitted
    first, again, other = (bootstrap(fit, state, n=20, seed=seed).samples for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_what_is_derived_follows_from_the_resampled_fit(fitted):
    _, state, _ = fitted
    doubled = Derived("doubled", lambda state: 2 * state["half"])
    halved = {"half": state["slope"].replace(name="half", value=0.5), "offset": state["offset"], "y": Y}
    fit = LeastSquares(lambda s: s["offset"] + s["doubled"] * X - s["y"])
    made = bootstrap(fit, fit.run(halved | {"doubled": doubled})[0], n=20, seed=1)
    plain = bootstrap(fitted[0], state, n=20, seed=1)
    np.testing.assert_allclose(2 * made.samples[:, 0], plain.samples[:, 1], rtol=1e-6)


def test_arguments_that_cannot_be_meant_are_errors(fitted):
    fit, state, _ = fitted
    with pytest.raises(TypeError, match="fit must be a LeastSquares.*got a OptaxOptimizer"):
        bootstrap(OptaxOptimizer(lambda s: s["x"], optax.sgd(1.0)), state)
    with pytest.raises(ValueError, match="kind must be one of 'residual', 'case'"):
        bootstrap(fit, state, kind="pairs")
    with pytest.raises(ValueError, match="n must be an integer of at least 2"):
        bootstrap(fit, state, n=1)
    made = bootstrap(fit, state, n=20)
    with pytest.raises(ValueError, match="level must be a probability"):
        made.confidence_intervals(95)
    with pytest.raises(ValueError, match="method must be one of"):
        made.confidence_intervals(method="normal")
    assert repr(made).startswith("Bootstrap of 20 fits\n  offset  0.99")
