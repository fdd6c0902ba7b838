"""Many fits, from the call to `Fits`."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..callback import HostCallback
from ..engine.compiled import Loop, Problem
from ..engine.fitter import is_traced
from ..engine.interruption import interruptible
from ..engine.validation import check_max_steps
from ..optimizers.arguments import whole
from . import saved
from .collector import Collector
from .feed import Feed
from .fits import Fits
from .lanes import LaneProgram
from .machine import Compiled, Machine
from .running import Running
from .states import States

_LANES = 64  # on a CPU's device: so many keep its vector units busy, and fit into its cache
_LANES_OF_GPU = 4096
_ROOM = 1024  # steps of a call whose records are kept


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
    resume_from: Any


def run_many(means: Means, states: Any, options: Options) -> Fits:
    """Make all fits."""
    if is_traced():
        raise TypeError("run_many works on the host, not inside jit, vmap or grad; there, vmap run")
    if not isinstance(options.record, bool):
        raise TypeError(f"record must be True or False, got {options.record!r}")
    max_steps, directory = check_max_steps(options.max_steps), saved.of_directory(options.resume_from)
    states = States.of(states)
    devices = _check_devices(options.devices)[: len(states)]
    program = _program(means, states, options, devices)
    width = _width(options.lanes, len(states), devices)
    earlier = None if directory is None else saved.read(directory)
    numbers = np.arange(len(states))
    collector = Collector(program.loop, states, max_steps)
    shares = [numbers[d :: len(devices)] for d in range(len(devices))]
    feed = Feed(states, shares, width, program.split, program.whole)
    machine = Machine(program, feed, collector, max_steps)
    describe = lambda: saved.describe(program.loop, states, max_steps, options.record)
    running = Running(machine, collector, directory, describe)
    if earlier is not None:
        running.take_up(earlier)
    with interruptible() as interruption, contextlib.ExitStack() as stack:
        hosts = [one for one in means.callbacks if isinstance(one, HostCallback)]
        visits = [stack.enter_context(one.open_many(running)) for one in hosts]
        for _ in machine:
            for visit in visits:
                visit()
            if interruption.requested:
                running.stop("interrupted (Ctrl-C)")
            running.end_if_asked()
    return collector.fits()


def _program(means: Means, states: States, options: Options, devices: Sequence[Any]) -> "Compiled":
    steps_at_all = options.max_steps > 0
    layout, varying = states.layout, states.varying
    key = (layout, options.mode, varying, tuple(devices), options.record, steps_at_all)
    if key not in means.programs:
        loop = Loop(means.problem, layout, options.mode)
        room = _ROOM if options.record else 0
        means.programs[key] = Compiled(LaneProgram(loop, varying, room, steps_at_all), devices)
    return means.programs[key]


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
