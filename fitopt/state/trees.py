"""A state and its Parameters: values, and the parts that are free and fixed."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..parameter import Parameter

State = TypeVar("State")


def is_parameter(x: Any) -> bool:
    """Whether `x` is a Parameter: for `is_leaf` of JAX' tree functions."""
    return isinstance(x, Parameter)


def _is_parameter_or_none(x: Any) -> bool:
    return x is None or isinstance(x, Parameter)


def values(state: State) -> State:
    """The state with every Parameter, free or fixed, replaced by the plain array of its value.

    This is what a loss gets.

    >>> from fitopt import Parameter, values
    >>> values({"k": Parameter("k", 2.0), "name": "decay"})
    {'k': Array(2., dtype=float32), 'name': 'decay'}
    """
    return jax.tree.map(lambda x: x.value if is_parameter(x) else x, state, is_leaf=is_parameter)


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
            is_leaf=is_parameter,
        )

    return select(True), select(False)


def combine(free: State, fixed: State) -> State:
    """Put together again what `partition` took apart.

    **Raises:** `ValueError` if the two are not of the same structure.

    >>> from fitopt import Parameter, combine, partition
    >>> combine(*partition({"k": Parameter("k", 2.0), "n": 3}))
    {'k': Parameter('k', 2.0), 'n': 3}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, free, fixed, is_leaf=_is_parameter_or_none)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: arrays, NumPy numbers, Python floats and complex numbers."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or jnp.issubdtype(leaf.dtype, np.number)  # bfloat16 is "V"
    return isinstance(leaf, jax.Array | float | complex)
