import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter, vary
from fitopt.callbacks import StopOnGradient

T = np.linspace(0.0, 4.0, 25)
RNG = np.random.default_rng(1)
TRUTH = RNG.uniform(0.5, 2.0, (7, 2))
DATA = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:] * T) + 0.02 * RNG.normal(size=(7, 25))
DATA[4] = -1.0  # no decay at all: the height comes to lie on its bound


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def residuals(state):
    return state["height"] * jnp.exp(-state["rate"] * T) - state["y"]


def states():
    y = DATA.copy()
    y[5] = np.nan
    state = {
        "height": Parameter("height", 1.0, lower=0),
        "rate": Parameter("rate", 1.0),
        "y": np.zeros(25),
    }
    return vary(state, {"y": y})


def assert_as_one(optimizer, fits, several):
    for number, (fitted, history) in enumerate(fits):
        if not np.isfinite(history["final_loss"]):
            assert several[number] is None
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = optimizer.uncertainty(fitted)
        np.testing.assert_allclose(
            several.errors[number], np.sqrt(np.diagonal(one.covariance)), rtol=1e-9
        )
        np.testing.assert_allclose(several.correlation[number], one.correlation, rtol=1e-9)
        np.testing.assert_allclose(
            several.standard_errors("rate")[number], one.standard_errors["rate"], rtol=1e-9
        )
        assert several.messages[number] == one.messages
        assert several[number].at_bound == one.at_bound


def test_errors_of_many_least_squares_fits_are_those_of_each():
    optimizer = LeastSquares(residuals)
    fits = optimizer.run_many(states())
    several = optimizer.uncertainty(fits)
    assert len(several) == 7
    assert "not finite" in several.messages[5][0]
    assert several[4].at_bound == ("height",)
    assert_as_one(optimizer, fits, several)


def test_errors_of_many_fits_of_a_loss_are_those_of_each():
    loss = lambda state: jnp.sum((residuals(state) / 0.02) ** 2) / 2
    optimizer = OptaxOptimizer(loss, optax.lbfgs(), StopOnGradient(1e-6))
    fits = optimizer.run_many(states()[:4], 60)
    several = optimizer.uncertainty(fits)
    assert_as_one(optimizer, fits, several)
    assert repr(several) == "Uncertainties of 4 of 4 fits of height, rate"
    with pytest.raises(TypeError, match="many fits"):
        optimizer.uncertainty(fits, parameters=["rate"])
    with pytest.raises(KeyError, match="no parameter 'k'"):
        several.standard_errors("k")


def half_life(state):
    return jnp.log(2) / state["rate"]


def test_what_goes_by_state_goes_by_all_of_them():
    state = {
        "height": Parameter("height", 1.0, lower=0),
        "rate": Parameter("rate", 1.0),
        "half-life": Derived("half-life", half_life),
        "y": np.zeros(25),
    }
    y = DATA[:4].copy()
    y[2] = np.nan
    optimizer = LeastSquares(residuals)
    fits = optimizer.run_many(vary(state, {"y": y}))
    np.testing.assert_allclose(fits.values("half-life"), np.log(2) / fits.values("rate"))
    several = optimizer.uncertainty(fits)
    value, error, data_error = several.predict(lambda s: s["height"] * jnp.exp(-s["rate"] * 5.0))
    lives, errors = several.propagate(half_life)
    samples = several.sample(jax.random.key(0), 3)
    assert samples[2] is None and np.isnan(value[2]) and np.isnan(errors[2])
    for number in (0, 1, 3):
        one = optimizer.uncertainty(fits[number][0])
        expected = one.predict(lambda s: s["height"] * jnp.exp(-s["rate"] * 5.0))
        np.testing.assert_allclose([value[number], error[number], data_error[number]], expected)
        np.testing.assert_allclose([lives[number], errors[number]], one.propagate(half_life))
        assert len(samples[number]) == 3
    with pytest.raises(KeyError, match="no parameter 'life' is fitted"):
        fits.values("life")
