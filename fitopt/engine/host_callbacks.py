"""The only caller of host callbacks: when they are due, and what they return."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..callback import Callback, Fit, HostCallback, HostFunction, label
from ..history import ResumePoint
from ..methods.method import StopReason
from ..parameter import Parameter, with_value
from ..parameter.specification import is_readable
from ..state import PyTree, combine, flatten, is_array, is_parameter
from . import steering, stop_reasons
from .agreement import Agreement
from .chunks import Chunks
from .history_writer import HistoryWriter
from .interruption import Interruption


class RunningFit(Fit):
    """What host callbacks may ask of a fit."""

    def __init__(self, chunks: Chunks, writer: HistoryWriter, max_steps: int, agreement: Agreement):
        self._chunks = chunks
        self._writer = writer
        self.history = writer.history
        self.max_steps = max_steps
        self.agreement = agreement
        self.requested_stop: str | None = None
        self.requested_rate: PyTree = None  # where the first process has to be asked

    @property
    def learning_rate(self) -> PyTree:
        return self._chunks.learning_rate if self.requested_rate is None else self.requested_rate

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        if self.agreement.is_shared:
            self.requested_rate = rate
        else:
            self._chunks.set_learning_rate(rate)

    @property
    def processes(self) -> tuple[int, ...]:
        return self.agreement.processes

    @property
    def writes(self) -> bool:
        return self.agreement.writes

    @property
    def seconds(self) -> float:
        return self.agreement.seconds

    @property
    def parameters(self) -> PyTree:
        point = self._chunks.point
        return point.layout.free_state(point.values)

    @property
    def last(self) -> dict[str, PyTree]:
        return self._chunks.point.last

    def record(self, name: str, value: PyTree, every: int = 1) -> None:
        self._writer.record(name, value, every)

    def meet(self) -> None:
        self.agreement.meet()

    def resume_point(self) -> ResumePoint:
        # A fit that has ended may stand somewhere else: at an average, or at the best state.
        return self.history.resume_point or self._chunks.resume_point()

    def stop(self, reason: str) -> None:
        self.requested_stop = reason


class _Open(NamedTuple):
    """A host callback in a fit: its place in the user's list, and what to call."""

    place: int
    callback: HostCallback
    function: HostFunction

    def is_due(self, step: int) -> bool:
        return self.callback.every is None or self.callback.due(step) == step


class HostCallbacks:
    """The host callbacks of one fit; a context manager that opens and closes them.

    `callbacks` are all callbacks in the user's order: of those that stop at the same step, the first one
    in it gives the reason.
    """

    def __init__(self, callbacks: Sequence[Any], chunks: Chunks, fit: RunningFit):
        self._callbacks = callbacks
        self._traced = [one for one in callbacks if isinstance(one, Callback)]
        self._chunks = chunks
        self._fit = fit
        self._stack = contextlib.ExitStack()
        self._open: list[_Open] = []

    def __enter__(self) -> "HostCallbacks":
        with contextlib.ExitStack() as stack:
            for place, one in enumerate(self._callbacks):
                if isinstance(one, HostCallback):
                    self._open.append(_Open(place, one, stack.enter_context(one.open(self._fit))))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def call(self, stopper: int | None, interruption: Interruption) -> StopReason | None:
        """Call those that are due, and go on from what they return; returns why to stop, if so.

        `stopper` is the number of the traced callback, or of the method's stop reason, that has ended
        the chunk.
        """
        point = self._chunks.point
        step = point.steps - 1
        stops: dict[int, StopReason] = {}
        if stopper is not None:
            place = len(self._callbacks)
            if stopper < len(self._traced):
                callback = self._traced[stopper]
                place = next(i for i, other in enumerate(self._callbacks) if other is callback)
            reasons = stop_reasons.of_stoppers(self._traced, self._chunks.stop_reasons())
            stops[place] = stop_reasons.at_step(step, reasons[stopper])._replace(is_final=True)
        visits = [one for one in self._open if one.is_due(step)]
        if visits:
            free, fixed = point.layout.free_state(point.values), point.fixed_state
            history, last, loss = self._fit.history, point.last, self._fit.history["loss"][-1]
        for place, callback, function in visits:
            try:
                with interruption.at_once():
                    returned = function(
                        step, free, fixed, history, last.get("aux"), loss, last.get("grads")
                    )
            except KeyboardInterrupt:
                reason = StopReason(f"interrupted (Ctrl-C) in a callback after step {step}")
                if not self._fit.agreement.is_shared:
                    return reason
                stops[-1], returned = reason, None  # the other processes wait for this one
            stop, new_free, new_fixed = _interpret(label(callback), returned, free, fixed)
            is_edited = new_free is not free or new_fixed is not fixed
            if is_edited or (self._fit.agreement.is_shared and callback.steers):
                self._edit(callback, new_free, new_fixed)
                point = self._chunks.point
                free, fixed = point.layout.free_state(point.values), point.fixed_state
            if stop:
                reason = StopReason(callback.stop_reason(), is_final=not callback.cuts_short)
                stops.setdefault(place, stop_reasons.at_step(step, reason))
        return stops[min(stops)] if stops else None

    def _edit(self, callback: HostCallback, free: PyTree, fixed: PyTree) -> None:
        """Go on from a state that a callback has returned."""
        point, who = self._chunks.point, label(callback)
        free = _merged(who, "diff_state", point.layout.free_state(point.values), free)
        fixed = _merged(who, "static_state", point.fixed_state, fixed)
        flat = flatten(combine(free, fixed))
        if self._fit.agreement.is_shared and callback.steers:
            asked, self._fit.requested_rate = self._fit.requested_rate, None
            flat, rate = steering.of_the_first(self._fit.agreement, who, point, flat, asked)
            if rate is not None:
                self._chunks.set_learning_rate(rate)
        pairs = zip((*flat.free, *flat.fixed), (*point.values, *point.constants.fixed), strict=True)
        if flat.layout != point.layout or any(new is not old for new, old in pairs):
            self._chunks.edit(flat, who)


def _interpret(who: str, returned: Any, free: PyTree, fixed: PyTree) -> tuple[bool, PyTree, PyTree]:
    """Stop flag and states from what a host callback has returned."""
    if returned is None:
        return False, free, fixed
    stop = returned
    if isinstance(returned, tuple):
        if len(returned) != 3:
            raise TypeError(_expected(who, f"a tuple of {len(returned)}"))
        stop, free, fixed = returned
    if np.shape(stop) != () or np.asarray(stop).dtype != bool:
        raise TypeError(_expected(who, f"{stop!r} to say whether to stop"))
    return bool(stop), free, fixed


def _expected(who: str, got: str) -> str:
    return (
        f"callback {who} must return None, True or False, or (stop, diff_state, static_state); got {got}"
    )


def _merged(who: str, name: str, old: PyTree, new: PyTree) -> PyTree:
    """An edited state, once it is known to fit in place of the old one."""
    before, structure = jax.tree.flatten(old, is_leaf=is_parameter)
    try:
        after = structure.flatten_up_to(new)
    except ValueError as error:
        raise ValueError(f"{who} returned a {name} of another structure: {error}") from None
    merged = [_merge_leaf(who, name, *pair) for pair in zip(before, after, strict=True)]
    return jax.tree.unflatten(structure, merged)


def _merge_leaf(who: str, name: str, old: Any, new: Any) -> Any:
    if isinstance(old, Parameter):
        if isinstance(new, Parameter) and new.spec != old.spec:
            raise ValueError(
                f"{who} returned a {name} in which {old!r} has become {new!r}: "
                "a callback may change its value only"
            )
        value = new.value if isinstance(new, Parameter) else new
        return with_value(old.spec, _merge_array(who, repr(old.name), old.value, value))
    if is_array(old):
        return _merge_array(who, f"a {name} in which {old!r}", old, new)
    return new


def _merge_array(who: str, what: str, old: Any, new: Any) -> Any:
    if new is old:
        return old
    if jnp.issubdtype(jnp.result_type(old), jax.dtypes.extended):  # a random key
        if getattr(new, "dtype", None) != old.dtype:
            raise TypeError(f"{who} returned {what} as {new!r}, not as a {old.dtype}")
        if np.shape(new) != np.shape(old):
            raise ValueError(f"{who} returned {what} with shape {np.shape(new)}, not {np.shape(old)}")
        return new
    if np.shape(new) != np.shape(old):
        raise ValueError(f"{who} returned {what} with shape {np.shape(new)}, not {np.shape(old)}")
    try:
        if not is_readable(new):  # it lies in several processes, which have made it together
            return new.astype(old.dtype)
        array = np.asarray(new).astype(jnp.result_type(old), casting="same_kind")
    except TypeError as error:
        raise TypeError(f"{who} returned {what} as {new!r}: {error}") from None
    return array if hasattr(old, "dtype") else type(old)(array)
