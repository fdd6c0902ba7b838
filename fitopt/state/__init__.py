"""A state and its Parameters."""

from .layout import Flat, Layout, flatten
from .parameter_vector import ParameterVector
from .trees import PyTree, combine, is_array, is_leaf, is_parameter, partition, values
from .unconstrained import Unconstrained, unconstrained

__all__ = [
    "Flat",
    "Layout",
    "ParameterVector",
    "PyTree",
    "Unconstrained",
    "combine",
    "flatten",
    "is_array",
    "is_leaf",
    "is_parameter",
    "partition",
    "unconstrained",
    "values",
]
