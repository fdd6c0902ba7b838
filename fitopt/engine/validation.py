"""Is it what it should be? Arguments of a fit, and what losses and callbacks return."""

import contextlib
import dataclasses
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..callback import Callback, HostCallback, PlainFunction, label
from ..parameter.parameter import Parameter
from ..state import PyTree, is_parameter

MOST_STEPS = 10**9  # what a method gets that is to make as many as it takes


def check_callbacks(callback: Any) -> tuple[Callback | HostCallback, ...]:
    """The callbacks as a tuple, plain functions as host callbacks."""
    if callback is None:
        return ()
    callbacks: Sequence[Any] = callback if isinstance(callback, list | tuple) else [callback]
    return tuple(_check_callback(one) for one in callbacks)


def _check_callback(one: Any) -> Callback | HostCallback:
    if isinstance(one, type):
        raise TypeError(f"callback must be an instance, got the class {one.__name__}; call it")
    if not isinstance(one, Callback | HostCallback):
        if not callable(one):
            raise TypeError(
                "callback must be a function, a fitopt.Callback, a fitopt.HostCallback "
                f"or a list of them, got {one!r}"
            )
        one = PlainFunction(one)
    every = one.every
    if every is not None or not isinstance(one, HostCallback) or isinstance(one, PlainFunction):
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"{label(one)}: every must be an integer, got {every!r}")
        if every < 1:
            raise ValueError(f"{label(one)}: every must be positive, got {every!r}")
    return one


def check_max_steps(max_steps: Any) -> int:
    try:
        if isinstance(max_steps, bool):
            raise TypeError
        steps = operator.index(max_steps)
    except TypeError:
        raise TypeError(f"max_steps must be an integer, got {max_steps!r}") from None
    if steps < 0:
        raise ValueError(f"max_steps must not be negative, got {steps}")
    return steps


def nothing_free(state: Any) -> str:
    placed = jax.tree.leaves_with_path(state, is_leaf=is_parameter)
    leaves = [leaf for _, leaf in placed]
    fixed = [
        leaf.name or jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in placed
        if isinstance(leaf, Parameter)
    ]
    opaque = [leaf for leaf in leaves if dataclasses.is_dataclass(leaf) and not is_parameter(leaf)]
    hint = f"; all of these are fixed: {', '.join(fixed)}" if fixed else ""
    if opaque:
        hint = (
            f"; JAX does not look into {type(opaque[0]).__name__}, "
            "register it with jax.tree_util.register_dataclass"
        )
    return (
        "nothing in the state is free: mark what is to be fitted with fitopt.Parameter(value), or all "
        "arrays of a module with fitopt.trainable(module)" + hint
    )


def bad_start(names: Sequence[str], values: Sequence[Array], loss: float) -> str:
    """What to say of a start at which the loss is not finite."""
    pairs = zip(names, values, strict=True)
    return (
        f"the loss is {loss} at the start of the fit, with "
        f"{', '.join(f'{name}={np.asarray(value)}' for name, value in pairs)}"
    )


@contextlib.contextmanager
def numpy_advice(what: str) -> Iterator[None]:
    """Say what to do where a function of the user calls NumPy."""
    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"the {what} hands a traced array to NumPy: write jax.numpy (jnp.exp and so on) in place of "
            "numpy, and no float() or .item()"
        ) from error


def check_loss(result: Any, has_aux: bool) -> tuple[Array, Any]:
    """Loss and aux, or a TypeError that says what the loss returned instead."""
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "has_aux=True: the loss must return a pair (loss, aux), "
                f"but it returned {describe(result)}"
            )
        result, aux = result
    elif isinstance(result, tuple):
        raise TypeError(
            f"the loss must return a real scalar, but it returned {describe(result)}; "
            "if the rest is auxiliary data, say has_aux=True"
        )
    else:
        aux = None
    if not isinstance(result, (float, jax.Array)) and not hasattr(result, "dtype"):
        raise TypeError(f"the loss must return a real scalar, but it returned {describe(result)}")
    loss = jnp.asarray(result)
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"the loss must return a real scalar, but it returned {describe(result)}")
    return loss, jax.tree.map(jnp.asarray, aux)


def describe(x: Any) -> str:
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    if hasattr(x, "dtype"):
        shape = f"shape {tuple(x.shape)}" if x.shape else "a scalar"
        return f"an array, {shape}, of dtype {x.dtype}"
    return f"{x!r} of type {type(x).__name__}"


def check_update(callback: Callback, before: PyTree, returned: Any) -> tuple[PyTree, Any]:
    """Carry and stop flag of a callback's update, or a TypeError that says what is wrong with them."""
    name = type(callback).__name__
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(f"{name}.update must return (carry, stop), got {describe(returned)}")
    after, stop = returned
    if not isinstance(stop, bool):
        stop = jnp.asarray(stop)
        if stop.shape != () or stop.dtype != bool:
            raise TypeError(f"{name}.update: stop must be a boolean scalar, got {describe(stop)}")
    given, kept = (jax.tree.map(lambda x: jax.typeof(jnp.asarray(x)), x) for x in (after, before))
    given_shapes, kept_shapes = (
        jax.tree.map(lambda x: (x.shape, x.dtype), x, is_leaf=lambda x: hasattr(x, "dtype"))
        for x in (given, kept)
    )
    if jax.tree.structure(after) != jax.tree.structure(before) or given_shapes != kept_shapes:
        raise TypeError(f"{name}.update must return a carry like that of init, {kept}; got {given}")
    return after, stop


def depth_in_package() -> int:
    """The stacklevel, for a warning in the caller, of the first frame that is not fitopt's."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("fitopt."):
        frame, depth = frame.f_back, depth + 1
    return depth
