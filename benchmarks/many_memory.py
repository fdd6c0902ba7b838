"""Memory of very many fits: `python -m benchmarks.many_memory SETS` prints its bytes as JSON."""

import json
import sys
import time

from fitopt import LeastSquares, vary

from .many import data, residuals, state
from .memory import peak


def main(sets: int) -> None:
    """Fit as many data sets, and print the peak before and after."""
    optimizer, states = LeastSquares(residuals), vary(state(), {"y": data(sets)})
    start, began = peak(), time.perf_counter()
    fits = optimizer.run_many(states)
    seconds = time.perf_counter() - began
    if not fits.converged.mean() > 0.99:
        raise RuntimeError(f"the fits have not converged:\n{fits}")
    print(json.dumps({"start": start, "peak": peak(), "seconds": seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
