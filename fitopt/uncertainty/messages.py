"""What is said about uncertainties: sentences for single elements, and a table."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from .covariance import Inverse

_MOST = 20  # rows of a table
_EDM = 0.01  # a fit may end at this distance from the minimum: a tenth of a standard error

SADDLE = "not a minimum: the Hessian has negative eigenvalues"
DIFFERENCES = (
    "the Hessian is of differences of gradients, as the loss cannot be differentiated twice: "
    "errors have three or four digits"
)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def without_error(
    names: Sequence[str], undetermined: Bool[np.ndarray, " n"], on_bound: Bool[np.ndarray, " n"]
) -> list[str]:
    """Which elements have no error."""
    some = lambda which: listed([name for name, one in zip(names, which, strict=True) if one])
    messages = [f"the data do not determine {some(undetermined)}"] if undetermined.any() else []
    if on_bound.any():
        messages.append(f"at a bound, and held there for the errors of the others: {some(on_bound)}")
    return messages


def rough(
    names: Sequence[str],
    is_rough: Bool[np.ndarray, " n"],
    undetermined: Bool[np.ndarray, " n"],
    is_single: bool,
) -> list[str]:
    """What conjugate gradients could not tell well, or not at all in single precision."""
    some = [name for name, one in zip(names, is_rough, strict=True) if one]
    messages = []
    if some:
        messages.append(f"only roughly known, as conjugate gradients came no closer: {listed(some)}")
    if is_single and (some or undetermined.any()):
        messages.append("single precision may be at fault: compute the errors in double precision")
    return messages


def not_at_minimum(
    names: Sequence[str],
    values: Float[np.ndarray, " n"],
    step: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    edm: float,
    rounding: float,
) -> list[str]:
    """That a fit has ended too early, if it is so; `step` leads to the minimum."""
    known = np.isfinite(errors) & (errors > 0) & (np.abs(step) > rounding * np.abs(values))
    if not (edm > _EDM and known.any()):
        return []
    steps = np.abs(step) / np.where(known, errors, np.inf)
    worst = int(np.argmax(steps))
    return [
        f"the fit has not come to the minimum: {names[worst]} would still change by "
        f"{steps[worst]:.2g} of its standard error, and the loss fall by {edm:.2g} of its rise at one "
        "standard error (the estimated distance to the minimum, EDM); fit on from here"
    ]


def undetermined(
    names: Sequence[str], inverse: Inverse, which: Bool[np.ndarray, " n"], what: str
) -> dict[str, str]:
    """Why each of some elements is not determined."""
    rows = np.flatnonzero(which).tolist()
    lengths = np.linalg.norm(inverse.flat[rows], axis=1)
    directions = inverse.flat[rows] / lengths[:, None]
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
    which: Bool[np.ndarray, " n"],
) -> dict[str, str]:
    """Which bound each of some elements lies on."""
    sentences = {}
    for i in np.flatnonzero(which).tolist():
        is_lower = values[i] - lower[i] < upper[i] - values[i]
        side, bound = ("lower", lower[i]) if is_lower else ("upper", upper[i])
        sentences[names[i]] = f"at its {side} bound {bound:g}, where it has no standard error"
    return sentences


def table(
    names: Sequence[str],
    values: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    notes: Mapping[str, str],
    messages: Sequence[str],
) -> str:
    """Name, value and error of each element, and the messages."""
    width = max(map(len, names[:_MOST]), default=0)
    lines = [
        f"  {name:<{width}}  {value:<12.6g} "
        + (f"± {error:.2g}" if np.isfinite(error) else notes.get(name, f"± {error}"))
        for name, value, error in zip(names[:_MOST], values, errors, strict=False)
    ]
    if len(names) > _MOST:
        lines.append(f"  and {len(names) - _MOST} more")
    title = f"Uncertainty of {len(names)} {'element' if len(names) == 1 else 'elements'}"
    return "\n".join([title, *lines, *(f"  {message}" for message in messages)])
