"""What runs the lanes of this process: calls of the program, one after the other."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Bool

from ..callback import own_methods
from ..engine.compiled import Loop
from ..engine.pace import Pace
from ..state import PyTree
from ..storage.checkpoint import with_key, without_key
from .collector import Collector
from .examination import Examination
from .feed import Feed
from .lanes import AXIS, LaneProgram, Lanes, Order, Output, compiled

_MOST_STEPS = 2**20  # of one call


class Compiled:
    """A program on some devices."""

    def __init__(self, program: LaneProgram, devices: Sequence[Any]):
        self.loop = program.loop
        self.room = program.room
        self.devices = devices
        self.pace: dict[Any, tuple[float, float]] = {}
        self.advance = compiled(program, devices)
        self.examination = Examination(program.loop)
        self._program = program
        self._blanks: dict[Any, Any] = {}
        if len(devices) == 1:
            self.split = self.whole = SingleDeviceSharding(devices[0])
        else:
            mesh = Mesh(np.array(devices), (AXIS,))
            self.split = NamedSharding(mesh, PartitionSpec(AXIS))
            self.whole = NamedSharding(mesh, PartitionSpec())

    def blank(self, feed: "Feed") -> Lanes:
        """Lanes without fits."""
        key = feed.width, feed.shapes
        if key not in self._blanks:
            width = feed.width * len(self.devices)
            lane = self._program.blank(feed.page, feed.shared, width)
            zeros = np.zeros(len(self.devices), np.float32)
            self._blanks[key] = Lanes(lane, zeros, zeros)
        # Copies, as what the program gets is donated.
        return jax.device_put(jax.tree.map(jnp.array, self._blanks[key]), self.split)


class Machine:
    """Calls the program until all fits have ended; iterating over it does that.

    While the program computes, the host looks at what the call before has brought.
    """

    def __init__(self, program: Compiled, feed: Feed, collector: Collector, max_steps: int):
        self._program = program
        self._feed = feed
        self._collector = collector
        self._max_steps = max_steps
        self._lanes = program.blank(feed)
        self._last: Output | None = None  # what the collector has not looked at
        self._counts = np.zeros((len(program.devices), 4), np.int32)

    def __iter__(self) -> Iterator[None]:
        feed, program = self._feed, self._program
        pace = Pace(program.pace, (feed.width, feed.shapes))
        most = program.room or _MOST_STEPS
        limit = min(pace.first(), most)
        while feed.has_more or self._counts[:, 3].any():
            began = time.perf_counter()
            order = Order(np.int32(limit), np.int32(0 if feed.is_closed else self._max_steps))
            output = program.advance(self._lanes, feed.page, feed.queue(), feed.shared, order)
            self._lanes = output.lanes
            self.settle()
            self._last, self._counts = output, np.asarray(output.counts)
            steps = int(self._counts[:, 2].max())
            pace.note(limit, steps, time.perf_counter() - began, began_early=False)
            feed.advance(self._counts[:, 1])
            limit = min(pace.next(limit), most)
            yield
        self.settle()

    def settle(self) -> None:
        """Let the collector look at what the last call has brought."""
        last, self._last = self._last, None
        if last is not None:
            self._collector.take(last, self._counts)

    def close(self) -> None:
        """End all fits where they are, and begin no more."""
        self._feed.close()

    def snapshot(self) -> dict[str, Any]:
        """Where all lanes stand; `restore` goes on from there."""
        self.settle()
        leaves = [without_key(x) for x in jax.tree.leaves(self._lanes)]
        return {"lanes": leaves, "counts": self._counts, **self._feed.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Go on from a snapshot; False where that is of other lanes."""
        leaves = [with_key(x) for x in snapshot["lanes"]]
        lanes, structure = jax.tree.flatten(self._lanes)
        same = len(snapshot["shares"]) == len(self._program.devices)
        if not same or [x.shape for x in leaves] != [x.shape for x in lanes]:
            return False
        self._lanes = jax.device_put(jax.tree.unflatten(structure, leaves), self._program.split)
        self._counts = snapshot["counts"]
        self._feed.restore(snapshot)
        return True

    def skip(self, done: Bool[np.ndarray, " fits"]) -> None:
        """Leave out fits that have ended, before the first one begins."""
        self._feed.skip(done)

    @property
    def loop(self) -> Loop:
        return self._program.loop

    @property
    def finishing_carries(self) -> tuple[PyTree, ...]:
        """The carries of callbacks that want theirs at the end."""
        own = own_methods(self.loop.problem.callbacks, "finish")
        return tuple(self._lanes.lane.carry.callbacks[i] for i, _ in own)
