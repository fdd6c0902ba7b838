"""`Source`: where the batches of a fit come from, one for each step."""

import abc

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int

from ..state import PyTree


class Source(eqx.Module):
    """What gives the batch of any step, inside the compiled loop: a function of the step's number alone.

    So a fit that goes on from a checkpoint, or makes steps again, gets the batches that it would have
    got. Arrays in its fields are handed to the program; they are not part of it.
    """

    @abc.abstractmethod
    def draw(self, step: Int[Array, ""]) -> PyTree:
        """The batch of a step; traced."""

    def epochs(self, first: int, steps: int) -> Int[np.ndarray, " steps"] | None:
        """In which pass through the data steps begin, from number `first` on; None if there are none."""
        return None
