"""What is known of the loss around a fitted state: its curvature, and which bounds the state lies on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..state import Flat, ParameterVector
from . import covariance
from .covariance import Inverse
from .propagation import Propagation
from .refit import Refit

_CLOSE = 1e-3  # of an error: whatever is that close to a bound is on it
_NEAR = 0.05  # of an error: on it as well, if the loss still falls towards the bound and beyond
_INWARD = 0.1  # of an error: not on it, if the loss falls that far away from it
_MARGIN = 0.3  # of an error: how far from their bounds elements are when fits start again


class Conditional(NamedTuple):
    """What each element would be if all others stayed as they are; NaN where nothing is known."""

    errors: Float[np.ndarray, " elements"]
    newton_steps: Float[np.ndarray, " elements"]  # to where the loss is least


class Information(NamedTuple):
    """The curvature of the loss along the displacements, up to a constant factor."""

    matrix: Float[np.ndarray, "k displacements"]  # a root of it, or the matrix itself
    is_root: bool
    units: Float[np.ndarray, " displacements"]
    gradient: Float[np.ndarray, " displacements"]  # of the loss whose curvature it is
    loss: float
    values: Float[np.ndarray, " elements"]
    residuals: Float[np.ndarray, " residuals"] | None  # None for a loss that is no sum of squares

    @property
    def count(self) -> int:
        """How many residuals there are."""
        return 0 if self.residuals is None else self.residuals.size

    @property
    def is_finite(self) -> bool:
        """Whether there are derivatives everywhere."""
        return bool(np.isfinite(self.matrix).all() and np.isfinite(self.loss))

    def inverse(self, kept: Bool[np.ndarray, " displacements"], tolerance: float) -> Inverse:
        """Its inverse, if there are only some of the displacements; their units are taken out."""
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

        return inverse._replace(factor=expanded(inverse.factor), flat=expanded(inverse.flat))

    def conditional(self, vector: ParameterVector, variance: float) -> Conditional:
        """Errors and Newton steps of single elements."""
        diagonal = np.sum(self.matrix**2, axis=0) if self.is_root else np.diagonal(self.matrix)
        return conditional(vector, variance, diagonal, self.units, self.gradient)


def conditional(
    vector: ParameterVector,
    variance: float,
    curvature: Float[np.ndarray, " displacements"],
    units: Float[np.ndarray, " displacements"],
    gradient: Float[np.ndarray, " displacements"],
) -> Conditional:
    """Errors and Newton steps of single elements, from the diagonal of the curvature."""
    at = vector.displacement_of
    with np.errstate(invalid="ignore"):
        curvature = np.where((at >= 0) & (curvature[at] > 0), curvature[at], np.nan)
    return Conditional(units[at] * np.sqrt(variance / curvature), -units[at] * gradient[at] / curvature)


def on_bound(
    vector: ParameterVector, values: Float[np.ndarray, " elements"], conditional: Conditional
) -> Bool[np.ndarray, " elements"]:
    """Which elements are as good as on a bound.

    The error that they are compared with makes it indifferent in which units a value is small.
    """
    unknown = ~np.isfinite(conditional.errors) | ~np.isfinite(conditional.newton_steps)
    errors = np.where(unknown, 1e-3 * vector.span, conditional.errors)
    steps = np.where(unknown, 0.0, conditional.newton_steps)
    below, above = values - vector.lower, vector.upper - values
    inward = np.where(below < above, steps, -steps)
    close = (np.minimum(below, above) <= _CLOSE * errors) & (inward <= _INWARD * errors)
    beyond_lower = (below <= _NEAR * errors) & (below <= -steps)
    beyond_upper = (above <= _NEAR * errors) & (above <= steps)
    return (vector.displacement_of >= 0) & (close | beyond_lower | beyond_upper)


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood:
    """A fitted state, the loss around it, and how to fit again."""

    flat: Flat
    vector: ParameterVector
    information: Information
    inverse: Inverse  # of the information on the elements; zero rows for those on a bound
    values: Float[np.ndarray, " elements"]
    on_bound: Bool[np.ndarray, " elements"]  # which elements lie on a bound
    newton_step: Float[np.ndarray, " elements"]  # from here to where the loss is least
    edm: float  # the estimated distance to the minimum: how much less the loss is there, in units
    unit: float  # the rise of the loss that is one standard error
    error_scale: float  # the standard error where the diagonal of the inverse is one
    absolute: bool  # whether the unit is known, and not taken from the scatter of the residuals
    refit_program: Callable[[], Callable[..., Refit]]  # compiled when it is needed
    propagation: Propagation

    @property
    def loss(self) -> float:
        """The sum of squares, or the loss."""
        return float(self.information.loss)

    def quantile(self, level: float, count: int) -> float:
        """The rise, in units, at the border of the confidence region of some elements."""
        from scipy.special import chdtri, fdtri  # takes long to import

        if self.absolute:
            return float(chdtri(count, 1 - level))
        left = self.information.count - self.inverse.factor.shape[1]
        return count * float(fdtri(count, left, level)) if left > 0 else np.inf

    @property
    def tolerance(self) -> float:
        """Below which curvature is but rounding."""
        return covariance.tolerance(self.vector.dtype)

    @functools.cached_property
    def undetermined(self) -> Bool[np.ndarray, " elements"]:
        """Which elements are not determined."""
        return covariance.is_undetermined(self.inverse, self.tolerance)

    @functools.cached_property
    def errors(self) -> Float[np.ndarray, " elements"]:
        """Standard errors; NaN for elements on a bound, infinite for those not determined."""
        errors = covariance.errors(self.inverse, self.error_scale, self.tolerance)
        return np.where(self.on_bound, np.nan, errors)

    @functools.cached_property
    def covariance(self) -> Float[np.ndarray, "elements elements"]:
        """The covariance; NaN where there is no finite error, but for the diagonal."""
        known = np.isfinite(self.errors)
        factor = self.inverse.factor
        scale = self.error_scale if known.any() else 1.0  # it may be infinite
        matrix = np.where(known & known[:, None], scale**2 * (factor @ factor.T), np.nan)
        np.fill_diagonal(matrix, self.errors**2)
        return matrix

    @functools.cached_property
    def conditional_errors(self) -> Float[np.ndarray, " elements"]:
        """The standard error of each element, if all others stayed."""
        return self.information.conditional(self.vector, self.error_scale**2).errors

    def size(self, row: int) -> float:
        """The error of an element, or what it may be, where there is none."""
        candidates = self.errors[row], self.conditional_errors[row], self.vector.span[row]
        return next(float(x) for x in candidates if np.isfinite(x) and x > 0)

    @functools.cached_property
    def margin(self) -> Float[np.ndarray, " elements"]:
        """How far from their bounds elements are when fits start again."""
        errors, vector = self.conditional_errors, self.vector
        inside = _MARGIN * np.where(np.isfinite(errors), errors, vector.span)
        return np.minimum(inside, (vector.upper - vector.lower) / 4)
