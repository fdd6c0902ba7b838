"""A fit inside `jit`, `vmap` or `grad`: one `lax.scan`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..batches import epochs
from ..history import History
from ..methods.method import Constants
from ..state import PyTree
from . import snapshot
from .compiled import FIRST_CALLBACK, NOT_FINITE, RUNNING, Carry, Loop
from .records import records_of


class Scanned(NamedTuple):
    """What a fit under a transformation gives back."""

    values: list[Array]
    final_loss: Array
    losses: Array  # NaN after the stop
    n_steps: Array
    converged: Array
    records: tuple[dict[str, PyTree] | None, ...]

    def history(self, loop: Loop, batches: PyTree) -> History:
        """The history, in which all is traced."""
        history = History(loss=self.losses)
        for callback, records in zip(loop.problem.callbacks, self.records, strict=True):
            for name, record in (records or {}).items():
                every = callback.every
                history[name] = jax.tree.map(lambda x, every=every: x[::every], record)
                history.every[name] = every
        best_step, best_loss = jnp.zeros((), int), self.final_loss
        if self.losses.size:
            best_step = jnp.argmin(jnp.where(jnp.isnan(self.losses), jnp.inf, self.losses))
            best_loss = self.losses[best_step]
        if (passes := epochs(batches, 0, self.losses.size)) is not None:
            history["epoch"] = jnp.where(jnp.arange(passes.size) < self.n_steps, passes, 0)
            history.every["epoch"] = 1
        history.update(
            n_steps=self.n_steps,
            converged=self.converged,
            final_loss=self.final_loss,
            best_loss=best_loss,
            best_step=best_step,
        )
        return history


def scan(loop: Loop, constants: Constants, max_steps: int) -> Scanned:
    """A whole fit as one `lax.scan`."""
    constants = constants._replace(start=nan_outside(loop, constants.start))
    after_update = loop.problem.method.loss_after_update
    objective, stepper = loop.bind(constants)
    callbacks = loop.problem.callbacks_of(constants)
    carry = loop.begin(constants)

    def advance(state: Any, step: Array) -> Any:
        carry, good, _, count, best = state
        bound = (objective, stepper) if constants.batches is None else loop.bind(constants, step)
        after, info, loss, code = loop.step(*bound, carry, step)
        evaluated = stepper.position((after if after_update else carry).stepper)
        good = select(jnp.isfinite(loss), evaluated, good)
        best = chosen(loop, after.callbacks, step, evaluated, best)
        loss = jnp.where(code == NOT_FINITE, jnp.nan, loss)
        records = tuple(records_of(callback, info) for callback in callbacks)
        return (after, good, code, count + (code != NOT_FINITE), best), (loss, records)

    def idle(state: Any, step: Array) -> Any:
        _, outputs = jax.eval_shape(advance, state, step)
        return state, jax.tree.map(_padding, outputs)

    zero = jnp.zeros((), jnp.int32)
    position = stepper.position(carry.stepper)
    state = (carry, position, zero, zero, [position for _ in loop.problem.choosing])
    axes = _manual_axes(jax.eval_shape(advance, state, zero))
    go_on = lambda state, step: _varying(advance(state, step), axes)
    stand_still = lambda state, step: _varying(idle(state, step), axes)
    (carry, good, code, count, best), (losses, records) = lax.scan(
        lambda state, step: lax.cond(state[2] == RUNNING, go_on, stand_still, state, step),
        _varying(state, axes),
        jnp.arange(max_steps, dtype=jnp.int32),
    )
    converged = _converged(loop, constants, carry, code, count)
    last_loss = losses[jnp.maximum(count - 1, 0)] if max_steps else None
    end = conclude(loop, constants, carry, good, code, count, last_loss, best)
    return Scanned(end.values, end.loss, losses, count, converged, records)


def chosen(
    loop: Loop, callbacks: Sequence[PyTree], step: Array, evaluated: PyTree, before: list[PyTree]
) -> list[PyTree]:
    """The positions of the best steps after one at which `evaluated` was the position."""
    steps = [loop.problem.callbacks[i].best_step(callbacks[i]) for i in loop.problem.choosing]
    return [select(best == step, evaluated, old) for best, old in zip(steps, before, strict=True)]


class Conclusion(NamedTuple):
    """The state to return."""

    values: list[Array]
    loss: Array
    evaluated_loss: Array | None  # the last one, which need not be finite; None where there was none


def conclude(
    loop: Loop,
    constants: Constants,
    carry: Carry,
    good: PyTree,
    code: Array,
    count: Array,
    last_loss: Array | None,
    best: list[PyTree],
) -> Conclusion:
    """Find the state to return, and its loss, after `count` steps of which the last ended with `code`.

    `good` is the last position at which the loss was finite, `last_loss` the loss of the last good step,
    None before the first one, and `best` are the positions of the best steps.
    """
    objective, stepper = loop.bind(constants)
    callbacks = loop.problem.callbacks_of(constants)
    evaluated_loss = None
    if loop.problem.method.loss_after_update and last_loss is not None:
        result, loss = objective.values(good), last_loss
    else:
        # The fit ends at the last good point if its last step, or the loss after it, went wrong.
        here = select(code == NOT_FINITE, good, stepper.position(carry.stepper))
        method = stepper.move(carry.stepper, here)
        other = stepper.result(method)
        if other is not None:
            here, method = other, stepper.move(method, other)
        last = Carry(method, carry.callbacks)
        carry, _, evaluated_loss, _ = loop.step(*loop.bind(constants, count), last, count)
        finite = jnp.isfinite(evaluated_loss)
        loss = evaluated_loss if last_loss is None else jnp.where(finite, evaluated_loss, last_loss)
        result = objective.values(select(finite, here, good))
    for number, position in zip(loop.problem.choosing, best, strict=True):
        better, found = callbacks[number].result(carry.callbacks[number], loss)
        result = select(better, objective.values(position), result)
        loss = select(better, found, loss)
    return Conclusion(result, loss, evaluated_loss)


def _manual_axes(tree: PyTree) -> frozenset[str]:
    """The axes of a `shard_map` around the fit over which anything in a pytree varies."""
    return frozenset().union(*map(_axes_of, jax.tree.leaves(tree)))


def _axes_of(x: Any) -> frozenset[str]:
    kind = getattr(x, "manual_axis_type", None)  # releases of JAX before 0.10.2 call it vma
    return getattr(x, "vma", None) or frozenset() if kind is None else kind.varying


def _varying(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The same, of a type that varies over these axes: all branches and steps must agree on it."""

    def cast(x: Array) -> Array:
        missing = tuple(axes - _axes_of(jax.typeof(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def nan_outside(loop: Loop, values: list[Array]) -> list[Array]:
    """The values, but NaN where one leaves its bounds: such a fit fails at its first step."""
    pairs = zip(loop.layout.specs, values, strict=True)
    return [
        jnp.where(spec.is_inside(value), value, jnp.nan) if spec.is_bounded else value
        for spec, value in pairs
    ]


def _converged(loop: Loop, constants: Constants, carry: Carry, code: Array, count: Array) -> Array:
    """Whether a test of convergence has ended the fit, and no bound holds it."""
    tests = converging(loop, constants.start)
    converged = jnp.array(tests)[code]
    vector = loop.bind(constants)[0].vector
    if loop.problem.method.keeps_bounds or not any(tests) or not vector.can_be_flat.any():
        return converged
    return converged & ~jnp.any(loop.falls_inside(snapshot.take(carry), constants, count))


def converging(loop: Loop, values: list[Array]) -> list[bool]:
    """For each code that a step of a fit of such values may end with, whether that is convergence."""
    problem = loop.problem
    tests = [callback.looks_for_convergence for callback in problem.callbacks]
    tests += [reason.converged for reason in problem.method.stop_reasons(values)]
    return [False] * FIRST_CALLBACK + tests


def select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def _padding(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0, x.dtype)
