"""The only owner of what goes from step to step: chunks of steps, and the way back to earlier points."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array

from ..batches import Feed
from ..history import Description, ResumePoint
from ..methods.method import StopReason
from ..optimizers.arguments import number
from ..optimizers.composition import known_rate
from ..parameter.specification import called, check_value, is_readable
from ..state import Flat, Layout, ParameterVector, PyTree
from . import resume, snapshot, stop_reasons
from .agreement import Agreement
from .best_steps import BestSteps
from .compiled import FIRST_CALLBACK, NEAR, NOT_FINITE, RUNNING, Chunk
from .pace import Pace, Rhythm
from .placement import Placement
from .points import Advance, End, Point
from .programs import Programs
from .validation import bad_start, depth_in_package

_SHORT_SECONDS = 1e-3  # a chunk shorter than this is begun while callbacks look at the last one


class Chunks:
    """Makes the steps of a fit, chunk by chunk; iterating over it does that.

    `point` is where the fit stands. A point never changes, since the loop copies the carry with which it
    begins: going on makes another one. To go back to a step between two points, the steps from the first
    of them are made again, to the last bit: that costs nothing until then.

    Between two chunks `agree` must be called once; what it says is the length of the next one. The carry
    of the next step is `_carry`: that of `point`, or a later one where a chunk has been begun early.
    """

    def __init__(
        self,
        programs_for: Callable[[Layout], Programs],
        flat: Flat,
        rhythm: Rhythm,
        feed: Feed | None,
        placement: Placement | None,
        agreement: Agreement,
    ):
        self._programs_for = programs_for
        self._rhythm = rhythm
        self._max_steps = rhythm.max_steps
        self._may_run_ahead = rhythm.is_free
        self._flat = flat
        self._feed = feed
        self._placement = placement  # None on one device
        self._agreement = agreement
        self._limit = 0  # how many steps the next chunk may have
        batches = None if feed is None else feed.supply(0)[0]
        programs = programs_for(flat.layout)
        constants = programs.loop.problem.constants(flat, batches)
        self.point = Point(0, None, programs, constants, {}, list(flat.free))
        self._before: Point | None = None  # where the last chunk that made a step has begun
        self._resume_at: Point | None = None  # where to go on later, if not at the last point
        self._resumed = False
        arrays = *flat.free, *flat.fixed, *jax.tree.leaves(batches)
        shapes = tuple(getattr(x, "shape", ()) for x in arrays)
        self._pace = Pace(programs.pace, shapes)
        self.best = BestSteps()
        self._good_step: int | None = None  # after a fault the one whose batch is known to be good
        self._early: Chunk | None = None  # the next chunk, if it has begun
        self._evaluation: Chunk | None = None  # the step after the last one, likewise
        self._descriptions: dict[Programs, tuple[Description, Description]] = {}
        self._began = time.perf_counter()
        self._carry, self._inside = programs.start(constants)
        if programs.averages is None:
            programs.averages = programs.loop.averages(self._carry, constants)

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._began

    # Going on with an earlier fit.

    def take_up(self, point: ResumePoint) -> None:
        """Stand where an earlier fit stood."""
        here = self.point
        resume.check_method(point, here.programs, here.constants)
        if point.steps > self._max_steps:
            raise ValueError(
                f"cannot resume: max_steps is {self._max_steps}, and {point.steps} steps are made"
            )
        self._resumed = True
        if point.carry is None:
            return
        fixed = resume.fixed_values(here.constants.fixed, point)
        constants = here.constants._replace(fixed=fixed)
        plain = here.programs.plain(self._carry, constants)
        arrays, begin, best = point.carry(), point.start, point.best()
        if self._placement is not None:
            arrays = self._placement.put(arrays, jax.tree.leaves(plain))
            begin = self._placement.put_values(begin)
            best = [None if x is None else self._placement.put_values(x) for x in best]
        constants = constants._replace(start=begin)
        plain = jax.tree.unflatten(jax.tree.structure(plain), arrays)
        carries = [*plain.callbacks]
        for i, values in zip(here.programs.choosing, best, strict=True):
            if values is None:  # there is none yet, or a fault was close: then it counts anew
                carries[i] = here.programs.loop.problem.callbacks[i].objective_changed(carries[i])
            else:
                self.best.know(i, values)
        carry = here.programs.packed(plain._replace(callbacks=tuple(carries)), constants)
        self.point = Point(point.steps, carry, here.programs, constants, {})
        self._go_back()
        self._began -= point.elapsed

    def resume_point(self, is_last: bool = False) -> ResumePoint:
        """All that going on from the last good step takes, besides the history."""
        steps, carry, programs, constants, *_ = self._resume_at or self.point
        pairs = zip(constants.fixed, self._flat.fixed, strict=True)
        changed = [None if x is old else x for x, old in pairs]
        known = self._descriptions

        def describe() -> tuple[Description, Description]:
            if programs not in known:
                state = resume.describe_state(programs.loop.layout, constants)
                known[programs] = state, resume.describe_method(programs.loop, constants)
            return known[programs]

        states = None if self._feed is None else self._feed.states(steps)
        leaves, best, chosen = None, list, self.best.copy(is_last)
        if carry is not None:
            leaves = lambda: jax.tree.leaves(programs.plain(carry, constants))
            best = lambda: [
                chosen.values(i, step)
                for i, step in zip(programs.choosing, programs.best_steps(carry), strict=True)
            ]
        elapsed = self.elapsed
        return ResumePoint(
            steps, leaves, constants.start, changed, elapsed, None, describe, states, best
        )

    # Steps.

    def __iter__(self) -> Iterator[Advance]:
        """Make steps until all are made, or one has gone wrong."""
        left = min(self._rhythm.steps_left(self.point.steps), self._batches_left())
        _, limit = self._agreement.next_chunk(None, min(self._pace.first(), left))
        chunk = self._dispatch(limit) if limit else None
        while chunk is not None:
            since, began_early = time.perf_counter(), self._early is not None
            self._early = None
            advance = self._collect(chunk, limit)
            self._pace.note(limit, advance.steps, time.perf_counter() - since, began_early)
            ended = advance.fault is not None or self.point.steps == self._max_steps
            if not ended:
                limit = min(self._pace.next(limit), self._rhythm.steps_left(self.point.steps))
                is_short = limit * self._pace.seconds < _SHORT_SECONDS
                waits = self._reads_batches or self._agreement.is_shared
                if advance.stopper is None and is_short and not waits:
                    self._early = self._dispatch(limit)
            self._limit = limit
            yield advance
            limit = self._limit
            if self._reads_batches and not ended:
                _, limit = self._agreement.next_chunk(None, min(limit, self._batches_left()))
            chunk = self._early
            if chunk is None and limit and not ended:
                chunk = self._dispatch(limit)

    def agree(self, stop: StopReason | None) -> StopReason | None:
        """Why to stop, as all processes see it, if one of them has a reason."""
        stop, self._limit = self._agreement.next_chunk(stop, self._limit)
        return stop

    @property
    def _reads_batches(self) -> bool:
        return self._feed is not None and self._feed.reads

    def _batches_left(self) -> int:
        """Have the batches of the next steps at hand; for how many they last."""
        if self._feed is None:
            return self._max_steps
        batches, left = self._feed.supply(self.point.steps)
        self.point = self.point._replace(constants=self.point.constants._replace(batches=batches))
        return left

    def end_reason(self) -> StopReason:
        """Why there are no more chunks, if nothing has stopped the fit."""
        if self.point.steps < self._max_steps:
            return stop_reasons.out_of_batches(self.point.steps - 1)
        return stop_reasons.reached(self._max_steps)

    def _collect(self, chunk: Chunk, limit: int) -> Advance:
        """Wait for a chunk, and stand where it has ended, or where it was last good."""
        point = self.point
        self._carry = chunk.carry
        # If nobody looks in between, the evaluation after the last step need not wait for Python.
        evaluation = None
        if point.steps + limit == self._max_steps and self._ends_with_its_last_chunk:
            evaluation = self._dispatch(1, self._max_steps)
        steps, code, *best = np.asarray(chunk.status).tolist()
        losses = np.asarray(chunk.losses)
        if point.steps == 0:
            self._check_inside(self._inside, point.constants.start)
        if code == NOT_FINITE:
            fault = self._fall_back(steps - 1, float(losses[steps - 1]))
            return Advance(steps - 1, losses, chunk.records, None, fault, fault is None)
        self._before = point
        self.best.note(point, best)
        self.point = point._replace(
            steps=point.steps + steps,
            carry=chunk.carry,
            last=chunk.last,
            given=None,
        )
        if code != RUNNING or self.point.steps == self._max_steps:
            self._evaluation = evaluation
        elif evaluation is not None:  # records have filled their buffer: it was not the end
            self._go_back()
            self._may_run_ahead = False
        stopper = None if code == RUNNING else code - FIRST_CALLBACK
        return Advance(steps, losses, chunk.records, stopper)

    @property
    def _ends_with_its_last_chunk(self) -> bool:
        """Whether nobody looks between the last chunk and the evaluation after it, which is needed."""
        programs = self.point.programs
        looked_at = programs.finishes or programs.averages or self._reads_batches
        after_update = programs.loop.problem.method.loss_after_update
        return self._may_run_ahead and not looked_at and not after_update

    def _dispatch(self, limit: int, first: int | None = None) -> Chunk:
        """Start a chunk from the carry; does not wait for it."""
        point, carry = self.point, self._carry
        span = np.array([point.steps if first is None else first, limit], np.int32)
        return point.programs.advance(carry, point.constants, span)

    def _go_back(self) -> None:
        """Take the carry from the point, after later steps have been begun with it."""
        assert self.point.carry is not None
        self._carry = self.point.carry

    def _withdraw(self) -> None:
        """Undo a chunk that was begun too early."""
        if self._early is not None:
            self._early = None
            self._go_back()

    # What host callbacks may change.

    def edit(self, flat: Flat, who: str) -> None:
        """Go on from another state that a callback has made."""
        point = self.point
        # Where an int or a string has changed, that is another program.
        same = flat.layout == point.layout
        programs = point.programs if same else self._programs_for(flat.layout)
        self._withdraw()
        constants = point.constants._replace(fixed=flat.fixed)
        pairs = zip(flat.fixed, point.constants.fixed, strict=True) if same else ()
        is_other = not same or any(new is not old for new, old in pairs)
        self._carry, inside = programs.move(self._carry, point.values, flat.free, constants, is_other)
        self._check_inside(inside, flat.free, f"{who} returned a diff_state that leaves the bounds: ")
        self.point = point._replace(
            carry=self._carry,
            programs=programs,
            constants=constants._replace(start=flat.free),
            given=flat.free,
        )

    @property
    def learning_rate(self) -> PyTree:
        """The current learning rate."""
        point = self.point
        rate = point.programs.learning_rate(point.carry or self._carry, point.constants)
        return jax.tree.map(lambda x: np.array(x) if x.ndim else x.item(), known_rate(rate))

    def set_learning_rate(self, rate: PyTree) -> None:
        """Set the learning rate from the next step on."""
        rate = jax.tree.map(lambda x: number("learning_rate", x), rate)
        self._withdraw()
        point = self.point
        self._carry = point.programs.set_learning_rate(self._carry, rate, point.constants)
        self.point = point._replace(carry=self._carry)

    def stop_reasons(self) -> tuple[StopReason, ...]:
        """Why the method may have ended the fit."""
        return self.point.programs.loop.problem.method.stop_reasons(self.point.values)

    # Faults.

    def _check_inside(self, inside: list[Array], values: Sequence[Array], prefix: str = "") -> None:
        if not all(inside):
            self._check_values(values, prefix)

    def _check_values(self, values: Sequence[Array], prefix: str = "") -> None:
        layout, values = self.point.layout, self._readable(values)
        for name, spec, value in zip(layout.names, layout.specs, values, strict=True):
            check_value(prefix + called(name), spec, value)

    def _fall_back(self, steps: int, loss: float) -> str | None:
        """Stand at the last good point, as `steps` steps after the current one something was not finite.

        Returns what was wrong; None if the last good point is not known.
        """
        point, step = self.point, self.point.steps + steps
        # The loss of a step is that of the point before its update, or of the point after it.
        after_update = point.programs.loop.problem.method.loss_after_update
        if step == 0:
            self._check_values(point.constants.start)
        if np.isfinite(loss):
            back, good_steps = point, step
        else:
            is_known = steps or (after_update and step and not point.edited)
            back = point if is_known else self._before
            good_steps = step if after_update else step - 1
            if back is None and self._resumed:
                return None
            if back is None:
                values = self._readable(point.constants.start)
                raise ValueError(bad_start(point.layout.names, values, loss))
        good = back.again(good_steps)
        chunk = point.again(step)
        last = chunk.last if steps else point.last
        finite = point.programs.gradients_finite(chunk.carry, point.constants, np.int32(step))
        self._carry, self._good_step = good.carry, good_steps
        self.best.note(back, np.asarray(good.status).tolist()[2:])
        self._resume_at = back
        self.point = back._replace(steps=step, carry=good.carry, last=last, given=None)
        fault = stop_reasons.not_finite(point.layout.names, step, loss, [bool(ok) for ok in finite])
        warnings.warn(fault, RuntimeWarning, stacklevel=depth_in_package())
        return fault

    def _readable(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The same, such that this process can see all of them; all processes ask for them at once."""
        return arrays if self._placement is None else self._placement.gathered(arrays)

    # The end.

    def stalled_at_bounds(self) -> tuple[str, ...]:
        """The names of elements next to bounds from which the loss falls into the allowed region.

        A method that keeps bounds itself has looked.
        """
        point = self.point
        if point.programs.loop.problem.method.keeps_bounds:
            return ()
        vector = ParameterVector.of(point.layout, point.values)
        if not vector.can_be_flat.any():
            return ()
        elements = vector.elements(point.values)
        (near,) = self._readable([vector.inside_by(elements, NEAR)[0] != elements])
        near = np.asarray(near)
        if not (near & vector.can_be_flat).any():
            return ()
        falls = point.programs.falls_inside(self._carry, point.constants, np.int32(point.steps))
        (falls,) = self._readable([falls])
        return vector.labelled(np.asarray(falls))

    def end(self, last_loss: Callable[[], float]) -> End | None:
        """Find the loss of the state where the fit stands; `last_loss` is that of the last step.

        None where it is not finite just after a resume: no good point is known.
        """
        self._withdraw()
        point = self.point
        if point.programs.averages:
            self._carry, values = point.programs.settle(self._carry, point.constants)
            self.point = point._replace(carry=self._carry, given=values)
        return self._evaluated(last_loss, None)

    def carries(self) -> tuple[PyTree, ...]:
        """Where traced callbacks stand, as NumPy arrays where this process has all of them."""
        carries = snapshot.restore(self._carry).callbacks
        return jax.tree.map(lambda x: np.array(x) if is_readable(x) else x, carries)

    def _evaluated(self, last_loss: Callable[[], float], fault: str | None) -> End | None:
        """The end, whose loss is what the next step would record; of that step nothing else is kept.

        So with batches it is that of the next one, or of the last where there is no other. Where
        losses are those after the update, it is that of the last step.
        """
        point = self.point
        after_update = point.programs.loop.problem.method.loss_after_update
        if after_update and point.steps and not point.edited:
            carries = snapshot.restore(self._carry).callbacks
            return End(point.values, last_loss(), snapshot.readable(carries), fault)
        if point.steps == 0:
            self._check_inside(self._inside, point.constants.start)
        if self._good_step is None and self._reads_batches:
            self._batches_left()  # where the last block has ended there may be another one
        chunk, self._evaluation = self._evaluation or self._dispatch(1, self._good_step), None
        loss = float(np.asarray(chunk.losses)[0])
        if np.isfinite(loss):
            carries = snapshot.restore(chunk.carry).callbacks
            return End(point.values, loss, snapshot.readable(carries), fault)
        fault = self._fall_back(0, loss)
        return None if fault is None else self._evaluated(last_loss, fault)
