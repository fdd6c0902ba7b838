"""`Stream`: batches of an iterable, read ahead in a thread."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from ..state import PyTree
from .source import Source

_MOST_BATCHES, _MOST_BYTES = 64, 2**23  # of a block
_AHEAD = 2  # full blocks that wait
_SECONDS = 0.05  # after so long a wait the fit looks whether it is to end


class Block(Source):
    """Some batches in a row, from number `first` of the fit on."""

    arrays: PyTree  # with a leading axis of batches; what lies behind the last one is not meant
    first: Int[Array, ""]
    count: Int[Array, ""]

    def draw(self, step: Int[Array, ""]) -> PyTree:
        # The state at which a stream has ended is evaluated with the last batch once more.
        place = jnp.clip(step - self.first, 0, self.count - 1)
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), self.arrays)


class Read(NamedTuple):
    """A block, and the states of the iterator before each of its batches and after the last."""

    block: Block
    first: int
    count: int
    states: list[Any]


class Stream:
    """Reads batches of an iterable in a thread, and stacks them into blocks.

    A block is handed over when it is full, or when the fit waits for it. At most two full ones wait
    besides the one that is being read.
    """

    def __init__(self, name: str, batches: Iterable[PyTree], step: int, state: Any = None):
        self._name = name
        self._step = step  # the number of the first batch in the block that is being read
        self._iterator: Any = iter(batches)
        self._get_state: Callable[[], Any] = getattr(self._iterator, "get_state", lambda: None)
        if state is not None:
            self._iterator.set_state(state)
        self._skip = 0 if state is not None else step
        self._full: list[Read] = []
        self._buffers: list[np.ndarray] = []
        self._count = 0  # of batches in the buffers
        self._states: list[Any] = []
        self._structure: Any = None
        self._error: BaseException | None = None
        self._has_ended = False
        self._is_closed = False
        self._x64 = jnp.result_type(float) == jnp.float64  # threads have settings of their own
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="fitopt batches", daemon=True).start()

    def take(self, give_up: Callable[[], bool], whole: bool = False) -> Read | None:
        """The next block, a full one if `whole` and there are so many batches; None where there are
        no more, or nobody wants to wait any longer.

        **Raises:** what the iterable has raised.
        """
        with self._changed:
            ready = lambda: self._full or (self._count and not whole) or self._has_ended
            while not (ready() or give_up()):
                self._changed.wait(_SECONDS)
            if not (self._full or self._count):
                if self._error is not None:
                    raise self._error
                return None
            read = self._full.pop(0) if self._full else self._block()
            self._changed.notify_all()
            return read

    def close(self) -> None:
        """Read no further."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # In the thread.

    def _read(self) -> None:
        try:
            with jax.enable_x64(self._x64):
                for _ in range(self._skip):
                    next(self._iterator)
                self._read_all()
        except StopIteration:
            pass
        except BaseException as error:  # the fit raises it in its own thread
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _read_all(self) -> None:
        before = self._get_state()
        for batch in self._iterator:
            after = self._get_state()
            with self._changed:
                self._put(batch, before, after)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_closed or len(self._full) < _AHEAD)
                if self._is_closed:
                    return
            before = after

    def _put(self, batch: PyTree, before: Any, after: Any) -> None:
        number = self._step + self._count
        named, structure = jax.tree.flatten_with_path(batch)
        leaves = [self._array(f"{self._name}{jax.tree_util.keystr(path)}", x) for path, x in named]
        if self._structure is None:
            self._structure = structure
            self._shapes = [(x.shape, x.dtype) for x in leaves]
            size = sum(x.nbytes for x in leaves)
            self._room = int(np.clip(_MOST_BYTES // max(size, 1), 1, _MOST_BATCHES))
        if structure != self._structure:
            raise ValueError(
                f"{self._name} must have one structure in all batches, {self._structure}; batch "
                f"{number} has {structure}"
            )
        for (path, _), x, (shape, dtype) in zip(named, leaves, self._shapes, strict=True):
            if (x.shape, x.dtype) != (shape, dtype):
                raise ValueError(
                    f"{self._name}{jax.tree_util.keystr(path)} must have shape {shape} and dtype "
                    f"{dtype} in all batches; in batch {number} it has {x.shape} and {x.dtype}"
                )
        if not self._count:
            self._buffers = [np.zeros((self._room, *shape), dtype) for shape, dtype in self._shapes]
            self._states = [before]
        for buffer, x in zip(self._buffers, leaves, strict=True):
            buffer[self._count] = x
        self._count += 1
        self._states.append(after)
        if self._count == self._room:
            self._full.append(self._block())

    def _array(self, where: str, x: Any) -> np.ndarray:
        array = np.asarray(x)
        if array.dtype == object or array.dtype.kind in "USMm":
            number = self._step + self._count
            raise TypeError(f"{where} must be an array of numbers; in batch {number} it is {x!r}")
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    def _block(self) -> Read:
        """What the buffers hold, which are left to it."""
        arrays = jax.tree.unflatten(self._structure, [jnp.asarray(buffer) for buffer in self._buffers])
        first, count = self._step, self._count
        block = Block(arrays, jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32))
        self._step, self._count = first + count, 0
        return Read(block, first, count, self._states)
