"""Is it what it should be? Arguments of a fit, and what losses and callbacks return."""

import dataclasses
import operator
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..callback import Callback, HostCallback, cadence, label
from ..parameter.parameter import Parameter
from ..state import is_parameter


def is_minimiser(optimizer: Any) -> bool:
    """Whether it is a minimiser of optimistix."""
    optimistix = sys.modules.get("optimistix")  # whoever has one has imported it
    if optimistix is None or not isinstance(optimizer, optimistix.AbstractIterativeSolver):
        return False
    if not isinstance(optimizer, optimistix.AbstractMinimiser):
        raise TypeError(
            f"optimizer must minimise a scalar loss, and {type(optimizer).__name__} of optimistix does "
            "not; for least squares use fitopt.LeastSquares(residuals, solver)"
        )
    return True


def check_optimizer(optimizer: Any) -> Any:
    if isinstance(optimizer, optax.MultiSteps):
        update: Any = optimizer.update
        return optax.GradientTransformationExtraArgs(optimizer.init, update)
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation or a minimiser of optimistix, "
            f"got the class {optimizer.__name__}; {_instance(optimizer)}"
        )
    if callable(optimizer) and not hasattr(optimizer, "init"):
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got the function {name}; "
            f"call it: {name}(learning_rate)"
        )
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")
    return optimizer


def _instance(optimizer: type) -> str:
    """How to make what can be used of a class."""
    if not (optimistix := sys.modules.get("optimistix")):
        return "call it"
    call = f"{optimizer.__name__}(rtol, atol)"
    if issubclass(optimizer, optimistix.AbstractLeastSquaresSolver):
        return f"for least squares use fitopt.LeastSquares(residuals, {call})"
    return f"call it: {call}" if issubclass(optimizer, optimistix.AbstractMinimiser) else "call it"


def check_callbacks(callback: Any) -> tuple[Any, ...]:
    if callback is None:
        return ()
    callbacks: Sequence[Any] = callback if isinstance(callback, list | tuple) else [callback]
    for one in callbacks:
        if isinstance(one, type):
            raise TypeError(f"callback must be an instance, got the class {one.__name__}; call it")
        if not (isinstance(one, Callback | HostCallback) or callable(one)):
            raise TypeError(
                "callback must be a function, a fitopt.Callback, a fitopt.HostCallback "
                f"or a list of them, got {one!r}"
            )
        every = one.every if isinstance(one, Callback) else cadence(one)
        if not (every is None and isinstance(one, HostCallback)):
            whole = isinstance(every, int) and not isinstance(every, bool) and every > 0
            if not whole:
                raise ValueError(f"{label(one)}: every must be a positive integer, got {every!r}")
    return tuple(callbacks)


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
    leaves = jax.tree.leaves(state, is_leaf=is_parameter)
    fixed = [leaf.name for leaf in leaves if isinstance(leaf, Parameter)]
    opaque = [leaf for leaf in leaves if dataclasses.is_dataclass(leaf) and not is_parameter(leaf)]
    hint = f"; all of these are fixed: {', '.join(fixed)}" if fixed else ""
    if opaque:
        hint = (
            f"; JAX does not look into {type(opaque[0]).__name__}, "
            "register it with jax.tree_util.register_dataclass"
        )
    return (
        "nothing in the state is free: mark what is to be fitted with fitopt.Parameter(name, value)"
        + hint
    )


def bad_start(state: Any, loss: float) -> str:
    free = [
        f"{leaf.name}={np.asarray(leaf.value)}"
        for leaf in jax.tree.leaves(state, is_leaf=is_parameter)
        if isinstance(leaf, Parameter) and leaf.free
    ]
    return f"the loss is {loss} at the start of the fit, with {', '.join(free)}"


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
