"""The compiled loop: the steps between two visits to Python, as one program.

`Loop` says what a fit computes; its methods are pure and traced. `Programs` compiles them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from . import snapshot
from .callback import Callback, StepInfo, own_methods
from .history import RESERVED
from .partition import Layout
from .stepper import Objective, Stepper

# How a stretch ended. A positive code n means that traced callback n - 1 asked to stop.
RUNNING = 0
NOT_FINITE = -1

MOST_STEPS = 2**15  # of one stretch: room for this many losses is set aside
_MOST_BYTES = 2**26  # of the records of one callback in one stretch


class Problem(NamedTuple):
    """What an optimizer instance minimises, and by which means."""

    loss: Callable[[Any], Any]
    make_stepper: Callable[[Objective, str], Stepper]
    callbacks: tuple[Callback, ...]
    has_aux: bool
    uses: tuple[str, ...]  # of "aux" and "grads": what host callbacks look at


class Carry(NamedTuple):
    """All that goes from one step to the next."""

    stepper: PyTree
    callbacks: tuple[PyTree, ...]


class Stretch(NamedTuple):
    """What one run of the compiled loop gives back."""

    carry: Carry
    saved: snapshot.Snapshot  # of the carry, which itself is donated to the next stretch
    values: list[Array]  # of the free Parameters, after the last step
    status: Array  # how many steps were begun, and how the last one ended
    losses: Array  # one for each step begun; what lies behind them is not meant
    records: tuple[dict[str, PyTree] | None, ...]  # of each callback, likewise
    last: dict[str, PyTree]  # aux and gradients of the last step, where a host callback uses them


class Loop:
    """A problem, the layout of a state and a mode of differentiation.

    Throughout, `start` are the values of the free Parameters before the first step (they hold the
    entries that masks fix), and `fixed` are the arrays that the fit leaves as they are.
    """

    def __init__(self, problem: Problem, layout: Layout, mode: str):
        self.problem = problem
        self.layout = layout
        self.mode = mode

    def coordinates(self, values: Sequence[Array]) -> PyTree:
        pairs = zip(self.layout.specs, values, strict=True)
        return self.layout.free_tree([spec.to_coordinate(value) for spec, value in pairs])

    def values(self, coordinates: PyTree, start: Sequence[Array]) -> list[Array]:
        leaves = jax.tree.leaves(coordinates)
        triples = zip(self.layout.specs, leaves, start, strict=True)
        return [spec.to_value(coordinate, value) for spec, coordinate, value in triples]

    def stepper(self, start: Sequence[Array], fixed: Sequence[Any]) -> Stepper:
        return self.problem.make_stepper(self._objective(start, fixed), self.mode)

    def _objective(self, start: Sequence[Array], fixed: Sequence[Any]) -> Objective:
        def objective(coordinates: PyTree) -> tuple[Array, Any]:
            state = self.layout.plain(self.values(coordinates, start), fixed)
            return check_loss(self.problem.loss(state), self.problem.has_aux)

        return objective

    def _blank_info(self, coordinates: PyTree, start: Sequence[Array], fixed: Sequence[Any]) -> StepInfo:
        """A StepInfo in the shapes of those to come."""
        shapes = jax.eval_shape(self._objective(start, fixed), coordinates)
        loss, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        params = self.layout.free_tree(self.values(coordinates, start))
        grads = jax.tree.map(jnp.zeros_like, coordinates)
        return StepInfo(jnp.zeros((), jnp.int32), loss, aux, params, grads)

    def start(self, values: Sequence[Array], fixed: Sequence[Any]) -> tuple[Carry, list[Array]]:
        """The carry before the first step, and which of the values are inside their bounds."""
        # The carry is donated to the first stretch: it must not share memory with the user's arrays.
        coordinates = self.coordinates([jnp.copy(value) for value in values])
        callbacks = self.problem.callbacks
        carries: tuple[PyTree, ...] = ()
        if callbacks:
            info = self._blank_info(coordinates, values, fixed)
            carries = tuple(callback.init(info) for callback in callbacks)
        carry = Carry(self.stepper(values, fixed).init(coordinates), carries)
        return jax.tree.map(_strong, carry), self.inside(values)

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
        told = info._replace(step=step, loss=loss, params=params)
        carries, code = [], jnp.full((), RUNNING, jnp.int32)
        for number, callback in reversed([*enumerate(self.problem.callbacks, start=1)]):
            before = carry.callbacks[number - 1]
            after, stop = check_update(callback, before, callback.update(told, before))
            carries.insert(0, after)
            if stop is not False:
                code = jnp.where(stop, number, code)
        code = jnp.where(jnp.isfinite(loss), code, NOT_FINITE)
        return Carry(method, tuple(carries)), told, info.loss, code

    def advance(
        self,
        carry: Carry,
        start: Sequence[Array],
        fixed: Sequence[Any],
        first: Array,
        limit: Array,
    ) -> Stretch:
        """At most `limit` steps, of which the first is step number `first` of the fit."""
        stepper = self.stepper(start, fixed)
        blank = self._blank_info(stepper.coordinates(carry.stepper), start, fixed)
        recorders = [Recorder.of(callback, blank) for callback in self.problem.callbacks]
        _check_names([name for recorder in recorders for name in recorder.shapes or ()])
        reach = min([MOST_STEPS, *(recorder.reach for recorder in recorders)])
        limit = jnp.minimum(limit, reach)

        def used(info: StepInfo) -> dict[str, PyTree]:
            return {name: getattr(info, name) for name in self.problem.uses}

        def body(state: Any) -> Any:
            carry, _, count, losses, records, _ = state
            carry, info, loss, code = self.step(stepper, carry, first + count, start)
            losses = lax.dynamic_update_index_in_dim(losses, loss, count, 0)
            records = tuple(
                recorder.write(record, info, first)
                for recorder, record in zip(recorders, records, strict=True)
            )
            return carry, code, count + 1, losses, records, used(info)

        zero = jnp.zeros((), jnp.int32)
        losses = jnp.zeros((MOST_STEPS,), blank.loss.dtype)
        records = tuple(recorder.empty() for recorder in recorders)
        carry, code, count, losses, records, last = lax.while_loop(
            lambda state: (state[1] == RUNNING) & (state[2] < limit),
            body,
            (carry, zero, zero, losses, records, used(blank)),
        )
        values = self.values(stepper.coordinates(carry.stepper), start)
        status = jnp.stack([count, code])
        return Stretch(carry, snapshot.take(carry), values, status, losses, records, last)

    def scan(self, values: Sequence[Array], fixed: Sequence[Any], max_steps: int) -> "Scanned":
        """A whole fit as one `lax.scan`, for use under a transformation."""
        stepper = self.stepper(values, fixed)
        carry, _ = self.start(values, fixed)

        def advance(state: Any, step: Array) -> Any:
            carry, good, _, count = state
            after, info, loss, code = self.step(stepper, carry, step, values)
            here = stepper.coordinates(carry.stepper)
            good = _select(jnp.isfinite(loss), here, good)
            loss = jnp.where(code == NOT_FINITE, jnp.nan, loss)
            records = tuple(_records(callback, info) for callback in self.problem.callbacks)
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
        # The last good point is where the fit ends if its last step, or the loss after it, went wrong.
        here = _select(code == NOT_FINITE, good, stepper.coordinates(carry.stepper))
        carry = carry._replace(stepper=stepper.move(carry.stepper, here))
        carry, _, loss, _ = self.step(stepper, carry, count, values)
        finite = jnp.isfinite(loss)
        if max_steps:
            loss = jnp.where(finite, loss, losses[jnp.maximum(count - 1, 0)])
        result = self.values(_select(finite, here, good), values)
        for number, choose in own_methods(self.problem.callbacks, "result"):
            candidate = choose(carry.callbacks[number])
            if candidate is not None:
                better = candidate[1] < loss
                result = _select(better, jax.tree.leaves(candidate[0]), result)
                loss = _select(better, candidate[1], loss)
        return Scanned(result, loss, losses, count, records)

    def move(
        self,
        carry: Carry,
        values: Sequence[Array],
        edited: Sequence[Array],
        start: Sequence[Array],
        fixed: Sequence[Any],
    ) -> tuple[Carry, snapshot.Snapshot, list[Array]]:
        """The carry after a callback has changed `values` to `edited`; also which are inside bounds.

        Entries that were not edited keep their coordinates to the last bit.
        """
        stepper = self.stepper(start, fixed)
        old = jax.tree.leaves(stepper.coordinates(carry.stepper))
        new = jax.tree.leaves(self.coordinates(edited))
        specs = self.layout.specs
        coordinates = [
            jnp.where(before == after, x, y)
            if spec.bijection.elementwise
            else jnp.where(jnp.all(before == after), x, y)
            for spec, before, after, x, y in zip(specs, values, edited, old, new, strict=True)
        ]
        moved = stepper.move(carry.stepper, self.layout.free_tree(coordinates))
        carry = Carry(moved, carry.callbacks)
        return carry, snapshot.take(carry), self.inside(edited)

    def gradients_finite(
        self, carry: Carry, start: Sequence[Array], fixed: Sequence[Any]
    ) -> list[Array]:
        """For each free Parameter, whether its gradient is finite where the carry stands."""
        _, info = self.stepper(start, fixed).step(carry.stepper)
        return [jnp.all(jnp.isfinite(grad)) for grad in jax.tree.leaves(info.grads)]


class Scanned(NamedTuple):
    """What a fit under a transformation gives back."""

    values: list[Array]
    final_loss: Array
    losses: Array
    n_steps: Array
    records: tuple[dict[str, PyTree] | None, ...]


class Recorder(NamedTuple):
    """The buffer of one callback's records during a stretch."""

    callback: Callback
    shapes: dict[str, PyTree] | None
    room: int  # records

    @classmethod
    def of(cls, callback: Callback, info: StepInfo) -> "Recorder":
        shapes = jax.eval_shape(functools.partial(_records, callback), info)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        room = min(-(-MOST_STEPS // callback.every), _MOST_BYTES // max(size, 1))
        return cls(callback, shapes, max(room, 1))

    @property
    def reach(self) -> int:
        """How many steps fill the buffer."""
        return self.room * self.callback.every if self.shapes else MOST_STEPS

    def empty(self) -> dict[str, PyTree] | None:
        return jax.tree.map(lambda x: jnp.zeros((self.room, *x.shape), x.dtype), self.shapes)

    def write(self, buffer: Any, info: StepInfo, first: Array) -> Any:
        if self.shapes is None:
            return None
        every = self.callback.every
        slot = info.step // every - (first + every - 1) // every

        def put(buffer: Any) -> Any:
            return jax.tree.map(
                lambda x, new: lax.dynamic_update_index_in_dim(x, new, slot, 0),
                buffer,
                _records(self.callback, info),
            )

        if every == 1:
            return put(buffer)
        return lax.cond(info.step % every == 0, put, lambda buffer: buffer, buffer)


def _records(callback: Callback, info: StepInfo) -> dict[str, PyTree] | None:
    """What a callback records, by name."""
    records = callback.record(info)
    if records is None:
        return None
    if not isinstance(records, Mapping):
        records = {getattr(callback, "name", type(callback).__name__): records}
    return {name: jax.tree.map(jnp.asarray, record) for name, record in records.items()}


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in RESERVED or names.count(name) > 1:
            raise ValueError(f"two callbacks record {name!r}, or a name that the history itself uses")


def _select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def _strong(x: Any) -> Array:
    # A weak type would become a strong one in the first stretch, and the second compile once more.
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype)


def _padding(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)


def check_loss(result: Any, has_aux: bool) -> tuple[Array, Any]:
    """Loss and aux, or a TypeError that says what the loss returned instead."""
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "has_aux=True: the loss must return a pair (loss, aux), "
                f"but it returned {_describe(result)}"
            )
        result, aux = result
    elif isinstance(result, tuple):
        raise TypeError(
            f"the loss must return a real scalar, but it returned {_describe(result)}; "
            "if the rest is auxiliary data, say has_aux=True"
        )
    else:
        aux = None
    if not isinstance(result, (float, jax.Array)) and not hasattr(result, "dtype"):
        raise TypeError(f"the loss must return a real scalar, but it returned {_describe(result)}")
    loss = jnp.asarray(result)
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must return a real scalar, but it returned {_describe(result)}")
    return loss, jax.tree.map(jnp.asarray, aux)


def _describe(x: Any) -> str:
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    if hasattr(x, "dtype"):
        shape = f"shape {tuple(x.shape)}" if x.shape else "a scalar"
        return f"an array, {shape}, of dtype {x.dtype}"
    return f"{x!r} of type {type(x).__name__}"


def check_update(callback: Callback, before: PyTree, returned: Any) -> tuple[PyTree, Any]:
    """Carry and stop flag of a callback's update, or a TypeError that says what is wrong with them."""
    name = type(callback).__name__
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(f"{name}.update must return (carry, stop), got {_describe(returned)}")
    after, stop = returned
    if not isinstance(stop, bool):
        stop = jnp.asarray(stop)
        if stop.shape != () or stop.dtype != bool:
            raise TypeError(f"{name}.update: stop must be a boolean scalar, got {_describe(stop)}")
    given, kept = (jax.tree.map(lambda x: jax.typeof(jnp.asarray(x)), x) for x in (after, before))
    given_shapes, kept_shapes = (
        jax.tree.map(lambda x: (x.shape, x.dtype), x, is_leaf=lambda x: hasattr(x, "dtype"))
        for x in (given, kept)
    )
    if jax.tree.structure(after) != jax.tree.structure(before) or given_shapes != kept_shapes:
        raise TypeError(f"{name}.update must return a carry like that of init, {kept}; got {given}")
    return jax.tree.map(_strong, after), stop


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
        self.move = jax.jit(loop.move, donate_argnums=0)
        self.gradients_finite = jax.jit(loop.gradients_finite)
        self.restore = jax.jit(snapshot.restore)
