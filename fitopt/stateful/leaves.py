"""The leaves of a pytree of parameters that an optimizer moves, each with what `init` saw of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ..parameter import Parameter, Spec, with_value
from ..parameter.specification import called, check_value
from ..state import PyTree, is_parameter
from ..state.block import Block
from ..transforms import Identity

Path = tuple[Any, ...]  # the keys that lead to a leaf

NUMBERS = (jax.Array, np.ndarray, np.generic, float, complex)

_PLAIN_ARRAY = Spec(None, True, None, None, None, None, None)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf that the optimizer moves."""

    path: Path
    block: Block
    is_parameter: bool

    @property
    def has_position(self) -> bool:
        """Whether the optimizer moves another number than the value."""
        return not isinstance(self.block.transform, Identity)

    @property
    def kind(self) -> str:
        """What an optimizer has to know of it."""
        return kind(self.block.spec, self.is_parameter)

    def check(self, x: Any, tree: str) -> Array:
        """The array of a value or a gradient, if it is as at `init`."""
        x, shape, dtype = _plain(x), self.block.shape, self.block.dtype
        as_it_was = isinstance(x, jax.Array) and x.shape == shape and x.dtype == dtype
        if as_it_was and not x.weak_type:
            return x
        where = f"{tree}: {name(self.path)}"
        try:
            array = jnp.asarray(x)
        except TypeError:
            raise TypeError(f"{where} must be an array, got {x!r}") from None
        if array.shape != shape:
            raise ValueError(f"{where} has shape {array.shape}, the parameter at init had {shape}")
        weak = array.weak_type and jnp.result_type(array, dtype) == dtype
        if array.dtype != dtype and not weak:
            raise TypeError(f"{where} has dtype {array.dtype}, the parameter at init had {dtype}")
        return array.astype(dtype)

    def check_value(self, x: Any) -> Array:
        """The array of a value, if its Parameter is what it was, and within its bounds."""
        if is_parameter(x) is not self.is_parameter or _spec_of(x) != self.block.spec:
            now = kind(_spec_of(x), is_parameter(x))
            raise ValueError(
                f"params: {name(self.path)} was {self.kind} at init, and is {now} now; call init again"
            )
        value = self.check(x, "params")
        if self.is_parameter and not isinstance(value, Tracer):
            check_value(called(self.block.name), self.block.spec, value)
        return value

    def position(self, value: Array, known: tuple[Array, Array] | None = None) -> Array:
        """The position of a value: the known one where the value is what it was, to the bit."""
        if known is None:
            return self.block.to_position(value)
        return self.block.edited_position(known[0], known[1], value)

    def gradient(self, grad: Array, position: Array, start: Array) -> Array:
        """The gradient by the position, uphill: that of a complex number is conjugated."""
        if self.has_position:
            _, pullback = jax.vjp(lambda position: self.block.to_value(position, start), position)
            (grad,) = pullback(grad)
        return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad

    def difference(self, update: Array, new: Array, old: Array) -> Array:
        """What to add to the old value: exactly zero where it is not fitted."""
        difference = new - old if self.has_position else update
        fitted = self.block.spec.fitted
        return difference if fitted is None else jnp.where(fitted, difference, 0)


def leaf_of(path: Path, x: Any) -> Leaf | None:
    """What the optimizer has to know of a leaf; None if it stays as it is."""
    if not is_moved(x):
        return None
    spec, array = _spec_of(x), jnp.asarray(_plain(x))
    label = text(path) if spec.name is None else spec.name
    return Leaf(path, Block(label, spec, array.shape, array.dtype), is_parameter(x))


def is_moved(x: Any) -> bool:
    """Whether it is an array of floats or complex numbers, or a free Parameter.

    Python numbers are settings, such as the rate of a dropout layer.
    """
    if type(x) in (float, complex) or (isinstance(x, Parameter) and not x.free):
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
        return with_value(_spec_of(x), arrays[path]) if is_parameter(x) else arrays[path]

    return jax.tree.map_with_path(replace, tree, is_leaf=is_parameter)


def zeros_like(x: Any) -> Any:
    """What to add to leaves that stay as they are."""

    def zeros(x: Any) -> Any:
        if not isinstance(x, NUMBERS):
            return x
        dtype = jnp.result_type(x)  # of integers, JAX' gradients have one that cannot be added
        return jnp.zeros(np.shape(x), bool if dtype == jax.dtypes.float0 else dtype)

    return jax.tree.map(zeros, x)


def _spec_of(x: Any) -> Spec:
    return x.spec if isinstance(x, Parameter) else _PLAIN_ARRAY


def _plain(x: Any) -> Any:
    return x.value if is_parameter(x) else x


# --- what errors say ---


def text(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def name(path: Path) -> str:
    return f"leaf {text(path)!r}" if path else "the one leaf"


def kind(spec: Spec, is_parameter: bool) -> str:
    """What an optimizer has to know of a leaf; large arrays are told apart by a checksum."""
    if not is_parameter:
        return "a plain array"
    return f"Parameter({', '.join([repr(spec.name), *spec.settings(exact=True)])})"
