"""What a fit leaves behind besides the fitted state."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from .state import PyTree
from .storage import npz

if TYPE_CHECKING:
    from pandas import DataFrame

_FEW = 8  # entries of an array that get a column each
RESERVED = (
    "loss",
    "n_steps",
    "final_loss",
    "best_loss",
    "best_step",
    "stop_reason",
    "converged",
    "elapsed",
    "epoch",
)


Description = dict[str, str]  # what is expected where


class ResumePoint(NamedTuple):
    """Where a fit stands: all that going on from there takes, besides the history."""

    steps: int
    carry: Callable[[], list[Array]] | None  # what goes from step to step; None before the first one
    start: list[Array]  # the values of the free Parameters when the fit began
    fixed: list[Any]  # all other arrays; None for what is as it was when the fit began
    elapsed: float  # seconds
    final: list[Array] | None  # the values that were returned, if the fit is complete, else None
    describe: Callable[[], tuple[Description, Description]]  # the state and the method
    batches: list[Any] | None = None  # the states of iterators that batches come from
    best: Callable[[], list[Any]] = list  # of each callback that chooses a best step its values, or None


class History(dict[str, Any]):
    """The record of a fit: a `dict` of NumPy arrays and plain Python values.

    - `"loss"`: the loss of each step, before its update; shape `(n_steps,)`
    - `"n_steps"`: how many steps were made
    - `"final_loss"`: the loss of the returned state
    - `"best_loss"`, `"best_step"`: the least of the losses, and the step that had it
    - `"stop_reason"`: a sentence
    - `"converged"`: whether a test of convergence has ended the fit, and no bound holds it
    - `"elapsed"`: seconds, compilation included
    - `"epoch"`: where there are `Minibatches`, the pass through the data in which each step begins

    and what callbacks record: an array or a pytree of arrays with a leading axis of records.

    A fit inside `jit`, `vmap` or `grad` has traced arrays of fixed length, padded with NaN after the
    stop (integers with zeros), and neither `"stop_reason"` nor `"elapsed"`.

    Besides its items a history has these attributes:

    - `every`: for each series but the loss, by how many steps its records are apart
    - `start`: the state in which the fit began; None if it is not known, as after `load`
    - `resume_point`: where the fit has ended, for `run(..., resume_from=history)`; None likewise
    """

    start: PyTree = None
    resume_point: ResumePoint | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.every: dict[str, int] = {}

    @classmethod
    def of(cls, items: Mapping[str, Any], every: Mapping[str, int]) -> Self:
        """A history of these items, with the distances of its series' records."""
        history = cls(items)
        history.every = dict(every)
        return history

    def __getstate__(self) -> dict[str, Any]:  # what copies and pickles take besides the items
        return {"every": dict(self.every)}

    def steps(self, name: str) -> Int[np.ndarray, " records"]:
        """The steps at which series `name` was recorded.

        **Raises:** `KeyError` if there is no such series.

        >>> history = History(loss=np.zeros(3))
        >>> history.steps("loss")
        array([0, 1, 2])
        """
        if name != "loss" and name not in self.every:
            known = ", ".join(map(repr, ["loss", *self.every]))
            raise KeyError(f"no series {name!r} was recorded; there are {known}")
        records = jax.tree.leaves(self[name])[0].shape[0]
        return np.arange(records) * self.every.get(name, 1)

    def series(self) -> dict[str, int]:
        """The names of the series, each with the number of steps from one record to the next."""
        return {name: every for name, every in {"loss": 1, **self.every}.items() if name in self}

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
        npz.write(path, self, self.every)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The history that `save` has written to a file.

        **Raises:** `ValueError` if the file is another one, or damaged.
        """
        return cls.of(*npz.read(path))

    def __repr__(self) -> str:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(self))):
            return f"History({', '.join(map(repr, self))})"
        recorded = [
            name if every == 1 else f"{name} (every {every})"
            for name, every in self.series().items()
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
    return tuple(history[name] for name in names), (names, tuple(history.every.items()))


def _unflatten(static: Any, children: Any) -> History:
    names, every = static
    return History.of(dict(zip(names, children, strict=True)), dict(every))


def _flatten_with_keys(history: History) -> Any:
    children, static = _flatten(history)
    return [*zip(map(jax.tree_util.DictKey, static[0]), children, strict=True)], static


jax.tree_util.register_pytree_with_keys(History, _flatten_with_keys, _unflatten, _flatten)


# The series as the columns of a table.


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


def leaves(history: History) -> Iterator[tuple[str, int, np.ndarray]]:
    """The arrays of all series, each with its name and its `every`; complex ones in two parts.

    Names within a pytree are paths, such as `parameters/layers/0/weight`.
    """
    for series, every in history.series().items():
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


def columns(history: History) -> dict[str, Column]:
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
