"""The only writer of a history: while a fit runs, and when it ends."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..callback import Callback
from ..history import RESERVED, History, ResumePoint
from ..methods.method import StopReason
from ..state import PyTree


class HistoryWriter:
    """Writes what chunks and host callbacks record, and how the fit has ended.

    Of a fit that goes on with an earlier one, series that this has not recorded cannot begin now.
    """

    def __init__(self, start: PyTree, callbacks: Sequence[Callback], max_steps: int):
        self.history: History = History(loss=np.zeros(0))
        self.history.start = start
        self._callbacks = callbacks
        self._max_steps = max_steps
        self._steps = 0  # that have been written
        self._resumed = False
        self._series = {"loss": _Series(max_steps)}

    def take_up(self, earlier: History, steps: int) -> None:
        """Begin with the first steps of an earlier fit."""
        self.history.every = dict(earlier.every)
        for name, item in cut(earlier, steps).items():
            every = earlier.series().get(name)
            if every is not None:
                self._series[name] = _Series(_count(self._max_steps, every))
                self._series[name].extend(item, _count(steps, every))
                self.history[name] = self._series[name].view()
            elif name not in RESERVED:
                self.history[name] = item
        self._steps, self._resumed = steps, True

    def append(
        self, losses: np.ndarray, records: Sequence[Any], steps: int, epochs: np.ndarray | None = None
    ) -> None:
        """Write some steps: their losses, epochs if any, and what each traced callback has recorded."""
        self._series["loss"].extend(losses, steps)
        if epochs is not None:
            self._series_of("epoch", 1).extend(epochs, steps)
        before, self._steps = self._steps, self._steps + steps
        for callback, record in zip(self._callbacks, records, strict=True):
            for name, chunk in (record or {}).items():
                count = _count(self._steps, callback.every) - _count(before, callback.every)
                self._series_of(name, callback.every).extend(chunk, count)
        for name, series in self._series.items():
            self.history[name] = series.view()

    def record(self, name: str, value: PyTree, every: int) -> None:
        """Write what a host callback has recorded of the last step."""
        if name in RESERVED or self.history.every.get(name, every) != every:
            raise ValueError(f"cannot record {name!r} at every {every} steps: it is another series")
        series = self._series_of(name, every)
        series.extend(jax.tree.map(lambda x: np.asarray(x)[None], value), 1)
        self.history[name] = series.view()

    def _series_of(self, name: str, every: int) -> "_Series":
        if name not in self._series:
            if self._resumed:
                raise ValueError(f"cannot resume: the fit to go on with has not recorded {name!r}")
            self._series[name] = _Series(_count(self._max_steps, every))
            self.history.every[name] = every
        return self._series[name]

    def end(
        self, steps: int, final_loss: float, reason: StopReason, elapsed: float, point: ResumePoint
    ) -> None:
        """Sum up a fit that has ended."""
        losses = self.history["loss"]
        best = int(np.argmin(losses)) if steps else 0
        self.history.update(
            n_steps=steps,
            final_loss=final_loss,
            best_loss=float(losses[best]) if steps else final_loss,
            best_step=best,
            stop_reason=reason.sentence,
            converged=reason.converged,
            elapsed=elapsed,
        )
        self.history.resume_point = point

    def break_off(self, steps: int, reason: str, elapsed: float, point: ResumePoint) -> None:
        """Keep what there is of a fit that an exception has ended."""
        self.history.update(cut(self.history, steps))
        self.history.update(n_steps=steps, stop_reason=reason, converged=False, elapsed=elapsed)
        self.history.resume_point = point


def cut(history: History, steps: int) -> dict[str, Any]:
    """The items of a history with the records of the first steps alone."""
    series = history.series()
    return {
        name: jax.tree.map(lambda x, n=series[name]: np.asarray(x)[: _count(steps, n)], item)
        if name in series
        else item
        for name, item in history.items()
    }


def _count(steps: int, every: int) -> int:
    """How many records the first steps make."""
    return -(-steps // every)


class _Series:
    """A pytree of arrays that grow along their first axis, chunk by chunk."""

    def __init__(self, most: int):
        self._most = most  # never more records than this
        self._length = 0
        self._buffers: list[np.ndarray] = []
        self._treedef: Any = None

    def extend(self, chunk: PyTree, count: int) -> None:
        """Append the first `count` records of a chunk."""
        if isinstance(chunk, np.ndarray):
            leaves = [chunk]
        else:
            leaves, self._treedef = jax.tree.flatten(chunk)
            leaves = [np.asarray(leaf) for leaf in leaves]
        if not self._buffers:
            self._buffers = [np.empty((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        length = self._length + count
        for i, leaf in enumerate(leaves):
            if length > len(self._buffers[i]):
                room = max(min(2 * length, self._most), length)
                larger = np.empty((room, *leaf.shape[1:]), leaf.dtype)
                larger[: self._length] = self._buffers[i][: self._length]
                self._buffers[i] = larger
            self._buffers[i][self._length : length] = leaf[:count]
        self._length = length

    def view(self) -> PyTree:
        """All records so far, without a copy."""
        records = [buffer[: self._length] for buffer in self._buffers]
        return records[0] if self._treedef is None else jax.tree.unflatten(self._treedef, records)
