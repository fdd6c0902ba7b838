"""`Running`: what host callbacks may ask of many fits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..callback import RunningFits
from .collector import Collector
from .machine import Machine
from .saved import Descriptions, Saved, Saver, holds_fits


class Running(RunningFits):
    """Many fits under way."""

    def __init__(
        self,
        machine: Machine,
        collector: Collector,
        resumed_from: Path | None,
        describe: Callable[[], Descriptions],
    ):
        self.total = len(collector.done)
        self._machine = machine
        self._collector = collector
        self._resumed_from = resumed_from
        self._describe = describe
        self._described: Descriptions | None = None
        self._savers: dict[Path, Saver] = {}
        self._earlier = 0, np.zeros(self.total, bool)  # parts that were there, and fits in them
        self._requested: str | None = None

    @property
    def done(self) -> int:
        return int(np.sum(self._collector.done))

    @property
    def best_loss(self) -> float:
        return self._collector.best_loss

    @property
    def described(self) -> Descriptions:
        """What these fits are."""
        if self._described is None:
            self._described = self._describe()
        return self._described

    def take_up(self, earlier: Saved) -> None:
        """Go on with earlier fits."""
        earlier.check(self.described)
        for part in earlier.parts:
            self._collector.put(part, self._machine.finishing_carries)
        if self._machine.restore(earlier.machine):
            self._collector.pieces.update(earlier.pieces)
        else:
            self._machine.skip(self._collector.done)
        self._collector.began -= earlier.elapsed
        self._earlier = len(earlier.parts), self._collector.done.copy()

    def save(self, directory: Path, may_replace: bool = False) -> None:
        if directory not in self._savers:
            resumed = self._resumed_from is not None and directory == self._resumed_from
            if holds_fits(directory) and not (may_replace or resumed):
                raise FileExistsError(
                    f"Checkpoint: {directory} holds the checkpoints of other fits; go on with them by "
                    "run_many(..., resume_from=...), or use another directory"
                )
            nothing = 0, np.zeros(self.total, bool)
            self._savers[directory] = Saver(
                directory, self.described, *(self._earlier if resumed else nothing)
            )
        if self._collector.interrupted is None:  # what is ended early is to be resumed
            self._savers[directory].save(self._machine, self._collector)

    def stop(self, reason: str) -> None:
        self._requested = self._requested or reason

    def end_if_asked(self) -> None:
        """End all fits, if that was requested."""
        if self._requested is not None and self._collector.interrupted is None:
            for saver in self._savers.values():
                saver.save(self._machine, self._collector)
            self._collector.interrupted = self._requested
            self._machine.close()
