"""Many fits, from the call to `Fits`."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Int

from ..callback import HostCallback, label
from ..engine.compiled import Loop, Problem
from ..engine.fitter import is_traced
from ..engine.interruption import interruptible
from ..engine.pace import Pace
from ..engine.validation import check_max_steps
from ..optimizers.arguments import whole
from .collector import Collector
from .fits import Fits
from .lanes import AXIS, LaneProgram, Lanes, Order, Page, Queue, compiled
from .states import States

_LANES = 64  # on a CPU's device: so many keep its vector units busy, and fit into its cache
_LANES_OF_GPU = 4096
_PAGE = 4096  # fits at most that wait on the device
_PAGE_BYTES = 2**25  # at most
_ROOM = 1024  # steps of a call whose records are kept
_MOST_STEPS = 2**20  # of one call


class Means(NamedTuple):
    """What fits: an optimizer's own."""

    problem: Problem
    callbacks: Sequence[Any]
    programs: dict[Any, "Compiled"]  # what is compiled


class Options(NamedTuple):
    """The arguments of `run_many`, besides the states."""

    max_steps: int
    mode: str | None
    lanes: int | None
    devices: Sequence[Any] | None
    record: bool


def run_many(means: Means, states: Any, options: Options) -> Fits:
    """Make all fits."""
    if is_traced():
        raise TypeError("run_many works on the host, not inside jit, vmap or grad; there, vmap run")
    if not isinstance(options.record, bool):
        raise TypeError(f"record must be True or False, got {options.record!r}")
    max_steps = check_max_steps(options.max_steps)
    _check_callbacks(means.callbacks)
    states = States.of(states)
    devices = _check_devices(options.devices)[: len(states)]
    program = _program(means, states, options, devices)
    width = _width(options.lanes, len(states), devices)
    collector = Collector(program.loop, states, max_steps)
    numbers = np.arange(len(states))
    feed = Feed(states, [numbers[d :: len(devices)] for d in range(len(devices))], width, program)
    with interruptible() as interruption:
        for _ in _advance(program, feed, collector, max_steps):
            if interruption.requested and collector.interrupted is None:
                collector.interrupted = "interrupted (Ctrl-C)"
                feed.close()
    return collector.fits()


def _advance(program: "Compiled", feed: "Feed", collector: Collector, max_steps: int) -> Iterator[None]:
    """Call the program until all fits have ended; while it computes, the host looks at what it brought
    before.
    """
    lanes, last = program.blank(feed), None
    pace = Pace(program.pace, (feed.width, feed.shapes))
    most = program.room or _MOST_STEPS
    limit, counts = min(pace.first(), most), np.zeros((len(program.devices), 4), np.int32)
    while feed.has_more or counts[:, 3].any():
        began = time.perf_counter()
        order = Order(np.int32(limit), np.int32(0 if feed.is_closed else max_steps))
        output = program.advance(lanes, feed.page, feed.queue(), feed.shared, order)
        lanes = output.lanes
        if last is not None:
            collector.take(last, counts)
        last, counts = output, np.asarray(output.counts)
        steps = int(counts[:, 2].max())
        pace.note(limit, steps, time.perf_counter() - began, began_early=False)
        feed.advance(counts[:, 1])
        limit = min(pace.next(limit), most)
        yield
    assert last is not None
    collector.take(last, counts)


def _program(means: Means, states: States, options: Options, devices: Sequence[Any]) -> "Compiled":
    steps_at_all = options.max_steps > 0
    layout, varying = states.layout, states.varying
    key = (layout, options.mode, varying, tuple(devices), options.record, steps_at_all)
    if key not in means.programs:
        loop = Loop(means.problem, layout, options.mode)
        room = _ROOM if options.record else 0
        means.programs[key] = Compiled(LaneProgram(loop, varying, room, steps_at_all), devices)
    return means.programs[key]


class Compiled:
    """A program on some devices."""

    def __init__(self, program: LaneProgram, devices: Sequence[Any]):
        self.loop = program.loop
        self.room = program.room
        self.devices = devices
        self.pace: dict[Any, float] = {}
        self.advance = compiled(program, devices)
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
            make = lambda page, shared: self._program.blank(page, shared, width)
            lanes = jax.jit(make)(feed.page, feed.shared)
            zeros = np.zeros(len(self.devices), lanes.steps.dtype)
            self._blanks[key] = lanes._replace(steps=zeros, ended=zeros)
        # Copies, as what the program gets is donated.
        return jax.device_put(jax.tree.map(jnp.copy, self._blanks[key]), self.split)


class Feed:
    """Brings the states to the devices, page by page; each device has its share of them."""

    def __init__(
        self, states: States, shares: Sequence[Int[np.ndarray, " n"]], width: int, program: Compiled
    ):
        self._states = states
        self._shares = list(shares)
        self._program = program
        self.width = width
        self.is_closed = False
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
    def has_more(self) -> bool:
        """Whether a fit is still to begin."""
        return bool((self._next < self._left).any())

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


def _width(lanes: Any, count: int, devices: Sequence[Any]) -> int:
    """How many lanes each device has."""
    if lanes is None:
        lanes = (_LANES if devices[0].platform == "cpu" else _LANES_OF_GPU) * len(devices)
    return -(-min(whole("lanes", lanes), count) // len(devices))


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
