"""Callbacks that end a fit."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import (
    EarlyStopping,
    StopAfter,
    StopOnGradient,
    StopOnLoss,
    StopOnStep,
    stopping,
)

from .conftest import quadratic
from .walk import run_walk

SGD = optax.sgd(0.1)


def steps_until_patience_ends(losses, patience, min_delta=0.0):
    best, waited = np.inf, 0
    for step, loss in enumerate(losses[:-1]):
        better = loss < best - min_delta
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited == patience:
            return step + 1
    return len(losses) - 1


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta"),
    [
        ([5, 4, 4, 4, 4, 4, 4], 3, 0.0),
        ([5, 4, 4, 4, 3, 3, 3, 3], 3, 0.0),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5], 2, 0.5),
        ([5, 4.9, 4.8, 4.7, 4.4, 4.3, 4.2, 4.1], 4, 0.5),
        ([3, 2, 1, 0, -1, -2], 1, 0.0),
    ],
)
def test_early_stopping_waits_for_patience_steps_without_improvement(losses, patience, min_delta):
    expected = steps_until_patience_ends(losses, patience, min_delta)
    _, history = run_walk(losses, EarlyStopping(patience, min_delta))
    assert history["n_steps"] == expected
    assert ("EarlyStopping" in history["stop_reason"]) == (expected < len(losses) - 1)


def test_early_stopping_watches_what_it_is_told_to():
    losses, validation = [9, 8, 7, 6, 5, 4, 3, 2], [5, 4, 3, 4, 5, 6, 7, 8]

    def on_new_data(info):
        return info.aux["validation"]

    _, history = run_walk(losses, EarlyStopping(2, monitor=on_new_data), validation)
    assert history["n_steps"] == steps_until_patience_ends(validation, 2) == 5
    assert history["stop_reason"].startswith("EarlyStopping: on_new_data did not improve in 2 steps")
    _, history = run_walk(losses, EarlyStopping(2), validation)
    assert history["n_steps"] == len(losses) - 1


@pytest.mark.parametrize("monitor", [lambda info: info.params, lambda info: 1j * info.loss])
def test_a_monitor_that_returns_no_real_scalar_is_an_error(parabola, monitor):
    with pytest.raises(TypeError, match="EarlyStopping: monitor must return a real scalar"):
        OptaxOptimizer(quadratic, SGD, EarlyStopping(3, monitor=monitor)).run(parabola, 5)


def test_stop_on_loss_stops_after_the_step_that_reaches_it():
    _, history = run_walk([5.0, 3.0, 2.0, 1.0, 0.0], StopOnLoss(2.0))
    np.testing.assert_array_equal(history["loss"], [5.0, 3.0, 2.0])
    assert history["stop_reason"] == "StopOnLoss: the loss reached 2 (at step 2)"


@pytest.mark.parametrize(
    ("norm", "size"),
    [("max", lambda g: np.max(np.abs(g), axis=1)), ("l2", lambda g: np.linalg.norm(g, axis=1))],
)
def test_stop_on_gradient_looks_at_all_parameters(norm, size):
    state = {"a": Parameter("a", jnp.array([3.0, -2.0])), "b": Parameter("b", 1.5)}
    loss = lambda state: jnp.sum((state["a"] - 1.0) ** 2) + (state["b"] - 1.0) ** 2
    gradients = 2 * np.array([2.0, -3.0, 0.5]) * 0.8 ** np.arange(50)[:, None]
    _, history = OptaxOptimizer(loss, SGD, StopOnGradient(0.1, norm)).run(state, 100)
    assert history["n_steps"] == np.argmax(size(gradients) <= 0.1) + 1
    assert history["stop_reason"].startswith("StopOnGradient")


def test_stop_on_gradient_takes_complex_parameters():
    state = {"z": Parameter("z", 1.0 + 2.0j)}
    loss = lambda state: jnp.abs(state["z"] - 1.0) ** 2
    _, history = OptaxOptimizer(loss, SGD, StopOnGradient(0.1)).run(state, 100)
    assert history["n_steps"] == np.argmax(4 * 0.8 ** np.arange(50) <= 0.1) + 1


def cauchy(x, losses, rtol, atol):
    """The number of steps after which the test of Cauchy is passed."""
    close = lambda new, old: np.abs(new - old) <= atol + rtol * np.abs(new)
    passed = close(x[1:], x[:-1]).reshape(len(x) - 1, -1).all(axis=1) & close(losses[1:], losses[:-1])
    return np.argmax(passed) + 2


@pytest.mark.parametrize(("rtol", "atol"), [(1e-2, 0.0), (0.0, 1e-2), (3e-3, 1e-4)])
def test_stop_on_step_wants_parameters_and_loss_to_stand_still(rtol, atol):
    # Unconstrained values, a thousandth of the values, would come within the tolerance earlier.
    state = {"x": Parameter("x", jnp.array([3.0, 6.0]), scale=1e3)}
    loss = lambda state: 0.5 + jnp.sum((state["x"] - 1.0) ** 2)
    x = 1 + np.array([2.0, 5.0]) * 0.8 ** np.arange(100)[:, None]
    losses = 0.5 + np.sum((x - 1) ** 2, axis=1)
    _, history = OptaxOptimizer(loss, optax.sgd(1e-7), StopOnStep(rtol, atol)).run(state, 100)
    assert history["n_steps"] == cauchy(x, losses, rtol, atol)
    assert history["stop_reason"].startswith("StopOnStep")


def test_a_loss_that_stands_still_while_parameters_move_is_not_the_end():
    _, history = run_walk([2.0, 1.0, 1.0, 1.0, 1.0], StopOnStep(1e-3, 1e-3))
    assert history["n_steps"] == 4


def test_stop_after_stops_when_time_is_up(parabola, monkeypatch):
    clock = types.SimpleNamespace(
        perf_counter=itertools.count().__next__
    )  # a second each time one looks
    monkeypatch.setattr(stopping, "time", clock)
    visit = lambda step, *rest: None  # so that there is a visit after each step
    optimizer = OptaxOptimizer(quadratic, SGD, [StopAfter(5), visit])
    for _ in range(2):  # the clock starts anew with each fit
        _, history = optimizer.run(parabola, 100)
        assert history["n_steps"] == 5
        assert history["stop_reason"] == "StopAfter: 5 s have passed (at step 4)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(0),
        lambda: EarlyStopping(2**24 + 1),
        lambda: EarlyStopping(3, min_delta=-1.0),
        lambda: EarlyStopping(3, min_delta=float("nan")),
        lambda: StopOnLoss(float("nan")),
        lambda: StopOnGradient(-1e-3),
        lambda: StopOnGradient(1e-3, norm="inf"),
        lambda: StopOnStep(1e-3, -1.0),
        lambda: StopOnStep(float("inf"), 0.0),
        lambda: StopAfter(-1),
    ],
)
def test_settings_that_make_no_sense_are_errors(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(2.5),
        lambda: EarlyStopping(True),
        lambda: EarlyStopping(3, min_delta=None),
        lambda: StopOnLoss("small"),
        lambda: StopOnGradient(1e-3, norm=2),
        lambda: StopOnStep(1e-3, 1j),
        lambda: StopAfter(None),
    ],
)
def test_settings_of_another_kind_are_errors_of_type(make):
    with pytest.raises(TypeError, match="must be"):
        make()


def test_a_monitor_must_be_a_function():
    with pytest.raises(
        TypeError, match="monitor must be a function of .*, or the name of a metric, got 3"
    ):
        EarlyStopping(3, monitor=3)
