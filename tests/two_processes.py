"""What tests/test_processes.py runs in processes of their own, and the problems that it compares.

`python -m tests.two_processes INDEX ADDRESS DIRECTORY` is one of two processes with two devices each.
Both leave what they have found in DIRECTORY; then the second one kills itself during a fit.
`python -m tests.two_processes DIRECTORY` is a process with two devices.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fitopt import Minibatches, OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import (
    AdaptLearningRate,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    KeepBest,
    PrintParameters,
    ProgressBar,
    RecordParameters,
    StopAfter,
    StopOnLoss,
    every,
    once,
)
from fitopt.state import flatten

RNG = np.random.default_rng(7)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32) + 0.1
WEIGHTS = [RNG.normal(size=shape).astype(np.float32) / 2 for shape in ((4, 8), (8, 8))]
ANYWHERE = lambda x, *spec: jnp.asarray(x)


def linear(put=ANYWHERE):
    """The state of a linear regression; `put` says where an array lies."""
    slope, offset = Parameter("slope", np.zeros(4, np.float32)), Parameter("offset", 0.0)
    return {"slope": slope, "offset": offset, "x": put(X, "d"), "y": put(Y, "d")}


def linear_loss(state):
    return jnp.mean((state["x"] @ state["slope"] + state["offset"] - state["y"]) ** 2)


def network(put=ANYWHERE, *spec):
    """The state of a network whose weights lie as `spec` says."""
    weights = [Parameter(f"w{i}", put(w, *spec), lower=-4, upper=4) for i, w in enumerate(WEIGHTS)]
    return {"layers": weights, "x": put(X, "d"), "y": put(Y, "d")}


def network_loss(state):
    first, second = state["layers"]
    hidden = jnp.tanh(jnp.tanh(state["x"] @ first) @ second)
    return jnp.mean((jnp.sum(hidden, axis=1) - state["y"]) ** 2)


def network_fit(*callbacks):
    return OptaxOptimizer(network_loss, optax.adam(0.05), [KeepBest(), *callbacks])


def rows_loss(state, batch):
    return jnp.mean((batch["x"] @ state["slope"] - batch["y"]) ** 2)


def sharded_rows(put=ANYWHERE):
    return {"x": put(X, "d"), "y": put(Y, "d")}


def blocks(seconds=0.0):
    """Batches of a stream that takes its time."""
    for i in range(30):
        time.sleep(seconds)
        rows = np.arange(i, i + 8) % len(X)
        yield {"x": X[rows], "y": Y[rows]}


def across(x, *spec):
    """An array on all devices of all processes."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec(*spec))
    return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])


class Child:
    """One of the two processes."""

    def __init__(self, index, directory):
        self.index = index
        self.directory = Path(directory)
        self.found = {}

    def tell(self, name, history, *values):
        """Keep what a fit has given, for the test to compare."""
        shown = [np.asarray(x).tolist() for x in values if x.is_fully_replicated]
        steps, reason = history["n_steps"], history["stop_reason"]
        self.found[name] = [steps, reason, history["final_loss"], history["loss"].tolist(), *shown]

    def many_fits_in_a_row(self):
        fit, losses = OptaxOptimizer(linear_loss, optax.sgd(0.1)), []
        for i in range(20):
            state, history = fit.run({**linear(across), "unused": float(i)}, 60)
            losses.append(history["final_loss"])
        assert len(set(losses)) == 1
        self.tell("linear", history, state["slope"].value, state["offset"].value)

    def networks(self):
        fit = network_fit(RecordParameters(every=20), every(20, lambda *rest: None))
        for name, spec in {"replicated": (), "sharded": (None, "d")}.items():
            state, history = fit.run(network(across, *spec), 60)
            assert all(w.value.sharding.spec == PartitionSpec(*spec) for w in state["layers"])
            self.tell(name, history, *(w.value for w in state["layers"]))
            records = jax.tree.map(np.asarray, history["parameters"]["layers"])
            self.found[f"{name} records"] = [x[-1].tolist() for x in records]
            # What goes from step to step lies as the weights do.
            moments = [x for x in history.resume_point.carry() if x.shape == WEIGHTS[1].shape]
            assert len(moments) == 3
            assert all(x.sharding.spec == PartitionSpec(*spec) for x in moments)

    def decisions(self):
        clock = StopAfter(100.0 if self.index == 0 else 0.3)
        _, history = OptaxOptimizer(linear_loss, optax.sgd(1e-6), clock).run(linear(across), 10**7)
        self.tell("clocks", history)

        def edit(step, free, fixed, *rest):  # each process would have it otherwise
            return False, {**free, "offset": 5.0 + self.index}, {**fixed, "y": fixed["y"] * 2}

        rate = AdaptLearningRate(lambda history: 0.1 / (1 + self.index), every=10)
        fit = OptaxOptimizer(linear_loss, optimizers.sgd(0.05), [once(5, edit), rate])
        state, history = fit.run(linear(across), 20)
        self.tell("edits", history, state["slope"].value)

        def interrupt(step, *rest):
            if self.index == 1:
                os.kill(os.getpid(), signal.SIGINT)

        fit = OptaxOptimizer(linear_loss, optax.sgd(0.05), once(7, interrupt))
        self.tell("Ctrl-C", fit.run(linear(across), 10**6)[1])
        if self.index == 0:  # while steps are made
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        _, history = OptaxOptimizer(linear_loss, optax.sgd(1e-6)).run(linear(across), 10**7)
        self.tell("Ctrl-C in a chunk", history)

    def faults(self):
        state = {**linear(across), "offset": Parameter("offset", 2.0)}
        fit = OptaxOptimizer(lambda s: linear_loss(s) + jnp.sqrt(s["offset"]), optax.sgd(0.3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, history = fit.run(state, 100)
        self.tell("not finite", history)
        self.found["warnings"] = len(caught)

        def fail(step, *rest):
            if self.index == 1:
                raise KeyError("ouch")

        for name, callbacks in {
            "exception": [once(3, fail)],
            "callbacks": [StopOnLoss(0.0)] * self.index,
            "settings": [StopOnLoss(0.0), EarlyStopping(5 + self.index)],
        }.items():
            try:
                OptaxOptimizer(linear_loss, optax.sgd(0.1), callbacks).run(linear(across), 10**6)
            except Exception as error:
                self.found[name] = f"{type(error).__name__}: {error}"
        jax.config.update("jax_enable_recoverability", True)
        try:
            OptaxOptimizer(linear_loss, optax.sgd(0.1)).run(linear(across))
        except ValueError as error:
            self.found["recoverability"] = str(error)
        jax.config.update("jax_enable_recoverability", False)

    def told_by_the_first_alone(self):
        path = self.directory / f"{self.index}.csv"
        bar = io.StringIO()
        callbacks = [PrintParameters(10), ProgressBar(file=bar), CSVLogger(path)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            OptaxOptimizer(linear_loss, optax.sgd(0.1), callbacks).run(linear(across), 20)
        self.found["told"] = [bool(printed.getvalue()), bool(bar.getvalue()), path.exists()]

    def batches(self):
        fit = OptaxOptimizer(rows_loss, optax.sgd(0.1))
        state = {"slope": Parameter("slope", across(np.zeros(4, np.float32)))}
        _, history = fit.run(state, 30, batches=Minibatches(sharded_rows(across), 8))
        self.tell("minibatches", history)
        _, history = fit.run(state, 100, batches=blocks(0.01 * self.index))
        self.tell("stream", history)

    def checkpoints(self):
        def terminate(step, *rest):
            if self.index == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        saved = self.directory / "saved"
        fit = network_fit(Checkpoint(saved), once(30, terminate))
        self.tell("SIGTERM", fit.run(network(across, None, "d"), 10**6)[1])
        self.found["saved"] = sorted(int(x.name) for x in saved.iterdir() if x.name.isdigit())
        state, history = fit.run(network(across, None, "d"), 50, resume_from=saved)
        self.tell("resumed", history)
        assert state["layers"][0].value.sharding.spec == PartitionSpec(None, "d")

    def fits_alone(self):
        _, history = OptaxOptimizer(linear_loss, optax.sgd(0.1)).run(linear(), 10 + 10 * self.index)
        self.found["alone"] = history["n_steps"]
        own = self.directory / f"own-{self.index}"
        try:
            OptaxOptimizer(linear_loss, optax.sgd(0.1), Checkpoint(own)).run(linear(), 10)
            self.found["own"] = sorted(x.name for x in own.iterdir())
        except ValueError as error:
            self.found["own"] = str(error)

    def death(self):
        def die(step, *rest):
            if self.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        OptaxOptimizer(linear_loss, optax.sgd(1e-6), once(100, die)).run(linear(across), 10**9)


def alone(directory):
    """One process with two devices."""
    found, put = {}, across
    fit = network_fit(Checkpoint(directory / "saved"))
    for name, spec in {"sharded": (None, "d"), "replicated": ()}.items():
        state, history = fit.run(network(put, *spec), 30)
        assert all(w.value.sharding.spec == PartitionSpec(*spec) for w in state["layers"])
        weights = [np.asarray(w.value).tolist() for w in state["layers"]]
        found[name] = [history["loss"].tolist(), *weights]
    # With rows in parts a step adds up once: loss and gradients together, and nothing for the guards.
    rows = OptaxOptimizer(linear_loss, optax.adam(0.1), [KeepBest(), StopOnLoss(0.0)])
    rows.run(linear(put), 1)
    (programs,) = rows._programs.values()
    constants = rows._problem.constants(flatten(linear(put)))
    carry, _ = programs.start(constants)
    text = programs.advance.lower(carry, constants, np.array([0, 1], np.int32)).compile().as_text()
    found["all-reduce"] = len(re.findall(r" (all|collective)-[a-z]+\(", text))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: name.endswith("backend_compile_duration") and compiled.append(name)
    )
    fit.run(network(put, None, "d"), 30)
    found["compilations"] = len(compiled)
    state, _ = fit.run(network(put, None, "d"), 40, resume_from=directory / "saved")
    assert state["layers"][1].value.sharding.spec == PartitionSpec(None, "d")
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.device_put(X, NamedSharding(mesh, PartitionSpec("d")))
    try:
        OptaxOptimizer(linear_loss, optax.sgd(0.1)).run({**linear(), "x": rows})
    except ValueError as error:
        found["explicit"] = str(error)
    (directory / "found.json").write_text(json.dumps(found))


def end_with(parent):
    """Leave nothing behind where the tests have been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(index, address, directory):
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    jax.distributed.initialize(address, 2, index, heartbeat_timeout_seconds=8)
    if index == 1:
        os.nice(5)
    child = Child(index, directory)
    child.many_fits_in_a_row()
    child.networks()
    child.decisions()
    child.faults()
    child.told_by_the_first_alone()
    child.batches()
    child.checkpoints()
    child.fits_alone()
    (child.directory / f"{index}.json").write_text(json.dumps(child.found))
    child.death()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        alone(Path(sys.argv[1]))
    else:
        main(int(sys.argv[1]), *sys.argv[2:])
