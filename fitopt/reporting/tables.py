"""The parts of a report as tables of words, which text and HTML lay out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .digits import measured, number, percent, span
from .elements import DERIVED, FITTED, Element, Elements

_FEW = 8  # elements of an array that are shown
_MOST = 20  # correlations that are shown


class Column(NamedTuple):
    """A column of a table, its title first."""

    cells: list[str]
    is_number: bool  # which stand at the right
    follows: bool = False  # close to the column before it


class Tables(NamedTuple):
    """All that is shown of a report; but for the first, labels and what belongs to them."""

    parameters: list[Column]
    correlations: list[tuple[str, str]]
    quality: list[tuple[str, str]]
    course: list[tuple[str, str]]
    messages: list[str]


def parameter_columns(parameters: Sequence[Elements], level: float | None, digits: int) -> list[Column]:
    """The table of parameters; columns that say nothing are left out."""
    rows = [row for one in parameters for row in _rows(one, digits)]
    interval = "" if level is None else f"{100 * level:g} % interval"
    titles = ["name", "value", "± error", "relative", interval, "start", "bounds"]
    if not any(row[2].startswith("±") for row in rows):
        titles[2] = ""
    columns = [
        Column([title, *cells], i in (1, 3, 5), follows=i == 2)
        for i, (title, *cells) in enumerate(zip(titles, *rows, strict=True))
    ]
    return [column for column in columns if any(column.cells[1:])]


def _rows(elements: Elements, digits: int) -> list[tuple[str, ...]]:
    few = len(elements) if len(elements) <= _FEW else _FEW - 1
    rows = [_row(elements[i], digits) for i in range(few)]
    more = len(elements) - few
    return [*rows, (f"{elements.block.name}: {more:,} more", *[""] * 6)] if more else rows


def _row(element: Element, digits: int) -> tuple[str, ...]:
    value, error = number(element.value), ""
    if element.status != FITTED and (element.status != DERIVED or element.error is None):
        error = f"({element.status})"
    elif element.error is not None and math.isinf(element.error):
        error = "(error unknown)"
    elif element.error == 0:
        error = "± 0"
    elif element.error is not None:
        value, error = measured(element.value, element.error, digits)
    relative = "" if element.relative_error is None else percent(element.relative_error)
    start = "" if element.start is None else number(element.start)
    interval = "" if element.interval is None else span(*element.interval, digits + 1)
    bounds = _bounds(element.lower, element.upper)
    if element.status == DERIVED and element.error is not None:
        bounds = f"({DERIVED})"
    return element.name, value, error, relative, interval, start, bounds


def _bounds(lower: float | None, upper: float | None) -> str:
    """An interval as mathematicians write it.

    >>> _bounds(0.0, None), _bounds(-0.5, 0.5), _bounds(None, None)
    ('[0, inf)', '[-0.5, 0.5]', '')
    """
    if lower is None and upper is None:
        return ""
    low = "(-inf" if lower is None else f"[{number(lower)}"
    high = "inf)" if upper is None else f"{number(upper)}]"
    return f"{low}, {high}"


def correlation_rows(correlations: Sequence[tuple[str, str, float]]) -> list[tuple[str, str]]:
    """The strongest correlations."""
    rows = [(f"{a}, {b}", f"{r:+.3f}") for a, b, r in correlations[:_MOST]]
    more = len(correlations) - len(rows)
    return [*rows, (f"{more:,} more", "")] if more else rows


def quality_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How good the fit is."""
    labels = {
        "n_data": "data points",
        "n_variables": "variables",
        "degrees_of_freedom": "degrees of freedom",
        "loss": "loss" if facts["chi_square"] is None else "chi-square",
        "reduced_chi_square": "reduced chi-square",
        "aic": "AIC",
        "bic": "BIC",
        "r_squared": "R-squared",
        "durbin_watson": "Durbin-Watson",
    }
    known = [(label, facts[name]) for name, label in labels.items() if facts[name] is not None]
    return [(label, f"{x:,}" if isinstance(x, int) else number(x)) for label, x in known]


def course_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the fit went."""
    stop_reason, n_steps, seconds = (facts[name] for name in ("stop_reason", "n_steps", "seconds"))
    each = "" if facts["n_evaluations"] is None else ", each an evaluation of the residuals"
    rows = [] if stop_reason is None else [("stopped", stop_reason)]
    rows += [] if n_steps is None else [("steps", f"{n_steps:,}{each}")]
    return rows if seconds is None else [*rows, ("seconds", f"{seconds:.3g}")]
