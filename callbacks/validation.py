"""`Validate`: another loss on other data, now and then."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fitopt.batches.minibatches import n_rows
from fitopt.callback import Callback, StepInfo
from fitopt.engine.validation import check_loss
from fitopt.optimizers.arguments import function, whole
from fitopt.state import PyTree

from .recording import series_name


class Validate(Callback):
    """Evaluate `loss(state, data)` at every `every`-th step, inside the compiled loop, and record it.

    Callbacks behind it may watch it by name: `EarlyStopping(5, monitor="validation_loss")` counts
    evaluations, and `KeepBest(monitor="validation_loss")` returns the state that had the least.

    **Arguments:**

    - `loss`: a function of the plain state and of `data` that returns a real scalar.
    - `data`: an array or a pytree of arrays, held on the device.
    - `every`: at steps 0, `every`, 2 `every`, ..., each before its update.
    - `name`: of the series in the history.
    - `batch_size`: evaluate so many rows at once, to bound the memory. The results are averaged by
        their numbers of rows, so `loss` must be a mean over rows.

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, and when the fit starts, if
    `loss` returns no real scalar.

    >>> import jax.numpy as jnp, optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> def loss(state, data):
    ...     return jnp.mean((state["x"] - data) ** 2)
    >>> train, test = jnp.array([1.0, 3.0]), jnp.array([2.0])
    >>> fit = OptaxOptimizer(lambda s: loss(s, train), optax.sgd(0.25), Validate(loss, test, every=2))
    >>> fit.run({"x": Parameter("x", 0.0)}, max_steps=5)[1]["validation_loss"]
    array([4.      , 0.25    , 0.015625], dtype=float32)
    """

    loss: Callable[..., Any] = eqx.field(
        converter=partial(function, "Validate: loss", of="the state and the data")
    )
    data: PyTree = eqx.field(converter=partial(jax.tree.map, jnp.asarray))
    every: int = eqx.field(converter=partial(whole, "Validate: every"))
    name: str = eqx.field(default="validation_loss", converter=partial(series_name, "Validate"))
    batch_size: int | None = None

    def __check_init__(self) -> None:
        if self.batch_size is not None:
            whole("Validate: batch_size", self.batch_size)
            n_rows("Validate: data", self.data)

    def init(self, info: StepInfo) -> Float[Array, ""]:
        shape = jax.eval_shape(lambda: self._evaluate(info.state))
        return jnp.full((), jnp.nan, shape.dtype)

    def update(self, info: StepInfo, carry: Float[Array, ""]) -> tuple[Float[Array, ""], bool]:
        is_due = info.step % self.every == 0
        return lax.cond(is_due, lambda: self._evaluate(info.state), lambda: carry), False

    def measure(self, carry: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
        return {self.name: carry}

    def record(self, info: StepInfo) -> dict[str, PyTree]:
        return {self.name: info.metrics[self.name].value}

    def _evaluate(self, state: Any) -> Float[Array, ""]:
        """The loss of all data, as a mean over parts of them if these are to be small."""
        evaluate = lambda data: check_loss(self.loss(state, data), False)[0]
        if self.batch_size is None:
            return evaluate(self.data)
        rows = n_rows("Validate: data", self.data)
        size = min(self.batch_size, rows)
        parts = rows // size

        def part(i: Array) -> Array:
            cut = lambda x: lax.dynamic_slice_in_dim(x, i * size, size)
            return evaluate(jax.tree.map(cut, self.data))

        total = size * jnp.sum(lax.map(part, jnp.arange(parts)))
        if rest := rows - parts * size:
            total += rest * evaluate(jax.tree.map(lambda x: x[-rest:], self.data))
        return total / rows
