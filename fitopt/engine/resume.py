"""Going on with an earlier fit: where it stood, and whether it fits the one that wants to go on."""

import base64
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ..batches import describe
from ..history import Description, History, ResumePoint
from ..methods.method import Constants
from ..parameter import Parameter
from ..state import Flat, Layout, is_array, is_parameter
from ..storage import checkpoint
from .history_writer import cut
from .placement import Placement
from .validation import depth_in_package

if TYPE_CHECKING:
    from .compiled import Loop
    from .programs import Programs


_PROGRAM = "one step"  # in the description of a method: a checksum of what a step computes


def points(resume_from: Any) -> Iterator[tuple[ResumePoint, History]]:
    """Where a fit may go on, the furthest first: from a history, or a directory with checkpoints."""
    if resume_from is None:
        return
    if isinstance(resume_from, History):
        if resume_from.resume_point is None:
            raise ValueError(
                "resume_from: this history does not know where its fit has ended (it comes from a file, "
                "is a copy, or of a fit inside jit or vmap); resume from a directory of checkpoints"
            )
        yield resume_from.resume_point, resume_from
        return
    if not isinstance(resume_from, str | os.PathLike):
        raise TypeError(f"resume_from must be a directory or a History, got {resume_from!r}")
    directory = Path(resume_from)
    is_empty = True
    for found in checkpoint.read_all(directory):
        is_empty = False
        if isinstance(found, checkpoint.Contents):
            yield _unpacked(found)
        else:
            _warn(
                f"the checkpoint of step {found.step} in {directory} is damaged ({found.reason}); "
                "going on from the one before"
            )
    if is_empty:
        _warn(f"there is no checkpoint in {directory}: the fit begins anew")


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=depth_in_package())


def contents_of(point: ResumePoint, history: History) -> checkpoint.Contents:
    """What a checkpoint of this moment holds; the fit may go on meanwhile."""
    state, method = point.describe()
    return checkpoint.Contents(
        step=point.steps,
        arrays={
            "carry": None if point.carry is None else point.carry(),
            "best": point.best(),
            "start": point.start,
            "fixed": point.fixed,
            "final": point.final,
        },
        items=cut(history, point.steps),
        every=history.series(),
        facts={
            "elapsed": point.elapsed,
            "state": state,
            "method": method,
            "batches": None if point.batches is None else [_for_json(x) for x in point.batches],
        },
    )


def _unpacked(contents: checkpoint.Contents) -> tuple[ResumePoint, History]:
    facts = contents.facts
    described = facts["state"], facts["method"]
    states = facts["batches"]
    arrays, carry = {**contents.arrays}, contents.arrays["carry"]
    arrays["carry"] = None if carry is None else lambda: carry
    arrays["best"] = lambda: contents.arrays["best"]
    point = ResumePoint(
        contents.step,
        **arrays,
        elapsed=facts["elapsed"],
        describe=lambda: described,
        batches=None if states is None else [_from_json(x) for x in states],
    )
    every = {name: every for name, every in contents.every.items() if name != "loss"}
    return point, History.of(contents.items, every)


def _for_json(state: Any) -> Any:
    """The state of an iterator: of bytes, or of what JSON can say."""
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _from_json(state: Any) -> Any:
    is_bytes = isinstance(state, dict) and [*state] == ["base64"]
    return base64.b64decode(state["base64"]) if is_bytes else state


def completed(
    state: Any, flat: Flat, earlier: tuple[ResumePoint, History], placement: Placement | None
) -> tuple[Any, History]:
    """What an earlier fit that is complete has returned."""
    point, history = earlier
    fixed = fixed_values(flat.fixed, point)
    again = History.of(history, history.every)
    again.start, again.resume_point = state, point
    values = point.final or []
    put = map(jax.numpy.asarray, values) if placement is None else placement.put_values(values)
    return flat.layout.state([*put], fixed), again


def fixed_values(fixed: Sequence[Any], point: ResumePoint) -> list[Any]:
    """All that is not free, where callbacks of the earlier fit have changed it with these changes."""
    return [x if new is None else new for x, new in zip(fixed, point.fixed, strict=True)]


def describe_state(layout: Layout, constants: Constants) -> Description:
    """What a state holds, by path, without the numbers."""
    state = layout.state(constants.start, constants.fixed)
    leaves = jax.tree.leaves_with_path(state, is_leaf=is_parameter)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _leaf(leaf) for path, leaf in leaves}


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, Parameter):
        kind = f"{'free' if leaf.free else 'fixed'} Parameter"
        called = kind if leaf.name is None else f"{kind} {leaf.name!r}"
        return ", ".join([called, _array(leaf.value), *leaf.release().spec.settings(exact=True)])
    if is_array(leaf):
        return _array(leaf) if hasattr(leaf, "dtype") else type(leaf).__name__
    return repr(leaf) if isinstance(leaf, bool | int | str) else type(leaf).__name__


def _array(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def describe_method(loop: "Loop", constants: Constants) -> Description:
    """What a fit's carry holds besides the state: the optimizer's state, and that of callbacks."""
    loop = loop.without_stacks()
    carry = jax.eval_shape(loop.begin, constants)
    parts = [("optimizer", carry.stepper)]
    for callback, part in zip(loop.problem.callbacks, carry.callbacks, strict=True):
        parts.append((type(callback).__name__, part))
    described: Description = {}
    for number, (name, part) in enumerate(parts):
        if [other for other, _ in parts].count(name) > 1:
            name = f"{name} (callback {number - 1})"
        for path, leaf in jax.tree.leaves_with_path(part):
            described[name + jax.tree_util.keystr(path)] = _array(leaf)

    def step(carry: Any, constants: Constants) -> Any:
        bound = loop.bind(constants)
        after, info, loss, code = loop.step(*bound, carry, jax.numpy.zeros((), jax.numpy.int32))
        return after, info._replace(state=None), loss, code  # the state may hold what is no array

    shapes = jax.tree.map(_anywhere, (carry, constants))
    program = re.sub(" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(*shapes)))
    described |= describe(constants.batches)
    return described | {_PROGRAM: f"{zlib.crc32(program.encode()):08x}"}


def _anywhere(x: Any) -> Any:
    """An array's shape: on other devices a step is the same."""
    if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False))


def check_state(point: ResumePoint, layout: Layout, constants: Constants) -> None:
    """Raise `ValueError`, which says what differs, unless a point belongs to such a state."""
    there, _ = point.describe()
    check_alike("another state", there, describe_state(layout, constants))


def check_method(point: ResumePoint, programs: "Programs", constants: Constants) -> None:
    """Raise `ValueError`, which says what differs, unless a point has such a carry."""
    there = point.describe()[1]
    advice = (
        f". To go on otherwise, resume as it was with max_steps={point.steps}, and give the state that "
        "this returns to a new run"
    )
    compare_methods(there, describe_method(programs.loop, constants), advice)


def tell_of_changes(point: ResumePoint, loop: "Loop", constants: Constants, reason: str) -> None:
    """Warn where a fit that has ended would be another one now: its result is returned all the same."""
    there, here = point.describe()[1], describe_method(loop, constants)
    found = [
        "the loss, or a setting of the optimizer or of a callback"
        if name == _PROGRAM
        else f"{name} is {x} there, {y} here"
        for name, x, y in differences(there, here)
    ]
    if found:
        _warn(
            f"resume_from: this fit has ended ({reason}), and what it has returned is returned again; "
            f"what is not as it was then has no effect: {_shown(found)}. To go on otherwise, give the "
            "state that it returned to a new run"
        )


def compare_methods(there: Description, here: Description, advice: str = "") -> None:
    """Raise `ValueError` where methods have other carries; warn where only what they compute differs."""
    carry = lambda method: {k: x for k, x in method.items() if k != _PROGRAM}
    check_alike("another optimizer or other callbacks", carry(there), carry(here), advice)
    if there.get(_PROGRAM) != here[_PROGRAM]:
        _warn(
            "resume_from: the loss, the optimizer's settings (such as its learning rate) or those of a "
            "callback are not those with which the fit began; going on with the new ones, but for what "
            "the optimizer's state holds"
        )


def check_alike(kind: str, there: Description, here: Description, advice: str = "") -> None:
    """Raise `ValueError`, which says what differs, unless two descriptions are the same."""
    found = [f"{name} is {x} there, {y} here" for name, x, y in differences(there, here)]
    if found:
        raise ValueError(f"cannot resume: the fit to go on with is of {kind}: {_shown(found)}{advice}")


def _shown(found: list[str]) -> str:
    return "; ".join(found[:10]) + ("; ..." if len(found) > 10 else "")


def differences(there: Description, here: Description) -> Iterator[tuple[str, str, str]]:
    """What two descriptions say of where they differ."""
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            yield name, there.get(name, "missing"), here.get(name, "missing")
