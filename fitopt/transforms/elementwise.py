"""Transforms that act entry by entry, and chains of transforms."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .transform import Constant, Transform, constant, real_dtype


@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """The value is its own coordinate.

    >>> import jax.numpy as jnp
    >>> Identity().forward(jnp.array(2.0)).item()
    2.0
    """

    def forward(self, coordinate: Array) -> Array:
        return coordinate

    def inverse(self, value: Array) -> Array:
        return value

    def log_det_jacobian(self, coordinate: Array) -> Array:
        return jnp.zeros_like(coordinate.real)


@dataclasses.dataclass(frozen=True, init=False)
class Affine(Transform):
    """`shift + scale * coordinate`, with numbers or arrays that broadcast to the value's shape.

    **Raises:** `ValueError` where `scale` is zero or anything is not finite.

    >>> import jax.numpy as jnp
    >>> Affine(1.0, 10.0).forward(jnp.array(2.0)).item()
    21.0
    """

    shift: Constant
    scale: Constant

    def __init__(self, shift: ArrayLike | Constant = 0.0, scale: ArrayLike | Constant = 1.0):
        object.__setattr__(self, "shift", constant("shift", shift))
        object.__setattr__(self, "scale", constant("scale", scale))
        if not np.isfinite(self.shift.array).all():
            raise ValueError(f"shift must be finite, got {self.shift!r}")
        if not np.all(np.isfinite(self.scale.array) & (self.scale.array != 0)):
            raise ValueError(f"scale must be finite and not zero, got {self.scale!r}")

    def forward(self, coordinate: Array) -> Array:
        real = real_dtype(coordinate.dtype)
        return coordinate * self.scale.astype(real) + self.shift.astype(real)

    def inverse(self, value: Array) -> Array:
        real = real_dtype(value.dtype)
        return (value - self.shift.astype(real)) / self.scale.astype(real)

    def log_det_jacobian(self, coordinate: Array) -> Array:
        slope = np.log(np.abs(self.scale.array)).astype(real_dtype(coordinate.dtype))
        return jnp.broadcast_to(slope, coordinate.shape)


@dataclasses.dataclass(frozen=True)
class Exp(Transform):
    """A positive value whose coordinate is its logarithm: for numbers that span orders of magnitude.

    >>> import jax.numpy as jnp
    >>> round(Exp().inverse(jnp.array(100.0)).item(), 4)
    4.6052
    """

    def forward(self, coordinate: Array) -> Array:
        return jnp.exp(coordinate)

    def inverse(self, value: Array) -> Array:
        return jnp.log(value)

    def log_det_jacobian(self, coordinate: Array) -> Array:
        return coordinate.real


@dataclasses.dataclass(frozen=True, init=False)
class Chain(Transform):
    """One transform after the other: `Chain(f, g).forward(x)` is `f(g(x))`.

    **Raises:** `TypeError` for what is not a transform.

    >>> import jax.numpy as jnp
    >>> Chain(Affine(scale=2.0), Exp()).forward(jnp.array(0.0)).item()
    2.0
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform):
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"Chain takes transforms, got {transform!r}")
        object.__setattr__(self, "transforms", transforms)

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(transform.elementwise for transform in self.transforms)

    def forward(self, coordinate: Array) -> Array:
        for transform in reversed(self.transforms):
            coordinate = transform.forward(coordinate)
        return coordinate

    def inverse(self, value: Array) -> Array:
        for transform in self.transforms:
            value = transform.inverse(value)
        return value

    def log_det_jacobian(self, coordinate: Array) -> Array:
        joint = not self.elementwise
        total = jnp.zeros((() if joint else coordinate.shape), real_dtype(coordinate.dtype))
        for transform in reversed(self.transforms):
            part = transform.log_det_jacobian(coordinate)
            total = total + (jnp.sum(part) if joint else part)
            coordinate = transform.forward(coordinate)
        return total
