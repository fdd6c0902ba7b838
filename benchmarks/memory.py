"""Memory of a very long fit: `python -m benchmarks.memory STEPS` prints its bytes as JSON."""

import json
import resource
import sys
from pathlib import Path

import jax.numpy as jnp
import optax

from fitopt import OptaxOptimizer, Parameter

from .engine import PLAIN
from .subprocesses import measure
from .table import Row
from .timing import Effort


def ten_million(effort: Effort) -> list[Row]:
    """Ten million steps of a trivial loss, their history included, in a new process."""
    steps = effort.steps(10_000_000)
    found = measure("benchmarks.memory", str(steps))
    above = (found["peak"] - found["start"]) / 1e6
    measured = f"{steps:,} steps of a trivial loss: most resident memory above the start, MB"
    return [Row(PLAIN, measured, f"{above:.0f}", None, "< 300 MB", above < 300)]


def peak() -> int:
    """The most resident memory that this process has had so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        # Elsewhere the kernel counts in bytes; a parent's memory does not count there.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(steps: int) -> None:
    """Fit, and print the peak before and after."""
    optimizer = OptaxOptimizer(lambda state: (state["x"] - 1.0) ** 2, optax.sgd(1e-6))
    state = {"x": Parameter("x", jnp.zeros(()))}
    start = peak()
    _, history = optimizer.run(state, max_steps=steps)
    if len(history["loss"]) != steps:
        raise RuntimeError(f"the fit ended after {len(history['loss'])} of {steps} steps")
    print(json.dumps({"start": start, "peak": peak()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
