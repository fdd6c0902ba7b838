"""Where the records of traced callbacks are kept during a chunk."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..callback import Callback, StepInfo
from ..history import RESERVED
from ..state import PyTree

MOST_STEPS = 2**15  # of one chunk: room for this many losses is set aside
_MOST_BYTES = 2**26  # of the records of one callback in one chunk


class Recorder(NamedTuple):
    """The buffer of one callback's records during a chunk."""

    callback: Callback
    shapes: dict[str, PyTree] | None
    room: int  # records

    @classmethod
    def of(cls, callback: Callback, info: StepInfo) -> "Recorder":
        # The info is no argument: the state in it may hold what is no array.
        shapes = jax.eval_shape(lambda: records_of(callback, info))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        room = min(-(-MOST_STEPS // callback.every), _MOST_BYTES // max(size, 1))
        return cls(callback, shapes, max(room, 1))

    @property
    def reach(self) -> int:
        """How many steps fill the buffer."""
        return self.room * self.callback.every if self.shapes else MOST_STEPS

    def empty(self) -> dict[str, PyTree] | None:
        return jax.tree.map(lambda x: jnp.zeros((self.room, *x.shape), x.dtype), self.shapes)

    def write(self, buffer: Any, info: StepInfo, first: Array) -> Any:
        if self.shapes is None:
            return None
        every = self.callback.every
        slot = info.step // every - (first + every - 1) // every

        def put(buffer: Any) -> Any:
            return jax.tree.map(
                lambda x, new: lax.dynamic_update_index_in_dim(x, new, slot, 0),
                buffer,
                records_of(self.callback, info),
            )

        if every == 1:
            return put(buffer)
        return lax.cond(info.step % every == 0, put, lambda buffer: buffer, buffer)


def records_of(callback: Callback, info: StepInfo) -> dict[str, PyTree] | None:
    """What a callback records, by name."""
    records = callback.record(info)
    if records is None:
        return None
    if not isinstance(records, Mapping):
        records = {getattr(callback, "name", type(callback).__name__): records}
    return {name: jax.tree.map(jnp.asarray, record) for name, record in records.items()}


def check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in RESERVED or names.count(name) > 1:
            raise ValueError(f"two callbacks record {name!r}, or a name that the history itself uses")
