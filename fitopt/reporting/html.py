"""A report as HTML for notebooks: tables without colours, which suit light and dark themes."""

from html import escape

from .tables import Column, Tables

_TABLE = '<table style="border-collapse: collapse; margin: 0 0 1em 0">'
_LINE = "; border-bottom: thin solid; white-space: nowrap"  # in the colour of the text


def html(tables: Tables) -> str:
    """The report for a notebook."""
    pairs = [
        ("goodness of fit", tables.quality, True),
        ("correlations", tables.correlations, True),
        ("course of the fit", tables.course, False),
    ]
    beside = "".join(
        table([Column([title, *labels], False), Column(["", *facts], number)])
        for title, rows, number in pairs
        if rows
        for labels, facts in [zip(*rows, strict=True)]
    )
    row = "display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 2em"
    return "".join(
        [
            "<div>",
            table(tables.parameters),
            listed(tables.messages),
            f'<div style="{row}">{beside}</div>',
            "</div>",
        ]
    )


def listed(messages: list[str]) -> str:
    """Sentences one below the other."""
    items = "".join(f"<li>{escape(message)}</li>" for message in messages)
    return f"<ul>{items}</ul>" if items else ""


def table(columns: list[Column]) -> str:
    """A table."""
    head, *body = zip(*(column.cells for column in columns), strict=True)
    rows = [_row("th", head, columns), *(_row("td", cells, columns) for cells in body)]
    return f"{_TABLE}{''.join(rows)}</table>"


def _row(tag: str, cells: tuple[str, ...], columns: list[Column]) -> str:
    line, filled = _LINE if tag == "th" else "", []
    for cell, column in zip(cells, columns, strict=True):
        side = "right" if column.is_number else "left"
        near = "0.3em" if column.follows else "0.7em"
        style = f"padding: 0.2em 0 0.2em {near}; text-align: {side}; vertical-align: top{line}"
        filled.append(f'<{tag} style="{style}">{escape(cell)}</{tag}>')
    return f"<tr>{''.join(filled)}</tr>"
