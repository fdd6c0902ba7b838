"""tvboptim's own callbacks, unchanged, in a fit."""

import jax.numpy as jnp
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter

theirs = pytest.importorskip("tvboptim.optim.callbacks")

START = {"x": Parameter("x", 3.0), "target": 1.0}


def loss(state):
    return jnp.square(state["x"] - state["target"])


def run(callback, steps=10):
    return OptaxOptimizer(loss, optax.sgd(0.1), callback).run(START, steps)


def test_a_threshold_stops_a_fit(capsys):
    _, history = run(theirs.StopLossCallback(stop_loss=0.5), 100)
    assert history["n_steps"] < 100 and history["loss"][-1] < 0.5 <= history["loss"][-2]
    assert "Stopped at step" in capsys.readouterr().out


def test_a_time_limit_stops_a_fit(capsys):
    _, history = run(theirs.StopTimeCallback(time_limit=-1))
    assert history["n_steps"] == 1


def test_series_are_saved_at_their_rhythm():
    series = theirs.SavingCallback(every=3, key="twice", save_fun=lambda i, *rest: 2 * i)
    _, history = run(theirs.MultiCallback([series, theirs.SavingParametersCallback(every=5)]))
    assert history["twice"]["save"].tolist() == [0, 6, 12, 18]
    assert [float(free["x"]) for free in history["parameters"]["save"]] == pytest.approx(
        [2.6, 1 + 2 * 0.8**6], rel=1e-6
    )


def test_the_best_state_and_the_times_are_saved():
    _, history = run([theirs.SaveBestSeenCallback(), theirs.TimingCallback(every=2)])
    best, step, *_ = history["best"]
    assert (best, step) == (history["loss"][-1], 9)
    assert len(history["timing"]) == 5


def test_what_they_print_is_printed(capsys):
    run([theirs.DefaultPrintCallback(every=5), theirs.PrintParameterCallback(every=5)])
    assert capsys.readouterr().out


def test_the_one_that_writes_the_loss_itself_is_in_the_way_of_the_history():
    with pytest.raises(AttributeError):
        run(theirs.SavingLossCallback())
