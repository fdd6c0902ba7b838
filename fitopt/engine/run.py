"""The host's side of a fit: stretches, host callbacks, history, and what is done about faults."""

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ..callback import Callback, Fit, HostCallback, HostFunction, cadence, due, label, open_host
from ..history import History
from ..optimizers.composition import number
from ..parameter.specification import called, check_value
from ..state import Flat, Layout, combine, flatten
from . import resume, snapshot
from .chunks import Pace
from .compiled import FIRST_CALLBACK, NOT_FINITE, RUNNING, Programs, Stretch
from .history_writer import Journal
from .host_callbacks import interpret, merge_edit
from .interruption import Interruption, interruptible
from .resume import BadPoint, Description, ResumePoint
from .snapshot import Snapshot
from .validation import bad_start, depth_in_package

_SHORT_SECONDS = 1e-3  # a stretch shorter than this is begun while callbacks look at the last one


class Point(NamedTuple):
    """Where a fit stands after some good steps: all that going on from there, or back to it, takes."""

    steps: int
    carry: Snapshot | None  # None before the first step
    programs: Programs
    start: list[Array]
    fixed: list[Any]

    @property
    def layout(self) -> Layout:
        return self.programs.loop.layout


class Host(NamedTuple):
    """A host callback in a fit: its place in the user's list, its rhythm, and what to call."""

    place: int
    callback: Any
    anyhow: bool  # whether it is called whenever the loop comes back to Python
    due: Callable[[int], int | None]
    function: HostFunction

    def stop_reason(self) -> str:
        known = isinstance(self.callback, HostCallback)
        return self.callback.stop_reason() if known else f"{label(self.callback)} asked to stop"


class Run:
    """One fit. `callbacks` are all callbacks in the user's order; `programs` know the traced ones."""

    def __init__(
        self,
        programs_for: Callable[[Layout], Programs],
        callbacks: Sequence[Any],
        state: PyTree,
        flat: Flat,
        max_steps: int,
        earlier: tuple[ResumePoint, History] | None = None,
    ):
        self.programs_for = programs_for
        programs = programs_for(flat.layout)
        self.point = Point(0, None, programs, flat.free, flat.fixed)
        self.fixed = flat.fixed
        self.earlier = earlier
        self.resume_at: Point | None = None  # where to go on later, if not at the last point
        self.before: Point | None = None  # the start of the last stretch that made a step
        self.traced = programs.loop.problem.callbacks
        self.callbacks = callbacks
        self.state = state
        self.max_steps = max_steps
        self.history = History()
        self.history._start = state
        self.journal = Journal(self.history, programs.loop.problem.callbacks, max_steps)
        self.due = [due(c) for c in callbacks if not isinstance(c, Callback)]
        self.reason: str | None = None
        self.wish: str | None = None  # why somebody wants the fit to end
        shapes = tuple(getattr(x, "shape", ()) for x in (*flat.free, *flat.fixed))
        self.pace = Pace(programs.pace, shapes)
        self.values: list[Array] = list(flat.free)
        self.fixed_state = flat.layout.fixed_state(flat.fixed)
        self.last: dict[str, PyTree] = {}
        self.edited = False  # whether a callback has edited the state after the last step
        self.descriptions: dict[Programs, tuple[Description, Description]] = {}
        self.early: Stretch | None = None  # the next stretch, if it has begun
        self.ahead: Stretch | None = None  # the evaluation after the last step, likewise
        self.may_run_ahead = not (self.due or programs.finishes or programs.loop.problem.follows)

    @property
    def done(self) -> int:
        return self.point.steps

    def __call__(self) -> tuple[PyTree, History]:
        with interruptible() as interruption:
            try:
                return self.fit(interruption)
            except BaseException as error:
                if self.done:
                    self.leave_to(error)
                raise

    def fit(self, interruption: Interruption) -> tuple[PyTree, History]:
        self.began = time.perf_counter()
        point = self.point
        if self.earlier is not None:
            resume.check_state(self.earlier[0], point.layout, point.start, point.fixed)
        self.carry, self.inside = point.programs.start(point.start, point.fixed)
        if self.earlier is not None:
            self.take_up(*self.earlier)
            point = self.point
        if point.programs.averages is None:
            point.programs.averages = point.programs.loop.averages(self.carry, point.start, point.fixed)
        self.may_run_ahead &= not point.programs.averages
        with contextlib.ExitStack() as stack:
            hosts = []
            for place, one in enumerate(self.callbacks):
                if not isinstance(one, Callback):
                    function = stack.enter_context(open_host(one, Fit(self)))
                    hosts.append(Host(place, one, cadence(one) is None, due(one), function))
            limit = min(self.pace.first(), self.until_due())
            stretch = self.dispatch(limit) if limit else None
            while stretch is not None:
                since = time.perf_counter()
                steps, stopper = self.collect(stretch, limit)
                self.pace.note(limit, steps, time.perf_counter() - since, self.early is not None)
                self.early, limit = None, self.next_limit(limit)
                if stopper is None and limit and limit * self.pace.seconds < _SHORT_SECONDS:
                    self.early = self.dispatch(limit)
                if self.reason is None:
                    self.call(hosts, stopper, interruption)
                if self.reason is None and interruption.requested:
                    self.reason = f"interrupted (Ctrl-C) after step {self.done - 1}"
                if self.reason is None and self.wish is not None:
                    self.reason = f"{self.wish} (after step {self.done - 1})"
                if self.reason is not None or self.done == self.max_steps:
                    break
                stretch = self.early or self.dispatch(limit)
            self.take_back()
            self.finish()
        return self.result, self.history

    # Going on with an earlier fit.

    def take_up(self, point: ResumePoint, history: History) -> None:
        """Stand where an earlier fit stood."""
        programs, start, fixed = self.point.programs, self.point.start, self.point.fixed
        resume.check_method(point, programs, start, fixed)
        if point.steps > self.max_steps:
            raise ValueError(
                f"cannot resume: max_steps is {self.max_steps}, and {point.steps} steps are made already"
            )
        if point.carry is None:
            return
        fixed = [x if new is None else new for x, new in zip(fixed, point.fixed, strict=True)]
        self.journal.take_up(history, point.steps)
        carry = snapshot.like(point.carry, self.carry)
        self.point = Point(point.steps, carry, programs, point.start, fixed)
        self.values = programs.current(carry, point.start, fixed)
        self.go_back()
        self.fixed_state = self.point.layout.fixed_state(fixed)
        self.began -= point.elapsed

    def resume_point(self) -> ResumePoint:
        """All that going on from the last good step takes, besides the history."""
        if self.history._resume_point is not None:  # the fit has ended, and stands somewhere else
            return self.history._resume_point
        steps, carry, programs, start, fixed = self.resume_at or self.point
        kept = [None if x is old else x for x, old in zip(fixed, self.fixed, strict=True)]
        known = self.descriptions

        def describe() -> tuple[Description, Description]:
            if programs not in known:
                state = resume.describe_state(programs.loop.layout, start, fixed)
                known[programs] = state, resume.describe_method(programs, start, fixed)
            return known[programs]

        return ResumePoint(steps, carry, start, kept, self.elapsed, describe)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    # Steps.

    def collect(self, stretch: Stretch, limit: int) -> tuple[int, int | None]:
        """Wait for a stretch; returns how many good steps it made, and which traced callback stopped."""
        self.carry = stretch.carry
        # If nobody looks in between, the evaluation after the last step need not wait for Python.
        ahead = None
        if self.done + limit == self.max_steps and self.may_run_ahead:
            ahead = self.dispatch(1, self.max_steps)
        steps, code = np.asarray(stretch.status).tolist()
        steps -= code == NOT_FINITE
        losses = np.asarray(stretch.losses)
        if self.done == 0:
            self.check_inside(self.inside, self.point.start)
        self.journal.append(losses, stretch.records, steps)
        if code == NOT_FINITE:
            self.not_finite(steps, float(losses[steps]))
            return steps, None
        self.edited = False
        self.values, self.last = stretch.values, stretch.last
        self.before = point = self.point
        steps_made = point.steps + steps
        self.point = Point(steps_made, stretch.saved, point.programs, point.start, point.fixed)
        if code != RUNNING or self.done == self.max_steps:
            self.ahead = ahead
        elif ahead is not None:  # records have filled their buffer: it was not the end
            self.go_back()
            self.may_run_ahead = False
        return steps, None if code == RUNNING else code - FIRST_CALLBACK

    def dispatch(self, limit: int, first: int | None = None) -> Stretch:
        """Start a stretch from the carry, which must not be used again; does not wait for it."""
        span = np.array([self.done if first is None else first, limit], np.int32)
        point, carry = self.point, self.carry
        return point.programs.advance(carry.large, carry.small, point.start, point.fixed, span)

    def go_back(self) -> None:
        """Take the carry from the last point, after later steps have been begun with it."""
        assert self.point.carry is not None
        self.carry = self.fresh(self.point.carry)

    def fresh(self, saved: Snapshot) -> Snapshot:
        """A carry to go on with from a saved one, which stays."""
        return Snapshot(saved.small, self.point.programs.copies(saved.large)) if saved.large else saved

    def next_limit(self, limit: int) -> int:
        """How many steps the next stretch should have; 0 when there are none to make."""
        return 0 if self.reason is not None else min(self.pace.next(limit), self.until_due())

    def take_back(self) -> None:
        """Undo a stretch that was begun too early."""
        if self.early is not None:
            self.early = None
            self.go_back()

    def until_due(self) -> int:
        """How many steps until a host callback is due, or until the last step."""
        steps = self.max_steps - self.done
        for next_due in self.due:
            step = next_due(self.done)
            if step is not None:
                steps = min(steps, step - self.done + 1)
        return steps

    # Host callbacks.

    def call(
        self,
        hosts: list[Host],
        stopper: int | None,
        interruption: Interruption,
    ) -> None:
        """Call the host callbacks that are due, and note who stopped the fit: the first in the list."""
        step = self.done - 1
        stops: dict[int, str] = {}
        if stopper is not None and stopper >= len(self.traced):
            endings = self.point.programs.loop.problem.endings
            assert endings is not None
            sentence = endings(self.values)[stopper - len(self.traced)]
            stops[len(self.callbacks)] = f"{sentence} (at step {step})"
        elif stopper is not None:
            callback = self.traced[stopper]
            place = next(i for i, other in enumerate(self.callbacks) if other is callback)
            stops[place] = f"{callback.stop_reason()} (at step {step})"
        visits = [host for host in hosts if host.anyhow or host.due(step) == step]
        if visits:
            free, fixed = self.point.layout.free_state(self.values), self.fixed_state
            loss = self.history["loss"][-1]
        for host in visits:
            place, callback, function = host.place, host.callback, host.function
            arguments = (self.history, self.last.get("aux"), loss, self.last.get("grads"))
            interruption.at_once = True
            try:
                returned = function(step, free, fixed, *arguments)
            except KeyboardInterrupt:
                self.reason = f"interrupted (Ctrl-C) in a callback after step {step}"
                return
            finally:
                interruption.at_once = False
            stop, new_free, new_fixed = interpret(callback, returned, free, fixed)
            if new_free is not free or new_fixed is not fixed:
                self.edit(callback, new_free, new_fixed)
                free, fixed = self.point.layout.free_state(self.values), self.fixed_state
            if stop:
                stops.setdefault(place, f"{host.stop_reason()} (at step {step})")
        if stops:
            self.reason = stops[min(stops)]

    def edit(self, callback: Any, free: PyTree, fixed: PyTree) -> None:
        """Go on from a state that a callback has returned."""
        who = label(callback)
        free = merge_edit(who, "diff_state", self.point.layout.free_state(self.values), free)
        fixed = merge_edit(who, "static_state", self.fixed_state, fixed)
        values, arrays, layout = flatten(combine(free, fixed))
        pairs = zip((*values, *arrays), (*self.values, *self.point.fixed), strict=True)
        if layout == self.point.layout and all(new is old for new, old in pairs):
            return
        programs = self.point.programs
        if layout != self.point.layout:  # an int or a string has changed: that is another program
            programs = self.programs_for(layout)
        self.take_back()
        self.carry, kept, inside = programs.move(
            self.carry, self.values, values, self.point.start, arrays
        )
        self.check_inside(inside, values, f"{who} returned a diff_state that leaves the bounds: ")
        self.point = Point(self.done, Snapshot(self.carry.small, kept), programs, values, arrays)
        self.edited = True
        self.values, self.fixed_state = values, layout.fixed_state(arrays)

    # What `Fit` offers to host callbacks.

    def learning_rate(self) -> PyTree:
        point = self.point
        rate = point.programs.learning_rate(point.carry or self.carry, point.start, point.fixed)
        if rate is None:
            raise ValueError(
                "the state of this optimizer holds no learning rate; use one of fitopt.optimizers, "
                "or optax.inject_hyperparams"
            )
        return jax.tree.map(lambda x: np.array(x) if x.ndim else x.item(), rate)

    def set_learning_rate(self, rate: PyTree) -> None:
        rate = jax.tree.map(lambda x: number("learning_rate", x), rate)
        self.take_back()
        point = self.point
        self.carry, kept = point.programs.set_learning_rate(self.carry, rate, point.start, point.fixed)
        self.point = point._replace(carry=Snapshot(self.carry.small, kept))

    # Faults.

    def check_inside(self, inside: list[Array], values: Sequence[Array], prefix: str = "") -> None:
        if not all(inside):
            self.check_values(values, prefix)

    def check_values(self, values: Sequence[Array], prefix: str = "") -> None:
        layout = self.point.layout
        for name, spec, value in zip(layout.names, layout.specs, values, strict=True):
            try:
                check_value(called(name), spec, value)
            except ValueError as error:
                raise ValueError(prefix + str(error)) from None

    def not_finite(self, steps: int, loss: float) -> None:
        """End the fit at the last good point; `steps` steps after `self.point` one went wrong."""
        point, step = self.point, self.point.steps + steps
        follows = point.programs.loop.problem.follows
        if step == 0:
            self.check_values(self.point.start)
        if np.isfinite(loss):
            back, what = point, "the update"
            good = self.again(back, step)
        else:
            # Where losses follow the steps, that of the point is known; but if it was edited.
            known = steps or (follows and step and not self.edited)
            back, what = point if known else self.before, f"the loss ({loss})"
            if back is None and self.earlier is not None:
                raise BadPoint
            if back is None:
                raise ValueError(bad_start(self.state, loss))
            good = self.again(back, step if follows else step - 1)
        stretch = self.again(point, step)
        if steps:
            self.last = stretch.last
        finite = point.programs.gradients_finite(stretch.carry, point.start, point.fixed)
        bad = [name for name, ok in zip(point.layout.names, finite, strict=True) if not ok]
        gradients = f"not finite: the gradients of {', '.join(bad)}" if bad else "all gradients finite"
        self.carry, self.values = good.carry, good.values
        self.edited = False
        self.resume_at = back
        self.point = back._replace(steps=step, carry=good.saved)
        self.reason = f"{what} was not finite at step {step} ({gradients}); returned the last good state"
        warnings.warn(self.reason, RuntimeWarning, stacklevel=depth_in_package())

    def again(self, point: Point, until: int) -> Stretch:
        """Go back to a point and make its steps again, up to a number of the fit."""
        if point.carry is None:
            carry, _ = point.programs.start(point.start, point.fixed)
        else:
            carry = self.fresh(point.carry)
        span = np.array([point.steps, until - point.steps], np.int32)
        return point.programs.advance(carry.large, carry.small, point.start, point.fixed, span)

    def leave_to(self, error: BaseException) -> None:
        """Give an exception that ends the fit what was reached before."""
        self.history.update(resume.cut(self.history, self.done))
        last = f"{type(error).__name__} after step {self.done - 1}"
        self.history.update(n_steps=self.done, stop_reason=last, elapsed=self.elapsed)
        self.history._resume_point = self.resume_point()
        state = self.point.layout.state(self.values, self.point.fixed)
        with contextlib.suppress(AttributeError):
            error.fit = (state, self.history)  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(
                f"The fit had made {self.done} steps; `state, history = error.fit` has what was "
                "reached, and run(..., resume_from=history) goes on from there."
            )

    # The end.

    def finish(self) -> None:
        """Find the loss of the state to return, let callbacks offer a better one, sum up."""
        if self.reason is None:
            self.reason = f"reached max_steps={self.max_steps}"
        programs = self.point.programs
        self.history._resume_point = self.resume_point()
        to_finish = [
            (finish, jax.tree.map(np.array, snapshot.restore(self.carry).callbacks[i]))
            for i, finish in programs.finishes
        ]
        if programs.averages:
            self.carry, kept, self.values = programs.settle(
                self.carry, self.point.start, self.point.fixed
            )
            self.point = self.point._replace(carry=Snapshot(self.carry.small, kept))
        values, loss, probed = self.probe()
        for i, result in self.point.programs.results:
            candidate = result(snapshot.look_into(probed).callbacks[i], loss)
            if candidate is not None and bool(candidate[0]):
                values = jax.device_put(jax.tree.leaves(candidate[1]))
                loss = float(np.asarray(candidate[2]))
        losses = self.history["loss"]
        best = int(np.argmin(losses)) if self.done else 0
        self.history.update(
            n_steps=self.done,
            final_loss=loss,
            best_loss=float(losses[best]) if self.done else loss,
            best_step=best,
            stop_reason=self.reason,
        )
        self.result = self.point.layout.state(values, self.point.fixed) if self.done else self.state
        self.history["elapsed"] = self.elapsed
        for finish, carry in to_finish:
            finish(self.history, carry)

    def probe(self) -> tuple[list[Array], float, Snapshot]:
        """Values, loss and the carry where the fit has ended.

        The loss is what the next step would record; of that step nothing else is kept. Where losses
        follow the steps, it is that of the last one.
        """
        if self.done and self.point.programs.loop.problem.follows and not self.edited:
            return self.values, float(self.history["loss"][-1]), self.carry
        if self.done == 0:
            self.check_inside(self.inside, self.point.start)
        values = self.values
        stretch, self.ahead = self.ahead or self.dispatch(1), None
        loss = np.asarray(stretch.losses)[0]
        if np.isfinite(loss):
            return values, float(loss), stretch.carry
        self.not_finite(0, float(loss))
        return self.probe()
