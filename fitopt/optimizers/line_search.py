"""What optax' line searches keep in an optimizer's state, and what they have to be shown."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..state import PyTree
from .groups import without_names

_STATES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)


def _is_search(x: Any) -> bool:
    return isinstance(x, _STATES)


def line_searches(state: PyTree) -> list[Any]:
    """The states of all line searches in an optimizer's state.

    >>> len(line_searches(optax.lbfgs().init(jnp.zeros(2))))
    1
    """
    return [x for x in jax.tree.leaves(state, is_leaf=_is_search) if _is_search(x)]


def last_search(state: PyTree) -> Any:
    """The state of the line search that ends an optimizer, or None: what it tried last is the update.

    With anything behind it, such as a scaling or a projection, the update leads elsewhere.

    >>> last_search(optax.chain(optax.lbfgs(), optax.scale(0.5)).init(jnp.zeros(2)))
    """
    if _is_search(state):
        return without_names(state)
    if type(state) is tuple and state:
        return last_search(state[-1])
    wraps = isinstance(state, optax.ApplyIfFiniteState) or hasattr(state, "hyperparams")
    return last_search(getattr(state, "inner_state", None)) if wraps else None


def forget(state: PyTree, moved: ArrayLike = True) -> PyTree:
    """An optimizer's state whose line searches know no value, where `moved`.

    What they have stored belongs to the point of their last trial; infinity marks it as unknown.
    """
    mark = lambda x: x._replace(value=jnp.where(moved, jnp.inf, x.value)) if _is_search(x) else x
    return jax.tree.map(mark, state, is_leaf=_is_search)
