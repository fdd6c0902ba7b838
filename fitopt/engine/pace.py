"""How long chunks should be."""

from collections.abc import Sequence
from typing import Any

from ..callback import HostCallback
from .records import MOST_STEPS

CHUNK_SECONDS = 0.1  # Ctrl-C, progress bars and time limits wait for no longer than about this,
_MOST = 4  # times as long, where beginning a chunk takes so long that short ones would be a waste
_SHARE = 0.05  # that beginning a chunk may have of its time


class Pace:
    """Seconds to begin a chunk and seconds a step, and the length of chunks that follows from both.

    `known` keeps them from fit to fit, by `key`: the shapes of all arrays.
    """

    def __init__(self, known: dict[Any, tuple[float, float]], key: Any):
        self._known = known
        self._key = key
        self._overhead, self.seconds = known.get(key, (0.0, 0.0))  # a chunk, a step
        self._last: tuple[int, float] | None = None  # steps and seconds of the last chunk

    def first(self) -> int:
        """How many steps the first chunk should have."""
        # Slower data of the same shape must not make it long: begin with a part.
        return max(1, self._fitting() // 2) if self.seconds else 1

    def next(self, limit: int) -> int:
        """How many the next one should have, after one of at most `limit`."""
        return max(1, min(self._fitting(), 32 * limit))

    def _fitting(self) -> int:
        seconds = min(max(CHUNK_SECONDS, self._overhead / _SHARE), _MOST * CHUNK_SECONDS)
        return min(int((seconds - self._overhead) / self.seconds), MOST_STEPS)

    def note(self, limit: int, steps: int, seconds: float, began_early: bool) -> None:
        """Learn from a chunk of at most `limit` steps."""
        if began_early:  # before Python waited: it took at least so long
            self.seconds = max(self.seconds, seconds / max(steps, 1))
            return
        self._overhead, self.seconds = self._parts(max(steps, 1), seconds)
        self._last = steps, seconds
        if steps > limit // 2:
            self._known[self._key] = self._overhead, self.seconds

    def _parts(self, steps: int, seconds: float) -> tuple[float, float]:
        """Seconds to begin a chunk, and seconds a step."""
        pace = seconds / steps
        if seconds < CHUNK_SECONDS / 2:  # it hardly matters
            return 0.0, pace
        if self._last is not None and self._last[0] != steps:  # the line through the last two chunks
            slope = (seconds - self._last[1]) / (steps - self._last[0])
            if pace / 50 < slope < pace:
                return seconds - slope * steps, slope
        if self._overhead:
            factor = seconds / (self._overhead + self.seconds * steps)
            return factor * self._overhead, factor * self.seconds
        # A chunk of more steps will tell, and does not take much longer.
        return (seconds / 2, pace / 4) if steps == 1 and seconds < _MOST * CHUNK_SECONDS else (0.0, pace)


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
