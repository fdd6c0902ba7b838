"""Traced callbacks that end a fit."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fitopt.callback import Callback, StepInfo

from .recording import Best, KeepBest

_MOST_PATIENCE = 2**24  # float32 counts no further


class _Patience(NamedTuple):
    # The loss to improve on, and the steps since it did: one array, since each costs the loop a kernel.
    progress: Float[Array, "2"]
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
        whole = isinstance(patience, int) and not isinstance(patience, bool)
        if not whole or not 1 <= patience <= _MOST_PATIENCE:
            raise ValueError(
                f"EarlyStopping: patience must be from 1 to {_MOST_PATIENCE} steps, got {patience!r}"
            )
        if not (min_delta >= 0 and math.isfinite(min_delta)):
            raise ValueError(f"EarlyStopping: min_delta must be at least 0, got {min_delta!r}")
        self.patience = patience
        self.min_delta = float(min_delta)
        self.restore_best = bool(restore_best)

    def init(self, info: StepInfo) -> _Patience:
        best = KeepBest().init(info) if self.restore_best else None
        dtype = jnp.promote_types(info.loss.dtype, jnp.float32)
        return _Patience(jnp.array([jnp.inf, 0.0], dtype), best)

    def update(self, info: StepInfo, carry: _Patience) -> tuple[_Patience, Array]:
        least, waited = carry.progress[0], carry.progress[1]
        loss = info.loss.astype(least.dtype)
        improved = jnp.stack([loss, jnp.zeros_like(waited)])
        progress = jnp.where(loss < least - self.min_delta, improved, jnp.stack([least, waited + 1.0]))
        best = carry.best
        if best is not None:
            best, _ = KeepBest().update(info, best)
        return _Patience(progress, best), progress[1] >= self.patience

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
