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
_FEW = 10  # columns
_SMALL = 2**14  # numbers: for such matrices Householder's reflections cost no more than other ways

Limits = tuple[Float[Array, " n"], Float[Array, " n"]] | None


class Expectation(NamedTuple):
    """What should come of a step."""

    radius: Float[Array, ""]  # of the trust region; 0 before the first step
    reach: Float[Array, ""]  # of the parameters where the fit began, in the norm of the trust region
    loss: Float[Array, ""]  # the sum of squares where the step begins
    reduction: Float[Array, ""]  # of it
    slope: Float[Array, ""]  # of it, where the step begins
    rounding: Float[Array, ""]  # how much of a change may be no more than that
    length: Float[Array, ""]  # of the step, in the norm of the trust region
    steepness: Float[Array, ""]  # where it begins: the square of the gradient that no bound holds
    undamped: Bool[Array, ""]  # whether this is the step of Gauss and Newton
    small: Bool[Array, ""]  # whether that is within the tolerance


def next_radius(
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
        good,
        jnp.maximum(expected.radius, growth * expected.length),
        cut * jnp.minimum(expected.radius, expected.length),
    )


@jax.custom_jvp
def bounded_step(
    system: Float[Array, "k n+1"],
    sizes: Float[Array, " n"],
    radius: Float[Array, ""],
    fixed: Bool[Array, " n"],
    limits: Limits,
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, ""]]:
    """The x within the radius and limits for which |matrix x + vector|² is about least.

    `system` is matrix and vector side by side, `sizes` the lengths of the matrix' columns. Where x is
    fixed it is 0, as the column must be. Besides: x without radius and limits, and the damping.
    """
    x, newton, damping, *_ = _step_and_inverse(system, sizes, radius, fixed, limits)
    return x, newton, damping


def _step_and_inverse(
    system: Array, sizes: Array, radius: Array, fixed: Array, limits: Limits
) -> tuple[Array, ...]:
    def longer(carry: tuple[Array, ...]) -> Array:
        tries, _, x, _ = carry
        return (tries < _MOST_DAMPINGS) & (jnp.sqrt(squares(x)) > _EXCESS * radius)

    def more(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Newton's method for 1 / |x| = 1 / radius, of which the damping is almost a linear function.
        tries, damping, x, inverse = carry
        length = jnp.sqrt(squares(x))
        slope = squares((x / length) @ inverse)
        damping = damping + (length - radius) / (radius * slope)
        return tries + 1, damping, *_damped(system, sizes, damping, fixed)

    count, none = jnp.zeros((), jnp.int32), jnp.zeros((), system.dtype)
    newton, inverse = _damped(system, sizes, none, fixed)
    _, damping, x, inverse = lax.while_loop(longer, more, (count, none, newton, inverse))
    if limits is None:
        return x, newton, damping, inverse, fixed
    lower, upper = limits

    def beyond(carry: tuple[Array, ...]) -> Array:
        tries, fixed, _, x, _ = carry
        return (tries < x.size) & jnp.any(~fixed & ((x < lower) | (x > upper)))

    def along(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Go from the last point within the limits until one is met, and from there keep to that.
        tries, fixed, last, x, _ = carry
        move = jnp.where(fixed, 0, x - last)
        limit = jnp.where(move < 0, lower, upper)
        part = jnp.where(move == 0, jnp.inf, (limit - last) / jnp.where(move == 0, 1, move))
        met = part <= jnp.min(part)
        last = jnp.where(met, limit, last + jnp.clip(jnp.min(part), 0, 1) * move)
        fixed |= met
        held = jnp.where(fixed, last, 0)
        rest = system[:, -1:] + system[:, :-1] @ held[:, None]
        left = jnp.concatenate([jnp.where(fixed, 0, system[:, :-1]), rest], axis=1)
        x, inverse = _damped(left, sizes, damping, fixed)
        return tries + 1, fixed, last, x + held, inverse

    carry = (count, fixed, jnp.zeros_like(x), x, inverse)
    _, fixed, _, x, inverse = lax.while_loop(beyond, along, carry)
    return x, newton, damping, inverse, fixed


@bounded_step.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (system, *_), (of_system, *_) = primals, tangents
    x, newton, damping, inverse, fixed = _step_and_inverse(*primals)
    step = jnp.append(x, 1)
    slope = (of_system.T @ (system @ step) + system.T @ (of_system @ step))[:-1]
    slope = jnp.where(fixed, 0, slope)
    of_x = -inverse @ (slope @ inverse)
    nothing = jax.tree.map(jnp.zeros_like, (newton, damping))
    return (x, newton, damping), (jnp.where(fixed, 0, of_x), *nothing)


def _damped(
    system: Array, sizes: Array, damping: Array, fixed: Array
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The x, 0 where fixed, for which |matrix x + vector|² + damping |x|² is least.

    Columns that are no more than rounding apart are told apart by a damping of their own. Besides: the
    inverse of a triangle whose columns have the products of the damped matrix'.
    """
    n, dtype = sizes.size, system.dtype
    roots = jnp.sqrt(jnp.where(fixed, 1, damping + jnp.finfo(dtype).eps * jnp.square(sizes)))
    identity = jnp.eye(n, n + 1, dtype=dtype)
    system = jnp.concatenate([system, roots[:, None] * identity])
    if n > _FEW:
        triangle = jnp.linalg.qr(system, mode="r")[:n]
        inverse = solve_triangular(triangle[:, :n], identity[:, :n])
        return -inverse @ triangle[:, n], inverse
    rows = len(system)

    def orthogonalize(j: Array, columns: Array) -> Array:
        # Gram and Schmidt, modified (Björck, 1967, BIT 7, 1-21). What is done to the columns of the
        # identity below makes them the inverse, and in the end the solution. For few columns that takes
        # a fraction of the time that it takes to call LAPACK.
        column = lax.dynamic_slice_in_dim(columns, j, 1, axis=1)
        products = jnp.sum(column[:rows] * columns[:rows], axis=0)
        return columns - column * jnp.where(jnp.arange(n + 1) > j, products / products[j], 0)

    columns = lax.fori_loop(0, n, orthogonalize, jnp.concatenate([system, identity]))
    inverse = columns[rows:, :n] / jnp.sqrt(jnp.sum(jnp.square(columns[:rows, :n]), axis=0))
    x = columns[rows:, n]
    # An inverse alone would leave more of the gradient than rounding explains.
    gradient = (system[:, :n] @ x + system[:, n]) @ system[:, :n]
    return x - inverse @ (gradient @ inverse), inverse


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
    return lax.reduce(jnp.abs(matrix), jnp.zeros((), matrix.dtype), jnp.hypot, (0,))
