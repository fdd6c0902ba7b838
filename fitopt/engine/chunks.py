"""How long stretches should be."""

from .compiled import MOST_STEPS

STRETCH_SECONDS = 0.1  # Ctrl-C, progress bars and time limits wait for no longer than about this


class Pace:
    """Seconds a step, and the length of stretches that follows from it.

    `known` keeps the pace from fit to fit, by `key`: the shapes of all arrays.
    """

    def __init__(self, known: dict[tuple, float], key: tuple):
        self.known = known
        self.key = key
        self.seconds = 0.0  # a step

    def first(self) -> int:
        """How many steps the first stretch should have."""
        # Slower data of the same shape must not make it long: begin with a part.
        pace = self.known.get(self.key)
        return 1 if pace is None else max(1, min(int(STRETCH_SECONDS / pace / 2), MOST_STEPS))

    def next(self, limit: int) -> int:
        """How many the next one should have, after one of at most `limit`."""
        return max(1, min(int(STRETCH_SECONDS / self.seconds), 32 * limit, MOST_STEPS))

    def note(self, limit: int, steps: int, seconds: float, began_early: bool) -> None:
        """Learn from a stretch of at most `limit` steps."""
        pace = seconds / max(steps, 1)
        if began_early:  # before Python waited: it took at least so long
            self.seconds = max(self.seconds, pace)
            return
        self.seconds = pace
        if steps > limit // 2:
            self.known[self.key] = pace
