"""Several processes under `jax.distributed`: their shares, and what they tell each other at the end.

Nothing goes from one to another while they compute. What each has found goes through the key-value
store of JAX's coordination service, which the first process runs.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import jax

from ..engine import store

_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds: shares may take as different a time as this
_exchanges = itertools.count()  # all processes make the same ones in the same order


class Processes(NamedTuple):
    """How many there are, and which of them this is."""

    count: int
    index: int

    def own_directory(self, directory: Path) -> Path:
        """Where this process saves its fits."""
        if self.count == 1:
            return directory
        return directory / f"process-{self.index}-of-{self.count}"

    def exchange(self, message: bytes) -> list[bytes | None]:
        """The messages of all processes, None for those that have died before they had one."""
        if self.count == 1:
            return [message]
        name = f"fitopt/many/{next(_exchanges)}"
        store.put(f"{name}/{self.index}", message)
        # From here on all that live have told theirs.
        alive = self._meet(f"{name}/told")
        found = [store.get(f"{name}/{i}") for i in range(self.count)]
        if any(found[i] is None for i in alive):
            raise RuntimeError(f"processes {sorted(alive)} live, but not all of them have told results")
        self._meet(f"{name}/heard")  # the store ends with the first process
        return found

    def _meet(self, name: str) -> set[int]:
        """Wait for all processes that live; which these are."""
        client = store.client()
        if jax.config.jax_enable_recoverability:  # pyright: ignore[reportAttributeAccessIssue]
            return {*client.get_live_nodes([*range(self.count)])}
        client.wait_at_barrier(name, _PATIENCE)  # where one dies, JAX ends the others
        return {*range(self.count)}


def processes() -> Processes:
    """Those of `jax.distributed`, or this one alone."""
    if not jax.distributed.is_initialized():
        return Processes(1, 0)
    return Processes(jax.process_count(), jax.process_index())
