"""Optimizers that treat each leaf by itself: their update as functions of one leaf.

These functions are found by following what depends on what through the jaxpr of an update. Leaves for
which the function is the same are stacked and updated as one array, since a CPU takes about as long for
one number as for a hundred.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..state import PyTree
from .dependencies import MIXED, SHARED, Graph

_MOST_ENTRIES = 64  # of a leaf to be stacked: larger ones are worth a kernel of their own
_BLOCK = 32  # numbers that one kernel gathers


class Packed(NamedTuple):
    """Leaves and the optimizer's state, in stacks."""

    shared: list[Array]  # of the state what belongs to no leaf
    stacks: list[tuple[Array, list[Array]]]  # leaves, and what of the state belongs to them


class _Stack(NamedTuple):
    """Which leaves are updated in the same way: of more than one, arrays get a leading axis."""

    leaves: tuple[int, ...]
    states: tuple[tuple[int, ...], ...]  # for each leaf, the leaves of the state that belong to it


class Leafwise:
    """An update that falls apart into functions of one leaf; `of` finds out whether one does."""

    def __init__(
        self,
        graph: Graph,
        owners: dict[int, int],
        stacks: list[_Stack],
        shared: list[int],
        structures: tuple[Any, Any],
    ):
        self._graph = graph
        self._owners = owners
        self._stacks = stacks
        self._shared = shared  # leaves of the state that belong to no leaf
        self._position, self._state = structures
        self._ends = _Ends(self._position.num_leaves, self._state.num_leaves)

    @classmethod
    def of(cls, update: Callable[..., Any], position: PyTree, state: PyTree) -> "Leafwise | None":
        """How `update(gradients, state, position) -> (updates, state)` falls apart.

        None where leaves depend on each other, and where there is nothing to stack.
        """
        structures = jax.tree.structure(position), jax.tree.structure(state)
        leaves, states = jax.tree.leaves(position), jax.tree.leaves(state)
        alike = Counter((x.shape, x.dtype) for x in leaves if x.size <= _MOST_ENTRIES)
        if max(alike.values(), default=0) < 2:
            return None
        closed = jax.make_jaxpr(update)(position, state, position)
        if closed.effects:  # such as printing, which would be done once for a stack
            return None
        graph = Graph(closed)
        if graph.is_bound_to_a_trace:
            return None
        owners, of_state = _owners(graph, len(leaves), len(states))
        if MIXED in of_state or any(owners[x] == MIXED for x in graph.outputs):
            return None
        stacks: dict[Hashable, list[int]] = {}
        own = [tuple(k for k, owner in enumerate(of_state) if owner == i) for i in range(len(leaves))]
        ends = _Ends(len(leaves), len(states))
        for i, leaf in enumerate(leaves):
            shapes = tuple((x.shape, x.dtype) for x in (leaf, *(states[k] for k in own[i])))
            kind = graph.signature(*ends(i, own[i]), owners, i) if leaf.size <= _MOST_ENTRIES else i
            stacks.setdefault((shapes, kind), []).append(i)
        if len(stacks) == len(leaves):
            return None
        members = [_Stack(tuple(same), tuple(own[i] for i in same)) for same in stacks.values()]
        shared = [k for k, owner in enumerate(of_state) if owner == SHARED]
        found = cls(graph, owners, members, shared, structures)
        try:
            packed = jax.eval_shape(found.pack, position, state)
            _, after = jax.eval_shape(found.update, position, packed)
        except NotImplementedError:  # there is something in it that cannot be done for a whole stack
            return None
        kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
        return found if kinds(after) == kinds(packed) else None

    def pack(self, position: PyTree, state: PyTree) -> Packed:
        """Stack leaves and the optimizer's state."""
        leaves, state = jax.tree.leaves(position), jax.tree.leaves(state)
        stacks = []
        for members, states in self._stacks:
            parts = zip(*([state[k] for k in own] for own in states), strict=True)
            stacks.append((_stacked([leaves[i] for i in members]), [*map(_stacked, parts)]))
        return Packed([state[k] for k in self._shared], stacks)

    def position(self, packed: Packed, places: Sequence[Any] = ()) -> PyTree:
        """The leaves that have been stacked; `places` are numbers from 0 on, as arrays."""
        found: dict[int, Array] = {}
        for (members, _), (stack, _) in zip(self._stacks, packed.stacks, strict=True):
            found.update(zip(members, _apart(stack, len(members), places), strict=True))
        return jax.tree.unflatten(self._position, [found[i] for i in range(len(found))])

    def state(self, packed: Packed, places: Sequence[Any] = ()) -> PyTree:
        """The optimizer's state that has been stacked, likewise."""
        found = dict(zip(self._shared, packed.shared, strict=True))
        for (members, states), (_, parts) in zip(self._stacks, packed.stacks, strict=True):
            for part, numbers in zip(parts, zip(*states, strict=True), strict=True):
                found.update(zip(numbers, _apart(part, len(members), places), strict=True))
        return jax.tree.unflatten(self._state, [found[k] for k in range(len(found))])

    def update(self, gradients: PyTree, packed: Packed) -> tuple[list[Array], Packed]:
        """The updates of the stacks, and the same leaves with what has become of the state."""
        graph, ends, gradients = self._graph, self._ends, jax.tree.leaves(gradients)
        inputs = dict(zip(map(ends.state, self._shared), packed.shared, strict=True))
        known = graph.shared(self._owners, inputs)
        updates, stacks = [], []
        for (members, states), (leaves, own) in zip(self._stacks, packed.stacks, strict=True):
            taken, given = ends(members[0], states[0])
            function = graph.function(taken, given, self._owners, members[0], known)
            function = jax.vmap(function) if len(members) > 1 else function
            update, *after = function(_stacked([gradients[i] for i in members]), *own, leaves)
            updates.append(update)
            stacks.append((leaves, after))
        shared = [known[graph.outputs[ends.n_leaves + k]] for k in self._shared]
        return updates, Packed(shared, stacks)


def _owners(graph: Graph, n_leaves: int, n_state: int) -> tuple[dict[int, int], list[int]]:
    """The leaf that each value of an update belongs to, and each leaf of the state.

    A leaf of the state belongs to the leaf that it is computed from. As it is an input of the next
    update, what is computed from it belongs there too: so this is repeated until nothing changes.
    """
    of_state = [SHARED] * n_state
    while True:
        owners = graph.owners([*range(n_leaves), *of_state, *range(n_leaves)])
        updates, states = graph.outputs[:n_leaves], graph.outputs[n_leaves:]
        found = [owners[output] for output in states]
        after = [new if old == SHARED else old for old, new in zip(of_state, found, strict=True)]
        after = [
            MIXED if new not in (SHARED, old) else old for old, new in zip(after, found, strict=True)
        ]
        for leaf, update in enumerate(updates):
            if owners[update] not in (SHARED, leaf):
                owners[update] = MIXED
        if after == of_state:
            return owners, after
        of_state = after


class _Ends(NamedTuple):
    """Where a leaf has its places among the inputs and outputs of an update."""

    n_leaves: int
    n_state: int

    def state(self, k: int) -> int:
        """The input that is a leaf of the state."""
        return self.n_leaves + k

    def __call__(self, leaf: int, own: Sequence[int]) -> tuple[list[int], list[int]]:
        """The inputs gradient, state and value of a leaf, and the outputs update and state."""
        outputs = [leaf, *map(self.state, own)]
        return [*outputs, self.n_leaves + self.n_state + leaf], outputs


def _stacked(arrays: Sequence[Any]) -> Any:
    """Arrays with a leading axis; one alone as it is.

    Where numbers come each from operations of their own, XLA's CPU compiler makes a kernel for each if
    they are concatenated, but one for all if they are chosen between.
    """
    if len(arrays) == 1:
        return arrays[0]
    if arrays[0].ndim or jnp.issubdtype(arrays[0].dtype, jax.dtypes.extended):
        return jnp.stack(arrays)
    blocks = []
    for begin in range(0, len(arrays), _BLOCK):
        numbers = arrays[begin : begin + _BLOCK]
        places, block = np.arange(len(numbers)), jnp.broadcast_to(numbers[0], len(numbers))
        for place, x in enumerate(numbers[1:], 1):
            block = jnp.where(places == place, x, block)
        blocks.append(block)
    return jnp.concatenate(blocks)


def _apart(stack: Any, count: int, places: Sequence[Any]) -> list[Any]:
    """The arrays that have been stacked."""
    if count == 1:
        return [stack]
    if not places:
        return [stack[i] for i in range(count)]
    return [lax.dynamic_index_in_dim(stack, place, keepdims=False) for place in places[:count]]
