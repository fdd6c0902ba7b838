"""The numbers of many fits."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Table(NamedTuple):
    """How fits have ended: arrays with a leading axis of fits."""

    values: list[np.ndarray]
    final_loss: Float[np.ndarray, " fits"]
    n_steps: Int[np.ndarray, " fits"]
    best_loss: Float[np.ndarray, " fits"]
    best_step: Int[np.ndarray, " fits"]
    converged: Bool[np.ndarray, " fits"]
    elapsed: Float[np.ndarray, " fits"]  # seconds
    stop_reason: list[str]

    def select(self, numbers: Any) -> "Table":
        """The rows of some fits."""
        chosen: dict[str, Any] = {name: getattr(self, name)[numbers] for name in self._fields[1:-1]}
        reasons = [self.stop_reason[i] for i in np.arange(len(self.stop_reason))[numbers]]
        return Table([x[numbers] for x in self.values], **chosen, stop_reason=reasons)
