"""Many fits, from the call to `Fits`."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int

from ..callback import Callback, HostCallback, label
from ..engine.compiled import Loop, Problem
from ..engine.interruption import interruptible
from ..engine.pace import Pace
from ..engine.validation import check_max_steps
from .collector import Collector
from .fits import Fits
from .lanes import AXIS, Lanes, LaneProgram, Order, Output, Page, Queue, compiled
from .states import States

_LANES = 64  # on a CPU's device: so many keep its vector units busy, and fit into its cache
_LANES_OF_GPU = 4096
_PAGE = 4096  # fits at most that wait on the device
_PAGE_BYTES = 2**25  # at most
_RECORDS_BYTES = 2**26  # in one call, at most
_MOST_STEPS = 2**20  # of one call


class Task(NamedTuple):
    """What `run_many` is asked for."""

    problem: Problem
    callbacks: Sequence[Any]
    states: States
    mode: str | None
    max_steps: int
    lanes: int | None
    devices: Sequence[Any] | None
    record: bool


def run_many(programs: dict[Any, "Compiled"], task: Task) -> Fits:
    """Make all fits; `programs` keeps what is compiled."""
    _check_callbacks(task.callbacks)
    devices = _check_devices(task.devices)[: len(task.states)]
    width = _width(task, devices)
    key = (
        task.states.layout,
        task.mode,
        task.states.varying,
        tuple(devices),
        task.record,
        task.max_steps > 0,
    )
    if key not in programs:
        programs[key] = Compiled(task, devices)
    program = programs[key]
    collector = Collector(program.loop, task.states, task.max_steps)
    numbers = np.arange(len(task.states))
    shares = [numbers[d :: len(devices)] for d in range(len(devices))]
    feed = Feed(task.states, shares, width, program)
    pace = Pace(program.pace, (width, feed.shapes))
    lanes = program.blank(feed)
    order = Order(np.int32(pace.first()), np.int32(task.max_steps))
    with interruptible() as interruption:
        last: Output | None = None
        counts = np.zeros((len(devices), 4), np.int32)
        while True:
            began = time.perf_counter()
            limit = min(int(order.limit), program.room or _MOST_STEPS)
            order = order._replace(limit=np.int32(limit))
            output = program.advance(lanes, feed.page, feed.queue(), feed.shared, order)
            lanes = output.lanes
            if last is not None:
                collector.take(last, counts)
            last, counts = output, np.asarray(output.counts)
            steps = int(counts[:, 2].max())
            pace.note(limit, steps, time.perf_counter() - began, began_early=False)
            feed.advance(counts[:, 1])
            if not counts[:, 3].any() and feed.is_empty:
                break
            order = order._replace(limit=np.int32(pace.next(limit)))
            if interruption.requested and collector.interrupted is None:
                collector.interrupted = "interrupted (Ctrl-C)"
                order = order._replace(max_steps=np.int32(0))
                feed.close()
        collector.take(last, counts)
    return collector.fits()


class Compiled:
    """The program of fits of one layout, on some devices."""

    def __init__(self, task: Task, devices: Sequence[Any]):
        self.loop = Loop(task.problem, task.states.layout, task.mode)
        self.devices = devices
        self.pace: dict[Any, float] = {}
        self.room = 1024 if task.record else 0
        self._lanes = LaneProgram(self.loop, task.states.varying, self.room, task.max_steps > 0)
        self.advance = compiled(self._lanes, devices)
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
            make = lambda page, shared: self._lanes.blank(page, shared, width)
            lanes = jax.jit(make)(feed.page, feed.shared)
            per_device = lambda x: np.zeros(len(self.devices), x.dtype)
            lanes = lanes._replace(steps=per_device(lanes.steps), ended=per_device(lanes.ended))
            self._blanks[key] = jax.device_get(lanes)
        return jax.device_put(self._blanks[key], self.split)


class Feed:
    """Brings the states to the devices, page by page; each device has its share of them."""

    def __init__(self, states: States, shares: Sequence[Int[np.ndarray, " n"]], width: int, program: Compiled):
        self._states = states
        self._shares = list(shares)
        self._program = program
        self.width = width
        self._rows = _page_rows(states, max(map(len, shares)), width)
        self._begun = np.zeros(len(shares), int)  # of each share, before the page
        self._next = np.zeros(len(shares), np.int32)  # of the page
        varying, fixed = states.varying, states.template.fixed
        shared = [None if i in varying else x for i, x in enumerate(fixed)]
        self.shared = jax.device_put(shared, program.whole)
        self.page = self._load()
        self.shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves((self.page, self.shared)))

    def _load(self) -> Page:
        parts = []
        for share, begun in zip(self._shares, self._begun, strict=True):
            rows = share[begun : begun + self._rows]
            parts.append(np.resize(rows if rows.size else self._shares[0][:1], self._rows))
        numbers = np.concatenate(parts)
        page = Page(numbers.astype(np.int32), self._states.starts(numbers), self._states.fixed(numbers))
        return jax.device_put(page, self._program.split)

    @property
    def _left(self) -> Int[np.ndarray, " devices"]:
        return np.array([len(x) for x in self._shares]) - self._begun

    def queue(self) -> Queue:
        """How far the page has come."""
        count = np.minimum(self._left, self._rows).astype(np.int32)
        return Queue(self._next, count, self._left > self._rows)

    @property
    def is_empty(self) -> bool:
        return bool((self._next >= self._left).all())

    def advance(self, taken: Int[np.ndarray, " devices"]) -> None:
        """Note how many of the page were taken, and load the next one where one is exhausted."""
        self._next = np.array(taken)
        queue = self.queue()
        if (queue.more & (self._next >= queue.count)).any():
            self._begun += self._next
            self._next = np.zeros_like(self._next)
            self.page = self._load()

    def close(self) -> None:
        """Bring no more."""
        self._shares = [x[: begun + done] for x, begun, done in zip(self._shares, self._begun, self._next)]


def _page_rows(states: States, most: int, width: int) -> int:
    """How many states a page has for each device: a power of two, lest each number of states be
    compiled anew.
    """
    some = np.zeros(1, int)
    size = sum(x.nbytes for x in [*states.starts(some), *states.fixed(some)])
    rows = min(_PAGE, max(_PAGE_BYTES // max(size, 1), width))
    return min(2 ** (rows.bit_length() - 1), 2 ** (most - 1).bit_length())


def _width(task: Task, devices: Sequence[Any]) -> int:
    """How many lanes each device has."""
    lanes, count = task.lanes, len(task.states)
    if lanes is None:
        lanes = (_LANES if devices[0].platform == "cpu" else _LANES_OF_GPU) * len(devices)
    elif isinstance(lanes, bool) or not isinstance(lanes, int):
        raise TypeError(f"lanes must be an integer, got {lanes!r}")
    elif lanes < 1:
        raise ValueError(f"lanes must be at least 1, got {lanes}")
    return -(-min(lanes, count) // len(devices))


def _check_devices(devices: Any) -> list[Any]:
    if devices is None:
        return jax.local_devices()
    if not isinstance(devices, Sequence) or not all(isinstance(x, jax.Device) for x in devices):
        raise TypeError(f"devices must be a list of jax.Device, got {devices!r}")
    if not devices:
        raise ValueError("devices is empty; leave it out for all local devices")
    return list(devices)


def _check_callbacks(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        if isinstance(callback, HostCallback):
            raise TypeError(
                f"callback {label(callback)} looks at one fit after each of its steps, which run_many "
                "cannot offer; use traced callbacks (fitopt.Callback) there"
            )
