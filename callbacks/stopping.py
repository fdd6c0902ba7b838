"""Callbacks that end a fit."""

import contextlib
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fitopt.callback import Callback, Fit, HostCallback, StepInfo
from fitopt.optimizers.arguments import one_of, real, whole
from fitopt.state import PyTree

from ._monitoring import Monitor, Monitoring, check_monitor
from .recording import Norm, gradient_norm

_MOST_PATIENCE = 2**24  # float32 counts no further


class EarlyStopping(Monitoring):
    """Stop when the loss, or another number, has not improved for a while.

    The last state is returned; add `KeepBest` to return the one at which the number was least.

    **Arguments:**

    - `patience`: how many steps, or evaluations of a metric, may pass in a row without an improvement.
    - `min_delta`: a loss counts as better if it is less than the best by more than this; in units of
        the loss.
    - `monitor`: what to watch instead of the loss: the name of what a callback before this one
        measures, such as `"validation_loss"`, of which each evaluation counts once; or a traceable
        function of a `fitopt.StepInfo` that returns a real scalar. The less the better.

    **Raises:** `TypeError` for an argument of another kind, and when the fit starts, if `monitor`
    returns no real scalar; `ValueError` unless `patience` is at least 1 and `min_delta` at least 0.

    >>> EarlyStopping(patience=100, min_delta=1e-6).stop_reason()
    'EarlyStopping: the loss did not improve by more than 1e-06 in 100 steps'
    >>> def validation(info):
    ...     return info.aux["validation"]
    >>> EarlyStopping(patience=100, monitor=validation).stop_reason()
    'EarlyStopping: validation did not improve in 100 steps'
    """

    looks_for_convergence = True

    patience: int = eqx.field(converter=partial(whole, "EarlyStopping: patience"))
    min_delta: float = eqx.field(default=0.0, converter=partial(real, "EarlyStopping: min_delta"))
    monitor: Monitor | None = eqx.field(
        default=None, converter=partial(check_monitor, "EarlyStopping: monitor")
    )

    def __check_init__(self) -> None:
        if self.patience > _MOST_PATIENCE:
            raise ValueError(
                f"EarlyStopping: patience must be at most {_MOST_PATIENCE}, got {self.patience}"
            )

    # The carry holds the number to improve on and the steps since: one array, as each array costs the
    # loop a kernel.

    def init(self, info: StepInfo) -> Float[Array, "2"]:
        return jnp.array([jnp.inf, 0.0], jnp.promote_types(self.score(info).dtype, jnp.float32))

    def update(self, info: StepInfo, carry: Float[Array, "2"]) -> tuple[Float[Array, "2"], Array]:
        least, waited = carry
        score = self.score(info).astype(carry.dtype)
        improved = jnp.stack([score, jnp.zeros_like(waited)])
        new = jnp.where(score < least - self.min_delta, improved, jnp.stack([least, waited + 1.0]))
        carry = self.if_due(info, new, carry)
        return carry, carry[1] >= self.patience

    def stop_reason(self) -> str:
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"EarlyStopping: {self.watched()} did not improve{by} in {self.patience} {self.counted()}"


class StopOnLoss(Callback):
    """Stop after the first step whose loss is at most `threshold`.

    The update of that step is made; add `KeepBest` to return a state that is known to be as good.

    **Arguments:**

    - `threshold`: the loss at which it stops, or below; in units of the loss.

    **Raises:** `TypeError` for what is no number, and `ValueError` for NaN.

    >>> StopOnLoss(1e-3).stop_reason()
    'StopOnLoss: the loss reached 0.001'
    """

    threshold: float = eqx.field(converter=partial(real, "StopOnLoss: threshold", low=-math.inf))

    def update(self, info: StepInfo, carry: Any) -> tuple[Any, Array]:
        return carry, info.loss <= self.threshold

    def stop_reason(self) -> str:
        return f"StopOnLoss: the loss reached {self.threshold:g}"


class StopOnGradient(Callback):
    """Stop after the first step whose gradient is at most `tolerance`.

    **Arguments:**

    - `tolerance`: of the gradient by unconstrained value: for a Parameter without bounds, scale or
        transform that is loss per unit of the parameter.
    - `norm`: `"max"`, the largest entry, as `gtol` of `scipy.optimize` has it; or `"l2"`, the square
        root of the sum of all squares.

    **Raises:** `TypeError` for arguments of another kind; `ValueError` for another norm and for a
    `tolerance` below 0.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), StopOnGradient(1e-3))
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=100)[1]["stop_reason"]
    'StopOnGradient: the largest entry of the gradient is at most 0.001 (at step 11)'
    """

    looks_for_convergence = True

    tolerance: float = eqx.field(converter=partial(real, "StopOnGradient: tolerance"))
    norm: Norm = eqx.field(
        default="max", converter=partial(one_of, "StopOnGradient: norm", choices=get_args(Norm))
    )

    def update(self, info: StepInfo, carry: Any) -> tuple[Any, Array]:
        return carry, gradient_norm(info.grads, self.norm) <= self.tolerance

    def stop_reason(self) -> str:
        what = {"max": "largest entry", "l2": "norm"}[self.norm]
        return f"StopOnGradient: the {what} of the gradient is at most {self.tolerance:g}"


class _Before(NamedTuple):
    """The step before."""

    loss: Array
    params: PyTree


class StopOnStep(Callback):
    """Stop when both the parameters and the loss hardly change any more (Cauchy's test).

    It stops after the first step i with |yᵢ - yᵢ₋₁| ≤ atol + rtol |yᵢ| for every entry y of the free
    Parameters, in the user's units, and for the loss. This is the test of optimistix' solvers, in the
    largest norm.

    An optimizer that stands still on purpose for some steps, such as `optax.MultiSteps`, passes it.

    **Arguments:**

    - `rtol`, `atol`: by how much an entry may change, relative to its size and in its units.

    **Raises:** `TypeError` for what is no number, `ValueError` unless both are at least 0.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), StopOnStep(0.0, 1e-3))
    >>> fit.run({"x": Parameter("x", 1.0)}, max_steps=100)[1]["stop_reason"]
    'StopOnStep: no parameter and no loss changed by more than rtol=0, atol=0.001 (at step 10)'
    """

    looks_for_convergence = True

    rtol: float = eqx.field(converter=partial(real, "StopOnStep: rtol"))
    atol: float = eqx.field(converter=partial(real, "StopOnStep: atol"))

    def init(self, info: StepInfo) -> _Before:
        return _Before(jnp.full_like(info.loss, jnp.inf), info.params)

    def update(self, info: StepInfo, carry: _Before) -> tuple[_Before, Array]:
        now = _Before(info.loss, info.params)
        close = jax.tree.map(self._is_close, now, carry)
        return now, jnp.all(jnp.stack(jax.tree.leaves(close)))

    def _is_close(self, now: Array, before: Array) -> Bool[Array, ""]:
        return jnp.all(jnp.abs(now - before) <= self.atol + self.rtol * jnp.abs(now))

    def stop_reason(self) -> str:
        return (
            "StopOnStep: no parameter and no loss changed by more than "
            f"rtol={self.rtol:g}, atol={self.atol:g}"
        )


class StopAfter(HostCallback):
    """Stop when some time has passed, for batch queues and the patient.

    The clock starts with the fit: compilation counts. The fit ends with the chunk of about a tenth of a
    second, or the one step, during which time was up. A resumed fit gets the whole time anew.

    **Arguments:**

    - `seconds`: since the fit began.

    **Raises:** `TypeError` for what is no number, `ValueError` for one below 0.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(1e-6), StopAfter(seconds=0.1))
    >>> _, history = fit.run({"x": Parameter("x", 1.0)}, max_steps=10**9)
    >>> history["stop_reason"].split(":")[0]
    'StopAfter'
    """

    every: int | None = None
    uses: tuple[str, ...] = ()
    cuts_short = True
    steers = False

    def __init__(self, seconds: float):
        self.seconds: float = real("StopAfter: seconds", seconds)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        until = time.perf_counter() + self.seconds

        yield lambda *arguments: time.perf_counter() >= until

    def stop_reason(self) -> str:
        return f"StopAfter: {self.seconds:g} s have passed"
