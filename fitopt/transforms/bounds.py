"""Transforms that keep a value within bounds."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .transform import Constant, Transform, constant

_JUST_INSIDE = 0.1  # of the scale, or of the width: where a value on a bound starts


class _Ends(NamedTuple):
    """What an Interval is in one dtype; a bound that is missing is zero."""

    lower: np.ndarray
    upper: np.ndarray
    half: np.ndarray  # of the width, which itself may overflow; one where a bound is missing
    scale: np.ndarray
    slope: np.ndarray  # of the logistic function's argument
    below: np.ndarray  # where there is a lower bound
    above: np.ndarray


@dataclasses.dataclass(frozen=True, init=False)
class Interval(Transform):
    """Values between `lower` and `upper`, each a number or an array; infinite entries bound nothing.

    One bound is kept by softplus, `log(1 + exp(c))`, two by the logistic function, `1 / (1 + exp(-c))`.
    Near a bound the coordinate is the logarithm of the distance to it. Far from the bounds a step of one
    changes the value by `scale`; its default is 1, and a quarter of the width between two bounds.

    Each value is computed from the bound next to it. So a value 1e-30 above a bound at zero keeps its
    digits, rounding never leads across a bound, and the derivative is zero or infinite nowhere. A value
    on a bound, which has no coordinate, gets that of a value just inside: by about a tenth of `scale`,
    or of the width.

    Softplus is from Dugas et al., *Incorporating Second-Order Functional Knowledge for Better Option
    Pricing* (NIPS 2000); the log-odds for two bounds are those of the *Stan Reference Manual*,
    chapter Constraint Transforms.

    **Raises:** `ValueError` unless `lower < upper`, and `scale` is positive and finite.

    >>> import jax.numpy as jnp
    >>> Interval(0.0, 10.0).forward(jnp.array(0.0)).item()
    5.0
    >>> Interval(lower=0.0).forward(jnp.array([-100.0, 0.0, 30.0])) >= 0
    Array([ True,  True,  True], dtype=bool)
    """

    lower: Constant
    upper: Constant
    scale: Constant | None

    def __init__(
        self,
        lower: ArrayLike | Constant = -np.inf,
        upper: ArrayLike | Constant = np.inf,
        scale: ArrayLike | Constant | None = None,
    ):
        object.__setattr__(self, "lower", constant("lower", lower))
        object.__setattr__(self, "upper", constant("upper", upper))
        object.__setattr__(self, "scale", None if scale is None else constant("scale", scale))
        if not np.all(self.lower.array < self.upper.array):
            raise ValueError(
                f"lower must be less than upper, got lower={self.lower!r} and upper={self.upper!r}"
            )
        positive = self.scale is None or (self.scale.array > 0) & np.isfinite(self.scale.array)
        if not np.all(positive):
            raise ValueError(f"scale must be positive and finite, got {self.scale!r}")

    def _ends(self, dtype: np.dtype) -> _Ends:
        lower, upper = np.broadcast_arrays(self.lower.astype(dtype), self.upper.astype(dtype))
        below, above = np.isfinite(lower), np.isfinite(upper)
        lower, upper = np.where(below, lower, 0).astype(dtype), np.where(above, upper, 0).astype(dtype)
        half = upper.astype(np.float64) / 2 - lower.astype(np.float64) / 2
        half = np.where(below & above, half, 1)
        scale, slope = np.ones((), dtype), np.ones((), dtype)
        if self.scale is not None:
            info = jnp.finfo(dtype)
            scale = self.scale.astype(dtype)
            slope = np.clip(2 * (self.scale.array / half), float(info.tiny), float(info.max)).astype(
                dtype
            )
        return _Ends(lower, upper, half.astype(dtype), scale, slope, below, above)

    def forward(self, coordinate: Array) -> Array:
        lower, upper, half, scale, slope, below, above = self._ends(coordinate.dtype)
        nearest = jnp.where(coordinate > 0, -coordinate, coordinate)
        distance = _logistic(nearest * slope, half)
        return _choose(
            below,
            above,
            neither=coordinate * scale,
            only_lower=jax.nn.softplus(coordinate) * scale + lower,
            only_upper=jax.nn.softplus(-coordinate) * -scale + upper,
            both=jnp.where(coordinate > 0, -distance + upper, distance + lower),
        )

    def inverse(self, value: Array) -> Array:
        lower, upper, half, scale, slope, below, above = self._ends(value.dtype)

        def half_log(distance: Array) -> Array:
            # Of half the distance, in half widths; roots divide without underflow.
            return jnp.log(jnp.sqrt(_inside(distance, half)) / np.sqrt(half))

        from_lower, from_upper = half_log(value / 2 - lower / 2), half_log(-(value / 2 - upper / 2))
        return _choose(
            below,
            above,
            neither=value / scale,
            only_lower=inverse_softplus(_inside(value - lower, scale) / scale),
            only_upper=-inverse_softplus(_inside(-(value - upper), scale) / scale),
            both=(from_lower - from_upper) / (slope / 2),
        )

    def log_det_jacobian(self, coordinate: Array) -> Array:
        _, _, half, scale, slope, below, above = self._ends(coordinate.dtype)
        inner = coordinate * slope
        both = jax.nn.log_sigmoid(inner) + jax.nn.log_sigmoid(-inner)
        return _choose(
            below,
            above,
            neither=jnp.broadcast_to(np.log(scale), coordinate.shape),
            only_lower=jax.nn.log_sigmoid(coordinate) + np.log(scale),
            only_upper=jax.nn.log_sigmoid(-coordinate) + np.log(scale),
            both=both + (np.log(half) + np.log(slope) + np.log(np.asarray(2, half.dtype))),
        )


@jax.custom_jvp
def _logistic(x: Array, half: np.ndarray) -> Array:
    """The logistic function times `2 * half`, for x that is not positive."""
    # In two equal factors: by itself the function underflows long before its product with a width.
    root = jnp.exp(x / 2)
    return (root * half) * (2 * root * (1 / (1 + root * root)))


@_logistic.defjvp
def _logistic_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Derived from the terms above, it would add up parts that are larger than their sum and overflow.
    y, root = _logistic(*primals), jnp.exp(primals[0] / 2)
    return y, tangents[0] * (y * (1 / (1 + root * root)))


def _inside(distance: Array, unit: np.ndarray) -> Array:
    """The distance to a bound, or, where there is none, one just inside."""
    return jnp.where(distance <= 0, (_JUST_INSIDE * unit).astype(unit.dtype), distance)


def _choose(
    below: np.ndarray,
    above: np.ndarray,
    *,
    neither: Array,
    only_lower: Array,
    only_upper: Array,
    both: Array,
) -> Array:
    """Entry by entry; where all entries are of one kind the others never reach the compiled program."""
    result = both
    for where, branch in (
        (~below & ~above, neither),
        (below & ~above, only_lower),
        (~below & above, only_upper),
    ):
        if where.all():
            return branch
        if where.any():
            result = jnp.where(where, branch, result)
    return result


def inverse_softplus(y: Array) -> Array:
    # The bounds keep what a division by a scale has brought to zero or infinity.
    info = jnp.finfo(y.dtype)
    y = jnp.clip(y, info.tiny, info.max)
    return y + jnp.log(-jnp.expm1(-y))


@dataclasses.dataclass(frozen=True, init=False)
class Bounded(Transform):
    """A transform that acts entry by entry, kept within bounds on its value.

    The coordinate goes through an `Interval` first, whose ends the transform maps to the bounds; a
    transform that falls swaps them. A bound that the transform does not reach bounds nothing.

    **Raises:** `ValueError` unless `transform.elementwise` and `lower < upper`.

    >>> import jax.numpy as jnp
    >>> from fitopt.transforms import Exp
    >>> round(Bounded(Exp(), 0.01, 100.0).forward(jnp.array(0.0)).item(), 5)
    1.0
    """

    transform: Transform
    lower: Constant
    upper: Constant

    def __init__(
        self,
        transform: Transform,
        lower: ArrayLike | Constant = -np.inf,
        upper: ArrayLike | Constant = np.inf,
    ):
        if not transform.elementwise:
            raise ValueError(f"{transform!r} does not act entry by entry, so it cannot be bounded")
        bounds = Interval(lower, upper)
        object.__setattr__(self, "transform", transform)
        object.__setattr__(self, "lower", bounds.lower)
        object.__setattr__(self, "upper", bounds.upper)

    def forward(self, coordinate: Array) -> Array:
        value = self.transform.forward(self._interval(coordinate).forward(coordinate))
        return _replaced(value, jnp.clip(value, *self._bounds(value)))

    def inverse(self, value: Array) -> Array:
        return self._interval(value).inverse(self.inner(value))

    def log_det_jacobian(self, coordinate: Array) -> Array:
        interval = self._interval(coordinate)
        inner = self.transform.log_det_jacobian(interval.forward(coordinate))
        return interval.log_det_jacobian(coordinate) + inner

    def inner(self, value: Array) -> Array:
        """What the transform maps to the value; rounding does not lead away from a bound."""
        at_lower, at_upper = self.ends(value.shape, value.dtype)
        lower, upper = self._bounds(value)
        inner = jnp.where(value <= lower, at_lower, self.transform.inverse(value))
        return jnp.where(value >= upper, at_upper, inner)

    def _bounds(self, value: Array) -> tuple[np.ndarray, np.ndarray]:
        return self.lower.astype(value.dtype), self.upper.astype(value.dtype)

    def _interval(self, like: Array) -> Interval:
        ends = self.ends(like.shape, like.dtype)
        return Interval(np.minimum(*ends), np.maximum(*ends))

    def ends(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """What the transform maps to the lower and to the upper bound, in this order."""
        with jax.ensure_compile_time_eval():
            probes = [np.asarray(self.transform.forward(jnp.full(shape, x, dtype))) for x in (-0.5, 0.5)]
            falling = probes[0] > probes[1]
            ends = []
            for bound, missing in (
                (self.lower.astype(dtype), np.where(falling, np.inf, -np.inf)),
                (self.upper.astype(dtype), np.where(falling, -np.inf, np.inf)),
            ):
                end = np.asarray(self.transform.inverse(jnp.broadcast_to(bound, shape)))
                reached = np.isfinite(bound) & ~np.isnan(end)
                ends.append(np.where(reached, end, missing.astype(dtype)))
        return ends[0], ends[1]


class Projected(Bounded):
    """A transform between a value within bounds and a number that a method keeps within their `ends`.

    At an end, and beyond, the value is the bound to the last bit; its derivative is the transform's.

    >>> import jax.numpy as jnp
    >>> from fitopt.transforms import Affine
    >>> Projected(Affine(scale=3.0), 0.0, 0.3).forward(jnp.array(0.1)).item() == jnp.float32(0.3).item()
    True
    """

    def forward(self, coordinate: Array) -> Array:
        value = self.transform.forward(coordinate)
        at_lower, at_upper = self.ends(value.shape, value.dtype)
        (lower, upper), falling = self._bounds(value), at_lower > at_upper
        kept = jnp.clip(value, lower, upper)
        for bound, end, least in ((lower, at_lower, ~falling), (upper, at_upper, falling)):
            beyond = jnp.where(least, coordinate <= end, coordinate >= end)
            kept = jnp.where(beyond, bound, kept)
        return _replaced(value, kept)

    def inverse(self, value: Array) -> Array:
        return self.inner(value)

    def log_det_jacobian(self, coordinate: Array) -> Array:
        return self.transform.log_det_jacobian(coordinate)


@jax.custom_jvp
def _replaced(value: Array, other: Array) -> Array:
    """Another value, with the derivative of the first: for what only rounding makes different."""
    return other


@_replaced.defjvp
def _replaced_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _replaced(*primals), tangents[0]
