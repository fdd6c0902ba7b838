"""Parameter groups: an optimizer of its own for each part of a state."""

from collections.abc import Callable, Hashable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax
from jaxtyping import PyTree

_DEFAULT = "(default)"  # the label of what no pattern matches


class Groups(optax.GradientTransformationExtraArgs):
    """What `groups` returns: an optimizer, and `named`, which is the same one with names to match too.

    `named(names)` takes the names of the parameters in the structure that `init` gets.

    >>> from fitopt.optimizers import groups, sgd
    >>> optimizer = groups({"rate": sgd(0.1)}).named({"k": "rate"})
    >>> list(optimizer.init({"k": 1.0}).inner_states)
    ['rate']
    """

    named: Callable[[PyTree], optax.GradientTransformationExtraArgs]


def groups(
    patterns: Mapping[str, optax.GradientTransformation | None],
    default: optax.GradientTransformation | None = None,
) -> Groups:
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
    return _groups(optimizers, None)


def _groups(optimizers: Mapping[str, optax.GradientTransformation], names: PyTree) -> Groups:
    def split(params: PyTree) -> optax.GradientTransformationExtraArgs:
        labels = _labels(optimizers, names, params)
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

    made = Groups(init, update)
    made.named = lambda names: _groups(optimizers, names)
    return made


def _optimizer(pattern: str, x: Any) -> optax.GradientTransformation:
    if x is None:
        return optax.set_to_zero()
    if not isinstance(x, optax.GradientTransformation):
        raise TypeError(
            f"{pattern!r}: a group takes an optimizer such as adam(1e-3), or None, got {x!r}"
        )
    return x


def _labels(optimizers: Mapping[str, Any], names: PyTree, params: PyTree) -> PyTree:
    """The pattern that decides about each parameter, in the structure of `params`."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    known = paths if names is None else jax.tree.leaves(names)
    called = {
        path: {path, path.rpartition("/")[2], name} for path, name in zip(paths, known, strict=True)
    }
    patterns = [pattern for pattern in optimizers if pattern != _DEFAULT]
    free = ", ".join(
        path if name == path else f"{path} ({name})" for path, name in zip(paths, known, strict=True)
    )

    labels, left = [], []
    matches = {path: [p for p in patterns if _any_matches(called[path], p)] for path in paths}
    for path in paths:
        labels.append(matches[path][0] if matches[path] else _DEFAULT)
        if not matches[path] and _DEFAULT not in optimizers:
            left.append(path)
    for pattern in patterns:
        if pattern not in labels:
            taken = any(pattern in found for found in matches.values())
            why = "finds all its parameters taken by patterns before it" if taken else "matches none"
            raise ValueError(f"the pattern {pattern!r} {why}; the free parameters are: {free}")
    if left:
        raise ValueError(
            f"no pattern matches {', '.join(left)}: add one, or a default; "
            f"the patterns are: {', '.join(map(repr, patterns))}; the free parameters are: {free}"
        )
    return jax.tree.unflatten(treedef, labels)


def _any_matches(names: set[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


# What the optimizer of a group gets is the whole tree with an optax.MaskedNode for each other parameter.


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def merge(group: PyTree, params: PyTree) -> PyTree:
    """The tree of a group, filled up with the other parameters."""
    return jax.tree.map(lambda x, y: y if _is_masked(x) else x, group, params, is_leaf=_is_masked)


def restrict(params: PyTree, group: PyTree) -> PyTree:
    """The part of `params` that belongs to a group."""
    return jax.tree.map(lambda x, y: x if _is_masked(x) else y, group, params, is_leaf=_is_masked)
