"""Measure, and print a markdown table: `python -m benchmarks [--quick] [--only NAME ...]`."""

import argparse
import os
import sys
import time

# Children measure on the same device: none of the processes may take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from . import (
    batches,
    bounds,
    callbacks,
    engine,
    implicit,
    large,
    least_squares,
    many,
    memory,
    optimizers,
    peers,
    scalar,
    sizes,
)
from .machine import describe
from .table import markdown
from .timing import FULL, QUICK

GROUPS = {
    **engine.GROUPS,
    **sizes.GROUPS,
    **callbacks.GROUPS,
    **least_squares.GROUPS,
    **bounds.GROUPS,
    **scalar.GROUPS,
    **large.GROUPS,
    **optimizers.GROUPS,
    **implicit.GROUPS,
    **many.GROUPS,
    **batches.GROUPS,
    "memory": memory.ten_million,
    "peers": peers.compare,
}

_LEGEND = (
    "Medians over rounds in which all that is compared runs in turn; in brackets the least. "
    "A ratio is the median of the rounds' ratios."
)


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen groups, one after the other, and print their rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=GROUPS, help=", ".join(GROUPS))
    options = parser.parse_args(arguments)
    rows = []
    for name in options.only or GROUPS:
        began = time.perf_counter()
        rows += GROUPS[name](QUICK if options.quick else FULL)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(markdown(rows))
    print(f"\n{_LEGEND}\n\n{describe()}")


if __name__ == "__main__":
    main()
