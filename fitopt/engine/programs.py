"""The compiled methods of a `Loop`."""

import functools
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jaxtyping import Array

from ..callback import own_methods
from ..methods.method import Constants
from . import snapshot
from .compiled import Carry, Loop
from .snapshot import Snapshot


class Programs:
    """The compiled methods of one `Loop`."""

    def __init__(self, loop: Loop):
        self.loop = loop
        # Looking up a method of an Equinox module takes longer than calling it: once is enough.
        self.choosing = loop.problem.choosing
        self.finishes: Any = own_methods(loop.problem.callbacks, "finish")
        self.pace: dict[Any, tuple[float, float]] = {}  # by the shapes of the arrays
        self.averages: bool | None = None  # not known before the first start
        self.start: Any = jax.jit(loop.start)
        self.advance: Any = jax.jit(loop.advance)
        self.move: Any = jax.jit(loop.move)
        self.set_learning_rate: Any = jax.jit(loop.set_learning_rate)
        self.settle: Any = jax.jit(loop.settle)
        self.packed: Any = jax.jit(loop.packed)
        self.learning_rate: Any = jax.jit(loop.learning_rate)
        self.falls_inside: Any = jax.jit(loop.falls_inside)
        self.gradients_finite: Any = jax.jit(loop.gradients_finite)
        self._values: Any = jax.jit(loop.values)
        self._plain: Any = jax.jit(loop.plain)
        self._known_values: WeakKeyDictionary[Snapshot, list[Array]] = WeakKeyDictionary()

    def best_steps(self, carry: Snapshot) -> list[int]:
        """The best step of each callback that chooses one."""
        callbacks, carries = self.loop.problem.callbacks, snapshot.look_into(carry).callbacks
        return [int(callbacks[i].best_step(carries[i])) for i in self.choosing]

    @functools.cached_property
    def _places(self) -> list[Array]:
        return [jax.device_put(np.int32(i)) for i in range(len(self.loop.layout.specs))]

    def values(self, carry: Snapshot, constants: Constants) -> list[Array]:
        """The values of the free Parameters where a carry stands."""
        values = self._known_values.get(carry)
        if values is None:
            values = self._values(carry, constants._replace(places=self._places))
            self._known_values[carry] = values
        return values

    def plain(self, carry: Snapshot, constants: Constants) -> Carry:
        """A carry as users know it."""
        return self._plain(carry, constants._replace(places=self._places))
