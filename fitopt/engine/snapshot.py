"""A pytree of arrays on its way between programs, the large ones apart.

The loop donates the large arrays from stretch to stretch, so to go back one must have kept copies. The
small ones are not donated: one may keep them as they are.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

_SMALL = 1024  # entries


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure", "places"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Small:
    """The small arrays, and what the whole looks like."""

    arrays: list[Array]
    structure: Any
    places: tuple[bool, ...]  # of each leaf, whether it is one of them


class Snapshot(NamedTuple):
    """A pytree of arrays."""

    small: Small
    large: list[Array]


def take(tree: PyTree) -> Snapshot:
    """Take a pytree apart.

    >>> take({"a": jnp.zeros(2), "b": jnp.ones(5000)}).small.arrays
    [Array([0., 0.], dtype=float32)]
    """
    leaves, structure = jax.tree.flatten(tree)
    places = tuple(x.size <= _SMALL for x in leaves)
    small = [x for x, is_small in zip(leaves, places, strict=True) if is_small]
    large = [x for x, is_small in zip(leaves, places, strict=True) if not is_small]
    return Snapshot(Small(small, structure, places), large)


def restore(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of.

    >>> restore(take({"a": jnp.zeros(2), "b": jnp.ones(())}))
    {'a': Array([0., 0.], dtype=float32), 'b': Array(1., dtype=float32)}
    """
    small, large = iter(snapshot.small.arrays), iter(snapshot.large)
    leaves = [next(small if is_small else large) for is_small in snapshot.small.places]
    return jax.tree.unflatten(snapshot.small.structure, leaves)


def copies(arrays: list[Array]) -> list[Array]:
    """Copies of the large arrays, to be kept or to be donated."""
    return [jnp.copy(x) for x in arrays]


def like(snapshot: Snapshot, other: Snapshot) -> Snapshot:
    """The arrays of one snapshot in the structure of another; for one that comes from a file."""
    return Snapshot(dataclasses.replace(other.small, arrays=snapshot.small.arrays), snapshot.large)


def look_into(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of, where small arrays are NumPy's: comparing such compiles
    nothing.
    """
    plain = lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)
    small: Any = [*map(plain, snapshot.small.arrays)]
    return restore(Snapshot(dataclasses.replace(snapshot.small, arrays=small), snapshot.large))
