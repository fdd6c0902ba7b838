"""`Running`: what host callbacks may ask of many fits."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from ..callback import RunningFits
from .collector import Collector
from .machine import Machine
from .processes import Processes
from .saved import Descriptions, Saved, Saver, holds_fits


class Running(RunningFits):
    """Many fits under way."""

    def __init__(
        self,
        machine: Machine,
        collector: Collector,
        share: Int[np.ndarray, " share"],
        processes: Processes,
        described: Callable[[], Descriptions],
    ):
        self.total = len(share)
        self._machine = machine
        self._collector = collector
        self._share = share
        self._processes = processes
        self._described = functools.cache(described)
        self._earlier: tuple[Path, int, Bool[np.ndarray, " fits"]] | None = None
        self._savers: dict[Path, Saver] = {}
        self._requested: str | None = None

    @property
    def done(self) -> int:
        return int(np.sum(self._collector.done[self._share]))

    @property
    def best_loss(self) -> float:
        return self._collector.best_loss

    def take_up(self, directory: Path, earlier: Saved) -> None:
        """Go on with what this process has saved in a directory."""
        take_ended(self._collector, self._machine, earlier, self._described())
        self._earlier = directory, len(earlier.parts), self._collector.done.copy()
        if self._machine.restore(earlier.machine):
            self._collector.pieces.update(earlier.pieces)
        else:
            self._machine.skip(self._collector.done)
        self._collector.began -= earlier.elapsed

    def save(self, directory: Path, may_replace: bool = False) -> None:
        own = self._processes.own_directory(directory)
        if own not in self._savers:
            parts, written = 0, np.zeros_like(self._collector.done)
            if self._earlier is not None and self._earlier[0] == own:
                _, parts, written = self._earlier
            elif holds_fits(own) and not may_replace:
                raise FileExistsError(
                    f"Checkpoint: {own} holds the checkpoints of other fits; go on with them by "
                    "run_many(..., resume_from=...), or use another directory"
                )
            self._savers[own] = Saver(own, self._described(), parts, written)
        if self._collector.interrupted is None:  # what is ended early is to be resumed
            self._savers[own].save(self._machine, self._collector)

    def stop(self, reason: str) -> None:
        self._requested = self._requested or reason

    def end_if_asked(self) -> None:
        """End all fits, if that was requested."""
        if self._requested is not None and self._collector.interrupted is None:
            for saver in self._savers.values():
                saver.save(self._machine, self._collector)
            self._collector.interrupted = self._requested
            self._machine.close()


def take_ended(collector: Collector, machine: Machine, earlier: Saved, described: Descriptions) -> None:
    """Take the fits that have ended earlier, which must be such fits."""
    earlier.check(described)
    for part in earlier.parts:
        collector.put(part, machine.finishing_carries)
