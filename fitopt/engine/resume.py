"""Going on with a fit: what that takes, and whether it fits the fit that wants to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ..history import History
from ..parameter.parameter import Parameter
from ..parameter.specification import text
from ..state import Layout, is_array, is_parameter
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .compiled import Programs

Description = dict[str, str]  # what is expected where


class ResumePoint(NamedTuple):
    """Where a fit stands: all that going on from there takes, besides the history."""

    steps: int
    carry: Snapshot | None  # None before the first step
    start: list[Array]
    fixed: list[Any]  # None for what is as it was when the fit began
    elapsed: float  # seconds
    describe: Callable[[], tuple[Description, Description]]  # the state and the method


class BadPoint(Exception):
    """The loss is not finite where a fit is to be resumed, and the last good state is not known."""


def describe_state(layout: Layout, free: Sequence[Array], fixed: Sequence[Any]) -> Description:
    """What a state holds, by path, without the numbers."""
    state = layout.state(free, fixed)
    leaves = jax.tree.leaves_with_path(state, is_leaf=is_parameter)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _leaf(leaf) for path, leaf in leaves}


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, Parameter):
        parts = [f"{'free' if leaf.free else 'fixed'} Parameter {leaf.name!r}", _array(leaf.value)]
        for label in ("lower", "upper", "scale", "mask"):
            constant = getattr(leaf._spec, label)
            parts += [] if constant is None else [f"{label}={text(constant.array)}"]
        parts += [] if leaf.transform is None else [f"transform={leaf.transform!r}"]
        return ", ".join(parts)
    if is_array(leaf):
        return _array(leaf) if hasattr(leaf, "dtype") else type(leaf).__name__
    return repr(leaf) if isinstance(leaf, bool | int | str) else type(leaf).__name__


def _array(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def describe_method(programs: "Programs", free: Sequence[Array], fixed: Sequence[Any]) -> Description:
    """What a fit's carry holds besides the state: the optimizer's state, and that of callbacks."""
    carry = jax.eval_shape(programs.loop.begin, free, fixed)
    parts = [("optimizer", carry.stepper)]
    for callback, part in zip(programs.loop.problem.callbacks, carry.callbacks, strict=True):
        parts.append((type(callback).__name__, part))
    described: Description = {}
    for number, (name, part) in enumerate(parts):
        if [other for other, _ in parts].count(name) > 1:
            name = f"{name} (callback {number - 1})"
        for path, leaf in jax.tree.leaves_with_path(part):
            described[name + jax.tree_util.keystr(path)] = _array(leaf)
    return described


def check_state(point: ResumePoint, layout: Layout, free: Sequence[Array], fixed: Sequence[Any]) -> None:
    """Raise `ValueError`, which says what differs, unless a point belongs to such a state."""
    there, _ = point.describe()
    _check("another state", there, describe_state(layout, free, fixed))


def check_method(
    point: ResumePoint, programs: "Programs", free: Sequence[Array], fixed: Sequence[Any]
) -> None:
    """Raise `ValueError`, which says what differs, unless a point has such a carry."""
    _, there = point.describe()
    _check("another optimizer or other callbacks", there, describe_method(programs, free, fixed))


def _check(kind: str, there: Description, here: Description) -> None:
    if differences := [*_differences(there, here)]:
        shown = "; ".join(differences[:10]) + ("; ..." if len(differences) > 10 else "")
        raise ValueError(f"cannot resume: the fit to go on with is of {kind}: {shown}")


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            yield f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"


def cut(history: History, steps: int) -> dict[str, Any]:
    """The items of a history with the records of the first steps alone."""
    series = history._series()
    return {
        name: jax.tree.map(lambda x, n=series[name]: np.asarray(x)[: -(-steps // n)], item)
        if name in series
        else item
        for name, item in history.items()
    }
