"""The history of a fit while it runs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..callback import Callback
from ..history import RESERVED, History, Series
from .resume import cut


class Journal:
    """Writes what stretches and host callbacks record into a history.

    `resumed`: the series that an earlier fit has not recorded cannot begin now.
    """

    def __init__(self, history: History, callbacks: Sequence[Callback], max_steps: int):
        self.history = history
        self.callbacks = callbacks
        self.max_steps = max_steps
        self.steps = 0  # that have been written
        self.resumed = False
        self.series: dict[str, Series] = {"loss": Series(max_steps)}
        history["loss"] = np.zeros(0)

    def take_up(self, earlier: History, steps: int) -> None:
        """Begin with the first steps of an earlier fit."""
        self.history._every = dict(earlier._every)
        for name, item in cut(earlier, steps).items():
            every = earlier._series().get(name)
            if every is not None:
                self.series[name] = Series(_count(self.max_steps, every))
                self.series[name].extend(item, _count(steps, every))
                self.history[name] = self.series[name].view()
            elif name not in RESERVED:
                self.history[name] = item
        self.steps, self.resumed = steps, True

    def append(self, losses: np.ndarray, records: Sequence[Any], steps: int) -> None:
        """Write some steps: their losses, and what each traced callback has recorded."""
        self.series["loss"].extend(losses, steps)
        before, self.steps = self.steps, self.steps + steps
        for callback, record in zip(self.callbacks, records, strict=True):
            for name, chunk in (record or {}).items():
                count = _count(self.steps, callback.every) - _count(before, callback.every)
                self._series(name, callback.every).extend(chunk, count)
        for name, series in self.series.items():
            self.history[name] = series.view()

    def record(self, name: str, value: PyTree, every: int) -> None:
        """Write what a host callback has recorded of the last step."""
        if name in RESERVED or self.history._every.get(name, every) != every:
            raise ValueError(f"cannot record {name!r} at every {every} steps: it is another series")
        series = self._series(name, every)
        series.extend(jax.tree.map(lambda x: np.asarray(x)[None], value), 1)
        self.history[name] = series.view()

    def _series(self, name: str, every: int) -> Series:
        if name not in self.series:
            if self.resumed:
                raise ValueError(f"cannot resume: the fit to go on with has not recorded {name!r}")
            self.series[name] = Series(_count(self.max_steps, every))
            self.history._every[name] = every
        return self.series[name]


def _count(steps: int, every: int) -> int:
    """How many records the first steps make."""
    return -(-steps // every)
