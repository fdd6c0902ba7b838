"""`Derived`: a named number or array that follows from the rest of a state."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import wadler_lindig
from jaxtyping import Array

from .array_face import ArrayFace


class Derived(ArrayFace):
    """A named number or array that is computed from the rest of the state, and not fitted.

    The loss sees the array that `fn` gives. It stays in the state that `run` returns; `fitopt.values`
    computes it, and a report shows it with its error.

    **Arguments:**

    - `name`: what errors, tables and plots call it.
    - `fn`: a function of the state, which it gets with plain arrays in place of Parameters and of other
        Derived. Define it once: with another function, also one that does the same, fits are compiled
        anew.

    **Raises:** `TypeError` for arguments of the wrong kind, and for any use of it as an array: only a
    state tells its value. `ValueError`, where a state is used, if some refer to each other in a circle.

    >>> from fitopt import Derived, Parameter, values
    >>> width2 = Derived("width2", lambda state: 1.5 * state["width1"])
    >>> state = {"width1": Parameter("width1", 2.0), "width2": width2}
    >>> values(state)["width2"].item()
    3.0
    """

    name: str = eqx.field(static=True)
    fn: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(self, name: str, fn: Callable[[Any], Any]):
        if not isinstance(name, str):
            raise TypeError(f"Derived: name must be a string, got {name!r}")
        if not callable(fn):
            raise TypeError(f"Derived {name!r}: fn must be a function of the state, got {fn!r}")
        try:
            hash(fn)
        except TypeError as error:
            raise TypeError(
                f"Derived {name!r}: fn must be hashable, as functions are, got {fn!r}; what it needs "
                "can be in the state"
            ) from error
        self.name, self.fn = name, fn

    @property
    def value(self) -> Array:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise NotComputed(self)

    def computed(self, state: Any) -> Array:
        """Its value in a state of plain arrays."""
        output = self.fn(state)
        try:
            return jnp.asarray(output)
        except NotComputed:
            raise
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"Derived {self.name!r}: fn must return a number or an array, got {output!r}"
            ) from error

    def __hash__(self) -> int:
        return hash((self.name, self.fn))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Derived) and (self.name, self.fn) == (other.name, other.fn)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return f"Derived({self.name!r}, {getattr(self.fn, '__name__', repr(self.fn))})"

    def __pdoc__(self, **_: Any) -> Any:
        """How it looks within the repr of an Equinox module."""
        return wadler_lindig.TextDoc(repr(self))


class NotComputed(TypeError):
    """A Derived was used as an array without the state that tells its value."""

    def __init__(self, derived: Derived):
        super().__init__(
            f"Derived {derived.name!r} has no value by itself: fitopt.values(state) computes it from "
            "the state that it is in"
        )
        self.derived = derived


def compute(leaves: Sequence[Any], state_of: Callable[[Sequence[Any]], Any]) -> list[Any]:
    """The leaves of a state with arrays in place of each Derived; `state_of` makes a state of leaves.

    **Raises:** `ValueError` if some refer to each other in a circle.
    """
    leaves = [*leaves]
    left = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Derived)]
    while left:
        # One that needs another which is not computed yet has to wait for the next round.
        errors: dict[int, Exception] = {}
        for i in left:
            try:
                leaves[i] = leaves[i].computed(state_of(leaves))
            except Exception as error:  # functions of JAX refuse what is not computed in their own way
                errors[i] = error
        if len(errors) == len(left):
            raise _failure({leaves[i]: error for i, error in errors.items()})
        left = [*errors]
    return leaves


def _failure(errors: dict[Derived, Exception]) -> Exception:
    """Why none can be computed: the error of a function, or a circle."""
    derived = next(iter(errors))
    path = [derived]
    while isinstance(error := errors.get(derived), NotComputed):
        derived = error.derived
        if derived in path:
            circle = " -> ".join(repr(one.name) for one in [*path[path.index(derived) :], derived])
            return ValueError(f"Derived {derived.name!r} refers to itself in a circle: {circle}")
        path.append(derived)
    return errors[derived] if derived in errors else next(iter(errors.values()))
