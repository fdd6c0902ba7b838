"""From a fitted state to its `Uncertainty`: by the Jacobian of residuals, or the Hessian of a loss."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from ..engine.validation import depth_in_package, nothing_free
from ..methods.robust import RobustLoss
from ..state import Flat, ParameterVector, flatten
from . import covariance, messages
from .curvature import (
    first_differentiable,
    hessian_modes,
    hessian_program,
    jacobian_modes,
    push_program,
    root_program,
)
from .likelihood import Information, Likelihood, on_bound
from .named_matrix import NamedMatrix
from .propagation import Propagation
from .refit import refit_program
from .result import Uncertainty

_MOST = 20_000  # numbers whose Hessian, of 3 GiB, is still computed


class Programs(NamedTuple):
    """What is compiled once for all states of the same layout and shapes."""

    vector: ParameterVector
    information: Callable[..., Any]
    push: Callable[..., Any]  # of displacements to elements
    refit: Callable[[], Callable[..., Any]]
    propagation: Propagation
    notes: list[str]


def of_residuals(
    cache: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    weighted: Callable[[Any], tuple[Any, Any]],
    robust: RobustLoss,
    f_scale: float,
    sigma: Any,
    absolute_sigma: bool,
    mode: str | None,
    state: Any,
    derivatives: Any = None,
) -> Uncertainty:
    """The `Uncertainty` of a least-squares fit; `cache` keeps what is compiled.

    `evaluate` gives the residuals that are squared, `weighted` those before a robust loss is applied;
    `derivatives` what the program of the `Root` gives at the state, where that is known.
    """
    flat = flat_of(state)

    def information_at(free: list[Any]) -> Information:
        root = derivatives
        if root is None or free is not flat.free:
            root = jax.device_get(programs.information(free, flat.fixed))
        return Information(root.triangle.astype(float), True, *root[1:])

    def unit_of(information: Information, fitted: int) -> float:
        if absolute_sigma:
            return 1.0
        left = information.count - fitted
        return float(information.loss) / left if left > 0 else np.inf

    def make_programs(vector: ParameterVector) -> Programs:
        make = functools.partial(root_program, weighted, robust, f_scale, vector, flat.layout)
        state_residuals = lambda: weighted(flat.layout.plain(flat.free, flat.fixed))[0]
        modes = jacobian_modes(mode, state_residuals, vector.n_displacements)
        works, program = first_differentiable(modes, make, flat.free, flat.fixed)
        return _programs(vector, flat, program, functools.partial(refit_program, evaluate, True), works)

    programs = _kept(cache, flat, mode, make_programs)
    likelihood = _likelihood(flat, programs, information_at, unit_of, absolute_sigma)
    count = likelihood.information.count
    fitted = likelihood.inverse.factor.shape[1]
    left = count - fitted
    sentences = [*programs.notes]
    if likelihood.unit == np.inf:
        sentences.append(
            f"{count} residuals for {fitted} fitted numbers leave no scatter to take errors from; "
            "give sigma with absolute_sigma=True"
        )
    return _uncertainty(
        state,
        likelihood,
        sentences,
        "the residuals stay",
        n_data=count,
        degrees_of_freedom=left,
        variance=likelihood.loss / left if left > 0 else np.nan,
        absolute_sigma=absolute_sigma,
        errordef=None,
        residuals=likelihood.information.residuals,
        sigma=sigma,
    )


def of_loss(
    cache: dict[Any, Any],
    evaluate: Callable[[Any], tuple[Any, Any]],
    errordef: float,
    mode: str | None,
    state: Any,
    derivatives: Any = None,
) -> Uncertainty:
    """The `Uncertainty` of a fit of a scalar loss; `cache` keeps what is compiled.

    `derivatives` are what the program of the `Hessian` gives at the state, where that is known.
    """
    flat = flat_of(state)

    def make_programs(vector: ParameterVector) -> Programs:
        if vector.n_displacements > _MOST:
            raise ValueError(
                f"the Hessian of {vector.n_displacements} fitted numbers is too large; "
                "ask for the errors of some with parameters=[...]"
            )
        make = functools.partial(hessian_program, evaluate, vector, flat.layout)
        works, program = first_differentiable(hessian_modes(mode), make, flat.free, flat.fixed)
        refit = functools.partial(refit_program, evaluate, False)
        notes = [messages.DIFFERENCES] if works[0] == "differences" else []
        return _programs(vector, flat, program, refit, works[1], notes)

    def information_at(free: list[Any]) -> Information:
        hessian = derivatives
        if hessian is None or free is not flat.free:
            hessian = jax.device_get(programs.information(free, flat.fixed))
        return Information(hessian.matrix.astype(float), False, *hessian[1:], residuals=None)

    programs = _kept(cache, flat, mode, make_programs)
    likelihood = _likelihood(flat, programs, information_at, lambda *_: errordef, absolute=True)
    falls = likelihood.inverse.falling > 0
    if falls:
        warnings.warn(messages.SADDLE, RuntimeWarning, stacklevel=depth_in_package())
    return _uncertainty(
        state,
        likelihood,
        [*programs.notes, *([messages.SADDLE] if falls else [])],
        "the loss stays or falls" if falls else "the loss stays",
        n_data=None,
        degrees_of_freedom=None,
        variance=None,
        absolute_sigma=None,
        errordef=errordef,
        residuals=None,
        sigma=None,
    )


def flat_of(state: Any) -> Flat:
    """A state taken apart, if it may have an uncertainty."""
    flat = flatten(state)
    if not flat.free:
        raise ValueError(nothing_free(state))
    if any(isinstance(x, Tracer) for x in [*flat.free, *flat.fixed]):
        raise TypeError("uncertainty works with NumPy on the host, not inside jit, vmap or grad")
    return flat


def _kept(
    cache: dict[Any, Any],
    flat: Flat,
    mode: str | None,
    make: Callable[[ParameterVector], Programs],
) -> Programs:
    vector = ParameterVector.of(flat.layout, flat.free)
    if (vector, mode) not in cache:
        with vector.precision():
            cache[vector, mode] = make(vector)
    return cache[vector, mode]


def _programs(
    vector: ParameterVector,
    flat: Flat,
    information: Callable[..., Any],
    refit: Callable[..., Any],
    mode: str,
    notes: Sequence[str] = (),
) -> Programs:
    make_refit = functools.cache(functools.partial(refit, vector, flat.layout, mode))
    push = push_program(vector)
    return Programs(vector, information, push, make_refit, Propagation(vector), list(notes))


def _likelihood(
    flat: Flat,
    programs: Programs,
    information_at: Callable[[list[Any]], Information],
    unit_of: Callable[[Information, int], float],
    absolute: bool,
) -> Likelihood:
    """What is known of the loss; `unit_of` gives its rise at one standard error."""
    vector = programs.vector
    error_scale = lambda unit: float(unit if information.is_root else 2 * unit) ** 0.5
    with vector.precision():
        information = information_at(flat.free)
        _check_finite(vector, information)
        values = information.values.astype(float)
        unit = unit_of(information, vector.n_displacements)
        at_bound = on_bound(vector, values, information.conditional(vector, error_scale(unit) ** 2))
        if at_bound.any():
            there = np.where(at_bound, vector.nearest_bound(values), values)
            at_bounds = information_at(vector.with_elements(flat.free, jnp.asarray(there)))
            if at_bounds.is_finite:  # a derivative may not exist on the bound itself
                information = at_bounds._replace(loss=information.loss)
        kept = vector.displacements_of(~at_bound)
        inverse = information.inverse(kept, covariance.tolerance(vector.dtype))
        steepness = inverse.factor.T @ (information.gradient / information.units)
        if not vector.is_elementwise:
            push = lambda rows: np.asarray(programs.push(flat.free, jnp.asarray(rows.T)), float).T
            inverse = inverse._replace(factor=push(inverse.factor), flat=push(inverse.flat))
    unit = unit_of(information, inverse.factor.shape[1])
    fall = float(steepness @ steepness) * (1.0 if information.is_root else 0.5)
    return Likelihood(
        flat=flat,
        vector=vector,
        information=information,
        inverse=inverse,
        values=values,
        on_bound=at_bound,
        newton_step=-inverse.factor @ steepness,
        edm=fall / unit if 0 < unit < np.inf else 0.0,
        unit=unit,
        error_scale=error_scale(unit),
        absolute=absolute,
        refit_program=programs.refit,
        propagation=programs.propagation,
    )


def _check_finite(vector: ParameterVector, information: Information) -> None:
    if information.is_finite:
        return
    at = vector.displacement_of
    bad = (at >= 0) & ~np.isfinite(information.gradient[at])
    where = f" with respect to {messages.listed(vector.labelled(bad))}" if bad.any() else ""
    raise ValueError(f"there is no uncertainty where derivatives{where} are not finite")


def _uncertainty(
    state: Any, likelihood: Likelihood, sentences: list[str], what: str, **facts: Any
) -> Uncertainty:
    vector, values = likelihood.vector, likelihood.values
    undetermined, at_bound = likelihood.undetermined, likelihood.on_bound
    names = vector.labels
    steps, tolerance = likelihood.newton_step, likelihood.tolerance
    distance = messages.not_at_minimum(
        names, values, steps, likelihood.errors, likelihood.edm, tolerance
    )
    for sentence in distance:
        warnings.warn(sentence, RuntimeWarning, stacklevel=depth_in_package())
    return Uncertainty(
        **standard_errors(vector, likelihood.errors),
        names=names,
        values=values,
        covariance=NamedMatrix.of(likelihood.covariance, names),
        correlation=NamedMatrix.of(covariance.correlation(likelihood.covariance), names),
        undetermined=vector.labelled(undetermined),
        at_bound=vector.labelled(at_bound),
        notes={
            **messages.undetermined(names, likelihood.inverse, undetermined, what),
            **messages.at_bound(names, values, vector.lower, vector.upper, at_bound),
        },
        messages=(
            *sentences,
            *messages.without_error(names, undetermined, at_bound),
            *distance,
        ),
        condition_number=likelihood.inverse.condition,
        loss=likelihood.loss,
        state=state,
        _likelihood=likelihood,
        **facts,
    )


class ByName(dict[str, Any]):
    """What belongs to Parameters, by name; a name that is not there is told which there are."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"no parameter {name!r} is fitted; there are {', '.join(self)}; what is computed of them, "
            "such as a Derived, has its error by propagate"
        )


def standard_errors(vector: ParameterVector, errors: Float[np.ndarray, " elements"]) -> dict[str, Any]:
    """Errors by the names of Parameters, and as a tree."""
    arrays = vector.arrays(errors)
    pairs = zip(vector.names, arrays, strict=True)
    by_name = {name: array if array.ndim else array.item() for name, array in pairs}
    return {"standard_errors": ByName(by_name), "errors": vector.layout.free_tree(arrays)}
