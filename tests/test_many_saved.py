"""Many fits that are stopped, killed, resumed, and spread over devices."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optax
import pytest

from fitopt import Fits, HostCallback, OptaxOptimizer, Parameter, starts
from fitopt.callbacks import Checkpoint, KeepBest, ProgressBar, StopOnLoss
from fitopt.engine import pace

STATE = {"x": Parameter("x", np.array([1.0, 2.0]), lower=-4, upper=4), "y": 1.0}


def valley(state):
    a, b = state["x"]
    return (state["y"] - a) ** 2 + 10 * (b - a**2) ** 2


def optimizer(*callbacks):
    return OptaxOptimizer(valley, optax.adam(0.05), [StopOnLoss(0.05), *callbacks])


def assert_same(fits, others):
    """To the last bit."""
    np.testing.assert_array_equal(fits.values("x"), others.values("x"))
    np.testing.assert_array_equal(fits.final_loss, others.final_loss)
    assert fits.stop_reason == others.stop_reason
    for (_, history), (_, other) in zip(fits, others, strict=True):
        np.testing.assert_array_equal(history.get("loss"), other.get("loss"))


class WhenDone(HostCallback):
    """Does something when so many fits have ended."""

    def __init__(self, number, action):
        self.number = number
        self.action = action

    @contextlib.contextmanager
    def open_many(self, fits):
        yield lambda: self.action(fits) if fits.done >= self.number else None


def stop(fits):
    fits.stop("enough")


@pytest.fixture(scope="module", autouse=True)
def short_calls():
    """The host looks after each step, however fast the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "CHUNK_SECONDS", 0.0)
        yield


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_many_saved import *

pace.CHUNK_SECONDS = 0.0
kill = WhenDone(18, lambda fits: os.kill(os.getpid(), signal.SIGKILL))
callbacks = [Checkpoint(sys.argv[1], every=3), kill]
optimizer(*callbacks).run_many(starts(STATE, 40), 120, lanes=4, record=True)
"""


def run_script(script, *arguments, **environment):
    code = textwrap.dedent(script).format(tests=str(Path(__file__).parent))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def expected():
    return optimizer().run_many(starts(STATE, 40), 120, lanes=4, record=True)


def test_fits_that_were_killed_go_on_to_the_last_bit(tmp_path, expected):
    killed = run_script(SCRIPT, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert "fits.npz" in saved and "part-000001.npz" in saved
    again = optimizer(Checkpoint(tmp_path, every=20))
    fits = again.run_many(starts(STATE, 40), 120, lanes=4, record=True, resume_from=tmp_path)
    assert_same(fits, expected)


def test_with_other_lanes_fits_that_have_ended_are_not_made_again(tmp_path, expected):
    first = optimizer(Checkpoint(tmp_path, every=3), WhenDone(15, stop))
    stopped = first.run_many(starts(STATE, 40), 120, lanes=4, record=True)
    ended = ["enough" not in reason for reason in stopped.stop_reason]
    assert 5 <= sum(ended) < 40
    fits = optimizer().run_many(starts(STATE, 40), 120, lanes=6, record=True, resume_from=tmp_path)
    assert not any("enough" in reason for reason in fits.stop_reason)
    np.testing.assert_allclose(fits.final_loss, expected.final_loss, rtol=1e-3)
    np.testing.assert_array_equal(
        np.array([history["elapsed"] for _, history in fits])[ended],
        np.array([history["elapsed"] for _, history in stopped])[ended],
    )


def test_fits_that_were_stopped_go_on_to_the_last_bit_and_once_complete_are_read(tmp_path, expected):
    first = optimizer(Checkpoint(tmp_path, seconds=1000.0), WhenDone(15, stop))
    first.run_many(starts(STATE, 40), 120, lanes=4, record=True)
    options = dict(lanes=4, record=True, resume_from=tmp_path)
    second = optimizer(Checkpoint(tmp_path))
    assert_same(second.run_many(starts(STATE, 40), 120, **options), expected)
    assert_same(second.run_many(starts(STATE, 40), 120, **options), expected)


def test_a_directory_of_other_fits_is_an_error(tmp_path):
    made = optimizer(Checkpoint(tmp_path))
    made.run_many(starts(STATE, 5), 10)
    with pytest.raises(FileExistsError, match="checkpoints of other fits"):
        optimizer(Checkpoint(tmp_path)).run_many(starts(STATE, 5), 10)
    with pytest.raises(ValueError, match="number of states is 5 there, 6 here"):
        made.run_many(starts(STATE, 6), 10, resume_from=tmp_path)
    with pytest.raises(ValueError, match="max_steps is 10 there, 11 here"):
        made.run_many(starts(STATE, 5), 11, resume_from=tmp_path)
    with pytest.raises(ValueError, match="the checksum of what varies is"):
        made.run_many(starts(STATE, 5, seed=1), 10, resume_from=tmp_path)
    with pytest.raises(ValueError, match="other callbacks"):
        optimizer(KeepBest()).run_many(starts(STATE, 5), 10, resume_from=tmp_path)
    with pytest.raises(TypeError, match="resume_from must be a directory"):
        made.run_many(starts(STATE, 5), 10, resume_from=3)


def test_an_empty_directory_is_that_of_fits_that_have_yet_to_begin(tmp_path):
    with pytest.warns(RuntimeWarning, match="no checkpoint of fits"):
        fits = optimizer().run_many(starts(STATE, 5), 10, resume_from=tmp_path)
    assert (fits.n_steps == 10).all()


def test_ctrl_c_returns_what_was_reached():
    presses = iter([signal.SIGINT])
    press = lambda fits: [signal.raise_signal(number) for number in presses]
    fits = optimizer(WhenDone(10, press)).run_many(starts(STATE, 40), 120, lanes=4)
    begun = np.isfinite(fits.final_loss)
    assert 10 <= begun.sum() < 40
    assert fits.stop_reason[-1] == "interrupted (Ctrl-C) before the first step"
    assert any(reason.startswith("interrupted (Ctrl-C) after step") for reason in fits.stop_reason)
    assert fits[-1][0]["x"].value.tolist() == fits.start_values("x")[-1].tolist()


def test_a_progress_bar_counts_fits(capsys):
    bar = ProgressBar(file=io.StringIO(), mininterval=0)
    fits = optimizer(bar).run_many(starts(STATE, 9), 20)
    last = bar.options["file"].getvalue().split("\r")[-1]
    assert "9/9" in last and f"best loss {fits.final_loss.min():.6g}" in last


DEVICES = """
import sys
sys.path.insert(0, {tests!r})
from test_many_saved import *
import jax
from fitopt.callbacks import RecordGradientNorm
assert jax.local_device_count() == 4
states = starts(STATE, 41)
fits = optimizer(RecordGradientNorm()).run_many(states, 120, lanes=8, record=True)
fits.save(sys.argv[1])
one = optimizer().run_many(states, 120, lanes=8, devices=jax.devices()[2:3])
np.testing.assert_allclose(one.final_loss, fits.final_loss, rtol=1e-5)
"""


def test_lanes_are_spread_over_all_devices(tmp_path, expected):
    flags = "--xla_force_host_platform_device_count=4"
    ran = run_script(DEVICES, tmp_path / "fits.npz", XLA_FLAGS=flags)
    assert ran.returncode == 0, ran.stderr
    fits = Fits.load(tmp_path / "fits.npz")
    np.testing.assert_allclose(fits.final_loss[:40], expected.final_loss, rtol=1e-4)
    assert fits.n_steps[:40].tolist() == expected.n_steps.tolist()
    for (_, history), (_, other) in zip(fits, expected, strict=False):
        np.testing.assert_allclose(history["loss"], other["loss"], rtol=1e-3)
        assert len(history["gradient_norm"]) == history["n_steps"]
