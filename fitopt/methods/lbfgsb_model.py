"""The model of limited-memory BFGS, and where within bounds it is least.

It is that of Byrd, Lu, Nocedal and Zhu (1995, A Limited Memory Algorithm for Bound Constrained
Optimization), without loops over parameters or pairs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Bounds = tuple[Array, Array] | None

_FIRST_MOVE = 0.1  # of a parameter's unit: how far the first search aims...
_FIRST_PART = 0.5  # ...or, where there is a bound, of the way there
_FAINT = 1e-3  # of the largest gradient: below it a parameter moves in proportion


class Memory(NamedTuple):
    """The last steps and changes of the gradient, each pair divided by the root of its product."""

    steps: Float[Array, "memory n"]
    changes: Float[Array, "memory n"]
    count: Int[Array, ""]  # of pairs so far; the next one goes into row `count % memory`
    curvature: Float[Array, ""]  # of the loss before there are pairs


def _units(y: Array, bounds: Bounds) -> Array:
    """In what a parameter is measured: the width between its bounds, or one."""
    if bounds is None:
        return jnp.ones((), y.dtype)
    width = bounds[1] - bounds[0]
    return jnp.where(jnp.isfinite(width) & (width > 0), width, 1)


def inward(y: Array, gradient: Array, bounds: Bounds) -> Array:
    """The projected gradient: zero where a step against it would leave the bounds."""
    if bounds is None:
        return gradient
    stuck = ((y <= bounds[0]) & (gradient > 0)) | ((y >= bounds[1]) & (gradient < 0))
    return jnp.where(stuck, 0, gradient)


class _Model(NamedTuple):
    """The matrix `curvature I - rows.T @ inverse(middle) @ rows`: the compact form of BFGS."""

    curvature: Float[Array, ""]
    rows: Float[Array, "k n"]
    middle: Float[Array, "k k"]

    def times(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.curvature * x - self.rows.T @ jnp.linalg.solve(self.middle, self.rows @ x)

    def newton(self, gradient: Float[Array, " n"], free: Bool[Array, " n"]) -> Float[Array, " n"]:
        """The step to the minimum over free parameters, by the formula of Woodbury."""
        rows, gradient = jnp.where(free, self.rows, 0), jnp.where(free, gradient, 0)
        inner = self.middle - rows @ rows.T / self.curvature
        correction = rows.T @ jnp.linalg.solve(inner, rows @ gradient) / self.curvature
        return -(gradient + correction) / self.curvature


def begun(memory: Memory, y: Array, gradient: Array, bounds: Bounds) -> Memory:
    largest = jnp.max(jnp.abs(inward(y, gradient, bounds)) * _units(y, bounds))
    return memory._replace(curvature=lax.stop_gradient(jnp.where(largest > 0, largest / _FIRST_MOVE, 1)))


def remember(memory: Memory, step: Array, change: Array, wanted: Array) -> Memory:
    """With one more pair, unless its curvature is not positive beyond rounding."""
    step, change = lax.stop_gradient((step, change))
    product = jnp.sum(step * change)
    least = jnp.finfo(step.dtype).eps * jnp.linalg.norm(step) * jnp.linalg.norm(change)
    wanted &= (product > least) & jnp.isfinite(product)
    root, row = jnp.sqrt(jnp.where(wanted, product, 1)), memory.count % memory.steps.shape[0]
    put = lambda rows, new: rows.at[row].set(jnp.where(wanted, new / root, rows[row]))
    return Memory(
        put(memory.steps, step), put(memory.changes, change), memory.count + wanted, memory.curvature
    )


def _model(memory: Memory, units: Array) -> _Model:
    m = memory.steps.shape[0]
    filled = jnp.arange(m) < memory.count
    steps = jnp.where(filled[:, None], memory.steps / units, 0)
    changes = jnp.where(filled[:, None], memory.changes * units, 0)
    curvature = jnp.sum(jnp.square(changes[(memory.count - 1) % m]))
    curvature = jnp.where((memory.count > 0) & (curvature > 0), curvature, memory.curvature)
    age = (memory.count - 1 - jnp.arange(m)) % m
    newer = jnp.where(age[:, None] < age, steps @ changes.T, 0)  # a step with an older change
    # The pairs' own products are one; rows not yet filled get a one, too, and have no influence.
    corner = curvature * steps @ steps.T + jnp.diag(jnp.where(filled, 0, 1).astype(steps.dtype))
    middle = jnp.block([[-jnp.eye(m, dtype=steps.dtype), newer.T], [newer, corner]])
    return _Model(curvature, jnp.concatenate([changes, curvature * steps]), middle)


def target(y: Array, gradient: Array, memory: Memory, bounds: Bounds) -> Array:
    """Where the model is least, exactly on the bounds that it meets."""
    units = _units(y, bounds)
    model, slopes = lax.stop_gradient(_model(memory, units)), gradient * units
    falls = lambda move: jnp.sum(move * slopes) < 0  # which rounding in the model may spoil
    if bounds is None:
        move = model.newton(slopes, jnp.ones_like(y, bool))
        return y + jnp.where(falls(move), move, -slopes / model.curvature)
    low, high = (bounds[0] - y) / units, (bounds[1] - y) / units
    steepest = jnp.clip(-slopes / model.curvature, low, high)
    length = _cauchy_length(*lax.stop_gradient((model, slopes, low, high)))
    cauchy = jnp.clip(-slopes * length, low, high)
    cauchy = jnp.where(falls(cauchy), cauchy, steepest)
    free = (cauchy > low) & (cauchy < high)
    move = cauchy + model.newton(slopes + model.times(cauchy), free)
    move = jnp.clip(jnp.where(falls(jnp.clip(move, low, high)), move, cauchy), low, high)
    inside = jnp.clip(y + move * units, *bounds)
    return jnp.where(move <= low, bounds[0], jnp.where(move >= high, bounds[1], inside))


def first_target(y: Array, loss: Array, gradient: Array, bounds: tuple[Array, Array]) -> Array:
    """Where to aim at while nothing is known of the curvature.

    Slopes tell in which direction a parameter should go, but not how far, as the loss may be much
    steeper in one than in another. So each goes half of the way to the bound ahead, but all together
    no further than where the loss, if it fell on like this, would have changed by twice its size
    (Fletcher, 1987, Practical Methods of Optimization, 2.6): bounds may be far beyond where the model
    makes sense.
    """
    units = _units(y, bounds)
    slopes = lax.stop_gradient(inward(y, gradient, bounds) * units)
    strength = jnp.abs(slopes) / jnp.maximum(jnp.max(jnp.abs(slopes)), jnp.finfo(y.dtype).tiny)
    room = jnp.where(slopes > 0, y - bounds[0], bounds[1] - y) / units
    part = _FIRST_PART * jnp.minimum(strength / _FAINT, 1)
    move = lax.stop_gradient(jnp.where(jnp.isfinite(room), room * part, _FIRST_MOVE * strength))
    fall, most = jnp.sum(move * jnp.abs(slopes)), lax.stop_gradient(2 * jnp.abs(loss))
    move *= jnp.where((most > 0) & (fall > most), most / jnp.where(fall > 0, fall, 1), 1)
    return jnp.clip(y - jnp.sign(slopes) * move * units, *bounds)


def _cauchy_length(model: _Model, gradient: Array, low: Array, high: Array) -> Float[Array, ""]:
    """How far along the projected gradient the model falls: algorithm CP, at all breakpoints at once."""
    speed = jnp.abs(gradient)
    times = jnp.where(gradient > 0, -low, high) / jnp.where(speed > 0, speed, 1)
    times = jnp.where(speed > 0, jnp.maximum(times, 0), jnp.inf)
    order = jnp.argsort(times)
    ends, gradient, rows = times[order], gradient[order], model.rows[:, order]
    # Between two breakpoints those to the left have stopped and the others still move.
    fill = lambda x, at: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [at])
    moving = lambda x: fill(lax.cumsum(x, axis=x.ndim - 1, reverse=True), (0, 1))
    stopped = lambda x: fill(lax.cumsum(x, axis=x.ndim - 1), (1, 0))
    stops = jnp.where(jnp.isfinite(ends), ends, 0)
    begins, ends = fill(stops, (1, 0)), jnp.append(ends, jnp.inf)
    ahead, squares = -moving(rows * gradient), moving(gradient**2)
    behind = begins * ahead - stopped(rows * (gradient * stops))
    solved = jnp.linalg.solve(model.middle, ahead)
    slopes = (model.curvature * begins - 1) * squares - jnp.sum(solved * behind, axis=0)
    bends = model.curvature * squares - jnp.sum(solved * ahead, axis=0)
    bends = jnp.maximum(bends, jnp.finfo(bends.dtype).eps * model.curvature * squares)
    lengths = jnp.maximum(-slopes, 0) / jnp.where(bends > 0, bends, 1)
    least = jnp.argmax((begins + lengths <= ends) | (squares == 0))
    return begins[least] + lengths[least]
