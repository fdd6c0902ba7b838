"""Standard errors, correlations, intervals and prediction bands of a fit."""

from .contour import Contour
from .profile import Interval, Profile
from .result import Uncertainty

__all__ = ["Contour", "Interval", "Profile", "Uncertainty"]
