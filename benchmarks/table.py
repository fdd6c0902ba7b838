"""The rows of the table."""

from collections.abc import Iterable
from typing import NamedTuple

_HEADINGS = ("What", "Measured", "Figure", "Ratio", "Target", "Met")


class Row(NamedTuple):
    """One line: what ran, what was measured of it (with its unit), and how that compares."""

    name: str
    measured: str
    figure: str
    ratio: float | None = None  # to the baseline that `measured` or `target` names
    target: str = ""
    met: bool | None = None


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a markdown table, aligned for the terminal too.

    >>> print(markdown([Row("scan", "µs a step", "1.05", 1.0)]))
    | What | Measured  | Figure | Ratio | Target | Met |
    |------|-----------|--------|-------|--------|-----|
    | scan | µs a step | 1.05   | 1.000 |        |     |
    """
    cells = [_HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 10 else f"{row.ratio:.0f}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return row.name, row.measured, row.figure, ratio, row.target, met
