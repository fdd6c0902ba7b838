"""Many fits in several processes under `jax.distributed`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from fitopt import Fits, starts

from .test_many_saved import STATE, assert_same, optimizer, short_calls  # noqa: F401

SCRIPT = f"""
import os, signal, sys, warnings
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import jax
index, address, directory, killed, file = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_enable_recoverability", True)
jax.distributed.initialize(address, 3, index, heartbeat_timeout_seconds=4)
from tests.test_many_saved import *

pace.CHUNK_SECONDS = 0.0
kill = WhenDone(5, lambda fits: os.kill(os.getpid(), signal.SIGKILL))
callbacks = [Checkpoint(directory, every=2), *([kill] if killed == str(index) else [])]
warnings.simplefilter("ignore")
options = dict(lanes=3, record=True, resume_from=directory)
fits = optimizer(*callbacks).run_many(starts(STATE, 40), 120, **options)
fits.save(f"{{file}}-{{index}}.npz")
if index > 0:
    os._exit(0)  # without JAX's farewell, for which the first process does not wait
"""


def run_three(directory: Path, killed: int | None, file: Path) -> list[int]:
    """The exit statuses of three processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    commands = [
        [sys.executable, "-c", SCRIPT, str(i), f"127.0.0.1:{port}", directory, str(killed), file]
        for i in range(3)
    ]
    running = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for command in commands]
    errors = [process.communicate(timeout=300)[1].decode()[-2000:] for process in running]
    codes = [process.returncode for process in running]
    expected = [-signal.SIGKILL if i == killed else 0 for i in range(3)]
    assert codes == expected, "\n".join(errors)
    return codes


def test_a_process_that_dies_costs_its_share_alone_and_a_restart_makes_what_is_missing(tmp_path):
    expected = optimizer().run_many(starts(STATE, 40), 120, lanes=3, record=True)
    run_three(tmp_path / "saved", 1, tmp_path / "first")
    for index in (0, 2):
        fits = Fits.load(tmp_path / f"first-{index}.npz")
        missing = ["has died" in reason for reason in fits.stop_reason]
        assert np.flatnonzero(missing).tolist() == list(range(1, 40, 3))
        there = ~np.array(missing)
        assert fits.n_steps[there].tolist() == expected.n_steps[there].tolist()
        np.testing.assert_allclose(fits.final_loss[there], expected.final_loss[there], rtol=1e-4)
    run_three(tmp_path / "saved", None, tmp_path / "second")
    complete = [Fits.load(tmp_path / f"second-{index}.npz") for index in range(3)]
    assert complete[0].n_steps.tolist() == expected.n_steps.tolist()
    np.testing.assert_allclose(complete[0].values("x"), expected.values("x"), rtol=1e-3)
    for one in complete[1:]:
        assert_same(complete[0], one)
    # One process reads what three have made.
    again = optimizer().run_many(
        starts(STATE, 40), 120, lanes=3, record=True, resume_from=tmp_path / "saved"
    )
    assert_same(again, complete[0])
