"""The step of least squares within a trust region and within bounds, from a small matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

_POOR_GAIN, _SHORTEST_CUT, _LONGEST_CUT = 0.25, 0.1, 0.5  # after less gain the radius is cut so much
_EXCESS = 1.1  # a step may be so many times longer than the radius, as in MINPACK
_MOST_DAMPINGS = 15  # to try for one step: Newton's method takes three or four
_SMALL = 2**14  # numbers: for such matrices Householder's reflections cost no more than other ways

Limits = tuple[Float[Array, " n"], Float[Array, " n"]] | None


class Expectation(NamedTuple):
    """What should come of a step."""

    reduction: Float[Array, ""]  # of the sum of squares
    slope: Float[Array, ""]  # of the sum of squares, where the step begins
    rounding: Float[Array, ""]  # how much of a change may be no more than that
    length: Float[Array, ""]  # of the step, in the norm of the trust region
    undamped: Bool[Array, ""]  # whether this is the step of Gauss and Newton
    small: Bool[Array, ""]  # whether that is within the tolerance
    steep: Bool[Array, ""]  # whether a parameter alone promises more than rounding


def next_radius(
    radius: Float[Array, ""],
    expected: Expectation,
    better: Bool[Array, ""],
    gain: Float[Array, ""],
    rise: Float[Array, ""],
) -> Float[Array, ""]:
    """The trust region's radius after a step that has changed the loss so."""
    # Where a parabola is least that has this slope and rise.
    least = expected.slope / (2 * (expected.slope - rise))
    known = jnp.isfinite(rise) & jnp.isfinite(least)
    cut = jnp.where(known, jnp.clip(least, _SHORTEST_CUT, _LONGEST_CUT), _SHORTEST_CUT)
    growth = 1 / (1 - jnp.clip(2 * gain - 1, 0, 1) ** 3 / 2)
    good = better & (gain > _POOR_GAIN)
    return jnp.where(
        good, jnp.maximum(radius, growth * expected.length), cut * jnp.minimum(radius, expected.length)
    )


@jax.custom_jvp
def bounded_step(
    matrix: Float[Array, "k n"],
    vector: Float[Array, " k"],
    radius: Float[Array, ""],
    fixed: Bool[Array, " n"],
    limits: Limits,
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, ""]]:
    """The x within the radius and limits for which |matrix x + vector|² is about least.

    Where x is fixed it is 0. Besides: x without radius and limits, and the damping.
    """
    x, newton, damping, *_ = _step_and_triangle(matrix, vector, radius, fixed, limits)
    return x, newton, damping


def _step_and_triangle(
    matrix: Array, vector: Array, radius: Array, fixed: Array, limits: Limits
) -> tuple[Array, ...]:
    zeros, none = jnp.zeros(matrix.shape[1], matrix.dtype), jnp.zeros((), matrix.dtype)

    def longer(carry: tuple[Array, ...]) -> Array:
        tries, _, x, _ = carry
        return (tries < _MOST_DAMPINGS) & (jnp.linalg.norm(x) > _EXCESS * radius)

    def more(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Newton's method for 1 / |x| = 1 / radius, of which the damping is almost a linear function.
        tries, damping, x, triangle = carry
        length = jnp.linalg.norm(x)
        slope = squares(solve_triangular(triangle, x / length, trans=1))
        damping = damping + (length - radius) / (radius * slope)
        return tries + 1, damping, *_damped(matrix, vector, damping, fixed, zeros)

    count = jnp.zeros((), jnp.int32)
    newton, triangle = _damped(matrix, vector, none, fixed, zeros)
    _, damping, x, triangle = lax.while_loop(longer, more, (count, none, newton, triangle))
    if limits is None:
        return x, newton, damping, triangle, fixed
    lower, upper = limits

    def beyond(carry: tuple[Array, ...]) -> Array:
        tries, fixed, _, x, _ = carry
        return (tries < zeros.size) & jnp.any(~fixed & ((x < lower) | (x > upper)))

    def along(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Go from the last point within the limits until one is met, and from there keep to that.
        tries, fixed, last, x, _ = carry
        move = jnp.where(fixed, 0, x - last)
        limit = jnp.where(move < 0, lower, upper)
        part = jnp.where(move == 0, jnp.inf, (limit - last) / jnp.where(move == 0, 1, move))
        met = part <= jnp.min(part)
        last = jnp.where(met, limit, last + jnp.clip(jnp.min(part), 0, 1) * move)
        fixed |= met
        return tries + 1, fixed, last, *_damped(matrix, vector, damping, fixed, last)

    carry = (count, fixed, zeros, x, triangle)
    _, fixed, _, x, triangle = lax.while_loop(beyond, along, carry)
    return x, newton, damping, triangle, fixed


@bounded_step.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (matrix, vector, *_), (of_matrix, of_vector, *_) = primals, tangents
    x, newton, damping, triangle, fixed = _step_and_triangle(*primals)
    slope = of_matrix.T @ (matrix @ x + vector) + matrix.T @ (of_matrix @ x + of_vector)
    slope = jnp.where(fixed, 0, slope)
    of_x = -solve_triangular(triangle, solve_triangular(triangle, slope, trans=1))
    nothing = jax.tree.map(jnp.zeros_like, (newton, damping))
    return (x, newton, damping), (jnp.where(fixed, 0, of_x), *nothing)


def _damped(
    matrix: Array, vector: Array, damping: Array, fixed: Array, values: Array
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The x, fixed at some values, for which |matrix x + vector|² + damping |x|² is least; a triangle.

    Columns that are no more than rounding apart are told apart by a damping of their own.
    """
    n, eps = matrix.shape[1], jnp.finfo(matrix.dtype).eps
    rest = vector + matrix @ jnp.where(fixed, values, 0)
    free = jnp.where(fixed, 0, matrix)
    roots = jnp.sqrt(jnp.where(fixed, 1, damping + eps * jnp.sum(jnp.square(free), axis=0)))
    above = jnp.concatenate([free, rest[:, None]], axis=1)
    below = jnp.concatenate([jnp.diag(roots), jnp.zeros((n, 1), matrix.dtype)], axis=1)
    triangle = jnp.linalg.qr(jnp.concatenate([above, below]), mode="r")
    x = -solve_triangular(triangle[:n, :n], triangle[:n, n])
    return jnp.where(fixed, values, x), triangle[:n, :n]


@jax.custom_jvp
def triangle_of(matrix: Float[Array, "m n"]) -> Float[Array, "k n"]:
    """A small matrix whose columns have the same products."""
    m, n = matrix.shape
    if m <= n:
        return matrix
    if m * n < _SMALL:
        return jnp.linalg.qr(matrix, mode="r")
    # The products themselves take a tenth of the time, but have the square of the condition.
    largest = jnp.max(jnp.abs(matrix), axis=0)
    largest = jnp.where(largest > 0, largest, 1)
    products = (matrix / largest).T @ (matrix / largest)
    lengths = jnp.sqrt(jnp.diagonal(products))
    lengths = jnp.where(lengths > 0, lengths, 1)
    root = jnp.linalg.cholesky(products / lengths / lengths[:, None], upper=True)
    independent = jnp.min(jnp.diagonal(root)[:-1]) > jnp.finfo(matrix.dtype).eps ** 0.25
    return lax.cond(
        independent,
        lambda: root * lengths * largest,
        lambda: jnp.linalg.qr(matrix, mode="r"),
    )


@triangle_of.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    if matrix.shape[0] <= matrix.shape[1]:
        return matrix, tangent
    # Not the derivative of the triangle, but one with the same derivatives of products.
    rotation, triangle = jnp.linalg.qr(matrix)
    return triangle, rotation.T @ tangent


def squares(x: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.square(x))


def lengths(matrix: Float[Array, "k n"]) -> Float[Array, " n"]:
    """Of the columns; their squares need not be numbers of this precision."""
    largest = jnp.max(jnp.abs(matrix), axis=0)
    largest = jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(matrix / largest, axis=0)
