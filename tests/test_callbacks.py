"""What holds for all callbacks that come with fitopt."""

import io
import logging
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import HostCallback, OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import (
    AdaptLearningRate,
    EarlyStopping,
    KeepBest,
    PrintGradients,
    PrintLoss,
    PrintParameters,
    ProgressBar,
    Record,
    RecordAux,
    RecordGradientNorm,
    RecordGradients,
    RecordLearningRate,
    RecordParameters,
    RecordTime,
    ReduceOnPlateau,
    StopAfter,
    StopOnGradient,
    StopOnLoss,
    StopOnStep,
    every,
    once,
)

from .conftest import quadratic
from .walk import run_walk


@pytest.mark.parametrize("package", ["callbacks", "optimizers", "schedules"])
def test_a_star_import_brings_what_is_public_and_no_module(package):
    namespace = {}
    exec(f"from fitopt.{package} import *", namespace)
    del namespace["__builtins__"]
    assert sorted(namespace) == sorted(getattr(fitopt, package).__all__)
    assert not any(isinstance(x, types.ModuleType) for x in namespace.values())


@pytest.mark.parametrize("name", [n for n in fitopt.callbacks.__all__ if n not in ("every", "once")])
def test_each_tells_its_arguments_and_errors_and_has_an_example(name):
    text = getattr(fitopt.callbacks, name).__doc__
    assert all(part in text for part in ("**Arguments:**", "**Raises:**", "    >>> "))


def test_the_walk_of_these_tests_visits_each_loss_in_turn():
    fitted, history = run_walk([5.0, 3.0, 4.0, 1.0], None)
    np.testing.assert_array_equal(history["loss"], [5.0, 3.0, 4.0])
    assert float(fitted["x"]) == 3.0 and history["final_loss"] == 1.0


def state_from(x):
    return {"x": Parameter("x", x), "target": 1.0}


def with_aux(state):
    return quadratic(state), {"twice": 2.0 * state["x"]}


def careful(history):
    """A learning rate that depends on all that has been seen."""
    return 0.3 / (1.0 + float(np.sum(history["loss"] > 1.0)))


def everything(logger):
    """All of them, but those that write files and draw; what stops does so at different steps."""
    return [
        EarlyStopping(3),
        StopOnLoss(1e-6),
        StopOnGradient(1e-9),
        StopOnStep(0.0, 1e-9),
        StopAfter(seconds=3600),
        Record("step", lambda info: info.step, every=3),
        RecordParameters(every=2),
        RecordGradients(every=5),
        RecordGradientNorm(),
        RecordLearningRate(),
        RecordAux(every=4),
        RecordTime(every=6),
        KeepBest(),
        PrintLoss(every=5, logger=logger),
        PrintParameters(every=7, logger=logger),
        PrintGradients(every=7, logger=logger),
        ProgressBar(file=io.StringIO()),
        ReduceOnPlateau(0.5, patience=1),
        every(4, lambda step, diff, *rest: (False, {**diff, "x": diff["x"] + 0.1}, rest[0])),
        once(9, lambda step, diff, *rest: (False, {**diff, "x": diff["x"] - 0.1}, rest[0])),
    ]


def same(history, other):
    """Whether two histories are the same, but for their times."""
    timeless = lambda h: {k: v for k, v in h.items() if k not in ("time", "elapsed")}
    jax.tree.map(np.testing.assert_array_equal, timeless(history), timeless(other))
    assert [history.steps(name).tolist() for name in ("time", "step", "aux")] == [
        other.steps(name).tolist() for name in ("time", "step", "aux")
    ]


@pytest.fixture
def logger(caplog):
    logger = logging.getLogger("fits")
    logger.setLevel(logging.INFO)
    return logger


def lines(caplog, thread=None):
    return [r.getMessage() for r in caplog.records if thread in (None, r.threadName)]


def test_nothing_is_left_over_from_an_earlier_fit(caplog, logger):
    fit = OptaxOptimizer(with_aux, optimizers.adam(0.3), everything(logger), has_aux=True)
    first, history = fit.run(state_from(3.0), 40)
    told = lines(caplog)
    assert history["n_steps"] > 10 and len(told) > 10
    fit.run(state_from(-8.0), 40)
    caplog.clear()
    again, repeated = fit.run(state_from(3.0), 40)
    assert float(again["x"]) == float(first["x"])
    same(history, repeated)
    assert lines(caplog) == told


def test_fits_at_once_with_the_same_callbacks_do_not_mix(caplog, logger):
    callbacks = everything(logger)
    fit = OptaxOptimizer(with_aux, optimizers.adam(0.3), callbacks, has_aux=True)
    starts = [3.0, -8.0, 5.0]
    expected = []
    for start in starts:
        caplog.clear()
        expected.append((fit.run(state_from(start), 40)[1], lines(caplog)))
    caplog.clear()
    found = {}

    def work(start):
        found[start] = fit.run(state_from(start), 40)[1]

    threads = [threading.Thread(target=work, args=(x,), name=f"from {x}") for x in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start, (history, told) in zip(starts, expected, strict=True):
        same(found[start], history)
        assert lines(caplog, f"from {start}") == told


def test_a_rate_from_the_history_is_that_of_its_own_fit():
    fit = OptaxOptimizer(
        quadratic, optimizers.sgd(0.3), [AdaptLearningRate(careful), RecordLearningRate()]
    )
    first, *_, last = [fit.run(state_from(x), 12)[1]["learning_rate"] for x in (3.0, -8.0, 3.0)]
    np.testing.assert_array_equal(first, last)
    assert len(set(first.tolist())) > 1


class Ending(StopOnLoss):
    """Stops, and notes that it has finished."""

    name: str

    def __init__(self, threshold, name):
        super().__init__(threshold)
        self.name = name

    def finish(self, history, carry):
        history.setdefault("finished", []).append(self.name)

    def stop_reason(self):
        return f"{self.name} has seen enough"


def test_of_several_that_stop_in_the_same_step_the_first_is_named_and_all_finish(parabola, capsys):
    limit = 4 * 0.64**2 * 1.001  # the loss of step 2
    a, b = Ending(limit, "a"), Ending(limit, "b")

    def halt(step, *rest):
        return step == 2

    stream = io.StringIO()
    hosts = [ProgressBar(file=stream), PrintLoss(every=10)]
    for callbacks, reason in [
        ([a, b, halt], "a has seen enough (at step 2)"),
        ([b, halt, a], "b has seen enough (at step 2)"),
        ([halt, b, a], "halt asked to stop (at step 2)"),
        ([EarlyStopping(50), once(2, halt), a, b], "halt asked to stop (at step 2)"),
    ]:
        _, history = OptaxOptimizer(quadratic, optax.sgd(0.1), [*hosts, *callbacks]).run(parabola, 20)
        assert history["n_steps"] == 3 and history["stop_reason"] == reason
        assert sorted(history["finished"]) == ["a", "b"]
        assert "3/3" in stream.getvalue().split("\r")[-1]
        assert capsys.readouterr().out.splitlines()[-1].split()[0] == "2"


def test_every_counts_the_steps_of_the_whole_fit_wherever_python_looks_in(parabola):
    # Visits at multiples of 5 and 7 end a chunk there; the series know nothing of that.
    seen = {5: [], 7: []}
    visits = [every(n, lambda step, *rest, n=n: seen[n].append(step)) for n in seen]
    series = [RecordParameters(every=3), Record("step", lambda info: info.step, every=4), RecordTime(6)]
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1), [*visits, *series]).run(parabola, 40)
    assert seen == {n: list(range(0, 40, n)) for n in seen}
    x = 1 + 2 * 0.8 ** np.arange(40)
    np.testing.assert_allclose(history["parameters"]["x"], x[::3], rtol=1e-5)
    np.testing.assert_array_equal(history["step"], np.arange(0, 40, 4))
    for name, n in (("parameters", 3), ("step", 4), ("time", 6)):
        np.testing.assert_array_equal(history.steps(name), np.arange(0, 40, n))
    assert len(history["time"]) == 7


def test_after_a_resume_all_go_on_where_they_were(caplog, logger):
    fit = OptaxOptimizer(with_aux, optimizers.adam(0.3), everything(logger), has_aux=True)
    _, whole = fit.run(state_from(3.0), 40)
    told = lines(caplog)
    _, part = fit.run(state_from(3.0), 8)
    caplog.clear()
    _, resumed = fit.run(state_from(3.0), 40, resume_from=part)
    same(resumed, whole)
    assert np.all(np.diff(resumed["time"]) > 0)
    assert [line for line in lines(caplog) if line.split()[0] != "step"] == [
        line for line in told if line.split()[0].isdigit() and int(line.split()[0]) >= 8
    ]


def test_a_resumed_fit_prints_its_last_step_and_completes_its_bar(parabola, capsys):
    stream = io.StringIO()
    callbacks = [PrintParameters(every=10), ProgressBar(file=stream)]
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), callbacks)
    _, history = fit.run(parabola, 13)
    capsys.readouterr()
    stream.truncate(0)
    _, history = fit.run(parabola, 16, resume_from=history)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "15"]
    assert "13/16" in stream.getvalue() and "16/16" in stream.getvalue().split("\r")[-1]
    fit.run(parabola, 16, resume_from=history)  # nothing is left to be done
    assert capsys.readouterr().out == ""


def test_inside_vmap_each_lane_is_stopped_by_the_callback_that_would_stop_it_alone():
    callbacks = [
        EarlyStopping(2),
        StopOnGradient(1e-2),
        StopOnStep(0.0, 1e-2),
        ReduceOnPlateau(0.5, patience=0),
        RecordLearningRate(every=3),
        KeepBest(monitor=lambda info: jnp.abs(info.grads["x"])),
    ]
    fit = OptaxOptimizer(quadratic, optimizers.adam(0.3), callbacks)
    run = lambda target: fit.run({"x": Parameter("x", 3.0), "target": target}, 60)
    targets = np.array([3.0, 2.7, 1.0, -4.0], np.float32)
    fitted, histories = jax.jit(jax.vmap(run))(targets)
    for lane, target in enumerate(targets):
        alone, history = run(target)
        n, records = history["n_steps"], len(history["learning_rate"])
        assert int(histories["n_steps"][lane]) == n
        np.testing.assert_allclose(histories["loss"][lane][:n], history["loss"], rtol=1e-4, atol=1e-9)
        assert np.isnan(histories["loss"][lane][n:]).all()
        rates = histories["learning_rate"][lane]
        np.testing.assert_array_equal(rates[:records], history["learning_rate"])
        assert np.isnan(rates[records:]).all()
        np.testing.assert_allclose(fitted["x"].value[lane], alone["x"].value, rtol=1e-5)
    assert len(set(histories["n_steps"].tolist())) > 2


@pytest.mark.parametrize(
    "callback",
    [c for c in everything(None) if isinstance(c, HostCallback)],
    ids=lambda c: type(c).__name__,
)
def test_those_that_run_in_python_say_so_inside_jit(callback):
    fit = OptaxOptimizer(quadratic, optimizers.sgd(0.1), callback)
    with pytest.raises(TypeError, match="runs in Python, which a fit inside jit"):
        jax.jit(lambda x: fit.run(state_from(x), 3)[1]["loss"])(3.0)
