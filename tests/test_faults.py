"""What a fit does when something goes wrong: nothing that was computed is lost."""

import contextlib
import os
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import HostCallback, OptaxOptimizer, Parameter
from fitopt.callbacks import EarlyStopping, KeepBest, ProgressBar, Record, RecordParameters
from fitopt.engine.chunks import Chunks

from .conftest import quadratic

SGD = optax.sgd(0.1)


def nan_below(limit):
    """x², but NaN below the limit: sgd(0.1) from 3 goes 3, 2.4, 1.92, 1.536, 1.2288, 0.983, ..."""
    return lambda state: jnp.where(state["x"] < limit, jnp.nan, state["x"] ** 2)


def visit(*arguments):
    return None


def fit_with_warning(optimizer, state, steps=100):
    with pytest.warns(RuntimeWarning, match="returned the last good state") as caught:
        result = optimizer.run(state, steps)
    assert caught[0].filename == __file__
    return result


@pytest.mark.parametrize("callback", [None, visit, [EarlyStopping(50), RecordParameters()]])
@pytest.mark.parametrize("steps", [5, 6, 100])
def test_a_loss_that_becomes_nan_returns_the_last_state_whose_loss_was_finite(callback, steps):
    optimizer = OptaxOptimizer(nan_below(1.0), SGD, callback)
    fitted, history = fit_with_warning(optimizer, {"x": Parameter("x", 3.0)}, steps)
    np.testing.assert_allclose(history["loss"], 9 * 0.64 ** np.arange(5), rtol=1e-6)
    assert history["n_steps"] == 5
    assert float(fitted["x"]) == pytest.approx(3 * 0.8**4, rel=1e-6)
    assert history["final_loss"] == pytest.approx(9 * 0.64**4, rel=1e-6)
    assert "loss (nan) was not finite at step 5" in history["stop_reason"]


def test_infinity_ends_a_fit_too():
    loss = lambda state: jnp.where(state["x"] < 1.0, jnp.inf, state["x"] ** 2)
    fitted, history = fit_with_warning(OptaxOptimizer(loss, SGD), {"x": Parameter("x", 3.0)})
    assert np.isfinite(history["final_loss"]) and "inf" in history["stop_reason"]


@jax.custom_jvp
def broken_slope(x):
    """x² with a derivative that is NaN below 1."""
    return x**2


@broken_slope.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return x**2, jnp.where(x < 1.0, jnp.nan, 2 * x) * dx


@pytest.mark.parametrize("callback", [None, visit])
def test_a_gradient_that_is_not_finite_is_named(callback):
    state = {"good": Parameter("good", 3.0), "bad": Parameter("bad", 3.0)}
    loss = lambda state: state["good"] ** 2 + broken_slope(state["bad"])
    fitted, history = fit_with_warning(OptaxOptimizer(loss, SGD, callback), state)
    assert "gradients of bad" in history["stop_reason"] and "good," not in history["stop_reason"]
    # Where the gradient fails the loss is finite: that state is the last good one.
    assert history["n_steps"] == 5
    assert float(fitted["bad"]) == pytest.approx(3 * 0.8**5, rel=1e-6)
    assert history["final_loss"] == pytest.approx(2 * 9 * 0.64**5, rel=1e-6)


def test_a_gradient_that_fails_at_the_first_step_returns_the_state_with_its_loss():
    loss = lambda state: broken_slope(state["x"])
    fitted, history = fit_with_warning(OptaxOptimizer(loss, SGD), {"x": Parameter("x", 0.5)})
    assert history["n_steps"] == 0 and history["final_loss"] == 0.25
    assert float(fitted["x"]) == 0.5


def test_an_optimizer_that_can_live_with_such_a_gradient_goes_on():
    loss = lambda state: broken_slope(state["x"])
    optimizer = OptaxOptimizer(loss, optax.apply_if_finite(SGD, max_consecutive_errors=10**6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = optimizer.run({"x": Parameter("x", 3.0)}, 20)
    assert history["n_steps"] == 20
    np.testing.assert_allclose(history["loss"][5:], 9 * 0.64**5, rtol=1e-6)


def test_keep_best_survives_a_loss_that_becomes_nan():
    optimizer = OptaxOptimizer(nan_below(1.0), SGD, KeepBest())
    fitted, history = fit_with_warning(optimizer, {"x": Parameter("x", 3.0)})
    assert history["final_loss"] == history["best_loss"] == pytest.approx(9 * 0.64**4, rel=1e-6)
    assert float(fitted["x"]) == pytest.approx(3 * 0.8**4, rel=1e-6)


def test_an_edit_that_leads_to_nan_goes_back_before_it():
    def jump(step, diff, static, *rest):
        return False, {"x": jnp.array(-5.0)} if step == 2 else diff, static

    optimizer = OptaxOptimizer(nan_below(0.0), SGD, jump)
    fitted, history = fit_with_warning(optimizer, {"x": Parameter("x", 3.0)})
    assert history["n_steps"] == 3
    assert history["final_loss"] == pytest.approx(9 * 0.64**2, rel=1e-6)


def test_changed_data_that_lead_to_nan_are_given_back_unchanged():
    def spoil(step, diff, static, *rest):
        return False, diff, {**static, "target": np.nan} if step == 2 else static

    fitted, history = fit_with_warning(
        OptaxOptimizer(quadratic, SGD, spoil), {"x": Parameter("x", 3.0), "target": 1.0}
    )
    assert fitted["target"] == 1.0
    assert history["final_loss"] == pytest.approx(4 * 0.64**2, rel=1e-6)


def test_after_a_fault_the_instance_can_be_used_again(parabola):
    calls = []

    def sometimes(step, *rest):
        calls.append(step)
        if len(calls) == 3:
            raise RuntimeError("mine")

    optimizer = OptaxOptimizer(quadratic, SGD, sometimes)
    with pytest.raises(RuntimeError, match="mine"):
        optimizer.run(parabola, 10)
    _, history = optimizer.run(parabola, 10)
    _, plain = OptaxOptimizer(quadratic, SGD).run(parabola, 10)
    np.testing.assert_array_equal(history["loss"], plain["loss"])


def test_a_loss_that_raises_while_it_is_traced_raises_out_of_run(parabola):
    def loss(state):
        raise KeyError("column")

    with pytest.raises(KeyError, match="column"):
        OptaxOptimizer(loss, SGD).run(parabola, 3)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_during_a_stretch_returns_what_was_reached():
    # Long enough that it can only end by the signal, which comes once the loop runs.
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(200, 200)))

    def slow(state):
        jax.debug.callback(lambda x: started.set(), state["x"])
        return jnp.mean((matrix * state["x"]) @ matrix) ** 2

    started = threading.Event()
    presser = threading.Thread(target=lambda: started.wait() and press_ctrl_c())
    presser.start()
    fitted, history = OptaxOptimizer(slow, optax.sgd(1e-9)).run({"x": Parameter("x", 1.0)}, 10**9)
    presser.join()
    assert "Ctrl-C" in history["stop_reason"]
    assert len(history["loss"]) == history["n_steps"] < 10**9
    assert np.isfinite(history["final_loss"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_callback_returns_what_was_reached(parabola):
    closed = []

    def press(step, *rest):
        if step == 4:
            press_ctrl_c()
            closed.append("not reached")

    _, history = OptaxOptimizer(quadratic, SGD, [ProgressBar(disable=True), press]).run(parabola, 100)
    assert history["n_steps"] == 5 and "Ctrl-C" in history["stop_reason"] and closed == []


def test_a_ctrl_c_handler_of_the_users_own_is_left_alone(parabola):
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *arguments: pressed.append(True))
    try:
        press = lambda step, *rest: press_ctrl_c() if step == 2 else None
        _, history = OptaxOptimizer(quadratic, SGD, press).run(parabola, 5)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert pressed == [True] and history["n_steps"] == 5


def test_runs_of_one_instance_in_several_threads_do_not_mix(parabola):
    optimizer = OptaxOptimizer(quadratic, SGD, [EarlyStopping(20), RecordParameters(), visit])
    starts = [1.5, 2.0, 4.0, 8.0]
    states = [{**parabola, "x": Parameter("x", start)} for start in starts]
    expected = [optimizer.run(state, 200) for state in states]
    results = [None] * len(states)

    def work(i):
        results[i] = optimizer.run(states[i], 200)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, history), (_, reference) in zip(results, expected, strict=True):
        np.testing.assert_array_equal(history["loss"], reference["loss"])
        np.testing.assert_array_equal(history["parameters"]["x"], reference["parameters"]["x"])


def raising_at(step, error):
    def callback(at, *_):
        if at == step:
            raise error

    return callback


def garbage_at(step):
    return lambda at, *_: "garbage" if at == step else None


class Raising(HostCallback):
    """A logger, say, whose file is gone."""

    @contextlib.contextmanager
    def open(self, fit):
        yield raising_at(500, OSError("no such file"))


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (raising_at(500, KeyError("mine")), KeyError),
        (raising_at(500, SystemExit()), SystemExit),
        (garbage_at(500), TypeError),
        (Raising(), OSError),
    ],
    ids=["exception", "exit", "garbage", "logger"],
)
def test_an_exception_brings_what_was_reached_and_the_fit_can_go_on(parabola, callback, error):
    record = RecordParameters(every=7)
    plain = OptaxOptimizer(quadratic, optax.adam(0.01), record)
    fit = OptaxOptimizer(quadratic, optax.adam(0.01), [record, callback])
    with pytest.raises(error) as raised:
        fit.run(parabola, 800)
    assert "made 501 steps" in raised.value.__notes__[-1]
    state, history = raised.value.fit
    expected, reference = plain.run(parabola, 501)
    assert state["x"].value == expected["x"].value
    assert history["n_steps"] == 501
    assert history["stop_reason"] == f"{error.__name__} after step 500"
    np.testing.assert_array_equal(history["loss"], reference["loss"])
    np.testing.assert_array_equal(history["parameters"]["x"], reference["parameters"]["x"])
    resumed, history = plain.run(parabola, 800, resume_from=history)
    expected, reference = plain.run(parabola, 800)
    assert resumed["x"].value == expected["x"].value
    np.testing.assert_array_equal(history["loss"], reference["loss"])
    fit.run(parabola, 400)  # and the instance can be used again


def test_a_second_ctrl_c_raises_and_brings_what_was_reached(parabola, monkeypatch):
    collect = Chunks._collect

    def collect_and_press(self, chunk, limit):
        if self.point.steps > 1000:
            press_ctrl_c()
            press_ctrl_c()
        return collect(self, chunk, limit)

    fit = OptaxOptimizer(quadratic, optax.adam(1e-4), RecordParameters(every=7))
    with monkeypatch.context() as patch:
        patch.setattr(Chunks, "_collect", collect_and_press)
        with pytest.raises(KeyboardInterrupt) as raised:
            fit.run(parabola, 10**8)
    _, history = raised.value.fit
    assert len(history["loss"]) == history["n_steps"] > 1000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _, resumed = fit.run(parabola, history["n_steps"] + 10, resume_from=history)
    np.testing.assert_array_equal(resumed["loss"][:-10], history["loss"])


def test_a_record_that_raises_does_so_before_the_first_step(parabola):
    def fails(info):
        raise ZeroDivisionError("in record")

    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), Record("bad", fails))
    with pytest.raises(ZeroDivisionError, match="in record") as raised:
        fit.run(parabola, 10)
    assert not hasattr(raised.value, "fit")
