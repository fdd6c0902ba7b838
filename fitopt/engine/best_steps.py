"""Where to find the states of the steps that callbacks have chosen."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from .points import Point


class BestSteps:
    """The states of the steps that callbacks have chosen.

    They are not copied: the chunk in which such a step was made is made again, when they are needed.
    """

    def __init__(self, known: dict[int, Point | list[Array]] | None = None):
        self._known = known or {}  # by callback: the point before the step, or its values

    def copy(self, is_last: bool) -> "BestSteps":
        """The same; `is_last` says that the fit has ended, so that users may change their arrays."""
        return BestSteps({i: _frozen(x) if is_last else x for i, x in self._known.items()})

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


def _frozen(source: Point | list[Array]) -> Point | list[Array]:
    """The same, with copies of NumPy's arrays, which belong to the user."""
    if not isinstance(source, Point):
        return source
    fixed = [x.copy() if isinstance(x, np.ndarray) else x for x in source.constants.fixed]
    return source._replace(constants=source.constants._replace(fixed=fixed))
