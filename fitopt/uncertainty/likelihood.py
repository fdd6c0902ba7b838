"""What is known of the loss around a fitted state: its curvature, and which bounds the state lies on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..state import Flat
from . import covariance
from .covariance import Inverse
from .entries import Entries

if TYPE_CHECKING:
    from .refit import Found

_CLOSE = 1e-3  # of an error: whatever is that close to a bound is on it
_NEAR = 0.05  # of an error: on it as well, if the loss still falls towards the bound and beyond
_MARGIN = 0.3  # of an error: how far from their bounds entries are when fits start again


class Information(NamedTuple):
    """The curvature of the loss along the moves, up to a constant factor."""

    matrix: Float[np.ndarray, "k moves"]  # a root of it, or the matrix itself
    is_root: bool
    units: Float[np.ndarray, " moves"]
    gradient: Float[np.ndarray, " moves"]  # of the loss whose curvature it is
    loss: float
    values: Float[np.ndarray, " entries"]
    count: int | None  # of the residuals

    @property
    def is_finite(self) -> bool:
        """Whether there are derivatives everywhere."""
        return bool(np.isfinite(self.matrix).all() and np.isfinite(self.loss))

    def inverse(self, kept: Bool[np.ndarray, " moves"], tolerance: float) -> Inverse:
        """Its inverse, if only some of the moves can be made; their units are taken out."""
        if not kept.any():
            nothing = np.zeros((kept.size, 0))
            return Inverse(nothing, np.zeros(0), nothing, 1.0)
        if self.is_root:
            inverse = covariance.invert_root(self.matrix[:, kept], tolerance)
        else:
            inverse = covariance.invert(self.matrix[np.ix_(kept, kept)], tolerance)

        def expanded(rows: np.ndarray) -> np.ndarray:
            full = np.zeros((kept.size, rows.shape[1]))
            full[kept] = rows
            return full * self.units[:, None]

        return inverse._replace(factor=expanded(inverse.factor), open=expanded(inverse.open))

    def alone(
        self, entries: Entries, variance: float
    ) -> tuple[Float[np.ndarray, " entries"], Float[np.ndarray, " entries"]]:
        """The error of each entry and its way to the least loss, if all others stay."""
        diagonal = np.sum(self.matrix**2, axis=0) if self.is_root else np.diagonal(self.matrix)
        move = entries.move_of
        told = np.where((move >= 0) & (diagonal[move] > 0), diagonal[move], np.nan)
        way = -self.units[move] * self.gradient[move] / told
        return self.units[move] * np.sqrt(variance / told), way


def on_bound(
    entries: Entries,
    values: Float[np.ndarray, " entries"],
    alone: Float[np.ndarray, " entries"],
    way: Float[np.ndarray, " entries"],
) -> Bool[np.ndarray, " entries"]:
    """Which entries are as good as on a bound.

    `alone` and `way` are from `Information.alone`. With the error to compare with, it does not matter in
    which units a value is small.
    """
    blind = ~np.isfinite(alone) | ~np.isfinite(way)
    alone = np.where(blind, 1e-3 * entries.span, alone)
    way = np.where(blind, 0.0, way)
    below, above = values - entries.lower, entries.upper - values
    close = np.minimum(below, above) <= _CLOSE * alone
    beyond_lower = (below <= _NEAR * alone) & (below <= -way)
    beyond_upper = (above <= _NEAR * alone) & (above <= way)
    return (entries.move_of >= 0) & (close | beyond_lower | beyond_upper)


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood:
    """A fitted state, the loss around it, and how to fit again."""

    flat: Flat
    entries: Entries
    information: Information
    inverse: Inverse  # of the information on the entries; their rows are zero where they are held
    values: Float[np.ndarray, " entries"]
    held: Bool[np.ndarray, " entries"]  # which entries lie on a bound
    step: Float[np.ndarray, " entries"]  # how far from here the loss would be least
    unit: float  # the rise of the loss that is one standard error
    spread: float  # errors are as many times larger than the root of the inverse's diagonal
    absolute: bool  # whether the unit is known, and not taken from the scatter of the residuals
    program: Callable[[], Callable[..., "Found"]]  # made when needed

    @property
    def loss(self) -> float:
        """The sum of squares, or the loss."""
        return float(self.information.loss)

    def quantile(self, level: float, count: int) -> float:
        """The rise, in units, at the border of the confidence region of some entries."""
        from scipy.special import chdtri, fdtri  # comes with jax; slow to import

        if self.absolute:
            return float(chdtri(count, 1 - level))
        left = int(self.information.count or 0) - self.inverse.factor.shape[1]
        return count * float(fdtri(count, left, level)) if left > 0 else np.inf

    @property
    def tolerance(self) -> float:
        """Below which curvature is but rounding."""
        return covariance.tolerance(self.entries.dtype)

    @functools.cached_property
    def open(self) -> Bool[np.ndarray, " entries"]:
        """Which entries are not determined."""
        return covariance.is_open(self.inverse, self.tolerance)

    @functools.cached_property
    def errors(self) -> Float[np.ndarray, " entries"]:
        """Standard errors; NaN for entries that are held, infinite for those not determined."""
        errors = covariance.errors(self.inverse, self.spread, self.tolerance)
        return np.where(self.held, np.nan, errors)

    @functools.cached_property
    def covariance(self) -> Float[np.ndarray, "entries entries"]:
        """The covariance; NaN where there is no finite error, but for the diagonal."""
        known = np.isfinite(self.errors)
        factor = self.inverse.factor
        spread = self.spread if known.any() else 1.0  # it is infinite, perhaps
        matrix = np.where(known & known[:, None], spread**2 * (factor @ factor.T), np.nan)
        np.fill_diagonal(matrix, self.errors**2)
        return matrix

    @functools.cached_property
    def alone(self) -> Float[np.ndarray, " entries"]:
        """The standard error of each entry, if all others stayed."""
        return self.information.alone(self.entries, self.spread**2)[0]

    def size(self, row: int) -> float:
        """The error of an entry, or what it may be, where there is none."""
        candidates = self.errors[row], self.alone[row], self.entries.span[row]
        return next(float(x) for x in candidates if np.isfinite(x) and x > 0)

    @functools.cached_property
    def margin(self) -> Float[np.ndarray, " entries"]:
        """How far from their bounds entries are when fits start again."""
        inside = _MARGIN * np.where(np.isfinite(self.alone), self.alone, self.entries.span)
        return np.minimum(inside, (self.entries.upper - self.entries.lower) / 4)

    @functools.cached_property
    def best(self) -> "Found":
        """The minimum next to the state, which should be there already."""
        from .refit import Walk  # which knows likelihoods

        return Walk(self, [])(np.zeros(0))
