"""Many fits in one process with two devices, or in four: `python -m benchmarks.many_processes N KIND`.

It prints the seconds of a warm `run_many` as JSON.
"""

import json
import os
import socket
import subprocess
import sys
import time

_COUNT = 4


def fit(n: int) -> float:
    """Seconds of the second of two equal calls."""
    from fitopt import starts

    from .many import adam, state

    optimizer, states = adam(), starts(state(), n)
    optimizer.run_many(states, 2_000)
    began = time.perf_counter()
    optimizer.run_many(states, 2_000)
    return time.perf_counter() - began


def child(n: int, address: str, index: int) -> None:
    """One of four processes."""
    import jax

    jax.distributed.initialize(address, _COUNT, index)
    print(json.dumps({"seconds": fit(n)}))


def main(n: int, kind: str) -> None:
    """Measure, and print one line of JSON."""
    if kind == "devices":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        print(json.dumps({"seconds": fit(n)}))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.many_processes", str(n), address]
    running = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(_COUNT)
    ]
    lines = [process.communicate()[0].splitlines()[-1] for process in running]
    print(json.dumps({"seconds": max(json.loads(line)["seconds"] for line in lines)}))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        child(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        main(int(sys.argv[1]), sys.argv[2])
