"""`Optimizer`: an optax optimizer that holds its own state, one step at a time."""

from .optimizer import Optimizer

__all__ = ["Optimizer"]
