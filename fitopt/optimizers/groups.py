"""Parameter groups: an optimizer of its own for each part of a state."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import jax
import optax
from jaxtyping import PyTree

Path = tuple[Any, ...]  # of a leaf: the keys that jax.tree gives

_DEFAULT = "(default)"  # the label of what no pattern matches


# Parameters' names by their paths in the tree that an optimizer gets. They reach `groups` past whatever
# optax has wrapped around it: that hands on trees of the same structure, or parts of them.
_names: ContextVar[Mapping[Path, str]] = ContextVar("names", default=MappingProxyType({}))


def by_name(
    optimizer: optax.GradientTransformation, names: PyTree
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, whose `groups`, wherever they are in it, know parameters by name too.

    **Arguments:**

    - `names`: the names, in the structure of what `init` gets.

    >>> from fitopt.optimizers import groups, sgd
    >>> optimizer = optax.chain(optax.clip(1.0), groups({"rate": sgd(0.1)}))
    >>> state = by_name(optimizer, {"k": "rate"}).init({"k": 1.0})
    """
    known = dict(jax.tree.leaves_with_path(names))

    def knowing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **extra: Any) -> Any:
            token = _names.set(known)
            try:
                return function(*args, **extra)
            finally:
                _names.reset(token)

        return call

    optimizer = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(knowing(optimizer.init), knowing(optimizer.update))


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
    called, shown = _called([path for path, _ in leaves])
    matches = [[p for p in patterns if any(fnmatchcase(x, p) for x in names)] for names in called]
    labels = [found[0] if found else _DEFAULT for found in matches]
    free = f"the free parameters are: {', '.join(shown)}"
    if not _names.get():
        free += " (their names are not known here: give patterns of paths)"
    for pattern in patterns:
        if pattern not in labels:
            taken = any(pattern in found for found in matches)
            why = "finds all its parameters taken by patterns before it" if taken else "matches none"
            raise ValueError(f"the pattern {pattern!r} {why}; {free}")
    left = [text for text, label in zip(shown, labels, strict=True) if label not in optimizers]
    if left:
        raise ValueError(
            f"no pattern matches {', '.join(left)}: add one, or a default; "
            f"the patterns are: {', '.join(map(repr, patterns))}; {free}"
        )
    return jax.tree.unflatten(treedef, labels)


def _called(paths: Sequence[Path]) -> tuple[list[set[str]], list[str]]:
    """What patterns may match of each parameter, and what errors show of it."""
    called, shown = [], []
    for path in paths:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        name = _names.get().get(path, text)
        called.append({text, text.rpartition("/")[2], name})
        shown.append(name if text in ("", name) else f"{text} ({name})")
    return called, shown


# What the optimizer of a group gets is the whole tree with an optax.MaskedNode for each other parameter.


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def merge(group: PyTree, params: PyTree) -> PyTree:
    """The tree of a group, filled up with the other parameters."""
    return jax.tree.map(lambda x, y: y if _is_masked(x) else x, group, params, is_leaf=_is_masked)


def restrict(params: PyTree, group: PyTree) -> PyTree:
    """The part of `params` that belongs to a group."""
    return jax.tree.map(lambda x, y: x if _is_masked(x) else y, group, params, is_leaf=_is_masked)
