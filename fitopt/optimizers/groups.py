"""Parameter groups: an optimizer of its own for each part of a state."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax
from optax.transforms import PartitionState

from ..state import PyTree

Path = tuple[Any, ...]  # of a leaf: the keys that jax.tree gives

_DEFAULT = "(default)"  # the label of what no pattern matches


# A Parameter's name may be another one than its place in the state says. It then travels with the value,
# as a node of the trees that an optimizer gets: so it reaches `groups` past whatever optax has wrapped
# around it.


@dataclasses.dataclass(frozen=True)
class _NameKey:
    """A part of a path that tells the name of what comes behind it."""

    name: str

    def __str__(self) -> str:
        return f"<{self.name}>"


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Named:
    """A value in a pytree, with a name besides that of its place.

    >>> jax.tree.leaves_with_path({"k": Named(1.0, "rate")})
    [((DictKey(key='k'), _NameKey(name='rate')), 1.0)]
    """

    value: Any
    name: str

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[_NameKey, Any]], str]:
        return ((_NameKey(self.name), self.value),), self.name

    @classmethod
    def tree_unflatten(cls, name: str, values: Sequence[Any]) -> "Named":
        return cls(values[0], name)


def without_names(tree: PyTree) -> PyTree:
    """A tree with the values alone in place of `Named` ones.

    >>> without_names({"k": Named(1.0, "rate")})
    {'k': 1.0}
    """
    is_named = lambda x: isinstance(x, Named)
    return jax.tree.map(lambda x: x.value if is_named(x) else x, tree, is_leaf=is_named)


def by_name(
    optimizer: optax.GradientTransformation, names: PyTree
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, whose `groups`, wherever they are in it, know parameters by name too.

    **Arguments:**

    - `names`: the names, in the structure of what `init` gets; None for what has none.

    >>> from fitopt.optimizers import groups, sgd
    >>> optimizer = optax.chain(optax.clip(1.0), groups({"rate": sgd(0.1)}))
    >>> state = by_name(optimizer, {"k": "rate"}).init({"k": 1.0})
    """
    optimizer = optax.with_extra_args_support(optimizer)
    leaves, treedef = jax.tree.flatten_with_path(names, is_leaf=lambda x: x is None)
    unlike = [None if name in _told_by(path) else name for path, name in leaves]
    if not any(unlike):
        return optimizer

    def named(tree: PyTree) -> PyTree:
        values = treedef.flatten_up_to(tree)
        pairs = zip(values, unlike, strict=True)
        return treedef.unflatten([x if name is None else Named(x, name) for x, name in pairs])

    def init(params: Any) -> optax.OptState:
        state = optimizer.init(named(params))
        return state if _has_groups(state) else optimizer.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        if not _has_groups(state):  # trees in the user's own optimizers are of the plain structure
            return optimizer.update(updates, state, params, **extra)
        if "grad" in extra:
            extra["grad"] = named(extra["grad"])
        for key in ("value_fn", "obj_fn"):
            if key in extra:
                extra[key] = _of_values(extra[key])
        if "grad_fn" in extra:
            grad_fn = _of_values(extra["grad_fn"])
            extra["grad_fn"] = lambda *args, **kwargs: named(grad_fn(*args, **kwargs))
        params = None if params is None else named(params)
        updates, state = optimizer.update(named(updates), state, params, **extra)
        return without_names(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _of_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters that takes `Named` ones, too."""
    return lambda params, *args, **kwargs: function(without_names(params), *args, **kwargs)


def _has_groups(state: PyTree) -> bool:
    is_split = lambda x: isinstance(x, PartitionState)
    return any(map(is_split, jax.tree.leaves(state, is_leaf=is_split)))


def groups(
    patterns: Mapping[str, optax.GradientTransformation | None],
    default: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each group of parameters; None freezes a group.

    **Arguments:**

    - `patterns`: optimizers by pattern, such as `{"rate*": adam(1e-3), "weights/*": sgd(1e-2)}`. Shell
        wildcards match the whole of a parameter's path in the state, as in `layers/0/weight`, the last
        part of it, or its name. The first pattern that matches decides.
    - `default`: the optimizer of what no pattern matches.

    The state holds one state for each group, `state.inner_states[pattern]`, which the other groups do
    not touch: it stays valid when another group is frozen or gets another optimizer. A line search in
    one group sees the others stand still.

    **Raises:** `TypeError` for what is no optimizer. In `init`, when a fit starts, `ValueError` for a
    pattern that decides about no free parameter and, without `default`, for a parameter that no pattern
    matches.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> optimizer = optimizers.groups({"rate*": optimizers.adam(0.1), "offset": None})
    >>> loss = lambda state: (state["rate"] - 1.0) ** 2 + (state["offset"] - 1.0) ** 2
    >>> state = {"rate": Parameter("rate", 3.0), "offset": Parameter("offset", 0.0)}
    >>> state, history = OptaxOptimizer(loss, optimizer).run(state, max_steps=300)
    >>> print(f"{state['rate']:.3f} {state['offset']:.3f}")
    1.000 0.000
    """
    if not isinstance(patterns, Mapping) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"groups takes a dict of optimizers by pattern, got {patterns!r}")
    optimizers = {pattern: _optimizer(pattern, x) for pattern, x in patterns.items()}
    if default is not None:
        optimizers[_DEFAULT] = _optimizer("default", default)

    def split(params: PyTree) -> optax.GradientTransformationExtraArgs:
        labels = _labels(optimizers, params)
        used = set(jax.tree.leaves(labels))
        chosen: dict[Hashable, optax.GradientTransformation] = {
            label: x for label, x in optimizers.items() if label in used
        }
        return optax.partition(chosen, labels, mask_compatible_extra_args=True)

    def init(params: Any) -> optax.OptState:
        return split(params).init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        if (value_fn := extra.get("value_fn")) is not None:
            extra["value_fn"] = lambda group, **kwargs: value_fn(merge(group, params), **kwargs)
        return split(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _optimizer(pattern: str, x: Any) -> optax.GradientTransformation:
    if x is None:
        return optax.set_to_zero()
    if not isinstance(x, optax.GradientTransformation):
        raise TypeError(
            f"{pattern!r}: a group takes an optimizer such as adam(1e-3), or None, got {x!r}"
        )
    return x


def _labels(optimizers: Mapping[str, Any], params: PyTree) -> PyTree:
    """The pattern that decides about each parameter, in the structure of `params`."""
    leaves, treedef = jax.tree.flatten_with_path(params)
    patterns = [pattern for pattern in optimizers if pattern != _DEFAULT]
    matches, shown = [], []
    for path, _ in leaves:
        known = _told_by(path)
        matches.append([p for p in patterns if any(fnmatchcase(x, p) for x in known)])
        place, name = known[0], ", ".join(known[2:])
        shown.append(f"{place} ({name})" if place and name else place + name)
    labels = [found[0] if found else _DEFAULT for found in matches]
    free = f"the free parameters are: {', '.join(shown)}"
    for pattern in patterns:
        if pattern not in labels:
            taken = any(pattern in found for found in matches)
            fault = "finds all its parameters taken by patterns before it" if taken else "matches none"
            raise ValueError(f"the pattern {pattern!r} {fault}; {free}")
    left = [text for text, label in zip(shown, labels, strict=True) if label not in optimizers]
    if left:
        raise ValueError(
            f"no pattern matches {', '.join(left)}: add one, or a default; "
            f"the patterns are: {', '.join(map(repr, patterns))}; {free}"
        )
    return jax.tree.unflatten(treedef, labels)


def _told_by(path: Path) -> list[str]:
    """What patterns may match: the whole path, the last part of it, a name besides these."""
    place = [key for key in path if not isinstance(key, _NameKey)]
    text = jax.tree_util.keystr(tuple(place), simple=True, separator="/")
    return [text, text.rpartition("/")[2], *(key.name for key in path if isinstance(key, _NameKey))]


# What the optimizer of a group gets is the whole tree with an optax.MaskedNode for each other parameter.


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def merge(group: PyTree, params: PyTree) -> PyTree:
    """The tree of a group, filled up with the other parameters."""
    return jax.tree.map(lambda x, y: y if _is_masked(x) else x, group, params, is_leaf=_is_masked)


def restrict(params: PyTree, group: PyTree) -> PyTree:
    """The part of `params` that belongs to a group."""
    return jax.tree.map(lambda x, y: x if _is_masked(x) else y, group, params, is_leaf=_is_masked)
