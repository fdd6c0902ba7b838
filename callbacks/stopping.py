"""Traced callbacks that end a fit."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fitopt.callback import Callback, StepInfo

from .recording import Best, KeepBest


class _Patience(NamedTuple):
    least: Array  # the loss to improve on
    waited: Array  # steps since it did
    best: Best | None


class EarlyStopping(Callback):
    """Stop when the loss has not improved for a while.

    **Arguments:**

    - `patience`: how many steps in a row may pass without an improvement.
    - `min_delta`: a loss counts as better if it is less than the best by more than this; in units of
        the loss.
    - `restore_best`: return the state with the least loss, as `KeepBest` does.

    **Raises:** `ValueError` unless `patience` is at least 1 and `min_delta` at least 0.

    >>> EarlyStopping(patience=100, min_delta=1e-6).why()
    'EarlyStopping: the loss did not improve by more than 1e-06 in 100 steps'
    """

    patience: int
    min_delta: float
    restore_best: bool

    def __init__(self, patience: int, min_delta: float = 0.0, restore_best: bool = False):
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"EarlyStopping: patience must be a positive integer, got {patience!r}")
        if not (min_delta >= 0 and math.isfinite(min_delta)):
            raise ValueError(f"EarlyStopping: min_delta must be at least 0, got {min_delta!r}")
        self.patience = patience
        self.min_delta = float(min_delta)
        self.restore_best = bool(restore_best)

    def init(self, info: StepInfo) -> _Patience:
        best = KeepBest().init(info) if self.restore_best else None
        return _Patience(jnp.full_like(info.loss, jnp.inf), jnp.zeros((), jnp.int32), best)

    def update(self, info: StepInfo, carry: _Patience) -> tuple[_Patience, Array]:
        better = info.loss < carry.least - self.min_delta
        least = jnp.where(better, info.loss, carry.least)
        waited = jnp.where(better, 0, carry.waited + 1)
        best = carry.best
        if best is not None:
            best, _ = KeepBest().update(info, best)
        return _Patience(least, waited, best), waited >= self.patience

    def result(self, carry: _Patience) -> tuple[PyTree, Array] | None:
        return None if carry.best is None else (carry.best.params, carry.best.loss)

    def why(self) -> str:
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"EarlyStopping: the loss did not improve{by} in {self.patience} steps"


class StopOnLoss(Callback):
    """Stop after the first step whose loss is at most `threshold`.

    The update of that step is made; add `KeepBest` to return a state that is known to be as good.

    >>> StopOnLoss(1e-3).why()
    'StopOnLoss: the loss reached 0.001'
    """

    threshold: float

    def __init__(self, threshold: float):
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or math.isnan(threshold):
            raise ValueError(f"StopOnLoss: threshold must be a number, got {threshold!r}")
        self.threshold = float(threshold)

    def update(self, info: StepInfo, carry: Any) -> tuple[Any, Array]:
        return carry, info.loss <= self.threshold

    def why(self) -> str:
        return f"StopOnLoss: the loss reached {self.threshold:g}"
