"""Many fits on the disk while they run: those that have ended, and where lanes stand.

What has ended is written once, in parts; a manifest names the parts that count, and is replaced as a
whole when they are complete. So a process may be killed at any moment.
"""

import os
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from ..engine.compiled import Loop
from ..engine.resume import check_alike, compare_methods, describe_method, describe_state
from ..engine.validation import depth_in_package
from ..history import Description
from ..methods.method import Constants
from ..storage import npz
from .collector import Collector
from .machine import Machine
from .processes import Processes
from .states import States

_MANIFEST = "fits.npz"
_AT_ONCE = 4096  # states whose checksum is taken


class Descriptions(NamedTuple):
    """What fits must have in common with those that they go on with."""

    task: Description
    method: Description


def describe(loop: Loop, states: States, max_steps: int, record: bool) -> Descriptions:
    """What fits are."""
    template = states.template
    constants = Constants(template.free, template.fixed)
    checksum = 0
    for first in range(0, len(states), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        for array in [*states.starts(some), *states.fixed(some)]:
            checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, checksum)
    task = {
        "the number of states": str(len(states)),
        "the checksum of what varies": f"{checksum:08x}",
        "max_steps": str(max_steps),
        "record": str(record),
        **describe_state(states.layout, constants),
    }
    return Descriptions(task, describe_method(loop, constants))


class Saver:
    """Writes fits to a directory, each time what is new; `written` are those that it holds."""

    def __init__(
        self, directory: Path, described: Descriptions, parts: int, written: Bool[np.ndarray, " fits"]
    ):
        self._directory = directory
        self._described = described
        self._parts = parts
        self._written = written.copy()

    def save(self, machine: Machine, collector: Collector) -> None:
        """Write what has ended since the last time, and where all else stands."""
        self._directory.mkdir(parents=True, exist_ok=True)
        snapshot = machine.snapshot()
        fresh = np.flatnonzero(collector.done & ~self._written)
        if fresh.size:
            npz.write(self._directory / _part(self._parts), collector.rows(fresh), {})
            self._parts += 1
            self._written[fresh] = True
        manifest = {
            "described": [*self._described],
            "parts": self._parts,
            "machine": snapshot,
            "pieces": collector.pieces,
            "elapsed": collector.elapsed,
        }
        npz.write(self._directory / _MANIFEST, manifest, {})


class Saved(NamedTuple):
    """What a directory holds."""

    described: Descriptions
    parts: list[dict[str, Any]]  # rows of fits that have ended
    machine: dict[str, Any]
    pieces: dict[int, list[Any]]
    elapsed: float

    def check(self, described: Descriptions) -> None:
        """Raise `ValueError`, which says what differs, unless these are such fits."""
        check_alike("other states", self.described.task, described.task)
        compare_methods(self.described.method, described.method)


def holds_fits(directory: Path) -> bool:
    """Whether fits have been written to a directory."""
    return (directory / _MANIFEST).exists()


class Found(NamedTuple):
    """What there is to go on with."""

    own: Saved | None  # what this process has saved
    others: list[Saved]  # where it has saved nothing: what others have, if they were not as many


def find(directory: Path, processes: Processes) -> Found:
    """What there is in a directory; with a warning, if there is nothing."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"resume_from: {directory} is not a directory")
    own = processes.own_directory(directory)
    if holds_fits(own):
        return Found(read(own), [])
    others = [path for path in [directory, *directory.glob("process-*")] if holds_fits(path)]
    if not others:
        warnings.warn(
            f"there is no checkpoint of fits in {directory}: they begin anew",
            RuntimeWarning,
            stacklevel=depth_in_package(),
        )
    family = f"-of-{processes.count}"
    if processes.count > 1 and any(path.name.endswith(family) for path in others):
        return Found(None, [])  # each of as many goes on with its own
    return Found(None, [read(path) for path in others])


def read(directory: Path) -> Saved:
    """What a directory holds."""
    manifest, _ = npz.read(directory / _MANIFEST)
    parts = [npz.read(directory / _part(number))[0] for number in range(manifest["parts"])]
    described = Descriptions(*manifest["described"])
    rest = [manifest[name] for name in ("machine", "pieces", "elapsed")]
    return Saved(described, parts, *rest)


def of_directory(resume_from: Any) -> Path | None:
    """Where to go on from, if anywhere."""
    if resume_from is None:
        return None
    if not isinstance(resume_from, str | os.PathLike):
        raise TypeError(f"resume_from must be a directory, got {resume_from!r}")
    return Path(resume_from)


def _part(number: int) -> str:
    return f"part-{number:06d}.npz"
