"""`Block`: one Parameter's part of the vectors of real numbers."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..parameter import Parameter, Spec
from ..parameter.complex_numbers import from_real
from ..transforms import Transform
from ..transforms.bounds import Projected
from ..transforms.transform import Constant, real_dtype


@dataclasses.dataclass(frozen=True)
class Block:
    """One Parameter's part of the vectors."""

    name: str
    spec: Spec
    shape: tuple[int, ...]  # of its value
    dtype: np.dtype
    keeps_bounds: bool = False  # whether the bounds are left to the method

    @classmethod
    def of(cls, name: str, parameter: Parameter) -> "Block":
        """That of any Parameter, also of a fixed one."""
        return cls(name, parameter.spec, parameter.shape, parameter.dtype)

    @property
    def transform(self) -> Transform:
        """From the position to the value."""
        return self.spec.projection if self.keeps_bounds else self.spec.bijection

    @property
    def is_complex(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.complexfloating)

    @property
    def is_elementwise(self) -> bool:
        """Whether each element can be displaced by itself."""
        return self.transform.elementwise and not self.is_complex

    @functools.cached_property
    def position(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of its position."""
        if self.transform.elementwise:
            return jax.ShapeDtypeStruct(self.shape, self.dtype)
        return jax.eval_shape(self.to_position, jax.ShapeDtypeStruct(self.shape, self.dtype))

    @functools.cached_property
    def fitted(self) -> Int[np.ndarray, " elements"]:
        """Which of its real numbers are fitted: of a complex value all real parts come first."""
        mask = self.spec.free if self.spec.fitted is None else self.spec.free & self.spec.fitted
        mask = np.broadcast_to(mask, self.shape)
        return np.flatnonzero(np.concatenate([mask.ravel()] * (1 + self.is_complex)))

    @functools.cached_property
    def moved(self) -> Int[np.ndarray, " displacements"]:
        """Which real numbers of its position are moved: all, if entries depend on each other."""
        return self.fitted if self.transform.elementwise else np.arange(reals_in(self.position))

    @functools.cached_property
    def real_labels(self) -> tuple[str, ...]:
        """What all of its real numbers are called: `k`, `w[0,1]`, `z.real`."""
        indices = [f"[{','.join(map(str, index))}]" if index else "" for index in np.ndindex(self.shape)]
        if self.is_complex:
            indices = [f"{index}.real" for index in indices] + [f"{index}.imag" for index in indices]
        return tuple(self.name + index for index in indices)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """What its elements are called."""
        return tuple(self.real_labels[i] for i in self.fitted)

    def to_position(self, value: Array) -> Array:
        return self.spec.to_position(value, self.transform)

    def to_value(self, position: Array, start: Array) -> Array:
        return self.spec.to_value(position, start, self.transform)

    def edited_position(self, position: Array, before: Array, after: Array) -> Array:
        """The position after the value was edited; what was not edited keeps it to the last bit."""
        same = before == after if self.transform.elementwise else jnp.all(before == after)
        return jnp.where(same, position, self.to_position(after))

    def reals(self, value: Any) -> Float[np.ndarray, " reals"]:
        """All real numbers of a value, in double precision."""
        array = np.asarray(value)
        parts = [np.real(array), np.imag(array)] if self.is_complex else [array]
        return np.concatenate([part.ravel().astype(float) for part in parts])

    def real_constants(self, constant: Constant | None, missing: float) -> Float[np.ndarray, " reals"]:
        """What a bound or a scale is for each of its real numbers."""
        array = missing if constant is None else constant.astype(real_dtype(self.dtype))
        return np.tile(np.broadcast_to(array, self.shape).ravel().astype(float), 1 + self.is_complex)

    def constant(self, constant: Constant | None, missing: float) -> Float[np.ndarray, " elements"]:
        """What a bound or a scale is for each element."""
        return self.real_constants(constant, missing)[self.fitted]

    def range(self) -> Float[np.ndarray, "2 elements"]:
        """Between which ends elements lie, by their bounds or by what the transform can give."""
        spec = self.spec
        ends = np.stack([self.constant(spec.lower, -np.inf), self.constant(spec.upper, np.inf)])
        if spec.transform is None or not self.is_elementwise:
            return ends
        edges = jnp.stack([jnp.full(self.shape, x, self.dtype) for x in (-np.inf, np.inf)])
        edges = np.asarray(jax.vmap(spec.bijection.forward)(edges), float)
        edges = np.sort(edges.reshape(2, -1)[:, self.fitted], axis=0)
        return np.where(np.isnan(edges) | np.isfinite(ends), ends, edges)

    def ends(self) -> Float[np.ndarray, "2 displacements"]:
        """Between which ends a method that keeps bounds itself may move the position."""
        if not isinstance(self.transform, Projected):
            return np.array([[-np.inf], [np.inf]]) * np.ones(self.moved.size)
        ends = np.sort(
            np.broadcast_to(self.transform.ends(self.shape, self.dtype), (2, *self.shape)), axis=0
        )
        return ends.reshape(2, -1)[:, self.moved]

    def step(self, displacements: Float[Array, " displacements"]) -> Array:
        """A step of the position, in its shape."""
        reals = displacements.astype(jnp.finfo(self.position.dtype).dtype)
        if self.moved.size < reals_in(self.position):
            reals = jnp.zeros(reals_in(self.position), reals.dtype).at[self.moved].set(reals)
        return shaped(reals, self.position)


def reals_in(x: Any) -> int:
    """How many real numbers an array holds."""
    return math.prod(x.shape) * (2 if jnp.issubdtype(x.dtype, jnp.complexfloating) else 1)


def shaped(reals: Array, like: Any) -> Array:
    """Real numbers as an array of the shape and dtype of another."""
    parts = (2, *like.shape) if jnp.issubdtype(like.dtype, jnp.complexfloating) else like.shape
    return from_real(reals.reshape(parts), like).astype(like.dtype)
