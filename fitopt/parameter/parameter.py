"""`Parameter`: a named array that a fit may change."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array

from ..transforms import Transform
from .array_face import ArrayFace
from .specification import (
    Spec,
    called,
    check_range,
    check_spec,
    check_value,
    constant,
    mask_of,
    plain,
    text,
)

ARGUMENTS = ("name", "value", "free", "lower", "upper", "scale", "mask", "transform")


class Parameter(ArrayFace):
    """A named number or array that a fit may change; in a pytree it stands for its value.

    It behaves as the array of its value everywhere: in arithmetic, comparisons, indexing and in
    every `jax.numpy` function; functions of `jax.lax` want `p.value` itself. The value is its only
    pytree leaf; all else is static.

    **Arguments:**

    - `name`: what errors, tables and plots call it; by default after its place in the state, such as
        `rate` or `layers/0/bias`: `Parameter(1.0, lower=0)`.
    - `value`: a real or complex number or array, of any shape; integers become floats.
    - `free`: whether it is fitted.
    - `lower`, `upper`: bounds that the value keeps throughout the fit: a number, or an array that
        broadcasts to the value's shape (infinite entries bound nothing). A fit that starts on a
        bound starts just inside, but with `LBFGSB`, which starts there. What moves an unconstrained
        value, as adam does, leaves a start very near a bound slowly: without a `scale`, a step of 0.05
        changes the distance by 5 %. Start on the bound or further inside, or take `LBFGSB`.
    - `scale`: the typical size of a change of the value, a number or an array; the optimizer moves
        `value / scale`, or with bounds a number that far from them changes like it.
    - `mask`: booleans that broadcast to the value's shape; entries that are `False` stay as they are.
    - `transform`: a bijection of `fitopt.transforms` for what the others cannot say. It gives
        `value / scale`; bounds and masks go with transforms that act entry by entry.

    **Raises:** `TypeError` or `ValueError`, with the parameter's name, for what is not of its kind or
    does not fit together; so for a value that is not finite or outside its bounds, in any entry that
    the mask does not fix.

    >>> from fitopt import Parameter
    >>> rate = Parameter("rate", 0.52, lower=0)
    >>> rate
    Parameter('rate', 0.52, lower=0)
    >>> 2 * rate + 1
    Array(2.04, dtype=float32)
    >>> f"{rate:.1f}"
    '0.5'
    """

    value: Array
    spec: Spec = eqx.field(static=True)

    if TYPE_CHECKING:  # what a type checker has to know of the two ways to call it

        @overload
        def __init__(
            self,
            name: str,
            value: ArrayLike,
            free: bool = True,
            *,
            lower: ArrayLike | None = None,
            upper: ArrayLike | None = None,
            scale: ArrayLike | None = None,
            mask: ArrayLike | None = None,
            transform: Transform | None = None,
        ): ...

        @overload
        def __init__(
            self,
            value: ArrayLike,
            /,
            *,
            free: bool = True,
            lower: ArrayLike | None = None,
            upper: ArrayLike | None = None,
            scale: ArrayLike | None = None,
            mask: ArrayLike | None = None,
            transform: Transform | None = None,
        ): ...

    def __init__(
        self,
        name: Any = None,
        value: Any = None,
        free: bool = True,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        transform: Transform | None = None,
        **unknown: Any,
    ):
        if value is None and not isinstance(name, str):
            name, value = None, name
        if not isinstance(name, str | None):
            raise TypeError(f"Parameter: name must be a string, got {name!r}")
        who = called(name)
        if unknown:
            raise TypeError(f"{who}: {_unknown_argument(next(iter(unknown)))}")
        if value is None:
            raise TypeError(
                f"{who}: the value is missing; call Parameter(name, value) or Parameter(value)"
            )
        if not isinstance(free, bool | np.bool_):
            raise TypeError(f"{who}: free must be True or False, got {free!r}")
        self.value = _as_inexact(who, value)
        shape = self.value.shape
        self.spec = Spec(
            name,
            bool(free),
            constant(who, "lower", lower, shape),
            constant(who, "upper", upper, shape),
            constant(who, "scale", scale, shape),
            mask_of(who, mask, shape),
            transform,
        )
        check_spec(self.spec, self.value.dtype)
        if not isinstance(self.value, Tracer):
            check_value(who, self.spec, self.value)
            if transform is not None:
                check_range(self.spec, self.value)

    @property
    def name(self) -> str | None:
        """What errors, tables and plots call it; None if they call it after its place in the state."""
        return self.spec.name

    @property
    def free(self) -> bool:
        """Whether it is fitted."""
        return self.spec.free

    @property
    def lower(self) -> Any:
        """The lower bound: a number, an array, or None."""
        return plain(self.spec.lower)

    @property
    def upper(self) -> Any:
        """The upper bound: a number, an array, or None."""
        return plain(self.spec.upper)

    @property
    def scale(self) -> Any:
        """The typical size of a change of the value: a number, an array, or None."""
        return plain(self.spec.scale)

    @property
    def mask(self) -> Any:
        """Where entries are fitted: booleans in the shape of the value, or None."""
        return plain(self.spec.mask)

    @property
    def transform(self) -> Transform | None:
        """The bijection that was given, or None."""
        return self.spec.transform

    def replace(self, **changes: Any) -> "Parameter":
        """A copy with some arguments changed; all are checked again.

        A Python number as the new value takes the old one's dtype.

        **Raises:** what `Parameter` raises.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0, lower=0).replace(value=2.0)
        Parameter('k', 2.0, lower=0)
        """
        value = changes.get("value")
        if type(value) in (int, float, complex) or getattr(value, "weak_type", False):
            dtype = jnp.result_type(self.value, value)
            changes["value"] = jnp.asarray(value, dtype)
        return Parameter(**({name: getattr(self, name) for name in ARGUMENTS} | changes))

    def fix(self) -> "Parameter":
        """A copy that fits leave as it is.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0).fix()
        Parameter('k', 1.0, free=False)
        """
        return with_value(dataclasses.replace(self.spec, free=False), self.value)

    def release(self) -> "Parameter":
        """A copy that is fitted.

        >>> from fitopt import Parameter
        >>> Parameter("k", 1.0, free=False).release()
        Parameter('k', 1.0)
        """
        return with_value(dataclasses.replace(self.spec, free=True), self.value)

    def __repr__(self) -> str:
        parts = [] if self.name is None else [repr(self.name)]
        parts += [text(self.value)]
        parts += self.spec.settings()
        return f"Parameter({', '.join(parts)})"

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except dataclasses.FrozenInstanceError:
            change = f"{name}=..." if name in ARGUMENTS else "value=..."
            raise AttributeError(
                f"{called(self.name)} cannot be changed; make another with p.replace({change})"
            ) from None

    def __pdoc__(self, **_: Any) -> Any:
        """How it looks within the repr of an Equinox module."""
        return wadler_lindig.TextDoc(repr(self))


def with_value(spec: Spec, value: Any) -> Parameter:
    """A Parameter without any check: for values that a fit has computed."""
    parameter = object.__new__(Parameter)
    object.__setattr__(parameter, "value", value)
    object.__setattr__(parameter, "spec", spec)
    return parameter


def _unknown_argument(name: str) -> str:
    """What to say of an argument that there is not, such as another library's word for one."""
    ours = {"min": "lower", "max": "upper", "bounds": "lower and upper", "vary": "free", "fixed": "free"}
    hint = f"; use {ours[name]}" if name in ours else ""
    return f"there is no argument {name!r}{hint}; it has {', '.join(ARGUMENTS)}"


def _as_inexact(who: str, value: Any) -> Array:
    """The value as an array of floats or complex numbers that shares no memory with the user's."""
    value = value.value if isinstance(value, Parameter) else value
    known = not any(isinstance(x, Tracer) for x in jax.tree.leaves(value))
    # What is known is kept known under jit, so that it can be checked there as well.
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        try:
            if known and not isinstance(value, jax.Array | float | complex):
                value = np.asarray(value)
                if value.dtype.kind in "iu":
                    value = value.astype(float)  # JAX would cut them to 32 bits first
                array = jnp.array(value)
            else:
                array = jnp.asarray(value)
            if not jnp.issubdtype(array.dtype, jnp.number):
                raise TypeError(f"not numbers but {array.dtype}")
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"{who}: the value must be a number or an array of numbers, got {value!r}"
            ) from error
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        # With astype, a Python number's weak type becomes a dtype of its own.
        return array.astype(array.dtype if inexact else jnp.result_type(float))
