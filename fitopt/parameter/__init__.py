"""`Parameter`, and the specification of what it is besides its value."""

from .parameter import Parameter, with_value
from .specification import Spec
from .trainable import trainable

__all__ = ["Parameter", "Spec", "trainable", "with_value"]
