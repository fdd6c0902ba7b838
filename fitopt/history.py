"""What a fit leaves behind besides the fitted state."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

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

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._every: dict[str, int] = {}

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

    def __repr__(self) -> str:
        if "n_steps" not in self or not isinstance(self["n_steps"], int):
            return f"History({', '.join(repr(name) for name in self)})"
        lines = [
            f"History of {self['n_steps']} steps in {self.get('elapsed', 0.0):.3g} s: "
            f"{self.get('stop_reason', '')}",
            f"  final loss {self['final_loss']:.6g}, "
            f"best {self['best_loss']:.6g} at step {self['best_step']}",
        ]
        if self._every:
            lines.append(f"  recorded: {', '.join(self._every)}")
        return "\n".join(lines)


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
