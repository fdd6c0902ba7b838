"""A pytree of arrays on its way between programs, as a flat list: so a call looks at few containers."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ..state import PyTree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure"])
@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """A pytree of arrays, and what it looks like."""

    arrays: list[Array]
    structure: Any


def take(tree: PyTree) -> Snapshot:
    """A snapshot of a pytree.

    >>> import jax.numpy as jnp
    >>> take({"a": jnp.zeros(2)}).arrays
    [Array([0., 0.], dtype=float32)]
    """
    return Snapshot(*jax.tree.flatten(tree))


def restore(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of.

    >>> import jax.numpy as jnp
    >>> restore(take({"a": jnp.zeros(2), "b": jnp.ones(())}))
    {'a': Array([0., 0.], dtype=float32), 'b': Array(1., dtype=float32)}
    """
    return jax.tree.unflatten(snapshot.structure, snapshot.arrays)


def readable(tree: PyTree) -> PyTree:
    """The same with NumPy's numbers in place of arrays of one: comparing such compiles nothing."""
    return jax.tree.map(lambda x: np.asarray(x) if x.ndim == 0 and not _is_key(x) else x, tree)


def _is_key(x: Array) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)
