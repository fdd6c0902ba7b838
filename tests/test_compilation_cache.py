"""Programs that a process has compiled are those that the next one needs."""

import os
import subprocess
import sys

FIT = """
import jax.numpy as jnp
from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import EarlyStopping, KeepBest, RecordParameters

state = {f"p{i}": Parameter(0.1 * i, lower=-5.0) for i in range(4)} | {"v": Parameter(jnp.ones(3))}
loss = lambda s: sum(jnp.sum((x - 1.0) ** 2) for x in s.values())
callbacks = [EarlyStopping(100), KeepBest(), RecordParameters(every=10)]
fitted, history = OptaxOptimizer(loss, optimizers.adam(0.1), callbacks).run(state, 40)
print(history["final_loss"])
"""


def test_a_second_process_adds_nothing_to_the_compilation_cache(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONHASHSEED": "random",
    }
    losses, programs = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIT], env=environment, capture_output=True, check=True
        )
        losses.append(done.stdout)
        programs.append({path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")})
    assert programs[0]
    assert programs[1] == programs[0]
    assert losses[1] == losses[0]
