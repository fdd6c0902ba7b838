"""What a fit leaves behind besides the fitted state."""

import os
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Int, PyTree

from .storage import npz as archive
from .table import columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

RESERVED = ("loss", "n_steps", "final_loss", "best_loss", "best_step", "stop_reason", "elapsed")


class History(dict):
    """The record of a fit: a `dict` of NumPy arrays and plain Python values.

    - `"loss"`: the loss of each step, before its update; shape `(n_steps,)`
    - `"n_steps"`: how many steps were made
    - `"final_loss"`: the loss of the returned state
    - `"best_loss"`, `"best_step"`: the least of the losses, and the step that had it
    - `"stop_reason"`: a sentence
    - `"elapsed"`: seconds, compilation included

    and what callbacks record: an array or a pytree of arrays with a leading axis of records.

    A fit inside `jit`, `vmap` or `grad` has traced arrays of fixed length, padded with NaN after the
    stop (integers with zeros), and neither `"stop_reason"` nor `"elapsed"`.
    """

    _start: PyTree = None  # the state in which the fit began: names, bounds and first values
    _resume_point: Any = None  # where the fit has ended, for `run(resume_from=history)`

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._every: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:  # what copies and pickles take besides the items
        return {"_every": dict(self._every)}

    def steps(self, name: str) -> Int[np.ndarray, " records"]:
        """The steps at which series `name` was recorded.

        **Raises:** `KeyError` if there is no such series.

        >>> history = History(loss=np.zeros(3))
        >>> history.steps("loss")
        array([0, 1, 2])
        """
        if name != "loss" and name not in self._every:
            known = ", ".join(map(repr, ["loss", *self._every]))
            raise KeyError(f"no series {name!r} was recorded; there are {known}")
        records = jax.tree.leaves(self[name])[0].shape[0]
        return np.arange(records) * self._every.get(name, 1)

    def _series(self) -> dict[str, int]:
        """The names of the series, each with the number of steps from one record to the next."""
        return {name: every for name, every in {"loss": 1, **self._every}.items() if name in self}

    def to_dataframe(self) -> "DataFrame":
        """The series as a pandas DataFrame with a row for each step.

        The columns are the loss and all that was recorded of numbers and of arrays with up to eight
        entries, named such as `learning_rate`, `parameters/rate`, `parameters/weight[0,1]` and, where
        numbers are complex, `parameters/z.real`. A series holds NaN where it was not recorded.

        **Raises:** `ImportError` without pandas; `ValueError` for the history of several fits, from
        `vmap`.

        >>> frame = History(loss=np.array([4.0, 2.0, 1.0])).to_dataframe()
        >>> frame["loss"].idxmin()
        2
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError('to_dataframe needs pandas: pip install "fitopt[pandas]"') from error
        found = columns(self)
        rows = max((column.every * (len(column.values) - 1) + 1 for column in found.values()), default=0)
        index = pandas.RangeIndex(max(rows, 0), name="step")
        series = {
            name: pandas.Series(values, np.arange(len(values)) * every).reindex(index)
            for name, (every, values) in found.items()
        }
        return pandas.DataFrame(series, index)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one `.npz` file, without pickle; `History.load` reads it.

        A file of that name is replaced when all of the new one is on the disk. `numpy.load` reads the
        arrays too, as `"loss"`, `"parameters/rate"` and so on.

        Dicts, lists, tuples and named tuples stay what they are; other nodes of a pytree, such as
        Equinox modules, become dicts, and JAX arrays NumPy arrays.

        **Raises:** `TypeError` for what is neither an array, a number nor a string; `OSError`.

        >>> import tempfile
        >>> history = History(loss=np.array([4.0, 2.0, 1.0]), n_steps=3)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     history.save(f"{directory}/fit.npz")
        ...     loaded = History.load(f"{directory}/fit.npz")
        >>> loaded["loss"], loaded["n_steps"]
        (array([4., 2., 1.]), 3)
        """
        archive.write(path, self, self._every)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The history that `save` has written to a file.

        **Raises:** `ValueError` if the file is another one, or damaged.
        """
        items, every = archive.read(path)
        history = cls(items)
        history._every = every
        return history

    def plot(self, *names: str, ax: "Axes | None" = None, log: bool | None = None) -> "Axes":
        """Draw the loss, or the series of these names: see `fitopt.plotting.plot_history`."""
        from .plotting.histories import plot_history  # which knows histories

        return plot_history(self, *names, ax=ax, log=log)

    def __repr__(self) -> str:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(self))):
            return f"History({', '.join(map(repr, self))})"
        recorded = [
            name if every == 1 else f"{name} (every {every})"
            for name, every in self._series().items()
            if name != "loss"
        ]
        lines = self._summary() + ([f"  recorded: {', '.join(recorded)}"] if recorded else [])
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        if "n_steps" not in self:
            losses = np.asarray(self.get("loss", ()))
            last = f", the last loss {losses[-1]:.6g}" if losses.ndim == 1 and len(losses) else ""
            return [f"History of a fit under way: {len(losses)} steps{last}"]
        steps = np.asarray(self["n_steps"])
        if steps.ndim:  # from vmap
            return [f"History of {steps.size} fits, of {steps.min()} to {steps.max()} steps"]
        line = f"History of {steps} steps"
        line += f" in {self['elapsed']:.3g} s" if "elapsed" in self else ""
        line += f": {self['stop_reason']}" if "stop_reason" in self else ""
        if not {"final_loss", "best_loss", "best_step"} <= set(self):
            return [line]
        final, best = (float(np.asarray(self[name])) for name in ("final_loss", "best_loss"))
        return [line, f"  final loss {final:.6g}, best {best:.6g} at step {self['best_step']}"]


def _flatten(history: History) -> tuple[tuple[Any, ...], Any]:
    names = tuple(history)
    return tuple(history[name] for name in names), (names, tuple(history._every.items()))


def _unflatten(static: Any, children: Any) -> History:
    names, every = static
    history = History(zip(names, children, strict=True))
    history._every = dict(every)
    return history


def _flatten_with_keys(history: History) -> Any:
    children, static = _flatten(history)
    return [*zip(map(jax.tree_util.DictKey, static[0]), children, strict=True)], static


jax.tree_util.register_pytree_with_keys(History, _flatten_with_keys, _unflatten, _flatten)


class Series:
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
