"""A first call: `python -m benchmarks.first_call {bare,fitopt} STEPS COUNT` prints its seconds as JSON.

The problem is that of COUNT named scalars; with three it is the exponential.
"""

import json
import sys
import time

import jax

from .engine import fit
from .problems import bare_scan, exponential, named_scalars


def main(kind: str, steps: int, scalars: int) -> None:
    """Time one call; that the device is up and its data are there does not count."""
    problem = exponential(steps) if scalars == 3 else named_scalars(scalars, steps)
    jax.block_until_ready((problem.params, problem.data))
    began = time.perf_counter()
    {"bare": bare_scan, "fitopt": fit}[kind](problem)()
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
