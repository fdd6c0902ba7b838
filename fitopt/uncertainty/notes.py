"""What is said about uncertainties: sentences for single entries, and a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from .covariance import Inverse

if TYPE_CHECKING:
    from .result import Uncertainty

_MOST = 20  # rows of a table
_MOVED = 0.1  # of an error: how far from the minimum a fit may end without a message


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def about(
    names: Sequence[str], is_open: Bool[np.ndarray, " n"], held: Bool[np.ndarray, " n"]
) -> list[str]:
    """Which entries have no error."""
    some = lambda which: listed([name for name, one in zip(names, which, strict=True) if one])
    messages = [f"the data do not determine {some(is_open)}"] if is_open.any() else []
    if held.any():
        messages.append(f"at a bound, and held there for the errors of the others: {some(held)}")
    return messages


def rough(
    names: Sequence[str],
    is_rough: Bool[np.ndarray, " n"],
    is_open: Bool[np.ndarray, " n"],
    is_single: bool,
) -> list[str]:
    """What conjugate gradients could not tell well, or not at all in single precision."""
    some = [name for name, one in zip(names, is_rough, strict=True) if one]
    messages = []
    if some:
        messages.append(f"only roughly known, as conjugate gradients came no closer: {listed(some)}")
    if is_single and (some or is_open.any()):
        messages.append("single precision may be at fault: compute the errors in double precision")
    return messages


def not_there(
    names: Sequence[str],
    values: Float[np.ndarray, " n"],
    step: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    rounding: float,
) -> list[str]:
    """That a fit has ended too early, if it is so; `step` leads to the minimum."""
    known = np.isfinite(errors) & (errors > 0) & (np.abs(step) > rounding * np.abs(values))
    steps = np.abs(step) / np.where(known, errors, np.inf)
    worst = int(np.argmax(steps))
    if steps[worst] <= _MOVED:
        return []
    return [
        f"the fit has not come to the minimum: {names[worst]} would still change by "
        f"{steps[worst]:.2g} of its standard error; fit on from here"
    ]


def undetermined(
    names: Sequence[str], inverse: Inverse, is_open: Bool[np.ndarray, " n"], what: str
) -> dict[str, str]:
    """Why each of the open entries is not determined."""
    rows = np.flatnonzero(is_open).tolist()
    lengths = np.linalg.norm(inverse.open[rows], axis=1)
    directions = inverse.open[rows] / lengths[:, None]
    together = np.abs(directions @ directions.T) > 1e-3
    sentences = {}
    for row, with_it in zip(rows, together, strict=True):
        partners = [names[rows[i]] for i in np.flatnonzero(with_it).tolist() if rows[i] != row]
        if partners:
            sentences[names[row]] = (
                f"not determined: {what} the same if it changes together with {listed(partners)}"
            )
        else:
            sentences[names[row]] = f"not determined: {what} the same whatever it is"
    return sentences


def at_bound(
    names: Sequence[str],
    values: Float[np.ndarray, " n"],
    lower: Float[np.ndarray, " n"],
    upper: Float[np.ndarray, " n"],
    held: Bool[np.ndarray, " n"],
) -> dict[str, str]:
    """Which bound each of the held entries lies on."""
    sentences = {}
    for i in np.flatnonzero(held).tolist():
        is_lower = values[i] - lower[i] < upper[i] - values[i]
        which, bound = ("lower", lower[i]) if is_lower else ("upper", upper[i])
        sentences[names[i]] = f"at its {which} bound {bound:g}, where it has no standard error"
    return sentences


def table(uncertainty: "Uncertainty") -> str:
    """Name, value and error of each entry, and the messages."""
    names = uncertainty.names[:_MOST]
    errors = np.sqrt(np.diagonal(uncertainty.covariance))
    width = max(map(len, names))
    lines = [
        f"  {name:<{width}}  {value:<12.6g} "
        + (f"± {error:.2g}" if np.isfinite(error) else uncertainty.notes.get(name, f"± {error}"))
        for name, value, error in zip(names, uncertainty.values, errors, strict=False)
    ]
    if len(uncertainty.names) > _MOST:
        lines.append(f"  and {len(uncertainty.names) - _MOST} more")
    count = len(uncertainty.names)
    title = f"Uncertainty of {count} {'entry' if count == 1 else 'entries'}"
    return "\n".join([title, *lines, *(f"  {message}" for message in uncertainty.messages)])
