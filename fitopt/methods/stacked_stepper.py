"""An optax optimizer at work on stacks of leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..callback import StepInfo
from ..state import PyTree
from .leafwise import Leafwise, Packed
from .method import Stepper


class StackedStepper(Stepper):
    """Makes the steps of an `OptaxStepper`, but for rounding; its carry holds fewer arrays."""

    def __init__(
        self,
        stepper: Stepper,
        value_and_gradient: Callable[[PyTree], tuple[tuple[Array, Any], PyTree]],
        leafwise: Leafwise,
        places: Sequence[Array],
    ):
        self._stepper = stepper
        self._value_and_gradient = value_and_gradient
        self._leafwise = leafwise
        self._places = places

    def packed(self, carry: PyTree) -> Packed:
        return self._leafwise.pack(*carry)

    def plain(self, carry: Packed) -> PyTree:
        return self.position(carry), self._leafwise.state(carry, self._places)

    def arrays(self, carry: Packed) -> list[Array]:
        return [leaves for leaves, _ in carry.stacks]

    def evaluate(self, position: PyTree) -> tuple[Array, Any]:
        return self._stepper.evaluate(position)

    def init(self, position: PyTree) -> Packed:
        return self.packed(self._stepper.init(position))

    def step(self, carry: Packed) -> tuple[Packed, StepInfo]:
        position = self.position(carry)
        (loss, aux), grads = self._value_and_gradient(position)
        updates, after = self._leafwise.update(grads, carry)
        new: Any = optax.apply_updates(self.arrays(carry), updates)
        stacks = [(leaves, state) for leaves, (_, state) in zip(new, after.stacks, strict=True)]
        info = StepInfo(jnp.zeros((), jnp.int32), loss, aux, position, grads)
        return Packed(after.shared, stacks), info

    def position(self, carry: Packed) -> PyTree:
        return self._leafwise.position(carry, self._places)

    def move(self, carry: Packed, position: PyTree) -> Packed:
        return self.packed(self._stepper.move(self.plain(carry), position))

    def learning_rate(self, carry: Packed) -> PyTree:
        return self._stepper.learning_rate(self.plain(carry))

    def set_learning_rate(self, carry: Packed, rate: PyTree) -> Packed:
        return self.packed(self._stepper.set_learning_rate(self.plain(carry), rate))

    def result(self, carry: Packed) -> PyTree | None:
        return self._stepper.result(self.plain(carry))
