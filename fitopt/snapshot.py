"""Copies of a carry that cost next to nothing.

The loop's carry is donated from stretch to stretch, so to go back one must have kept a copy. Each array
that a program returns costs a microsecond, whatever its size; so the small ones leave together.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_SMALL = 64  # entries


class Snapshot(eqx.Module):
    """A pytree of arrays, the small ones joined to one vector for each dtype."""

    joined: dict[str, Array]
    others: list[Array]
    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[tuple[int, ...], str | None], ...] = eqx.field(static=True)


def _group(x: Array) -> str | None:
    plain = not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return str(x.dtype) if plain and x.size <= _SMALL else None


def take(tree: PyTree) -> Snapshot:
    """A copy of a pytree of arrays.

    >>> jax.jit(take)({"a": jnp.zeros(2), "b": jnp.ones(())}).joined
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
    others = [jnp.copy(leaf) for leaf, own in zip(leaves, groups, strict=True) if own is None]
    shapes = tuple((leaf.shape, group) for leaf, group in zip(leaves, groups, strict=True))
    return Snapshot(joined, others, structure, shapes)


def like(snapshot: Snapshot, other: Snapshot) -> Snapshot:
    """The arrays of one snapshot in the structure of another; for one that comes from a file."""
    return Snapshot(snapshot.joined, snapshot.others, other.structure, other.shapes)


def restore(snapshot: Snapshot) -> PyTree:
    """The pytree that a snapshot was taken of.

    >>> restore(take({"a": jnp.zeros(2), "b": jnp.ones(())}))
    {'a': Array([0., 0.], dtype=float32), 'b': Array(1., dtype=float32)}
    """
    used = dict.fromkeys(snapshot.joined, 0)
    others = iter(snapshot.others)
    leaves = []
    for shape, group in snapshot.shapes:
        if group is None:
            leaves.append(jnp.copy(next(others)))
            continue
        size = 1
        for n in shape:
            size *= n
        leaves.append(snapshot.joined[group][used[group] : used[group] + size].reshape(shape))
        used[group] += size
    return jax.tree.unflatten(snapshot.structure, leaves)
