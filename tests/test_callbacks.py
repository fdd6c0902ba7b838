"""The callbacks that come with fitopt."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import (
    EarlyStopping,
    KeepBest,
    PrintLoss,
    ProgressBar,
    Record,
    RecordLearningRate,
    RecordParameters,
    StopOnLoss,
)

from .conftest import quadratic


def run_walk(losses, callbacks):
    """Fit a parameter that walks 0, 1, 2, ... over a table of losses, to the table's end."""
    table = jnp.asarray(losses, jnp.float32)

    def loss(state):
        x = state["x"]  # the value is the table's, the slope always -1: sgd(1) goes one to the right
        return table[jnp.round(x).astype(int)] + (jax.lax.stop_gradient(x) - x)

    state = {"x": Parameter("x", 0.0)}
    return OptaxOptimizer(loss, optax.sgd(1.0), callbacks).run(state, len(losses) - 1)


def test_the_walk_of_these_tests_visits_each_loss_in_turn():
    fitted, history = run_walk([5.0, 3.0, 4.0, 1.0], None)
    np.testing.assert_array_equal(history["loss"], [5.0, 3.0, 4.0])
    assert float(fitted["x"]) == 3.0 and history["final_loss"] == 1.0


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
    expected, best, waited = len(losses) - 1, np.inf, 0
    for step, loss in enumerate(losses[:-1]):
        better = loss < best - min_delta
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited == patience:
            expected = step + 1
            break
    _, history = run_walk(losses, EarlyStopping(patience, min_delta))
    assert history["n_steps"] == expected
    assert ("EarlyStopping" in history["stop_reason"]) == (expected < len(losses) - 1)


@pytest.mark.parametrize("callback", [KeepBest(), EarlyStopping(100, restore_best=True)])
@pytest.mark.parametrize("best", [0, 2, 5])
def test_the_best_loss_is_paired_with_the_parameters_at_which_it_was_taken(callback, best):
    losses = [5.0, 6.0, 7.0, 8.0, 9.0, 5.5]
    losses[best] = 1.0
    fitted, history = run_walk(losses, callback)  # x = 5 is where the fit ends
    assert float(fitted["x"]) == best
    assert history["final_loss"] == 1.0


def test_without_keep_best_the_last_state_is_returned():
    fitted, history = run_walk([5.0, 1.0, 7.0], None)
    assert float(fitted["x"]) == 2.0 and history["final_loss"] == 7.0
    assert history["best_loss"] == 1.0 and history["best_step"] == 1


def test_stop_on_loss_stops_after_the_step_that_reaches_it():
    _, history = run_walk([5.0, 3.0, 2.0, 1.0, 0.0], StopOnLoss(2.0))
    np.testing.assert_array_equal(history["loss"], [5.0, 3.0, 2.0])
    assert "StopOnLoss" in history["stop_reason"] and "2" in history["stop_reason"]


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
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1), callbacks).run(parabola, 8)
    np.testing.assert_allclose(history["distance"], 2 * 0.8 ** np.arange(8), rtol=1e-5)
    np.testing.assert_array_equal(history["both"]["step"], [0, 3, 6])
    np.testing.assert_array_equal(history["both"]["loss"], history["loss"][::3])
    np.testing.assert_array_equal(history.steps("both"), [0, 3, 6])


def test_print_loss_prints_at_its_steps_and_at_the_last(parabola, capsys):
    OptaxOptimizer(quadratic, optax.sgd(0.25), PrintLoss(every=3)).run(parabola, 9)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 0: loss 4",
        "step 3: loss 0.0625",
        "step 6: loss 0.000976562",
        "step 8: loss 6.10352e-05",
    ]


def test_print_loss_does_not_print_the_last_step_twice(parabola, capsys):
    OptaxOptimizer(quadratic, optax.sgd(0.25), PrintLoss(every=3)).run(parabola, 7)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "step 0",
        "step 3",
        "step 6",
    ]


@pytest.mark.parametrize("callbacks", [[], [StopOnLoss(1e-3)]])
def test_a_progress_bar_ends_complete_and_shows_loss_and_rate(parabola, callbacks):
    stream = io.StringIO()
    bar = ProgressBar(file=stream, ascii=True)
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.01), [bar, *callbacks]).run(parabola, 300)
    last = stream.getvalue().split("\r")[-1]
    steps = history["n_steps"]
    assert "100%" in last and f"{steps}/{steps}" in last and "step/s" in last
    assert f"loss {history['final_loss']:.6g}" in last


def test_a_progress_bar_is_closed_after_an_error(parabola):
    def broken(step, *rest):
        raise RuntimeError("mine")

    stream = io.StringIO()
    optimizer = OptaxOptimizer(quadratic, optax.sgd(0.1), [ProgressBar(file=stream), broken])
    with pytest.raises(RuntimeError, match="mine"):
        optimizer.run(parabola, 5)
    assert stream.getvalue().endswith("\n")


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
        OptaxOptimizer(quadratic, optax.sgd(0.1), RecordLearningRate()).run(parabola, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(0),
        lambda: EarlyStopping(2.5),
        lambda: EarlyStopping(True),
        lambda: EarlyStopping(3, min_delta=-1.0),
        lambda: EarlyStopping(3, min_delta=float("nan")),
        lambda: StopOnLoss(float("nan")),
        lambda: StopOnLoss("small"),
        lambda: Record("loss", lambda info: info.loss),
        lambda: Record("x", lambda info: info.loss, every=0),
        lambda: RecordParameters(every=1.5),
        lambda: PrintLoss(every=-1),
    ],
)
def test_settings_that_make_no_sense_are_errors(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_record_wants_a_function():
    with pytest.raises(TypeError, match="fn must be a function"):
        Record("x", 3)
