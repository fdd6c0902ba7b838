"""What a host callback may do with the fit that it belongs to."""

import contextlib

import numpy as np
import optax
import pytest

import fitopt
from fitopt import optimizers

from .conftest import quadratic


class Visit(fitopt.HostCallback):
    """Calls `action(fit, step)` at its visits."""

    def __init__(self, action, every=1, at_start=None):
        self.action = action
        self.every = every
        self.at_start = at_start

    @contextlib.contextmanager
    def open(self, fit):
        if self.at_start:
            self.at_start(fit)
        yield lambda step, *_: self.action(fit, step)


def fit(parabola, callback, optimizer=None, steps=6):
    optimizer = optimizer or optimizers.sgd(0.1)
    return fitopt.OptaxOptimizer(quadratic, optimizer, callback).run(parabola, steps)


def by_hand(rates):
    """Losses of (x - 1)² from x = 3 with these learning rates."""
    x, losses = 3.0, []
    for rate in rates:
        losses.append((x - 1) ** 2)
        x -= rate * 2 * (x - 1)
    return losses


@pytest.mark.parametrize("optimizer", [optimizers.sgd(0.1), optax.inject_hyperparams(optax.sgd)(0.1)])
def test_a_learning_rate_that_is_set_counts_from_the_next_step(parabola, optimizer):
    seen = []

    def halve(fit, step):
        seen.append(float(fit.learning_rate))
        fit.learning_rate /= 2

    _, history = fit(parabola, Visit(halve, every=2), optimizer)
    np.testing.assert_allclose(seen, [0.1, 0.05, 0.025], rtol=1e-6)
    expected = by_hand([0.1, 0.05, 0.05, 0.025, 0.025, 0.0125])
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)


def test_a_learning_rate_can_be_set_before_the_first_step(parabola):
    def at_start(fit):
        fit.learning_rate = 0.25

    _, history = fit(parabola, Visit(lambda fit, step: None, at_start=at_start))
    np.testing.assert_allclose(history["loss"], by_hand([0.25] * 6), rtol=1e-5)


def test_a_learning_rate_that_cannot_be_set_is_an_error(parabola):
    def set_rate(fit, step):
        fit.learning_rate = 0.5

    with pytest.raises(ValueError, match="no learning rate"):
        fit(parabola, Visit(set_rate), optax.sgd(0.1))
    with pytest.raises(ValueError, match="a schedule sets"):
        fit(parabola, Visit(set_rate), optimizers.sgd(lambda step: 0.1))
    with pytest.raises(ValueError, match="no learning rate"):
        fit(parabola, Visit(lambda fit, step: fit.learning_rate), optax.sgd(0.1))
    with pytest.raises(ValueError, match="learning_rate must be"):
        fit(parabola, Visit(lambda fit, step: setattr(fit, "learning_rate", -1.0)))


def test_what_a_host_callback_records_is_a_series(parabola):
    _, history = fit(
        parabola, Visit(lambda fit, step: fit.record("twice", 2.0 * step, every=2), every=2)
    )
    np.testing.assert_array_equal(history["twice"], [0.0, 4.0, 8.0])
    np.testing.assert_array_equal(history.steps("twice"), [0, 2, 4])


def test_a_host_callback_cannot_record_what_another_one_does(parabola):
    record = fitopt.callbacks.RecordParameters(every=2)
    with pytest.raises(ValueError, match="'parameters'"):
        fit(parabola, [record, Visit(lambda fit, step: fit.record("parameters", 1.0))])
    with pytest.raises(ValueError, match="'loss'"):
        fit(parabola, Visit(lambda fit, step: fit.record("loss", 1.0)))


def test_a_fit_that_is_told_to_stop_ends_after_the_stretch_and_says_why(parabola):
    _, history = fit(parabola, Visit(lambda fit, step: fit.stop("enough") if step == 3 else None))
    assert history["n_steps"] == 4
    assert history["stop_reason"] == "enough (after step 3)"


class Halving(fitopt.Callback):
    """Halves the learning rate after each step."""

    def next_learning_rate(self, info, carry):
        return info.learning_rate / 2


def test_a_traced_callback_sets_the_learning_rate_of_the_next_step(parabola):
    _, history = fit(parabola, Halving())
    np.testing.assert_allclose(history["loss"], by_hand([0.1 / 2**i for i in range(6)]), rtol=1e-5)


def test_a_traced_callback_that_cannot_set_the_learning_rate_is_an_error(parabola):
    class Setting(fitopt.Callback):
        def next_learning_rate(self, info, carry):
            return 0.5

    with pytest.raises(ValueError, match="no learning rate"):
        fit(parabola, Setting(), optax.sgd(0.1))
