"""The key-value store of JAX's coordination service, through which processes tell each other things.

The first process of `jax.distributed` keeps it. Nothing in it is computed on devices: whoever waits for
a message can be interrupted, and where a process dies JAX ends those who wait for it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the store has no public name

_PIECE = 2**20  # bytes of one message
_WAIT = 500  # milliseconds: after so long Python looks whether there is a signal


def client() -> Any:
    """What talks to the store."""
    return distributed.global_state.client


def put(name: str, message: bytes) -> None:
    """Tell all processes something; a name is used once."""
    pieces = [message[i : i + _PIECE] for i in range(0, len(message), _PIECE)] or [b""]
    for number, piece in enumerate(pieces[1:], 1):
        client().key_value_set_bytes(f"{name}/{number}", piece)
    client().key_value_set_bytes(name, b"%d " % len(pieces) + pieces[0])


def get(name: str) -> bytes | None:
    """What somebody has put there; None if nobody has yet."""
    try:
        return _whole(name, client().key_value_try_get_bytes(name))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def wait_for(name: str, look: Callable[[], None] = lambda: None) -> bytes:
    """The same, once it is there; `look` is called from time to time, and may raise."""
    while True:
        try:
            return _whole(name, client().blocking_key_value_get_bytes(name, _WAIT))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        look()


def _whole(name: str, begin: bytes) -> bytes:
    count, _, first = begin.partition(b" ")
    rest = (client().key_value_try_get_bytes(f"{name}/{i}") for i in range(1, int(count)))
    return first + b"".join(rest)


def remove(name: str) -> None:
    """Forget all messages whose names begin with this one and a slash."""
    client().key_value_delete(name)
