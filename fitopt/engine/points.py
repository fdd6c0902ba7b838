"""Where a fit stands between chunks, and what each of these has brought."""

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


class Advance(NamedTuple):
    """What a chunk has brought."""

    steps: int  # good ones
    losses: np.ndarray  # of these; entries after them are undefined
    records: tuple[dict[str, PyTree] | None, ...]  # likewise, of each traced callback
    stopper: int | None  # which traced callback ended it, or, counted on, which of the method's reasons
    fault: str | None = None  # what went wrong at the step after them
    is_lost: bool = False  # whether it went wrong at once after a resume: no good point is known


class End(NamedTuple):
    """Where a fit has ended."""

    values: list[Array]
    loss: float
    callbacks: tuple[PyTree, ...]  # the carries of traced callbacks, which have seen this loss
    fault: str | None  # what went wrong in the evaluation of an earlier end
