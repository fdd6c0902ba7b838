"""What a fit has found, as text, HTML and plain numbers."""

from .report import Report as Report
from .report import report as report
