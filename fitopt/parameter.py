"""`Parameter`: a named array that a fit may change."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from .transforms import Affine, Bounded, Chain, Constant, Identity, Interval, Transform, real_dtype


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that a Parameter is besides its value: static, and hashable by content."""

    name: str
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

    def __reduce__(self) -> tuple:  # without what is cached: hashes differ from process to process
        return Spec, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @functools.cached_property
    def bijection(self) -> Transform:
        """Scale, transform and bounds as one: `scale * transform(...)`, kept within the bounds."""
        lower = -np.inf if self.lower is None else self.lower.array
        upper = np.inf if self.upper is None else self.upper.array
        scale = None if self.scale is None else self.scale.array
        if self.transform is None and self.is_bounded:
            return Interval(lower, upper, scale)
        parts = [] if scale is None else [Affine(scale=scale)]
        parts += [] if self.transform is None else [self.transform]
        unbounded = parts[0] if len(parts) == 1 else Chain(*parts) if parts else Identity()
        return Bounded(unbounded, lower, upper) if self.is_bounded else unbounded

    def to_coordinate(self, value: Array) -> Array:
        """The unconstrained number that the optimizer moves; zero where the mask fixes an entry."""
        if self.mask is None:
            return self.bijection.inverse(value)
        mask = self.mask.array
        # Fixed entries may lie outside the bounds: something harmless goes through in their place.
        inside = jax.lax.stop_gradient(self.bijection.forward(jnp.zeros_like(value)))
        return jnp.where(mask, self.bijection.inverse(jnp.where(mask, value, inside)), 0)

    def to_value(self, coordinate: Array, start: Array) -> Array:
        """The value at a coordinate; `start` gives the entries that the mask fixes."""
        value = self.bijection.forward(coordinate)
        return value if self.mask is None else jnp.where(self.mask.array, value, start)

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


# Lists are for JAX to refuse: with NotImplemented, p == [1, 2] would be False.
_OPERANDS = (bool, int, float, complex, np.generic, np.ndarray, jax.Array, list, tuple)


def _operand(x: Any) -> Any:
    """The array that an operand stands for, or NotImplemented where it stands for none."""
    if isinstance(x, _OPERANDS):
        return x
    return x.__jax_array__() if hasattr(x, "__jax_array__") else NotImplemented


def _operator(function: Callable[[Any, Any], Any], swapped: bool = False) -> Any:
    def method(self: "Parameter", other: Any) -> Any:
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        return function(other, self.value) if swapped else function(self.value, other)

    return method


def _both_ways(function: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    return _operator(function), _operator(function, swapped=True)


class Parameter(eqx.Module):
    """A named number or array that a fit may change; in a pytree it stands for its value.

    It behaves as the array of its value everywhere: in arithmetic, comparisons, indexing and in
    every `jax.numpy` function; functions of `jax.lax` want `p.value` itself. The value is its only
    pytree leaf; all else is static.

    **Arguments:**

    - `name`: what errors, tables and plots call it.
    - `value`: a real or complex number or array, of any shape; integers become floats.
    - `free`: whether it is fitted.
    - `lower`, `upper`: bounds that the value keeps throughout the fit: a number, or an array that
        broadcasts to the value's shape (infinite entries bound nothing). A fit that starts on a
        bound starts just inside.
    - `scale`: the typical size of a change of the value, a number or an array; the optimizer moves
        `value / scale`, or with bounds a number that far from them changes like it.
    - `mask`: booleans that broadcast to the value's shape; entries that are `False` stay as they are.
    - `transform`: a bijection of `fitopt.transforms` for what the others cannot say. It gives
        `value / scale`; bounds and masks go with transforms that act entry by entry.

    **Raises:** `TypeError` or `ValueError`, with the parameter's name, for what is not of its kind or
    does not fit together; so for a value that is not finite or outside its bounds, in any entry that
    the mask does not fix.

    >>> from fitopt import Parameter
    >>> rate = Parameter("rate", 0.52, lower=0)
    >>> rate
    Parameter('rate', 0.52, lower=0)
    >>> 2 * rate + 1
    Array(2.04, dtype=float32)
    >>> f"{rate:.1f}"
    '0.5'
    """

    value: Array
    _spec: Spec = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        value: ArrayLike,
        free: bool = True,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        transform: Transform | None = None,
    ):
        if not isinstance(name, str):
            raise TypeError(f"Parameter: name must be a string, got {name!r}")
        if not isinstance(free, bool | np.bool_):
            raise TypeError(f"Parameter {name!r}: free must be True or False, got {free!r}")
        self.value = _as_inexact(name, value)
        shape = self.value.shape
        self._spec = Spec(
            name,
            bool(free),
            _constant(name, "lower", lower, shape),
            _constant(name, "upper", upper, shape),
            _constant(name, "scale", scale, shape),
            _mask(name, mask, shape),
            transform,
        )
        _check_spec(self._spec, self.value.dtype)
        if not isinstance(self.value, Tracer):
            check_value(self._spec, self.value)
            if transform is not None:
                _check_range(self._spec, self.value)

    @property
    def name(self) -> str:
        """What errors, tables and plots call it."""
        return self._spec.name

    @property
    def free(self) -> bool:
        """Whether it is fitted."""
        return self._spec.free

    @property
    def lower(self) -> Any:
        """The lower bound: a number, an array, or None."""
        return _plain(self._spec.lower)

    @property
    def upper(self) -> Any:
        """The upper bound: a number, an array, or None."""
        return _plain(self._spec.upper)

    @property
    def scale(self) -> Any:
        """The typical size of a change of the value: a number, an array, or None."""
        return _plain(self._spec.scale)

    @property
    def mask(self) -> Any:
        """Where entries are fitted: booleans in the shape of the value, or None."""
        return _plain(self._spec.mask)

    @property
    def transform(self) -> Transform | None:
        """The bijection that was given, or None."""
        return self._spec.transform

    def replace(self, **changes: Any) -> "Parameter":
        """A copy with some arguments changed; all are checked again.

        A Python number as the new value takes the old one's dtype.

        **Raises:** what `Parameter` raises.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0, lower=0).replace(value=2.0)
        Parameter('k', 2.0, lower=0)
        """
        names = ("name", "value", "free", "lower", "upper", "scale", "mask", "transform")
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise TypeError(f"Parameter has no argument {unknown[0]!r}; it has {', '.join(names)}")
        value = changes.get("value")
        if type(value) in (int, float, complex) or getattr(value, "weak_type", False):
            dtype = jnp.result_type(self.value, value)
            changes["value"] = jnp.asarray(value, dtype)
        return Parameter(**{name: changes.get(name, getattr(self, name)) for name in names})

    def fix(self) -> "Parameter":
        """A copy that fits leave as it is.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0).fix()
        Parameter('k', 1.0, free=False)
        """
        return with_value(dataclasses.replace(self._spec, free=False), self.value)

    def release(self) -> "Parameter":
        """A copy that is fitted.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0, free=False).release()
        Parameter('k', 1.0)
        """
        return with_value(dataclasses.replace(self._spec, free=True), self.value)

    def __repr__(self) -> str:
        parts = [repr(self.name), _text(self.value)]
        parts += ["free=False"] if not self.free else []
        for label in ("lower", "upper", "scale", "mask"):
            constant = getattr(self._spec, label)
            parts += [] if constant is None else [f"{label}={_text(constant.array)}"]
        parts += [] if self.transform is None else [f"transform={self.transform!r}"]
        return f"Parameter({', '.join(parts)})"

    def __pdoc__(self, **_: Any) -> Any:
        """How it looks within the repr of an Equinox module."""
        return wadler_lindig.TextDoc(repr(self))

    # The value's own face.

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return np.shape(self.value)

    @property
    def dtype(self) -> np.dtype:
        """The value's dtype."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """The value's number of axes."""
        return np.ndim(self.value)

    @property
    def size(self) -> int:
        """The value's number of entries."""
        return np.size(self.value)

    @property
    def T(self) -> Array:
        """The value with its axes reversed."""
        return self.value.T

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "value":
            raise AttributeError(f"Parameter has no attribute {name!r}")
        return getattr(self.value, name)

    def __jax_array__(self) -> Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.value.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple:
        return self.value.__dlpack_device__()  # pyright: ignore[reportAttributeAccessIssue]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy's functions and NumPy operands on the left give what `jax.numpy` gives."""
        if any(isinstance(x, Parameter) for x in kwargs.get("out", ())):
            return NotImplemented
        name = ufunc.__name__
        if (
            method == "__call__"
            and not kwargs
            and getattr(np, name, None) is ufunc
            and hasattr(jnp, name)
        ):
            arrays = (np.asarray(x) if isinstance(x, list | tuple) else _plain_value(x) for x in inputs)
            return getattr(jnp, name)(*arrays)
        arrays = (np.asarray(x) if isinstance(x, Parameter) else x for x in inputs)
        return getattr(ufunc, method)(*arrays, **kwargs)

    def __getitem__(self, index: Any) -> Array:
        return self.value[index]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __format__(self, spec: str) -> str:
        if self.ndim == 0 or not spec:
            return format(self.value, spec)
        entries = np.asarray(self.value)
        return np.array2string(entries, formatter={"all": lambda x: format(x, spec)}, separator=", ")

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __complex__(self) -> complex:
        return complex(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __round__(self, ndigits: int | None = None) -> Array:
        return round(self.value, ndigits)

    def __neg__(self) -> Array:
        return -self.value

    def __pos__(self) -> Array:
        return +self.value

    def __abs__(self) -> Array:
        return abs(self.value)

    __add__, __radd__ = _both_ways(operator.add)
    __sub__, __rsub__ = _both_ways(operator.sub)
    __mul__, __rmul__ = _both_ways(operator.mul)
    __truediv__, __rtruediv__ = _both_ways(operator.truediv)
    __floordiv__, __rfloordiv__ = _both_ways(operator.floordiv)
    __mod__, __rmod__ = _both_ways(operator.mod)
    __divmod__, __rdivmod__ = _both_ways(divmod)
    __pow__, __rpow__ = _both_ways(operator.pow)
    __matmul__, __rmatmul__ = _both_ways(operator.matmul)
    __eq__ = _operator(operator.eq)
    __ne__ = _operator(operator.ne)
    __lt__ = _operator(operator.lt)
    __le__ = _operator(operator.le)
    __gt__ = _operator(operator.gt)
    __ge__ = _operator(operator.ge)
    __hash__ = None  # pyright: ignore[reportAssignmentType]  # == compares entry by entry


def _plain_value(x: Any) -> Any:
    return x.value if isinstance(x, Parameter) else x


def with_value(spec: Spec, value: Any) -> Parameter:
    """A Parameter without any check: for values that a fit has computed."""
    parameter = object.__new__(Parameter)
    object.__setattr__(parameter, "value", value)
    object.__setattr__(parameter, "_spec", spec)
    return parameter


def check_value(spec: Spec, value: ArrayLike) -> None:
    """Raise `ValueError` if a fitted entry of a concrete value is not finite or leaves its bounds."""
    entries = np.asarray(value)
    fitted = np.ones((), bool) if spec.mask is None else spec.mask.array
    bad = fitted & ~np.isfinite(entries)
    if bad.any():
        raise ValueError(
            f"Parameter {spec.name!r}: the value must be finite in {entries.dtype}, "
            f"got {_first(entries, bad)}"
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
                f"Parameter {spec.name!r}: the value {_first(entries, bad)} lies outside "
                f"its bound {label}={limit}"
            )


def _first(entries: np.ndarray, bad: np.ndarray) -> str:
    """The first bad entry and where it is."""
    where = np.argwhere(np.broadcast_to(bad, entries.shape))[0].tolist()
    return f"{entries[tuple(where)]}" + (f" at index {where}" if where else "")


def _as_inexact(name: str, value: Any) -> Array:
    """The value as an array of floats or complex numbers that shares no memory with the user's."""
    value = _plain_value(value)
    known = not any(isinstance(x, Tracer) for x in jax.tree.leaves(value))
    # What is known is kept known under jit, so that it can be checked there as well.
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        try:
            if known and not isinstance(value, jax.Array | float | complex):
                value = np.asarray(value)
                if value.dtype.kind in "iu":
                    value = value.astype(float)  # JAX would cut them to 32 bits first
                array = jnp.array(value)
            else:
                array = jnp.asarray(value)
            if not jnp.issubdtype(array.dtype, jnp.number):
                raise TypeError(f"not numbers but {array.dtype}")
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"Parameter {name!r}: the value must be a number or an array of numbers, got {value!r}"
            ) from error
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        # With astype, a Python number's weak type becomes a dtype of its own.
        return array.astype(array.dtype if inexact else jnp.result_type(float))


def _as_numpy(name: str, label: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"Parameter {name!r}: {label} is static, so it cannot depend on what is being traced, "
            f"got {given!r}"
        ) from None
    except (TypeError, ValueError):
        return np.asarray(None)  # of no numerical dtype


def _constant(name: str, label: str, given: Any, shape: tuple[int, ...]) -> Constant | None:
    if given is None:
        return None
    array = _as_numpy(name, label, given)
    if not (jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)):
        raise TypeError(f"Parameter {name!r}: {label} must be a real number or array, got {given!r}")
    if np.isnan(array).any():
        raise ValueError(f"Parameter {name!r}: {label} must not be NaN, got {_text(array)}")
    _check_shape(name, label, array.shape, shape)
    return Constant(array)


def _mask(name: str, given: Any, shape: tuple[int, ...]) -> Constant | None:
    if given is None:
        return None
    array = _as_numpy(name, "mask", given)
    if array.dtype != bool:
        raise TypeError(f"Parameter {name!r}: mask must be booleans, got {given!r}")
    _check_shape(name, "mask", array.shape, shape)
    if not array.any():
        raise ValueError(f"Parameter {name!r}: mask fits no entry; use free=False to fix them all")
    return Constant(np.broadcast_to(array, shape))


def _check_shape(name: str, label: str, given: tuple[int, ...], shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(given, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"Parameter {name!r}: {label} has shape {given}, "
            f"which does not broadcast to the value's shape {shape}"
        )


def _check_spec(spec: Spec, dtype: np.dtype) -> None:
    """Raise if the parts of a spec are not what they should be, or do not fit together."""
    who, real = f"Parameter {spec.name!r}", real_dtype(dtype)
    if spec.scale is not None:
        scale = spec.scale.astype(real)
        if not np.all((scale >= jnp.finfo(real).tiny) & np.isfinite(scale)):
            raise ValueError(
                f"{who}: scale must be positive and finite in {real}, got {_text(spec.scale.array)}"
            )
    if spec.is_bounded and real != dtype:
        raise ValueError(f"{who}: a complex value has no order, so it cannot have bounds")
    if spec.is_bounded:
        lower = Constant(-np.inf) if spec.lower is None else spec.lower
        upper = Constant(np.inf) if spec.upper is None else spec.upper
        if not np.all(lower.astype(dtype) < upper.astype(dtype)):
            raise ValueError(
                f"{who}: lower must be less than upper in {dtype}, "
                f"got lower={_text(lower.array)} and upper={_text(upper.array)}"
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


def _check_range(spec: Spec, value: Array) -> None:
    """Raise unless the transform can give the fitted entries of a value."""
    entries, cause = np.asarray(value), None
    compared = np.ones((), bool) if spec.mask is None else spec.mask.array
    for bound in (spec.lower, spec.upper):  # what is on a bound is moved
        compared = compared & (True if bound is None else entries != bound.astype(entries.dtype))
    compared = np.broadcast_to(compared, entries.shape)
    try:
        with jax.ensure_compile_time_eval():
            coordinate = spec.to_coordinate(value)
            back = np.asarray(spec.to_value(coordinate, value))
            reached = back.shape == entries.shape and bool(jnp.isfinite(coordinate).all())
    except (TypeError, ValueError, IndexError) as error:
        reached, cause = False, error
    if reached:
        back, entries = back[compared], entries[compared]
        tolerance = float(jnp.finfo(value.dtype).eps) ** 0.5 * np.max(np.abs(entries), initial=0)
        reached = np.all(np.abs(back - entries) <= tolerance)
    if not reached:
        raise ValueError(
            f"Parameter {spec.name!r}: the value {_text(value)} is not one "
            f"that transform={spec.transform!r} can give"
        ) from cause


def _plain(constant: Constant | None) -> Any:
    if constant is None:
        return None
    return constant.array.item() if constant.array.ndim == 0 else constant.array


def _text(x: Any) -> str:
    """A value or a piece of metadata on one line."""
    if isinstance(x, Tracer) or not hasattr(x, "__array__"):
        return str(x)
    x = np.asarray(x)
    if x.ndim == 0:
        return str(x[()])
    if x.size > 8:
        return f"<{x.dtype}[{','.join(map(str, x.shape))}]>"
    lines = np.array2string(x, separator=", ", formatter={"bool": str}).splitlines()
    return " ".join(line.strip() for line in lines)
