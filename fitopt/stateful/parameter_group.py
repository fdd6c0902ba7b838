"""Parameters with an optax optimizer of their own, one step of it, and the plan of several."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..optimizers.groups import by_name
from ..optimizers.line_search import line_searches
from ..parameter.complex_numbers import from_real, to_real
from ..state import PyTree, is_parameter
from .leaves import Leaf, Path, is_moved, leaf_of, leaves_by_path, name

# For each leaf where they differ: the last position, and the value that belongs to it. Without them
# each step would make a round trip from value to position.
Kept = tuple[tuple[Array, Array], ...]

State = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """A pytree of parameters and the optimizer that moves them: all of it that is static."""

    transformation: optax.GradientTransformation
    treedef: Any
    paths: tuple[Path, ...]
    leaves: tuple[Leaf | None, ...]  # None for what stays as it is
    numbers: frozenset[Path] = frozenset()  # Python's, which come as arrays where they went through jit
    as_real: bool = False  # whether complex leaves are shown as real ones

    @functools.cached_property
    def moved(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf is not None)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer, which knows the Parameters' names."""
        names = (leaf.block.name for leaf in self.moved)
        return by_name(self.transformation, self.tree(names))

    @classmethod
    def start(
        cls, transformation: optax.GradientTransformation, params: PyTree
    ) -> tuple["ParameterGroup", Kept, PyTree]:
        """The group of these parameters, before its first step."""
        flat, treedef = jax.tree.flatten_with_path(params, is_leaf=is_parameter)
        leaves = tuple(leaf_of(path, x) for path, x in flat)
        numbers = frozenset(path for path, x in flat if type(x) in (float, complex))
        group = cls(transformation, treedef, tuple(path for path, _ in flat), leaves, numbers)
        if not group.moved:
            hint = "; Python numbers stay as they are: use jnp.asarray" if numbers else ""
            raise ValueError(
                f"params hold nothing to optimise: no array of floats, no free Parameter{hint}"
            )
        values = [leaf.check_value(x) for leaf, (_, x) in zip(leaves, flat, strict=True) if leaf]
        positions = [leaf.position(x) for leaf, x in zip(group.moved, values, strict=True)]
        tree = group.tree(map(jnp.copy, positions))
        opt_state = group.optimizer.init(tree)
        if line_searches(opt_state):
            opt_state = group.optimizer.init(to_real(tree))
            group = dataclasses.replace(group, as_real=True)
        return group, group.keep(positions, values), opt_state

    def tree(self, leaves: Iterable[Any]) -> PyTree:
        """One thing for each moved leaf, in the structure of the parameters; None elsewhere."""
        arrays = iter(leaves)
        return jax.tree.unflatten(self.treedef, [leaf and next(arrays) for leaf in self.leaves])

    def keep(self, positions: list[Array], values: list[Array]) -> Kept:
        """Both, in memory of their own: parameters and optimizer may be donated together."""
        triples = zip(self.moved, positions, values, strict=True)
        return tuple((jnp.copy(x), jnp.copy(v)) for leaf, x, v in triples if leaf.has_position)

    def positions(self, kept: Kept, values: Sequence[Array]) -> list[Array]:
        known = iter(kept)
        pairs = zip(self.moved, values, strict=True)
        return [leaf.position(v, next(known) if leaf.has_position else None) for leaf, v in pairs]

    def values(self, positions: Sequence[Array], start: Sequence[Array]) -> list[Array]:
        triples = zip(self.moved, positions, start, strict=True)
        return [leaf.block.to_value(x, v) for leaf, x, v in triples]

    def gradients(
        self, grads: Sequence[Array], positions: Sequence[Array], start: Sequence[Array]
    ) -> PyTree:
        quads = zip(self.moved, grads, positions, start, strict=True)
        return self.tree(leaf.gradient(g, x, v) for leaf, g, x, v in quads)

    def step(
        self,
        kept: Kept,
        opt_state: PyTree,
        grads: Sequence[Array],
        params: Sequence[Array] | None,
        extra: dict[str, Any],
        apply_updates: bool,
    ) -> tuple[list[Array], Kept, PyTree]:
        """One step: the new values, or what to add to the old ones; and the new state."""
        start = grads if params is None else params  # for their shapes, where there are no positions
        positions = self.positions(kept, start)
        plain = self.tree(positions)
        show: Callable[[PyTree], PyTree] = to_real if self.as_real else lambda tree: tree
        hide = lambda shown: jax.tree.leaves(from_real(shown, plain) if self.as_real else shown)
        shown, uphill = show(plain), show(self.gradients(grads, positions, start))
        if "grad" in extra:
            extra = extra | {"grad": show(self.gradients(extra["grad"], positions, start))}
        if "value_fn" in extra:
            of_leaves, paths = extra["value_fn"], [leaf.path for leaf in self.moved]
            by_path = lambda shown: dict(zip(paths, self.values(hide(shown), start), strict=True))
            extra = extra | {"value_fn": lambda shown: of_leaves(by_path(shown))}
        updates, opt_state = self.optimizer.update(
            uphill, opt_state, None if params is None else shown, **extra
        )
        reached = hide(optax.apply_updates(shown, updates))
        result = new = self.values(reached, start)
        if not apply_updates:
            quads = zip(self.moved, hide(updates), new, start, strict=True)
            result = [leaf.difference(update, x, v) for leaf, update, x, v in quads]
            new = [v + x for v, x in zip(start, result, strict=True)]  # as the caller will add them up
        return result, self.keep(reached, new), opt_state


class Plan:
    """All of a stateful optimizer that is static. Equal ones are one object: fast to compare.

    The state that belongs to it has three parts: the number of steps, None if the first optax state
    counts them, at the indices `counter`; what each group keeps; and their optax states.
    """

    _all: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        groups: tuple[ParameterGroup, ...] = (),
        counter: tuple[int, ...] | None = None,
    ):
        self.transformation = transformation
        self.groups = groups
        self.counter = counter
        self.moved: tuple[Leaf, ...] = tuple(leaf for group in groups for leaf in group.moved)
        self.paths: tuple[Path, ...] = tuple(leaf.path for leaf in self.moved)
        self.known: frozenset[Path] = frozenset(path for group in groups for path in group.paths)
        self.numbers: frozenset[Path] = frozenset(path for group in groups for path in group.numbers)

    @classmethod
    def of(cls, *content: Any) -> "Plan":
        try:
            return cls._all.setdefault(content, cls(*content))
        except TypeError:  # static fields in the parameters' structure that have no hash
            return cls(*content)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        return self

    def pack(self, count: Array | None, kept: Iterable[Kept], opt_states: Iterable[PyTree]) -> State:
        """The state as one tuple, without what is empty: jit takes time for each node of a pytree."""
        pairs = tuple(kept)
        own = (count, pairs if any(pairs) else None)
        return (None if own[0] is None and own[1] is None else own, *opt_states)

    def unpack(self, state: State) -> tuple[Array | None, tuple[Kept, ...], list[PyTree]]:
        """The inverse of `pack`."""
        own, *opt_states = state
        count, kept = own or (None, None)
        return count, kept or ((),) * len(opt_states), opt_states

    def check_params(self, params: PyTree) -> list[Array]:
        """The arrays of all values to move."""
        given, expected = leaves_by_path(params), self.numbers.union(self.paths)
        for path, x in given.items():
            if path not in expected and is_moved(x):
                raise ValueError(f"params: {name(path)} was not there, or fixed, at init; see add_group")
        for leaf in self.moved:
            if leaf.path not in given:
                raise ValueError(f"params: {name(leaf.path)} is missing")
        return [leaf.check_value(given[leaf.path]) for leaf in self.moved]

    def check_grads(self, grads: PyTree, tree: str) -> list[Array]:
        """The arrays of the gradients of all that moves."""
        given = leaves_by_path(grads)
        for leaf in self.moved:
            if leaf.path not in given:
                raise ValueError(
                    f"{tree}: {name(leaf.path)} is missing; "
                    f"got {len(given)} gradients for {len(self.moved)} leaves of the parameters"
                )
        for path in given:
            if path not in self.known:
                raise ValueError(f"{tree}: {name(path)} is not in the parameters of init")
        return [leaf.check(given[leaf.path], tree) for leaf in self.moved]

    def advance(
        self,
        state: State,
        grads: Sequence[Array],
        params: Sequence[Array] | None,
        extra: dict[str, Any],
        apply_updates: bool,
    ) -> tuple[list[Array], State]:
        """One step of all groups: the new values, or what to add to the old ones; and the new state."""
        count, kept, opt_states = self.unpack(state)
        results: list[Array] = []
        after = []
        for group, own, opt_state in zip(self.groups, kept, opt_states, strict=True):
            part = slice(len(results), len(results) + len(group.moved))
            more = {**extra, "grad": extra["grad"][part]} if "grad" in extra else extra
            values = None if params is None else params[part]
            arrays, *new = group.step(own, opt_state, grads[part], values, more, apply_updates)
            results += arrays
            after.append(new)
        count = None if count is None else jnp.asarray(optax.safe_increment(count))
        return results, self.pack(count, *zip(*after, strict=True))

    @functools.cached_property
    def compiled(self) -> Callable[..., tuple[list[Array], State]]:
        """`advance`, for steps outside of any compiled function."""
        return jax.jit(self.advance, static_argnums=4)
