"""What a fit has found, as text, HTML and plain numbers."""

from .elements import Element
from .report import Report, report

__all__ = ["Element", "Report", "report"]
