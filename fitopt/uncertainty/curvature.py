"""Derivatives of residuals and losses by the displacements of a `ParameterVector`, compiled."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..methods.derivatives import along_basis
from ..methods.robust import RobustLoss
from ..state import Layout, ParameterVector

Modes = tuple[str, str]  # how a gradient is differentiated, and how it is computed itself

# Forward over reverse is the fastest. Losses with a custom_vjp need reverse mode for the gradient, those
# with a while_loop forward mode for both, and some that JAX differentiates once it does not twice.
_EXACT: tuple[Modes, ...] = (("fwd", "rev"), ("rev", "fwd"), ("fwd", "fwd"), ("rev", "rev"))
_DIFFERENCES: tuple[Modes, ...] = (("differences", "rev"), ("differences", "fwd"))


class Root(NamedTuple):
    """A square root of the information in residuals: `triangle.T @ triangle`."""

    triangle: Float[Array, "k displacements"]
    units: Float[Array, " displacements"]
    gradient: Float[Array, " displacements"]  # of half the sum of squares
    loss: Float[Array, ""]  # the sum of squares, or of what a robust loss makes of them
    values: Float[Array, " elements"]
    residuals: Float[Array, " residuals"]


class Hessian(NamedTuple):
    """Second derivatives of a loss."""

    matrix: Float[Array, "displacements displacements"]
    units: Float[Array, " displacements"]
    gradient: Float[Array, " displacements"]
    loss: Float[Array, ""]
    values: Float[Array, " elements"]


def jacobian_modes(mode: str | None, residuals: Callable[[], Any], n: int) -> tuple[str, ...]:
    """The modes to try, the faster one first, for n parameters."""
    if mode is not None:
        return (mode,)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(residuals)))
    return ("fwd", "rev") if n <= count else ("rev", "fwd")


def hessian_modes(mode: str | None, differences: bool = True) -> tuple[Modes, ...]:
    """The modes to try, the fastest first; `mode` is that of the gradient."""
    modes = _EXACT + _DIFFERENCES if differences else _EXACT
    return tuple(modes for modes in modes if mode in (None, modes[1]))


def first_differentiable(
    modes: Sequence[Any], make: Callable[[Any], Callable[..., Any]], *args: Any
) -> tuple[Any, Callable[..., Any]]:
    """The first of some modes in which JAX can differentiate, and the program of it.

    **Raises:** what the first mode raises, if there is none.
    """
    errors = []
    for one in modes:
        program = make(one)
        try:
            jax.eval_shape(program, *args)
        except Exception as error:  # JAX and libraries on it raise errors of many types
            errors.append(error)
        else:
            return one, program
    raise errors[0]


def root_program(
    residuals: Callable[[Any], tuple[Any, Any]],
    robust: RobustLoss,
    f_scale: float,
    vector: ParameterVector,
    layout: Layout,
    mode: str,
) -> Callable[[Sequence[Array], Sequence[Any]], Root]:
    """Compile what gives the `Root` of weighted `residuals` at a state, taken apart.

    With a robust loss, residuals and their slopes are weighted such that their products are gradient
    and, without the curvature of the residuals themselves, Hessian of half the loss, as scipy does.
    """

    def half(r: Array) -> Array:
        return jnp.square(r if robust is None else f_scale * robust(r / f_scale)) / 2

    @jax.jit
    def program(free: Sequence[Array], fixed: Sequence[Any]) -> Root:
        units = vector.units(free)
        zero = jnp.zeros(vector.n_displacements, vector.dtype)

        def function(displacements: Array) -> Array:
            state = layout.plain(vector.displaced(free, units, displacements), fixed)
            return ravel_pytree(residuals(state)[0])[0]

        r = function(zero)
        loss, values = 2 * jnp.sum(half(r)), vector.elements(free)
        if not zero.size:
            return Root(jnp.zeros((0, 0)), units, zero, loss, values, r)
        if mode == "fwd":
            jacobian = along_basis(jax.linearize(function, zero)[1], zero.size, zero.dtype).T
        else:
            pull = jax.vjp(function, zero)[1]
            jacobian = along_basis(lambda row: pull(row)[0], r.size, r.dtype)
        gradient = jacobian.T @ jax.vmap(jax.grad(half))(r)
        if robust is not None:
            curvatures = jax.vmap(jax.grad(jax.grad(half)))(r)
            weights = jnp.maximum(curvatures, jnp.finfo(r.dtype).eps)
            jacobian = jacobian * jnp.sqrt(weights)[:, None]
        largest = jnp.max(jnp.abs(jacobian), axis=0)  # QR needs columns that are neither huge nor tiny
        largest = jnp.where(largest > 0, largest, 1)
        triangle = jnp.linalg.qr(jacobian / largest, mode="r")
        return Root(triangle, units / largest, gradient / largest, loss, values, r)

    return program


def hessian_program(
    loss: Callable[[Any], tuple[Any, Any]], vector: ParameterVector, layout: Layout, modes: Modes
) -> Callable[[Sequence[Array], Sequence[Any]], Hessian]:
    """Compile what gives the `Hessian` of a loss at a state, taken apart."""

    @jax.jit
    def program(free: Sequence[Array], fixed: Sequence[Any]) -> Hessian:
        units, values = vector.units(free), vector.elements(free)
        if not vector.n_displacements:
            value = loss(layout.plain(free, fixed))[0]
            return Hessian(jnp.zeros((0, 0)), units, jnp.zeros_like(units), value, values)
        if modes in _EXACT:
            units, value, gradient, product = linearized(loss, vector, layout, modes, free, fixed)
            matrix = along_basis(product, gradient.size, gradient.dtype)
        else:
            function = _gradient_and_value(loss, vector, layout, modes[1], free, fixed)
            gradient, value = function(jnp.zeros_like(units))
            matrix = _by_differences(lambda x: function(x)[0], vector, units, values)
        return Hessian(matrix, units, gradient, value, values)

    return program


def linearized(
    loss: Callable[[Any], tuple[Any, Any]],
    vector: ParameterVector,
    layout: Layout,
    modes: Modes,
    free: Sequence[Array],
    fixed: Sequence[Any],
) -> tuple[Array, Array, Array, Callable[[Array], Array]]:
    """Units, loss, gradient, and the function that multiplies the Hessian by a vector."""
    function = _gradient_and_value(loss, vector, layout, modes[1], free, fixed)
    zero = jnp.zeros(vector.n_displacements, vector.dtype)
    if modes[0] == "fwd":
        gradient, product, value = jax.linearize(function, zero, has_aux=True)
    else:  # the Hessian is its own transpose
        gradient, pull, value = jax.vjp(function, zero, has_aux=True)
        product = lambda x: pull(x)[0]
    return vector.units(free), value, gradient, product


def _gradient_and_value(
    loss: Callable[[Any], tuple[Any, Any]],
    vector: ParameterVector,
    layout: Layout,
    mode: str,
    free: Sequence[Array],
    fixed: Sequence[Any],
) -> Callable[[Array], tuple[Array, Array]]:
    units = vector.units(free)

    def function(displacements: Array) -> Array:
        return loss(layout.plain(vector.displaced(free, units, displacements), fixed))[0]

    def by_forward_mode(displacements: Array) -> tuple[Array, Array]:
        slope = lambda direction: jax.jvp(function, (displacements,), (direction,))[1]
        slopes = along_basis(slope, displacements.size, displacements.dtype)
        # The loss may be more precise than the parameters, but a gradient has the dtype of these.
        return slopes.astype(displacements.dtype), function(displacements)

    def by_reverse_mode(displacements: Array) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(function)(displacements)
        return gradient, value

    return by_forward_mode if mode == "fwd" else by_reverse_mode


def _by_differences(
    gradient: Callable[[Array], Array],
    vector: ParameterVector,
    units: Float[Array, " displacements"],
    values: Float[Array, " elements"],
) -> Float[Array, "displacements displacements"]:
    """The Hessian of a loss, by central differences of its gradient; one-sided ones on a bound."""
    at, single = vector.displacement_of, vector.displacement_of >= 0
    by_displacement = lambda x, missing: jnp.full_like(units, missing).at[at[single]].set(x[single])
    value = by_displacement(values, 0.0)
    below = (by_displacement(vector.lower, -jnp.inf) - value) / units
    above = (by_displacement(vector.upper, jnp.inf) - value) / units
    size = jnp.where(value == 0, 1.0, jnp.abs(value) / units)
    eps = float(jnp.finfo(units.dtype).eps)

    def matrix(steps: Array) -> Array:
        def column(i: Array) -> Array:
            ends = jnp.maximum(-steps[i], below[i]), jnp.minimum(steps[i], above[i])
            low, high = (gradient(jnp.zeros_like(units).at[i].set(end)) for end in ends)
            return (high - low) / (ends[1] - ends[0])

        return jax.lax.map(column, jnp.arange(units.size))

    # The best step is a part of the standard error, which a first matrix tells about.
    diagonal = jnp.diagonal(matrix(eps ** (1 / 3) * size))
    errors = jnp.where(diagonal > 0, diagonal, jnp.nan) ** -0.5
    largest = jnp.maximum(size, by_displacement(vector.span, 1.0) / units)
    return matrix(jnp.fmin(eps ** (1 / 6) * errors, 0.1 * largest))


def push_program(vector: ParameterVector) -> Callable[[Sequence[Array], Array], Array]:
    """Compile what turns displacements, in their own units, into changes of elements, row by row."""

    @jax.jit
    def program(
        free: Sequence[Array], displacements: Float[Array, "rows displacements"]
    ) -> Float[Array, "rows elements"]:
        units = jnp.ones(vector.n_displacements, vector.dtype)
        changes = lambda displacements: vector.elements(vector.displaced(free, units, displacements))
        return jax.vmap(jax.linearize(changes, jnp.zeros_like(units))[1])(displacements)

    return program
