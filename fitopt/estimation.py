"""From a fitted state to its `Uncertainty`: by the Jacobian of residuals, or the Hessian of a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float

from . import covariance, notes
from .checks import nothing_free
from .covariance import Inverse
from .curvature import hessian_program, push_program, root_program
from .entries import Entries, precision_of
from .partition import Flat, flatten
from .robust import RobustLoss
from .uncertainty import Uncertainty, errors_of

_CLOSE = 1e-3  # of an error: whatever is that close to a bound is on it
_NEAR = 0.05  # of an error: on it as well, if the loss still falls towards the bound and beyond
_MOVED = 0.1  # of an error: how far from the minimum a fit may end without a message


class Information(NamedTuple):
    """What the data tell about the moves: the curvature of the loss, up to a constant factor."""

    matrix: Float[np.ndarray, "k moves"]  # a root of it, or the matrix itself
    is_root: bool
    units: Float[np.ndarray, " moves"]
    gradient: Float[np.ndarray, " moves"]  # of the loss whose curvature it is
    loss: float
    count: int | None  # of the residuals

    @property
    def diagonal(self) -> Float[np.ndarray, " moves"]:
        """How much it tells about each move, if the others stay."""
        return np.sum(self.matrix**2, axis=0) if self.is_root else np.diagonal(self.matrix)

    def inverse(self, kept: Bool[np.ndarray, " moves"], tolerance: float) -> Inverse:
        """Its inverse, if only some of the moves can be made."""
        if self.is_root:
            inverse = covariance.invert_root(self.matrix[:, kept], tolerance)
        else:
            inverse = covariance.invert(self.matrix[np.ix_(kept, kept)], tolerance)

        def expanded(rows: np.ndarray) -> np.ndarray:
            full = np.zeros((kept.size, rows.shape[1]))
            full[kept] = rows
            return full * self.units[:, None]

        return inverse._replace(factor=expanded(inverse.factor), open=expanded(inverse.open))


class Estimate(NamedTuple):
    """What both kinds of fit have in common."""

    information: Information
    values: Float[np.ndarray, " entries"]
    held: Bool[np.ndarray, " entries"]  # which lie on a bound
    inverse: Inverse  # of the information on the entries
    fitted: int  # how many numbers the data have determined
    step: Float[np.ndarray, " entries"]  # how far from here the loss would be least


def of_residuals(
    programs: dict[Any, Any],
    residuals: Callable[[Any], tuple[Any, Any]],
    robust: RobustLoss,
    f_scale: float,
    absolute_sigma: bool,
    state: Any,
    mode: str | None,
) -> Uncertainty:
    """The `Uncertainty` of a least-squares fit; `programs` keeps what is compiled."""
    flat = _flat(state)

    def compiled(entries: Entries) -> Callable[..., Any]:
        return root_program(residuals, robust, f_scale, entries, flat.layout, mode)

    def inform(free: list[Any]) -> Information:
        root = jax.device_get(program(free, flat.fixed))
        return Information(root.triangle.astype(float), True, *root[1:])

    def variance_of(loss: float, count: int, fitted: int) -> float:
        if absolute_sigma:
            return 1.0
        return loss / (count - fitted) if count > fitted else np.inf

    with precision_of(flat.free):
        entries, program, push = _programs(programs, ("residuals", mode), flat, compiled)
        found = _estimate(flat, entries, inform, push, variance_of)
    loss, count = float(found.information.loss), int(found.information.count or 0)
    left = count - found.fitted
    messages = []
    if left <= 0 and not absolute_sigma:
        messages.append(
            f"{count} residuals for {found.fitted} fitted numbers leave no scatter to take errors from; "
            "give sigma with absolute_sigma=True"
        )
    return _uncertainty(
        state,
        entries,
        found,
        messages,
        "the residuals stay",
        variance_of(loss, count, found.fitted) ** 0.5,
        n_data=count,
        degrees_of_freedom=left,
        variance=loss / left if left > 0 else np.nan,
        absolute_sigma=absolute_sigma,
        errordef=None,
    )


def of_loss(
    programs: dict[Any, Any],
    loss: Callable[[Any], tuple[Any, Any]],
    errordef: float,
    state: Any,
    mode: str,
) -> Uncertainty:
    """The `Uncertainty` of a fit of a scalar loss; `programs` keeps what is compiled."""
    flat = _flat(state)

    def compiled(entries: Entries) -> Callable[..., Any]:
        return hessian_program(loss, entries, flat.layout, mode)

    def inform(free: list[Any]) -> Information:
        hessian = jax.device_get(program(free, flat.fixed))
        return Information(hessian.matrix.astype(float), False, *hessian[1:], count=None)

    with precision_of(flat.free):
        entries, program, push = _programs(programs, ("loss", mode), flat, compiled)
        found = _estimate(flat, entries, inform, push, lambda *_: 2 * errordef)
    messages = []
    if found.inverse.falling:
        messages.append(
            "not a minimum: the Hessian has negative eigenvalues, the loss falls along some directions"
        )
    return _uncertainty(
        state,
        entries,
        found,
        messages,
        "the loss stays or falls" if found.inverse.falling else "the loss stays",
        (2 * errordef) ** 0.5,
        n_data=None,
        degrees_of_freedom=None,
        variance=None,
        absolute_sigma=None,
        errordef=errordef,
    )


def _flat(state: Any) -> Flat:
    flat = flatten(state)
    if not flat.free:
        raise ValueError(nothing_free(state))
    if any(isinstance(x, Tracer) for x in [*flat.free, *flat.fixed]):
        raise TypeError("uncertainty works with NumPy on the host, not inside jit, vmap or grad")
    return flat


def _programs(
    programs: dict[Any, Any], kind: Any, flat: Flat, compiled: Callable[[Entries], Any]
) -> tuple[Entries, Any, Any]:
    """Entries, the program that gives the information, and the one that pushes moves to entries."""
    key = kind, flat.layout, tuple((value.shape, value.dtype) for value in flat.free)
    if key not in programs:
        entries = Entries(flat)
        programs[key] = entries, compiled(entries), push_program(entries)
    return programs[key]


def _estimate(
    flat: Flat,
    entries: Entries,
    inform: Callable[[list[Any]], Information],
    push: Callable[..., Any],
    variance_of: Callable[[float, int, int], float],
) -> Estimate:
    information = inform(flat.free)
    _check_finite(entries, information)
    values = np.asarray(entries.read(flat.free), float)
    variance = variance_of(float(information.loss), int(information.count or 0), entries.n_moves)
    held = _at_bound(entries, values, information, variance)
    if held.any():
        nearest = np.where(values - entries.lower < entries.upper - values, entries.lower, entries.upper)
        there = inform(entries.write(flat.free, jnp.asarray(np.where(held, nearest, values))))
        if np.isfinite(there.matrix).all():  # a derivative may not exist on the bound itself
            information = there._replace(loss=information.loss)
    kept = np.ones(entries.n_moves, bool)
    kept[entries.move_of[held]] = False
    inverse = information.inverse(kept, covariance.tolerance(entries.dtype))
    fitted = int(kept.sum()) - inverse.open.shape[1]
    if entries.straight:
        pushed = lambda directions: directions
    else:
        pushed = lambda directions: np.asarray(push(flat.free, jnp.asarray(directions.T)), float).T
    steepness = inverse.factor.T @ (information.gradient / information.units)
    inverse = inverse._replace(factor=pushed(inverse.factor), open=pushed(inverse.open))
    return Estimate(information, values, held, inverse, fitted, -inverse.factor @ steepness)


def _check_finite(entries: Entries, information: Information) -> None:
    if np.isfinite(information.matrix).all() and np.isfinite(information.loss):
        return
    bad = ~np.isfinite(information.gradient[entries.move_of]) & (entries.move_of >= 0)
    names = [name for name, is_bad in zip(entries.names, bad, strict=True) if is_bad]
    where = f" with respect to {notes.listed(names)}" if names else ""
    raise ValueError(f"there is no uncertainty where derivatives{where} are not finite")


def _at_bound(
    entries: Entries,
    values: Float[np.ndarray, " entries"],
    information: Information,
    variance: float,
) -> Bool[np.ndarray, " entries"]:
    """Which entries are as good as on a bound, by how far from it the data would let them be."""
    alone, move = entries.move_of >= 0, entries.move_of
    told, unit = information.diagonal[move], information.units[move]
    slope = information.gradient[move]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = unit * np.sqrt(variance / told)
        towards = -unit * slope / told  # where the loss would be least, if the others stay
    blind = ~(told > 0) | ~np.isfinite(error)
    error = np.where(blind, 1e-3 * entries.span, error)
    towards = np.where(blind, 0.0, towards)
    below, above = values - entries.lower, entries.upper - values
    close = np.minimum(below, above) <= _CLOSE * error
    beyond = (below <= np.minimum(_NEAR * error, -towards)) | (
        above <= np.minimum(_NEAR * error, towards)
    )
    return alone & (close | beyond)


def _uncertainty(
    state: Any,
    entries: Entries,
    found: Estimate,
    messages: list[str],
    what: str,
    spread: float,
    **facts: Any,
) -> Uncertainty:
    inverse, held = found.inverse, found.held
    tolerance = covariance.tolerance(entries.dtype)
    is_open = covariance.is_open(inverse, tolerance)
    errors = np.where(held, np.nan, errors_of(inverse, spread, tolerance))
    undetermined, at_bound = _named(entries, is_open), _named(entries, held)
    if undetermined:
        messages.append(f"the data do not determine {notes.listed(undetermined)}")
    if at_bound:
        messages.append(
            f"at a bound, and held there for the errors of the others: {notes.listed(at_bound)}"
        )
    steps = np.abs(found.step) / errors
    if np.nanmax(steps, initial=0) > _MOVED:
        worst = int(np.nanargmax(steps))
        messages.append(
            f"the fit has not come to the minimum: {entries.names[worst]} would still change by "
            f"{steps[worst]:.2g} of its standard error; fit on from here"
        )
    matrix, arrays = _covariance(inverse.factor, errors, spread), entries.arrays(errors)
    return Uncertainty(
        names=entries.names,
        values=found.values,
        covariance=matrix,
        correlation=covariance.correlation(matrix),
        standard_errors={
            name: array if array.ndim else array.item()
            for name, array in zip(entries.parameters, arrays, strict=True)
        },
        errors=entries.tree(arrays),
        undetermined=undetermined,
        at_bound=at_bound,
        notes={
            **notes.undetermined(entries.names, inverse, is_open, what),
            **notes.at_bound(entries.names, found.values, entries.lower, entries.upper, held),
        },
        messages=tuple(messages),
        condition_number=inverse.condition,
        loss=float(found.information.loss),
        state=state,
        _entries=entries,
        _inverse=inverse,
        _spread=spread,
        **facts,
    )


def _named(entries: Entries, which: Bool[np.ndarray, " entries"]) -> tuple[str, ...]:
    return tuple(entries.names[i] for i in np.flatnonzero(which))


def _covariance(
    factor: Float[np.ndarray, "n k"], errors: Float[np.ndarray, " n"], spread: float
) -> Float[np.ndarray, "n n"]:
    known = np.isfinite(errors)
    matrix = np.where(known & known[:, None], factor @ factor.T, np.nan)
    if np.isfinite(spread):
        matrix *= spread**2
    np.fill_diagonal(matrix, errors**2)
    return matrix
