"""Where the arrays of a fit lie, if that is on several devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from ..state import Flat, Layout, PyTree
from . import snapshot
from .agreement import Agreement, SharedAgreement
from .snapshot import Snapshot

_PARTS = "carry", "status", "losses"  # of a chunk, besides what Python reads for callbacks
_SMALL = 2**16  # entries: a smaller array has a copy on each device, unless it is a Parameter's


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices that share a fit, and how each free Parameter lies on them.

    Left to itself, XLA chooses after each chunk anew where results lie: Parameters would wander, and
    each new place be another program. So what belongs to a Parameter (its value, its moments, its best
    value) lies where the Parameter lay at the start, and all else that is small on every device.
    """

    everywhere: NamedSharding
    paths: tuple[Any, ...]  # of the free Parameters
    shapes: tuple[tuple[int, ...], ...]
    shardings: tuple[NamedSharding, ...]

    @property
    def processes(self) -> list[int]:
        """Those to which the devices belong."""
        return sorted({device.process_index for device in self.everywhere.device_set})

    def agreement(self) -> Agreement:
        """What the processes agree by."""
        return SharedAgreement(self.processes) if len(self.processes) > 1 else Agreement()

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function such that its results lie where they should."""
        return jax.jit(lambda *arguments: self._spread(function(*arguments)))

    def _spread(self, result: Any) -> Any:
        """What a program returns, such that each part lies in its place."""
        if isinstance(result, Snapshot):
            return snapshot.take(self._by_path(snapshot.restore(result)))
        if isinstance(result, list):  # of all Parameters, or of some scalars
            if tuple(x.shape for x in result) != self.shapes:
                return [self._on(self.everywhere, x) for x in result]
            return [self._on(*pair) for pair in zip(self.shardings, result, strict=True)]
        if hasattr(result, "records"):  # Python reads all of them, and of the last step what is small
            records = jax.tree.map(lambda x: self._on(self.everywhere, x), result.records)
            chunk = result._replace(**{name: self._spread(getattr(result, name)) for name in _PARTS})
            return chunk._replace(records=records, last=self._by_path(result.last, is_read=True))
        if isinstance(result, tuple):
            return tuple(map(self._spread, result))
        return self._by_path(result)

    def _by_path(self, tree: PyTree, is_read: bool = False) -> PyTree:
        """A pytree in which what lies at the end of a Parameter's path belongs to it."""

        def on(path: Sequence[Any], x: Array) -> Array:
            is_everywhere = is_read and x.size <= _SMALL
            return self._on(self.everywhere if is_everywhere else self._of(path, x), x)

        return jax.tree.map_with_path(on, tree)

    def _of(self, path: Sequence[Any], x: Array) -> NamedSharding | None:
        parameters = zip(self.paths, self.shapes, self.shardings, strict=True)
        for own, shape, sharding in sorted(parameters, key=lambda one: -len(one[0])):
            more = x.ndim - len(shape)
            if more >= 0 and tuple(path[len(path) - len(own) :]) == own and x.shape[more:] == shape:
                spec = PartitionSpec(*[None] * more, *sharding.spec)
                return NamedSharding(sharding.mesh, spec)
        return self.everywhere if x.size <= _SMALL else None

    def _on(self, sharding: NamedSharding | None, x: Array) -> Array:
        is_key = jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)
        return x if sharding is None or is_key else lax.with_sharding_constraint(x, sharding)

    # Arrays that come from elsewhere, or go there.

    def put(self, arrays: Sequence[Any], like: Sequence[Any]) -> list[Any]:
        """Arrays that all processes have, where others lie; those that are there already stay."""
        return [_put(x, getattr(old, "sharding", None)) for x, old in zip(arrays, like, strict=True)]

    def put_values(self, values: Sequence[Any]) -> list[Any]:
        """Values of the free Parameters, where these lie."""
        return [_put(*pair) for pair in zip(values, self.shardings, strict=True)]

    def gathered(self, arrays: Sequence[Array]) -> list[Array]:
        """The same with a copy on each device, so that every process can read them."""
        return jax.jit(lambda arrays: arrays, out_shardings=self.everywhere)([*arrays])


def _put(x: Any, sharding: Any) -> Any:
    if sharding is None or getattr(x, "sharding", None) == sharding:
        return x
    if not isinstance(x, jax.Array):
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])
    return jax.device_put(x, sharding)


def placement_of(flat: Flat, others: PyTree) -> Placement | None:
    """The placement of a fit whose loss and callbacks hold `others`; None on one device.

    **Raises:** `ValueError` for a mesh whose axes are not automatic.
    """
    if jax.device_count() == 1:
        return None
    arrays = [*flat.free, *flat.fixed, *jax.tree.leaves(others)]
    shardings = [getattr(x, "sharding", None) for x in arrays]
    named = [x for x in shardings if isinstance(x, NamedSharding) and x.num_devices > 1]
    if not named:
        return None
    mesh = named[0].mesh
    if any(kind is not AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "fits of sharded arrays need a mesh with automatic axes, such as "
            "jax.make_mesh((8,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,)); got "
            f"{mesh.axis_types}"
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    own = [x if isinstance(x, NamedSharding) and x in named else everywhere for x in shardings]
    own = own[: len(flat.free)]
    return Placement(everywhere, _paths(flat.layout), tuple(np.shape(x) for x in flat.free), tuple(own))


def _paths(layout: Layout) -> tuple[Any, ...]:
    numbered = layout.free_tree(range(len(layout.specs)))
    return tuple(path for path, _ in jax.tree.leaves_with_path(numbered))
