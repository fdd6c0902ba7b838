"""What callbacks share that watch a number: the loss, or what a function makes of each step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Real

from fitopt.callback import Callback, StepInfo
from fitopt.engine.validation import describe
from fitopt.optimizers.arguments import function

Monitor = Callable[[StepInfo], Real[Array, ""]]


def check_monitor(name: str, monitor: Any) -> Monitor | None:
    """A function to watch, or None for the loss."""
    return None if monitor is None else function(name, monitor, "the step's info")


class Monitoring(Callback):
    """A callback that watches the loss, or what `monitor` makes of a step."""

    monitor: eqx.AbstractVar[Monitor | None]

    def score(self, info: StepInfo) -> Array:
        """The number to watch; NaN if the step failed."""
        if self.monitor is None:
            return info.loss
        returned: Any = self.monitor(info)
        score = jnp.asarray(returned) if isinstance(returned, int | float) else returned
        if not (hasattr(score, "dtype") and score.shape == () and jnp.isrealobj(score)):
            raise TypeError(
                f"{type(self).__name__}: monitor must return a real scalar, "
                f"but it returned {describe(returned)}"
            )
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        return jnp.where(jnp.isfinite(info.loss), score, jnp.nan)

    def watched(self) -> str:
        """What sentences call the number that is watched."""
        if self.monitor is None:
            return "the loss"
        name = getattr(self.monitor, "__name__", "<")
        return "the monitored value" if name.startswith("<") else name
