"""Checkpoints: the points from which a fit can be resumed, on disk and in memory.

A directory holds those that orbax writes. Where series of the history have become large, they lie beside
them in `history/`, and all share them: each refers to the records that there were when it was written.
"""

import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..engine.resume import Description, ResumePoint, cut
from ..engine.snapshot import Small, Snapshot
from ..history import History
from . import npz as archive
from . import series_files
from .series_files import SeriesFiles

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_VERSION = 2
_LARGE = 2**20  # bytes: from this size on a series is not written anew for each checkpoint


def points(resume_from: Any) -> Iterator[tuple[ResumePoint, History]]:
    """Where a fit may go on, the furthest first: from a history, or a directory with checkpoints.

    Damaged checkpoints are left out, with a warning; where there are none a fit starts anew.
    """
    if resume_from is None:
        return
    if isinstance(resume_from, History):
        if resume_from._resume_point is None:
            raise ValueError(
                "resume_from: this history does not know where its fit has ended (it comes from a file, "
                "is a copy, or of a fit inside jit or vmap); resume from a directory of checkpoints"
            )
        yield resume_from._resume_point, resume_from
        return
    if not isinstance(resume_from, str | os.PathLike):
        raise TypeError(f"resume_from must be a directory or a History, got {resume_from!r}")
    yield from _points_on_disk(Path(resume_from))


def _points_on_disk(directory: Path) -> Iterator[tuple[ResumePoint, History]]:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"resume_from: {directory} is not a directory")
    steps: list[int] = []
    if directory.is_dir():
        with open_manager(directory, create=False) as manager:
            steps = sorted(manager.all_steps(), reverse=True)
            for step in steps:
                try:
                    point = read(manager, step)
                except OtherFormat:
                    raise
                except Exception as error:  # orbax and tensorstore raise all kinds for a damaged file
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    warnings.warn(
                        f"the checkpoint of step {step} in {directory} is damaged ({reason}); "
                        "going on from the one before",
                        RuntimeWarning,
                        stacklevel=5,
                    )
                else:
                    yield point
    if not steps:
        warnings.warn(
            f"there is no checkpoint in {directory}: the fit begins anew", RuntimeWarning, stacklevel=5
        )


def open_manager(directory: Path, keep: int | None = None, create: bool = True) -> "CheckpointManager":
    """orbax' manager of the checkpoints in a directory, of which it keeps the last ones."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError('checkpoints need orbax: pip install "fitopt[checkpoint]"') from error
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=create, enable_async_checkpointing=False
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add("arrays", ocp.args.StandardSave)
    handlers.add("arrays", ocp.args.StandardRestore)
    handlers.add("rest", ocp.args.JsonSave)
    handlers.add("rest", ocp.args.JsonRestore)
    return ocp.CheckpointManager(directory.absolute(), options=options, handler_registry=handlers)


def open_series(directory: Path) -> SeriesFiles:
    """What writes the series that the checkpoints in a directory share."""
    return SeriesFiles(directory / "history")


class OtherFormat(ValueError):
    """Another release of fitopt has written a checkpoint."""


class Contents(NamedTuple):
    """What goes into a checkpoint; the fit may go on meanwhile."""

    point: ResumePoint
    described: tuple[Description, Description]
    series: dict[str, Any]
    every: dict[str, int]
    others: tuple[dict[str, np.ndarray], Any]  # what else is in the history, packed


def collect(point: ResumePoint, history: History) -> Contents:
    """What a checkpoint of this moment holds."""
    items = _packable(cut(history, point.steps))
    names = [name for name in history._series() if name in items and _bytes(items[name]) > _LARGE]
    series = {name: items.pop(name) for name in names}
    # Series only grow, and what the fit works with is never changed in place; all else may be.
    arrays, packed = archive.pack({"history": items})
    others = {name: array.copy() for name, array in arrays.items()}, packed
    return Contents(point, point.describe(), series, dict(history._every), others)


def write(manager: "CheckpointManager", files: SeriesFiles, contents: Contents) -> None:
    """Write a checkpoint: first the records that it refers to, then the rest."""
    import orbax.checkpoint as ocp

    point = contents.point
    assert point.carry is not None
    state, method = contents.described
    arrays, packed = archive.pack(
        {
            "small": [_without_key(x) for x in point.carry.small.arrays],
            "large": [_without_key(x) for x in point.carry.large],
            "start": point.start,
            "fixed": point.fixed,
        }
    )
    others, packed_others = contents.others
    arrays |= others
    rest = {
        "version": _VERSION,
        "packed": packed,
        "others": packed_others,
        "checksums": {name: _checksum(array) for name, array in arrays.items()},
        "series": files.write(contents.series),
        "every": contents.every,
        "elapsed": point.elapsed,
        "state": state,
        "method": method,
    }
    args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), rest=ocp.args.JsonSave(rest))
    manager.save(point.steps, args=args)


def read(manager: "CheckpointManager", step: int) -> tuple[ResumePoint, History]:
    """One checkpoint.

    **Raises:** whatever reading a damaged file raises; `ValueError` where its bytes have changed;
    `OtherFormat`.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(arrays=ocp.args.StandardRestore(), rest=ocp.args.JsonRestore())
    found = manager.restore(step, args=args)
    rest, arrays = found["rest"], {name: np.asarray(x) for name, x in found["arrays"].items()}
    if rest["version"] != _VERSION:
        raise OtherFormat(
            f"cannot resume: the checkpoint of step {step} in {manager.directory} has format "
            f"{rest['version']}, and this release of fitopt reads {_VERSION}: "
            "use the release that wrote it"
        )
    changed = [name for name, x in arrays.items() if _checksum(x) != rest["checksums"].get(name)]
    if changed:
        raise ValueError(f"checksums differ: {', '.join(changed)}")
    items = archive.unpack(rest["packed"], arrays.__getitem__)
    series = series_files.read(Path(manager.directory) / "history", rest["series"])
    history = History(series | archive.unpack(rest["others"], arrays.__getitem__)["history"])
    history._every = dict(rest["every"])
    small, large = ([_with_key(x) for x in items[name]] for name in ("small", "large"))
    carry = Snapshot(Small(small, None, ()), large)
    described = rest["state"], rest["method"]
    point = ResumePoint(step, carry, items["start"], items["fixed"], rest["elapsed"], lambda: described)
    return point, history


def _bytes(item: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(item))


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _packable(items: dict[str, Any]) -> dict[str, Any]:
    """What can be written of a history; what callbacks may have put there besides is left out."""
    kept = {}
    for name, item in items.items():
        try:
            archive.pack({name: item})
        except TypeError as error:
            warnings.warn(f"not part of the checkpoint: {error}", RuntimeWarning, stacklevel=2)
        else:
            kept[name] = item
    return kept


# Random keys have a dtype that files don't know.


def _without_key(x: Any) -> Any:
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return {"key": jax.random.key_data(x), "generator": str(jax.random.key_impl(x))}


def _with_key(x: Any) -> Any:
    return jax.random.wrap_key_data(x["key"], impl=x["generator"]) if isinstance(x, dict) else x
