"""Traced callbacks that write down what happens, and `KeepBest`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from fitopt.callback import Callback, StepInfo
from fitopt.history import RESERVED


def _check_every(name: str, every: Any) -> int:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"{name}: every must be a positive integer, got {every!r}")
    return every


class Record(Callback):
    """Record `fn(info)` as `history[name]`, at every `every`-th step.

    **Arguments:**

    - `name`: of the series.
    - `fn`: a traceable function of a `fitopt.StepInfo` that returns an array or a pytree of arrays.
    - `every`: record at steps 0, `every`, 2 `every`, ...; between them `fn` is not computed.

    >>> import jax.numpy as jnp
    >>> norm = Record("norm", lambda info: jnp.abs(info.params["k"]), every=10)
    """

    name: str
    fn: Callable[[StepInfo], PyTree]
    every: int

    def __init__(self, name: str, fn: Callable[[StepInfo], PyTree], every: int = 1):
        if not isinstance(name, str) or name in RESERVED:
            raise ValueError(
                f"Record: name must be a string other than {', '.join(RESERVED)}; got {name!r}"
            )
        if not callable(fn):
            raise TypeError(f"Record {name!r}: fn must be a function of the step's info, got {fn!r}")
        self.name = name
        self.fn = fn
        self.every = _check_every("Record", every)

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {self.name: self.fn(info)}


class RecordParameters(Callback):
    """Record the free values as `history["parameters"]`, at every `every`-th step.

    They are those at which the step's loss was taken, in the structure of the state, with a leading
    axis of records.
    """

    every: int

    def __init__(self, every: int = 1):
        self.every = _check_every("RecordParameters", every)

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {"parameters": info.params}


class RecordLearningRate(Callback):
    """Record the learning rate of each update as `history["learning_rate"]`, at every `every`-th step.

    For optimizers whose state holds it: those of `fitopt.optimizers`, and of `optax.inject_hyperparams`.
    Parameter groups give a dict by pattern.

    **Raises:** `ValueError` when the fit starts, if the optimizer's state holds no learning rate.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers, schedules
    >>> optimizer = optimizers.sgd(schedules.exponential(0.5, gamma=0.1))
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizer, RecordLearningRate())
    >>> _, history = fit.run({"x": Parameter("x", 1.0)}, max_steps=3)
    >>> history["learning_rate"].round(4)
    array([0.5  , 0.05 , 0.005], dtype=float32)
    """

    every: int

    def __init__(self, every: int = 1):
        self.every = _check_every("RecordLearningRate", every)

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        if info.learning_rate is None:
            raise ValueError(
                "RecordLearningRate: the state of this optimizer holds no learning rate; use one of "
                "fitopt.optimizers, or optax.inject_hyperparams"
            )
        return {"learning_rate": info.learning_rate}


class Best(NamedTuple):
    """The least loss so far, and the free values at which it was taken."""

    loss: Array
    params: PyTree


class KeepBest(Callback):
    """Return the state with the least loss of all that were evaluated, instead of the last one."""

    def init(self, info: StepInfo) -> Best:
        return Best(jnp.full_like(info.loss, jnp.inf), info.params)

    def update(self, info: StepInfo, carry: Best) -> tuple[Best, bool]:
        # A branch that copies is cheaper than a selection in every parameter.
        here = Best(info.loss, info.params)
        return lax.cond(info.loss < carry.loss, lambda: here, lambda: carry), False

    def result(self, carry: Best) -> tuple[PyTree, Array]:
        return carry.params, carry.loss
