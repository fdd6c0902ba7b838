"""Fit the parameters of JAX models to data."""

from importlib.metadata import version

from . import callbacks, optimizers, schedules, transforms
from .batches import Keys, Minibatches
from .callback import Callback, Fit, HostCallback, StepInfo
from .history import History
from .least_squares import LeastSquares
from .many import Fits, starts, vary
from .methods.lbfgsb import LBFGSB
from .methods.levenberg_marquardt import LevenbergMarquardt
from .methods.priors import with_priors
from .optax_optimizer import OptaxOptimizer
from .parameter import Derived, Parameter, trainable
from .plotting import (
    plot_contour,
    plot_corner,
    plot_correlation,
    plot_fit,
    plot_history,
    plot_parameters,
    plot_profile,
    plot_starts,
    plot_waterfall,
)
from .reporting import Comparison, Report, compare, report
from .state import combine, partition, unconstrained, values
from .stateful import Optimizer
from .uncertainty import Uncertainty, bootstrap, log_density, to_inference_data

__version__ = version("fitopt")

__all__ = [
    "LBFGSB",
    "Callback",
    "Comparison",
    "Derived",
    "Fit",
    "Fits",
    "History",
    "HostCallback",
    "Keys",
    "LeastSquares",
    "LevenbergMarquardt",
    "Minibatches",
    "OptaxOptimizer",
    "Optimizer",
    "Parameter",
    "Report",
    "StepInfo",
    "Uncertainty",
    "bootstrap",
    "callbacks",
    "combine",
    "compare",
    "log_density",
    "optimizers",
    "partition",
    "plot_contour",
    "plot_corner",
    "plot_correlation",
    "plot_fit",
    "plot_history",
    "plot_parameters",
    "plot_profile",
    "plot_starts",
    "plot_waterfall",
    "report",
    "schedules",
    "starts",
    "to_inference_data",
    "trainable",
    "transforms",
    "unconstrained",
    "values",
    "vary",
    "with_priors",
]
