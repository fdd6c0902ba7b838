"""What a host callback has returned: whether to stop, and the state to go on from."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..callback import label
from ..parameter.parameter import Parameter, with_value
from ..state import is_array, is_parameter


def interpret(callback: Any, returned: Any, free: PyTree, fixed: PyTree) -> tuple[bool, PyTree, PyTree]:
    """Stop flag and states from what a host callback has returned."""
    if returned is None:
        return False, free, fixed
    stop = returned
    if isinstance(returned, tuple):
        if len(returned) != 3:
            raise TypeError(_expected(callback, f"a tuple of {len(returned)}"))
        stop, free, fixed = returned
    if np.shape(stop) != () or np.asarray(stop).dtype != bool:
        raise TypeError(_expected(callback, f"{stop!r} to say whether to stop"))
    return bool(stop), free, fixed


def _expected(callback: Any, got: str) -> str:
    return (
        f"callback {label(callback)} must return None, True or False, "
        f"or (stop, diff_state, static_state); got {got}"
    )


def merge_edit(who: str, name: str, old: PyTree, new: PyTree) -> PyTree:
    """An edited state, once it is known to fit in place of the old one."""
    before, structure = jax.tree.flatten(old, is_leaf=is_parameter)
    try:
        after = structure.flatten_up_to(new)
    except ValueError as error:
        raise ValueError(f"{who} returned a {name} of another structure: {error}") from None
    merged = [_merge_leaf(who, name, *pair) for pair in zip(before, after, strict=True)]
    return jax.tree.unflatten(structure, merged)


def _merge_leaf(who: str, name: str, old: Any, new: Any) -> Any:
    if isinstance(old, Parameter):
        if isinstance(new, Parameter) and new._spec != old._spec:
            raise ValueError(
                f"{who} returned a {name} in which {old!r} has become {new!r}: "
                "a callback may change its value only"
            )
        value = new.value if isinstance(new, Parameter) else new
        return with_value(old._spec, _merge_array(who, repr(old.name), old.value, value))
    if is_array(old):
        return _merge_array(who, f"a {name} in which {old!r}", old, new)
    return new


def _merge_array(who: str, what: str, old: Any, new: Any) -> Any:
    if new is old:
        return old
    if np.shape(new) != np.shape(old):
        raise ValueError(f"{who} returned {what} with shape {np.shape(new)}, not {np.shape(old)}")
    try:
        array = np.asarray(new).astype(np.asarray(old).dtype, casting="same_kind")
    except TypeError as error:
        raise TypeError(f"{who} returned {what} as {new!r}: {error}") from None
    return array if hasattr(old, "dtype") else type(old)(array)
