"""Errors of some of thousands of parameters: by conjugate gradients, without a Hessian."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int

from ..state import Layout
from . import covariance, notes
from .curvature import linearized
from .entries import Entries, precision_of
from .estimation import flat_of, shapes_of, standard_errors
from .likelihood import on_bound
from .result import Uncertainty

_ROUNDS, _PROBES = 6, 8  # of random vectors, for the diagonal
_AT_ONCE = 16
_CLOSE = 0.05  # of the span: entries that are closer to a bound may be on it
_WRONG = 0.03  # relative: equations that are solved no better have no solution
_ROUGH = 10  # of the tolerance: those that are solved no better are told
_MOST_PRODUCTS = 20_000  # enough for any condition number that single precision can bear


def of_some(
    made: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    errordef: float,
    state: Any,
    mode: str,
    parameters: Sequence[str],
) -> Uncertainty:
    """The `Uncertainty` of some entries of a fit of a scalar loss; what is `made` once is kept."""
    flat = flat_of(state)
    if isinstance(parameters, str) or not parameters:
        raise TypeError(f"parameters must be a list of names, got {parameters!r}")
    with precision_of(flat.free):
        key = "some", flat.layout, mode, shapes_of(flat)
        if key not in made:
            entries = Entries(flat)
            programs = (make(evaluate, entries, flat.layout, mode) for make in (_near, _rows))
            made[key] = entries, *programs
        entries, near, solve = made[key]
        names = tuple(dict.fromkeys(entries.select(parameters)))
        rows = np.array([entries.names.index(name) for name in names])
        values = np.asarray(entries.read(flat.free), float)
        held = _held(entries, values, errordef, lambda moves: near(flat.free, flat.fixed, moves))
        solved = jax.device_get(solve(flat.free, flat.fixed, rows, ~entries.moves_of(~held)))
    matrix = 2 * errordef * (solved.inverse + solved.inverse.T).astype(float) / 2
    variances = np.diagonal(matrix)
    open_ = ~held[rows] & ~((solved.wrong < _WRONG) & (variances > 0))
    errors = np.sqrt(np.where(open_ | held[rows], np.nan, variances))
    known = np.isfinite(errors)
    errors[open_] = np.inf
    matrix = np.where(known & known[:, None], matrix, np.nan)
    np.fill_diagonal(matrix, errors**2)
    everything = np.full(len(entries.names), np.nan)
    everything[rows] = errors
    facts = standard_errors(entries, everything)
    asked = [name for name in entries.parameters if set(entries.select([name])) & set(names)]
    facts["standard_errors"] = {name: facts["standard_errors"][name] for name in asked}
    tolerance = covariance.tolerance(entries.dtype)
    rough = known & (solved.wrong > _ROUGH * _tolerance(entries.dtype))
    sentence = "not determined: conjugate gradients found no curvature that would hold it"
    bounds = entries.lower[rows], entries.upper[rows]
    return Uncertainty(
        **facts,
        names=names,
        values=values[rows],
        covariance=matrix,
        correlation=covariance.correlation(matrix),
        undetermined=tuple(names[i] for i in np.flatnonzero(open_)),
        at_bound=tuple(names[i] for i in np.flatnonzero(held[rows])),
        notes={
            **{names[i]: sentence for i in np.flatnonzero(open_)},
            **notes.at_bound(names, values[rows], *bounds, held[rows]),
        },
        messages=(
            *notes.about(names, open_, held[rows]),
            *notes.rough(names, rough, open_, entries.dtype == np.float32),
            *notes.not_there(names, values[rows], solved.step, errors, tolerance),
        ),
        condition_number=np.nan,
        loss=float(solved.loss),
        n_data=None,
        degrees_of_freedom=None,
        variance=None,
        absolute_sigma=None,
        errordef=errordef,
        state=state,
        _likelihood=None,
    )


def _held(
    entries: Entries,
    values: Float[np.ndarray, " entries"],
    errordef: float,
    near: Callable[[Int[np.ndarray, " near"]], Any],
) -> Bool[np.ndarray, " entries"]:
    """Which entries lie on a bound; the curvature is computed only for those that may."""
    distance = np.minimum(values - entries.lower, entries.upper - values)
    rows = np.flatnonzero((distance <= _CLOSE * entries.span) & (entries.move_of >= 0))
    held = np.zeros(values.size, bool)
    if rows.size:
        told, units, gradient = (np.asarray(x, float) for x in near(entries.move_of[rows]))
        with np.errstate(divide="ignore", invalid="ignore"):
            told = np.where(told > 0, told, np.nan)
        alone, way = np.full((2, values.size), np.nan)
        alone[rows], way[rows] = units * np.sqrt(2 * errordef / told), -units * gradient / told
        held[rows] = on_bound(entries, values, alone, way)[rows]
    return held


class Solved(NamedTuple):
    """Rows of the inverse Hessian, brought to entries."""

    inverse: Float[Array, "rows rows"]
    wrong: Float[
        Array, " rows"
    ]  # by how much the equations are not solved, relative to their right sides
    step: Float[Array, " rows"]  # how far from here the loss would be least
    loss: Float[Array, ""]


def _near(loss: Callable, entries: Entries, layout: Layout, mode: str) -> Callable[..., Any]:
    """Compile what gives curvature, units and gradient along some moves."""

    @jax.jit
    def program(free: Sequence[Array], fixed: Sequence[Any], moves: Int[Array, " near"]) -> Any:
        units, _, gradient, product = linearized(loss, entries, layout, mode, free, fixed)
        own = lambda i: product(jax.nn.one_hot(i, gradient.size, dtype=gradient.dtype))[i]
        return jax.lax.map(own, moves, batch_size=_AT_ONCE), units[moves], gradient[moves]

    return program


def _rows(loss: Callable, entries: Entries, layout: Layout, mode: str) -> Callable[..., Any]:
    """Compile what solves for the rows of the inverse Hessian that belong to some entries."""

    @jax.jit
    def program(
        free: Sequence[Array],
        fixed: Sequence[Any],
        rows: Int[Array, " rows"],
        held: Bool[Array, " moves"],
    ) -> Solved:
        units, value, gradient, product = linearized(loss, entries, layout, mode, free, fixed)
        stays = lambda v: jnp.where(held, 0, v)
        system = lambda v: jnp.where(held, v, product(stays(v)))
        scale = jnp.sqrt(_diagonal(system, gradient))
        scaled = lambda v: system(v / scale) / scale

        changes = lambda moves: entries.read(entries.moved(free, units, moves))
        push = jax.linearize(changes, jnp.zeros_like(gradient))[1]
        pull = jax.linear_transpose(push, gradient)

        tolerance = _tolerance(gradient.dtype)

        def solve(right: Array) -> tuple[Array, Array]:
            right = stays(right) / scale
            size = jnp.linalg.norm(right)
            right = right / jnp.where(size > 0, size, 1)
            # lineax.CG takes curvatures below 100 ε n for none, which in single precision may be all.
            found, _ = cg(scaled, right, tol=tolerance, maxiter=_MOST_PRODUCTS)
            wrong = jnp.linalg.norm(scaled(found) - right)
            return size * found / scale, jnp.where(jnp.isfinite(wrong), wrong, jnp.inf)

        def row(i: Array) -> tuple[Array, Array]:
            found, wrong = solve(pull(jax.nn.one_hot(i, len(entries.names), dtype=gradient.dtype))[0])
            return push(found)[rows], wrong

        inverse, wrong = jax.lax.map(row, rows, batch_size=_AT_ONCE)
        step, _ = solve(-gradient)
        return Solved(inverse, wrong, push(step)[rows], value)

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

        found = jnp.abs(jnp.mean(jax.vmap(probe)(jax.random.split(key, _PROBES)), axis=0))
        return jnp.where((found > 0) & jnp.isfinite(found), found, diagonal), None

    keys = jax.random.split(jax.random.key(0), _ROUNDS)
    return jax.lax.scan(refine, jnp.ones_like(like), keys)[0]
