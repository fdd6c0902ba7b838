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
from .placement import Placement
from .snapshot import Snapshot


class Programs:
    """The compiled methods of one `Loop`."""

    def __init__(self, loop: Loop, placement: Placement | None = None):
        self.loop = loop
        jit = jax.jit if placement is None else placement.jit
        # Looking up a method of an Equinox module takes longer than calling it: once is enough.
        self.choosing = loop.problem.choosing
        self.finishes: Any = own_methods(loop.problem.callbacks, "finish")
        self.pace: dict[Any, tuple[float, float]] = {}  # by the shapes of the arrays
        self.averages: bool | None = None  # not known before the first start
        self.start: Any = jit(loop.start)
        self.advance: Any = jit(loop.advance)
        self.move: Any = jit(loop.move)
        self.set_learning_rate: Any = jit(loop.set_learning_rate)
        self.settle: Any = jit(loop.settle)
        self.learning_rate: Any = jit(loop.learning_rate)
        self.falls_inside: Any = jit(loop.falls_inside)
        self.gradients_finite: Any = jit(loop.gradients_finite)
        self._values: Any = jit(loop.values)
        self._plain: Any = jit(loop.plain)
        self._packed: Any = jit(loop.packed)
        self._known_values: WeakKeyDictionary[Snapshot, list[Array]] = WeakKeyDictionary()

    def best_steps(self, carry: Snapshot) -> list[int]:
        """The best step of each callback that chooses one."""
        callbacks = self.loop.problem.callbacks
        carries = snapshot.readable(snapshot.restore(carry).callbacks)
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
        if not self.loop.stacks:
            return snapshot.restore(carry)
        return self._plain(carry, constants._replace(places=self._places))

    def packed(self, plain: Carry, constants: Constants) -> Snapshot:
        """The carry that users know so."""
        return self._packed(plain, constants) if self.loop.stacks else snapshot.take(plain)
