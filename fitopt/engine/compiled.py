"""The compiled loop: the steps between two visits to Python, as one program.

`Loop` says what a fit computes; its methods are pure and traced. `Programs` compiles them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ..callback import Callback, StepInfo, own_methods
from ..methods.method import MakeStepper, Objective, Stepper
from ..state import Layout
from . import snapshot
from .records import MOST_STEPS, Recorder, check_names, records_of
from .snapshot import Small, Snapshot
from .validation import check_update

# How a stretch ended; other codes are FIRST_CALLBACK plus the number of the callback that asked to stop;
# the problem's endings are counted on from there.
RUNNING, NOT_FINITE, FIRST_CALLBACK = 0, 1, 2

# A step that ends the stretch takes this times its code off the count of steps: so one number tells the
# loop both how far it has come and whether to go on. More than there are steps in a stretch.
_ENDED = 2**20


Endings = Callable[[Sequence[Array]], tuple[str, ...]]  # sentences, for free values of some dtype


class Problem(NamedTuple):
    """What an optimizer instance minimises, and by which means."""

    evaluate: Callable[[Any], tuple[Any, Any]]  # the plain state -> (loss or residuals, aux)
    make_stepper: MakeStepper
    callbacks: tuple[Callback, ...]
    uses: tuple[str, ...]  # fields of StepInfo: what host callbacks look at
    endings: Endings | None = None  # why the method itself may end a fit
    follows: bool = False  # whether a step's loss is that of the coordinates after it


class Carry(NamedTuple):
    """All that goes from one step to the next."""

    stepper: PyTree
    callbacks: tuple[PyTree, ...]


class Stretch(NamedTuple):
    """What one run of the compiled loop gives back."""

    carry: Snapshot  # whose large arrays are donated to the next stretch
    kept: list[Array]  # copies of these
    values: list[Array]  # of the free Parameters, after the last step
    status: Array  # how many steps were begun, and how the last one ended
    losses: Array  # one for each step begun; what lies behind them is not meant
    records: tuple[dict[str, PyTree] | None, ...]  # of each callback, likewise
    last: dict[str, PyTree]  # of the last step's info what host callbacks use

    @property
    def saved(self) -> Snapshot:
        return Snapshot(self.carry.small, self.kept)


class Loop:
    """A problem, the layout of a state and a mode of differentiation.

    Throughout, `start` are the values of the free Parameters before the first step (they hold the
    entries that masks fix), and `fixed` are the arrays that the fit leaves as they are.
    """

    def __init__(self, problem: Problem, layout: Layout, mode: str | None):
        self.problem = problem
        self.layout = layout
        self.mode = mode

    def coordinates(self, values: Sequence[Array]) -> PyTree:
        pairs = zip(self.layout.specs, values, strict=True)
        return self.layout.free_tree([spec.to_position(value) for spec, value in pairs])

    def values(self, coordinates: PyTree, start: Sequence[Array]) -> list[Array]:
        leaves = jax.tree.leaves(coordinates)
        triples = zip(self.layout.specs, leaves, start, strict=True)
        return [spec.to_value(coordinate, value) for spec, coordinate, value in triples]

    def stepper(self, start: Sequence[Array], fixed: Sequence[Any]) -> Stepper:
        names = self.layout.free_tree([spec.name for spec in self.layout.specs])
        bends = any(spec.is_bounded or spec.transform is not None for spec in self.layout.specs)
        values = (lambda coordinates: self.values(coordinates, start)) if bends else None
        return self.problem.make_stepper(self._objective(start, fixed), self.mode, names, values)

    def _objective(self, start: Sequence[Array], fixed: Sequence[Any]) -> Objective:
        def objective(coordinates: PyTree) -> tuple[Array, Any]:
            return self.problem.evaluate(self.layout.plain(self.values(coordinates, start), fixed))

        return objective

    def _blank_info(self, stepper: Stepper, method: PyTree, start: Sequence[Array]) -> StepInfo:
        """A StepInfo in the shapes of those to come; `method` is the stepper's carry."""
        coordinates = stepper.coordinates(method)
        shapes = jax.eval_shape(stepper.evaluate, coordinates)
        loss, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        params = self.layout.free_tree(self.values(coordinates, start))
        grads = jax.tree.map(jnp.zeros_like, coordinates)
        rate = stepper.learning_rate(method)
        return StepInfo(jnp.zeros((), jnp.int32), loss, aux, params, grads, rate)

    def start(self, values: Sequence[Array], fixed: Sequence[Any]) -> tuple[Snapshot, list[Array]]:
        """The carry before the first step, and which of the values are inside their bounds."""
        return snapshot.take(self.begin(values, fixed)), self.inside(values)

    def begin(self, values: Sequence[Array], fixed: Sequence[Any]) -> Carry:
        """The carry before the first step."""
        # Large arrays are donated to the first stretch: they must not share memory with the user's.
        coordinates = self.coordinates([jnp.copy(value) for value in values])
        stepper = self.stepper(values, fixed)
        method = stepper.init(coordinates)
        carries: tuple[PyTree, ...] = ()
        if self.problem.callbacks:
            info = self._blank_info(stepper, method, values)
            carries = tuple(callback.init(info) for callback in self.problem.callbacks)
            for _, choose in own_methods(self.problem.callbacks, "first_learning_rate"):
                method = _with_rate(stepper, method, choose(info))
        return jax.tree.map(strongly_typed, Carry(method, carries))

    def inside(self, values: Sequence[Array]) -> list[Array]:
        """For each free Parameter that has bounds, whether a value keeps them."""
        pairs = zip(self.layout.specs, values, strict=True)
        return [spec.is_inside(value) for spec, value in pairs if spec.is_bounded]

    def step(
        self, stepper: Stepper, carry: Carry, step: Array, start: Sequence[Array]
    ) -> tuple[Carry, StepInfo, Array, Array]:
        """One step: the carry after it, what callbacks saw, the loss as it was taken, and the code."""
        method, info = stepper.step(carry.stepper)
        leaves = jax.tree.leaves(stepper.coordinates(method))
        finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in leaves])
        # Callbacks get a loss that waits for the update. It tells them of a step that went wrong; and
        # XLA's CPU runtime hands work to other threads when more than a few small kernels are ready
        # at once, which costs more than the kernels do.
        loss = jnp.where(finite, info.loss, jnp.nan)
        params = self.layout.free_tree(self.values(info.params, start))
        rate = stepper.learning_rate(method)
        told = info._replace(step=step, loss=loss, params=params, learning_rate=rate)
        carries, code = [], jnp.full((), RUNNING, jnp.int32)
        if self.problem.endings is not None:
            ending, callbacks = stepper.ended(method), len(self.problem.callbacks)
            code = jnp.where(ending > 0, FIRST_CALLBACK - 1 + callbacks + ending, code)
        for number, callback in reversed([*enumerate(self.problem.callbacks)]):
            before = carry.callbacks[number]
            after, stop = check_update(callback, before, callback.update(told, before))
            carries.insert(0, jax.tree.map(strongly_typed, after))
            if stop is not False:
                code = jnp.where(stop, FIRST_CALLBACK + number, code)
        code = jnp.where(jnp.isfinite(loss), code, NOT_FINITE)
        for number, choose in own_methods(self.problem.callbacks, "next_learning_rate"):
            method = _with_rate(stepper, method, choose(told, carries[number]))
        return Carry(method, tuple(carries)), told, info.loss, code

    def advance(
        self,
        large: list[Array],
        small: Small,
        start: Sequence[Array],
        fixed: Sequence[Any],
        span: Array,
    ) -> Stretch:
        """The steps from number `span[0]` of the fit on, at most `span[1]` of them."""
        first, limit = span
        # The loop copies what is not donated. XLA's CPU runtime wakes other threads when more than a few
        # small operations are ready at once; but a branch in which all is small runs in one piece.
        zeros = lambda small: jax.tree.map(jnp.zeros_like, small)
        small = lax.cond(limit >= 0, lambda small: small, zeros, small)
        carry: Carry = snapshot.restore(Snapshot(small, large))
        stepper = self.stepper(start, fixed)
        blank = self._blank_info(stepper, carry.stepper, start)
        recorders = [Recorder.of(callback, blank) for callback in self.problem.callbacks]
        check_names([name for recorder in recorders for name in recorder.shapes or ()])
        reach = min([MOST_STEPS, *(recorder.reach for recorder in recorders)])
        limit = jnp.minimum(limit, reach)

        def used(info: StepInfo) -> dict[str, PyTree]:
            return {name: getattr(info, name) for name in self.problem.uses}

        def body(state: Any) -> Any:
            carry, count, losses, records, _ = state
            carry, info, loss, code = self.step(stepper, carry, first + count, start)
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
        values = self.values(stepper.coordinates(carry.stepper), start)
        status = jnp.stack([count + code * _ENDED, code])
        return Stretch(*_twice(carry), values, status, losses, records, last)

    def scan(self, values: Sequence[Array], fixed: Sequence[Any], max_steps: int) -> "Scanned":
        """A whole fit as one `lax.scan`, for use under a transformation."""
        stepper = self.stepper(values, fixed)
        carry = self.begin(values, fixed)

        def advance(state: Any, step: Array) -> Any:
            carry, good, _, count = state
            after, info, loss, code = self.step(stepper, carry, step, values)
            taken = after if self.problem.follows else carry
            good = _select(jnp.isfinite(loss), stepper.coordinates(taken.stepper), good)
            loss = jnp.where(code == NOT_FINITE, jnp.nan, loss)
            records = tuple(records_of(callback, info) for callback in self.problem.callbacks)
            return (after, good, code, count + (code != NOT_FINITE)), (loss, records)

        def idle(state: Any, step: Array) -> Any:
            _, outputs = jax.eval_shape(advance, state, step)
            return state, jax.tree.map(_padding, outputs)

        zero = jnp.zeros((), jnp.int32)
        state = (carry, stepper.coordinates(carry.stepper), zero, zero)
        (carry, good, code, count), (losses, records) = lax.scan(
            lambda state, step: lax.cond(state[2] == RUNNING, advance, idle, state, step),
            state,
            jnp.arange(max_steps, dtype=jnp.int32),
        )
        if self.problem.follows and max_steps:
            last = self.values(good, values), losses[jnp.maximum(count - 1, 0)]
        else:
            # The fit ends at the last good point if its last step, or the loss after it, went wrong.
            here = _select(code == NOT_FINITE, good, stepper.coordinates(carry.stepper))
            carry = carry._replace(stepper=stepper.move(carry.stepper, here))
            other = stepper.result(carry.stepper)
            if other is not None:
                here = other
                carry = carry._replace(stepper=stepper.move(carry.stepper, here))
            carry, _, loss, _ = self.step(stepper, carry, count, values)
            finite = jnp.isfinite(loss)
            if max_steps:
                loss = jnp.where(finite, loss, losses[jnp.maximum(count - 1, 0)])
            last = self.values(_select(finite, here, good), values), loss
        result, loss = last
        for number, choose in own_methods(self.problem.callbacks, "result"):
            candidate = choose(carry.callbacks[number], loss)
            if candidate is not None:
                better, params, found = candidate
                result = _select(better, jax.tree.leaves(params), result)
                loss = _select(better, found, loss)
        return Scanned(result, loss, losses, count, records)

    def move(
        self,
        carry: Snapshot,
        values: Sequence[Array],
        edited: Sequence[Array],
        start: Sequence[Array],
        fixed: Sequence[Any],
    ) -> tuple[Snapshot, list[Array], list[Array]]:
        """The carry after a callback has changed `values` to `edited`, with copies of its large arrays;
        also which values are inside their bounds.

        Entries that were not edited keep their coordinates to the last bit.
        """
        stepper = self.stepper(start, fixed)
        method, callbacks = snapshot.restore(carry)
        old = jax.tree.leaves(stepper.coordinates(method))
        new = jax.tree.leaves(self.coordinates(edited))
        specs = self.layout.specs
        coordinates = [
            jnp.where(before == after, x, y)
            if spec.bijection.elementwise
            else jnp.where(jnp.all(before == after), x, y)
            for spec, before, after, x, y in zip(specs, values, edited, old, new, strict=True)
        ]
        method = stepper.move(method, self.layout.free_tree(coordinates))
        return *_twice(Carry(method, callbacks)), self.inside(edited)

    def current(self, carry: Snapshot, start: Sequence[Array], fixed: Sequence[Any]) -> list[Array]:
        """The values of the free Parameters where a carry stands."""
        method, _ = snapshot.restore(carry)
        return self.values(self.stepper(start, fixed).coordinates(method), start)

    def learning_rate(
        self, carry: Snapshot, start: Sequence[Array], fixed: Sequence[Any]
    ) -> PyTree | None:
        """The learning rate that a carry holds, if any."""
        return self.stepper(start, fixed).learning_rate(snapshot.restore(carry).stepper)

    def set_learning_rate(
        self, carry: Snapshot, rate: PyTree, start: Sequence[Array], fixed: Sequence[Any]
    ) -> tuple[Snapshot, list[Array]]:
        """A carry with another learning rate, and copies of its large arrays."""
        method, callbacks = snapshot.restore(carry)
        method = self.stepper(start, fixed).set_learning_rate(method, rate)
        return _twice(Carry(method, callbacks))

    def averages(self, carry: Snapshot, start: Sequence[Array], fixed: Sequence[Any]) -> bool:
        """Whether the user gets other values than those at which the loss is evaluated; not traced."""
        method, _ = snapshot.restore(carry)
        return self.stepper(start, fixed).result(method) is not None

    def settle(
        self, carry: Snapshot, start: Sequence[Array], fixed: Sequence[Any]
    ) -> tuple[Snapshot, list[Array], list[Array]]:
        """The carry at the values that the user gets, copies of its large arrays, and these values."""
        stepper = self.stepper(start, fixed)
        method, callbacks = snapshot.restore(carry)
        result = stepper.result(method)
        moved = Carry(stepper.move(method, result), callbacks)
        return *_twice(moved), self.values(result, start)

    def gradients_finite(
        self, carry: Snapshot, start: Sequence[Array], fixed: Sequence[Any]
    ) -> list[Array]:
        """For each free Parameter, whether its gradient is finite where the carry stands."""
        _, info = self.stepper(start, fixed).step(snapshot.restore(carry).stepper)
        return [jnp.all(jnp.isfinite(grad)) for grad in jax.tree.leaves(info.grads)]


class Scanned(NamedTuple):
    """What a fit under a transformation gives back."""

    values: list[Array]
    final_loss: Array
    losses: Array
    n_steps: Array
    records: tuple[dict[str, PyTree] | None, ...]


def strongly_typed(x: Any) -> Array:
    # A weak type would become a strong one in the first stretch, and the second compile once more.
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype)


def _twice(carry: Carry) -> tuple[Snapshot, list[Array]]:
    """A packed carry, and copies of its large arrays, which are donated later."""
    packed = snapshot.take(carry)
    return packed, snapshot.copies(packed.large)


def _with_rate(stepper: Stepper, method: PyTree, rate: PyTree | None) -> PyTree:
    return method if rate is None else stepper.set_learning_rate(method, rate)


def _select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def _padding(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)


class Programs:
    """The compiled methods of one `Loop`."""

    def __init__(self, loop: Loop):
        self.loop = loop
        # Looking up a method of an Equinox module takes longer than calling it: once is enough.
        self.results = own_methods(loop.problem.callbacks, "result")
        self.finishes = own_methods(loop.problem.callbacks, "finish")
        self.pace: dict[Any, float] = {}  # seconds a step, by the shapes of the arrays
        self.start = jax.jit(loop.start)
        self.advance = jax.jit(loop.advance, donate_argnums=0)
        self.move = jax.jit(loop.move)
        self.averages: bool | None = None  # not known before the first start
        self.settle = jax.jit(loop.settle)
        self.gradients_finite = jax.jit(loop.gradients_finite)
        self.copies = jax.jit(snapshot.copies)
        self.current = jax.jit(loop.current)
        self.learning_rate = jax.jit(loop.learning_rate)
        self.set_learning_rate = jax.jit(loop.set_learning_rate)
