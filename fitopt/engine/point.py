"""Points at which a fit stands between two chunks, and the way from there to the steps in between."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from ..methods.method import Constants
from ..state import Layout, PyTree
from .compiled import Chunk
from .programs import Programs
from .snapshot import Snapshot


class Point(NamedTuple):
    """Where a fit stands after some good steps: all that going on from there, or back to it, takes."""

    steps: int
    carry: Snapshot | None  # None before the first step
    programs: Programs
    constants: Constants
    last: dict[str, PyTree]  # of the last step's info what host callbacks use
    given: list[Array] | None = None  # values that a callback has changed after the last step

    @property
    def values(self) -> list[Array]:
        """The values of the free Parameters."""
        if self.given is not None:
            return self.given
        assert self.carry is not None
        return self.programs.values(self.carry, self.constants)

    @property
    def edited(self) -> bool:
        """Whether a callback has changed the state after the last step."""
        return self.given is not None and self.carry is not None

    @property
    def layout(self) -> Layout:
        return self.programs.loop.layout

    @property
    def fixed_state(self) -> PyTree:
        """The state with None in place of the free Parameters."""
        return self.layout.fixed_state(self.constants.fixed)

    def again(self, until: int) -> Chunk:
        """Make the steps from here on again, to the last bit, up to a number of the fit."""
        carry = self.carry
        if carry is None:
            carry, _ = self.programs.start(self.constants)
        span = np.array([self.steps, until - self.steps], np.int32)
        return self.programs.advance(carry, self.constants, span)


class BestSteps:
    """Where to find the states of the steps that callbacks have chosen.

    They are not copied: the chunk in which such a step was made is made again, when they are needed.
    """

    def __init__(self, known: dict[int, Point | list[Array]] | None = None):
        self._known = known or {}  # by callback: the point before the step, or its values

    def copy(self) -> "BestSteps":
        return BestSteps({**self._known})

    def know(self, callback: int, values: list[Array]) -> None:
        """Keep the values of a step whose point is gone."""
        self._known[callback] = values

    def note(self, point: Point, best: Sequence[int]) -> None:
        """Keep the point from which steps were made, if a best one is among them."""
        for callback, step in zip(point.programs.choosing, best, strict=True):
            if step >= point.steps:
                self._known[callback] = point

    def values(self, callback: int, step: int) -> list[Array] | None:
        """The values at which the loss of a best step was taken.

        None if no point before it is known: there has been no such step, or a fault has thrown the fit
        back to the step after it, which had a lower loss.
        """
        source = self._known.get(callback)
        if not isinstance(source, Point):
            return source
        if step < source.steps:
            return None
        after_update = source.programs.loop.problem.method.loss_after_update
        if step == source.steps and not after_update:
            return source.values
        return source.programs.values(source.again(step + after_update).carry, source.constants)
