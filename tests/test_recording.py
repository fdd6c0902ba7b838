"""Callbacks that write down what happens, and `KeepBest`."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import (
    KeepBest,
    Record,
    RecordAux,
    RecordGradientNorm,
    RecordGradients,
    RecordLearningRate,
    RecordParameters,
    RecordTime,
    recording,
)

from .conftest import quadratic
from .walk import run_walk

SGD = optax.sgd(0.1)


def test_parameters_are_recorded_at_the_point_of_each_loss():
    _, history = run_walk([5.0, 3.0, 2.0, 1.0, 0.0], RecordParameters())
    np.testing.assert_array_equal(history["parameters"]["x"], [0, 1, 2, 3])
    _, history = run_walk([5.0, 3.0, 2.0, 1.0, 0.0], RecordParameters(every=2))
    np.testing.assert_array_equal(history["parameters"]["x"], [0, 2])
    np.testing.assert_array_equal(history.steps("parameters"), [0, 2])


def test_any_function_of_the_step_can_be_recorded(parabola):
    callbacks = [
        Record("distance", lambda info: info.params["x"] - 1.0),
        Record("both", lambda info: {"loss": info.loss, "step": info.step}, every=3),
    ]
    _, history = OptaxOptimizer(quadratic, SGD, callbacks).run(parabola, 8)
    np.testing.assert_allclose(history["distance"], 2 * 0.8 ** np.arange(8), rtol=1e-5)
    np.testing.assert_array_equal(history["both"]["step"], [0, 3, 6])
    np.testing.assert_array_equal(history["both"]["loss"], history["loss"][::3])
    np.testing.assert_array_equal(history.steps("both"), [0, 3, 6])


def test_gradients_and_their_norms_are_those_of_each_step():
    state = {"a": Parameter("a", jnp.array([3.0, -2.0])), "fixed": 1.0, "b": Parameter("b", 1.5)}
    loss = lambda state: jnp.sum((state["a"] - state["fixed"]) ** 2) + (state["b"] - 1.0) ** 2
    for norm, order in (("l2", 2), ("max", np.inf)):
        callbacks = [RecordGradients(every=2), RecordGradientNorm(every=3, norm=norm)]
        _, history = OptaxOptimizer(loss, SGD, callbacks).run(state, 7)
        gradients = 2 * np.array([2.0, -3.0, 0.5]) * 0.8 ** np.arange(7)[:, None]
        np.testing.assert_allclose(history["gradients"]["a"], gradients[::2, :2], rtol=1e-5)
        np.testing.assert_allclose(history["gradients"]["b"], gradients[::2, 2], rtol=1e-5)
        assert history["gradients"]["fixed"] is None
        expected = np.linalg.norm(gradients[::3], ord=order, axis=1)
        np.testing.assert_allclose(history["gradient_norm"], expected, rtol=1e-5)
        np.testing.assert_array_equal(history.steps("gradient_norm"), [0, 3, 6])


def test_aux_is_recorded(parabola):
    loss = lambda state: (quadratic(state), {"twice": 2 * state["x"]})
    _, history = OptaxOptimizer(loss, SGD, RecordAux(every=2), has_aux=True).run(parabola, 5)
    np.testing.assert_allclose(history["aux"]["twice"], 2 + 4 * 0.64 ** np.arange(3), rtol=1e-5)


@pytest.mark.parametrize(("loss", "has_aux"), [(quadratic, False), (lambda s: (quadratic(s), {}), True)])
def test_aux_that_is_not_there_cannot_be_recorded(parabola, loss, has_aux):
    with pytest.raises(ValueError, match="RecordAux.*has_aux=True"):
        OptaxOptimizer(loss, SGD, RecordAux(), has_aux=has_aux).run(parabola, 2)


def test_the_time_since_the_start_of_each_fit_is_recorded(parabola, monkeypatch):
    clock = types.SimpleNamespace(
        perf_counter=itertools.count().__next__
    )  # a second each time one looks
    monkeypatch.setattr(recording, "time", clock)
    optimizer = OptaxOptimizer(quadratic, SGD, RecordTime(every=3))
    for _ in range(2):
        _, history = optimizer.run(parabola, 8)
        np.testing.assert_array_equal(history["time"], [1.0, 2.0, 3.0])
        np.testing.assert_array_equal(history.steps("time"), [0, 3, 6])


def test_the_learning_rate_of_each_update_is_recorded(parabola):
    schedule = optax.linear_schedule(0.2, 0.0, 4)
    for optimizer in (optimizers.sgd(schedule), optax.inject_hyperparams(optax.sgd)(schedule)):
        _, history = OptaxOptimizer(quadratic, optimizer, RecordLearningRate(every=2)).run(parabola, 5)
        np.testing.assert_allclose(history["learning_rate"], [0.2, 0.1, 0.0], rtol=1e-6)


def test_the_learning_rates_of_groups_are_recorded_by_pattern():
    state = {"a": Parameter("a", 1.0), "b": Parameter("b", 1.0)}
    groups = optimizers.groups({"a": optimizers.adam(0.1), "b": optimizers.sgd(0.2)})
    fit = OptaxOptimizer(lambda s: s["a"] ** 2 + s["b"] ** 2, groups, RecordLearningRate())
    _, history = fit.run(state, 2)
    np.testing.assert_allclose(history["learning_rate"]["a"], [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(history["learning_rate"]["b"], [0.2, 0.2], rtol=1e-6)


def test_a_learning_rate_that_is_not_known_cannot_be_recorded(parabola):
    with pytest.raises(ValueError, match="RecordLearningRate.*holds no learning rate"):
        OptaxOptimizer(quadratic, SGD, RecordLearningRate()).run(parabola, 2)


@pytest.mark.parametrize("best", [0, 2, 5])
def test_the_best_loss_is_paired_with_the_parameters_at_which_it_was_taken(best):
    losses = [5.0, 6.0, 7.0, 8.0, 9.0, 5.5]
    losses[best] = 1.0
    fitted, history = run_walk(losses, KeepBest())  # x = 5 is where the fit ends
    assert float(fitted["x"]) == best
    assert history["final_loss"] == 1.0


# The steps of the walk are compared with the state after the last one, whose loss no step records.
@pytest.mark.parametrize("callback", [KeepBest(), KeepBest(every=2), KeepBest(monitor=lambda i: i.loss)])
@pytest.mark.parametrize("losses", [[5.0, 3.0, 4.0, 2.0], [2.0, 2.0, 2.0, 2.0], [2.0, 3.0, 4.0, 2.0]])
def test_what_is_kept_is_never_worse_than_the_last_state_which_wins_a_tie(callback, losses):
    fitted, history = run_walk(losses, callback)
    assert float(fitted["x"]) == 3.0 and history["final_loss"] == 2.0


@pytest.mark.parametrize(
    "optimizer",
    [optimizers.sgd(1.05), optimizers.lookahead(optimizers.sgd(1.05), 3), optimizers.lbfgs()],
    ids=["overshooting", "averaging", "with a line search"],
)
def test_the_loss_of_what_is_kept_is_that_of_the_state_and_the_least(parabola, optimizer):
    fitted, history = OptaxOptimizer(quadratic, optimizer, KeepBest()).run(parabola, 7)
    assert history["final_loss"] == pytest.approx(float(quadratic(fitted)), rel=1e-6)
    assert history["final_loss"] <= min(history["loss"])


def test_without_keep_best_the_last_state_is_returned():
    fitted, history = run_walk([5.0, 1.0, 7.0], None)
    assert float(fitted["x"]) == 2.0 and history["final_loss"] == 7.0
    assert history["best_loss"] == 1.0 and history["best_step"] == 1


@pytest.mark.parametrize("best", [0, 2, 5])
def test_with_a_monitor_the_state_at_which_that_was_least_is_returned(best):
    callback = KeepBest(monitor=lambda info: info.aux["validation"])
    validation = [5.0, 6.0, 7.0, 8.0, 9.0, 5.5]
    validation[best] = 1.0
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # the first is least
    fitted, history = run_walk(losses, callback, validation)
    assert float(fitted["x"]) == best
    assert history["final_loss"] == losses[best]
    losses = losses[::-1]  # the last is least
    fitted, history = run_walk(losses, callback, validation)
    assert float(fitted["x"]) == best
    assert history["final_loss"] == losses[best]


def test_a_monitored_value_that_is_never_a_number_changes_nothing():
    callback = KeepBest(monitor=lambda info: info.loss * jnp.nan)
    fitted, history = run_walk([5.0, 1.0, 3.0], callback)
    assert float(fitted["x"]) == 2.0 and history["final_loss"] == 3.0


def test_a_step_that_fails_is_not_kept_whatever_the_monitor_says():
    losses, validation = [5.0, 1.0, 3.0, np.nan, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    callback = KeepBest(monitor=lambda info: info.aux["validation"])
    with pytest.warns(RuntimeWarning, match="not finite at step 3"):
        fitted, history = run_walk(losses, callback, validation)
    assert float(fitted["x"]) == 2.0 and history["final_loss"] == 3.0


@pytest.mark.parametrize(
    ("losses", "expected"), [([5.0, 1.0, 4.0, 2.0, 3.0, 6.0], 4), ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0], 5)]
)
def test_keep_best_may_look_at_some_steps_only_and_always_at_the_last_state(losses, expected):
    fitted, history = run_walk(losses, KeepBest(every=2))
    assert float(fitted["x"]) == expected and history["final_loss"] == losses[expected]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Record("loss", lambda info: info.loss),
        lambda: Record("x", lambda info: info.loss, every=0),
        lambda: RecordGradients(every=0),
        lambda: RecordGradientNorm(norm="l1"),
        lambda: RecordLearningRate(every=0),
        lambda: RecordAux(every=-1),
        lambda: RecordTime(every=0),
        lambda: KeepBest(every=0),
    ],
)
def test_settings_that_make_no_sense_are_errors(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Record(3, lambda info: info.loss),
        lambda: Record("x", 3),
        lambda: RecordParameters(every=1.5),
        lambda: RecordGradientNorm(every=True),
        lambda: RecordGradientNorm(norm=2),
        lambda: RecordLearningRate(every="all"),
        lambda: KeepBest(monitor=3),
    ],
)
def test_settings_of_another_kind_are_errors_of_type(make):
    with pytest.raises(TypeError, match="must be"):
        make()
