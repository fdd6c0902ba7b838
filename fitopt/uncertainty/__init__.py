"""Standard errors, correlations, intervals, predictions and samples of a fit."""

from .bootstrap import Bootstrap, bootstrap
from .contour import Contour
from .many import Uncertainties
from .named_matrix import NamedMatrix
from .posterior import log_density, to_inference_data
from .prediction import Prediction
from .profile import Interval, Profile
from .result import Uncertainty
from .sampling import Samples

__all__ = [
    "Bootstrap",
    "Contour",
    "Interval",
    "NamedMatrix",
    "Prediction",
    "Profile",
    "Samples",
    "Uncertainties",
    "Uncertainty",
    "bootstrap",
    "log_density",
    "to_inference_data",
]
