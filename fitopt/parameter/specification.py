"""`Spec`: all that a Parameter is besides its value, and the checks of what it is made from."""

import dataclasses
import functools
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from ..transforms import Affine, Bounded, Chain, Identity, Interval, Transform
from ..transforms.bounds import Projected
from ..transforms.transform import Constant, real_dtype


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that a Parameter is besides its value: static, and hashable by content."""

    name: str | None  # None for one that is called after its place in the state
    free: bool
    lower: Constant | None
    upper: Constant | None
    scale: Constant | None
    mask: Constant | None
    transform: Transform | None

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # without what is cached: hashes differ from process to process
        return Spec, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @functools.cached_property
    def bijection(self) -> Transform:
        """From the unconstrained value to the value: scale, transform and bounds as one."""
        if not self.is_bounded:
            return self._unbounded
        if self.transform is None:
            return Interval(*self._bounds, None if self.scale is None else self.scale.array)
        return Bounded(self._unbounded, *self._bounds)

    @functools.cached_property
    def projection(self) -> Transform:
        """Scale and transform alone, for a method that keeps bounds itself."""
        return Projected(self._unbounded, *self._bounds) if self.is_bounded else self._unbounded

    @functools.cached_property
    def _unbounded(self) -> Transform:
        parts = [] if self.scale is None else [Affine(scale=self.scale.array)]
        parts += [] if self.transform is None else [self.transform]
        return parts[0] if len(parts) == 1 else Chain(*parts) if parts else Identity()

    @functools.cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, infinite where there are none, or where the two are equal."""
        lower = np.asarray(-np.inf if self.lower is None else self.lower.array, float)
        upper = np.asarray(np.inf if self.upper is None else self.upper.array, float)
        return np.where(lower == upper, -np.inf, lower), np.where(lower == upper, np.inf, upper)

    @functools.cached_property
    def fitted(self) -> Bool[np.ndarray, "*shape"] | None:
        """Where entries are fitted, None if everywhere: not by the mask, nor between equal bounds."""
        free = np.ones((), bool) if self.mask is None else self.mask.array
        if self.lower is not None and self.upper is not None:
            free = free & (self.lower.array != self.upper.array)
        return None if free.all() else free

    def to_position(self, value: Array, transform: Transform | None = None) -> Array:
        """The number that a method moves; zero for entries that are not fitted."""
        transform = self.bijection if transform is None else transform
        if self.fitted is None:
            return transform.inverse(value)
        # Fixed entries may lie outside the bounds: something harmless goes through in their place.
        inside = jax.lax.stop_gradient(transform.forward(jnp.zeros_like(value)))
        return jnp.where(self.fitted, transform.inverse(jnp.where(self.fitted, value, inside)), 0)

    def to_value(self, position: Array, start: Array, transform: Transform | None = None) -> Array:
        """The value at a position; `start` gives the entries that are not fitted."""
        value = (self.bijection if transform is None else transform).forward(position)
        return value if self.fitted is None else jnp.where(self.fitted, value, start)

    def settings(self, exact: bool = False) -> list[str]:
        """What it was made with, such as `lower=0`; `exact` tells large arrays apart."""
        said = [] if self.free else ["free=False"]
        for label in ("lower", "upper", "scale", "mask"):
            constant = getattr(self, label)
            if constant is None:
                continue
            shown = text(constant.array)
            if exact and shown.startswith("<"):
                shown = f"<{zlib.crc32(constant.array.tobytes()):08x}>"
            said.append(f"{label}={shown}")
        if self.transform is not None:
            # Functions are shown with their address, which differs from process to process.
            shown = (
                re.sub(" at 0x[0-9a-f]+", "", repr(self.transform)) if exact else repr(self.transform)
            )
            said.append(f"transform={shown}")
        return said

    @property
    def is_bounded(self) -> bool:
        """Whether there are bounds."""
        return self.lower is not None or self.upper is not None

    def is_inside(self, value: Array) -> Bool[Array, ""]:
        """Whether every fitted entry is finite and within its bounds."""
        inside = jnp.isfinite(value)
        if self.lower is not None:
            inside &= value >= self.lower.astype(value.dtype)
        if self.upper is not None:
            inside &= value <= self.upper.astype(value.dtype)
        if self.mask is not None:
            inside |= ~self.mask.array
        return jnp.all(inside)


def called(name: str | None) -> str:
    """What sentences call a Parameter."""
    return "Parameter" if name is None else f"Parameter {name!r}"


def check_value(who: str, spec: Spec, value: ArrayLike) -> None:
    """Raise `ValueError` if a fitted entry of a concrete value is not finite or leaves its bounds."""
    if isinstance(value, jax.Array) and not is_readable(value):
        # All processes must see what is wrong with the part of one of them.
        if not spec.is_inside(value):
            raise ValueError(f"{who}: the value must be finite, and within its bounds, in all entries")
        return
    entries = np.asarray(value)
    fitted = np.ones((), bool) if spec.mask is None else spec.mask.array
    bad = fitted & ~np.isfinite(entries)
    if bad.any():
        raise ValueError(
            f"{who}: the value must be finite in {entries.dtype}, got {_first(entries, bad)}"
        )
    for label, bound, outside in (
        ("lower", spec.lower, np.less),
        ("upper", spec.upper, np.greater),
    ):
        if bound is None:
            continue
        bad = fitted & outside(entries, bound.astype(entries.dtype))
        if bad.any():
            limit = np.broadcast_to(bound.array, entries.shape)[bad][0]
            raise ValueError(
                f"{who}: the value {_first(entries, bad)} lies outside its bound {label}={limit}"
            )


def is_readable(x: Any) -> bool:
    """Whether this process can see all entries of an array."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _first(entries: np.ndarray, bad: np.ndarray) -> str:
    """The first bad entry and where it is."""
    where = np.argwhere(np.broadcast_to(bad, entries.shape))[0].tolist()
    return f"{entries[tuple(where)]}" + (f" at index {where}" if where else "")


def as_numpy(who: str, label: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"{who}: {label} is static, so it cannot depend on what is being traced, got {given!r}"
        ) from None
    except (TypeError, ValueError):
        return np.asarray(None)  # of no numerical dtype


def constant(who: str, label: str, given: Any, shape: tuple[int, ...]) -> Constant | None:
    if given is None:
        return None
    array = as_numpy(who, label, given)
    if not (jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)):
        raise TypeError(f"{who}: {label} must be a real number or array, got {given!r}")
    if np.isnan(array).any():
        raise ValueError(f"{who}: {label} must not be NaN, got {text(array)}")
    check_shape(who, label, array.shape, shape)
    return Constant(array)


def mask_of(who: str, given: Any, shape: tuple[int, ...]) -> Constant | None:
    if given is None:
        return None
    array = as_numpy(who, "mask", given)
    if array.dtype != bool:
        raise TypeError(f"{who}: mask must be booleans, got {given!r}")
    check_shape(who, "mask", array.shape, shape)
    if not array.any():
        raise ValueError(f"{who}: mask fits no entry; use free=False to fix them all")
    return Constant(np.broadcast_to(array, shape))


def check_shape(who: str, label: str, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(given, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{who}: {label} has shape {given}, which does not broadcast to the value's shape {shape}"
        )


def check_spec(spec: Spec, dtype: np.dtype) -> None:
    """Raise if the parts of a spec are not what they should be, or do not fit together."""
    who, real = called(spec.name), real_dtype(dtype)
    if spec.scale is not None:
        scale = spec.scale.astype(real)
        if not np.all((scale >= jnp.finfo(real).tiny) & np.isfinite(scale)):
            raise ValueError(
                f"{who}: scale must be positive and finite in {real}, got {text(spec.scale.array)}"
            )
    if spec.is_bounded and real != dtype:
        raise ValueError(f"{who}: a complex value has no order, so it cannot have bounds")
    if spec.is_bounded:
        lower = Constant(-np.inf) if spec.lower is None else spec.lower
        upper = Constant(np.inf) if spec.upper is None else spec.upper
        equal = (lower.array == upper.array) & np.isfinite(lower.array)  # such entries are fixed
        if not np.all(equal | (lower.astype(dtype) < upper.astype(dtype))):
            raise ValueError(
                f"{who}: lower must be less than upper in {dtype}, or equal to it, "
                f"got lower={text(lower.array)} and upper={text(upper.array)}"
            )
    transform = spec.transform
    if transform is None:
        return
    if not isinstance(transform, Transform):
        raise TypeError(
            f"{who}: transform must be an instance of fitopt.transforms.Transform, got {transform!r}"
        )
    try:
        hash(transform)
    except TypeError as error:
        raise TypeError(
            f"{who}: transform must be hashable, such as a frozen dataclass of numbers, "
            f"got {transform!r}"
        ) from error
    if not transform.elementwise and (spec.is_bounded or spec.mask is not None):
        raise ValueError(
            f"{who}: {transform!r} does not act entry by entry, "
            "so it cannot be combined with lower, upper or mask"
        )


def check_range(spec: Spec, value: Array) -> None:
    """Raise unless the transform can give the fitted entries of a value."""
    if not is_readable(value):  # the loss at such a start is not finite, which the fit looks at
        return
    entries, cause = np.asarray(value), None
    compared = np.ones((), bool) if spec.mask is None else spec.mask.array
    for bound in (spec.lower, spec.upper):  # what is on a bound is moved
        compared = compared & (True if bound is None else entries != bound.astype(entries.dtype))
    compared = np.broadcast_to(compared, entries.shape)
    try:
        with jax.ensure_compile_time_eval():
            position = spec.to_position(value)
            back = np.asarray(spec.to_value(position, value))
            reached = back.shape == entries.shape and bool(jnp.isfinite(position).all())
    except (TypeError, ValueError, IndexError) as error:
        reached, cause = False, error
    if reached:
        back, entries = back[compared], entries[compared]
        tolerance = float(jnp.finfo(value.dtype).eps) ** 0.5 * np.max(np.abs(entries), initial=0)
        reached = np.all(np.abs(back - entries) <= tolerance)
    if not reached:
        raise ValueError(
            f"{called(spec.name)}: the value {text(value)} is not one "
            f"that transform={spec.transform!r} can give"
        ) from cause


def plain(constant: Constant | None) -> Any:
    if constant is None:
        return None
    return constant.array.item() if constant.array.ndim == 0 else constant.array


def text(x: Any) -> str:
    """A value or a piece of metadata on one line."""
    if isinstance(x, Tracer) or not hasattr(x, "__array__"):
        return str(x)
    if np.size(x) > 8 or not is_readable(x):
        return f"<{x.dtype}[{','.join(map(str, x.shape))}]>"
    x = np.asarray(x)
    if x.ndim == 0:
        return str(x[()])
    lines = np.array2string(x, separator=", ", formatter={"bool": str}).splitlines()
    return " ".join(line.strip() for line in lines)
