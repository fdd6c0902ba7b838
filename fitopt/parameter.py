"""`Parameter`: a named array that a fit may change."""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .transforms import Affine, Chain, Constant, Identity, Interval, Transform


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
    bijection: Transform

    @functools.cached_property
    def _hash(self) -> int:
        fields = (self.name, self.free, self.lower, self.upper, self.scale, self.mask)
        return hash((*fields, self.bijection))

    def __hash__(self) -> int:
        return self._hash

    def to_coordinate(self, value: Array) -> Array:
        """The unconstrained number that the optimizer moves; zero where the mask fixes an entry."""
        inner = value
        if self.transform is None and isinstance(self.bijection, Interval):
            inner = self.bijection.interior(value)
        if self.mask is None:
            return self.bijection.inverse(inner)
        mask = self.mask.array
        interior = jax.lax.stop_gradient(self.bijection.forward(jnp.zeros_like(value)))
        return jnp.where(mask, self.bijection.inverse(jnp.where(mask, inner, interior)), 0)

    def to_value(self, coordinate: Array, start: Array) -> Array:
        """The value at a coordinate; `start` gives the entries that the mask fixes."""
        value = self.bijection.forward(coordinate)
        if self.transform is not None and self.is_bounded:
            value = jnp.clip(value, *(b and b.array.astype(value.dtype) for b in self.bounds))
        return value if self.mask is None else jnp.where(self.mask.array, value, start)

    @property
    def bounds(self) -> tuple[Constant | None, Constant | None]:
        return self.lower, self.upper

    @property
    def is_bounded(self) -> bool:
        return self.lower is not None or self.upper is not None

    def is_inside(self, value: Array) -> Array:
        """Whether every fitted entry is finite and within its bounds: a boolean scalar."""
        inside = jnp.isfinite(value)
        if self.lower is not None:
            inside &= value >= self.lower.array.astype(value.dtype)
        if self.upper is not None:
            inside &= value <= self.upper.array.astype(value.dtype)
        if self.mask is not None:
            inside |= ~self.mask.array
        return jnp.all(inside)


class Parameter(eqx.Module):
    """A named number or array that a fit may change; in a pytree it stands for its value.

    It behaves as the array of its value everywhere: in arithmetic, comparisons, indexing and in
    every `jax.numpy` function. The value is its only pytree leaf; all else is static.

    **Arguments:**

    - `name`: what errors, tables and plots call it.
    - `value`: a real or complex number or array, of any shape; integers become floats.
    - `free`: whether it is fitted.
    - `lower`, `upper`: bounds that the value keeps throughout the fit: a number, or an array that
        broadcasts to the value's shape (infinite entries bound nothing). A fit that starts on a
        bound starts just inside.
    - `scale`: the typical size of the value; the optimizer moves `value / scale`.
    - `mask`: booleans in the shape of the value; entries that are `False` stay as they are.
    - `transform`: a bijection of `fitopt.transforms` for what the others cannot say. It acts on
        `value / scale`; bounds and masks go with transforms that act entry by entry.

    **Raises:** `TypeError` or `ValueError`, with the parameter's name, for what does not fit together.

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
        if not isinstance(free, (bool, np.bool_)):
            raise TypeError(f"Parameter {name!r}: free must be True or False, got {free!r}")
        self.value = _as_inexact(name, value)
        shape, dtype = self.value.shape, self.value.dtype
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"Parameter {name!r}: transform must be an instance of fitopt.transforms.Transform, "
                f"got {transform!r}"
            )
        constants = {
            label: _metadata(name, label, given, shape)
            for label, given in (("lower", lower), ("upper", upper), ("scale", scale))
        }
        if jnp.iscomplexobj(self.value) and (constants["lower"] or constants["upper"]):
            raise ValueError(f"Parameter {name!r}: a complex value has no order, so no bounds")
        _check_bounds(name, constants["lower"], constants["upper"])
        _check_scale(name, constants["scale"])
        constants["mask"] = None if mask is None else _mask(name, mask, shape)
        bounded = constants["lower"] is not None or constants["upper"] is not None
        if transform is not None and not transform.elementwise and (bounded or mask is not None):
            raise ValueError(
                f"Parameter {name!r}: {transform!r} does not act entry by entry, "
                "so it cannot be combined with lower, upper or mask"
            )
        bijection = _bijection(self.value, transform, constants)
        self._spec = Spec(name, bool(free), **constants, transform=transform, bijection=bijection)
        if not isinstance(self.value, jax.core.Tracer):
            check_value(self._spec, self.value)
            if transform is not None:
                _check_range(self._spec, self.value)
        assert self.value.dtype == dtype

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
        """The typical size of the value: a number, an array, or None."""
        return _plain(self._spec.scale)

    @property
    def mask(self) -> Any:
        """Where entries are fitted: an array of booleans, or None."""
        return _plain(self._spec.mask)

    @property
    def transform(self) -> Transform | None:
        """The bijection that was given, or None."""
        return self._spec.transform

    def replace(self, **changes: Any) -> "Parameter":
        """A copy with some arguments changed; all are checked again.

        >>> Parameter("k", 1.0, lower=0).replace(value=2.0)
        Parameter('k', 2.0, lower=0)
        """
        names = ("name", "value", "free", "lower", "upper", "scale", "mask", "transform")
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise TypeError(f"Parameter has no argument {unknown[0]!r}; it has {', '.join(names)}")
        return Parameter(**{name: changes.get(name, getattr(self, name)) for name in names})

    def fix(self) -> "Parameter":
        """A copy that fits leave as it is.

        >>> Parameter("k", 1.0).fix()
        Parameter('k', 1.0, free=False)
        """
        return self._with_spec(free=False)

    def release(self) -> "Parameter":
        """A copy that is fitted.

        >>> Parameter("k", 1.0, free=False).release()
        Parameter('k', 1.0)
        """
        return self._with_spec(free=True)

    def _with_spec(self, **changes: Any) -> "Parameter":
        return with_value(dataclasses.replace(self._spec, **changes), self.value)

    def __repr__(self) -> str:
        parts = [repr(self.name), _format_value(self.value)]
        parts += ["free=False"] if not self.free else []
        for label in ("lower", "upper", "scale", "mask"):
            given = getattr(self, label)
            if given is not None:
                parts.append(f"{label}={_format_value(given)}")
        parts += [f"transform={self.transform!r}"] if self.transform is not None else []
        return f"Parameter({', '.join(parts)})"

    # The value's own face.

    shape = property(lambda self: jnp.shape(self.value), doc="The value's shape.")
    dtype = property(lambda self: self.value.dtype, doc="The value's dtype.")
    ndim = property(lambda self: jnp.ndim(self.value), doc="The value's number of axes.")
    size = property(lambda self: jnp.size(self.value), doc="The value's number of entries.")
    T = property(lambda self: self.value.T, doc="The value with its axes reversed.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "value":
            raise AttributeError(f"Parameter has no attribute {name!r}")
        return getattr(self.value, name)

    def __jax_array__(self) -> Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy's functions and NumPy operands on the left give what `jax.numpy` gives."""
        function = getattr(jnp, ufunc.__name__, None)
        if method != "__call__" or function is None or kwargs:
            return NotImplemented
        return function(*(_plain_value(x) for x in inputs))

    def __getitem__(self, index: Any) -> Array:
        return self.value[index]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if self.ndim == 0 or not spec else _format_each(self, spec)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __complex__(self) -> complex:
        return complex(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __round__(self, ndigits: int = 0) -> Array:
        return jnp.round(self.value, ndigits)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # == compares entry by entry


def _plain_value(x: Any) -> Any:
    return x.value if isinstance(x, Parameter) else x


def _delegate(function: Any, swapped: bool) -> Any:
    def method(self: Parameter, other: Any) -> Any:
        other = _plain_value(other)
        if not isinstance(other, (bool, int, float, complex, np.generic, np.ndarray, jax.Array)):
            return NotImplemented
        return function(other, self.value) if swapped else function(self.value, other)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "divmod"):
    _function = divmod if _name == "divmod" else getattr(operator, _name)
    setattr(Parameter, f"__{_name}__", _delegate(_function, swapped=False))
    setattr(Parameter, f"__r{_name}__", _delegate(_function, swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Parameter, f"__{_name}__", _delegate(getattr(operator, _name), swapped=False))
for _name in ("neg", "pos", "abs"):
    _function = getattr(operator, _name)
    setattr(Parameter, f"__{_name}__", lambda self, _function=_function: _function(self.value))


def with_value(spec: Spec, value: Any) -> Parameter:
    """A Parameter without any check: for values that a fit has computed."""
    parameter = object.__new__(Parameter)
    object.__setattr__(parameter, "value", value)
    object.__setattr__(parameter, "_spec", spec)
    return parameter


def check_value(spec: Spec, value: ArrayLike) -> None:
    """Raise if a concrete value is not finite or leaves its bounds; says which entries."""
    entries = np.asarray(value)
    fitted = np.ones(entries.shape, bool) if spec.mask is None else spec.mask.array
    if not np.isfinite(entries[fitted]).all():
        raise ValueError(
            f"Parameter {spec.name!r}: the value must be finite, got {_format_value(entries)}"
        )
    for label, bound, outside in (
        ("lower", spec.lower, np.less),
        ("upper", spec.upper, np.greater),
    ):
        if bound is not None and outside(entries, bound.array.astype(entries.dtype))[fitted].any():
            raise ValueError(
                f"Parameter {spec.name!r}: the value {_format_value(entries)} lies outside "
                f"its bound {label}={_format_value(_plain(bound))}"
            )


def _as_inexact(name: str, value: Any) -> Array:
    value = _plain_value(value)
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Parameter {name!r}: the value must be a number or an array of numbers, got {value!r}"
        ) from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(
            f"Parameter {name!r}: the value must be a number or an array of numbers, got {value!r}"
        )
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(array.dtype)  # a Python number's weak type becomes a dtype of its own
    return array.astype(jnp.result_type(float))


def _metadata(name: str, label: str, given: Any, shape: tuple[int, ...]) -> Constant | None:
    if given is None:
        return None
    try:
        array = np.asarray(given)
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise TypeError
    except (TypeError, jax.errors.TracerArrayConversionError):
        raise TypeError(
            f"Parameter {name!r}: {label} must be a real number or array, got {given!r}"
        ) from None
    if np.isnan(array).any():
        raise ValueError(f"Parameter {name!r}: {label} must not be NaN, got {given!r}")
    _check_shape(name, label, array.shape, shape)
    return Constant(array)


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> Constant:
    array = np.asarray(mask)
    if array.dtype != bool:
        raise TypeError(f"Parameter {name!r}: mask must be booleans, got {mask!r}")
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


def _check_bounds(name: str, lower: Constant | None, upper: Constant | None) -> None:
    low = -np.inf if lower is None else lower.array
    high = np.inf if upper is None else upper.array
    if not np.all(np.less(low, high)):
        raise ValueError(
            f"Parameter {name!r}: lower must be less than upper, "
            f"got lower={_format_value(low)} and upper={_format_value(high)}"
        )


def _check_scale(name: str, scale: Constant | None) -> None:
    if scale is not None and not np.all((scale.array > 0) & np.isfinite(scale.array)):
        raise ValueError(
            f"Parameter {name!r}: scale must be positive and finite, got {_format_value(scale.array)}"
        )


def _check_range(spec: Spec, value: Array) -> None:
    try:
        back = np.asarray(spec.to_value(spec.to_coordinate(value), value))
        size = 1e3 * float(jnp.finfo(value.dtype).eps)
        reached = np.allclose(back, np.asarray(value), rtol=size, atol=size)
    except (TypeError, ValueError):
        reached = False
    if not reached:
        raise ValueError(
            f"Parameter {spec.name!r}: the value {_format_value(value)} is not one "
            f"that transform={spec.transform!r} can give"
        )


def _bijection(
    value: Array, transform: Transform | None, constants: dict[str, Constant | None]
) -> Transform:
    """Scale, transform and bounds as one bijection from coordinate to value."""
    scale = 1.0 if constants["scale"] is None else constants["scale"].array
    lower = -np.inf if constants["lower"] is None else constants["lower"].array
    upper = np.inf if constants["upper"] is None else constants["upper"].array
    if transform is None:
        plain = all(constants[label] is None for label in ("scale", "lower", "upper"))
        return Identity() if plain else Interval(lower, upper, scale)
    parts = [] if constants["scale"] is None else [Affine(scale=scale)]
    parts.append(transform)
    if constants["lower"] is not None or constants["upper"] is not None:
        parts.append(_bounds_before(value, transform, lower / scale, upper / scale, scale))
    return parts[0] if len(parts) == 1 else Chain(*parts)


def _bounds_before(value: Array, transform: Transform, lower: Any, upper: Any, scale: Any) -> Interval:
    """Bounds on a transform's result, as bounds on what goes into it."""
    with jax.ensure_compile_time_eval():
        ends = jnp.broadcast_arrays(jnp.asarray(lower), jnp.asarray(upper))
        ends = [np.asarray(transform.inverse(end.astype(value.dtype)), np.float64) for end in ends]
    # An end that no input reaches bounds nothing; a falling transform swaps the ends.
    low = np.where(np.isnan(ends[0]), -np.inf, ends[0])
    high = np.where(np.isnan(ends[1]), np.inf, ends[1])
    with jax.ensure_compile_time_eval():
        two = jnp.asarray([-0.5, 0.5], value.dtype)
        first, second = np.asarray(transform.forward(two))
    if first > second:
        low, high = np.where(np.isnan(ends[1]), -np.inf, ends[1]), np.where(
            np.isnan(ends[0]), np.inf, ends[0]
        )
    return Interval(low, high)


def _plain(constant: Constant | None) -> Any:
    if constant is None:
        return None
    return constant.array.item() if constant.array.ndim == 0 else constant.array


def _format_value(x: Any) -> str:
    if isinstance(x, jax.core.Tracer):
        return str(x)
    x = np.asarray(x)
    if x.ndim == 0:
        return str(x[()])
    if x.size > 8:
        return f"<{x.dtype}[{','.join(map(str, x.shape))}]>"
    return np.array2string(x, separator=", ")


def _format_each(parameter: Parameter, spec: str) -> str:
    return np.array2string(
        np.asarray(parameter.value), formatter={"all": lambda x: format(x, spec)}, separator=", "
    )
