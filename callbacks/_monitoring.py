"""What callbacks share that watch a number: the loss, a metric, or what a function makes of it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Real

from fitopt.callback import Callback, Metric, StepInfo
from fitopt.engine.validation import describe
from fitopt.optimizers.arguments import function
from fitopt.state import PyTree

Monitor = Callable[[StepInfo], Real[Array, ""]] | str


def check_monitor(name: str, monitor: Any) -> Monitor | None:
    """The name of a metric or a function to watch, or None for the loss."""
    if monitor is None or isinstance(monitor, str):
        return monitor
    return function(name, monitor, "the step's info, or the name of a metric")


class Monitoring(Callback):
    """A callback that watches the loss, or what `monitor` says.

    A metric by name, such as a validation loss, counts at the steps that measure it, and at no others.
    """

    monitor: eqx.AbstractVar[Monitor | None]

    def score(self, info: StepInfo) -> Array:
        """The number to watch; NaN if the step failed."""
        if self.monitor is None:
            return info.loss
        returned: Any = self._metric(info).value if isinstance(self.monitor, str) else self.monitor(info)
        score = jnp.asarray(returned) if isinstance(returned, int | float) else returned
        if not (hasattr(score, "dtype") and score.shape == () and jnp.isrealobj(score)):
            raise TypeError(
                f"{type(self).__name__}: monitor must return a real scalar, "
                f"but it returned {describe(returned)}"
            )
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        return jnp.where(jnp.isfinite(info.loss), score, jnp.nan)

    def is_due(self, info: StepInfo) -> Bool[Array, ""] | bool:
        """Whether there is a new number to watch at this step."""
        return self._metric(info).is_new if isinstance(self.monitor, str) else True

    def if_due(self, info: StepInfo, new: PyTree, old: PyTree) -> PyTree:
        """The new one if there is a new number to watch, else the old one."""
        if not isinstance(self.monitor, str):
            return new
        return jax.tree.map(lambda x, y: jnp.where(self.is_due(info), x, y), new, old)

    def _metric(self, info: StepInfo) -> Metric:
        if self.monitor not in info.metrics:
            known = ", ".join(map(repr, info.metrics)) or "nothing"
            raise ValueError(
                f"{type(self).__name__}: monitor must be what a callback before it measures, such as "
                f"Validate(..., name={self.monitor!r}); before it {known} is measured"
            )
        return info.metrics[self.monitor]  # type: ignore

    def watched(self) -> str:
        """What sentences call the number that is watched."""
        if self.monitor is None:
            return "the loss"
        if isinstance(self.monitor, str):
            return self.monitor
        name = getattr(self.monitor, "__name__", "<")
        return "the monitored value" if name.startswith("<") else name

    def counted(self) -> str:
        """What patience is counted in."""
        return "evaluations" if isinstance(self.monitor, str) else "steps"
