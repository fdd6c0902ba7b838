"""Callbacks that write down what happens, and `KeepBest`."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fitopt.callback import Callback, Fit, HostCallback, StepInfo
from fitopt.history import RESERVED
from fitopt.optimizers.arguments import function, one_of, whole
from fitopt.optimizers.composition import known_rate
from fitopt.state import PyTree

from ._monitoring import Monitor, Monitoring, check_monitor

Norm = Literal["l2", "max"]


def _every(who: str) -> Callable[[Any], int]:
    return partial(whole, f"{who}: every")


def series_name(who: str, name: Any) -> str:
    """The name of a series that the history does not use itself."""
    if not isinstance(name, str):
        raise TypeError(f"{who}: name must be a string, got {name!r}")
    if name in RESERVED:
        raise ValueError(f"{who}: name must be another one than {', '.join(RESERVED)}; got {name!r}")
    return name


class Record(Callback):
    """Record `fn(info)` as `history[name]`, at every `every`-th step.

    **Arguments:**

    - `name`: of the series.
    - `fn`: a traceable function of a `fitopt.StepInfo` that returns an array or a pytree of arrays.
    - `every`: record at steps 0, `every`, 2 `every`, ...; between them `fn` is not computed.

    **Raises:** `TypeError` for arguments of another kind; `ValueError` for a name that the history
    itself uses, and for an `every` below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> double = Record("double", lambda info: 2 * info.params["x"], every=2)
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), double)
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=5)[1]["double"]
    array([2.   , 0.5  , 0.125], dtype=float32)
    """

    name: str = eqx.field(converter=partial(series_name, "Record"))
    fn: Callable[[StepInfo], PyTree] = eqx.field(
        converter=partial(function, "Record: fn", of="the step's info")
    )
    every: int = eqx.field(default=1, converter=_every("Record"))

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {self.name: self.fn(info)}


class RecordParameters(Callback):
    """Record the free values as `history["parameters"]`, at every `every`-th step.

    They are those at which the step's loss was taken, in the user's units and in the structure of the
    state, with a leading axis of records.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...

    **Raises:** `TypeError` for an `every` that is no integer, `ValueError` for one below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), RecordParameters(every=2))
    >>> _, history = fit.run({"x": Parameter("x", 1.0)}, max_steps=5)
    >>> history["parameters"]["x"], history.steps("parameters")
    (array([1.    , 0.25  , 0.0625], dtype=float32), array([0, 2, 4]))
    """

    every: int = eqx.field(default=1, converter=_every("RecordParameters"))

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {"parameters": info.params}


class RecordGradients(Callback):
    """Record the gradients as `history["gradients"]`, at every `every`-th step.

    They are by unconstrained value, which is what the optimizer moves: for a Parameter without bounds,
    scale or transform the same as in the user's units. In the structure of the state, with a leading
    axis of records.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...

    **Raises:** `TypeError` for an `every` that is no integer, `ValueError` for one below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), RecordGradients())
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=3)[1]["gradients"]["x"]
    array([2. , 1. , 0.5], dtype=float32)
    """

    every: int = eqx.field(default=1, converter=_every("RecordGradients"))

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {"gradients": info.grads}


class RecordGradientNorm(Callback):
    """Record the size of the gradient as `history["gradient_norm"]`, at every `every`-th step.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...
    - `norm`: `"l2"`, the square root of the sum of all squares, or `"max"`, the largest entry; over all
        free Parameters, by unconstrained value.

    **Raises:** `TypeError` for arguments of another kind; `ValueError` for another norm or an `every`
    below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), RecordGradientNorm())
    >>> fit.run({"x": Parameter("x", -1.0)}, max_steps=3)[1]["gradient_norm"]
    array([2. , 1. , 0.5], dtype=float32)
    """

    every: int = eqx.field(default=1, converter=_every("RecordGradientNorm"))
    norm: Norm = eqx.field(
        default="l2", converter=partial(one_of, "RecordGradientNorm: norm", choices=get_args(Norm))
    )

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {"gradient_norm": gradient_norm(info.grads, self.norm)}


def gradient_norm(grads: PyTree, norm: Norm) -> Float[Array, ""]:
    """The norm of all entries; unlike `optax.tree.norm` of half-precision and of empty arrays, too."""
    sizes = [jnp.abs(grad) for grad in jax.tree.leaves(grads)]
    sizes = [size.astype(jnp.promote_types(size.dtype, jnp.float32)) for size in sizes]
    if norm == "max":
        return jnp.max(jnp.stack([jnp.max(size, initial=0.0) for size in sizes]))
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(size)) for size in sizes])))


class RecordLearningRate(Callback):
    """Record the learning rate of each update as `history["learning_rate"]`, at every `every`-th step.

    For optimizers whose state holds it: those of `fitopt.optimizers`, and of `optax.inject_hyperparams`.
    Parameter groups give a dict by pattern.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...

    **Raises:** `TypeError` for an `every` that is no integer; `ValueError` for one below 1, and when the
    fit starts, if the optimizer's state holds no learning rate.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers, schedules
    >>> optimizer = optimizers.sgd(schedules.exponential(0.5, gamma=0.1))
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizer, RecordLearningRate())
    >>> _, history = fit.run({"x": Parameter("x", 1.0)}, max_steps=3)
    >>> history["learning_rate"].round(4)
    array([0.5  , 0.05 , 0.005], dtype=float32)
    """

    every: int = eqx.field(default=1, converter=_every("RecordLearningRate"))

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {"learning_rate": known_rate(info.learning_rate, "RecordLearningRate")}


class RecordAux(Callback):
    """Record what the loss returns besides as `history["aux"]`, at every `every`-th step.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...

    **Raises:** `TypeError` for an `every` that is no integer; `ValueError` for one below 1, and when the
    fit starts, if the loss returns nothing besides.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> loss = lambda state: (state["x"] ** 2, {"x": state["x"]})
    >>> fit = OptaxOptimizer(loss, optimizers.sgd(0.25), RecordAux(), has_aux=True)
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=3)[1]["aux"]["x"]
    array([1.  , 0.5 , 0.25], dtype=float32)
    """

    every: int = eqx.field(default=1, converter=_every("RecordAux"))

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        if not jax.tree.leaves(info.aux):
            raise ValueError(
                "RecordAux: the loss returns no auxiliary data; let it return (loss, aux), "
                "and say has_aux=True"
            )
        return {"aux": info.aux}


class RecordTime(HostCallback):
    """Record the seconds since the fit began as `history["time"]`, at every `every`-th step.

    Compilation counts. It visits Python, which takes some hundred microseconds each time: where steps
    are fast, choose `every` accordingly. After a resume it counts on from the last record.

    **Arguments:**

    - `every`: record at steps 0, `every`, 2 `every`, ...

    **Raises:** `TypeError` for an `every` that is no integer, `ValueError` for one below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), RecordTime(every=100))
    >>> _, history = fit.run({"x": Parameter("x", 1.0)}, max_steps=500)
    >>> history["time"].shape, history.steps("time")
    ((5,), array([  0, 100, 200, 300, 400]))
    """

    uses: tuple[str, ...] = ()
    steers = False

    def __init__(self, every: int = 1):
        self.every: int = whole("RecordTime: every", every)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        before = fit.history.get("time", (0.0,))[-1]
        began = time.perf_counter()

        def write(*arguments: Any) -> None:
            fit.record("time", before + time.perf_counter() - began, self.every)

        yield write


class _Best(NamedTuple):
    """A step and its loss; with a monitor, its least and its last value."""

    loss: Array
    step: Int[Array, ""]
    scores: Float[Array, "2"] | None = None


class KeepBest(Monitoring):
    """Return the state with the least loss of all that were evaluated, instead of the last one.

    **Arguments:**

    - `every`: consider steps 0, `every`, 2 `every`, ... and the last state.
    - `monitor`: what should be least instead of the loss: the name of what a callback before this one
        measures, such as `"validation_loss"`, or a traceable function of a `fitopt.StepInfo` that
        returns a real scalar. `history["final_loss"]` is the loss of the state that is returned, all the
        same.

    Where a host callback changes `static_state`, the best counts anew: that is another loss.

    **Raises:** `TypeError` for arguments of another kind, and when the fit starts, if `monitor` returns
    no real scalar; `ValueError` for an `every` below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> loss = lambda state: (state["x"] - 0.5) ** 2
    >>> fit = OptaxOptimizer(loss, optimizers.sgd(1.5), KeepBest())  # each step overshoots by more
    >>> fitted, history = fit.run({"x": Parameter("x", 0.75)}, max_steps=10)
    >>> print(f"{fitted['x']} {history['final_loss']}")
    0.75 0.0625
    """

    every: int = eqx.field(default=1, converter=_every("KeepBest"))
    monitor: Monitor | None = eqx.field(
        default=None, converter=partial(check_monitor, "KeepBest: monitor")
    )

    def init(self, info: StepInfo) -> _Best:
        best = _Best(jnp.full_like(info.loss, jnp.inf), jnp.full_like(info.step, -1))
        if self.monitor is None:
            return best
        score = self.score(info)
        return best._replace(scores=jnp.full((2,), jnp.inf, score.dtype))

    def update(self, info: StepInfo, carry: _Best) -> tuple[_Best, bool]:
        score = self.score(info)
        least = carry.loss if carry.scores is None else carry.scores[0]
        better = score < least
        if isinstance(self.monitor, str):
            better &= self.is_due(info)
            score = jnp.where(self.is_due(info), score, jnp.inf)  # this state has not been measured
        if self.every > 1:
            better &= info.step % self.every == 0
        loss = jnp.where(better, info.loss, carry.loss)
        step = jnp.where(better, info.step, carry.step)
        scores = None
        if carry.scores is not None:
            scores = jnp.stack([jnp.where(better, score, least), score])
        return _Best(loss, step, scores), False

    def objective_changed(self, carry: _Best) -> _Best:
        scores = None if carry.scores is None else jnp.full_like(carry.scores, jnp.inf)
        return _Best(jnp.full_like(carry.loss, jnp.inf), jnp.full_like(carry.step, -1), scores)

    def best_step(self, carry: _Best) -> Int[Array, ""]:
        return carry.step

    def result(
        self, carry: _Best, loss: Float[Array, ""] | float
    ) -> tuple[Bool[Array, ""], Float[Array, ""]]:
        if carry.scores is None:
            return carry.loss < loss, carry.loss
        least, last = carry.scores
        return (least < jnp.inf) & ~(last <= least), carry.loss
