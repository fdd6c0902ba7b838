"""Timing things side by side."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Effort(NamedTuple):
    """How hard to measure: up to `rounds` repetitions, but no new one after `seconds`."""

    rounds: int
    seconds: float
    shrink: int = 1  # step counts are divided by this

    def steps(self, number: int) -> int:
        return max(1, number // self.shrink)

    def times(self, factor: float) -> "Effort":
        """The same in other proportions: short things are worth more rounds."""
        return self._replace(rounds=max(1, round(self.rounds * factor)))


FULL = Effort(rounds=31, seconds=15.0)
QUICK = Effort(rounds=5, seconds=4.0)


class Timings(NamedTuple):
    """Seconds of each round, by name; round i of one ran right before or after round i of another."""

    seconds: dict[str, np.ndarray]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def least(self, name: str) -> float:
        return float(np.min(self.seconds[name]))

    def ratio(self, name: str, baseline: str) -> float:
        """The median of the ratios of each round."""
        return float(np.median(self.seconds[name] / self.seconds[baseline]))

    def difference(self, name: str, baseline: str) -> float:
        """The median of the differences of each round."""
        return float(np.median(self.seconds[name] - self.seconds[baseline]))


def interleave(functions: Mapping[str, Callable[[], Any]], effort: Effort, warm: int = 2) -> Timings:
    """Call the functions in turn, A B C A B C, so that what else the machine does hits all alike.

    Each must return only when its result is there. Before that each is called `warm` times: the
    first call compiles, and the second may still learn how long a step takes.
    """
    for _ in range(warm):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    until = time.perf_counter() + effort.seconds
    for number in range(effort.rounds):
        if number and time.perf_counter() > until:
            break
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return Timings({name: np.array(values) for name, values in seconds.items()})
