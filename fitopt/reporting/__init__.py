"""What a fit has found, as text, HTML and plain numbers."""

from .comparison import Comparison, compare
from .elements import Element
from .report import Report, report

__all__ = ["Comparison", "Element", "Report", "compare", "report"]
