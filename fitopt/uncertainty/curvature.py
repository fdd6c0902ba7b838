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


class Root(NamedTuple):
    """A square root of the information in residuals: `triangle.T @ triangle`."""

    triangle: Float[Array, "k displacements"]
    units: Float[Array, " displacements"]
    gradient: Float[Array, " displacements"]  # of half the sum of squares
    loss: Float[Array, ""]  # the sum of squares, or of what a robust loss makes of them
    values: Float[Array, " elements"]
    count: int  # of the residuals


class Hessian(NamedTuple):
    """Second derivatives of a loss."""

    matrix: Float[Array, "displacements displacements"]
    units: Float[Array, " displacements"]
    gradient: Float[Array, " displacements"]
    loss: Float[Array, ""]
    values: Float[Array, " elements"]


def root_program(
    residuals: Callable[[Any], tuple[Any, Any]],
    robust: RobustLoss,
    f_scale: float,
    vector: ParameterVector,
    layout: Layout,
    mode: str | None,
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

        found = function(zero)
        m, n = found.size, zero.size
        if (mode or ("fwd" if n <= m else "rev")) == "fwd":
            jacobian = along_basis(jax.linearize(function, zero)[1], n, zero.dtype).T
        else:
            pull = jax.vjp(function, zero)[1]
            jacobian = along_basis(lambda row: pull(row)[0], m, found.dtype)
        slopes = jax.vmap(jax.grad(half))(found)
        gradient = jacobian.T @ slopes
        if robust is not None:
            curvatures = jax.vmap(jax.grad(jax.grad(half)))(found)
            weights = jnp.maximum(curvatures, jnp.finfo(found.dtype).eps)
            jacobian = jacobian * jnp.sqrt(weights)[:, None]
        largest = jnp.max(jnp.abs(jacobian), axis=0)  # QR needs columns that are neither huge nor tiny
        largest = jnp.where(largest > 0, largest, 1)
        triangle = jnp.linalg.qr(jacobian / largest, mode="r")
        loss = 2 * jnp.sum(half(found))
        return Root(triangle, units / largest, gradient / largest, loss, vector.elements(free), m)

    return program


def hessian_program(
    loss: Callable[[Any], tuple[Any, Any]], vector: ParameterVector, layout: Layout, mode: str
) -> Callable[[Sequence[Array], Sequence[Any]], Hessian]:
    """Compile what gives the `Hessian` of a loss at a state, taken apart.

    In reverse mode by Hessian-vector products, in forward mode by forward over forward.
    """

    @jax.jit
    def program(free: Sequence[Array], fixed: Sequence[Any]) -> Hessian:
        units, value, gradient, product = linearized(loss, vector, layout, mode, free, fixed)
        matrix = along_basis(product, gradient.size, gradient.dtype)
        return Hessian(matrix, units, gradient, value, vector.elements(free))

    return program


def linearized(
    loss: Callable[[Any], tuple[Any, Any]],
    vector: ParameterVector,
    layout: Layout,
    mode: str,
    free: Sequence[Array],
    fixed: Sequence[Any],
) -> tuple[Array, Array, Array, Callable[[Array], Array]]:
    """Units, loss, gradient, and the function that multiplies the Hessian by a vector."""
    units = vector.units(free)

    def function(displacements: Array) -> Array:
        return loss(layout.plain(vector.displaced(free, units, displacements), fixed))[0]

    def gradient_and_value(displacements: Array) -> tuple[Array, Array]:
        if mode == "rev":
            value, gradient = jax.value_and_grad(function)(displacements)
            return gradient, value
        slope = lambda direction: jax.jvp(function, (displacements,), (direction,))[1]
        return along_basis(slope, displacements.size, displacements.dtype), function(displacements)

    zero = jnp.zeros(vector.n_displacements, vector.dtype)
    gradient, product, value = jax.linearize(gradient_and_value, zero, has_aux=True)
    return units, value, gradient, product


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
