"""The compiled loop: the steps between two visits to Python, as one program.

`Loop` says what a fit computes; its methods are pure and traced, and `Programs` compiles them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..batches import draw
from ..callback import Callback, Metric, StepInfo, own_methods
from ..methods.method import Constants, Method, Objective, Stepper
from ..state import Flat, Layout, ParameterVector, PyTree
from . import snapshot
from .records import MOST_STEPS, Recorder, check_names
from .snapshot import Snapshot
from .validation import check_update

# How a chunk ended; other codes are FIRST_CALLBACK plus the number of the callback that asked to stop;
# the method's stop codes are counted on from there.
RUNNING, NOT_FINITE, FIRST_CALLBACK = 0, 1, 2

# A step that ends the chunk takes this times its code off the count of steps: so one number tells the
# loop both how far it has come and whether to go on. It is more than there are steps in a chunk.
_ENDED = 2**20

NEAR = 1e-2  # of the width between bounds: next to them transforms are flat
_SMALL = 1024  # entries of an array
_FALLS = 1e-6  # of the loss: by more than that it falls


class Problem(NamedTuple):
    """What an optimizer instance minimises, and by which means."""

    evaluate: Callable[..., tuple[Any, Any]]  # the plain state, a batch -> (loss or residuals, aux)
    method: Method
    callbacks: tuple[Callback, ...]
    uses: tuple[str, ...]  # fields of StepInfo: what host callbacks look at

    @property
    def choosing(self) -> list[int]:
        """The callbacks that choose a step whose state may be returned in place of the last one."""
        return [i for i, _ in own_methods(self.callbacks, "best_step")]

    def constants(self, flat: Flat, batches: PyTree = None) -> Constants:
        """What stays the same from the start of a fit on."""
        arrays = eqx.filter(self.callbacks, eqx.is_array) if self.callbacks else ()
        return Constants(flat.free, flat.fixed, batches, arrays if jax.tree.leaves(arrays) else None)

    def callbacks_of(self, constants: Constants) -> tuple[Callback, ...]:
        """The callbacks with the arrays that the program was handed."""
        if constants.callbacks is None:
            return self.callbacks
        return eqx.combine(constants.callbacks, self.callbacks)


class Carry(NamedTuple):
    """All that goes from one step to the next."""

    stepper: PyTree
    callbacks: tuple[PyTree, ...]


class Chunk(NamedTuple):
    """What one run of the compiled loop gives back."""

    carry: Snapshot
    status: Array  # how many steps were begun, how the last one ended, the best step of each `choosing`
    losses: Array  # one for each step begun; entries after these are undefined
    records: tuple[dict[str, PyTree] | None, ...]  # of each callback, likewise
    last: dict[str, PyTree]  # of the last step's info what host callbacks use


class Loop:
    """A problem, the layout of a state and a mode of differentiation.

    `stacks` says whether its carry may hold many small arrays as a few larger ones.
    """

    def __init__(self, problem: Problem, layout: Layout, mode: str | None, stacks: bool = False):
        self.problem = problem
        self.layout = layout
        self.mode = mode
        self.stacks = stacks

    def without_stacks(self) -> "Loop":
        """The same, with a carry as users know it."""
        return Loop(self.problem, self.layout, self.mode)

    def bind(self, constants: Constants, step: Array | int = 0) -> tuple[Objective, Stepper]:
        """What is minimised at a step, and the method that does it."""
        vector = ParameterVector.of(self.layout, constants.start, self.problem.method.keeps_bounds)
        batch = () if constants.batches is None else (draw(constants.batches, jnp.asarray(step)),)
        objective = Objective(self.problem.evaluate, vector, constants, self.mode, batch)
        method = self.problem.method
        return objective, method.bind_stacked(objective) if self.stacks else method.bind(objective)

    # The beginning.

    def start(self, constants: Constants) -> tuple[Snapshot, list[Array]]:
        """The carry before the first step, and which of the values are inside their bounds."""
        return snapshot.take(self.begin(constants)), self.inside(constants.start)

    def begin(self, constants: Constants) -> Carry:
        """The carry before the first step."""
        objective, stepper = self.bind(constants)
        method = stepper.init(objective.position(constants.start))
        carries: list[PyTree] = []
        if callbacks := self.problem.callbacks_of(constants):
            info = _blank_info(objective, stepper, method)
            for callback in callbacks:
                carries.append(callback.init(info))
                info = _measured(callback, carries[-1], info)
            for _, choose in own_methods(callbacks, "first_learning_rate"):
                method = _with_rate(stepper, method, choose(info))
        return jax.tree.map(strongly_typed, Carry(method, tuple(carries)))

    def inside(self, values: Sequence[Array]) -> list[Array]:
        """For each free Parameter that has bounds, whether a value keeps them."""
        pairs = zip(self.layout.specs, values, strict=True)
        return [spec.is_inside(value) for spec, value in pairs if spec.is_bounded]

    # Steps.

    def step(
        self, objective: Objective, stepper: Stepper, carry: Carry, step: Array
    ) -> tuple[Carry, StepInfo, Array, Array]:
        """One step: the carry after it, what callbacks saw, the loss as it was taken, and the code."""
        method, info = stepper.step(carry.stepper)
        finite = all_finite(stepper.arrays(method))
        # Callbacks get a loss that waits for the update. It tells them of a step that went wrong; and
        # XLA's CPU runtime hands work to other threads when more than a few small kernels are ready
        # at once, which costs more than the kernels do.
        loss = jnp.where(finite, info.loss, jnp.nan)
        seen = info._replace(
            step=step,
            loss=loss,
            params=objective.tree(objective.values(info.params)),
            learning_rate=stepper.learning_rate(method),
            state=objective.state(info.params),
        )
        carries, stops, callbacks = [], [], self.problem.callbacks_of(objective.constants)
        for callback, before in zip(callbacks, carry.callbacks, strict=True):
            after, stop = check_update(callback, before, callback.update(seen, before))
            carries.append(jax.tree.map(strongly_typed, after))
            stops.append(stop)
            seen = _measured(callback, after, seen)
        code, stop_code = jnp.full((), RUNNING, jnp.int32), stepper.stop_code(method)
        if stop_code is not None:
            code = jnp.where(stop_code > 0, FIRST_CALLBACK - 1 + len(callbacks) + stop_code, code)
        for number, stop in reversed([*enumerate(stops)]):  # the first one of them is the reason
            if stop is not False:
                code = jnp.where(stop, FIRST_CALLBACK + number, code)
        code = jnp.where(jnp.isfinite(loss), code, NOT_FINITE)
        for number, choose in own_methods(callbacks, "next_learning_rate"):
            method = _with_rate(stepper, method, choose(seen, carries[number]))
        return Carry(method, tuple(carries)), seen, info.loss, code

    def advance(self, before: Snapshot, constants: Constants, span: Array) -> Chunk:
        """The steps from number `span[0]` of the fit on, at most `span[1]` of them."""
        first, limit = span
        carry: Carry = snapshot.restore(_copied_at_once(before, limit >= 0))
        objective, stepper = self.bind(constants, first)
        blank = _blank_info(objective, stepper, carry.stepper)
        callbacks = self.problem.callbacks_of(constants)
        for callback, part in zip(callbacks, carry.callbacks, strict=True):
            blank = _measured(callback, part, blank)
        recorders = [Recorder.of(callback, blank) for callback in callbacks]
        check_names([name for recorder in recorders for name in recorder.shapes or ()])
        reach = min([MOST_STEPS, *(recorder.reach for recorder in recorders)])
        limit = jnp.minimum(limit, reach)

        def used(info: StepInfo) -> dict[str, PyTree]:
            return {name: getattr(info, name) for name in self.problem.uses}

        def body(state: Any) -> Any:
            carry, count, losses, records, _ = state
            step = first + count
            bound = (objective, stepper) if constants.batches is None else self.bind(constants, step)
            carry, info, loss, code = self.step(*bound, carry, step)
            losses = lax.dynamic_update_index_in_dim(losses, loss, count, 0)
            records = tuple(
                recorder.write(record, info, first)
                for recorder, record in zip(recorders, records, strict=True)
            )
            return carry, count + 1 - code * _ENDED, losses, records, used(info)

        losses = jnp.zeros((MOST_STEPS,), blank.loss.dtype)
        records = tuple(recorder.empty() for recorder in recorders)
        carry, count, losses, records, last = lax.while_loop(
            lambda state: (state[1] >= 0) & (state[1] < limit),
            body,
            (carry, jnp.zeros((), jnp.int32), losses, records, used(blank)),
        )
        code = jnp.where(count < 0, -(count // _ENDED), RUNNING)
        best = [self.problem.callbacks[i].best_step(carry.callbacks[i]) for i in self.problem.choosing]
        status = jnp.stack([count + code * _ENDED, code, *best], dtype=jnp.int32)
        return Chunk(snapshot.take(carry), status, losses, records, last)

    # Between chunks.

    def move(
        self,
        carry: Snapshot,
        values: Sequence[Array],
        edited: Sequence[Array],
        constants: Constants,
        is_other: bool | Array,
    ) -> tuple[Snapshot, list[Array]]:
        """The carry after a callback has changed `values` to `edited`, and which of these are inside.

        `is_other` says whether it has changed the objective, too.
        """
        objective, stepper = self.bind(constants)
        method, callbacks = snapshot.restore(carry)
        after = list(callbacks)
        for number, renew in own_methods(self.problem.callbacks, "objective_changed"):
            choose = lambda new, old: jnp.where(is_other, new, old)
            after[number] = jax.tree.map(choose, renew(after[number]), after[number])
        position = jax.tree.leaves(stepper.position(method))
        position = objective.vector.edited_position(position, values, edited)
        method = stepper.move(method, objective.tree(position))
        return snapshot.take(Carry(method, tuple(after))), self.inside(edited)

    def set_learning_rate(self, carry: Snapshot, rate: PyTree, constants: Constants) -> Snapshot:
        """A carry with another learning rate."""
        method, callbacks = snapshot.restore(carry)
        method = self.bind(constants)[1].set_learning_rate(method, rate)
        return snapshot.take(Carry(method, callbacks))

    def settle(self, carry: Snapshot, constants: Constants) -> tuple[Snapshot, list[Array]]:
        """The carry at the values that the user gets, and these values."""
        objective, stepper = self.bind(constants)
        method, callbacks = snapshot.restore(carry)
        result = stepper.result(method)
        moved = Carry(stepper.move(method, result), callbacks)
        return snapshot.take(moved), objective.values(result)

    # What a carry tells.

    def values(self, carry: Snapshot, constants: Constants) -> list[Array]:
        """The values of the free Parameters where a carry stands."""
        objective, stepper = self.bind(constants)
        return objective.values(stepper.position(snapshot.restore(carry).stepper))

    def plain(self, carry: Snapshot, constants: Constants) -> Carry:
        """The carry as users know it."""
        method, callbacks = snapshot.restore(carry)
        return Carry(self.bind(constants)[1].plain(method), callbacks)

    def packed(self, carry: Carry, constants: Constants) -> Snapshot:
        """What `plain` was made of."""
        return snapshot.take(carry._replace(stepper=self.bind(constants)[1].packed(carry.stepper)))

    def learning_rate(self, carry: Snapshot, constants: Constants) -> PyTree | None:
        """The learning rate that a carry holds, if any."""
        return self.bind(constants)[1].learning_rate(snapshot.restore(carry).stepper)

    def averages(self, carry: Snapshot, constants: Constants) -> bool:
        """Whether the user gets other values than those at which the loss is evaluated; not traced."""
        result = lambda carry: self.bind(constants)[1].result(snapshot.restore(carry).stepper)
        return jax.eval_shape(result, carry) is not None

    def falls_inside(self, carry: Snapshot, constants: Constants, step: Array | int = 0) -> Array:
        """For which elements next to bounds the loss falls into the allowed region.

        There the slope of a transform is nearly zero, and so are all derivatives by the unconstrained
        value; so the loss itself is looked at, in points that lie further inside.
        """
        objective, stepper = self.bind(constants, step)
        method = snapshot.restore(carry).stepper
        vector, position = objective.vector, stepper.position(method)
        loss, _ = stepper.evaluate(position)
        elements = vector.elements(objective.values(position))
        _, info = stepper.step(method)
        gradient = vector.elements(jax.tree.leaves(info.grads))
        near, upwards = vector.inside_by(elements, NEAR)
        # A derivative may have been lost in underflow; so all count but those that point outwards.
        slope = jnp.where(upwards, gradient, -gradient)
        candidates = (near != elements) & (slope <= 0) & vector.can_be_flat

        def loss_at(fraction: Array) -> Array:
            inside, _ = vector.inside_by(elements, fraction)
            values = vector.with_elements(constants.start, jnp.where(candidates, inside, elements))
            return stepper.evaluate(objective.position(values))[0]

        least = jnp.nanmin(lax.map(loss_at, 2.0 ** -jnp.arange(1.0, 41.0)))
        return candidates & (least < loss - _FALLS * jnp.abs(loss))

    def gradients_finite(self, carry: Snapshot, constants: Constants, step: Array) -> list[Array]:
        """For each free Parameter, whether its gradient is finite where the carry stands."""
        _, info = self.bind(constants, step)[1].step(snapshot.restore(carry).stepper)
        return [jnp.all(jnp.isfinite(grad)) for grad in jax.tree.leaves(info.grads)]


def _blank_info(objective: Objective, stepper: Stepper, method: PyTree) -> StepInfo:
    """A StepInfo in the shapes of those to come; `method` is the stepper's carry."""
    position = stepper.position(method)
    shapes = jax.eval_shape(stepper.evaluate, position)
    loss, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params = objective.tree(objective.values(position))
    grads = jax.tree.map(jnp.zeros_like, position)
    rate = stepper.learning_rate(method)
    state = objective.state(position)
    return StepInfo(jnp.zeros((), jnp.int32), loss, aux, params, grads, rate, state)


def _measured(callback: Callback, carry: PyTree, info: StepInfo) -> StepInfo:
    """The info with what a callback has measured, for those after it."""
    if not (measured := callback.measure(carry)):
        return info
    is_new = info.step % callback.every == 0
    metrics = {name: Metric(value, is_new) for name, value in measured.items()}
    return info._replace(metrics={**info.metrics, **metrics})


def all_finite(arrays: Sequence[Array]) -> Array:
    """Whether no entry is infinite or NaN."""
    # Zero times what is not finite is NaN. XLA's CPU compiler makes better loops of sums than of tests
    # of each entry, and splits large ones over the cores.
    sums = [jnp.sum(x * jnp.zeros((), x.dtype)) for x in arrays]
    return functools.reduce(jnp.add, sums) == 0


def strongly_typed(x: Any) -> Array:
    """An array of a dtype of its own: a weak one would become strong in the first chunk, and the
    second would be compiled once more.
    """
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype)


def _copied_at_once(before: Snapshot, always: Array) -> Snapshot:
    """The same, small arrays in one piece.

    The loop copies what it begins with. XLA's CPU runtime wakes other threads when more than a few small
    operations are ready at once; but a branch in which all is small runs in one piece.
    """
    arrays, places = [*before.arrays], [i for i, x in enumerate(before.arrays) if x.size <= _SMALL]
    zeros = lambda small: jax.tree.map(jnp.zeros_like, small)
    small = lax.cond(always, lambda small: small, zeros, [arrays[i] for i in places])
    for i, x in zip(places, small, strict=True):
        arrays[i] = x
    return dataclasses.replace(before, arrays=arrays)


def _with_rate(stepper: Stepper, method: PyTree, rate: PyTree | None) -> PyTree:
    return method if rate is None else stepper.set_learning_rate(method, rate)
