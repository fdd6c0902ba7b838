"""How long chunks should be."""

from collections.abc import Sequence
from typing import Any

from ..callback import HostCallback
from .records import MOST_STEPS

CHUNK_SECONDS = 0.1  # Ctrl-C, progress bars and time limits wait for no longer than about this


class Pace:
    """Seconds a step, and the length of chunks that follows from it.

    `known` keeps the pace from fit to fit, by `key`: the shapes of all arrays.
    """

    def __init__(self, known: dict[Any, float], key: Any):
        self._known = known
        self._key = key
        self.seconds: float = 0.0  # a step

    def first(self) -> int:
        """How many steps the first chunk should have."""
        # Slower data of the same shape must not make it long: begin with a part.
        pace = self._known.get(self._key)
        return 1 if pace is None else max(1, min(int(CHUNK_SECONDS / pace / 2), MOST_STEPS))

    def next(self, limit: int) -> int:
        """How many the next one should have, after one of at most `limit`."""
        return max(1, min(int(CHUNK_SECONDS / self.seconds), 32 * limit, MOST_STEPS))

    def note(self, limit: int, steps: int, seconds: float, began_early: bool) -> None:
        """Learn from a chunk of at most `limit` steps."""
        pace = seconds / max(steps, 1)
        if began_early:  # before Python waited: it took at least so long
            self.seconds = max(self.seconds, pace)
            return
        self.seconds = pace
        if steps > limit // 2:
            self._known[self._key] = pace


class Rhythm:
    """When Python has to look at a fit."""

    def __init__(self, callbacks: Sequence[HostCallback], max_steps: int):
        self.max_steps = max_steps
        self._due = [callback.due for callback in callbacks]

    @property
    def is_free(self) -> bool:
        """Whether there are no host callbacks at all."""
        return not self._due

    def steps_left(self, done: int) -> int:
        """How many steps until a host callback is due, or until the last step."""
        dues = [due(done) for due in self._due]
        return min([self.max_steps, *(step + 1 for step in dues if step is not None)]) - done
