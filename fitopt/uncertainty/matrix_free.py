"""Errors of some of thousands of parameters: by conjugate gradients, without a Hessian."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int

from ..engine.validation import depth_in_package
from ..state import Layout, ParameterVector
from . import covariance, messages
from .curvature import Modes, first_differentiable, hessian_modes, linearized
from .estimation import ByName, flat_of, standard_errors
from .likelihood import conditional, on_bound
from .named_matrix import NamedMatrix
from .result import Uncertainty

_ROUNDS, _PROBES = 6, 8  # of random vectors, for the diagonal
_AT_ONCE = 16
_CLOSE = 0.05  # of the span: elements that are closer to a bound may be on it
_UNSOLVED = 0.03  # relative: equations that are solved no better have no solution
_ROUGH = 10  # of the tolerance: those that are solved no better are named
_MOST_PRODUCTS = 20_000  # enough for any condition number that single precision can bear


def of_some(
    cache: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    errordef: float,
    state: Any,
    mode: str | None,
    parameters: Sequence[str],
) -> Uncertainty:
    """The `Uncertainty` of some elements of a fit of a scalar loss; `cache` keeps what is compiled."""
    flat = flat_of(state)
    if isinstance(parameters, str) or not parameters:
        raise TypeError(f"parameters must be a list of names, got {parameters!r}")
    vector = ParameterVector.of(flat.layout, flat.free)
    names = tuple(dict.fromkeys(vector.select(parameters)))
    rows = np.array([vector.labels.index(name) for name in names])
    key = "some", vector, mode
    with vector.precision():
        if key not in cache:
            # Conjugate gradients need exact products: differences of gradients will not do.
            make = functools.partial(_curvature, evaluate, vector, flat.layout)
            modes, first = hessian_modes(mode, differences=False), np.zeros(1, int)
            works, curvature = first_differentiable(modes, make, flat.free, flat.fixed, first)
            cache[key] = curvature, _solution(evaluate, vector, flat.layout, works)
        curvature, solve = cache[key]
        everything = np.asarray(vector.elements(flat.free), float)
        curvature_of = lambda displacements: curvature(flat.free, flat.fixed, displacements)
        all_at_bound = _on_bound(vector, everything, errordef, curvature_of)
        stays = ~vector.displacements_of(~all_at_bound)
        solution = jax.device_get(solve(flat.free, flat.fixed, rows, stays))
    values, at_bound = everything[rows], all_at_bound[rows]
    matrix = 2 * errordef * (solution.inverse + solution.inverse.T).astype(float) / 2
    variances = np.diagonal(matrix)
    undetermined = ~at_bound & ~((solution.residual < _UNSOLVED) & (variances > 0))
    errors = np.sqrt(np.where(undetermined | at_bound, np.nan, variances))
    known = np.isfinite(errors)
    errors[undetermined] = np.inf
    matrix = np.where(known & known[:, None], matrix, np.nan)
    np.fill_diagonal(matrix, errors**2)
    everything = np.full(len(vector.labels), np.nan)
    everything[rows] = errors
    facts = standard_errors(vector, everything)
    owners = dict.fromkeys(vector.owner(row) for row in sorted(rows))
    facts["standard_errors"] = ByName({name: facts["standard_errors"][name] for name in owners})
    tolerance = covariance.tolerance(vector.dtype)
    rough = known & (solution.residual > _ROUGH * _tolerance(vector.dtype))
    sentence = "not determined: conjugate gradients found no curvature that would hold it"
    bounds = vector.lower[rows], vector.upper[rows]
    steps, edm = solution.newton_step, float(solution.fall) / errordef
    distance = messages.not_at_minimum(names, values, steps, errors, edm, tolerance)
    for sentence in distance:
        warnings.warn(sentence, RuntimeWarning, stacklevel=depth_in_package())
    return Uncertainty(
        **facts,
        names=names,
        values=values,
        covariance=NamedMatrix.of(matrix, names),
        correlation=NamedMatrix.of(covariance.correlation(matrix), names),
        undetermined=tuple(names[i] for i in np.flatnonzero(undetermined)),
        at_bound=tuple(names[i] for i in np.flatnonzero(at_bound)),
        notes={
            **{names[i]: sentence for i in np.flatnonzero(undetermined)},
            **messages.at_bound(names, values, *bounds, at_bound),
        },
        messages=(
            *messages.without_error(names, undetermined, at_bound),
            *messages.rough(names, rough, undetermined, vector.dtype == np.float32),
            *distance,
        ),
        condition_number=np.nan,
        loss=float(solution.loss),
        n_data=None,
        degrees_of_freedom=None,
        variance=None,
        absolute_sigma=None,
        errordef=errordef,
        residuals=None,
        sigma=None,
        state=state,
        _likelihood=None,
    )


def _on_bound(
    vector: ParameterVector,
    values: Float[np.ndarray, " elements"],
    errordef: float,
    curvature_of: Callable[[Int[np.ndarray, " near"]], Any],
) -> Bool[np.ndarray, " elements"]:
    """Which elements lie on a bound; the curvature is computed only for those that may."""
    distance = np.minimum(values - vector.lower, vector.upper - values)
    near = (distance <= _CLOSE * vector.span) & (vector.displacement_of >= 0)
    if not near.any():
        return near
    at = vector.displacement_of[near]
    full = np.full((3, vector.n_displacements), np.nan)
    full[:, at] = [np.asarray(x, float) for x in curvature_of(at)]
    return near & on_bound(vector, values, conditional(vector, 2 * errordef, *full))


class Solution(NamedTuple):
    """Rows of the inverse Hessian, brought to elements."""

    inverse: Float[Array, "rows rows"]
    residual: Float[Array, " rows"]  # of the equations, relative to their right sides
    newton_step: Float[Array, " rows"]
    fall: Float[Array, ""]  # of the loss, from here to its minimum
    loss: Float[Array, ""]


def _curvature(
    loss: Callable, vector: ParameterVector, layout: Layout, modes: Modes
) -> Callable[..., Any]:
    """Compile what gives curvature, units and gradient along some displacements."""

    @jax.jit
    def program(free: Sequence[Array], fixed: Sequence[Any], which: Int[Array, " near"]) -> Any:
        units, _, gradient, product = linearized(loss, vector, layout, modes, free, fixed)
        own = lambda i: product(jax.nn.one_hot(i, gradient.size, dtype=gradient.dtype))[i]
        return jax.lax.map(own, which, batch_size=_AT_ONCE), units[which], gradient[which]

    return program


def _solution(
    loss: Callable, vector: ParameterVector, layout: Layout, modes: Modes
) -> Callable[..., Any]:
    """Compile what solves for the rows of the inverse Hessian that belong to some elements."""

    @jax.jit
    def program(
        free: Sequence[Array],
        fixed: Sequence[Any],
        rows: Int[Array, " rows"],
        stays: Bool[Array, " displacements"],
    ) -> Solution:
        units, value, gradient, product = linearized(loss, vector, layout, modes, free, fixed)
        kept = lambda v: jnp.where(stays, 0, v)
        system = lambda v: jnp.where(stays, v, product(kept(v)))
        scale = jnp.sqrt(_diagonal(system, gradient))
        scaled = lambda v: system(v / scale) / scale

        changes = lambda displacements: vector.elements(vector.displaced(free, units, displacements))
        push = jax.linearize(changes, jnp.zeros_like(gradient))[1]
        pull = jax.linear_transpose(push, gradient)

        tolerance = _tolerance(gradient.dtype)

        def solve(right: Array) -> tuple[Array, Array]:
            right = kept(right) / scale
            size = jnp.linalg.norm(right)
            right = right / jnp.where(size > 0, size, 1)
            # lineax.CG takes curvatures below 100 ε n for none, which in single precision may be all.
            x, _ = cg(scaled, right, tol=tolerance, maxiter=_MOST_PRODUCTS)
            residual = jnp.linalg.norm(scaled(x) - right)
            return size * x / scale, jnp.where(jnp.isfinite(residual), residual, jnp.inf)

        def row(i: Array) -> tuple[Array, Array]:
            right = pull(jax.nn.one_hot(i, len(vector.labels), dtype=gradient.dtype))[0]
            x, residual = solve(right)
            return push(x)[rows], residual

        inverse, residual = jax.lax.map(row, rows, batch_size=_AT_ONCE)
        newton_step, _ = solve(-gradient)
        fall = -gradient @ newton_step / 2
        return Solution(inverse, residual, push(newton_step)[rows], fall, value)

    return program


def _tolerance(dtype: np.dtype) -> float:
    """How well equations are to be solved, relative to their right sides."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def _diagonal(system: Callable[[Array], Array], like: Array) -> Float[Array, " n"]:
    """Roughly the diagonal of a symmetric matrix, positive, by Hutchinson's random probes.

    What lies beside the diagonal blurs it; the less, the better it is scaled already.
    """

    def refine(diagonal: Array, key: Array) -> tuple[Array, None]:
        scale = jnp.sqrt(diagonal)

        def probe(key: Array) -> Array:
            signs = jax.random.rademacher(key, like.shape, like.dtype)
            return signs * scale * system(signs / scale)

        mean = jnp.abs(jnp.mean(jax.vmap(probe)(jax.random.split(key, _PROBES)), axis=0))
        return jnp.where((mean > 0) & jnp.isfinite(mean), mean, diagonal), None

    keys = jax.random.split(jax.random.key(0), _ROUNDS)
    return jax.lax.scan(refine, jnp.ones_like(like), keys)[0]
