"""The layout of a state: all of it that is not an array, and how to put it together again."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from ..parameter import Derived, Parameter, Spec, with_value
from ..parameter.derived import compute
from .trees import is_array, is_leaf


class _Opaque:
    """A leaf that is not an array, compared by identity where it has no hash."""

    def __init__(self, leaf: Any):
        self.leaf = leaf
        try:
            self._key: Any = (type(leaf), hash(leaf), leaf)
        except TypeError:
            self._key = (type(leaf), id(leaf), None)

    def __hash__(self) -> int:
        return hash(self._key[:2])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Opaque) or self._key[:2] != other._key[:2]:
            return False
        return self.leaf is other.leaf or bool(self._key[2] == other._key[2])


_ARRAY = object()  # stands for a leaf that is an array or a float


@dataclasses.dataclass(frozen=True)
class Layout:
    """All of a state that is not an array: its structure, its Parameters' specs, its other leaves.

    Static, and hashable by content: two states with the same layout and the same shapes run
    through the same compiled program.
    """

    treedef: Any
    leaves: tuple[Any, ...]  # a Spec for a Parameter, _ARRAY, a Derived, or an _Opaque

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.treedef, self.leaves))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def specs(self) -> tuple[Spec, ...]:
        """The specs of the free Parameters, in the order of the leaves."""
        return tuple(x for x in self.leaves if isinstance(x, Spec) and x.free)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Where in the state each free Parameter lies, such as `layers/0/weight`."""
        return tuple(path for path, leaf in self._placed if isinstance(leaf, Spec) and leaf.free)

    @functools.cached_property
    def _placed(self) -> tuple[tuple[str, Any], ...]:
        """All leaves, each behind the place where it lies."""
        numbered = jax.tree.unflatten(self.treedef, range(len(self.leaves)))
        flat, _ = jax.tree.flatten_with_path(numbered)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        return tuple(zip(paths, self.leaves, strict=True))

    @property
    def has_derived(self) -> bool:
        """Whether something in the state is derived."""
        return any(isinstance(leaf, Derived) for leaf in self.leaves)

    def named_values(self, free: Sequence[Array], fixed: Sequence[Any]) -> dict[str, Array]:
        """The values of the free Parameters, and of what is derived, by name."""
        plain = self.treedef.flatten_up_to(self.plain(free, fixed))
        shown = [
            (leaf.name, path, x)
            for (path, leaf), x in zip(self._placed, plain, strict=True)
            if isinstance(leaf, Derived) or (isinstance(leaf, Spec) and leaf.free)
        ]
        names = unique_names([name for name, *_ in shown], [path for _, path, _ in shown])
        return dict(zip(names, [x for *_, x in shown], strict=True))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What to call the free Parameters: see `unique_names`."""
        return unique_names([spec.name for spec in self.specs], self.paths)

    def _build(self, free: Sequence[Any], fixed: Sequence[Any] | None, wrap: bool) -> Any:
        free_leaves, fixed_leaves = iter(free), iter(fixed or ())
        built = []
        for leaf in self.leaves:
            if isinstance(leaf, Spec) and leaf.free:
                value = next(free_leaves)
                built.append(with_value(leaf, value) if wrap and value is not None else value)
            elif fixed is None:
                built.append(None)
            elif isinstance(leaf, Spec):
                value = next(fixed_leaves)
                built.append(with_value(leaf, value) if wrap else value)
            elif leaf is _ARRAY:
                built.append(next(fixed_leaves))
            elif isinstance(leaf, Derived):
                built.append(leaf)
            else:
                built.append(leaf.leaf)
        if fixed is not None and not wrap:
            built = compute(built, self.treedef.unflatten)
        return jax.tree.unflatten(self.treedef, built)

    def plain(self, free: Sequence[Array], fixed: Sequence[Any]) -> Any:
        """The state as a loss sees it: arrays in place of Parameters and of each Derived."""
        return self._build(free, fixed, wrap=False)

    def free_tree(self, leaves: Sequence[Any]) -> Any:
        """One array for each free Parameter, in the structure of the state; None elsewhere."""
        return self._build(leaves, None, wrap=False)

    def free_state(self, free: Sequence[Array]) -> Any:
        """The free Parameters in the structure of the state; None elsewhere."""
        return self._build(free, None, wrap=True)

    def fixed_state(self, fixed: Sequence[Any]) -> Any:
        """The state with None in place of the free Parameters."""
        return self._build([None] * len(self.specs), fixed, wrap=True)

    def state(self, free: Sequence[Array], fixed: Sequence[Any]) -> Any:
        """The whole state."""
        return self._build(free, fixed, wrap=True)


def unique_names(names: Sequence[str | None], paths: Sequence[str]) -> tuple[str, ...]:
    """What to call Parameters: by name, else by path; by both where a name is not unique.

    >>> unique_names(["rate", None, "bias", "bias"], ["k", "layers/0", "a", "b"])
    ('rate', 'layers/0', 'bias (a)', 'bias (b)')
    """
    known = [
        path or "parameter" if name is None else name for name, path in zip(names, paths, strict=True)
    ]
    return tuple(
        name if known.count(name) == 1 or path in ("", name) else f"{name} ({path})"
        for name, path in zip(known, paths, strict=True)
    )


class Flat(NamedTuple):
    """A state taken apart: what a program is traced over, and what it is compiled for."""

    free: list[Array]  # values of the free Parameters
    fixed: list[Any]  # values of the fixed ones, arrays and floats
    layout: Layout


def flatten(state: Any) -> Flat:
    """Take a state apart; `Layout.state` puts it together.

    **Raises:** `ValueError` if a free Parameter is in it more than once.
    """
    leaves, treedef = jax.tree.flatten(state, is_leaf=is_leaf)
    free, fixed, kept = [], [], []
    seen: set[int] = set()
    for leaf in leaves:
        if isinstance(leaf, Parameter):
            if leaf.free and id(leaf) in seen:
                raise ValueError(
                    f"{leaf!r} is in the state more than once: to share it, keep it in one place, to "
                    "which the loss refers; to fit each by itself, make copies with p.replace()"
                )
            seen.add(id(leaf))
            spec = leaf.spec
            (free if spec.free else fixed).append(leaf.value)
            kept.append(spec)
        elif is_array(leaf):
            fixed.append(leaf)
            kept.append(_ARRAY)
        elif isinstance(leaf, Derived):
            kept.append(leaf)
        else:
            kept.append(_Opaque(leaf))
    return Flat(free, fixed, Layout(treedef, tuple(kept)))
