"""Standard errors, correlations, intervals and prediction bands of a fit."""

from .profile import Contour, Interval, Profile
from .result import Uncertainty

__all__ = ["Contour", "Interval", "Profile", "Uncertainty"]
