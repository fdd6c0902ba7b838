"""What comes back from the lanes, gathered on the host by fit."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from ..callback import own_methods
from ..engine import stop_reasons
from ..engine.compiled import FIRST_CALLBACK, RUNNING, Loop
from ..engine.validation import bad_start
from ..methods.method import StopReason
from ..parameter.specification import called, check_value
from ..state import ParameterVector, PyTree
from .examination import Examination
from .fits import Fits
from .lanes import VACANT, Output, Records, Result
from .states import States
from .table import Table


class Collector:
    """Gathers the results of fits, and what their steps have recorded."""

    def __init__(self, loop: Loop, examination: Examination, states: States, max_steps: int):
        self._examination = examination
        self._states = states
        self._max_steps = max_steps
        count, template = len(states), states.template
        self._traced = loop.problem.callbacks
        self._vector = ParameterVector.of(template.layout, template.free)
        own = loop.problem.method.stop_reasons(template.free)
        self._stoppers = stop_reasons.of_stoppers(self._traced, own)
        self.began = time.perf_counter()
        self._told: dict[tuple[int, int], StopReason] = {}
        self._table: Table | None = None
        self._carries: Any = None  # of callbacks that want them at the end
        self._series: list[tuple[str, ...]] = [() for _ in self._traced]  # what each records
        self.pieces: dict[int, list[Any]] = {}  # of records, by fit that is under way
        self._records: dict[int, dict[str, Any]] = {}
        self.done = np.zeros(count, bool)
        self.interrupted: str | None = None  # why fits are ended early, if they are

    @property
    def elapsed(self) -> float:
        """Seconds since the fits began."""
        return time.perf_counter() - self.began

    # What calls bring.

    def take(self, output: Output, counts: np.ndarray) -> None:
        """Take what a call has brought; `counts` are those of each device."""
        if output.records is not None:
            self._take_records(output.records, counts)
        if counts[:, 0].any():
            results = jax.tree.map(np.asarray, output.results)
            rows = len(results.fit) // len(counts)
            meant = np.concatenate([np.arange(n) + d * rows for d, n in enumerate(counts[:, 0])])
            self.take_results(jax.tree.map(lambda x: x[meant], results))

    def take_results(self, results: Result) -> None:
        """Take results, as arrays with a leading axis."""
        table = self._room(results.values, results.loss, results.callbacks)
        numbers = np.asarray(results.fit)
        unmoved = results.steps == 0
        starts = self._states.starts(numbers)
        for column, values, start in zip(table.values, results.values, starts, strict=True):
            column[numbers] = values
            column[numbers[unmoved]] = np.asarray(start)[unmoved]
        table.final_loss[numbers] = results.loss
        table.n_steps[numbers] = results.steps
        table.best_loss[numbers] = np.where(unmoved, results.loss, results.best_loss)
        table.best_step[numbers] = results.best_step
        table.elapsed[numbers] = self.elapsed
        for number, reason in zip(numbers.tolist(), self._reasons(results), strict=True):
            table.stop_reason[number], table.converged[number] = reason.sentence, reason.converged
            if number in self.pieces:
                self._records[number] = self._joined(self.pieces.pop(number))
        jax.tree.map(lambda x, new: x.__setitem__(numbers, new), self._carries, results.callbacks)
        self.done[numbers] = True

    def _room(self, values: Sequence[Any], loss: Any, carries: PyTree) -> Table:
        """The table; at first it is made for such values, losses and carries."""
        if self._table is None:
            count = len(self.done)
            empty = lambda x: np.zeros((count, *x.shape[1:]), x.dtype)
            losses = [np.full(count, np.nan, loss.dtype) for _ in range(2)]
            numbers = [np.zeros(count, int) for _ in range(2)]
            rest = np.zeros(count, bool), np.zeros(count), [""] * count
            columns = [empty(x) for x in values]
            self._table = Table(columns, losses[0], numbers[0], losses[1], numbers[1], *rest)
            self._carries = jax.tree.map(empty, carries)
        return self._table

    @property
    def best_loss(self) -> float:
        """The least final loss so far; NaN before the first one."""
        losses = np.zeros(0) if self._table is None else self._table.final_loss[self.done]
        return float(np.min(losses[np.isfinite(losses)], initial=np.inf)) if losses.size else np.nan

    # Rows on their way to the disk, or to other processes.

    def rows(self, numbers: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """All that is known of some fits that have ended."""
        assert self._table is not None
        return {
            "numbers": numbers,
            "table": self._table.select(numbers)._asdict(),
            "carries": [x[numbers] for x in jax.tree.leaves(self._carries)],
            "records": {n: self._records[n] for n in numbers.tolist() if n in self._records},
        }

    def put(self, rows: dict[str, Any], carries: PyTree) -> None:
        """Take `rows` of another collector; `carries` has the structure of theirs."""
        new, numbers = Table(**rows["table"]), rows["numbers"]
        arrays = jax.tree.unflatten(jax.tree.structure(carries), rows["carries"])
        table = self._room(new.values, new.final_loss, arrays)
        pairs = zip(jax.tree.leaves(table._replace(stop_reason=[])), jax.tree.leaves(new), strict=False)
        for column, x in pairs:
            column[numbers] = x
        for number, reason in zip(numbers.tolist(), new.stop_reason, strict=True):
            table.stop_reason[number] = reason
        jax.tree.map(lambda x, new: x.__setitem__(numbers, new), self._carries, arrays)
        self._records |= {int(n): record for n, record in rows["records"].items()}
        self.done[numbers] = True

    # Why fits have ended.

    def _reasons(self, results: Result) -> Iterator[StopReason]:
        numbers, codes, steps, wrong, near = (
            np.asarray(x).tolist()
            for x in (results.fit, results.code, results.steps, results.went_wrong, results.near_bounds)
        )
        for i, ended in enumerate(zip(codes, steps, strict=True)):
            at = jax.tree.map(lambda x, i=i: x[i], results.position) if wrong[i] or near[i] else None
            if wrong[i]:
                could_begin = steps[i] > 0 or bool(np.isfinite(results.loss[i]))
                yield self._fault(numbers[i], steps[i], at, could_begin)
                continue
            if ended not in self._told:
                self._told[ended] = self._usual(*ended)
            reason = self._told[ended]
            if reason.converged and near[i]:
                stalled = self._examination.stalled(self._states, numbers[i], at)
                if stalled.any():
                    reason = stop_reasons.stalled(reason, self._vector.labelled(stalled))
            yield reason

    def _usual(self, code: int, steps: int) -> StopReason:
        if code != RUNNING:
            return stop_reasons.at_step(steps - 1, self._stoppers[code - FIRST_CALLBACK])
        if steps < self._max_steps:
            if self.interrupted is None:
                return StopReason("its process has died, or was stopped")
            when = f"after step {steps - 1}" if steps else "before the first step"
            return StopReason(f"{self.interrupted} {when}")
        return stop_reasons.reached(self._max_steps)

    def _fault(self, number: int, steps: int, position: PyTree, could_begin: bool) -> StopReason:
        loss, finite = self._examination.fault(self._states, number, position)
        names = self._states.layout.names
        if could_begin:
            return StopReason(stop_reasons.not_finite(names, steps, loss, finite))
        values = [np.asarray(x)[0] for x in self._states.starts([number])]
        reason = bad_start(names, values, loss)
        try:
            for name, spec, value in zip(names, self._states.layout.specs, values, strict=True):
                check_value(called(name), spec, value)
        except ValueError as error:
            reason = str(error)
        return StopReason(f"could not begin: {reason}")

    # Records.

    def _take_records(self, records: Records, counts: np.ndarray) -> None:
        width = records.fit.shape[1] // len(counts)
        for device, steps in enumerate(counts[:, 2].tolist()):
            lanes = slice(device * width, (device + 1) * width)
            self._take_pieces(jax.tree.map(lambda x, n=steps, d=lanes: np.asarray(x)[:n, d], records))

    def _take_pieces(self, records: Records) -> None:
        """Take the records of one device, with leading axes of steps and lanes."""
        numbers = records.fit.T.ravel()
        order = np.argsort(numbers, kind="stable")  # by fit, and within a fit by step
        order = order[numbers[order] != VACANT]
        sort = lambda x: np.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])[order]
        series = jax.tree.map(sort, (records.losses, records.of_callbacks))
        fits, counts = np.unique(numbers[order], return_counts=True)
        for fit, last, count in zip(fits.tolist(), np.cumsum(counts), counts, strict=True):
            piece = jax.tree.map(lambda x, a=last - count, b=last: x[a:b], series)
            self.pieces.setdefault(fit, []).append(piece)

    def _joined(self, pieces: Sequence[Any]) -> dict[str, Any]:
        losses, of_callbacks = jax.tree.map(lambda *x: np.concatenate(x), *pieces)
        history = {"loss": losses}
        self._series = [tuple(records or ()) for records in of_callbacks]
        for callback, records in zip(self._traced, of_callbacks, strict=True):
            for name, record in (records or {}).items():
                history[name] = jax.tree.map(lambda x, n=callback.every: x[::n], record)
        return history

    # The end.

    def fits(self) -> Fits:
        """All of them; those that were not begun are where they would have begun."""
        table, rest = self._table, np.flatnonzero(~self.done)
        if table is None:
            raise RuntimeError("no process has made a fit")
        if rest.size:
            for column, start in zip(table.values, self._states.starts(rest), strict=True):
                column[rest] = start
            for number in rest.tolist():
                table.stop_reason[number] = self._usual(RUNNING, 0).sentence
        own = own_methods(self._traced, "finish")
        finishing = [self._traced[i] for i, _ in own]
        every = {
            name: callback.every
            for callback, names in zip(self._traced, self._series, strict=True)
            for name in names
        }
        finishes = [*zip(finishing, self._carries, strict=True)]
        return Fits(self._states, table, self._records, every, finishes)
