"""`Feed`: what a fit's chunks get their batches from."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from ..state import PyTree
from .source import Source
from .stream import Block, Read, Stream

_ALL = 2**30  # a source that is no stream has batches for so many steps


def draw(batches: PyTree, step: Int[Array, ""]) -> PyTree:
    """The batch of a step from a pytree of sources; traced."""
    return jax.tree.map(lambda source: source.draw(step), batches, is_leaf=_is_source)


def traced_sources(batches: Any) -> PyTree:
    """The sources for a fit inside `jit`, where no iterable can be read."""
    for leaf in jax.tree.leaves(batches, is_leaf=_is_source):
        if not isinstance(leaf, Source | None):
            raise TypeError(
                "batches: inside jit, vmap or grad there is no Python that could read an iterable; use "
                "fitopt.Minibatches or fitopt.Keys"
            )
    return batches


def sources_in(batches: Any) -> list[Source]:
    """Those among the leaves that are no iterables."""
    leaves = jax.tree.leaves(batches, is_leaf=_is_source)
    return [leaf for leaf in leaves if isinstance(leaf, Source)]


def epochs(batches: PyTree, first: int, steps: int) -> Int[np.ndarray, " steps"] | None:
    """In which pass through its data the first source that has passes begins each of some steps."""
    passes = (source.epochs(first, steps) for source in sources_in(batches))
    return next((found for found in passes if found is not None), None)


class Feed:
    """Gives the sources from which a chunk draws, and says for how many steps they last.

    `batches` is a source, a pytree of sources and iterables, or an iterable of pytrees of arrays.
    """

    def __init__(self, batches: Any, step: int = 0, states: Sequence[Any] | None = None):
        leaves, self._structure = jax.tree.flatten(batches, is_leaf=_is_source)
        if not any(isinstance(leaf, Source) for leaf in leaves):
            leaves, self._structure = [batches], jax.tree.structure(0)
        if isinstance(batches, dict) and leaves == [batches]:
            raise TypeError(
                "batches is a dict without a source: wrap data on the device as "
                f"fitopt.Minibatches(data, batch_size); got {', '.join(map(repr, batches))}"
            )
        names = ["batches"] if len(leaves) == 1 else [f"batches[{i}]" for i in range(len(leaves))]
        for name, leaf in zip(names, leaves, strict=True):
            is_iterable = hasattr(leaf, "__iter__") and not hasattr(leaf, "shape")
            if not (isinstance(leaf, Source) or is_iterable):
                raise TypeError(
                    f"{name} must be fitopt.Minibatches, fitopt.Keys or an iterable of batches, or a "
                    f"pytree of such, got {leaf!r}"
                )
        self._sources: list[Any] = leaves
        self.give_up: Callable[[], bool] = lambda: False  # whether not to wait for batches
        self.in_whole_blocks = False  # so that several processes get the same ones
        self._reads: dict[int, list[Read]] = {}
        self._streams = {
            i: Stream(name, leaf, step, None if states is None else states[i])
            for i, (name, leaf) in enumerate(zip(names, leaves, strict=True))
            if not isinstance(leaf, Source)
        }
        has_states = states is not None and all(states[i] is not None for i in self._streams)
        if step and self._streams and not has_states:
            warnings.warn(
                f"batches: an iterable without get_state and set_state is read from its beginning; the "
                f"first {step} batches, which the earlier fit has used, are dropped",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def reads(self) -> bool:
        """Whether there are iterables to read."""
        return bool(self._streams)

    def supply(self, step: int) -> tuple[PyTree, int]:
        """The sources for the chunk that begins with a step, and for how many steps they last."""
        left = _ALL
        for i, stream in self._streams.items():
            reads = self._reads.setdefault(i, [])
            while not reads or step >= reads[-1].first + reads[-1].count:
                if (read := stream.take(self.give_up, self.in_whole_blocks)) is None:
                    break
                reads[:] = [*reads[-1:], read]  # the one before is where a fit may go back to
            if not reads:
                raise ValueError("batches: the iterable has not given a single batch")
            self._sources[i] = reads[-1].block
            left = min(left, reads[-1].first + reads[-1].count - step)
        return jax.tree.unflatten(self._structure, self._sources), left

    def epochs(self, first: int, steps: int) -> Int[np.ndarray, " steps"] | None:
        """In which pass through the data steps begin; None if there are none."""
        return epochs(self._sources, first, steps)

    def states(self, step: int) -> list[Any] | None:
        """What the iterators need to go on before a step; None where there are no iterables."""
        if not self._streams:
            return None
        found: list[Any] = [None] * len(self._sources)
        for i, reads in self._reads.items():
            for read in reads:
                if read.first <= step <= read.first + read.count:
                    found[i] = read.states[step - read.first]
        return found

    def close(self) -> None:
        """Read no further."""
        for stream in self._streams.values():
            stream.close()


def _is_source(x: Any) -> bool:
    # An iterable is a leaf; JAX would warn of it.
    return isinstance(x, Source) or not isinstance(x, dict | list | tuple)


def describe(batches: PyTree) -> dict[str, str]:
    """What the sources are that are no iterables, by place."""
    pairs = ((i, x) for i, x in enumerate(sources_in(batches)) if not isinstance(x, Block))
    return {f"batches[{i}]": _text(source) for i, source in pairs}


def _text(source: Source) -> str:
    shown = jax.tree.map(lambda x: x.item() if np.ndim(x) == 0 else f"{x.dtype}{x.shape}", source)
    return repr(shown)
