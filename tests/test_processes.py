"""Fits of arrays that lie on several devices, of one process or of two under `jax.distributed`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import Minibatches, OptaxOptimizer, Parameter
from fitopt.callbacks import RecordParameters, once

from .conftest import hand_written
from .two_processes import blocks, linear, linear_loss, network, network_fit, rows_loss, sharded_rows

HEARTBEAT = 8  # seconds: tests/two_processes.py says it to JAX, too


def started(*arguments):
    """A process that runs tests/two_processes.py with two devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.two_processes", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


class Pair:
    """What two processes have found, and how they have ended."""

    def __init__(self, directory):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        running = [started(i, address, directory) for i in range(2)]
        try:
            errors = [running[1].communicate(timeout=900)[1]]
            died = time.monotonic()
            errors.insert(0, running[0].communicate(timeout=300)[1])
            self.seconds_alone = time.monotonic() - died
        finally:
            for process in running:
                process.kill()
        self.codes = [process.returncode for process in running]
        self.errors = errors
        files = [directory / f"{i}.json" for i in range(2)]
        assert all(file.exists() for file in files), "\n".join(x[-3000:] for x in errors)
        self.first, self.second = (json.loads(file.read_text()) for file in files)
        self.saved = directory / "saved"

    def of(self, name):
        """What a fit has given, which must be the same in both."""
        assert self.first[name] == self.second[name]
        return self.first[name]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with two devices has found, and where it has left checkpoints."""
    directory = tmp_path_factory.mktemp("alone")
    process = started(directory)
    _, error = process.communicate(timeout=900)
    assert process.returncode == 0, error[-3000:]
    return json.loads((directory / "found.json").read_text()), directory / "saved"


@pytest.fixture(scope="module")
def fitted_network():
    """The fit of one process on one device."""
    return network_fit(RecordParameters(every=20), once(0, lambda *rest: None)).run(network(), 60)


def test_rows_in_two_processes_are_fitted_as_in_one_twenty_times_in_a_row(pair):
    steps, _, loss, losses, slope, offset = pair.of("linear")
    state = linear()
    free = {"slope": jnp.zeros(4), "offset": jnp.zeros(())}
    expected, expected_losses = hand_written(
        lambda free: linear_loss({**state, **free}), optax.sgd(0.1), free, 60
    )
    assert steps == 60
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope, expected["slope"], rtol=1e-5)
    np.testing.assert_allclose(offset, expected["offset"], rtol=1e-4)
    assert loss < losses[-1]


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_a_network_in_two_processes_is_fitted_as_in_one(pair, fitted_network, name):
    steps, reason, loss, losses, *weights = pair.of(name)
    state, history = fitted_network
    assert (steps, reason) == (60, history["stop_reason"])
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-4)
    np.testing.assert_allclose(loss, history["final_loss"], rtol=1e-4)
    assert len(weights) == (2 if name == "replicated" else 0)  # else a process sees its part alone
    for found, parameter in zip(weights, state["layers"], strict=False):
        np.testing.assert_allclose(found, parameter.value, rtol=1e-3, atol=1e-4)
    for found, recorded in zip(pair.of(f"{name} records"), history["parameters"]["layers"], strict=True):
        np.testing.assert_allclose(found, recorded[-1], rtol=1e-3, atol=1e-4)


def test_processes_whose_clocks_differ_stop_after_the_same_step(pair):
    steps, reason, *_ = pair.of("clocks")
    assert reason.startswith("StopAfter: 0.3 s have passed") and reason.endswith("in process 1")
    assert 0 < steps < 10**7


def test_edits_and_learning_rates_are_those_of_the_first_process(pair):
    _, _, _, losses, slope = pair.of("edits")
    data = linear()
    x, y = data["x"], data["y"]
    free, rate = {"slope": jnp.zeros(4), "offset": jnp.zeros(())}, 0.05
    expected = []
    for step in range(20):
        loss = lambda free, y=y: linear_loss({**free, "x": x, "y": y})
        (free, _), at = hand_written(loss, optax.sgd(rate), free, 1), loss(free)
        expected.append(at)
        rate = 0.1  # after step 0
        if step == 5:
            free["offset"], y = jnp.asarray(5.0), 2 * y
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(slope, free["slope"], rtol=1e-4)


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(pair):
    steps, reason, *_ = pair.of("Ctrl-C")
    assert steps == 8 and "interrupted (Ctrl-C)" in reason and reason.endswith("in process 1")
    steps, reason, *_ = pair.of("Ctrl-C in a chunk")
    assert 0 < steps < 10**7 and reason == f"interrupted (Ctrl-C) after step {steps - 1}"


def test_a_step_that_is_not_finite_takes_all_processes_back(pair):
    state = {**linear(), "offset": Parameter("offset", 2.0)}
    loss = lambda s: linear_loss(s) + jnp.sqrt(s["offset"])
    with pytest.warns(RuntimeWarning, match="not finite"):
        _, history = OptaxOptimizer(loss, optax.sgd(0.3)).run(state, 100)
    steps, reason, final_loss, losses = pair.of("not finite")
    assert (steps, reason) == (history["n_steps"], history["stop_reason"])
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-4)
    np.testing.assert_allclose(final_loss, history["final_loss"], rtol=1e-4)
    assert pair.of("warnings") == 1


def test_an_exception_in_one_process_ends_the_others_and_says_why(pair):
    assert pair.second["exception"] == "KeyError: 'ouch'"
    assert pair.first["exception"] == "RuntimeError: process 1 has left the fit: KeyError: 'ouch'"


def test_processes_that_are_not_given_the_same_fit_are_told_what_differs(pair):
    assert "all processes must make the same fit" in pair.of("callbacks")
    assert "callback 0 is missing in process 0 and StopOnLoss(" in pair.first["callbacks"]
    assert "callback 1 is EarlyStopping(patience=5" in pair.of("settings")


def test_processes_that_would_outlive_each_other_are_refused(pair):
    assert "jax_enable_recoverability=False" in pair.of("recoverability")


def test_the_first_process_alone_prints_and_writes(pair):
    assert pair.first["told"] == [True] * 3
    assert pair.second["told"] == [False] * 3


def test_batches_are_the_same_as_in_one_process(pair):
    fit = OptaxOptimizer(rows_loss, optax.sgd(0.1))
    state = {"slope": Parameter("slope", np.zeros(4, np.float32))}
    for name, batches, steps in (
        ("minibatches", Minibatches(sharded_rows(), 8), 30),
        ("stream", blocks(), 100),
    ):
        _, history = fit.run(state, steps, batches=batches)
        found, reason, _, losses = pair.of(name)
        assert (found, reason) == (history["n_steps"], history["stop_reason"])
        np.testing.assert_allclose(losses, history["loss"], rtol=1e-4, atol=1e-6)


def test_sigterm_to_one_process_stops_all_with_one_checkpoint_which_one_process_reads(
    pair, fitted_network
):
    steps, reason, *_ = pair.of("SIGTERM")
    assert steps == 31 and "terminated (SIGTERM)" in reason and reason.endswith("in process 1")
    assert pair.of("saved") == [31]
    expected = fitted_network[1]["loss"]
    np.testing.assert_allclose(pair.of("resumed")[3], expected[:50], rtol=1e-4)
    fit = network_fit(once(30, lambda *rest: None))
    state, history = fit.run(network(), 60, resume_from=pair.saved)
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-4)
    for one, other in zip(state["layers"], fitted_network[0]["layers"], strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-3, atol=1e-4)


def test_each_process_may_have_fits_of_its_own(pair):
    assert (pair.first["alone"], pair.second["alone"]) == (10, 20)
    assert pair.first["own"] == ["10"]
    assert "no checkpoints" in pair.second["own"]


def test_a_process_that_is_killed_ends_the_others_with_an_error(pair):
    assert pair.codes == [-signal.SIGABRT, -signal.SIGKILL]
    assert "another task died" in pair.errors[0]
    assert pair.seconds_alone < 6 * HEARTBEAT


def test_parameters_on_two_devices_of_one_process_are_fitted_where_they_lie(alone, fitted_network):
    found, _ = alone
    assert found["compilations"] == 0
    assert found["all-reduce"] == 1
    for name in ("sharded", "replicated"):
        losses, *weights = found[name]
        np.testing.assert_allclose(losses, fitted_network[1]["loss"][:30], rtol=1e-4)
        assert [np.shape(w) for w in weights] == [(4, 8), (8, 8)]
    assert "a mesh with automatic axes" in found["explicit"]


def test_a_checkpoint_of_two_devices_is_read_on_one(alone, fitted_network):
    _, history = network_fit().run(network(), 60, resume_from=alone[1])
    np.testing.assert_allclose(history["loss"], fitted_network[1]["loss"], rtol=1e-4)
