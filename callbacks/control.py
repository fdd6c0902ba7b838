"""Callbacks that steer: the learning rate, and when plain functions are called."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fitopt.callback import Callback, Fit, HostCallback, HostFunction, StepInfo, label
from fitopt.engine.validation import describe
from fitopt.history import History
from fitopt.optimizers.arguments import function, real, whole
from fitopt.optimizers.composition import known_rate
from fitopt.state import PyTree

from ._monitoring import Monitor, Monitoring, check_monitor


class ReduceOnPlateau(Monitoring):
    """Multiply the learning rate by `factor` whenever the loss has not improved for a while.

    The rules are those of `torch.optim.lr_scheduler.ReduceLROnPlateau`: a step is a bad one unless its
    loss l is less than b - `min_delta` - `rtol` |b|, where b is the best so far; after more than
    `patience` bad steps in a row the rate is reduced, and bad steps are counted from 0 again.

    **Arguments:**

    - `factor`: in (0, 1).
    - `patience`: how many bad steps in a row are borne.
    - `min_learning_rate`: the rate is not reduced below this.
    - `rtol`, `min_delta`: by how much a loss must be less to count as better.
    - `cooldown`: after a reduction, so many steps are not counted as bad.
    - `monitor`: what to watch instead of the loss: the name of what a callback before this one
        measures, such as `"validation_loss"`, of which each evaluation counts once; or a traceable
        function of a `fitopt.StepInfo` that returns a real scalar. The less the better.

    For optimizers whose state holds the learning rate: those of `fitopt.optimizers` made with a number,
    and of `optax.inject_hyperparams`. With parameter groups all rates are reduced.

    **Raises:** `TypeError` for an argument of another kind; `ValueError` for one out of its range, and
    when the fit starts, if the optimizer's state holds no learning rate, or a schedule sets it.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> from fitopt.callbacks import RecordLearningRate
    >>> callbacks = [ReduceOnPlateau(factor=0.5, patience=1), RecordLearningRate()]
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(1.0), callbacks)  # swings to and fro
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=6)[1]["learning_rate"]
    array([1. , 1. , 1. , 0.5, 0.5, 0.5], dtype=float32)
    """

    factor: float = eqx.field(default=0.1, converter=partial(real, "ReduceOnPlateau: factor"))
    patience: int = eqx.field(default=10, converter=partial(whole, "ReduceOnPlateau: patience", least=0))
    min_learning_rate: float = eqx.field(
        default=0.0, converter=partial(real, "ReduceOnPlateau: min_learning_rate")
    )
    rtol: float = eqx.field(default=1e-4, converter=partial(real, "ReduceOnPlateau: rtol"))
    min_delta: float = eqx.field(default=0.0, converter=partial(real, "ReduceOnPlateau: min_delta"))
    cooldown: int = eqx.field(default=0, converter=partial(whole, "ReduceOnPlateau: cooldown", least=0))
    monitor: Monitor | None = eqx.field(
        default=None, converter=partial(check_monitor, "ReduceOnPlateau: monitor")
    )

    def __check_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"ReduceOnPlateau: factor must be between 0 and 1, got {self.factor!r}")

    # The carry holds what a loss must be less than, how many bad steps there were, how many are not yet
    # to be counted, and whether to reduce: one array, as each array costs the loop a kernel.

    def init(self, info: StepInfo) -> Float[Array, "4"]:
        known_rate(info.learning_rate, "ReduceOnPlateau")
        dtype = jnp.promote_types(self.score(info).dtype, jnp.float32)
        return jnp.array([math.inf, 0, 0, 0], dtype)

    def update(self, info: StepInfo, carry: Float[Array, "4"]) -> tuple[Float[Array, "4"], bool]:
        limit, bad, cooling, _ = carry
        score = self.score(info).astype(carry.dtype)
        better = score < limit
        limit = jnp.where(better, score - self.min_delta - self.rtol * jnp.abs(score), limit)
        bad = jnp.where(better | (cooling > 0), 0, bad + 1)
        reduce = bad > self.patience
        bad = jnp.where(reduce, 0, bad)
        cooling = jnp.where(reduce, self.cooldown, jnp.maximum(cooling - 1, 0))
        new = jnp.stack([limit, bad, cooling, reduce.astype(carry.dtype)])
        return self.if_due(info, new, carry.at[3].set(0)), False

    def next_learning_rate(self, info: StepInfo, carry: Float[Array, "4"]) -> PyTree:
        def next_rate(rate: Array) -> Array:
            reduced = jnp.minimum(jnp.maximum(rate * self.factor, self.min_learning_rate), rate)
            return jnp.where(carry[3] > 0, reduced, rate)

        return jax.tree.map(next_rate, info.learning_rate)


class SetLearningRate(Callback):
    """Let a schedule set the learning rate, inside the compiled loop.

    **Arguments:**

    - `schedule`: a traceable function of the number of the step that returns the learning rate, such as
        those of `fitopt.schedules` and optax. With parameter groups it may return a dict by pattern.
    - `every`: at steps 0, `every`, 2 `every`, ...; between them the rate stays as it is.

    For optimizers whose state holds the learning rate: those of `fitopt.optimizers` made with a number,
    and of `optax.inject_hyperparams`.

    **Raises:** `TypeError` for what is no such function (`AdaptLearningRate` takes those of the
    history); `ValueError` for an `every` below 1, and when the fit starts, if the optimizer's state
    holds no learning rate, or a schedule sets it.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers, schedules
    >>> from fitopt.callbacks import RecordLearningRate
    >>> callbacks = [SetLearningRate(schedules.exponential(0.5, gamma=0.5)), RecordLearningRate()]
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), callbacks)
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=5)[1]["learning_rate"]
    array([0.5    , 0.25   , 0.125  , 0.0625 , 0.03125], dtype=float32)
    """

    schedule: Callable[[Array], Any] = eqx.field(
        converter=partial(function, "SetLearningRate: schedule", of="the step")
    )
    every: int = eqx.field(default=1, converter=partial(whole, "SetLearningRate: every"))

    def __check_init__(self) -> None:
        try:
            rates = jax.eval_shape(self.schedule, jax.ShapeDtypeStruct((), jnp.int32))
        except Exception as error:  # whatever a function does that has expected something else
            raise TypeError(
                "SetLearningRate: schedule must be a function of the step that can be traced, with "
                "jnp.where(step < 10, a, b) in place of a if step < 10 else b; "
                f"AdaptLearningRate takes functions of the history; got {self.schedule!r}"
            ) from error
        for one in jax.tree.leaves(rates, is_leaf=lambda x: x is None):
            is_scalar = hasattr(one, "dtype") and one.shape == ()
            if not (is_scalar and jnp.issubdtype(one.dtype, jnp.floating)):
                raise TypeError(
                    "SetLearningRate: schedule must return a real scalar, "
                    f"but it returned {describe(one)}"
                )

    def init(self, info: StepInfo) -> None:
        known_rate(info.learning_rate, "SetLearningRate")

    def first_learning_rate(self, info: StepInfo) -> PyTree:
        return self.schedule(jnp.zeros_like(info.step))

    def next_learning_rate(self, info: StepInfo, carry: Any) -> PyTree:
        return self.schedule((info.step + 1) // self.every * self.every)


class AdaptLearningRate(HostCallback):
    """Set the learning rate by looking at the history, in plain Python.

    **Arguments:**

    - `fn`: a function of the history that returns the learning rate from the next step on, or None to
        leave it as it is. With parameter groups it may return a dict by pattern.
    - `every`: it is called after steps 0, `every`, 2 `every`, ...

    For optimizers whose state holds the learning rate: those of `fitopt.optimizers` made with a number,
    and of `optax.inject_hyperparams`.

    **Raises:** `TypeError` for what is no function; `ValueError` for an `every` below 1, when the fit
    starts, if the optimizer's state holds no learning rate, and later, if a schedule sets it.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> from fitopt.callbacks import RecordLearningRate
    >>> def careful(history):
    ...     return 0.1 if history["loss"][-1] < 0.1 else None
    >>> callbacks = [AdaptLearningRate(careful), RecordLearningRate()]
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), callbacks)
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=5)[1]["learning_rate"]
    array([0.25, 0.25, 0.25, 0.1 , 0.1 ], dtype=float32)
    """

    uses: tuple[str, ...] = ()

    def __init__(self, fn: Callable[[History], Any], every: int = 1):
        self.fn: Callable[[History], Any] = function("AdaptLearningRate: fn", fn, "the history")
        self.every: int = whole("AdaptLearningRate: every", every)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        current = fit.learning_rate

        def adapt(step: int, diff: Any, static: Any, history: History, *rest: Any) -> None:
            nonlocal current
            new = self.fn(history)
            if new is not None and new != current:
                fit.learning_rate = current = new

        yield adapt


class _Called(HostCallback):
    """A plain function with a rhythm."""

    def __init__(self, who: str, fn: HostFunction):
        if isinstance(fn, Callback | HostCallback):
            raise TypeError(
                f"{who}: fn must be a plain function of seven arguments, got a {type(fn).__name__}, "
                "which has a rhythm of its own"
            )
        self.fn = function(f"{who}: fn", fn, "seven arguments")
        self.__name__ = label(fn)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        yield self.fn


class _Once(_Called):
    step = 0

    def due(self, step: int) -> int | None:
        return self.step if step <= self.step else None


def every(n: int, fn: HostFunction) -> HostCallback:
    """Call a plain Python function after steps 0, n, 2n, ... of the fit.

    `fn(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads)` may return None,
    whether to stop, or `(stop, diff_state, static_state)`.

    **Raises:** `TypeError` for what is no plain function, `ValueError` unless `n` is at least 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> def tell(step, *rest):
    ...     print("step", step)
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.1), every(50, tell))
    >>> _ = fit.run({"x": Parameter("x", 1.0)}, max_steps=120)
    step 0
    step 50
    step 100
    """
    called = _Called("every", fn)
    called.every = whole("every: n", n)
    return called


def once(step: int, fn: HostFunction) -> HostCallback:
    """Call a plain Python function once, after step `step` of the fit.

    `fn(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads)` may return None,
    whether to stop, or `(stop, diff_state, static_state)`. A fit that is resumed after that step does
    not call it again.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> def release(step, diff_state, static_state, *rest):
    ...     return False, diff_state, {**static_state, "weight": 0.0}
    >>> loss = lambda s: s["x"] ** 2 + s["weight"] * s["x"]
    >>> fit = OptaxOptimizer(loss, optimizers.sgd(0.25), once(100, release))
    >>> fitted, _ = fit.run({"x": Parameter("x", 1.0), "weight": 2.0}, max_steps=200)
    >>> print(f"{fitted['x']:.3f}")
    -0.000
    """
    called = _Once("once", fn)
    called.step = whole("once: step", step, least=0)
    return called
