"""`Parameter`: a named array that a fit may change."""

import contextlib
import dataclasses
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
from jaxtyping import Array

from ..transforms import Transform
from .specification import Spec, check_range, check_spec, check_value, constant, mask_of, plain, text

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
            constant(name, "lower", lower, shape),
            constant(name, "upper", upper, shape),
            constant(name, "scale", scale, shape),
            mask_of(name, mask, shape),
            transform,
        )
        check_spec(self._spec, self.value.dtype)
        if not isinstance(self.value, Tracer):
            check_value(self._spec, self.value)
            if transform is not None:
                check_range(self._spec, self.value)

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
        return plain(self._spec.lower)

    @property
    def upper(self) -> Any:
        """The upper bound: a number, an array, or None."""
        return plain(self._spec.upper)

    @property
    def scale(self) -> Any:
        """The typical size of a change of the value: a number, an array, or None."""
        return plain(self._spec.scale)

    @property
    def mask(self) -> Any:
        """Where entries are fitted: booleans in the shape of the value, or None."""
        return plain(self._spec.mask)

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
        parts = [repr(self.name), text(self.value)]
        parts += ["free=False"] if not self.free else []
        for label in ("lower", "upper", "scale", "mask"):
            constant = getattr(self._spec, label)
            parts += [] if constant is None else [f"{label}={text(constant.array)}"]
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
