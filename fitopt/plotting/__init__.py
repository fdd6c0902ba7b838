"""Pictures of histories, fits and uncertainties, and what gives them one look.

matplotlib is imported when something is drawn.
"""

from .fits import plot_fit as plot_fit
from .histories import BLUE as BLUE
from .histories import DARK as DARK
from .histories import GREY as GREY
from .histories import ORANGE as ORANGE
from .histories import find_panels as find_panels
from .histories import grid as grid
from .histories import plot_history as plot_history
from .histories import plot_parameters as plot_parameters
from .histories import tidy as tidy
from .uncertainties import plot_contour as plot_contour
from .uncertainties import plot_correlation as plot_correlation
from .uncertainties import plot_profile as plot_profile
