"""Several processes under `jax.distributed`: their shares, and what they tell each other at the end.

Nothing goes from one to another while they compute. What each has found goes through the key-value
store of JAX's coordination service, which the first process runs.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # the store has no public name

_PIECE = 2**20  # bytes of one message
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
        client: Any = distributed.global_state.client
        name = f"fitopt/{next(_exchanges)}"
        pieces = [message[i : i + _PIECE] for i in range(0, len(message), _PIECE)]
        for number, piece in enumerate(pieces):
            client.key_value_set_bytes(f"{name}/{self.index}/{number}", piece)
        client.key_value_set(f"{name}/{self.index}", str(len(pieces)))
        # From here on all that live have told theirs.
        alive = self._meet(client, f"{name}/told")
        found = [self._message(client, name, i, alive) for i in range(self.count)]
        self._meet(client, f"{name}/heard")  # the store ends with the first process
        return found

    def _message(self, client: Any, name: str, index: int, alive: set[int]) -> bytes | None:
        try:
            count = int(client.key_value_try_get(f"{name}/{index}"))
        except jax.errors.JaxRuntimeError:
            if index in alive:
                raise
            return None
        return b"".join(client.key_value_try_get_bytes(f"{name}/{index}/{i}") for i in range(count))

    def _meet(self, client: Any, name: str) -> set[int]:
        """Wait for all processes that live; which these are."""
        if jax.config.jax_enable_recoverability:  # pyright: ignore[reportAttributeAccessIssue]
            return {*client.get_live_nodes([*range(self.count)])}
        client.wait_at_barrier(name, _PATIENCE)  # where one dies, JAX ends the others
        return {*range(self.count)}


def processes() -> Processes:
    """Those of `jax.distributed`, or this one alone."""
    if not jax.distributed.is_initialized():
        return Processes(1, 0)
    return Processes(jax.process_count(), jax.process_index())
