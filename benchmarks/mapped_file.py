"""Stream a file that is as large as memory: `python -m benchmarks.mapped_file MB` prints JSON."""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optax

from fitopt import OptaxOptimizer, Parameter

_ROWS = 2**12  # of a batch, of 64 numbers: 1 MB


def private_memory() -> float:
    """Resident MB of the process that are not pages of a file, which the system takes back at will."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(megabytes: int) -> None:
    """Write the file, fit the mean of its columns, and tell by how much the memory has grown."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        random = np.random.default_rng(0)
        for _ in range(megabytes):
            file.write(random.normal(size=(_ROWS, 64)).astype(np.float32).tobytes())
        file.flush()

        def batches(count: int) -> Iterator[np.ndarray]:
            rows = np.memmap(file.name, np.float32, "r").reshape(-1, 64)
            for i in range(count):
                yield rows[i * _ROWS : (i + 1) * _ROWS]

        optimizer = OptaxOptimizer(lambda s, rows: ((s["mean"] - rows) ** 2).mean(), optax.sgd(1.0))
        state = {"mean": Parameter("mean", np.ones(64, np.float32))}
        optimizer.run(state, megabytes, batches=batches(4))
        before, peak, done = private_memory(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], private_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, history = optimizer.run(state, megabytes, batches=batches(megabytes))
        done.set()
        watcher.join()
        assert history["n_steps"] == megabytes
        print(json.dumps({"grown": max(peak[0] - before, 0.0)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
