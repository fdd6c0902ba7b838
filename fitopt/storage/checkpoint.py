"""Checkpoints on disk: in a directory, those that orbax writes.

Where series of the history have become large, they lie beside them in `history/`, and all checkpoints
share them: each refers to the records that there were when it was written.
"""

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..parameter.specification import is_readable
from ..state import PyTree
from . import npz, series_files
from .series_files import SeriesFiles

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_VERSION = 3
_LARGE = 2**20  # bytes: from this size on a series is not written anew for each checkpoint


class Contents(NamedTuple):
    """What a checkpoint holds."""

    step: int
    arrays: dict[str, PyTree]  # of arrays, random keys among them
    items: dict[str, Any]  # of the history
    every: Mapping[str, int]  # the names of those that are series, and how far their records are apart
    facts: dict[str, Any]  # for JSON


class OtherFormat(ValueError):
    """Another release of fitopt has written a checkpoint."""


def open_manager(
    directory: Path, keep: int | None = None, create: bool = True, processes: Sequence[int] | None = None
) -> "CheckpointManager":
    """orbax' manager of the checkpoints in a directory, of which it keeps the last ones.

    `processes` are those that write together, by default this one alone.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError('checkpoints need orbax: pip install "fitopt[checkpoint]"') from error
    together = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:  # or orbax would wait for all there are
        processes = processes or [jax.process_index()]
        if create and processes[0] != 0:
            raise ValueError(
                "orbax writes arrays from the first process of jax.distributed alone: a fit that has no "
                f"part in it, as this of process {processes[0]}, has no checkpoints"
            )
        prefix = f"fitopt-{'-'.join(map(str, processes))}"
        together = ocp.options.MultiprocessingOptions(processes[0], {*processes}, prefix)
        if create:
            directory.mkdir(parents=True, exist_ok=True)
            create = False
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=create,
        enable_async_checkpointing=False,
        multiprocessing_options=together,
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = ocp.StandardCheckpointHandler(multiprocessing_options=together)
    rest = ocp.JsonCheckpointHandler(multiprocessing_options=together)
    handlers.add("arrays", ocp.args.StandardSave, arrays)
    handlers.add("arrays", ocp.args.StandardRestore, arrays)
    handlers.add("rest", ocp.args.JsonSave, rest)
    handlers.add("rest", ocp.args.JsonRestore, rest)
    return ocp.CheckpointManager(directory.absolute(), options=options, handler_registry=handlers)


def open_series(directory: Path) -> SeriesFiles:
    """What writes the series that the checkpoints in a directory share."""
    return SeriesFiles(directory / "history")


# Writing.


class Frozen(NamedTuple):
    """The contents of a checkpoint as they are written, while a fit may go on with its own."""

    contents: Contents
    series: dict[str, PyTree]
    others: tuple[dict[str, np.ndarray], Any]  # all else in the history, packed
    is_first: bool  # of the processes that write it


def freeze(contents: Contents, is_first: bool = True) -> Frozen:
    """Copies of what a fit may change: series only grow, and are never changed in place."""
    items = _packable(contents.items)
    names = [name for name in contents.every if name in items and _bytes(items[name]) > _LARGE]
    series = {name: items.pop(name) for name in names}
    arrays, packed = npz.pack({"history": items})
    others = {name: array.copy() for name, array in arrays.items()}, packed
    return Frozen(contents, series, others, is_first)


def write(manager: "CheckpointManager", files: SeriesFiles, frozen: Frozen) -> None:
    """Write a checkpoint: first the records that it refers to, then the rest.

    Of arrays that lie in several processes each writes its part; the first one writes all else.
    """
    import orbax.checkpoint as ocp

    contents = frozen.contents
    arrays, packed = npz.pack(jax.tree.map(without_key, contents.arrays))
    others, packed_others = frozen.others
    arrays |= others
    in_parts = not all(map(is_readable, arrays.values()))
    rest = {
        "version": _VERSION,
        "packed": packed,
        "others": packed_others,
        "checksums": {name: _checksum(x) for name, x in arrays.items() if is_readable(x)},
        "in_parts": {name: [x.dtype.str, x.shape] for name, x in arrays.items()} if in_parts else {},
        "series": files.write(frozen.series) if frozen.is_first else {},
        "every": dict(contents.every),
        "facts": contents.facts,
    }
    args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), rest=ocp.args.JsonSave(rest))
    manager.save(contents.step, args=args)


def _bytes(item: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(item))


def _packable(items: dict[str, Any]) -> dict[str, Any]:
    """What can be written of a history; what callbacks may have put there besides is left out."""
    kept = {}
    for name, item in items.items():
        try:
            npz.pack({name: item})
        except TypeError as error:
            warnings.warn(f"not part of the checkpoint: {error}", RuntimeWarning, stacklevel=2)
        else:
            kept[name] = item
    return kept


# Reading.


class Damaged(NamedTuple):
    """A checkpoint that cannot be read, and why."""

    step: int
    reason: str


def read_all(directory: Path) -> Iterator[Contents | Damaged]:
    """The checkpoints in a directory, the last one first."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"resume_from: {directory} is not a directory")
    if not directory.is_dir():
        return
    with open_manager(directory, create=False) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                yield read(manager, step)
            except OtherFormat:
                raise
            except Exception as error:  # orbax and tensorstore raise all kinds for a damaged file
                yield Damaged(step, f"{type(error).__name__}: {error}".splitlines()[0])


def read(manager: "CheckpointManager", step: int) -> Contents:
    """One checkpoint.

    **Raises:** whatever reading a damaged file raises; `ValueError` where its bytes have changed;
    `OtherFormat`.
    """
    import orbax.checkpoint as ocp

    rest = manager.restore(step, args=ocp.args.Composite(rest=ocp.args.JsonRestore()))["rest"]
    # Parts that several processes have written are put together where an example says how.
    in_parts = rest.get("in_parts", {})
    example = lambda dtype, shape: np.broadcast_to(np.zeros((), dtype), shape)
    like = {name: example(*kind) for name, kind in in_parts.items()} or None
    args = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
    found = manager.restore(step, args=args)["arrays"]
    arrays = {name: np.asarray(x) for name, x in found.items()}
    if rest["version"] != _VERSION:
        raise OtherFormat(
            f"cannot resume: the checkpoint of step {step} in {manager.directory} has format "
            f"{rest['version']}, and this release of fitopt reads {_VERSION}: "
            "use the release that wrote it"
        )
    checked = rest["checksums"] if in_parts else arrays
    changed = [name for name in checked if _checksum(arrays[name]) != rest["checksums"].get(name)]
    if changed:
        raise ValueError(f"checksums differ: {', '.join(changed)}")
    unpacked = npz.unpack(rest["packed"], arrays.__getitem__)
    series = series_files.read(Path(manager.directory) / "history", rest["series"])
    items = npz.unpack(rest["others"], arrays.__getitem__)["history"]
    is_key = lambda x: isinstance(x, dict) and "generator" in x
    return Contents(
        step,
        jax.tree.map(with_key, unpacked, is_leaf=lambda x: x is None or is_key(x)),
        series | items,
        rest["every"],
        rest["facts"],
    )


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


# Random keys have a dtype that files don't know.


def without_key(x: Any) -> Any:
    """A leaf as files know it."""
    if not (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)):
        return x
    return {"key": jax.random.key_data(x), "generator": str(jax.random.key_impl(x))}


def with_key(x: Any) -> Any:
    """A leaf as it was."""
    return jax.random.wrap_key_data(x["key"], impl=x["generator"]) if isinstance(x, dict) else x
