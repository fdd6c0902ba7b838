"""`Fits`: what many fits have left behind."""

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ..callback import Callback
from ..history import History
from ..state import ParameterVector, PyTree
from . import storage
from .states import States
from .table import Table

if TYPE_CHECKING:
    from pandas import DataFrame


_AT_ONCE = 64  # fits side by side, whose derived values are computed


class Minimum(NamedTuple):
    """A minimum that some fits have found."""

    loss: float  # the least of these fits
    count: int  # of the fits
    values: dict[str, Any]  # of the free Parameters, of the fit with the least loss
    fits: Int[np.ndarray, " count"]  # their numbers, by loss


class Fits(Sequence[tuple[Any, History]]):
    """What many fits have left behind, in the order of the states that they began with.

    `fits[i]` is `(state, history)` as `run` returns it, made when it is asked for; a slice of it are
    fits. A history holds the `"loss"` of each step, and what callbacks have recorded, if `run_many` was
    called with `record=True`.

    - `final_loss`, `n_steps`, `converged`: arrays with an entry for each fit. The loss is NaN where a
        fit could not begin, as the loss was not finite at its start, or that was outside the bounds
    - `stop_reason`: a tuple of sentences
    - `best`: the pair of least final loss

    >>> import optax
    >>> from fitopt import OptaxOptimizer, Parameter, starts
    >>> fit = OptaxOptimizer(lambda s: (s["x"] ** 2 - 1) ** 2, optax.adam(0.1))
    >>> state = {"x": Parameter("x", 0.5, lower=-2, upper=2)}
    >>> fits = fit.run_many(starts(state, 8), max_steps=200)
    >>> sorted((round(float(minimum.values["x"]), 3), minimum.count) for minimum in fits.minima())
    [(-1.0, 3), (1.0, 5)]
    """

    def __init__(
        self,
        states: States,
        table: Table,
        records: dict[int, dict[str, Any]] | None = None,
        every: dict[str, int] | None = None,
        finishes: Sequence[tuple[Callback, PyTree]] = (),
    ):
        self._states = states
        self._table = table
        self._records = records or {}
        self._every = every or {}
        self._finishes = finishes  # with the carries of all fits

    @property
    def states(self) -> States:
        """The states in which the fits began."""
        return self._states

    @property
    def table(self) -> Table:
        """All numbers of the fits."""
        return self._table

    @property
    def final_loss(self) -> Float[np.ndarray, " fits"]:
        """The losses of the fitted states."""
        return self._table.final_loss

    @property
    def n_steps(self) -> Int[np.ndarray, " fits"]:
        """How many steps were made."""
        return self._table.n_steps

    @property
    def converged(self) -> Bool[np.ndarray, " fits"]:
        """Whether a test of convergence has ended a fit, and no bound holds it."""
        return self._table.converged

    @property
    def stop_reason(self) -> tuple[str, ...]:
        """Why each fit has ended."""
        return tuple(self._table.stop_reason)

    @property
    def best(self) -> tuple[Any, History]:
        """The fit with the least final loss.

        **Raises:** `ValueError` if no fit has a finite loss.
        """
        if not np.isfinite(self.final_loss).any():
            raise ValueError(f"no fit has a finite loss; the first one: {self.stop_reason[0]}")
        return self[int(self._order()[0])]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the free Parameters."""
        return self._states.layout.names

    def values(self, name: str) -> np.ndarray:
        """The fitted values of a free Parameter, or of what is derived, with a leading axis of fits.

        **Raises:** `KeyError` if there is none of that name.
        """
        if name in self.names or name not in self._derived:
            return self._table.values[self._place(name)]
        return self._derived[name]

    @functools.cached_property
    def _derived(self) -> dict[str, np.ndarray]:
        """What is derived from the fitted states, by name."""
        states, layout = self._states, self._states.layout
        if not layout.has_derived:
            return {}

        @jax.jit
        def program(free: list[Any], varying: list[Any]) -> dict[str, Any]:
            def at(one: Any) -> dict[str, Any]:
                fixed = list(states.template.fixed)
                for i, x in zip(states.varying, one[1], strict=True):
                    fixed[i] = x
                return layout.named_values(one[0], fixed)

            return jax.lax.map(at, (free, varying), batch_size=_AT_ONCE)

        with self._vector.precision():
            found = jax.device_get(program(list(self._table.values), states.fixed(slice(None))))
        return {name: array for name, array in found.items() if name not in self.names}

    def start_values(self, name: str) -> np.ndarray:
        """The values with which the fits began, likewise."""
        return np.asarray(self._states.starts(slice(None))[self._place(name)])

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"no parameter {name!r} is fitted; there are {', '.join(self.names)}")
        return self.names.index(name)

    def minima(self, rtol: float = 1e-2) -> list[Minimum]:
        """The distinct minima, the least loss first.

        Fits belong together if each element differs by at most `rtol` of its size from that of the fit
        with the least loss; its size is at least its median over all starts, and over all ends. Fits
        that have not converged count too, if their loss is finite.

        **Raises:** `ValueError` unless `rtol` is a number above 0.
        """
        if not (np.ndim(rtol) == 0 and 0 < rtol < np.inf):
            raise ValueError(f"rtol must be a number above 0, got {rtol!r}")
        order = self._order()
        order = order[np.isfinite(self.final_loss[order])]
        starts, ends = self.elements()
        sizes = [np.nanmedian(np.abs(x), axis=0) for x in (ends[order], starts) if len(order)]
        found = []
        while len(order):
            best = ends[order[0]]
            size = np.max([np.abs(best), *sizes], axis=0)
            near = np.all(np.abs(ends[order] - best) <= rtol * size, axis=1)
            near[0] = True
            number = int(order[0])
            values = {name: self.values(name)[number] for name in self.names}
            loss = float(self.final_loss[number])
            found.append(Minimum(loss, int(near.sum()), values, order[near]))
            order = order[~near]
        return found

    def _order(self) -> Int[np.ndarray, " fits"]:
        """The numbers of the fits by loss; those without one last."""
        loss = self.final_loss
        return np.argsort(np.where(np.isfinite(loss), loss, np.inf), kind="stable")

    @functools.cached_property
    def _vector(self) -> ParameterVector:
        template = self._states.template
        return ParameterVector.of(template.layout, template.free)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the elements: the real numbers that were fitted."""
        return self._vector.labels

    def select_labels(self, names: Sequence[str] | None) -> Sequence[str]:
        """The names of some elements; that of a Parameter stands for all of its elements."""
        return self.labels if names is None else self._vector.select(names)

    def elements(self) -> tuple[Float[np.ndarray, "fits elements"], Float[np.ndarray, "fits elements"]]:
        """All fitted numbers, where fits began and where they ended."""
        return self._elements(self._states.starts(slice(None))), self._elements(self._table.values)

    def _elements(self, values: Sequence[Any]) -> Float[np.ndarray, "fits elements"]:
        """The fitted real numbers, side by side."""
        parts = []
        for block, value in zip(self._vector.blocks, values, strict=True):
            array = np.asarray(value).reshape(len(self), -1)
            reals = [np.real(array), np.imag(array)] if block.is_complex else [array]
            parts.append(np.concatenate(reals, axis=1).astype(float)[:, block.fitted])
        return np.concatenate(parts, axis=1)

    def to_dataframe(self) -> "DataFrame":
        """A pandas DataFrame with a row for each fit.

        The columns are the final loss, the number of steps, whether it has converged, why it has ended,
        and the elements of free Parameters, where it began and where it ended: `rate`, `start/rate`.

        **Raises:** `ImportError` without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError('to_dataframe needs pandas: pip install "fitopt[pandas]"') from error
        labels, (starts, ends) = self.labels, self.elements()
        columns = {
            "final_loss": self.final_loss,
            "n_steps": self.n_steps,
            "converged": self.converged,
            "stop_reason": self._table.stop_reason,
            **dict(zip(labels, ends.T, strict=True)),
            **{f"start/{label}": x for label, x in zip(labels, starts.T, strict=True)},
        }
        return pandas.DataFrame(columns, pandas.RangeIndex(len(self), name="fit"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all numbers, sentences and records to one `.npz` file, without pickle.

        The fixed part of the states is not in it: of many data sets that may be much.

        **Raises:** `TypeError` for records that are no arrays; `OSError`.
        """
        storage.save(path, self._states, self._table, self._records, self._every)

    @classmethod
    def load(cls, path: str | os.PathLike[str], states: Sequence[Any] | None = None) -> "Fits":
        """The fits that `save` has written to a file.

        **Arguments:**

        - `path`: of the file.
        - `states`: those that were handed to `run_many`. Without them the state of `fits[i]` is a dict
            of its free Parameters by name, without what is fixed and without transforms.

        **Raises:** `ValueError` if the file is another one, damaged, or of other states.
        """
        states, table, records, every = storage.load(path, states)
        return cls(states, table, records, every)

    def __len__(self) -> int:
        return len(self._table.stop_reason)

    @overload
    def __getitem__(self, number: int) -> tuple[Any, History]: ...
    @overload
    def __getitem__(self, number: slice) -> "Fits": ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return self.select(range(len(self))[number])
        if not -len(self) <= number < len(self):
            raise IndexError(f"there are {len(self)} fits, got number {number}")
        number = range(len(self))[number]
        state = self._states.with_values(number, [x[number] for x in self._table.values])
        return state, self._history(number)

    def select(self, numbers: Sequence[int]) -> "Fits":
        """Some of the fits."""
        chosen = np.asarray(numbers, int)
        records = {new: self._records[old] for new, old in enumerate(numbers) if old in self._records}
        finishes = [
            (callback, jax.tree.map(lambda x: x[chosen], carry)) for callback, carry in self._finishes
        ]
        table = self._table.select(chosen)
        return Fits(self._states.select(numbers), table, records, self._every, finishes)

    def _history(self, number: int) -> History:
        table = self._table
        history = History.of(self._records.get(number, {}), self._every)
        history.start = self._states[number]
        history.update(
            n_steps=int(table.n_steps[number]),
            final_loss=float(table.final_loss[number]),
            best_loss=float(table.best_loss[number]),
            best_step=int(table.best_step[number]),
            stop_reason=table.stop_reason[number],
            converged=bool(table.converged[number]),
            elapsed=float(table.elapsed[number]),
        )
        for callback, carries in self._finishes:
            callback.finish(history, jax.tree.map(lambda x: x[number], carries))
        return history

    def __iter__(self) -> Iterator[tuple[Any, History]]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        finite = np.isfinite(self.final_loss)
        lines = [f"{len(self)} fits of {', '.join(self.names)}, {int(self.converged.sum())} converged"]
        if finite.any():
            loss = self.final_loss[finite]
            lines.append(f"  final loss {loss.min():.6g} (best), {np.median(loss):.6g} (median)")
            lines.append(f"  {self.n_steps.min()} to {self.n_steps.max()} steps")
        reasons = Counter(reason.split(" (at step")[0].split(":")[0] for reason in self.stop_reason)
        lines += [f"  {count} × {reason}" for reason, count in reasons.most_common(5)]
        return "\n".join(lines)
