"""Print the table that docs/all_of_optax.md shows."""

from .table import markdown

print(markdown())
