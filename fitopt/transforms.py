"""Bijections between a value, in the user's units, and the coordinate that an optimizer moves.

`forward` maps a coordinate to a value, `inverse` a value to its coordinate. Both take JAX arrays of any
floating dtype, which they keep, and any shape. Every transform is immutable and hashable by content, so
that it can be static metadata of a compiled program.
"""

import abc
import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array


class Constant:
    """An array that hashes and compares by its content, whatever its dtype.

    >>> Constant([0, 1]) == Constant([0.0, 1.0])
    True
    """

    __slots__ = ("_hash", "array")

    def __init__(self, array: ArrayLike):
        self.array = np.array(array)
        self.array.setflags(write=False)
        # Equal numbers need equal hashes: as floats 1 is 1.0, and adding zero turns -0.0 into 0.0.
        content = (self.array.astype(np.float64) + 0.0).tobytes()
        self._hash = hash((self.array.shape, content))

    def astype(self, dtype: np.dtype) -> np.ndarray:
        """The array in a floating dtype; what is too large for it becomes infinite."""
        with np.errstate(over="ignore"):
            return self.array.astype(dtype)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Constant) or self._hash != other._hash:
            return False
        return np.array_equal(self.array, other.array)

    def __reduce__(self) -> tuple:  # hashes of bytes differ from process to process
        return Constant, (self.array,)

    def __repr__(self) -> str:
        return repr(self.array.tolist())


def _constant(name: str, given: "ArrayLike | Constant") -> Constant:
    if isinstance(given, Constant):
        return given
    try:
        return Constant(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a real number or array, got {given!r}") from error


def real_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the real part."""
    return jnp.finfo(dtype).dtype


class Transform(abc.ABC):
    """A bijection; subclass it to bring your own.

    A subclass must be hashable: a frozen dataclass of numbers and other transforms is, by content.
    `elementwise` says that each entry of the value depends on one entry of the coordinate and grows
    with it, or falls; only then can bounds and masks be put on top.

    >>> import jax.numpy as jnp
    >>> from fitopt import Parameter
    >>> class Decades(Transform):
    ...     def forward(self, coordinate):
    ...         return 10**coordinate
    ...
    ...     def inverse(self, value):
    ...         return jnp.log10(value)
    >>> k = Parameter("k", 0.01, transform=Decades())
    """

    elementwise: ClassVar[bool] = True

    @abc.abstractmethod
    def forward(self, coordinate: Array) -> Array:
        """The value that belongs to a coordinate."""

    @abc.abstractmethod
    def inverse(self, value: Array) -> Array:
        """The coordinate that belongs to a value."""


@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """The value is its own coordinate.

    >>> import jax.numpy as jnp
    >>> Identity().forward(jnp.array(2.0)).item()
    2.0
    """

    def forward(self, coordinate: Array) -> Array:
        return coordinate

    def inverse(self, value: Array) -> Array:
        return value


@dataclasses.dataclass(frozen=True, init=False)
class Affine(Transform):
    """`shift + scale * coordinate`, with numbers or arrays that broadcast to the value's shape.

    **Raises:** `ValueError` where `scale` is zero or anything is not finite.

    >>> import jax.numpy as jnp
    >>> Affine(1.0, 10.0).forward(jnp.array(2.0)).item()
    21.0
    """

    shift: Constant
    scale: Constant

    def __init__(self, shift: ArrayLike | Constant = 0.0, scale: ArrayLike | Constant = 1.0):
        object.__setattr__(self, "shift", _constant("shift", shift))
        object.__setattr__(self, "scale", _constant("scale", scale))
        if not np.isfinite(self.shift.array).all():
            raise ValueError(f"shift must be finite, got {self.shift!r}")
        if not np.all(np.isfinite(self.scale.array) & (self.scale.array != 0)):
            raise ValueError(f"scale must be finite and not zero, got {self.scale!r}")

    def forward(self, coordinate: Array) -> Array:
        real = real_dtype(coordinate.dtype)
        return coordinate * self.scale.astype(real) + self.shift.astype(real)

    def inverse(self, value: Array) -> Array:
        real = real_dtype(value.dtype)
        return (value - self.shift.astype(real)) / self.scale.astype(real)


@dataclasses.dataclass(frozen=True)
class Exp(Transform):
    """A positive value whose coordinate is its logarithm: for numbers that span orders of magnitude.

    >>> import jax.numpy as jnp
    >>> round(Exp().inverse(jnp.array(100.0)).item(), 4)
    4.6052
    """

    def forward(self, coordinate: Array) -> Array:
        return jnp.exp(coordinate)

    def inverse(self, value: Array) -> Array:
        return jnp.log(value)


_JUST_INSIDE = 1e-3  # of the scale, or of the width: where a value on a bound starts


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
    on a bound, which has no coordinate, gets that of a value just inside: by a thousandth of `scale`,
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
        object.__setattr__(self, "lower", _constant("lower", lower))
        object.__setattr__(self, "upper", _constant("upper", upper))
        object.__setattr__(self, "scale", None if scale is None else _constant("scale", scale))
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
            only_lower=_inverse_softplus(_inside(value - lower, scale) / scale),
            only_upper=-_inverse_softplus(_inside(-(value - upper), scale) / scale),
            both=(from_lower - from_upper) / (slope / 2),
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


def _inverse_softplus(y: Array) -> Array:
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
        interval, _, _ = self._inner(coordinate.shape, coordinate.dtype)
        value = self.transform.forward(interval.forward(coordinate))
        return _clip(value, self.lower.astype(value.dtype), self.upper.astype(value.dtype))

    def inverse(self, value: Array) -> Array:
        interval, at_lower, at_upper = self._inner(value.shape, value.dtype)
        inner = self.transform.inverse(value)
        # Rounding must not decide whether a value on a bound is on one in here.
        inner = jnp.where(value <= self.lower.astype(value.dtype), at_lower, inner)
        inner = jnp.where(value >= self.upper.astype(value.dtype), at_upper, inner)
        return interval.inverse(inner)

    def _inner(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Interval, np.ndarray, np.ndarray]:
        """The interval before the transform, and what the transform maps to each of the bounds."""
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
        at_lower, at_upper = ends
        low, high = np.where(falling, at_upper, at_lower), np.where(falling, at_lower, at_upper)
        return Interval(low, high), at_lower, at_upper


@jax.custom_jvp
def _clip(value: Array, lower: np.ndarray, upper: np.ndarray) -> Array:
    """Take back what rounding has brought outside; it does not change the derivative."""
    return jnp.clip(value, lower, upper)


@_clip.defjvp
def _clip_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _clip(*primals), tangents[0]


@dataclasses.dataclass(frozen=True)
class Ordered(Transform):
    """Vectors whose entries grow along the last axis (thresholds, knots, sorted rates).

    The coordinate has the first entry and, by softplus, the steps to the others.

    >>> import jax.numpy as jnp
    >>> print(Ordered().forward(jnp.array([1.0, 0.0, 0.0])))
    [1.        1.6931472 2.3862944]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        steps = jax.nn.softplus(coordinate[..., 1:])
        return jnp.cumsum(jnp.concatenate([coordinate[..., :1], steps], axis=-1), axis=-1)

    def inverse(self, value: Array) -> Array:
        steps = jnp.diff(value, axis=-1)
        steps = jnp.where(steps > 0, steps, jnp.nan)
        return jnp.concatenate([value[..., :1], _inverse_softplus(steps)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Simplex(Transform):
    """Positive vectors that sum to one along the last axis; the coordinate has one entry less.

    The additive log-ratio of Aitchison, *The Statistical Analysis of Compositional Data* (1986).

    >>> import jax.numpy as jnp
    >>> Simplex().forward(jnp.zeros(3)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        last = jnp.zeros_like(coordinate[..., :1])
        return jax.nn.softmax(jnp.concatenate([coordinate, last], axis=-1), axis=-1)

    def inverse(self, value: Array) -> Array:
        return jnp.log(value[..., :-1]) - jnp.log(value[..., -1:])


@dataclasses.dataclass(frozen=True)
class PositiveDefinite(Transform):
    """Symmetric positive-definite matrices (covariances) through their Cholesky factor.

    The coordinate of an n by n matrix is the vector of the n (n + 1) / 2 entries of the factor's
    lower triangle, row by row, with the logarithm of its diagonal: the log-Cholesky parametrization of
    Pinheiro and Bates, *Unconstrained parametrizations for variance-covariance matrices* (1996).

    >>> import jax.numpy as jnp
    >>> PositiveDefinite().forward(jnp.zeros(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        n = (math.isqrt(8 * coordinate.shape[-1] + 1) - 1) // 2
        rows, columns = np.tril_indices(n)
        diagonal = rows == columns
        logarithms = jnp.where(diagonal, coordinate, 0)  # the others may be too large for exp
        entries = jnp.where(diagonal, jnp.exp(logarithms), coordinate)
        factor = jnp.zeros((*coordinate.shape[:-1], n, n), coordinate.dtype)
        factor = factor.at[..., rows, columns].set(entries)
        return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2), precision="highest")

    def inverse(self, value: Array) -> Array:
        rows, columns = np.tril_indices(value.shape[-1])
        entries = jnp.linalg.cholesky(value)[..., rows, columns]
        diagonal = rows == columns
        return jnp.where(diagonal, jnp.log(jnp.where(diagonal, entries, 1)), entries)


@dataclasses.dataclass(frozen=True, init=False)
class Chain(Transform):
    """One transform after the other: `Chain(f, g).forward(x)` is `f(g(x))`.

    **Raises:** `TypeError` for what is not a transform.

    >>> import jax.numpy as jnp
    >>> Chain(Affine(scale=2.0), Exp()).forward(jnp.array(0.0)).item()
    2.0
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform):
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"Chain takes transforms, got {transform!r}")
        object.__setattr__(self, "transforms", transforms)

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(transform.elementwise for transform in self.transforms)

    def forward(self, coordinate: Array) -> Array:
        for transform in reversed(self.transforms):
            coordinate = transform.forward(coordinate)
        return coordinate

    def inverse(self, value: Array) -> Array:
        for transform in self.transforms:
            value = transform.inverse(value)
        return value
