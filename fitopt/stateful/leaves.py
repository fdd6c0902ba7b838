"""The leaves of a pytree of parameters that an optimizer moves, each with what `init` saw of it."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..parameter.parameter import with_value
from ..parameter.specification import Spec, called, check_value
from ..state import is_parameter
from ..transforms import Identity

Path = tuple[Any, ...]  # the keys that lead to a leaf

NUMBERS = (jax.Array, np.ndarray, np.generic, float, complex)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf that the optimizer moves."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    spec: Spec | None  # of a Parameter

    @property
    def has_coordinate(self) -> bool:
        """Whether the optimizer moves another number than the value."""
        return self.spec is not None and not isinstance(self.spec.bijection, Identity)

    def check(self, x: Any, tree: str) -> Array:
        """The array of a value or a gradient, if it is as at `init`."""
        x = _plain(x)
        as_it_was = isinstance(x, jax.Array) and x.shape == self.shape and x.dtype == self.dtype
        if as_it_was and not x.weak_type:
            return x
        where = f"{tree}: {name(self.path)}"
        try:
            array = jnp.asarray(x)
        except TypeError:
            raise TypeError(f"{where} must be an array, got {x!r}") from None
        if array.shape != self.shape:
            raise ValueError(f"{where} has shape {array.shape}, the parameter at init had {self.shape}")
        weak = array.weak_type and jnp.result_type(array, self.dtype) == self.dtype
        if array.dtype != self.dtype and not weak:
            raise TypeError(f"{where} has dtype {array.dtype}, the parameter at init had {self.dtype}")
        return array.astype(self.dtype)

    def check_value(self, x: Any) -> Array:
        """The array of a value, if its Parameter is what it was, and within its bounds."""
        spec = x._spec if is_parameter(x) else None
        if spec != self.spec:
            raise ValueError(
                f"params: {name(self.path)} was {kind(self.spec)} at init, and is {kind(spec)} now; "
                "call init again"
            )
        value = self.check(x, "params")
        if spec is not None and not isinstance(value, Tracer):
            check_value(called(spec.name or text(self.path)), spec, value)
        return value

    def coordinate(self, value: Array, known: tuple[Array, Array] | None = None) -> Array:
        """The coordinate of a value: the known one where the value is what it was, to the bit."""
        if self.spec is None:
            return value
        coordinate = self.spec.to_position(value)
        if known is None:
            return coordinate
        same = value == known[1]
        same = same if self.spec.bijection.elementwise else jnp.all(same)
        return jnp.where(same, known[0], coordinate)

    def value(self, coordinate: Array, start: Array) -> Array:
        """The value at a coordinate; `start` gives the entries that a mask fixes."""
        return coordinate if self.spec is None else self.spec.to_value(coordinate, start)

    def gradient(self, grad: Array, coordinate: Array, start: Array) -> Array:
        """The gradient by the coordinate, uphill: that of a complex number is conjugated."""
        if self.spec is not None:
            _, pullback = jax.vjp(lambda coordinate: self.value(coordinate, start), coordinate)
            (grad,) = pullback(grad)
        return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad

    def difference(self, update: Array, new: Array, old: Array) -> Array:
        """What to add to the old value: exactly zero where a mask fixes it."""
        difference = new - old if self.has_coordinate else update
        if self.spec is None or self.spec.mask is None:
            return difference
        return jnp.where(self.spec.mask.array, difference, 0)


def leaf_of(path: Path, x: Any) -> Leaf | None:
    """What the optimizer has to know of a leaf; None if it stays as it is."""
    if not is_moved(x):
        return None
    array = jnp.asarray(_plain(x))
    return Leaf(path, array.shape, array.dtype, x._spec if is_parameter(x) else None)


def is_moved(x: Any) -> bool:
    """Whether it is an array of floats or complex numbers, or a free Parameter."""
    if is_parameter(x) and not x.free:
        return False
    x = _plain(x)
    return isinstance(x, NUMBERS) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def leaves_by_path(tree: PyTree) -> dict[Path, Any]:
    """The leaves of a tree; a Parameter is one leaf, and none if it has lost its value."""
    flat, _ = jax.tree.flatten_with_path(tree, is_leaf=is_parameter)
    return {path: x for path, x in flat if _plain(x) is not None}


def replaced(
    tree: PyTree, arrays: dict[Path, Any], others: Callable[[Any], Any] = lambda x: x
) -> PyTree:
    """The tree with other arrays in their places."""

    def replace(path: Path, x: Any) -> Any:
        if path not in arrays:
            return others(x)
        return with_value(x._spec, arrays[path]) if is_parameter(x) else arrays[path]

    return jax.tree.map_with_path(replace, tree, is_leaf=is_parameter)


def zeros_like(x: Any) -> Any:
    """What to add to leaves that stay as they are."""

    def zeros(x: Any) -> Any:
        if not isinstance(x, NUMBERS):
            return x
        dtype = jnp.result_type(x)  # of integers, JAX' gradients have one that cannot be added
        return jnp.zeros(np.shape(x), bool if dtype == jax.dtypes.float0 else dtype)

    return jax.tree.map(zeros, x)


def _plain(x: Any) -> Any:
    return x.value if is_parameter(x) else x


# --- what errors say ---


def text(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name(path: Path) -> str:
    return f"leaf {text(path)!r}" if path else "the one leaf"


def kind(spec: Spec | None) -> str:
    """What an optimizer has to know of a Parameter; arrays are told apart by a checksum."""
    if spec is None:
        return "a plain array"
    words = [] if spec.free else ["free=False"]
    for label in ("lower", "upper", "scale", "mask"):
        constant = getattr(spec, label)
        if constant is not None:
            array = constant.array.astype(np.float64)
            shown = repr(array.item()) if array.ndim == 0 else f"array {zlib.crc32(array.tobytes()):08x}"
            words.append(f"{label}={shown}")
    if spec.transform is not None:
        words.append(f"transform={re.sub(' at 0x[0-9a-f]+', '', repr(spec.transform))}")
    return f"Parameter({', '.join([repr(spec.name), *words])})"
