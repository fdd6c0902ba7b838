"""The state of an `Optimizer` as nested dicts of NumPy arrays, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..state import PyTree
from .leaves import Path, name, text
from .parameter_group import Plan, State


def as_dict(plan: Plan, state: State, n_steps: Array) -> dict[str, Any]:
    """The state of a plan: all of its arrays, and a description of what they belong to."""
    nested = {"description": np.frombuffer(_description(plan, state).encode(), np.uint8).copy()}
    for path, leaf in (_named(plan, state) | {("n_steps",): n_steps}).items():
        *parents, last = path
        inner: Any = nested
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = np.array(_data(leaf))
    return nested


def from_dict(plan: Plan, state: State, saved: Mapping[str, Any]) -> State:
    """The state that was saved, in the place of `state`; `ValueError` if it is that of another plan."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state must be what state_dict gave, got {saved!r}")
    named = {"/".join(path): leaf for path, leaf in _named(plan, state).items()}
    given = _joined(saved)
    if plan.unpack(state)[0] is None:  # optax counts, too
        given.pop("n_steps", None)
    try:
        description = np.asarray(given.pop("description"), np.uint8).tobytes().decode()
    except (KeyError, ValueError, TypeError):
        raise ValueError("this is no state_dict of a fitopt.Optimizer: no description") from None
    theirs, ours = description.splitlines(), _description(plan, state).splitlines()
    differing = [f"it has {x!r}, this optimizer lacks it" for x in theirs if x not in ours]
    differing += [f"it lacks {x!r}" for x in ours if x not in theirs]
    if not differing:
        differing = [f"it lacks {name}" for name in named if name not in given]
        differing += [f"this optimizer has no {name}" for name in given if name not in named]
        both = [name for name in named if name in given]
        differing += filter(None, (_mismatch(name, given[name], named[name]) for name in both))
    if differing:
        raise ValueError(f"the state_dict is that of another optimizer: {'; '.join(differing[:5])}")
    leaves = [_restored(given[name], leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def placed(new: Array, old: Any) -> Array:
    """The new array where the old one is, so that nothing is compiled for another place."""
    return jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new


def _named(plan: Plan, state: State) -> dict[tuple[str, ...], Any]:
    """All arrays of the state, in the order of its leaves, by their keys in the nested dicts."""
    count, kept, opt_states = plan.unpack(state)
    named: dict[tuple[str, ...], Any] = {} if count is None else {("n_steps",): count}
    for i, (group, pairs) in enumerate(zip(plan.groups, kept, strict=True)):
        stored = [_keys(leaf.path) for leaf in group.moved if leaf.has_position]
        for path, pair in zip(stored, pairs, strict=True):
            for part, x in zip(("positions", "values"), pair, strict=True):
                named["groups", str(i), part, *path] = x
    for i, opt_state in enumerate(opt_states):
        for path, x in jax.tree.leaves_with_path(opt_state):
            named["groups", str(i), "opt_state", *_keys(path)] = x
    if len({"/".join(path) for path in named}) != len(jax.tree.leaves(state)):
        raise ValueError("two leaves of the state have the same path, so it has no state_dict")
    return named


def _keys(path: Path) -> tuple[str, ...]:
    return tuple(text((key,)) for key in path)


def _description(plan: Plan, state: State) -> str:
    """What kind of optimizer this is, and how Parameters come to their positions."""
    lines = []
    for i, (group, opt_state) in enumerate(zip(plan.groups, plan.unpack(state)[2], strict=True)):
        lines.append(f"group {i}: {_names(opt_state)}")
        parameters = (leaf for leaf in group.moved if leaf.is_parameter)
        lines += [f"group {i}, {name(leaf.path)}: {leaf.kind}" for leaf in parameters]
    return "\n".join(lines)


def _names(state: PyTree) -> str:
    """The names of the states that optax has nested in one another."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(state)) or state is None:
        return ""
    if isinstance(state, dict):
        inner = [state[key] for key in sorted(state)]
    else:
        inner = state if isinstance(state, tuple | list) else ()
    inside = ", ".join(filter(None, map(_names, inner)))
    if type(state) in (dict, tuple, list):
        return inside
    return type(state).__name__ + (f"({inside})" if inside else "")


def _joined(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, x in nested.items():
        inner = _joined(x) if isinstance(x, Mapping) else {"": x}
        flat |= {f"{key}/{rest}" if rest else str(key): leaf for rest, leaf in inner.items()}
    return flat


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _mismatch(name: str, given: Any, wanted: Any) -> str:
    array, expected = np.asarray(_data(given)), np.asarray(_data(wanted))
    if array.shape != expected.shape:
        return f"{name} has shape {array.shape}, not {expected.shape}"
    # Lists have lost their dtype, and NumPy's files that of the floats that only JAX has.
    exact = not jnp.issubdtype(expected.dtype, jnp.inexact)
    numbers = "biu" if exact else "biuf" if not np.iscomplexobj(expected) else "biufc"
    lost = not hasattr(given, "dtype") and array.dtype.kind in numbers
    lost |= array.dtype.type is np.void and array.dtype.itemsize == expected.dtype.itemsize
    same = lost or array.dtype == expected.dtype
    return "" if same else f"{name} has dtype {array.dtype}, not {expected.dtype}"


def _restored(given: Any, old: Any) -> Array:
    array, dtype = np.asarray(_data(given)), np.asarray(_data(old)).dtype
    array = jnp.array(array.view(dtype) if array.dtype.type is np.void else array.astype(dtype))
    if _is_key(old):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(old))
    return placed(array, old)
