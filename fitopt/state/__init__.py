"""A state and its Parameters."""

from .layout import Flat, Layout, flatten
from .parameter_vector import ParameterVector
from .trees import combine, is_array, is_leaf, is_parameter, partition, values

__all__ = [
    "Flat",
    "Layout",
    "ParameterVector",
    "combine",
    "flatten",
    "is_array",
    "is_leaf",
    "is_parameter",
    "partition",
    "values",
]
