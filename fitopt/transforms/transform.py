"""Bijections between a value, in the user's units, and the coordinate that an optimizer moves.

`forward` maps a coordinate to a value, `inverse` a value to its coordinate. Both take JAX arrays of any
floating dtype, which they keep, and any shape. Every transform is immutable and hashable by content, so
that it can be static metadata of a compiled program.
"""

import abc
from typing import Any, ClassVar

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
        self.array: np.ndarray = np.array(array)
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

    def __reduce__(self) -> tuple[Any, ...]:  # hashes of bytes differ from process to process
        return Constant, (self.array,)

    def __repr__(self) -> str:
        return repr(self.array.tolist())


def constant(name: str, given: "ArrayLike | Constant") -> Constant:
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

    def log_det_jacobian(self, coordinate: Array) -> Array:
        """The logarithm of the volume that `forward` makes of one of coordinates, at a coordinate.

        A transform that acts entry by entry has one for each entry: the logarithm of the size of its
        slope. Any other has one for all of its value; densities of values whose entries are bound to
        each other are by as many of them as are independent.

        By default it is by automatic differentiation; override it where that is slow, or where value
        and coordinate differ in size.

        >>> import jax.numpy as jnp
        >>> from fitopt.transforms import Exp
        >>> Exp().log_det_jacobian(jnp.array(2.0)).item()
        2.0
        """
        if self.elementwise:
            _, slope = jax.jvp(self.forward, (coordinate,), (jnp.ones_like(coordinate),))
            return jnp.log(jnp.abs(slope))
        shape = jax.eval_shape(self.forward, coordinate).shape
        if np.prod(shape) != coordinate.size:
            raise ValueError(
                f"{self!r} needs a method log_det_jacobian: its value of shape {shape} has another "
                f"number of entries than its coordinate of shape {coordinate.shape}"
            )
        jacobian = jax.jacfwd(self.forward)(coordinate)
        return jnp.linalg.slogdet(jacobian.reshape(coordinate.size, coordinate.size))[1]
