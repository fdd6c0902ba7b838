"""States drawn from the normal approximation around a minimum."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..state import Flat, ParameterVector, PyTree
from .likelihood import Likelihood
from .messages import listed

if TYPE_CHECKING:
    from pandas import DataFrame


class Samples(Sequence[PyTree]):
    """States that `uncertainty.sample(key, n)` has drawn: a sequence of them.

    All that is not free is the same in all of them, and held once.
    """

    def __init__(self, flat: Flat, free: Sequence[Array]):
        self._flat = flat
        self._free = list(free)  # with an axis of draws in front

    def __len__(self) -> int:
        return self._free[0].shape[0]

    @overload
    def __getitem__(self, index: int) -> PyTree: ...

    @overload
    def __getitem__(self, index: slice) -> "Samples": ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Samples(self._flat, [value[index] for value in self._free])
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, got {index}")
        return self._flat.layout.state([value[index] for value in self._free], self._flat.fixed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the free Parameters and of what is derived."""
        return tuple(self._named)

    def map(self, fn: Callable[[Any], PyTree]) -> PyTree:
        """What a function gives for each state, which it gets with plain arrays in place of Parameters.

        **Returns:** a pytree of NumPy arrays with an axis of draws in front.
        """
        plain = self._flat.layout.plain
        each = jax.vmap(lambda free: jax.tree.map(jnp.asarray, fn(plain(free, self._flat.fixed))))
        with ParameterVector.of(self._flat.layout, self._flat.free).precision():
            return jax.device_get(jax.jit(each)(self._free))

    def values(self, name: str) -> np.ndarray:
        """The values of a free Parameter, or of what is derived; shape `(draws, *shape)`.

        **Raises:** `KeyError` if there is none of this name.
        """
        if name not in self._named:
            raise KeyError(f"there is no {name!r} that was drawn; there are {listed([*self._named])}")
        return self._named[name]

    def to_dataframe(self) -> "DataFrame":
        """A table with a row for each draw and a column for each number."""
        from pandas import DataFrame

        columns = {}
        for name, array in self._named.items():
            for index in np.ndindex(array.shape[1:]):
                label = f"{name}[{','.join(map(str, index))}]" if index else name
                columns[label] = array[:, *index]
        return DataFrame(columns)

    @functools.cached_property
    def _named(self) -> dict[str, np.ndarray]:
        layout, fixed = self._flat.layout, self._flat.fixed
        each = jax.vmap(lambda free: layout.named_values(free, fixed))
        with ParameterVector.of(layout, self._flat.free).precision():
            return jax.device_get(jax.jit(each)(self._free))

    def __repr__(self) -> str:
        return f"Samples of {len(self)} states, of {listed([*self._named])}"


def sample(likelihood: Likelihood, key: Array, n: int) -> Samples:
    """States whose unconstrained values are drawn from a normal distribution."""
    flat, vector = likelihood.flat, likelihood.vector
    with vector.precision():
        factor = position_factor(likelihood)

        @jax.jit
        def draw(free: Sequence[Array], factor: Array, key: Array) -> list[Array]:
            position, elements = vector.to_position(free), vector.elements(free)
            normal = jax.random.normal(key, (n, factor.shape[1]), factor.dtype)

            def one(numbers: Array) -> list[Array]:
                values = vector.from_position(free, position, factor @ numbers)
                drawn = jnp.where(likelihood.on_bound, elements, vector.elements(values))
                return vector.with_elements(values, drawn)

            return jax.vmap(one)(normal)

        return Samples(flat, draw(flat.free, jnp.asarray(factor, vector.dtype), key))


def unconstrained_covariance(likelihood: Likelihood) -> Float[np.ndarray, "numbers numbers"]:
    """The covariance of the position, with Parameters in the order of their names."""
    vector, factor = likelihood.vector, position_factor(likelihood)
    covariance = factor @ factor.T
    held = ~vector.displacements_of(~likelihood.on_bound)
    covariance[held, held] = 1.0
    counts = [block.moved.size for block in vector.blocks]
    parts = np.split(np.arange(vector.n_displacements), np.cumsum(counts)[:-1])
    order = np.concatenate([part for _, part in sorted(zip(vector.names, parts, strict=True))])
    return covariance[np.ix_(order, order)]


def position_factor(likelihood: Likelihood) -> Float[np.ndarray, "displacements determined"]:
    """A root of the covariance of the position: `factor @ factor.T`.

    **Raises:** `ValueError` if there is no such covariance.
    """
    vector = likelihood.vector
    inverse = likelihood.information.inverse(
        vector.displacements_of(~likelihood.on_bound), likelihood.tolerance
    )
    undetermined = vector.labelled(likelihood.undetermined)
    if inverse.flat.size or inverse.falling or not np.isfinite(likelihood.error_scale):
        which = f"the data do not determine {listed(undetermined)}"
        if not np.isfinite(likelihood.error_scale):
            which = "there is no scatter of the residuals to tell how large errors are"
        elif inverse.falling:
            which = "the state is no minimum, as the loss falls from it"
        raise ValueError(f"the covariance is singular, so there is nothing to sample from: {which}")
    slopes = np.asarray(vector.slopes(likelihood.flat.free), float)
    return likelihood.error_scale * inverse.factor / slopes[:, None]
