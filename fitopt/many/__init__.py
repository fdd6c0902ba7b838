"""Many fits at once."""

from .fits import Fits, Minimum
from .starts import starts
from .states import States, vary

__all__ = ["Fits", "Minimum", "States", "starts", "vary"]
