"""A pytree of arrays packed for its way between programs.

Each array that goes into a program or comes out of it costs a microsecond, whatever its size; so the
small ones travel together. What is packed is not donated, so that one may keep it and go back.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

_SMALL = 1024  # entries


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["joined"], meta_fields=["structure", "shapes"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """The small arrays, joined to one vector for each dtype; and what the whole looks like."""

    joined: dict[str, Array]
    structure: Any
    shapes: tuple[tuple[tuple[int, ...], str | None], ...]  # of each leaf, and its dtype if it is small


class Snapshot(NamedTuple):
    """A pytree of arrays.

    The loop donates the large ones from stretch to stretch; those of a snapshot that is to be kept
    are copies.
    """

    small: Packed
    large: list[Array]


def _group(x: Array) -> str | None:
    plain = not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return str(x.dtype) if plain and x.size <= _SMALL else None


def take(tree: PyTree) -> Snapshot:
    """Pack a pytree of arrays.

    >>> jax.jit(take)({"a": jnp.zeros(2), "b": jnp.ones(())}).small.joined
    {'float32': Array([0., 0., 1.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(tree)
    groups = [_group(leaf) for leaf in leaves]
    joined = {
        group: jnp.concatenate(
            [leaf.reshape(-1) for leaf, own in zip(leaves, groups, strict=True) if own == group]
        )
        for group in sorted({group for group in groups if group is not None})
    }
    large = [leaf for leaf, own in zip(leaves, groups, strict=True) if own is None]
    shapes = tuple((leaf.shape, group) for leaf, group in zip(leaves, groups, strict=True))
    return Snapshot(Packed(joined, structure, shapes), large)


def copies(arrays: list[Array]) -> list[Array]:
    """Copies of the large arrays, to be kept or to be donated."""
    return [jnp.copy(x) for x in arrays]


def like(snapshot: Snapshot, other: Snapshot) -> Snapshot:
    """The arrays of one snapshot in the structure of another; for one that comes from a file."""
    return Snapshot(dataclasses.replace(other.small, joined=snapshot.small.joined), snapshot.large)


def restore(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of.

    >>> restore(take({"a": jnp.zeros(2), "b": jnp.ones(())}))
    {'a': Array([0., 0.], dtype=float32), 'b': Array(1., dtype=float32)}
    """
    return fill(snapshot.small, unpack(snapshot.small), snapshot.large)


def unpack(small: Packed) -> list[Array]:
    """The small arrays."""
    used = dict.fromkeys(small.joined, 0)
    arrays = []
    for shape, group in small.shapes:
        if group is not None:
            first = used[group]
            used[group] += math.prod(shape)
            arrays.append(small.joined[group][first : used[group]].reshape(shape))
    return arrays


def fill(small: Packed, arrays: list[Array], large: list[Array]) -> PyTree:
    """The whole, with these small arrays and large ones."""
    by_size = {True: iter(arrays), False: iter(large)}
    leaves = [next(by_size[group is not None]) for _, group in small.shapes]
    return jax.tree.unflatten(small.structure, leaves)


def look_into(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of; runs no program, and small arrays are NumPy's."""
    joined: dict[str, Any] = {group: np.asarray(x) for group, x in snapshot.small.joined.items()}
    return restore(Snapshot(dataclasses.replace(snapshot.small, joined=joined), snapshot.large))
