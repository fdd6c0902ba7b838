"""A closer look at fits that went wrong, or that have ended next to a bound.

Few fits need it; so it is no part of the lanes' program, which would take twice as long to compile.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ..engine import snapshot
from ..engine.compiled import Carry, Loop
from ..methods.method import Constants
from ..state import PyTree
from .states import States


class Examination:
    """Programs that look at one fit where it has ended; compiled when they are needed."""

    def __init__(self, loop: Loop):
        self._loop = loop
        self._explained = jax.jit(self._explain)
        self._stalled = jax.jit(self._falls_inside)

    def fault(self, states: States, number: int, position: PyTree) -> tuple[float, list[bool]]:
        """The loss at a position, and for each free Parameter whether its gradient is finite."""
        loss, finite = self._explained(position, _constants(states, number))
        return float(loss), np.asarray(finite).tolist()

    def stalled(self, states: States, number: int, position: PyTree) -> Bool[np.ndarray, " elements"]:
        """Which elements a bound holds."""
        return np.asarray(self._stalled(position, _constants(states, number)))

    def _explain(self, position: PyTree, constants: Constants) -> tuple[Array, Array]:
        _, stepper = self._loop.bind(constants)
        _, info = stepper.step(stepper.init(position))
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(info.grads)]
        return info.loss, jnp.stack(finite)

    def _falls_inside(self, position: PyTree, constants: Constants) -> Array:
        _, stepper = self._loop.bind(constants)
        carry = snapshot.take(Carry(stepper.init(position), ()))
        return self._loop.falls_inside(carry, constants)


def _constants(states: States, number: int) -> Constants:
    fixed: list[Any] = list(states.template.fixed)
    for i, x in zip(states.varying, states.fixed([number]), strict=True):
        fixed[i] = jnp.asarray(x)[0]
    return Constants([jnp.asarray(x)[0] for x in states.starts([number])], fixed)
