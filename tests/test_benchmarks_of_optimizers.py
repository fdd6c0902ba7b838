"""The benchmarks of optimizers: that both sides of each ratio do the same."""

import jax
import numpy as np
import optax
import pytest

from benchmarks import optimizers as measured
from benchmarks.timing import Effort
from fitopt import optimizers

from .conftest import close
from .test_optimizers import NAMES

TINY = Effort(rounds=1, seconds=0.0, shrink=2_000)


def test_every_named_optimizer_that_optax_has_is_measured():
    assert set(measured.PAIRS) == set(NAMES) - {"lookahead"}
    assert set(NAMES) <= set(optimizers.__all__)


@pytest.mark.parametrize("name", [name for name in measured.PAIRS if name not in ("lbfgs", "rprop")])
def test_a_named_optimizer_is_measured_beside_the_same_updates(name):
    params = {"w": np.array([0.5, -1.5], np.float32)}
    grads = {"w": np.array([0.2, 3.0], np.float32)}

    def second_update(optimizer):
        _, state = optimizer.update(grads, optimizer.init(params), params)
        return optimizer.update(grads, state, params)[0]

    ours, theirs = (jax.jit(second_update, static_argnums=0)(tx) for tx in measured.PAIRS[name])
    close(ours, theirs, rtol=1e-3)


def test_the_median_and_the_slowest_are_shown(monkeypatch):
    pairs = {name: measured.PAIRS[name] for name in ("sgd", "lion")}
    monkeypatch.setattr(measured, "PAIRS", pairs)
    median, slowest = measured.named_optimizers(TINY)
    assert median.name.startswith("fitopt.optimizers, the median of 2: ")
    assert slowest.target == "≤ 1.05x optax" and slowest.met == (slowest.ratio <= 1.05)


def by_hand(task, steps):
    params, state = task.params, optax.adam(1e-3).init(task.params)
    for _ in range(steps):
        updates, state = optax.adam(1e-3).update(jax.grad(task.loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("way", ["jitted", "eager", "whole"])
def test_the_loops_of_fitopt_are_those_by_hand(way):
    task = measured.network()
    close(measured.fitopt_loops(task, 3)[way](), by_hand(task, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["jitted", "eager", "whole"])
def test_the_loops_of_braintools_are_those_by_hand(way):
    pytest.importorskip("braintools")
    task = measured.network()
    expected = jax.tree.leaves(by_hand(task, 3))
    close(measured.braintools_loops(task, 3)[way](), expected, rtol=1e-4, atol=1e-6)


def test_without_braintools_the_table_says_so(monkeypatch):
    def missing(task, steps):
        raise ModuleNotFoundError("No module named 'braintools'")

    monkeypatch.setattr(measured, "braintools_loops", missing)
    (row,) = measured.beside_braintools(TINY)
    assert row.figure == "cannot be measured: No module named 'braintools'" and row.met is None
