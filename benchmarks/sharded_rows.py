"""A network fitted to rows in several processes: `python -m benchmarks.sharded_rows COUNT STEPS`.

Each process has one device with one thread and rows of its own. It prints the seconds of a warm fit, how
much of them its processor was busy, and those of one round of the agreement, as JSON.
"""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

ROWS = 8_000  # of each process


def child(steps: int, address: str, count: int, index: int) -> None:
    """One of the processes."""
    import jax
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    if count > 1:
        jax.distributed.initialize(address, count, index)

    import fitopt
    from fitopt.engine.agreement import Agreement, SharedAgreement

    from .batches import loss, network

    random = np.random.default_rng(index)
    x = random.normal(size=(ROWS, 64)).astype(np.float32)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    put = lambda x: jax.make_array_from_process_local_data(rows, x)
    state = {"layers": fitopt.trainable(network()), "x": put(x), "y": put(np.tanh(x[:, :1]))}
    of_state = lambda state: loss(state["layers"], (state["x"], state["y"]))
    optimizer = fitopt.OptaxOptimizer(of_state, optax.adam(1e-3))
    optimizer.run(state, 1)
    began, busy = time.perf_counter(), time.process_time()
    optimizer.run(state, steps)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    agreement: Any = SharedAgreement(range(count)) if count > 1 else Agreement()
    began = time.perf_counter()
    for _ in range(100):
        agreement.next_chunk(None, 1)
    each = (time.perf_counter() - began) / 100
    print(json.dumps({"seconds": seconds, "busy": busy, "agreement": each}))


def main(count: int, steps: int) -> None:
    """Measure, and print one line of JSON."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "benchmarks.sharded_rows", str(steps), address, str(count)]
    running = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, env=environment, text=True)
        for i in range(count)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    print(json.dumps({name: max(one[name] for one in found) for name in found[0]}))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        child(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]))
