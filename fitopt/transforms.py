"""Bijections between a value, in the user's units, and the unconstrained coordinate that an optimizer moves.

Every class is immutable and hashable by content, so that it can be static metadata of a compiled
program. `forward` maps a coordinate to a value, `inverse` a value to its coordinate; both keep the
dtype of what they are given and work on any shape.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array


class Constant:
    """An array that hashes and compares by its content."""

    __slots__ = ("_hash", "array")

    def __init__(self, array: ArrayLike):
        self.array = np.array(array)
        self.array.setflags(write=False)
        self._hash = hash((self.array.shape, self.array.dtype.str, self.array.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Constant)
            and self._hash == other._hash
            and self.array.dtype == other.array.dtype
            and self.array.shape == other.array.shape
            and self.array.tobytes() == other.array.tobytes()
        )

    def __repr__(self) -> str:
        return repr(self.array.item() if self.array.ndim == 0 else self.array.tolist())


def _constant(x: "ArrayLike | Constant") -> Constant:
    return x if isinstance(x, Constant) else Constant(np.asarray(x, dtype=np.float64))


class Transform(abc.ABC):
    """A bijection; subclass it to bring your own (a frozen dataclass gives the hash).

    `elementwise` says that each entry of the value depends on one entry of the coordinate and grows
    with it (or falls: both are fine); only then can bounds and masks be put on top.
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

    >>> Identity().forward(jnp.array(2.0)).item()
    2.0
    """

    def forward(self, coordinate: Array) -> Array:
        return coordinate

    def inverse(self, value: Array) -> Array:
        return value


@dataclasses.dataclass(frozen=True)
class Affine(Transform):
    """`shift + scale * coordinate`; `scale` must not be zero.

    >>> Affine(1.0, 10.0).forward(jnp.array(2.0)).item()
    21.0
    """

    shift: ArrayLike = 0.0
    scale: ArrayLike = 1.0

    def __post_init__(self):
        object.__setattr__(self, "shift", _constant(self.shift))
        object.__setattr__(self, "scale", _constant(self.scale))
        if not np.all(np.isfinite(self.scale.array) & (self.scale.array != 0)):
            raise ValueError(f"scale must be finite and not zero, got {self.scale!r}")

    def forward(self, coordinate: Array) -> Array:
        real = jnp.finfo(coordinate.dtype).dtype
        return self.shift.array.astype(real) + self.scale.array.astype(real) * coordinate

    def inverse(self, value: Array) -> Array:
        real = jnp.finfo(value.dtype).dtype
        return (value - self.shift.array.astype(real)) / self.scale.array.astype(real)


@dataclasses.dataclass(frozen=True)
class Exp(Transform):
    """A positive value whose coordinate is its logarithm: for numbers that span orders of magnitude.

    >>> round(Exp().inverse(jnp.array(100.0)).item(), 4)
    4.6052
    """

    def forward(self, coordinate: Array) -> Array:
        return jnp.exp(coordinate)

    def inverse(self, value: Array) -> Array:
        return jnp.log(value)


@dataclasses.dataclass(frozen=True)
class Interval(Transform):
    """Values between `lower` and `upper`, each a number or an array; infinite entries bound nothing.

    One bound is kept by softplus, two by the logistic function. Far from a single bound the
    coordinate grows like the value, in units of `scale`; near a bound it grows like the logarithm of
    the distance. Each side is computed from its own bound, so that a value 1e-30 above a bound at zero
    keeps its digits, and rounding never leads across a bound.

    >>> Interval(0.0, 10.0).forward(jnp.array(0.0)).item()
    5.0
    >>> Interval(lower=0.0).forward(jnp.array([-30.0, 30.0])).tolist()[1]
    30.0
    """

    lower: ArrayLike = -np.inf
    upper: ArrayLike = np.inf
    scale: ArrayLike = 1.0

    def __post_init__(self):
        for name in ("lower", "upper", "scale"):
            object.__setattr__(self, name, _constant(getattr(self, name)))
        if not np.all(np.isfinite(self.scale.array) & (self.scale.array > 0)):
            raise ValueError(f"scale must be positive and finite, got {self.scale!r}")
        if not np.all(self.lower.array < self.upper.array):
            raise ValueError(
                f"lower must be less than upper, got lower={self.lower!r} and upper={self.upper!r}"
            )

    def _bounds(self, dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The bounds in `dtype`, with zeros for infinite ones, and where they are finite."""
        lower, upper = np.broadcast_arrays(self.lower.array, self.upper.array)
        below, above = np.isfinite(lower), np.isfinite(upper)
        lower = np.where(below, lower, 0).astype(dtype)
        upper = np.where(above, upper, 0).astype(dtype)
        return lower, upper, below, above

    def forward(self, coordinate: Array) -> Array:
        if self._unbounded:
            return self.scale.array.astype(jnp.finfo(coordinate.dtype).dtype) * coordinate
        lower, upper, below, above = self._bounds(coordinate.dtype)
        scale = self.scale.array.astype(coordinate.dtype)
        half = upper / 2 - lower / 2
        falling, rising = jax.nn.sigmoid(-coordinate), jax.nn.sigmoid(coordinate)
        both = jnp.where(coordinate > 0, upper - 2 * (half * falling), lower + 2 * (half * rising))
        return _choose(
            below,
            above,
            neither=scale * coordinate,
            only_lower=lower + scale * jax.nn.softplus(coordinate),
            only_upper=upper - scale * jax.nn.softplus(-coordinate),
            both=both,
        )

    def inverse(self, value: Array) -> Array:
        if self._unbounded:
            return value / self.scale.array.astype(jnp.finfo(value.dtype).dtype)
        lower, upper, below, above = self._bounds(value.dtype)
        scale = self.scale.array.astype(value.dtype)
        tiny, huge = jnp.finfo(value.dtype).tiny, jnp.finfo(value.dtype).max
        half = np.where(below & above, upper / 2 - lower / 2, 1).astype(value.dtype)
        from_lower = jnp.maximum((value / 2 - lower / 2) / half, tiny)
        from_upper = jnp.maximum((upper / 2 - value / 2) / half, tiny)
        over = jnp.clip((value - lower) / scale, tiny, huge)
        under = jnp.clip((upper - value) / scale, tiny, huge)
        return _choose(
            below,
            above,
            neither=value / scale,
            only_lower=_inverse_softplus(over),
            only_upper=-_inverse_softplus(under),
            both=jnp.log(from_lower) - jnp.log(from_upper),
        )

    @property
    def _unbounded(self) -> bool:
        return not (np.isfinite(self.lower.array).any() or np.isfinite(self.upper.array).any())

    def interior(self, value: Array) -> Array:
        """Move values that lie on a bound inside, by a thousandth of the interval (or of `scale`)."""
        if self._unbounded:
            return value
        lower, upper, below, above = self._bounds(value.dtype)
        width = np.where(below & above, upper / 2 - lower / 2, np.inf)
        ulp = 8 * float(jnp.finfo(value.dtype).eps)
        inside = np.minimum(2e-3 * width, np.maximum(1e-3 * self.scale.array, ulp * np.abs(lower)))
        value = jnp.where(below & (value == lower), (lower + inside).astype(value.dtype), value)
        inside = np.minimum(2e-3 * width, np.maximum(1e-3 * self.scale.array, ulp * np.abs(upper)))
        return jnp.where(above & (value == upper), (upper - inside).astype(value.dtype), value)


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
    result = None
    for where, branch in (
        (~below & ~above, neither),
        (below & ~above, only_lower),
        (~below & above, only_upper),
        (below & above, both),
    ):
        if where.all():
            return branch
        if where.any():
            result = branch if result is None else jnp.where(where, branch, result)
    assert result is not None
    return result


def _inverse_softplus(y: Array) -> Array:
    return y + jnp.log(-jnp.expm1(-y))


@dataclasses.dataclass(frozen=True)
class Ordered(Transform):
    """Vectors whose entries grow along the last axis (thresholds, knots, sorted rates).

    >>> Ordered().forward(jnp.array([1.0, 0.0])).round(4).tolist()
    [1.0, 1.6930999755859375]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        steps = jax.nn.softplus(coordinate[..., 1:])
        return jnp.cumsum(jnp.concatenate([coordinate[..., :1], steps], axis=-1), axis=-1)

    def inverse(self, value: Array) -> Array:
        steps = _inverse_softplus(jnp.diff(value, axis=-1))
        return jnp.concatenate([value[..., :1], steps], axis=-1)


@dataclasses.dataclass(frozen=True)
class Simplex(Transform):
    """Positive vectors that sum to one along the last axis; the coordinate has one entry less.

    The additive log-ratio of Aitchison, *The Statistical Analysis of Compositional Data* (1986).

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
    lower triangle, with the logarithm of its diagonal.

    >>> PositiveDefinite().forward(jnp.zeros(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        n = (int(np.sqrt(8 * coordinate.shape[-1] + 1)) - 1) // 2
        rows, columns = np.tril_indices(n)
        entries = jnp.where(rows == columns, jnp.exp(coordinate), coordinate)
        factor = jnp.zeros((*coordinate.shape[:-1], n, n), coordinate.dtype)
        factor = factor.at[..., rows, columns].set(entries)
        return factor @ jnp.swapaxes(factor, -1, -2)

    def inverse(self, value: Array) -> Array:
        rows, columns = np.tril_indices(value.shape[-1])
        entries = jnp.linalg.cholesky(value)[..., rows, columns]
        diagonal = rows == columns
        return jnp.where(diagonal, jnp.log(jnp.where(diagonal, entries, 1)), entries)


@dataclasses.dataclass(frozen=True, init=False)
class Chain(Transform):
    """One transform after the other: `Chain(f, g).forward(x)` is `f(g(x))`.

    >>> Chain(Affine(scale=2.0), Exp()).forward(jnp.array(0.0)).item()
    2.0
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform):
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
