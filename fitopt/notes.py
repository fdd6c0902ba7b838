"""What is said about uncertainties: sentences for single entries, and a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from .covariance import Inverse

if TYPE_CHECKING:
    from .uncertainty import Uncertainty

_MOST = 20  # rows of a table


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


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
