"""A state and its Parameters: values, and the parts that are free and fixed."""

from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..parameter import Derived, Parameter
from ..parameter.derived import compute

State = TypeVar("State")

# For people: type checkers know no better name for any nesting of containers and leaves than Any.
PyTree: TypeAlias = Any


def is_parameter(x: Any) -> bool:
    """Whether `x` is a Parameter: for `is_leaf` of JAX' tree functions."""
    return isinstance(x, Parameter)


def is_leaf(x: Any) -> bool:
    """Whether `x` is a Parameter or a Derived: what a state has for leaves besides those of JAX."""
    return isinstance(x, Parameter | Derived)


def _is_leaf_or_none(x: Any) -> bool:
    return x is None or is_leaf(x)


def values(state: State) -> State:
    """The state with every Parameter, free or fixed, and every Derived replaced by a plain array.

    This is what a loss gets.

    **Raises:** `ValueError` if some Derived refer to each other in a circle.

    >>> from fitopt import Parameter, values
    >>> values({"k": Parameter("k", 2.0), "name": "decay"})
    {'k': Array(2., dtype=float32), 'name': 'decay'}
    """
    leaves, treedef = jax.tree.flatten(state, is_leaf=is_leaf)
    plain = [x.value if is_parameter(x) else x for x in leaves]
    return jax.tree.unflatten(treedef, compute(plain, treedef.unflatten))


def partition(state: State) -> tuple[State, State]:
    """Split a state into its free Parameters and all else, with None in place of what is missing.

    **Returns:** `(free, fixed)`, both in the structure of `state`; `combine` undoes it.

    >>> from fitopt import Parameter, partition
    >>> partition({"k": Parameter("k", 2.0), "n": 3})
    ({'k': Parameter('k', 2.0), 'n': None}, {'k': None, 'n': 3})
    """

    def select(free: bool) -> State:
        return jax.tree.map(
            lambda x: x if (is_parameter(x) and x.free) == free else None,
            state,
            is_leaf=is_leaf,
        )

    return select(True), select(False)


def combine(free: State, fixed: State) -> State:
    """Put together again what `partition` took apart.

    **Raises:** `ValueError` if the two are not of the same structure.

    >>> from fitopt import Parameter, combine, partition
    >>> combine(*partition({"k": Parameter("k", 2.0), "n": 3}))
    {'k': Parameter('k', 2.0), 'n': 3}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, free, fixed, is_leaf=_is_leaf_or_none)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: arrays, NumPy numbers, Python floats and complex numbers."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, np.number)  # bfloat16 is "V"
    return isinstance(leaf, jax.Array | float | complex)
