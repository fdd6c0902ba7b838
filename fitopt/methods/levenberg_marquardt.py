"""Levenberg's and Marquardt's method for least squares, made for `optimistix` and this loop.

What goes from step to step is small, however many residuals there are: a triangle that has the same
products of columns as the Jacobian and the residuals.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .derivatives import along_basis

Function = Callable[[PyTree, Any], tuple[PyTree, PyTree]]  # of parameters and args: residuals, and aux

_FIRST_DAMPING = 1e-3
_MOST_RELIEF = 0.1  # by which a good step multiplies the damping
_LEAST_GAIN = 1e-4  # of the predicted reduction: a step with less is taken back
_SMALL = 2**14  # numbers: for such matrices Householder's reflections cost no more than other ways


class Expectation(NamedTuple):
    """What should come of a step."""

    reduction: Float[Array, ""]  # of the sum of squares
    rounding: Float[Array, ""]  # how much of a change may be no more than that
    small: Bool[Array, ""]  # whether the step is within the tolerance


class LevenbergMarquardtState(eqx.Module):
    """What goes from one step to the next."""

    y_eval: PyTree  # the point to try
    expected: Expectation  # there
    reduced: Float[Array, "k n+1"]  # Jacobian and residuals at the best point so far: `_reduced`
    aux: PyTree  # there
    damping: Float[Array, ""]
    growth: Float[Array, ""]  # of the damping, if the point is worse
    cautious: Bool[Array, ""]  # whether relative changes are damped, too
    first: Bool[Array, ""]
    terminate: Bool[Array, ""]

    @property
    def f_info(self) -> Any:
        """As other solvers have it, of fewer residuals with the same sum of squares and gradient."""
        jacobian, residual = self.reduced[:, :-1], self.reduced[:, -1]
        push = lambda move: jacobian @ ravel_pytree(move)[0].astype(jacobian.dtype)
        structure = jax.eval_shape(lambda: self.y_eval)
        return optx.FunctionInfo.ResidualJac(residual, lx.FunctionLinearOperator(push, structure))


class LevenbergMarquardt(optx.AbstractLeastSquaresSolver):
    """Levenberg-Marquardt, indifferent to the units of parameters and residuals.

    **Arguments:**

    - `rtol`: the tolerance. It has converged when the next step changes the residuals by less than
        this part of their norm, and each parameter either by less than this part of itself or, seen
        by its effect alone, the residuals by less than this part of their norm.

    The damping follows Nielsen (1999, Damping parameter in Marquardt's method, IMM-REP-1999-05).
    Parameters are scaled by their effect on the residuals, as by Marquardt (1963), and in such a way
    that damping also opposes a step that multiplies a parameter while residuals hardly change. Changes
    of the loss that may be rounding speak neither for nor against a point (Conn, Gould and Toint, 2000,
    Trust-Region Methods, 17.4.2), so that it converges to the last digits.

    Options, as for `optimistix.LevenbergMarquardt`: `jac`, `"fwd"` or `"bwd"`.

    **Raises:** `TypeError` and `ValueError` unless `rtol` is a number of at least 0 and less than 1.

    >>> solver = LevenbergMarquardt(rtol=1e-5)
    >>> residuals = lambda y, args: jnp.array([10 * (y[1] - y[0] ** 2), 1 - y[0]])
    >>> optx.least_squares(residuals, solver, jnp.array([-1.2, 1.0])).value
    Array([1., 1.], dtype=float32)
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar]

    def __init__(self, rtol: float):
        if isinstance(rtol, bool) or not isinstance(rtol, Real):
            raise TypeError(f"LevenbergMarquardt: rtol must be a number, got {rtol!r}")
        if not 0 <= rtol < 1:
            raise ValueError(f"LevenbergMarquardt: rtol must be within [0, 1), got {rtol!r}")
        self.rtol = float(rtol)
        self.atol = 0.0
        self.norm = optx.max_norm

    def init(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset,
    ) -> LevenbergMarquardtState:
        n, m = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (y, f_struct))
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((y, f_struct)))
        function = lambda x: _in_a_row(fn, unravel(x), args, dtype)
        point, unravel = ravel_pytree(y)
        # An error in differentiation should not wait for the first step.
        jax.eval_shape(lambda x: _linearized(function, x, options.get("jac", "fwd"))[1](), point)
        no, zero = jnp.zeros((), bool), jnp.zeros((), dtype)
        return LevenbergMarquardtState(
            y_eval=y,
            expected=Expectation(zero, zero, no),
            reduced=jnp.zeros((min(m, n + 1), n + 1), dtype),
            aux=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_struct),
            damping=zero + _FIRST_DAMPING,
            growth=zero + 2,
            cautious=~no,
            first=~no,
            terminate=no,
        )

    def step(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset,
    ) -> tuple[PyTree, LevenbergMarquardtState, PyTree]:
        point, unravel = ravel_pytree(y)
        trial, _ = ravel_pytree(state.y_eval)
        dtype = state.damping.dtype
        function = lambda x: _in_a_row(fn, unravel(x), args, dtype)
        residual, jacobian, aux = _linearized(function, trial, options.get("jac", "fwd"))
        loss, before = _squares(residual), _squares(state.reduced[:, -1])
        gain = (before - loss) / state.expected.reduction
        visible = state.expected.reduction > state.expected.rounding
        promising = jnp.where(visible, gain > _LEAST_GAIN, loss <= before + state.expected.rounding)
        promising |= state.first
        reduced = lax.cond(promising, lambda: _reduced(jacobian(), residual), lambda: state.reduced)
        # Where the loss would tell no more than rounding, judge by what the parameters could yet remove.
        left, had = (_squares(matrix[: point.size, -1]) for matrix in (reduced, state.reduced))
        gain = lax.stop_gradient(jnp.where(visible, gain, 1 - left / had))
        better = state.first | (promising & (gain > _LEAST_GAIN) & jnp.all(jnp.isfinite(reduced)))
        point, reduced, aux = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (trial, reduced, aux),
            (point, state.reduced, state.aux),
        )
        relief = jnp.maximum(_MOST_RELIEF, 1 - (2 * jnp.minimum(gain, 1) - 1) ** 3)
        factor = jnp.where(state.first, 1, jnp.where(better, relief, state.growth))
        eps = jnp.finfo(dtype).eps
        damping = jnp.clip(state.damping * factor, eps, 1 / eps)
        move, expected, cautious = self._propose(point, reduced, damping, state.cautious)
        state = LevenbergMarquardtState(
            y_eval=unravel(point + move.astype(point.dtype)),
            expected=expected,
            reduced=reduced,
            aux=aux,
            damping=damping,
            growth=jnp.where(better, 2, 2 * state.growth),
            cautious=cautious,
            first=jnp.zeros((), bool),
            terminate=jnp.isfinite(loss) & (state.expected.small | (~better & (damping >= 1 / eps))),
        )
        return unravel(point), state, aux

    def _propose(
        self,
        point: Float[Array, " n"],
        reduced: Float[Array, "k n+1"],
        damping: Float[Array, ""],
        cautious: Bool[Array, ""],
    ) -> tuple[Float[Array, " n"], Expectation, Bool[Array, ""]]:
        """The next step."""
        jacobian, residual = reduced[:, :-1], reduced[:, -1]
        effects, size, values = lax.stop_gradient(
            (_lengths(jacobian), jnp.linalg.norm(residual), jnp.abs(point))
        )
        eps = jnp.finfo(size.dtype).eps
        noise = eps * jnp.maximum(size, jnp.max(effects * values))
        enough = self.rtol * size + noise

        def step(scale: Array, damping: Array) -> tuple[Array, Expectation]:
            scale = jnp.where(scale > 0, scale, 1)
            scaled = jacobian / scale
            step = _damped(scaled, residual, damping)
            change, length = _squares(scaled @ step), _squares(step)
            move = step / scale
            small = effects * jnp.abs(move) <= jnp.maximum(enough, self.rtol * effects * values)
            small = jnp.all(small) & (jnp.sqrt(change) <= enough)
            rounding = 4 * noise * (size + noise)
            return move, Expectation(change + 2 * damping * length, rounding, small)

        # Oppose steps that multiply a parameter while residuals hardly change.
        relative = jnp.where(cautious & (values > 0), size / values, 0)
        move, expected = step(jnp.maximum(effects, relative), damping)
        # They may be small for this reason alone, or since they are damped.
        bare = lambda: step(effects, jnp.asarray(eps, size.dtype))[1].small
        small = lax.cond(expected.small, bare, lambda: expected.small)
        return move, expected._replace(small=small), cautious & (small | ~expected.small)

    def terminate(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset,
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        finite = jnp.all(jnp.isfinite(ravel_pytree(state.y_eval)[0]))
        result = optx.RESULTS.where(finite, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence)
        return state.terminate, result

    def postprocess(
        self,
        fn: Function,
        y: PyTree,
        aux: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset,
        result: optx.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        return y, aux, {}


def _in_a_row(fn: Function, y: PyTree, args: Any, dtype: Any) -> tuple[Float[Array, " m"], PyTree]:
    """Residuals and aux."""
    output, aux = fn(y, args)
    return ravel_pytree(output)[0].astype(dtype), aux


def _linearized(
    function: Callable[[Array], tuple[Array, PyTree]], point: Float[Array, " n"], mode: str
) -> tuple[Float[Array, " m"], Callable[[], Float[Array, "m n"]], PyTree]:
    """A function's value at a point, what computes its Jacobian there, and aux."""
    if mode == "fwd":
        value, push, aux = jax.linearize(function, point, has_aux=True)
        return value, lambda: along_basis(push, point.size, point.dtype).T, aux
    value, pull, aux = jax.vjp(function, point, has_aux=True)
    return value, lambda: along_basis(lambda row: pull(row)[0], value.size, value.dtype), aux


def _reduced(jacobian: Float[Array, "m n"], residual: Float[Array, " m"]) -> Float[Array, "k n+1"]:
    """Both side by side, rotated such that all but the first n + 1 rows are zero, and without these."""
    return _triangle(jnp.concatenate([jacobian.astype(residual.dtype), residual[:, None]], axis=1))


@jax.custom_jvp
def _triangle(matrix: Float[Array, "m n"]) -> Float[Array, "k n"]:
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


@_triangle.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    if matrix.shape[0] <= matrix.shape[1]:
        return matrix, tangent
    # Not the derivative of the triangle, but one with the same derivatives of products.
    rotation, triangle = jnp.linalg.qr(matrix)
    return triangle, rotation.T @ tangent


@jax.custom_jvp
def _damped(
    matrix: Float[Array, "k n"], vector: Float[Array, " k"], damping: Float[Array, ""]
) -> Float[Array, " n"]:
    """The x for which |matrix x + vector|² + damping |x|² is least."""
    return _damped_with_triangle(matrix, vector, damping)[0]


def _damped_with_triangle(matrix: Array, vector: Array, damping: Array) -> tuple[Array, Array]:
    n = matrix.shape[1]
    above = jnp.concatenate([matrix, vector[:, None]], axis=1)
    below = jnp.sqrt(damping) * jnp.eye(n, n + 1, dtype=matrix.dtype)
    triangle = jnp.linalg.qr(jnp.concatenate([above, below]), mode="r")
    return -solve_triangular(triangle[:n, :n], triangle[:n, n]), triangle[:n, :n]


@_damped.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    matrix, vector, damping = primals
    of_matrix, of_vector, of_damping = tangents
    x, triangle = jax.tree.map(lax.stop_gradient, _damped_with_triangle(*primals))
    slope = of_matrix.T @ (matrix @ x + vector) + matrix.T @ (of_matrix @ x + of_vector) + of_damping * x
    return x, -solve_triangular(triangle, solve_triangular(triangle, slope, trans=1))


def _squares(x: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.square(x))


def _lengths(matrix: Float[Array, "k n"]) -> Float[Array, " n"]:
    """Of the columns; their squares need not be numbers of this precision."""
    largest = jnp.max(jnp.abs(matrix), axis=0)
    largest = jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(matrix / largest, axis=0)
