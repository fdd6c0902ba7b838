"""A report as text."""

import textwrap

from .tables import Column, Tables

_WIDTH = 100


def text(tables: Tables) -> str:
    """The report for a terminal."""
    sections = [table(tables.parameters), _wrapped("! ", tables.messages)]
    if tables.correlations:
        pairs = [(f"  {names}", r) for names, r in tables.correlations]
        sections.append(_labelled([("correlations", ""), *pairs]))
    sections.append(_labelled([*tables.quality, *tables.course]))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def table(columns: list[Column]) -> list[str]:
    """The lines of a table."""
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
