"""One fit, from the start to the history."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..batches import Feed, traced_sources
from ..callback import Callback, HostCallback, label
from ..history import History, ResumePoint
from ..methods.method import Constants, StopReason
from ..state import Flat, Layout, PyTree
from . import resume, stop_reasons
from .agreement import Agreement
from .chunks import Chunks
from .history_writer import HistoryWriter
from .host_callbacks import HostCallbacks, RunningFit
from .interruption import interruptible
from .pace import Rhythm
from .placement import Placement
from .programs import Programs
from .validation import depth_in_package


class Start(NamedTuple):
    """What a fit begins with."""

    programs_for: Callable[[Layout], Programs]
    callbacks: Sequence[Callback | HostCallback]
    state: PyTree
    flat: Flat
    max_steps: int
    batches: Any = None
    placement: Placement | None = None  # None on one device

    def facts(self, steps: int) -> dict[str, str]:
        """What must be the same in all processes of a fit that has made some steps."""
        described = resume.describe_state(self.flat.layout, Constants(self.flat.free, self.flat.fixed))
        called = {f"callback {i}": _settings(one) for i, one in enumerate(self.callbacks)}
        return described | called | {"max_steps": f"{self.max_steps}", "resume_from": f"step {steps}"}


def _settings(callback: Callback | HostCallback) -> str:
    """What a callback is, without the addresses of functions, which differ from process to process."""
    traced = isinstance(callback, Callback)
    return re.sub(" at 0x[0-9a-f]+", "", repr(callback)) if traced else label(callback)


def run(start: Start, earlier: tuple[ResumePoint, History] | None) -> tuple[PyTree, History] | None:
    """Make the steps of a fit; None where an earlier fit is to go on from a point that is no good."""
    agreement = Agreement() if start.placement is None else start.placement.agreement()
    with _told_to_others(agreement):
        if agreement.is_shared:
            agreement.check_same(start.facts(0 if earlier is None else earlier[0].steps))
        if earlier is not None:
            constants = Constants(start.flat.free, start.flat.fixed)
            resume.check_state(earlier[0], start.flat.layout, constants)
            if earlier[0].final is not None:
                loop, batches = start.programs_for(start.flat.layout).loop, None
                with contextlib.suppress(TypeError):  # iterables are not read for this
                    batches = traced_sources(start.batches)
                if batches is start.batches:
                    known = loop.problem.constants(start.flat, batches)
                    resume.tell_of_changes(earlier[0], loop, known, earlier[1]["stop_reason"])
                return resume.completed(start.state, start.flat, earlier, start.placement)
        return _run(start, earlier, agreement)


def _run(
    start: Start, earlier: tuple[ResumePoint, History] | None, agreement: Agreement
) -> tuple[PyTree, History] | None:
    hosts = [one for one in start.callbacks if isinstance(one, HostCallback)]
    traced = [one for one in start.callbacks if isinstance(one, Callback)]
    steps, states = (0, None) if earlier is None else (earlier[0].steps, earlier[0].batches)
    feed = None if start.batches is None else Feed(start.batches, steps, states)
    if feed is not None:
        feed.in_whole_blocks = agreement.is_shared
    rhythm = Rhythm(hosts, start.max_steps)
    chunks = Chunks(start.programs_for, start.flat, rhythm, feed, start.placement, agreement)
    writer = HistoryWriter(start.state, traced, start.max_steps)
    fit = RunningFit(chunks, writer, start.max_steps, agreement)
    with interruptible() as interruption, _closing(feed), _left_to_an_error(chunks, writer):
        if feed is not None and not agreement.is_shared:
            feed.give_up = lambda: interruption.requested
        if earlier is not None:
            chunks.take_up(earlier[0])
            if earlier[0].carry is not None:
                writer.take_up(earlier[1], earlier[0].steps)
        with HostCallbacks(start.callbacks, chunks, fit) as callbacks:
            reason = None
            for advance in chunks:
                if advance.is_lost:
                    return None
                last = chunks.point.steps - 1
                passes = feed and feed.epochs(last + 1 - advance.steps, advance.steps)
                writer.append(advance.losses, advance.records, advance.steps, passes)
                if advance.fault is not None:
                    stop = StopReason(advance.fault)
                else:
                    stop = callbacks.call(advance.stopper, interruption)
                if stop is None and interruption.requested:
                    stop = StopReason(f"interrupted (Ctrl-C) after step {last}")
                if stop is None and fit.requested_stop is not None:
                    stop = StopReason(f"{fit.requested_stop} (after step {last})")
                if (reason := chunks.agree(stop)) is not None:
                    break
            is_cut = interruption.requested and not agreement.is_shared  # while it waited for a batch
            if reason is None and is_cut:
                reason = StopReason(f"interrupted (Ctrl-C) after step {chunks.point.steps - 1}")
            reason = reason or chunks.end_reason()
            state = _finished(start, chunks, writer, reason)
            return None if state is None else (state, writer.history)


def _finished(start: Start, chunks: Chunks, writer: HistoryWriter, reason: StopReason) -> PyTree | None:
    """Find the loss of the state to return, let callbacks offer a better one, sum up; None where that
    state is no good.
    """
    if reason.converged and (stalled := chunks.stalled_at_bounds()):
        reason = stop_reasons.stalled(reason, stalled)
        warnings.warn(reason.sentence, RuntimeWarning, stacklevel=depth_in_package())
    point, programs, history = chunks.resume_point(is_last=True), chunks.point.programs, writer.history
    carries = chunks.carries() if programs.finishes else ()
    end = chunks.end(lambda: float(history["loss"][-1]))
    if end is None:
        return None
    if end.fault is not None:  # the fit goes on from where it has been thrown back to
        reason, point = StopReason(end.fault), chunks.resume_point(is_last=True)
    values, loss = end.values, end.loss
    for i in programs.choosing:
        callback, carry = programs.loop.problem.callbacks[i], end.callbacks[i]
        is_better, best_loss = callback.result(carry, loss)
        best = chunks.best.values(i, int(callback.best_step(carry))) if is_better else None
        if best is not None:
            values, loss = best, float(np.asarray(best_loss))
    if reason.is_final:
        point = point._replace(final=list(values))
    writer.end(chunks.point.steps, loss, reason, chunks.elapsed, point)
    for i, finish in programs.finishes:
        finish(history, carries[i])
    if not chunks.point.steps:
        return start.state
    return chunks.point.layout.state(values, chunks.point.constants.fixed)


@contextlib.contextmanager
def _closing(feed: Feed | None) -> Iterator[None]:
    try:
        yield
    finally:
        if feed is not None:
            feed.close()


@contextlib.contextmanager
def _told_to_others(agreement: Agreement) -> Iterator[None]:
    """Let the other processes of a fit not wait for one that an exception has taken out of it."""
    try:
        yield
    except BaseException as error:
        agreement.leave(error)
        raise


@contextlib.contextmanager
def _left_to_an_error(chunks: Chunks, writer: HistoryWriter) -> Iterator[None]:
    """Give an exception that ends the fit what was reached before."""
    try:
        yield
    except BaseException as error:
        point = chunks.point
        if point.steps:
            reason = f"{type(error).__name__} after step {point.steps - 1}"
            writer.break_off(point.steps, reason, chunks.elapsed, chunks.resume_point(is_last=True))
            state = point.layout.state(point.values, point.constants.fixed)
            with contextlib.suppress(AttributeError):
                error.fit = (state, writer.history)  # pyright: ignore[reportAttributeAccessIssue]
                error.add_note(
                    f"The fit had made {point.steps} steps; `state, history = error.fit` has what was "
                    "reached, and run(..., resume_from=history) goes on from there."
                )
        raise
