"""Fit the parameters of JAX models to data."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import callbacks as callbacks
from . import optimizers as optimizers
from . import schedules as schedules
from . import transforms as transforms
from .callback import Callback as Callback
from .callback import Fit as Fit
from .callback import HostCallback as HostCallback
from .callback import StepInfo as StepInfo
from .engine import OptaxOptimizer as OptaxOptimizer
from .history import History as History
from .least_squares import LeastSquares as LeastSquares
from .parameter import Parameter as Parameter
from .partition import combine as combine
from .partition import partition as partition
from .partition import values as values
from .plotting import plot_contour as plot_contour
from .plotting import plot_correlation as plot_correlation
from .plotting import plot_fit as plot_fit
from .plotting import plot_parameters as plot_parameters
from .plotting import plot_profile as plot_profile
from .reporting import Report as Report
from .reporting import report as report
from .stateful import Optimizer as Optimizer
from .uncertainty import Uncertainty as Uncertainty

if TYPE_CHECKING:
    from .levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt

__version__ = version("fitopt")


def __getattr__(name: str) -> Any:
    if name == "LevenbergMarquardt":  # not before it is asked for: it brings optimistix with it
        from .levenberg_marquardt import LevenbergMarquardt

        return LevenbergMarquardt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
