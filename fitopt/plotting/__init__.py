"""Pictures of histories, fits and uncertainties.

matplotlib is imported when something is drawn. None of its settings is changed, and fonts follow those
of the user.
"""

from .corners import plot_corner
from .fits import plot_fit
from .histories import plot_history, plot_parameters
from .many import plot_starts, plot_waterfall
from .uncertainties import plot_contour, plot_correlation, plot_profile

__all__ = [
    "plot_contour",
    "plot_corner",
    "plot_correlation",
    "plot_fit",
    "plot_history",
    "plot_parameters",
    "plot_profile",
    "plot_starts",
    "plot_waterfall",
]
