"""Fits with some elements held, one after the other: what profile likelihoods are made of."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from ..engine.validation import depth_in_package
from . import covariance
from .likelihood import Likelihood
from .messages import listed
from .refit import Refit

_BETTER = 1e-2  # of the unit: a loss that is less than the best by more is that of another minimum


class ConditionalFits:
    """Fits with the same elements held, each of them begun from the result of the nearest.

    `minimum` is the result with none held; it is where these fits begin.
    """

    def __init__(self, likelihood: Likelihood, rows: Sequence[int], minimum: Refit | None):
        self._likelihood, self._rows = likelihood, list(rows)
        vector = likelihood.vector
        self._held = np.zeros(len(vector.labels), bool)
        self._held[self._rows] = True
        off_bound, others = (
            vector.displacements_of(~which) for which in (likelihood.on_bound, self._held)
        )
        inverse = likelihood.information.inverse(off_bound & others, likelihood.tolerance)
        axes = likelihood.error_scale * np.concatenate([inverse.factor, inverse.flat], axis=1)
        sizes, single = np.zeros(vector.n_displacements), vector.displacement_of >= 0
        sizes[vector.displacement_of[single]] = likelihood.margin[single]
        axes = np.concatenate([axes, np.diag(sizes)[:, ~off_bound & others]], axis=1)
        self._axes = np.pad(axes, ((0, 0), (0, vector.n_displacements - axes.shape[1])))
        self._slopes = self._slopes_of_others(off_bound)
        start = likelihood.values if minimum is None else minimum.values
        self._lowest_loss = likelihood.loss if minimum is None else float(minimum.loss)
        self._results = [(start[self._rows], start)]
        self._failures = 0
        self._lowest: tuple[float, tuple[float, ...]] = (0.0, ())

    def _slopes_of_others(
        self, off_bound: Bool[np.ndarray, " displacements"]
    ) -> Float[np.ndarray, "elements rows"]:
        """How the other elements change with those held, to first order."""
        likelihood, at = self._likelihood, self._likelihood.vector.displacement_of
        inverse = likelihood.information.inverse(off_bound, likelihood.tolerance)
        determined = ~covariance.is_undetermined(inverse, likelihood.tolerance)[:, None]
        own = np.where(determined, inverse.factor, 0.0)[at[self._rows]]
        return np.where(at[:, None] >= 0, (inverse.factor @ np.linalg.pinv(own))[at], 0.0)

    def __call__(self, held_at: Float[np.ndarray, " rows"]) -> Refit:
        """The least loss with the elements held there."""
        likelihood, vector = self._likelihood, self._likelihood.vector
        sizes = [likelihood.size(row) for row in self._rows]
        distances = [np.linalg.norm((held_at - where) / sizes) for where, _ in self._results]
        where, values = self._results[int(np.argmin(distances))]
        start = values + self._slopes @ (held_at - where)
        # Close to a bound, steps of the position hardly move the value: no fit would ever leave it.
        inner = vector.lower + likelihood.margin, vector.upper - likelihood.margin
        start = np.where(vector.displacement_of >= 0, np.clip(start, *inner), values)
        targets = np.zeros(self._held.size)
        targets[self._rows] = held_at
        targets = np.clip(targets, vector.lower, vector.upper)  # rounding may have led beyond
        flat, dtype = likelihood.flat, vector.dtype
        numbers = [np.asarray(x, dtype) for x in (targets, likelihood.unit, likelihood.loss)]
        vectors = start.astype(dtype), self._axes.astype(dtype), self._held
        with vector.precision():
            program = likelihood.refit_program()
            result = jax.device_get(program(flat.free, flat.fixed, *vectors, *numbers))
        result = Refit(float(result.loss), result.values.astype(float), bool(result.converged))
        self._failures += not result.converged
        if np.isfinite(result.loss):
            self._results.append((held_at, result.values))
        return result

    def height(self, held_at: Float[np.ndarray, " rows"]) -> float:
        """The rise of the loss as a number of standard errors."""
        rise = (self(held_at).loss - self._lowest_loss) / self._likelihood.unit
        if not np.isfinite(rise):
            return np.inf
        self._lowest = min(self._lowest, (float(rise), tuple(held_at.tolist())))
        return float(max(rise, 0.0)) ** 0.5

    def messages(self, what: str) -> tuple[str, ...]:
        """What went wrong; of another, better minimum there is a warning as well."""
        messages = []
        likelihood = self._likelihood
        if self._lowest_loss < likelihood.loss - _BETTER * likelihood.unit:
            messages.append(
                f"{what}: it is around a minimum whose loss is "
                f"{likelihood.loss - self._lowest_loss:.3g} less than that of the state; fit on first"
            )
        if self._failures:
            messages.append(f"{what}: {self._failures} refits did not converge")
        rise, held_at = self._lowest
        if rise < -_BETTER:
            names = [likelihood.vector.labels[row] for row in self._rows]
            where = listed([f"{n} = {x:.6g}" for n, x in zip(names, held_at, strict=True)])
            messages.append(
                f"{what}: there is a better minimum, the loss with {where} is "
                f"{-rise * likelihood.unit:.3g} less; fit again from there"
            )
            warnings.warn(messages[-1], RuntimeWarning, stacklevel=depth_in_package())
        return tuple(messages)


def minimum(likelihood: Likelihood) -> Refit:
    """The minimum next to the state, which should be there already."""
    return ConditionalFits(likelihood, [], None)(np.zeros(0))
