"""The arrays in a solver's state, which holds functions besides: no loop can carry these."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..state import PyTree


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def arrays_of(state: Any, like: dict[str, Array] | None = None) -> dict[str, Array]:
    """The arrays in a solver's state, by their path; in the dtypes of others, if given."""
    leaves, _ = jax.tree.flatten_with_path(state)
    arrays = {jax.tree_util.keystr(path): x for path, x in leaves if _is_array(x)}
    return arrays if like is None else {path: x.astype(like[path].dtype) for path, x in arrays.items()}


def with_arrays(template: Any, arrays: dict[str, Array]) -> Any:
    """A solver's state with these arrays; all else is the template's."""
    leaves, treedef = jax.tree.flatten_with_path(template)
    filled = [arrays[jax.tree_util.keystr(path)] if _is_array(x) else x for path, x in leaves]
    return jax.tree.unflatten(treedef, filled)


def finite(tree: PyTree) -> Array:
    """Whether all numbers in a pytree are finite."""
    checks = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return functools.reduce(jnp.logical_and, checks, jnp.array(True))


def equal(tree: PyTree, other: PyTree) -> Array:
    """Whether two pytrees hold the same numbers."""
    checks = jax.tree.map(lambda x, y: jnp.all(x == y), tree, other)
    return functools.reduce(jnp.logical_and, jax.tree.leaves(checks))
