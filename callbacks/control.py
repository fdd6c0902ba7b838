"""Callbacks that steer: the learning rate, and when plain functions are called."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fitopt.callback import Callback, Fit, HostCallback, HostFunction, StepInfo, label
from fitopt.engine.validation import describe
from fitopt.history import History

from ._checks import (
    Monitor,
    check_count,
    check_every,
    check_function,
    check_monitor,
    check_not_negative,
    check_number,
    check_rate,
    monitored,
)


class ReduceOnPlateau(Callback):
    """Multiply the learning rate by `factor` whenever the loss has not improved for a while.

    The rules are those of `torch.optim.lr_scheduler.ReduceLROnPlateau`: a step is a bad one unless its
    loss l is less than b - `min_delta` - `rtol` |b|, where b is the best so far; after more than
    `patience` bad steps in a row the rate is reduced, and bad steps are counted from 0 again.

    **Arguments:**

    - `factor`: in (0, 1).
    - `patience`: how many bad steps in a row are borne.
    - `min_lr`: the rate is not reduced below this.
    - `rtol`, `min_delta`: by how much a loss must be less to count as better.
    - `cooldown`: after a reduction, so many steps are not counted as bad.
    - `monitor`: what to watch instead of the loss: a traceable function of a `fitopt.StepInfo` that
        returns a real scalar, the less the better; such as a validation loss in `info.aux`.

    For optimizers whose state holds the learning rate: those of `fitopt.optimizers` made with a number,
    and of `optax.inject_hyperparams`. With parameter groups all rates are reduced.

    **Raises:** `ValueError` for numbers out of range; when the fit starts, if the optimizer's state
    holds no learning rate, or a schedule sets it.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> from fitopt.callbacks import RecordLearningRate
    >>> callbacks = [ReduceOnPlateau(factor=0.5, patience=1), RecordLearningRate()]
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(1.0), callbacks)  # swings to and fro
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=6)[1]["learning_rate"]
    array([1. , 1. , 1. , 0.5, 0.5, 0.5], dtype=float32)
    """

    factor: float
    patience: int
    min_lr: float
    rtol: float
    min_delta: float
    cooldown: int
    monitor: Monitor | None

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        min_lr: float = 0.0,
        rtol: float = 1e-4,
        min_delta: float = 0.0,
        cooldown: int = 0,
        monitor: Monitor | None = None,
    ):
        who = "ReduceOnPlateau"
        self.factor = check_number(who, "factor", factor)
        if not 0 < self.factor < 1:
            raise ValueError(f"{who}: factor must be between 0 and 1, got {factor!r}")
        self.patience = check_count(who, "patience", patience, least=0)
        self.min_lr = check_not_negative(who, "min_lr", min_lr)
        self.rtol = check_not_negative(who, "rtol", rtol)
        self.min_delta = check_not_negative(who, "min_delta", min_delta)
        self.cooldown = check_count(who, "cooldown", cooldown, least=0)
        self.monitor = check_monitor(who, monitor)

    # The carry holds what a loss must be less than, how many bad steps there were, how many are not yet
    # to be counted, and whether to reduce: one array, as each array costs the loop a kernel.

    def init(self, info: StepInfo) -> Float[Array, "4"]:
        check_rate("ReduceOnPlateau", info)
        score = monitored("ReduceOnPlateau", self.monitor, info)
        return jnp.array([math.inf, 0, 0, 0], jnp.promote_types(score.dtype, jnp.float32))

    def update(self, info: StepInfo, carry: Float[Array, "4"]) -> tuple[Float[Array, "4"], bool]:
        limit, bad, cooling, _ = carry
        score = monitored("ReduceOnPlateau", self.monitor, info).astype(carry.dtype)
        better = score < limit
        limit = jnp.where(better, score - self.min_delta - self.rtol * jnp.abs(score), limit)
        bad = jnp.where(better | (cooling > 0), 0, bad + 1)
        reduce = bad > self.patience
        bad = jnp.where(reduce, 0, bad)
        cooling = jnp.where(reduce, self.cooldown, jnp.maximum(cooling - 1, 0))
        return jnp.stack([limit, bad, cooling, reduce.astype(carry.dtype)]), False

    def next_learning_rate(self, info: StepInfo, carry: Float[Array, "4"]) -> PyTree:
        def next_rate(rate: Array) -> Array:
            reduced = jnp.minimum(jnp.maximum(rate * self.factor, self.min_lr), rate)
            return jnp.where(carry[3] > 0, reduced, rate)

        return jax.tree.map(next_rate, info.learning_rate)


def SetLearningRate(rate: Callable[[Any], Any], every: int = 1) -> Callback | HostCallback:
    """Set the learning rate as the fit goes on, by a schedule or by looking at the history.

    **Arguments:**

    - `rate`: a schedule, which is a traceable function of the number of the step, such as those of
        `fitopt.schedules` and optax; it runs inside the compiled loop. Or a function of the history
        that returns the rate from the next step on, or None to leave it; it runs in Python. It is the
        latter if it cannot be traced with an integer. With parameter groups it may return a dict by
        pattern.
    - `every`: at steps 0, `every`, 2 `every`, ...; between them the rate stays as it is.

    For optimizers whose state holds the learning rate: those of `fitopt.optimizers` made with a number,
    and of `optax.inject_hyperparams`.

    **Raises:** `TypeError` for what is neither; `ValueError` when the fit starts, if the optimizer's
    state holds no learning rate, or a schedule sets it.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers, schedules
    >>> from fitopt.callbacks import RecordLearningRate
    >>> def careful(history):
    ...     return 0.1 if history["loss"][-1] < 0.1 else None
    >>> loss, state = lambda state: state["x"] ** 2, {"x": Parameter("x", 1.0)}
    >>> for rate in (schedules.exponential(0.5, gamma=0.5), careful):
    ...     callbacks = [SetLearningRate(rate), RecordLearningRate()]
    ...     fit = OptaxOptimizer(loss, optimizers.sgd(0.25), callbacks)
    ...     print(fit.run(state, max_steps=5)[1]["learning_rate"])
    [0.5     0.25    0.125   0.0625  0.03125]
    [0.25 0.25 0.25 0.1  0.1 ]
    """
    check_function("SetLearningRate", "rate", rate, "the step, or of the history")
    every = check_every("SetLearningRate", every)
    try:
        rates = jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.int32))
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "SetLearningRate: rate must be a function of the history or, with the step, one that can be "
            "traced: jnp.where(step < 10, a, b) in place of a if step < 10 else b"
        ) from error
    except Exception:  # whatever a function does that has expected a history
        return _RateFromHistory(rate, every)
    for one in jax.tree.leaves(rates, is_leaf=lambda x: x is None):
        if not (hasattr(one, "dtype") and one.shape == () and jnp.issubdtype(one.dtype, jnp.floating)):
            raise TypeError(
                f"SetLearningRate: rate must return a real scalar, but it returned {describe(one)}"
            )
    return _ScheduledRate(rate, every)


class _ScheduledRate(Callback):
    rate: Callable[[Array], Any]
    every: int

    def init(self, info: StepInfo) -> None:
        check_rate("SetLearningRate", info)

    def first_learning_rate(self, info: StepInfo) -> PyTree:
        return self.rate(jnp.zeros_like(info.step))

    def next_learning_rate(self, info: StepInfo, carry: Any) -> PyTree:
        return self.rate((info.step + 1) // self.every * self.every)


class _RateFromHistory(HostCallback):
    uses = ()

    def __init__(self, rate: Callable[[History], Any], every: int):
        self.rate = rate
        self.every = every
        self.__name__ = "SetLearningRate"

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        current = fit.learning_rate

        def look(step: int, diff: Any, static: Any, history: History, *rest: Any) -> None:
            nonlocal current
            new = self.rate(history)
            if new is not None and new != current:
                fit.learning_rate = current = new

        yield look


class _Timed(HostCallback):
    """A plain function, called when the subclass says."""

    def __init__(self, who: str, fn: HostFunction):
        if isinstance(fn, Callback | HostCallback):
            raise TypeError(
                f"{who}: fn must be a plain function of seven arguments, got a {type(fn).__name__}, "
                "which has a rhythm of its own"
            )
        self.fn = check_function(who, "fn", fn, "seven arguments")
        self.__name__ = label(fn)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        yield self.fn


class _Every(_Timed):
    def __init__(self, n: int, fn: HostFunction):
        super().__init__("every", fn)
        self.every = check_count("every", "n", n)


class _Once(_Timed):
    def __init__(self, step: int, fn: HostFunction):
        super().__init__("once", fn)
        self.step = check_count("once", "step", step, least=0)

    def due(self, step: int) -> int | None:
        return self.step if step <= self.step else None


def every(n: int, fn: HostFunction) -> HostCallback:
    """Call a plain Python function after steps 0, n, 2n, ... of the fit.

    `fn(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads)` may return None,
    whether to stop, or `(stop, diff_state, static_state)`.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> def tell(step, *rest):
    ...     print("step", step)
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.1), every(50, tell))
    >>> _ = fit.run({"x": Parameter("x", 1.0)}, max_steps=120)
    step 0
    step 50
    step 100
    """
    return _Every(n, fn)


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
    return _Once(step, fn)
