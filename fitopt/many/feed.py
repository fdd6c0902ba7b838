"""What brings states to the devices, page by page."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from .lanes import Page, Queue
from .states import States

_PAGE = 4096  # fits at most that wait on a device
_PAGE_BYTES = 2**25  # at most


class Feed:
    """Brings the states to the devices, page by page; each device has its share of them."""

    def __init__(
        self,
        states: States,
        shares: Sequence[Int[np.ndarray, " n"]],
        width: int,
        split: jax.sharding.Sharding,
        whole: jax.sharding.Sharding,
    ):
        self._states = states
        self._shares = list(shares)
        self._split = split
        self.width = width
        self.is_closed = False
        self._rows = _page_rows(states, max(map(len, shares)), width)
        self._begun = np.zeros(len(shares), int)  # of each share, before the page
        self._next = np.zeros(len(shares), np.int32)  # of the page
        varying, fixed = states.varying, states.template.fixed
        shared = [None if i in varying else x for i, x in enumerate(fixed)]
        self.shared = jax.device_put(shared, whole)
        self.page = self._load()
        self.shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves((self.page, self.shared)))

    def _load(self) -> Page:
        parts = []
        for share, begun in zip(self._shares, self._begun, strict=True):
            rows = share[begun : begun + self._rows]
            parts.append(np.resize(rows if rows.size else self._shares[0][:1], self._rows))
        numbers = np.concatenate(parts)
        page = Page(numbers.astype(np.int32), self._states.starts(numbers), self._states.fixed(numbers))
        return jax.device_put(page, self._split)

    @property
    def _left(self) -> Int[np.ndarray, " devices"]:
        return np.array([len(x) for x in self._shares]) - self._begun

    def queue(self) -> Queue:
        """How far the page has come."""
        count = np.minimum(self._left, self._rows).astype(np.int32)
        return Queue(self._next, count, self._left > self._rows)

    @property
    def has_more(self) -> bool:
        """Whether a fit is still to begin."""
        return bool((self._next < self._left).any())

    def advance(self, taken: Int[np.ndarray, " devices"]) -> None:
        """Note how many of the page were taken, and load the next one where one is exhausted."""
        self._next = np.array(taken)
        queue = self.queue()
        exhausted = queue.more & (self._next >= queue.count)
        if exhausted.any():
            self._begun = np.where(exhausted, self._begun + self._rows, self._begun)
            self._next = np.where(exhausted, 0, self._next).astype(np.int32)
            self.page = self._load()

    def snapshot(self) -> dict[str, Any]:
        """How far it has come; `restore` goes on from there."""
        return {"shares": self._shares, "begun": self._begun, "next": self._next}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._shares = snapshot["shares"]
        self._begun, self._next = snapshot["begun"], snapshot["next"]
        self.page = self._load()

    def skip(self, done: Bool[np.ndarray, " fits"]) -> None:
        """Leave out fits that have ended, before the first one begins."""
        self._shares = [share[~done[share]] for share in self._shares]
        self.page = self._load()

    def close(self) -> None:
        """Bring no more."""
        self.is_closed = True
        ends = self._begun + self._next
        self._shares = [share[:end] for share, end in zip(self._shares, ends, strict=True)]


def _page_rows(states: States, most: int, width: int) -> int:
    """How many states a page has for each device: a power of two, lest each number of states be
    compiled anew.
    """
    some = np.zeros(1, int)
    size = sum(x.nbytes for x in [*states.starts(some), *states.fixed(some)])
    rows = min(_PAGE, max(_PAGE_BYTES // max(size, 1), width))
    return min(2 ** (rows.bit_length() - 1), 2 ** (most - 1).bit_length())
