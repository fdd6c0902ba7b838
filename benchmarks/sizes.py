"""What fitopt adds to a hand-written scan, by how many parameters there are and in how many leaves.

`python -m benchmarks.sizes {bare,fitopt} STEPS` prints the most memory that ten million take, as JSON.
"""

import json
import sys
from collections.abc import Callable, Sequence

import jax

from .engine import GUARDED, PLAIN, beside_bare, fit
from .memory import peak
from .problems import bare_scan, named_scalars, network, vector
from .subprocesses import measure
from .table import Row
from .timing import Effort


def scalars(effort: Effort) -> list[Row]:
    """Named numbers, as scientists write them."""
    rows = []
    for count, steps, limits in (
        (10, 200_000, {GUARDED: 3, PLAIN: 1.5}),
        (30, 20_000, {GUARDED: 0.7, PLAIN: 0.7}),
        (100, 10_000, {GUARDED: 0.5, PLAIN: 0.5}),
        (300, 4_000, {GUARDED: 0.4, PLAIN: 0.4}),
    ):
        problem = named_scalars(count, effort.steps(steps))
        rows += beside_bare(f"{count} named scalars, sum of squares", problem, effort.times(2), limits)
    return rows


def vectors(effort: Effort) -> list[Row]:
    """One array."""
    rows = []
    for exponent, steps, limits in (
        (3, 50_000, {GUARDED: 1.2, PLAIN: 1.1}),
        (5, 2_000, {GUARDED: 0.8, PLAIN: 0.7}),
        (6, 300, {GUARDED: 0.8, PLAIN: 0.7}),
        (7, 60, {GUARDED: 1.1, PLAIN: 1.0}),
    ):
        problem = vector(10**exponent // effort.shrink + 1, effort.steps(steps))
        title = f"a vector of 10^{exponent}, sum of squares"
        rows += beside_bare(title, problem, effort.times(2), limits)
    return rows


def networks(effort: Effort) -> list[Row]:
    """Arrays of several sizes."""
    problem, limits = network(effort.steps(500)), {GUARDED: 1.03, PLAIN: 1.02}
    return beside_bare("network 64-256-256-1, 512 rows", problem, effort.times(2), limits)


def memory(effort: Effort) -> list[Row]:
    """What ten million parameters take, each in a process of its own."""
    steps = str(effort.steps(60))
    bare, ours = (measure("benchmarks.sizes", kind, steps)["bytes"] / 1e6 for kind in ("bare", "fitopt"))
    carry = 3 * 4 * 10  # MB: the parameters, and two arrays of adam's
    measured = "a vector of 10^7: most resident memory above the start, MB"
    return [
        Row("bare jit(lax.scan)", measured, f"{bare:.0f}", 1.0),
        Row(GUARDED, measured, f"{ours:.0f}", ours / bare, "≤ bare + 240", ours <= bare + 2 * carry),
    ]


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "scalars": scalars,
    "vectors": vectors,
    "network": networks,
    "vector-memory": memory,
}


def main(kind: str, steps: int) -> None:
    """Fit ten million parameters, and print by how much the peak grew."""
    problem = vector(10**7, steps)
    jax.block_until_ready(problem.params)
    before = peak()
    {"bare": bare_scan, "fitopt": fit}[kind](problem)()
    print(json.dumps({"bytes": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
