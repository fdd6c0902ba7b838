"""Print the table that the README shows."""

from .table import markdown

print(markdown())
