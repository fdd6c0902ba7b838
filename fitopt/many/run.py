"""Many fits, from the call to `Fits`."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from ..callback import HostCallback
from ..engine.compiled import Loop, Problem
from ..engine.fitter import is_traced
from ..engine.interruption import interruptible
from ..engine.validation import check_max_steps
from ..optimizers.arguments import whole
from ..storage import npz
from . import saved
from .collector import Collector
from .feed import Feed
from .fits import Fits
from .lanes import LaneProgram
from .machine import Compiled, Machine
from .processes import Processes, processes
from .running import Running, take_ended
from .saved import Found
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
    states, these = States.of(states), processes()
    found = Found(None, []) if directory is None else saved.find(directory, these)
    devices = _check_devices(options.devices)[: len(states)]
    program = _program(means, states, options, devices)
    collector = Collector(program.loop, program.examination, states, max_steps)
    described = lambda: saved.describe(program.loop, states, max_steps, options.record)
    share = np.arange(len(states))[these.index :: these.count]
    width = _width(options.lanes, len(share), devices)
    machine = _machine(program, collector, states, share, width, max_steps)
    if found.others:
        for earlier in found.others:
            take_ended(collector, machine, earlier, described())
        share = np.flatnonzero(~collector.done)[these.index :: these.count]
        machine = _machine(program, collector, states, share, width, max_steps)
    running = Running(machine, collector, share, these, described)
    if directory is not None and found.own is not None:
        running.take_up(these.own_directory(directory), found.own)
    with interruptible() as interruption, contextlib.ExitStack() as stack:
        hosts = [one for one in means.callbacks if isinstance(one, HostCallback)]
        visits = [stack.enter_context(one.open_many(running)) for one in hosts]
        for _ in machine:
            for visit in visits:
                visit()
            if interruption.requested:
                running.stop("interrupted (Ctrl-C)")
            running.end_if_asked()
    _share_results(these, collector, share, machine)
    return collector.fits()


def _machine(
    program: Compiled,
    collector: Collector,
    states: States,
    share: Int[np.ndarray, " share"],
    width: int,
    max_steps: int,
) -> Machine:
    count = len(program.devices)
    shares = [share[d::count] for d in range(count)]
    feed = Feed(states, shares, width, program.split, program.whole)
    return Machine(program, feed, collector, max_steps)


def _share_results(
    these: Processes, collector: Collector, share: Int[np.ndarray, " share"], machine: Machine
) -> None:
    """Give all processes the results of each."""
    if these.count == 1:
        return
    mine, file = share[collector.done[share]], io.BytesIO()
    if mine.size:
        npz.write_to(file, collector.rows(mine), {})
    for index, message in enumerate(these.exchange(file.getvalue())):
        if message and index != these.index:
            rows, _ = npz.read_from(io.BytesIO(message))
            collector.put(rows, machine.finishing_carries)


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
    return -(-min(whole("lanes", lanes), max(count, 1)) // len(devices))


def _check_devices(devices: Any) -> list[Any]:
    if devices is None:
        return jax.local_devices()
    if not isinstance(devices, Sequence) or not all(isinstance(x, jax.Device) for x in devices):
        raise TypeError(f"devices must be a list of jax.Device, got {devices!r}")
    if not devices:
        raise ValueError("devices is empty; leave it out for all local devices")
    return list(devices)
