"""A report as text, and the parts of it that HTML shows too."""

import math
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from .digits import measured, number, percent, span
from .entries import FITTED, Block, Entry

if TYPE_CHECKING:
    from .report import Report

_WIDTH = 100
_FEW = 8  # entries of an array that are shown
_MOST = 20  # correlations that are shown


class Column(NamedTuple):
    """A column of a table, its title first."""

    cells: list[str]
    is_number: bool  # which stand at the right
    follows: bool = False  # close to the column before it


def parameters(report: "Report") -> list[Column]:
    """The table of parameters; columns that say nothing are left out."""
    rows = [row for block in report._blocks for row in _rows(block, report._digits)]
    interval = "" if report._level is None else f"{100 * report._level:g} % interval"
    titles = ["name", "value", "± error", "relative", interval, "start", "bounds"]
    if not any(row[2].startswith("±") for row in rows):
        titles[2] = ""
    columns = [
        Column([title, *cells], i in (1, 3, 5), follows=i == 2)
        for i, (title, *cells) in enumerate(zip(titles, *rows, strict=True))
    ]
    return [column for column in columns if any(column.cells[1:])]


def _rows(block: Block, digits: int) -> list[tuple[str, ...]]:
    few = len(block) if len(block) <= _FEW else _FEW - 1
    rows = [_row(block.entry(i), digits) for i in range(few)]
    more = len(block) - few
    return [*rows, (f"{block.name}: {more:,} more", *[""] * 6)] if more else rows


def _row(entry: Entry, digits: int) -> tuple[str, ...]:
    value, error = number(entry.value), ""
    if entry.status != FITTED:
        error = f"({entry.status})"
    elif entry.error is not None and math.isinf(entry.error):
        error = "(error unknown)"
    elif entry.error == 0:
        error = "± 0"
    elif entry.error is not None:
        value, error = measured(entry.value, entry.error, digits)
    relative = "" if entry.relative_error is None else percent(entry.relative_error)
    start = "" if entry.start is None else number(entry.start)
    interval = "" if entry.interval is None else span(*entry.interval, digits + 1)
    return entry.name, value, error, relative, interval, start, _bounds(entry.lower, entry.upper)


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


def correlations(report: "Report") -> list[tuple[str, str]]:
    """The strongest correlations: names and number."""
    rows = [(f"{a}, {b}", f"{r:+.3f}") for a, b, r in report.correlations[:_MOST]]
    more = len(report.correlations) - len(rows)
    return [*rows, (f"{more:,} more", "")] if more else rows


def quality(report: "Report") -> list[tuple[str, str]]:
    """How good the fit is: labels and numbers."""
    facts = {
        "data points": report.n_data,
        "variables": report.n_variables,
        "degrees of freedom": report.degrees_of_freedom,
        "loss" if report.chi_square is None else "chi-square": report.loss,
        "reduced chi-square": report.reduced_chi_square,
        "AIC": report.aic,
        "BIC": report.bic,
    }
    return [
        (label, f"{x:,}" if isinstance(x, int) else number(x))
        for label, x in facts.items()
        if x is not None
    ]


def course(report: "Report") -> list[tuple[str, str]]:
    """How the fit went: labels and what is to say."""
    each = "" if report.n_evaluations is None else ", each an evaluation of the residuals"
    facts = {
        "stopped": report.stop_reason,
        "steps": None if report.n_steps is None else f"{report.n_steps:,}{each}",
        "seconds": None if report.seconds is None else f"{report.seconds:.3g}",
    }
    return [(label, fact) for label, fact in facts.items() if fact is not None]


def text(report: "Report") -> str:
    """The report for a terminal."""
    sections = [_table(parameters(report)), report.messages and _wrapped("! ", report.messages)]
    pairs = correlations(report)
    if pairs:
        sections.append(_labelled([("correlations", ""), *((f"  {names}", r) for names, r in pairs)]))
    sections.append(_labelled([*quality(report), *course(report)]))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _table(columns: list[Column]) -> list[str]:
    lines = [""] * len(columns[0].cells)
    for column in columns:
        width = max(map(len, column.cells))
        gap = " " if column.follows else "  "
        for i, cell in enumerate(column.cells):
            cell = cell.rjust(width) if column.is_number else cell.ljust(width)
            lines[i] += cell if column is columns[0] else gap + cell
    return [line.rstrip() for line in lines]


def _labelled(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows) + 2
    return [
        line.rstrip()
        for label, fact in rows
        for line in _wrapped(label.ljust(width), [fact], " " * width)
    ]


def _wrapped(first: str, sentences: list[str], then: str = "  ") -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(
            sentence, _WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=False
        )
        or [first]
    ]
