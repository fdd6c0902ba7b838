"""Standard errors, correlations, intervals and prediction bands of a fit."""

from .profile import Contour as Contour
from .profile import Interval as Interval
from .profile import Profile as Profile
from .result import Uncertainty as Uncertainty
