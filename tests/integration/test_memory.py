"""Long fits and many fits do not eat memory."""

import gc
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(), reason="reads resident memory from /proc"
)

RESIDENT = """
import os
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
"""

MANY_INSTANCES = (
    RESIDENT
    + """
import gc, jax.numpy as jnp, optax
from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import EarlyStopping

def fit(i):
    data = i + jnp.arange(100_000.0)  # 0.4 MB that each loss closes over
    loss = lambda state: jnp.mean((state["x"] - data) ** 2)
    callbacks = [EarlyStopping(5), lambda *arguments: None]
    OptaxOptimizer(loss, optax.sgd(0.1), callbacks).run({"x": Parameter("x", 0.0)}, 3)

for i in range(30):
    fit(i)
gc.collect()
before = resident()
for i in range(70):
    fit(i)
gc.collect()
print(resident() - before)
"""
)

MANY_STEPS = (
    RESIDENT
    + """
import optax
from fitopt import OptaxOptimizer, Parameter

optimizer = OptaxOptimizer(lambda state: (state["x"] - 1.0) ** 2, optax.sgd(1e-3))
state = {"x": Parameter("x", 0.0)}
optimizer.run(state, 10)
before = resident()
_, history = optimizer.run(state, 3_000_000)
assert history["n_steps"] == 3_000_000
print(resident() - before)
"""
)


def growth(script):
    gc.collect()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def test_a_hundred_instances_with_fresh_closures_leave_memory_flat():
    assert growth(MANY_INSTANCES) < 10  # MB; their data alone would be 28


def test_a_long_fit_needs_memory_for_its_losses_alone():
    assert growth(MANY_STEPS) < 3 * 12  # MB; the losses are 12, and twice that while they grow
