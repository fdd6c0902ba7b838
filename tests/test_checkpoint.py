"""Checkpoints, and fits that go on from them bit for bit."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callback import HostCallback
from fitopt.callbacks import (
    Checkpoint,
    EarlyStopping,
    KeepBest,
    RecordLearningRate,
    RecordParameters,
    StopAfter,
    every,
)
from fitopt.storage import checkpoint, series_files

from .conftest import counted_compilations, decay_loss, quadratic
from .test_series_files import series

pytest.importorskip("orbax.checkpoint")
STEPS = 120


def state():
    return {
        "A": Parameter("A", 1.0, lower=0.0),
        "k": Parameter("k", 1.0, scale=3.0),
        "C": Parameter("C", 0.0),
        "tail": Parameter("tail", jnp.arange(3.0), mask=jnp.array([True, False, True])),
    }


def loss(state):
    return decay_loss(state) + 0.01 * jnp.sum((state["tail"] - 5.0) ** 2)


def callbacks(*more):
    return [EarlyStopping(patience=1000), KeepBest(), RecordParameters(every=7), *more]


def assert_same(one, other):
    """The same fit: state and history, to the last bit; but for the seconds."""
    (fitted, history), (expected, reference) = one, other
    jax.tree.map(np.testing.assert_array_equal, fitopt.values(fitted), fitopt.values(expected))
    assert history.keys() == reference.keys()
    for name in history.keys() - {"elapsed"}:
        jax.tree.map(np.testing.assert_array_equal, history[name], reference[name])
    for name in history.every:
        np.testing.assert_array_equal(history.steps(name), reference.steps(name))


def steps_in(directory):
    return sorted(int(name) for name in os.listdir(directory) if name.isdigit())


FAMILIES = {
    "adam": optax.adam(0.02),
    "lbfgs": optax.lbfgs(),
    "schedule": optimizers.adam(optax.cosine_decay_schedule(0.05, STEPS)),
    "MultiSteps": optax.MultiSteps(optax.adam(0.02), 4),
    "sm3": optimizers.sm3(0.1),
    "noise with typed keys": optax.chain(
        optax.add_noise(0.01, 0.55, jax.random.key(0)), optimizers.momentum(0.02)
    ),
    "lookahead": optimizers.lookahead(optimizers.adam(0.02)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(family, tmp_path):
    fit = OptaxOptimizer(loss, FAMILIES[family], callbacks(Checkpoint(tmp_path)))
    whole = fit.run(state(), STEPS)
    _, half = fit.run(state(), 53)
    assert steps_in(tmp_path) == [53]
    assert_same(fit.run(state(), STEPS, resume_from=tmp_path), whole)
    assert steps_in(tmp_path) == [53, STEPS]
    assert_same(fit.run(state(), STEPS, resume_from=half), whole)


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints of steps 1, 21, 41 and 53, and what the whole fit gives."""
    fit = OptaxOptimizer(loss, optax.adam(0.02), callbacks(Checkpoint(tmp_path, every=20, keep=4)))
    fit.run(state(), 53)
    assert steps_in(tmp_path) == [1, 21, 41, 53]
    return tmp_path, OptaxOptimizer(loss, optax.adam(0.02), callbacks())


def damage(directory):
    """Change some bytes in the largest file of a checkpoint."""
    files = [os.path.join(root, name) for root, _, names in os.walk(directory) for name in names]
    largest = max(files, key=os.path.getsize)
    with open(largest, "r+b") as file:
        file.seek(os.path.getsize(largest) // 2)
        file.write(b"\xff" * 16)


def truncate(directory):
    for root, _, names in os.walk(directory):
        for name in names:
            os.truncate(os.path.join(root, name), 0)


@pytest.mark.parametrize("harm", [damage, truncate, shutil.rmtree])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(saved, harm):
    directory, fit = saved
    harm(directory / "53")
    whole = fit.run(state(), STEPS)
    if harm is shutil.rmtree:
        resumed = fit.run(state(), STEPS, resume_from=directory)
    else:
        with pytest.warns(RuntimeWarning, match="step 53 .* is damaged"):
            resumed = fit.run(state(), STEPS, resume_from=directory)
    assert_same(resumed, whole)


def test_a_fit_that_falls_back_writes_over_the_damaged_checkpoint(saved):
    directory, _ = saved
    damage(directory / "53")
    fit = OptaxOptimizer(loss, optax.adam(0.02), callbacks(Checkpoint(directory, keep=2)))
    with pytest.warns(RuntimeWarning, match="damaged"):
        fit.run(state(), 53, resume_from=directory)
    assert steps_in(directory) == [41, 53]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.run(state(), 53, resume_from=directory)


def test_where_all_checkpoints_are_damaged_the_fit_begins_anew_with_a_warning(saved):
    directory, fit = saved
    for step in steps_in(directory):
        damage(directory / str(step))
    with pytest.warns(RuntimeWarning, match="damaged"):
        resumed = fit.run(state(), 60, resume_from=directory)
    assert_same(resumed, fit.run(state(), 60))


def test_a_directory_without_checkpoints_is_that_of_a_fit_yet_to_begin(tmp_path):
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1))
    start = {"x": Parameter("x", 3.0), "target": 1.0}
    with pytest.warns(RuntimeWarning, match="no checkpoint in .* begins anew"):
        resumed = fit.run(start, 5, resume_from=tmp_path / "absent")
    assert_same(resumed, fit.run(start, 5))
    assert not (tmp_path / "absent").exists()


DIFFERENT = {
    "a dtype": (lambda s: {**s, "C": Parameter("C", jnp.float16(0))}, r"C is .*float32.*float16"),
    "a shape": (lambda s: {**s, "C": Parameter("C", jnp.zeros(2))}, r"C is .*float32.*float32\[2\]"),
    "a name": (lambda s: {**s, "C": Parameter("c", 0.0)}, "'C'.*'c'"),
    "a bound": (lambda s: {**s, "A": Parameter("A", 1.0, lower=0.5)}, "lower=0.0 there.*lower=0.5"),
    "what is free": (lambda s: {**s, "C": s["C"].fix()}, "free .*'C'.* there, fixed"),
    "a missing part": (lambda s: {n: x for n, x in s.items() if n != "tail"}, "tail is .*missing here"),
    "a further part": (lambda s: {**s, "n": 3}, "n is missing there, 3 here"),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_checkpoint_of_another_state_is_refused_by_name(what, saved):
    directory, fit = saved
    change, message = DIFFERENT[what]
    with pytest.raises(ValueError, match=f"another state: .*{message}"):
        fit.run(change(state()), STEPS, resume_from=directory)
    _, history = fit.run(state(), 3)
    with pytest.raises(ValueError, match=f"another state: .*{message}"):
        fit.run(change(state()), STEPS, resume_from=history)


def test_a_checkpoint_of_another_optimizer_is_refused_by_name(saved):
    directory, _ = saved
    fit = OptaxOptimizer(loss, optax.lbfgs(), callbacks())
    with pytest.raises(
        ValueError, match=r"another optimizer.*\.mu\['A'\] is float32\[\] there, missing"
    ):
        fit.run(state(), STEPS, resume_from=directory)


def test_a_checkpoint_of_other_callbacks_is_refused_by_name(saved):
    directory, _ = saved
    with pytest.raises(
        ValueError, match=r"other callbacks: KeepBest.loss is float32\[\] there, missing"
    ):
        OptaxOptimizer(loss, optax.adam(0.02), EarlyStopping(1000)).run(
            state(), STEPS, resume_from=directory
        )
    fit = OptaxOptimizer(loss, optax.adam(0.02), [*callbacks(), fitopt.callbacks.RecordGradientNorm()])
    with pytest.raises(ValueError, match="has not recorded 'gradient_norm'"):
        fit.run(state(), STEPS, resume_from=directory)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "must be a directory or a History"),
        (__file__, NotADirectoryError, "is not a directory"),
        (fitopt.History(), ValueError, "does not know where its fit has ended"),
    ],
)
def test_what_cannot_be_resumed_from_is_an_error(parabola, source, error, message):
    with pytest.raises(error, match=message):
        OptaxOptimizer(quadratic, optax.sgd(0.1)).run(parabola, 5, resume_from=source)


def test_a_fit_cannot_be_resumed_inside_a_transformation_or_to_fewer_steps(parabola):
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1))
    _, history = fit.run(parabola, 5)
    with pytest.raises(TypeError, match="resume_from does not work inside"):
        jax.jit(lambda s: fit.run(s, 9, resume_from=history)[0])(parabola)
    with pytest.raises(ValueError, match="max_steps is 4, and 5 steps are made"):
        fit.run(parabola, 4, resume_from=history)


def test_resuming_a_complete_fit_gives_it_again_and_compiles_little(parabola):
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), KeepBest())
    whole = fit.run(parabola, 5)
    fit.run(parabola, 5, resume_from=whole[1])
    with counted_compilations() as compilations:
        again = fit.run(parabola, 5, resume_from=whole[1])
    assert not compilations
    assert_same(again, whole)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_fit_that_stopped_early_is_returned_as_it_was(tmp_path, parabola, where):
    wait = EarlyStopping(patience=10)
    fit = OptaxOptimizer(quadratic, optax.sgd(1.1), [wait, KeepBest(), Checkpoint(tmp_path)])
    whole = fit.run(parabola, 50)  # it climbs, so the best state is the first
    assert whole[1]["n_steps"] == 11 and whole[1]["converged"] is True
    again = fit.run(parabola, 90, resume_from=tmp_path if where == "disk" else whole[1])
    assert_same(again, whole)
    assert_same(fit.run(parabola, 90, resume_from=again[1]), whole)


def test_a_fit_whose_time_was_up_goes_on(parabola):
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1), StopAfter(0.0)).run(parabola, 50)
    assert history["n_steps"] < 50
    plain = OptaxOptimizer(quadratic, optax.sgd(0.1))
    assert_same(plain.run(parabola, 50, resume_from=history), plain.run(parabola, 50))


def test_settings_that_have_changed_are_told_of_on_resume(parabola):
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1)).run(parabola, 20)
    other = OptaxOptimizer(quadratic, optax.sgd(0.2))
    with pytest.warns(RuntimeWarning, match="the optimizer's settings .* are not those with which"):
        other.run(parabola, 30, resume_from=history)


def test_host_callbacks_count_the_steps_of_the_whole_fit(parabola):
    seen = []

    def look(step, diff, static, history, aux, loss, grads):
        seen.append((step, len(history["loss"])))

    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), every(4, look))
    _, history = fit.run(parabola, 6)
    fit.run(parabola, 13, resume_from=history)
    assert seen == [(0, 1), (4, 5), (8, 9), (12, 13)]


def test_what_callbacks_have_edited_is_taken_up(tmp_path, parabola):
    def edit(step, diff, static, history, aux, loss, grads):
        if step == 3:
            return False, {"x": diff["x"].replace(value=5.0), "target": None}, {**static, "target": 2.0}

    whole = OptaxOptimizer(quadratic, optax.adam(0.1), edit).run(parabola, 12)
    fit = OptaxOptimizer(quadratic, optax.adam(0.1), [edit, Checkpoint(tmp_path)])
    _, history = fit.run(parabola, 8)
    assert_same(fit.run(parabola, 12, resume_from=history), whole)
    shutil.rmtree(tmp_path / "12")
    assert_same(fit.run(parabola, 12, resume_from=tmp_path), whole)


def test_a_learning_rate_that_was_set_is_taken_up(tmp_path, parabola):
    class Halve(fitopt.Callback):
        def next_learning_rate(self, info, carry):
            return info.learning_rate / 2

    fit = OptaxOptimizer(quadratic, optimizers.sgd(0.4), [Halve(), RecordLearningRate()])
    _, history = fit.run(parabola, 4)
    assert_same(fit.run(parabola, 9, resume_from=history), fit.run(parabola, 9))


def poisoned(state):
    """NaN once x has passed 2."""
    return jnp.where(state["x"] < 2.0, jnp.nan, quadratic(state))


def test_a_fit_that_ended_at_a_fault_is_resumed_before_it(tmp_path):
    start = {"x": Parameter("x", 9.0), "target": 1.0}
    fit = OptaxOptimizer(poisoned, optax.sgd(0.1), [RecordParameters(), Checkpoint(tmp_path, every=3)])
    with pytest.warns(RuntimeWarning, match="was not finite"):
        whole = fit.run(start, 50)
    for source in (whole[1], tmp_path):
        with pytest.warns(RuntimeWarning, match="was not finite"):
            assert_same(fit.run(start, 50, resume_from=source), whole)


def test_a_checkpoint_whose_loss_is_not_finite_falls_back_too(tmp_path):
    # After ten steps x < 2: a kill in that moment leaves a checkpoint from which no step can be made.
    start = {"x": Parameter("x", 9.0), "target": 1.0}
    plain = OptaxOptimizer(poisoned, optax.sgd(0.1))
    with pytest.warns(RuntimeWarning, match="was not finite"):
        whole = plain.run(start, 50)
    steps = whole[1]["n_steps"]
    fine = OptaxOptimizer(quadratic, optax.sgd(0.1), Checkpoint(tmp_path, every=3))
    fine.run(start, steps)
    with pytest.warns(RuntimeWarning) as caught:
        assert_same(plain.run(start, 50, resume_from=tmp_path), whole)
    told = {str(warning.message)[:21] for warning in caught}
    assert told == {"resume_from: the loss", "the loss (nan) was no"}


@pytest.mark.filterwarnings("ignore:.*returned the last good state", "ignore:.*begins anew")
def test_a_fit_whose_last_state_has_no_loss_may_be_run_again(tmp_path):
    # sgd goes 0, 1, 2, 3, and the loss of the last of these is not finite.
    callbacks = [KeepBest(), Checkpoint(tmp_path)]
    climb = lambda state: jnp.where(state["x"] > 2.5, jnp.nan, -state["x"])
    fit = OptaxOptimizer(climb, optax.sgd(1.0), callbacks)
    for source in (tmp_path, tmp_path, None):
        fitted, history = fit.run({"x": Parameter("x", 0.0)}, 3, resume_from=source or history)
        assert float(fitted["x"]) == 2.0
        assert "not finite at step 3" in history["stop_reason"]


def test_an_array_that_the_user_changes_after_a_fit_does_not_change_its_best_state():
    data = np.array([1.0], np.float32)
    loss_of = lambda state: (state["x"] - state["d"][0]) ** 2
    fit = OptaxOptimizer(loss_of, optax.sgd(0.8, momentum=0.9), KeepBest())
    state = {"x": Parameter("x", 0.0), "d": data}
    fitted, history = fit.run(state, 10)
    data[:] = 7.0
    again, resumed = fit.run(state, 11, resume_from=history)
    assert float(again["x"]) == float(fitted["x"])
    assert resumed["final_loss"] == history["final_loss"]


def test_the_best_step_is_kept_in_double_precision_too(tmp_path):
    with jax.enable_x64(True):
        fit = OptaxOptimizer(lambda s: s["x"] ** 2, optax.adam(0.1), [KeepBest(), Checkpoint(tmp_path)])
        fit.run({"x": Parameter("x", 3.0)}, 10)
        _, history = fit.run({"x": Parameter("x", 3.0)}, 20, resume_from=tmp_path)
    assert history["n_steps"] == 20


def test_changes_to_a_fit_that_has_ended_are_told_of(parabola):
    _, history = OptaxOptimizer(quadratic, optax.adam(0.1), EarlyStopping(5)).run(parabola, 500)
    other = OptaxOptimizer(quadratic, optax.adam(0.1), EarlyStopping(50))
    with pytest.warns(RuntimeWarning, match="this fit has ended .EarlyStopping.* has no effect"):
        _, again = other.run(parabola, 500, resume_from=history)
    assert again["n_steps"] == history["n_steps"]


def test_a_new_fit_does_not_write_over_the_checkpoints_of_another(tmp_path, parabola):
    first = OptaxOptimizer(quadratic, optax.sgd(0.1), Checkpoint(tmp_path))
    first.run(parabola, 5)
    with pytest.raises(FileExistsError, match="up to step 5; go on with it"):
        OptaxOptimizer(quadratic, optax.sgd(0.1), Checkpoint(tmp_path)).run(parabola, 5)
    first.run(parabola, 3)  # but over its own
    assert steps_in(tmp_path) == [3]


def test_a_directory_that_vanishes_is_one_warning_and_the_fit_goes_on(tmp_path, parabola):
    directory = tmp_path / "checkpoints"

    def vanish(step, *_):
        if step == 4:
            while steps_in(directory) != [1, 3]:  # orbax' threads would tell of a write that fails
                time.sleep(0.01)
            directory.rename(tmp_path / "elsewhere")
            directory.write_text("in the way")

    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), [vanish, Checkpoint(directory, every=2)])
    with pytest.warns(RuntimeWarning) as caught:
        _, history = fit.run(parabola, 20)
    assert len([w for w in caught if "could not write" in str(w.message)]) == 1
    assert history["n_steps"] == 20
    plain = OptaxOptimizer(quadratic, optax.sgd(0.1))
    assert_same(plain.run(parabola, 30, resume_from=history), plain.run(parabola, 30))


def test_a_full_disk_is_one_warning_and_later_checkpoints_are_tried(tmp_path, parabola, monkeypatch):
    write = checkpoint.write

    def full_for_a_while(manager, files, frozen):
        if 4 <= frozen.contents.step < 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(manager, files, frozen)

    monkeypatch.setattr(checkpoint, "write", full_for_a_while)
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), Checkpoint(tmp_path, every=2, keep=9))
    with pytest.warns(RuntimeWarning, match="could not write .* No space left on device") as caught:
        _, history = fit.run(parabola, 14)
    assert len(caught) == 1
    assert history["n_steps"] == 14
    assert steps_in(tmp_path) == [1, 3, 13, 14]


def test_an_exception_in_another_callback_leaves_a_last_checkpoint(tmp_path, parabola):
    def fail(step, *_):
        if step == 6:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        OptaxOptimizer(quadratic, optax.sgd(0.1), [Checkpoint(tmp_path), fail]).run(parabola, 20)
    assert steps_in(tmp_path) == [7]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_fit_and_leaves_a_last_checkpoint(sent, tmp_path, parabola):
    before = signal.getsignal(sent)
    steps = []

    def send(step, *_):
        steps.append(step)
        if step == 6:
            # From outside of the callback, in which Ctrl-C is the callback's own.
            threading.Timer(0.05, os.kill, (os.getpid(), sent)).start()

    fit = OptaxOptimizer(quadratic, optax.sgd(1e-9), [Checkpoint(tmp_path), every(2, send)])
    _, history = fit.run(parabola, 10**7)
    assert signal.getsignal(sent) is before
    what = "interrupted (Ctrl-C)" if sent == signal.SIGINT else "terminated (SIGTERM)"
    assert history["stop_reason"].startswith(what)
    assert 7 <= history["n_steps"] < 10**7
    assert steps_in(tmp_path) == [history["n_steps"]]


SCRIPT = """
import sys
import jax.numpy as jnp, optax
from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import Checkpoint, CSVLogger, EarlyStopping, KeepBest, RecordParameters, every

t = jnp.linspace(0.0, 4.0, 40)
data = 2.5 * jnp.exp(-1.3 * t) + 0.5

def loss(state):
    return jnp.mean((state["A"] * jnp.exp(-state["k"] * t) - data) ** 2)

def tell(step, *_):
    print(step, flush=True)

directory, steps = sys.argv[1], int(sys.argv[2])
state = {"A": Parameter("A", 1.0, lower=0.0), "k": Parameter("k", 1.0)}
callbacks = [EarlyStopping(10**6), KeepBest(), RecordParameters(every=3), every(40, tell)]
callbacks += [CSVLogger(f"{directory}.csv"), Checkpoint(directory, every=40)]
fit = OptaxOptimizer(loss, optax.adam(0.01), callbacks)
fitted, history = fit.run(state, steps, resume_from=directory)
history.save(f"{directory}.npz")
print("done", float(fitted["A"]).hex(), float(fitted["k"]).hex(), flush=True)
"""


def test_a_fit_that_is_killed_again_and_again_ends_as_the_uninterrupted_one(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def begin(name):
        command = [sys.executable, str(script), str(tmp_path / name), "1000"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process):
        with process:
            output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output.splitlines()[-1]

    reference = begin("whole")
    for lines in (3, 9):  # killed after so many signs of life
        with begin("killed") as process:
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
    whole, killed = finish(reference), finish(begin("killed"))
    assert killed == whole
    one, other = (fitopt.History.load(tmp_path / f"{name}.npz") for name in ("killed", "whole"))
    assert_same(({}, one), ({}, other))
    assert (tmp_path / "killed.csv").read_text() == (tmp_path / "whole.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directory": 3}, TypeError, "directory must be a path"),
        ({"directory": "x", "every": 0}, ValueError, "every must be a positive integer"),
        ({"directory": "x", "every": 2.5}, TypeError, "every must be an integer"),
        ({"directory": "x", "seconds": "1"}, TypeError, "seconds must be a number"),
        ({"directory": "x", "keep": 0}, ValueError, "keep must be a positive integer"),
        ({"directory": "x", "seconds": float("nan")}, ValueError, "seconds must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        Checkpoint(**arguments)


# The series, which checkpoints share where they are large.


@pytest.fixture
def shared(monkeypatch):
    """Let no series be too small to be shared."""
    monkeypatch.setattr(checkpoint, "_LARGE", -1)


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


LOSS = 4  # bytes a step
HARM = {
    "changed behind step 41": (lambda path: overwrite(path, 45 * LOSS, b"\xff" * 4), [53]),
    "cut behind step 41": (lambda path: os.truncate(path, 45 * LOSS), [53]),
    "changed behind step 1": (lambda path: overwrite(path, 10 * LOSS, b"\xff" * 4), [53, 41, 21]),
    "with more at its end": (lambda path: overwrite(path, 53 * LOSS, b"\xff" * 99), []),
    "missing": (os.unlink, [53, 41, 21, 1]),
}


@pytest.mark.parametrize("what", HARM)
def test_checkpoints_whose_records_are_damaged_give_way_to_the_one_before(shared, what, saved):
    directory, fit = saved
    harm, lost = HARM[what]
    harm(directory / "history" / "0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = fit.run(state(), STEPS, resume_from=directory)
    assert [str(w.message).partition(" in ")[0] for w in caught] == [
        f"the checkpoint of step {step}" for step in lost
    ]
    assert all("is damaged" in str(w.message) for w in caught)
    assert_same(resumed, fit.run(state(), STEPS))


@pytest.mark.parametrize("size", [0, 30 * LOSS, 2**20])
def test_a_fit_goes_on_with_series_that_are_shared_from_some_size_on(size, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_LARGE", size)
    fit = OptaxOptimizer(loss, optax.adam(0.05), callbacks(Checkpoint(tmp_path, every=20, keep=9)))
    fit.run(state(), 53)
    assert (tmp_path / "history").exists() == (size < 53 * LOSS)
    whole = fit.run(state(), STEPS, resume_from=tmp_path)
    for step in [s for s in steps_in(tmp_path) if s > 21]:
        shutil.rmtree(tmp_path / str(step))
    assert_same(fit.run(state(), STEPS, resume_from=tmp_path), whole)


def test_a_fit_that_goes_on_from_an_older_point_leaves_earlier_checkpoints_sound(shared, saved):
    directory, fit = saved
    whole = fit.run(state(), STEPS)
    _, history = fit.run(state(), 30)
    faster = OptaxOptimizer(loss, optax.adam(0.1), callbacks(Checkpoint(directory, every=20, keep=9)))
    with pytest.warns(RuntimeWarning, match="the optimizer's settings .* are not those"):
        branch = faster.run(state(), 60, resume_from=history)
    assert steps_in(directory) == [1, 21, 41, 60]
    assert_same(faster.run(state(), 60, resume_from=directory), branch)
    for step in (41, 60):
        shutil.rmtree(directory / str(step))
    assert_same(fit.run(state(), STEPS, resume_from=directory), whole)


def test_a_checkpoint_of_another_format_is_refused(saved):
    directory, fit = saved
    path = directory / "53" / "rest" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(ValueError, match=r"step 53 .* has format 1, .* use the release that wrote it"):
        fit.run(state(), STEPS, resume_from=directory)


def disturbed(directory, step, happen):
    """A fit with checkpoints of steps 1, 6, 11, ... to which something happens, and one without."""

    def fault(at, *_):
        if at == step:
            while max(steps_in(directory), default=0) <= step - 5:
                time.sleep(0.01)
            time.sleep(0.1)  # the thread that writes has something to tidy up
            happen()

    record = RecordParameters(every=2)
    fit = OptaxOptimizer(quadratic, optax.adam(0.1), [fault, record, Checkpoint(directory, every=5)])
    return fit, OptaxOptimizer(quadratic, optax.adam(0.1), record)


def test_a_directory_that_vanishes_is_made_anew_with_the_whole_history(shared, tmp_path, parabola):
    directory = tmp_path / "checkpoints"
    fit, plain = disturbed(directory, 8, lambda: directory.rename(tmp_path / "elsewhere"))
    with pytest.warns(RuntimeWarning, match="is gone") as caught:
        fit.run(parabola, 23)
    assert len(caught) == 1
    assert steps_in(directory) == [16, 21, 23]
    for source in (directory, tmp_path / "elsewhere"):
        assert_same(plain.run(parabola, 40, resume_from=source), plain.run(parabola, 40))


def test_series_that_vanish_are_written_again_and_earlier_checkpoints_are_sound_too(
    shared, tmp_path, parabola
):
    fit, plain = disturbed(tmp_path, 8, lambda: shutil.rmtree(tmp_path / "history"))
    fit.run(parabola, 13)
    assert steps_in(tmp_path) == [6, 11, 13]
    for step in (13, 11, 6):
        assert_same(plain.run(parabola, 40, resume_from=tmp_path), plain.run(parabola, 40))
        shutil.rmtree(tmp_path / str(step))


def test_what_a_full_disk_has_cut_is_written_again(shared, tmp_path, parabola, monkeypatch):
    sync, calls = os.fsync, []

    def full_for_a_while(descriptor):
        calls.append(descriptor)
        if 3 <= len(calls) <= 5:
            os.pwrite(descriptor, b"\xff" * 40, 0)  # as bad as can be, and of full length
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(series_files.os, "fsync", full_for_a_while)
    fit, plain = disturbed(tmp_path, -1, lambda: None)
    with pytest.warns(RuntimeWarning, match="could not write .* No space left on device") as caught:
        fit.run(parabola, 33)
    assert len(caught) == 1
    assert steps_in(tmp_path) == [26, 31, 33]
    assert_same(plain.run(parabola, 40, resume_from=tmp_path), plain.run(parabola, 40))


def test_series_of_all_kinds_are_taken_up(shared, tmp_path, parabola):
    class Record(HostCallback):
        every = 3
        uses = ()

        @contextlib.contextmanager
        def open(self, fit):
            yield lambda step, *_: fit.record("a/b", at(step), self.every)

    def at(step):
        return jax.tree.map(lambda x: x[-1], series(step + 1)["odd"])

    def fit(*more):
        return OptaxOptimizer(quadratic, optax.adam(0.1), [Record(), RecordParameters(every=7), *more])

    fit(Checkpoint(tmp_path, every=4)).run(parabola, 21)
    assert_same(fit().run(parabola, 30, resume_from=tmp_path), fit().run(parabola, 30))


def test_a_fit_goes_on_while_a_checkpoint_is_written(tmp_path, parabola, monkeypatch):
    write, later, went_on = checkpoint.write, threading.Event(), []

    def slowly(*arguments):
        went_on.append(later.wait(60))
        write(*arguments)

    def tell(step, *_):
        if step == 8:
            later.set()

    monkeypatch.setattr(checkpoint, "write", slowly)
    fit = OptaxOptimizer(quadratic, optax.adam(0.1), [tell, Checkpoint(tmp_path, every=10)])
    fit.run(parabola, 10)
    assert went_on == [True, True]
    assert steps_in(tmp_path) == [1, 10]
