"""The series of a history as the columns of a table."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Shaped

if TYPE_CHECKING:
    from .history import History

_FEW = 8  # entries of an array that get a column each


class Column(NamedTuple):
    """One number at every `every`-th step."""

    every: int
    values: Shaped[np.ndarray, " records"]

    def cells(self, steps: Int[np.ndarray, " rows"]) -> list[Any]:
        """The plain numbers at some steps; None where there was no record."""
        records, rest = np.divmod(steps, self.every)
        there = (rest == 0) & (records < len(self.values))
        cells = np.full(len(steps), None, object)
        cells[there] = self.values[records[there]].tolist()
        return cells.tolist()


def leaves(history: "History") -> Iterator[tuple[str, int, np.ndarray]]:
    """The arrays of all series, each with its name and its `every`; complex ones in two parts.

    Names within a pytree are paths, such as `parameters/layers/0/weight`.
    """
    for series, every in history._series().items():
        for path, leaf in jax.tree.leaves_with_path(history[series]):
            inner = jax.tree_util.keystr(path, simple=True, separator="/")
            name = f"{series}/{inner}" if path else series
            values = np.asarray(leaf)
            if np.iscomplexobj(values):
                yield f"{name}.real", every, np.real(values)
                yield f"{name}.imag", every, np.imag(values)
            elif values.dtype.kind == "V":  # bfloat16 and its kin, which tables don't know
                yield name, every, values.astype(np.float32)
            else:
                yield name, every, values


def columns(history: "History") -> dict[str, Column]:
    """What a table shows of a history: the loss first, then all series of numbers and small arrays.

    The entries of an array have columns such as `x[0,1]`, the parts of a complex number `x.real` and
    `x.imag`. An array with more than eight entries has none.

    **Raises:** `ValueError` for the history of several fits, from `vmap`.
    """
    if np.ndim(history.get("n_steps", 0)) > 0:
        raise ValueError(
            "this is the history of several fits, from vmap: take that of one, such as "
            "jax.tree.map(lambda x: x[0], history)"
        )
    return {
        f"{name}[{','.join(map(str, index))}]" if index else name: Column(every, values[:, *index])
        for name, every, values in leaves(history)
        if math.prod(values.shape[1:]) <= _FEW
        for index in np.ndindex(values.shape[1:])
    }
