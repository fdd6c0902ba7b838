"""Transforms whose entries depend on each other: vectors in order, simplices, covariances."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .bounds import inverse_softplus
from .transform import Transform


@dataclasses.dataclass(frozen=True)
class Ordered(Transform):
    """Vectors whose entries grow along the last axis (thresholds, knots, sorted rates).

    The coordinate has the first entry and, by softplus, the steps to the others.

    >>> import jax.numpy as jnp
    >>> print(Ordered().forward(jnp.array([1.0, 0.0, 0.0])))
    [1.        1.6931472 2.3862944]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        steps = jax.nn.softplus(coordinate[..., 1:])
        return jnp.cumsum(jnp.concatenate([coordinate[..., :1], steps], axis=-1), axis=-1)

    def inverse(self, value: Array) -> Array:
        steps = jnp.diff(value, axis=-1)
        steps = jnp.where(steps > 0, steps, jnp.nan)
        return jnp.concatenate([value[..., :1], inverse_softplus(steps)], axis=-1)

    def log_det_jacobian(self, coordinate: Array) -> Array:
        return jnp.sum(jax.nn.log_sigmoid(coordinate[..., 1:]))


@dataclasses.dataclass(frozen=True)
class Simplex(Transform):
    """Positive vectors that sum to one along the last axis; the coordinate has one entry less.

    The additive log-ratio of Aitchison, *The Statistical Analysis of Compositional Data* (1986).

    >>> import jax.numpy as jnp
    >>> Simplex().forward(jnp.zeros(3)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        last = jnp.zeros_like(coordinate[..., :1])
        return jax.nn.softmax(jnp.concatenate([coordinate, last], axis=-1), axis=-1)

    def inverse(self, value: Array) -> Array:
        return jnp.log(value[..., :-1]) - jnp.log(value[..., -1:])

    def log_det_jacobian(self, coordinate: Array) -> Array:
        """That of all entries of the value but the last of each vector."""
        last = jnp.zeros_like(coordinate[..., :1])
        return jnp.sum(jax.nn.log_softmax(jnp.concatenate([coordinate, last], axis=-1), axis=-1))


@dataclasses.dataclass(frozen=True)
class PositiveDefinite(Transform):
    """Symmetric positive-definite matrices (covariances) through their Cholesky factor.

    The coordinate of an n by n matrix is the vector of the n (n + 1) / 2 entries of the factor's
    lower triangle, row by row, with the logarithm of its diagonal: the log-Cholesky parametrization of
    Pinheiro and Bates, *Unconstrained parametrizations for variance-covariance matrices* (1996).

    >>> import jax.numpy as jnp
    >>> PositiveDefinite().forward(jnp.zeros(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    elementwise = False

    def forward(self, coordinate: Array) -> Array:
        n = (math.isqrt(8 * coordinate.shape[-1] + 1) - 1) // 2
        rows, columns = np.tril_indices(n)
        diagonal = rows == columns
        logarithms = jnp.where(diagonal, coordinate, 0)  # the others may be too large for exp
        entries = jnp.where(diagonal, jnp.exp(logarithms), coordinate)
        factor = jnp.zeros((*coordinate.shape[:-1], n, n), coordinate.dtype)
        factor = factor.at[..., rows, columns].set(entries)
        return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2), precision="highest")

    def inverse(self, value: Array) -> Array:
        rows, columns = np.tril_indices(value.shape[-1])
        entries = jnp.linalg.cholesky(value)[..., rows, columns]
        diagonal = rows == columns
        return jnp.where(diagonal, jnp.log(jnp.where(diagonal, entries, 1)), entries)

    def log_det_jacobian(self, coordinate: Array) -> Array:
        """That of the entries of the value on and below the diagonal."""
        n = (math.isqrt(8 * coordinate.shape[-1] + 1) - 1) // 2
        logarithms = coordinate[..., np.cumsum(np.arange(1, n + 1)) - 1]
        powers = np.arange(n + 1, 1, -1, dtype=coordinate.dtype)
        matrices = math.prod(coordinate.shape[:-1])
        return jnp.sum(powers * logarithms) + matrices * n * math.log(2)
