"""`Parameter`, the specification of what it is besides its value, and `Derived`."""

from .derived import Derived
from .parameter import Parameter, with_value
from .specification import Spec
from .trainable import trainable

__all__ = ["Derived", "Parameter", "Spec", "trainable", "with_value"]
