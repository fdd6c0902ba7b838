"""The seam for methods: what the loop needs to know of an optimizer."""

import abc
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Int, PyTree

from ..callback import StepInfo

Objective = Callable[[PyTree], tuple[Any, Any]]  # coordinates -> (loss or residuals, aux)

Values = Callable[[PyTree], PyTree] | None  # coordinates -> values; None if they differ by scales alone

# Of the objective, the mode of differentiation, the Parameters' names in the structure of the
# coordinates, and what turns coordinates into values.
MakeStepper = Callable[[Objective, str | None, PyTree, Values], "Stepper"]


class Stepper(abc.ABC):
    """A method of minimisation, one step at a time; all of it is traced."""

    @abc.abstractmethod
    def evaluate(self, coordinates: PyTree) -> tuple[Array, Any]:
        """Loss and aux at some coordinates."""

    @abc.abstractmethod
    def init(self, coordinates: PyTree) -> PyTree:
        """The carry before the first step."""

    @abc.abstractmethod
    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        """Make one step.

        The info's `params` are the coordinates at which its loss was taken; its `step` is the loop's
        to fill.
        """

    @abc.abstractmethod
    def coordinates(self, carry: PyTree) -> PyTree:
        """Where the carry stands."""

    @abc.abstractmethod
    def move(self, carry: PyTree, coordinates: PyTree) -> PyTree:
        """The carry after a callback has changed the coordinates, or what the loss depends on."""

    def ended(self, carry: PyTree) -> Int[Array, ""] | int:
        """0 while there is more to do, else which of the problem's `endings` it has come to, from 1."""
        return 0

    def learning_rate(self, carry: PyTree) -> PyTree:
        """The learning rate of the last update, where there is such a thing and it is known."""
        return None

    def set_learning_rate(self, carry: PyTree, rate: PyTree) -> PyTree:
        """The carry with another learning rate for the updates to come; ValueError if it has none."""
        raise ValueError("this method has no learning rate")

    def result(self, carry: PyTree) -> PyTree | None:
        """Other coordinates than `coordinates(carry)` to hand to the user, such as an average."""
        return None
