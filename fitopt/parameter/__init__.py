"""`Parameter`, and the specification of what it is besides its value."""

from .parameter import Parameter, with_value
from .specification import Spec

__all__ = ["Parameter", "Spec", "with_value"]
