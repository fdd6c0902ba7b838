"""What makes a Parameter behave as the array of its value."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# Lists are for JAX to refuse: with NotImplemented, p == [1, 2] would be False.
_OPERANDS = (bool, int, float, complex, np.generic, np.ndarray, jax.Array, list, tuple)


def _operand(x: Any) -> Any:
    """The array that an operand stands for, or NotImplemented where it stands for none."""
    if isinstance(x, _OPERANDS):
        return x
    return x.__jax_array__() if hasattr(x, "__jax_array__") else NotImplemented


def _operator(function: Callable[[Any, Any], Any], swapped: bool = False) -> Any:
    def method(self: "ArrayFace", other: Any) -> Any:
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        return function(other, self.value) if swapped else function(self.value, other)

    return method


def _both_ways(function: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    return _operator(function), _operator(function, swapped=True)


def _plain_value(x: Any) -> Any:
    return x.value if isinstance(x, ArrayFace) else x


class ArrayFace(eqx.Module):
    """Operators, indexing and formatting of `value`, in which its attributes are found too."""

    value: eqx.AbstractVar[Array]

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

    def __dlpack_device__(self) -> tuple[Any, ...]:
        return self.value.__dlpack_device__()  # pyright: ignore[reportAttributeAccessIssue]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy's functions and NumPy operands on the left give what `jax.numpy` gives."""
        if any(isinstance(x, ArrayFace) for x in kwargs.get("out", ())):
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
        arrays = (np.asarray(x) if isinstance(x, ArrayFace) else x for x in inputs)
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
