"""From a fitted state to its `Uncertainty`: by the Jacobian of residuals, or the Hessian of a loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from ..engine.validation import nothing_free
from ..methods.robust import RobustLoss
from ..state import Flat, flatten
from . import covariance, notes
from .curvature import hessian_program, push_program, root_program
from .entries import Entries, precision_of
from .likelihood import Information, Likelihood, on_bound
from .result import Uncertainty

_MOST = 20_000  # numbers whose Hessian, of 3 GiB, is still computed


class Tools(NamedTuple):
    """What is made once for all states of the same layout and shapes: compiled programs above all."""

    entries: Entries
    inform: Callable[..., Any]
    push: Callable[..., Any]  # of moves to entries
    refit: Callable[[], Callable[..., Any]]


def of_residuals(
    made: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    weighted: Callable[[Any], tuple[Any, Any]],
    robust: RobustLoss,
    f_scale: float,
    absolute_sigma: bool,
    state: Any,
    mode: str | None,
) -> Uncertainty:
    """The `Uncertainty` of a least-squares fit; what is `made` once is kept.

    `evaluate` gives the residuals that are squared, `weighted` those before a robust loss bends them.
    """
    flat = flat_of(state)

    def inform(free: list[Any]) -> Information:
        root = jax.device_get(tools.inform(free, flat.fixed))
        return Information(root.triangle.astype(float), True, *root[1:])

    def unit_of(information: Information, fitted: int) -> float:
        if absolute_sigma:
            return 1.0
        left = int(information.count or 0) - fitted
        return float(information.loss) / left if left > 0 else np.inf

    with precision_of(flat.free):
        program = functools.partial(root_program, weighted, robust, f_scale)
        tools = _tools(made, flat, mode, program, evaluate, squares=True)
        likelihood = _likelihood(flat, tools, inform, unit_of, absolute_sigma)
    count = int(likelihood.information.count or 0)
    fitted = likelihood.inverse.factor.shape[1]
    left = count - fitted
    messages = []
    if likelihood.unit == np.inf:
        messages.append(
            f"{count} residuals for {fitted} fitted numbers leave no scatter to take errors from; "
            "give sigma with absolute_sigma=True"
        )
    return _uncertainty(
        state,
        likelihood,
        messages,
        "the residuals stay",
        n_data=count,
        degrees_of_freedom=left,
        variance=likelihood.loss / left if left > 0 else np.nan,
        absolute_sigma=absolute_sigma,
        errordef=None,
    )


def of_loss(
    made: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    errordef: float,
    state: Any,
    mode: str,
) -> Uncertainty:
    """The `Uncertainty` of a fit of a scalar loss; what is `made` once is kept."""
    flat = flat_of(state)

    def inform(free: list[Any]) -> Information:
        hessian = jax.device_get(tools.inform(free, flat.fixed))
        return Information(hessian.matrix.astype(float), False, *hessian[1:], count=None)

    with precision_of(flat.free):
        program = functools.partial(hessian_program, evaluate)
        tools = _tools(made, flat, mode, program, evaluate, squares=False)
        if tools.entries.n_moves > _MOST:
            raise ValueError(
                f"the Hessian of {tools.entries.n_moves} fitted numbers is too large; "
                "ask for the errors of some with parameters=[...]"
            )
        likelihood = _likelihood(flat, tools, inform, lambda *_: errordef, absolute=True)
    falls = likelihood.inverse.falling > 0
    return _uncertainty(
        state,
        likelihood,
        ["not a minimum: the Hessian has negative eigenvalues"] if falls else [],
        "the loss stays or falls" if falls else "the loss stays",
        n_data=None,
        degrees_of_freedom=None,
        variance=None,
        absolute_sigma=None,
        errordef=errordef,
    )


def flat_of(state: Any) -> Flat:
    """A state taken apart, if it may have an uncertainty."""
    flat = flatten(state)
    if not flat.free:
        raise ValueError(nothing_free(state))
    if any(isinstance(x, Tracer) for x in [*flat.free, *flat.fixed]):
        raise TypeError("uncertainty works with NumPy on the host, not inside jit, vmap or grad")
    return flat


def shapes_of(flat: Flat) -> Any:
    """All that compiled programs depend on besides the state's layout."""
    return tuple((value.shape, value.dtype) for value in flat.free)


def _tools(
    made: dict[Any, Any],
    flat: Flat,
    mode: str | None,
    program: Callable[..., Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    squares: bool,
) -> Tools:
    key = flat.layout, mode, shapes_of(flat)
    if key in made:
        return made[key]
    entries, layout = Entries(flat), flat.layout

    @functools.cache
    def refit() -> Callable[..., Any]:
        from .refit import refit_program

        return refit_program(evaluate, squares, entries, layout, mode)

    made[key] = Tools(entries, program(entries, layout, mode), push_program(entries), refit)
    return made[key]


def _likelihood(
    flat: Flat,
    tools: Tools,
    inform: Callable[[list[Any]], Information],
    unit_of: Callable[[Information, int], float],
    absolute: bool,
) -> Likelihood:
    """What is known of the loss; `unit_of` gives its rise at one standard error."""
    entries, information = tools.entries, inform(flat.free)
    _check_finite(entries, information)
    spread = lambda unit: float(unit if information.is_root else 2 * unit) ** 0.5
    values = information.values.astype(float)
    unit = unit_of(information, entries.n_moves)
    held = on_bound(entries, values, *information.alone(entries, spread(unit) ** 2))
    if held.any():
        there = np.where(held, entries.nearest(values), values)
        at_bound = inform(entries.write(flat.free, jnp.asarray(there)))
        if at_bound.is_finite:  # a derivative may not exist on the bound itself
            information = at_bound._replace(loss=information.loss)
    inverse = information.inverse(entries.moves_of(~held), covariance.tolerance(entries.dtype))
    steepness = inverse.factor.T @ (information.gradient / information.units)
    if not entries.straight:
        pushed = lambda moves: np.asarray(tools.push(flat.free, jnp.asarray(moves.T)), float).T
        inverse = inverse._replace(factor=pushed(inverse.factor), open=pushed(inverse.open))
    unit = unit_of(information, inverse.factor.shape[1])
    return Likelihood(
        flat=flat,
        entries=entries,
        information=information,
        inverse=inverse,
        values=values,
        held=held,
        step=-inverse.factor @ steepness,
        unit=unit,
        spread=spread(unit),
        absolute=absolute,
        program=tools.refit,
    )


def _check_finite(entries: Entries, information: Information) -> None:
    if information.is_finite:
        return
    bad = ~np.isfinite(information.gradient[entries.move_of]) & (entries.move_of >= 0)
    where = f" with respect to {notes.listed(entries.named(bad))}" if bad.any() else ""
    raise ValueError(f"there is no uncertainty where derivatives{where} are not finite")


def _uncertainty(
    state: Any, likelihood: Likelihood, messages: list[str], what: str, **facts: Any
) -> Uncertainty:
    entries, open_, held = likelihood.entries, likelihood.open, likelihood.held
    return Uncertainty(
        **standard_errors(entries, likelihood.errors),
        names=entries.names,
        values=likelihood.values,
        covariance=likelihood.covariance,
        correlation=covariance.correlation(likelihood.covariance),
        undetermined=entries.named(open_),
        at_bound=entries.named(held),
        notes={
            **notes.undetermined(entries.names, likelihood.inverse, open_, what),
            **notes.at_bound(entries.names, likelihood.values, entries.lower, entries.upper, held),
        },
        messages=(
            *messages,
            *notes.about(entries.names, open_, held),
            *notes.not_there(
                entries.names,
                likelihood.values,
                likelihood.step,
                likelihood.errors,
                likelihood.tolerance,
            ),
        ),
        condition_number=likelihood.inverse.condition,
        loss=likelihood.loss,
        state=state,
        _likelihood=likelihood,
        **facts,
    )


def standard_errors(entries: Entries, errors: Float[np.ndarray, " entries"]) -> dict[str, Any]:
    """Errors by the names of Parameters, and as a tree."""
    arrays = entries.arrays(errors)
    pairs = zip(entries.parameters, arrays, strict=True)
    by_name = {name: array if array.ndim else array.item() for name, array in pairs}
    return {"standard_errors": by_name, "errors": entries.tree(arrays)}
