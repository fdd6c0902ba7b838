"""Callbacks that steer: the learning rate, and when plain functions are called."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, optimizers, schedules
from fitopt.callbacks import (
    AdaptLearningRate,
    PrintLoss,
    RecordLearningRate,
    ReduceOnPlateau,
    SetLearningRate,
    StopOnLoss,
    every,
    once,
)

from .conftest import quadratic

# fmt: off
LOSSES = [
    8, 6, 7, 5, 5, 5.5, 4.75, 4.9375, 4.75, 4.8125, 4.5, 4.4375, 4.375, 4.375, 5, 4.25, 4.5, 4.25, 4.625,
    4.75, 4.3125, 4.25, 4.1875, 4.25, 4.5, 4.5, 4, 4.0625, 4.125, 4.0625, 4, 4.25, 4.5, 4.0625, 4, 4, 4,
    4.125, 4.0625, 4,
]
# By the ReduceLROnPlateau of torch 2.15.0, with lr=1.0 and step(loss) after each step: the steps whose
# update is the first with a smaller rate, and the last rate. Its `threshold` is rtol, or min_delta with
# threshold_mode="abs".
PLATEAUS = [
    ({}, [38], 0.1),
    ({"factor": 0.5, "patience": 2}, [10, 19, 22, 26, 30, 33, 36, 39], 0.5**8),
    ({"factor": 0.5, "patience": 2, "min_learning_rate": 0.3}, [10, 19], 0.3),
    ({"factor": 0.5, "patience": 1, "cooldown": 4}, [6, 15, 21, 29, 35], 0.5**5),
    ({"factor": 0.5, "patience": 3, "rtol": 0.1}, [8, 16, 20, 24, 28, 32, 36], 0.5**7),
    ({"factor": 0.5, "patience": 2, "rtol": 0.0, "min_delta": 0.25},
     [7, 10, 14, 17, 20, 26, 29, 32, 35, 38], 0.5**10),
    ({"factor": 0.5, "patience": 0, "cooldown": 1},
     [3, 5, 8, 10, 14, 17, 19, 21, 24, 26, 28, 30, 32, 34, 36, 38], 0.5**16),
    ({"factor": 0.8, "patience": 4, "rtol": 0.0}, [21, 32, 37], 0.8**3),
]
# fmt: on


def rates_of(callbacks, optimizer, steps=40):
    """The learning rate of each update of a fit; an 'x' that stays where it is."""
    fit = OptaxOptimizer(lambda state: 0.0 * state["x"], optimizer, [*callbacks, RecordLearningRate()])
    return fit.run({"x": Parameter("x", 1.0)}, steps)[1]["learning_rate"]


@pytest.mark.parametrize(("settings", "reduced", "last"), PLATEAUS)
def test_the_rate_is_reduced_where_torch_reduces_it(settings, reduced, last):
    table = jnp.array(LOSSES)
    plateau = ReduceOnPlateau(**settings, monitor=lambda info: table[info.step])
    rates = rates_of([plateau], optimizers.sgd(1.0))
    np.testing.assert_array_equal(np.flatnonzero(np.diff(rates)) + 1, reduced)
    np.testing.assert_allclose(rates[-1], last, rtol=1e-6)


def test_a_reduced_rate_is_that_of_the_update():
    # sgd(1) swings from 3 to -1 and back around the target; with half of it, it is there.
    state = {"x": Parameter("x", 3.0), "target": 1.0}
    fit = OptaxOptimizer(quadratic, optimizers.sgd(1.0), ReduceOnPlateau(factor=0.5, patience=1))
    _, history = fit.run(state, 6)
    np.testing.assert_array_equal(history["loss"], [4.0, 4.0, 4.0, 4.0, 0.0, 0.0])


def test_a_negative_loss_that_gets_worse_is_a_bad_step():
    # torch, which compares with best * (1 - threshold), takes -99 for better than -100.
    losses = jnp.array([-100.0, *np.linspace(-99.995, -99.99, 9)])
    plateau = ReduceOnPlateau(0.5, 8, monitor=lambda info: losses[info.step])
    np.testing.assert_array_equal(rates_of([plateau], optimizers.sgd(1.0), 11), [1.0] * 10 + [0.5])


def test_all_groups_are_reduced():
    groups = optimizers.groups({"a": optimizers.adam(0.4), "b": optimizers.sgd(0.2)})
    callbacks = [ReduceOnPlateau(0.5, 0, min_learning_rate=0.15), RecordLearningRate()]
    state = {"a": Parameter("a", 1.0), "b": Parameter("b", 1.0)}
    fit = OptaxOptimizer(lambda s: 0.0 * (s["a"] + s["b"]), groups, callbacks)
    rates = fit.run(state, 4)[1]["learning_rate"]
    np.testing.assert_allclose(rates["a"], [0.4, 0.4, 0.2, 0.15], rtol=1e-6)
    np.testing.assert_allclose(rates["b"], [0.2, 0.2, 0.15, 0.15], rtol=1e-6)


SCHEDULE = schedules.cosine_annealing(0.5, 20)


def careful(history):
    """A learning rate that depends on what has been seen."""
    return 0.1 * history["loss"][-1]


@pytest.mark.parametrize("optimizer", [optimizers.sgd(9.0), optax.inject_hyperparams(optax.sgd)(9.0)])
def test_a_schedule_sets_the_rate_of_every_update_from_the_first_on(optimizer):
    rates = rates_of([SetLearningRate(SCHEDULE)], optimizer, 20)
    np.testing.assert_allclose(rates, [SCHEDULE(i) for i in range(20)], rtol=1e-5)


def test_between_its_steps_a_schedule_leaves_the_rate_as_it_is():
    rates = rates_of([SetLearningRate(SCHEDULE, every=7)], optimizers.sgd(9.0), 20)
    np.testing.assert_allclose(rates, [SCHEDULE(i // 7 * 7) for i in range(20)], rtol=1e-5)


def test_a_scheduled_fit_is_that_of_an_optimizer_with_this_schedule(parabola):
    _, expected = OptaxOptimizer(quadratic, optimizers.adam(SCHEDULE)).run(parabola, 30)
    fit = OptaxOptimizer(quadratic, optimizers.adam(0.0), SetLearningRate(SCHEDULE))
    for _ in range(2):
        _, history = fit.run(parabola, 30)
        np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)


def test_a_function_of_the_history_sets_the_rate_from_the_next_step_on(parabola):
    seen = []

    def rate(history):
        seen.append(len(history["loss"]))
        return {1: 0.25, 4: None, 7: 0.0}[len(history["loss"])]

    callbacks = [AdaptLearningRate(rate, every=3), RecordLearningRate()]
    _, history = OptaxOptimizer(quadratic, optimizers.sgd(0.1), callbacks).run(parabola, 9)
    rates = [0.1] + 6 * [0.25] + 2 * [0.0]
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-6)
    distance = 2 * np.cumprod([1, *(1 - 2 * np.array(rates[:-1]))])
    np.testing.assert_allclose(history["loss"], distance**2, rtol=1e-5)
    assert seen == [1, 4, 7]


@pytest.mark.parametrize(
    "steer", [ReduceOnPlateau(), SetLearningRate(SCHEDULE), AdaptLearningRate(careful)]
)
def test_an_optimizer_without_a_rate_of_its_own_is_an_error(parabola, steer):
    with pytest.raises(ValueError, match="the state of this optimizer holds no learning rate"):
        OptaxOptimizer(quadratic, optax.sgd(0.1), steer).run(parabola, 3)


@pytest.mark.parametrize(
    "steer",
    [ReduceOnPlateau(), SetLearningRate(SCHEDULE), AdaptLearningRate(careful)],
)
def test_an_optimizer_whose_rate_follows_a_schedule_is_an_error(parabola, steer):
    with pytest.raises(ValueError, match="a schedule sets this learning rate"):
        OptaxOptimizer(quadratic, optimizers.sgd(SCHEDULE), steer).run(parabola, 3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda step: jnp.ones(3) * step, "schedule must return a real scalar"),
        (lambda step: None, "schedule must return a real scalar"),
        (0.1, "SetLearningRate: schedule must be a function of the step, got 0.1"),
        (lambda step: 0.1 if step < 10 else 0.01, "jnp.where"),
        (careful, "AdaptLearningRate takes functions of the history"),
    ],
)
def test_what_is_no_schedule_is_an_error(schedule, message):
    with pytest.raises(TypeError, match=message):
        SetLearningRate(schedule)


class Calls:
    def __init__(self):
        self.steps = []

    def __call__(self, step, *rest):
        self.steps.append(step)


def test_every_and_once_say_when_a_function_is_called(parabola):
    often, first, late, never = Calls(), Calls(), Calls(), Calls()
    callbacks = [every(4, often), once(0, first), once(9, late), once(12, never)]
    fit = OptaxOptimizer(quadratic, optimizers.sgd(0.1), callbacks)
    for times in (1, 2):
        fit.run(parabola, 12)
        assert often.steps == [0, 4, 8] * times
        assert first.steps == [0] * times and late.steps == [9] * times and never.steps == []


def test_once_is_due_once(parabola):
    callback = once(9, Calls())
    assert [callback.due(step) for step in (0, 9, 10, 100)] == [9, 9, None, None]


def test_what_a_function_returns_counts(parabola):
    def enough(step, *rest):
        return True

    for callback in (every(5, lambda step, *rest: step > 4), once(5, enough)):
        _, history = OptaxOptimizer(quadratic, optimizers.sgd(0.1), callback).run(parabola, 20)
        assert history["n_steps"] == 6
    assert history["stop_reason"] == "enough asked to stop (at step 5)"


@pytest.mark.parametrize("callback", [PrintLoss(), StopOnLoss(0.1), 3, Calls])
def test_only_plain_functions_can_be_timed(callback):
    for timed in (every, once):
        with pytest.raises(TypeError, match="fn must be a (plain )?function of seven arguments"):
            timed(3, callback)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReduceOnPlateau(factor=1.0),
        lambda: ReduceOnPlateau(factor=0),
        lambda: ReduceOnPlateau(patience=-1),
        lambda: ReduceOnPlateau(min_learning_rate=-1e-3),
        lambda: ReduceOnPlateau(rtol=-1.0),
        lambda: ReduceOnPlateau(min_delta=float("inf")),
        lambda: ReduceOnPlateau(cooldown=-1),
        lambda: SetLearningRate(SCHEDULE, every=0),
        lambda: every(0, print),
        lambda: AdaptLearningRate(careful, every=0),
        lambda: once(-1, print),
    ],
)
def test_settings_that_make_no_sense_are_errors(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReduceOnPlateau(factor="half"),
        lambda: ReduceOnPlateau(patience=1.5),
        lambda: ReduceOnPlateau(cooldown=True),
        lambda: ReduceOnPlateau(monitor=3),
        lambda: AdaptLearningRate(0.1),
        lambda: once(1.0, print),
    ],
)
def test_settings_of_another_kind_are_errors_of_type(make):
    with pytest.raises(TypeError, match="must be"):
        make()
