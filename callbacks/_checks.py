"""What the settings of callbacks must be, and what they need of a fit."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from fitopt.callback import StepInfo
from fitopt.engine.validation import describe

Monitor = Callable[[StepInfo], Real[Array, ""]]


def check_count(who: str, name: str, given: Any, least: int = 1) -> int:
    try:
        count = operator.index(given)
    except TypeError:
        count = least - 1
    if isinstance(given, bool) or count < least:
        expected = "a positive integer" if least == 1 else f"an integer that is at least {least}"
        raise ValueError(f"{who}: {name} must be {expected}, got {given!r}")
    return count


def check_every(who: str, every: Any) -> int:
    return check_count(who, "every", every)


def check_number(who: str, name: str, given: Any) -> float:
    try:
        number = math.nan if isinstance(given, bool | str) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{who}: {name} must be a number, got {given!r}")
    return number


def check_not_negative(who: str, name: str, given: Any) -> float:
    number = check_number(who, name, given)
    if not 0 <= number < math.inf:
        raise ValueError(f"{who}: {name} must be at least 0 and finite, got {given!r}")
    return number


def check_function(who: str, name: str, given: Any, of: str) -> Any:
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"{who}: {name} must be a function of {of}, got {given!r}")
    return given


def check_monitor(who: str, monitor: Any) -> Monitor | None:
    return None if monitor is None else check_function(who, "monitor", monitor, "the step's info")


def monitored(who: str, monitor: Monitor | None, info: StepInfo) -> Array:
    """The number to watch: the loss, or what `monitor` makes of the step; NaN if the step failed."""
    if monitor is None:
        return info.loss
    returned = monitor(info)
    score = jnp.asarray(returned) if isinstance(returned, int | float) else returned
    if not (hasattr(score, "dtype") and score.shape == () and jnp.isrealobj(score)):
        raise TypeError(
            f"{who}: monitor must return a real scalar, but it returned {describe(returned)}"
        )
    score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
    return jnp.where(jnp.isfinite(info.loss), score, jnp.nan)


def name_of(monitor: Monitor | None) -> str:
    """What sentences call the number that is watched."""
    if monitor is None:
        return "the loss"
    name = getattr(monitor, "__name__", "<")
    return "the monitored value" if name.startswith("<") else name


def check_rate(who: str, info: StepInfo) -> PyTree:
    """The learning rate of a step, or an error if it is not known."""
    if info.learning_rate is None:
        raise ValueError(
            f"{who}: the state of this optimizer holds no learning rate; use one of "
            "fitopt.optimizers, or optax.inject_hyperparams"
        )
    return info.learning_rate
