"""The checks of arguments that optimizers, schedules and callbacks share.

Each check returns the argument, or raises `TypeError` for its kind and `ValueError` for its value. What
it is called in the error comes first: `"lr"`, or with its owner `"EarlyStopping: patience"`.
"""

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Check = Callable[[str, Any], Any]  # called with the name and the argument

P = ParamSpec("P")
T = TypeVar("T")


def number(
    name: str,
    x: Any,
    low: float = 0.0,
    high: float = math.inf,
    expected: str = "a number",
    shape: tuple[int, ...] = (),
) -> Any:
    """A number in [low, high), or an array of them of this shape; or a traced one of any value."""
    array = x if isinstance(x, Tracer) else np.asarray(x)
    is_real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    if array.shape not in ((), shape) or not is_real:
        expected += f" or an array of shape {shape}" if shape else ""
        raise TypeError(f"{name} must be {expected}, got {x!r}")
    if isinstance(x, Tracer):
        return x
    if not np.all((low <= array) & (array < high)):
        least = f"at least {low:g} and finite" if low > -math.inf else "finite"
        within = least if high == math.inf else f"in [{low:g}, {high:g})"
        raise ValueError(f"{name} must be {within}, got {x!r}")
    return x


def positive(name: str, x: Any) -> Any:
    """A finite number above 0, or a traced one."""
    if is_zero(number(name, x)):
        raise ValueError(f"{name} must be positive, got {x!r}")
    return x


def fraction(name: str, x: Any) -> Any:
    """A number in [0, 1), or a traced one."""
    return number(name, x, high=1.0)


def is_zero(x: Any) -> bool:
    """Whether a number is known to be 0, which a traced one is not."""
    return not isinstance(x, Tracer) and x == 0


def real(name: str, x: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A number in [low, high) that is not traced, as a Python float."""
    if isinstance(x, Tracer):
        raise TypeError(f"{name} must be a number that is known before the fit is traced, got {x!r}")
    return float(number(name, x, low, high))


def whole(name: str, x: Any, least: int = 1) -> int:
    """An integer of at least `least`."""
    try:
        integer = operator.index(x)
    except TypeError:
        integer = None
    if integer is None or isinstance(x, bool):
        raise TypeError(f"{name} must be an integer, got {x!r}")
    if integer < least:
        expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {expected}, got {x!r}")
    return integer


def each(name: str, xs: Any, check: Check, of: str) -> list[Any]:
    """A list, a tuple or an array, each entry of which passes a check; as a list."""
    if not isinstance(xs, list | tuple) and getattr(xs, "ndim", 0) != 1:
        raise TypeError(f"{name} must be a list of {of}, got {xs!r}")
    return [check(f"{name}[{i}]", x) for i, x in enumerate(xs)]


def increasing(name: str, steps: Any) -> list[int]:
    """Integers of at least 0, each above the one before."""
    integers = each(name, steps, functools.partial(whole, least=0), "integers")
    if integers != sorted({*integers}):
        raise ValueError(f"{name} must increase, got {steps!r}")
    return integers


def two(name: str, pair: Any) -> tuple[Any, Any]:
    """A pair of what remains to be checked."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {pair!r}")
    return pair[0], pair[1]


def two_fractions(name: str, pair: Any) -> tuple[float, float]:
    """A pair of numbers in [0, 1), or of traced ones."""
    first, second = two(name, pair)
    return fraction(f"{name}[0]", first), fraction(f"{name}[1]", second)


def one_of(name: str, x: T, choices: Iterable[T]) -> T:
    """One of some strings."""
    if not isinstance(x, str):
        raise TypeError(f"{name} must be a string, got {x!r}")
    if x not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {x!r}")
    return x


def function(name: str, x: T, of: str) -> T:
    """A function, and no class."""
    if not callable(x) or isinstance(x, type):
        raise TypeError(f"{name} must be a function of {of}, got {x!r}")
    return x


def path(name: str, x: Any) -> Path:
    """A string or a path, as a path."""
    if not isinstance(x, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {x!r}")
    return Path(x)


def checked(checks: Mapping[str, Check]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function check the arguments that it is given; `checks` go by names, several in a string."""
    check_of = {name: check for names, check in checks.items() for name in names.split()}

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name, x in signature.bind(*args, **kwargs).arguments.items():
                if name in check_of and x is not signature.parameters[name].default:
                    check_of[name](name, x)
            return function(*args, **kwargs)

        return call

    return decorate
