"""The interface between the loop and what makes a step: an optimizer, a minimiser, a solver."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Int

from ..callback import StepInfo
from ..state import ParameterVector, PyTree


class Constants(NamedTuple):
    """What stays the same during the steps of a chunk."""

    start: list[Array]  # values of the free Parameters when the fit began: masks keep entries of these
    fixed: list[Any]  # arrays and numbers in the state that are not fitted
    batches: PyTree = None  # a pytree of sources, where the loss gets batches
    callbacks: PyTree = None  # arrays that callbacks hold, in their structure
    # The numbers 0, 1, ..., where a program takes stacks apart: XLA's CPU compiler then makes one kernel
    # for all of their entries, where it would make one for each if these numbers were in the program.
    places: Sequence[Array] = ()


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, as a function of the position that a method moves.

    A position is a pytree in the structure of the state, with an array for each free Parameter and None
    elsewhere: its unconstrained value, or, for a method that keeps bounds itself, its value in units of
    its scale. `evaluate` gives the loss or the residuals, and aux, of a state with plain values, and of
    the step's batch where there are batches.
    """

    evaluate: Callable[..., tuple[Any, Any]]
    vector: ParameterVector
    constants: Constants
    mode: str | None
    batch: tuple[PyTree, ...] = ()  # the one of this step, or none

    def __call__(self, position: PyTree) -> tuple[Any, Any]:
        """Loss or residuals, and aux."""
        return self.evaluate(self.state(position), *self.batch)

    def state(self, position: PyTree) -> Any:
        """The state with plain values, as a loss gets it."""
        return self.vector.layout.plain(self.values(position), self.constants.fixed)

    def values(self, position: PyTree) -> list[Array]:
        """The values of the free Parameters at a position."""
        return self.vector.to_values(jax.tree.leaves(position), self.constants.start)

    def position(self, values: Sequence[Array]) -> PyTree:
        """The position at which Parameters have these values."""
        return self.tree(self.vector.to_position(values))

    def tree(self, leaves: Sequence[Any]) -> PyTree:
        """One leaf for each free Parameter, in the structure of a position."""
        return self.vector.layout.free_tree(leaves)

    @functools.cached_property
    def names(self) -> PyTree:
        """The names of the Parameters, in the structure of a position."""
        return self.tree(self.vector.names)


class TracedOnce:
    """An objective whose Python code runs once, however often it is called with the same shapes."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self._traced: Any = None

    def _trace(self, position: PyTree) -> Any:
        if self._traced is None:
            jaxpr, shapes = jax.make_jaxpr(self.objective, return_shape=True)(position)
            self._traced = jaxpr_as_fun(jaxpr), shapes
        return self._traced

    def __call__(self, position: PyTree) -> tuple[Any, Any]:
        function, shapes = self._trace(position)
        outputs = function(*jax.tree.leaves(position))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    def shapes(self, position: PyTree) -> tuple[Any, Any]:
        """The shapes and dtypes of what it returns."""
        return self._trace(position)[1]


class StopReason(NamedTuple):
    """Why a fit has ended."""

    sentence: str
    converged: bool = False
    is_final: bool = False  # whether the fit is complete, so that nothing is left to resume


class Stepper(abc.ABC):
    """A method that is bound to an objective; all of it is traced."""

    @abc.abstractmethod
    def evaluate(self, position: PyTree) -> tuple[Array, Any]:
        """Loss and aux at a position."""

    @abc.abstractmethod
    def init(self, position: PyTree) -> PyTree:
        """The carry before the first step."""

    @abc.abstractmethod
    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        """Make one step.

        The info's `params` are the position at which its loss was taken; its `step` is the loop's to
        fill.
        """

    @abc.abstractmethod
    def position(self, carry: PyTree) -> PyTree:
        """Where the carry stands."""

    def arrays(self, carry: PyTree) -> list[Array]:
        """What has to be finite for the position to be."""
        return jax.tree.leaves(self.position(carry))

    def plain(self, carry: PyTree) -> PyTree:
        """The carry as users know it, with the optimizer's state as that has made it."""
        return carry

    def packed(self, carry: PyTree) -> PyTree:
        """What `plain` was made of."""
        return carry

    @abc.abstractmethod
    def move(self, carry: PyTree, position: PyTree) -> PyTree:
        """The carry after a callback has changed the position, or what the loss depends on."""

    def stop_code(self, carry: PyTree) -> Int[Array, ""] | None:
        """0 to go on, else which of the method's stop reasons holds, from 1; None if there are none."""
        return None

    def learning_rate(self, carry: PyTree) -> PyTree:
        """The learning rate of the last update, where there is such a thing and it is known."""
        return None

    def set_learning_rate(self, carry: PyTree, rate: PyTree) -> PyTree:
        """The carry with another learning rate for the updates to come; ValueError if it has none."""
        raise ValueError("this method has no learning rate")

    def result(self, carry: PyTree) -> PyTree | None:
        """Another position than `position(carry)` to hand to the user, such as an average."""
        return None


class Method(abc.ABC):
    """What makes a step, and all that a fit has to know of it."""

    loss_after_update = False  # whether a step's loss is that after its update
    keeps_bounds = False  # whether it is handed bounds, and positions within them

    @abc.abstractmethod
    def bind(self, objective: Objective) -> Stepper:
        """The method, ready to minimise an objective."""

    def bind_stacked(self, objective: Objective) -> Stepper:
        """Likewise; the carry may hold many small arrays as a few larger ones."""
        return self.bind(objective)

    def stop_reasons(self, values: Sequence[Array]) -> tuple[StopReason, ...]:
        """Why it may end a fit of such values by itself, in the order of its stop codes."""
        return ()
