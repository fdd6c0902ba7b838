"""The compiled program of many fits: lanes that advance side by side, and are filled again."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ..callback import own_methods
from ..engine.compiled import NEAR, NOT_FINITE, RUNNING, Carry, Loop
from ..engine.records import records_of
from ..engine.scanned import chosen, conclude, nan_outside, select
from ..methods.method import Constants
from ..state import PyTree

Given = Any  # arrays of NumPy on the host, traced in programs

AXIS = "lanes"
VACANT = -1  # in place of the number of a fit
_MEMORY = 0.9  # of steps and ends that were before a lane was filled
_FILLING = 1.0  # steps take about as long as taking out what has ended and filling the lanes again


class Lane(NamedTuple):
    """One fit; in programs a leading axis of lanes comes first."""

    fit: Int[Given, ""]  # its number, or VACANT
    start: list[Array]
    fixed: list[Any]  # of the arrays that are not fitted those that are not the same in all fits
    carry: Carry
    good: PyTree  # the last position at which the loss was finite
    steps: Int[Array, ""]  # good ones
    code: Int[Array, ""]
    loss: Float[Array, ""]  # of the last good step
    best_loss: Float[Array, ""]
    best_step: Int[Array, ""]
    best: list[PyTree]  # the positions of the steps that callbacks have chosen


class Lanes(NamedTuple):
    """All that goes from one call of the program to the next."""

    lane: Lane
    steps: Float[Given, ""]  # made of late, in all lanes
    ended: Float[Given, ""]  # of late


class Page(NamedTuple):
    """Some fits that wait for a lane, with a leading axis of as many."""

    fit: Int[Given, " page"]
    start: list[Array]
    fixed: list[Any]


class Queue(NamedTuple):
    """How far the page of a device has come."""

    next: Int[Given, ""]  # which of the page comes next
    count: Int[Given, ""]  # how many the page has
    more: Bool[Given, ""]  # whether another page will follow


class Order(NamedTuple):
    """What a call is to do."""

    limit: Int[Given, ""]  # of steps
    max_steps: Int[Given, ""]  # of each fit


class Result(NamedTuple):
    """How a fit has ended."""

    fit: Int[Array, ""]
    values: list[Array]
    loss: Float[Array, ""]
    steps: Int[Array, ""]
    code: Int[Array, ""]
    best_loss: Float[Array, ""]
    best_step: Int[Array, ""]
    position: PyTree  # where it stands, or where it went wrong
    near_bounds: Bool[Array, ""]
    went_wrong: Bool[Array, ""]
    callbacks: tuple[PyTree, ...]  # the carries of those that want them at the end


class Records(NamedTuple):
    """What each step of a call has recorded, with leading axes of steps and lanes."""

    fit: Int[Array, "steps lanes"]  # VACANT where there was none
    losses: Float[Array, "steps lanes"]
    of_callbacks: tuple[dict[str, PyTree] | None, ...]


class Output(NamedTuple):
    """What a call gives back."""

    lanes: Lanes
    results: Result  # with a leading axis, of which `counts` tells how much is meant
    records: Records | None
    counts: Int[Array, "4"]  # results, how many of the page are taken, steps, lanes that are running


class LaneProgram:
    """The fits of one `Loop`, so many at once.

    `varying` are the numbers of the fixed arrays that are not the same in all fits; `room` is how many
    steps a call may record, 0 for no records. Where nothing is to be fitted, `steps_at_all` is False.
    """

    def __init__(self, loop: Loop, varying: tuple[int, ...], room: int, steps_at_all: bool):
        self.loop = loop
        self._varying = varying
        self.room = room
        self._steps_at_all = steps_at_all
        self._finishing = [i for i, _ in own_methods(loop.problem.callbacks, "finish")]

    def blank(self, page: Page, shared: list[Any], width: int) -> Lane:
        """Lanes without a fit, of fits such as those of a page; of NumPy, which compiles nothing."""
        begin = jax.vmap(self.begin, in_axes=(0, 0, 0, None))
        shapes = jax.eval_shape(begin, page.fit, page.start, page.fixed, shared)
        lane: Lane = jax.tree.map(lambda x: _zeros((width, *x.shape[1:]), x.dtype, np), shapes)
        return lane._replace(fit=np.full(width, VACANT, np.int32))

    def _constants(self, start: list[Array], fixed: list[Any], shared: list[Any]) -> Constants:
        """Those of one lane; `shared` has None in place of what varies."""
        merged = list(shared)
        for i, x in zip(self._varying, fixed, strict=True):
            merged[i] = x
        return Constants(start, merged)

    # One lane.

    def begin(self, fit: Array, start: list[Array], fixed: list[Any], shared: list[Any]) -> Lane:
        """A lane before its first step."""
        loop = self.loop
        constants = self._constants(nan_outside(loop, start), fixed, shared)
        _, stepper = loop.bind(constants)
        carry = loop.begin(constants)
        position = stepper.position(carry.stepper)
        loss = jax.eval_shape(stepper.evaluate, position)[0]
        nothing, zero = jnp.full((), jnp.nan, loss.dtype), jnp.zeros((), jnp.int32)
        code = jnp.full((), RUNNING, jnp.int32)
        inf = jnp.full_like(nothing, jnp.inf)
        best = [position for _ in loop.problem.choosing]
        return Lane(fit, start, fixed, carry, position, zero, code, nothing, inf, zero, best)

    def running(self, lane: Lane, max_steps: Array) -> Bool[Array, ""]:
        return (lane.fit != VACANT) & (lane.code == RUNNING) & (lane.steps < max_steps)

    def step(self, lane: Lane, shared: list[Any], max_steps: Array) -> tuple[Lane, Any]:
        """A lane after a step, unless it has ended; and what is recorded."""
        loop, constants = self.loop, self._constants(lane.start, lane.fixed, shared)
        objective, stepper = loop.bind(constants)
        after, info, loss, code = loop.step(objective, stepper, lane.carry, lane.steps)
        running = self.running(lane, max_steps)
        went_well = running & (code != NOT_FINITE)
        after_update = loop.problem.method.loss_after_update
        evaluated = stepper.position((after if after_update else lane.carry).stepper)
        known = went_well if after_update else running & jnp.isfinite(loss)
        better = went_well & (loss < lane.best_loss)
        new = Lane(
            fit=lane.fit,
            start=lane.start,
            fixed=lane.fixed,
            # Where a step went wrong, what went wrong is looked at from before it.
            carry=select(went_well, after, lane.carry),
            good=select(known, evaluated, lane.good),
            steps=lane.steps + went_well,
            code=jnp.where(running, code, lane.code),
            loss=jnp.where(went_well, loss, lane.loss),
            best_loss=jnp.where(better, loss, lane.best_loss),
            best_step=jnp.where(better, lane.steps, lane.best_step),
            best=select(
                went_well, chosen(loop, after.callbacks, lane.steps, evaluated, lane.best), lane.best
            ),
        )
        if not self.room:
            return new, None
        records = tuple(records_of(callback, info) for callback in loop.problem.callbacks)
        return new, (jnp.where(went_well, lane.fit, VACANT), loss, records)

    def conclude(self, lane: Lane, shared: list[Any]) -> Result:
        """The result of a lane that has ended."""
        loop, constants = self.loop, self._constants(lane.start, lane.fixed, shared)
        last = lane.loss if self._steps_at_all else None
        end = conclude(loop, constants, lane.carry, lane.good, lane.code, lane.steps, last, lane.best)
        went_wrong = lane.code == NOT_FINITE
        if end.evaluated_loss is not None:
            went_wrong |= ~jnp.isfinite(end.evaluated_loss)
        _, stepper = loop.bind(constants)
        position = stepper.position(lane.carry.stepper)
        return Result(
            fit=lane.fit,
            values=end.values,
            loss=end.loss,
            steps=lane.steps,
            code=lane.code,
            best_loss=lane.best_loss,
            best_step=lane.best_step,
            position=position,
            near_bounds=self._near_bounds(constants, position),
            went_wrong=went_wrong,
            callbacks=tuple(lane.carry.callbacks[i] for i in self._finishing),
        )

    def _near_bounds(self, constants: Constants, position: PyTree) -> Bool[Array, ""]:
        """Whether a bound may hold a fit that ends here."""
        objective = self.loop.bind(constants)[0]
        vector = objective.vector
        if self.loop.problem.method.keeps_bounds or not vector.can_be_flat.any():
            return jnp.zeros((), bool)
        elements = vector.elements(objective.values(position))
        near = (vector.inside_by(elements, NEAR)[0] != elements) & vector.can_be_flat
        return jnp.any(near)

    # All lanes.

    def advance(self, lanes: Lanes, page: Page, queue: Queue, shared: list[Any], order: Order) -> Output:
        """Make steps, and take out what has ended and fill its lanes when that is worth its time.

        When that is does not depend on the limit: fits come to the same lanes however often a call ends.
        """
        width, rows = lanes.lane.fit.size, page.fit.size + lanes.lane.fit.size
        count_of = lambda flags: jnp.sum(flags, dtype=jnp.int32)
        is_running = lambda lane: jax.vmap(self.running, in_axes=(0, None))(lane, order.max_steps)
        occupied = lambda lane: lane.fit != VACANT
        step = jax.vmap(self.step, in_axes=(0, None, None))
        begin = jax.vmap(self.begin, in_axes=(0, 0, 0, None))
        conclude_all = jax.vmap(self.conclude, in_axes=(0, None))

        def is_due(lanes: Lanes) -> Array:
            """Whether so many lanes idle that it is worth while to fill them."""
            running = is_running(lanes.lane)
            ended = lanes.ended + count_of(occupied(lanes.lane) & ~running)
            mean = lanes.steps / jnp.maximum(ended, 1)  # steps of a fit
            share = jnp.sqrt(2 * _FILLING / jnp.maximum(mean, 1.0))
            enough = jnp.clip(width * share, 1.0, max(1.0, width / 2))
            return (count_of(~running) >= enough) | ~jnp.any(running)

        def advance(state: Any) -> Any:
            lanes, count, records = state
            before = count_of(is_running(lanes.lane))
            lane, recorded = step(lanes.lane, shared, order.max_steps)
            put = lambda x, new: lax.dynamic_update_index_in_dim(x, new, count, 0)
            records = jax.tree.map(put, records, recorded)
            return Lanes(lane, lanes.steps + before, lanes.ended), count + 1, records

        def refill(state: Any) -> Any:
            lanes, results, taken_out, following = state
            lane, running = lanes.lane, is_running(lanes.lane)
            ended = occupied(lane) & ~running
            found = conclude_all(lane, shared)
            places = jnp.where(ended, taken_out + jnp.cumsum(ended, dtype=jnp.int32) - 1, rows)
            results = jax.tree.map(lambda x, new: x.at[places].set(new, mode="drop"), results, found)
            waiting = following + jnp.cumsum(~running, dtype=jnp.int32) - 1
            filled = ~running & (waiting < queue.count)
            chosen = jax.tree.map(lambda x: x[jnp.minimum(waiting, page.fit.size - 1)], page)
            lane = lane._replace(fit=jnp.where(running, lane.fit, VACANT))
            fresh = begin(chosen.fit, chosen.start, chosen.fixed, shared)
            lane = jax.vmap(select)(filled, fresh, lane)
            taken_out, following = taken_out + count_of(ended), following + count_of(filled)
            lanes = Lanes(lane, _MEMORY * lanes.steps, _MEMORY * (lanes.ended + count_of(ended)))
            return lanes, results, taken_out, following

        def turn(state: Any) -> Any:
            lanes, results, records, taken_out, following, count = state
            is_last = (following >= queue.count) & ~queue.more

            def go_on(state: Any) -> Array:
                lanes, count, _ = state
                running = jnp.any(is_running(lanes.lane))
                # While nothing waits to take their place, lanes that have ended may stay.
                return (count < order.limit) & running & (is_last | ~is_due(lanes))

            lanes, count, records = lax.while_loop(go_on, advance, (lanes, count, records))
            due = is_due(lanes) & (is_last | (following < queue.count))
            state = lanes, results, taken_out, following
            lanes, results, taken_out, following = lax.cond(due, refill, lambda state: state, state)
            return lanes, results, records, taken_out, following, count

        def has_work(state: Any) -> Array:
            lanes, _, _, _, following, count = state
            exhausted = following >= queue.count
            starved = exhausted & queue.more & is_due(lanes)
            left = jnp.any(occupied(lanes.lane)) | ~exhausted
            return (count < order.limit) & left & ~starved

        found = jax.eval_shape(conclude_all, lanes.lane, shared)
        results = jax.tree.map(lambda x: _zeros((rows, *x.shape[1:]), x.dtype), found)
        recorded = jax.eval_shape(step, lanes.lane, shared, order.max_steps)[1]
        records = jax.tree.map(lambda x: jnp.zeros((self.room, *x.shape), x.dtype), recorded)
        zero = jnp.zeros((), jnp.int32)
        state = (lanes, results, records, zero, queue.next, zero)
        lanes, results, records, taken_out, following, count = lax.while_loop(has_work, turn, state)
        counts = jnp.stack([taken_out, following, count, count_of(occupied(lanes.lane))])
        return Output(lanes, results, Records(*records) if self.room else None, counts)


def _zeros(shape: tuple[int, ...], dtype: Any, library: Any = jnp) -> Any:
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return library.zeros(shape, dtype)
    for generator in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=generator)
        if key.dtype == dtype:
            return jnp.broadcast_to(key, shape)
    raise TypeError(f"lanes cannot hold random keys of dtype {dtype}")


def compiled(program: LaneProgram, devices: Sequence[Any]) -> Callable[..., Output]:
    """`advance` on some devices at once, each with lanes, a page and a queue of its own.

    All of these have a leading axis that is divided among the devices. Nothing goes from one device to
    another.
    """

    def on_one(lanes: Lanes, page: Page, queue: Queue, shared: list[Any], order: Order) -> Output:
        own = lanes._replace(steps=lanes.steps[0], ended=lanes.ended[0])
        output = program.advance(own, page, jax.tree.map(lambda x: x[0], queue), shared, order)
        lanes = output.lanes
        lanes = lanes._replace(steps=lanes.steps[None], ended=lanes.ended[None])
        return output._replace(lanes=lanes, counts=output.counts[None])

    if len(devices) == 1:
        return jax.jit(on_one, donate_argnums=0)
    mesh, split, whole = Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS), PartitionSpec()
    by_step = PartitionSpec(None, AXIS) if program.room else None
    out: Any = (split, split, by_step, split)
    spread = jax.shard_map(
        on_one,
        mesh=mesh,
        in_specs=(split, split, split, whole, whole),
        out_specs=Output(*out),
        check_vma=False,
    )
    return jax.jit(spread, donate_argnums=0)
