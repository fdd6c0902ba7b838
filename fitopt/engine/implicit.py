"""The minimum differentiated: how the end of a fit inside `grad` or `jvp` depends on data.

At a minimum the gradient by the free Parameters is zero, and stays so when the data change. So the
minimum moves by minus the inverse of the Hessian times the change of the gradient (the implicit function
theorem); steps need not be differentiated, nor kept in memory. Parameters that a bound holds stay there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float

from ..methods.derivatives import along_basis, value_and_gradient
from ..methods.method import Constants
from ..state import Layout, ParameterVector, PyTree
from .compiled import Loop, Problem
from .scanned import Scanned, scan

ADJOINTS = ("unrolled", "implicit")


def scan_implicitly(
    problem: Problem,
    layout: Layout,
    mode: str | None,
    constants: Constants,
    max_steps: int,
    sums_squares: bool,
) -> Scanned:
    """A whole fit as one `lax.scan`, of which nothing but the minimum is differentiated."""
    constants = constants._replace(fixed=[jnp.asarray(x) for x in constants.fixed])
    # What the loss closes over becomes leaves of it: these may be what one differentiates by.
    state = layout.plain(constants.start, constants.fixed)
    evaluate = eqx.filter_closure_convert(problem.evaluate, state)
    loop = Loop(problem._replace(evaluate=_constant(evaluate)), layout, mode)
    fit: Scanned = _constant(scan(loop, _constant(constants), max_steps))
    vector = ParameterVector.of(layout, constants.start)

    def loss(evaluate: Callable[[Any], Any], values: Sequence[Array], fixed: Sequence[Any]) -> Array:
        output, _ = evaluate(layout.plain(values, fixed))
        squares = [jnp.sum(jnp.square(r)) for r in jax.tree.leaves(output)]
        return sum(squares[1:], squares[0]) if sums_squares else output

    values = _minimum_of(loss, vector, mode or "rev")(evaluate, constants.fixed, fit.values)
    return fit._replace(values=values, final_loss=loss(evaluate, values, constants.fixed))


def _constant(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


def _minimum_of(loss: Callable[..., Array], vector: ParameterVector, mode: str) -> Callable[..., Any]:
    """A function that returns the values at a minimum as they are, with the derivatives of these."""

    @eqx.filter_custom_jvp
    def minimum(evaluate: Any, fixed: list[Any], values: list[Array]) -> list[Array]:
        return values

    @minimum.def_jvp
    def tangents_of(primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
        evaluate, fixed, values = primals
        values = minimum(evaluate, fixed, values)  # which second derivatives go through
        units = vector.units(values)
        zero = jnp.zeros(vector.n_displacements, vector.dtype)
        displaced = lambda displacements: vector.displaced(values, units, displacements)

        def gradient(displacements: Array, evaluate: Any, fixed: list[Any]) -> Array:
            function = lambda x: (loss(evaluate, displaced(x), fixed), None)
            return value_and_gradient(function, mode)(displacements)[1]

        here, push = jax.linearize(lambda x: gradient(x, evaluate, fixed), zero)
        hessian = along_basis(push, zero.size, zero.dtype)
        at_zero = lambda evaluate, fixed: gradient(zero, evaluate, fixed)
        _, change = eqx.filter_jvp(at_zero, (evaluate, fixed), tuple(tangents[:2]))
        held = _held(vector, values, units, here, jnp.diagonal(hessian))
        moves = _newton_step(hessian, change, held)
        return values, jax.jvp(displaced, (zero,), (moves,))[1]

    return minimum


def _newton_step(
    hessian: Float[Array, "n n"], gradient: Float[Array, " n"], held: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Minus the pseudo-inverse of a Hessian times a gradient, with zeros for what is held."""
    size = jnp.sqrt(jnp.abs(jnp.diagonal(hessian)))
    scale = 1 / jnp.where(held | (size == 0), 1, size)  # conditions must not depend on units
    free = ~held & ~held[:, None]
    matrix = jnp.where(free, hessian * scale * scale[:, None], jnp.eye(held.size, dtype=hessian.dtype))
    operator = lx.MatrixLinearOperator(matrix)
    right = jnp.where(held, 0, -gradient * scale)
    # Where the Hessian is singular, one more solver would raise in the middle of a compiled program.
    return lx.linear_solve(operator, right, lx.SVD()).value * scale


def _held(
    vector: ParameterVector,
    values: Sequence[Array],
    units: Float[Array, " n"],
    gradient: Float[Array, " n"],
    curvature: Float[Array, " n"],
) -> Bool[Array, " n"]:
    """Which displacements a bound holds: those that a Newton step by themselves would take across it."""
    at = vector.displacement_of
    single = at >= 0
    elements = vector.elements(values)
    slope = (gradient / units)[at]
    reach = jnp.maximum(curvature, 0)[at] / units[at] ** 2
    below, above = (elements - vector.lower) * reach, (vector.upper - elements) * reach
    on_lower = (slope > 0) & jnp.isfinite(vector.lower) & (below <= slope)
    on_upper = (slope < 0) & jnp.isfinite(vector.upper) & (above <= -slope)
    return jnp.zeros(gradient.shape, bool).at[at[single]].set((on_lower | on_upper)[single])
