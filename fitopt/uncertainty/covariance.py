"""From curvature to covariance, and which directions the data leave open: plain linear algebra.

All of it runs on the host in float64, on matrices whose columns have been scaled to one: how well
something is determined must not depend on its unit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_ITERATIONS = 20


class Inverse(NamedTuple):
    """The inverse of an information matrix, as far as there is one.

    The inverse is `factor @ factor.T` over the directions that are determined.
    """

    factor: Float[np.ndarray, "n determined"]
    sizes: Float[np.ndarray, " determined"]  # factor * sizes are directions of one scaled unit each
    flat: Float[np.ndarray, "n flat"]  # likewise: directions along which nothing changes
    condition: float  # of the scaled matrix
    falling: int = 0  # along how many of the flat directions the loss falls


def tolerance(dtype: np.dtype) -> float:
    """How small a singular value, or an eigenvalue, is no more than rounding in derivatives of a dtype.

    Derivatives of long computations lose a few digits: far more than one rounding, far less than all.
    """
    return float(np.finfo(dtype).eps) ** 0.75


def invert_root(root: Float[np.ndarray, "m n"], tolerance: float) -> Inverse:
    """The inverse of `root.T @ root`, which is never formed: its condition is the square."""
    scale = np.linalg.norm(root, axis=0)
    scale[scale == 0] = 1.0
    scaled = root / scale
    n = scaled.shape[1]
    triangle = np.asarray(np.linalg.qr(scaled, mode="r"))
    if triangle.shape[0] == n and np.all(np.diagonal(triangle) != 0):
        inverse = _inverse_of_triangle(triangle)
        condition = _size(triangle) * _size(inverse)
        if condition < 1 / tolerance:
            return Inverse(inverse / scale[:, None], np.ones(n), np.empty((n, 0)), condition)
    _, sizes, directions = np.linalg.svd(triangle)
    sizes = np.concatenate([sizes, np.zeros(n - sizes.size)])
    determined = sizes > tolerance * max(sizes[0], np.finfo(float).tiny)
    condition = np.inf if sizes[-1] == 0 else sizes[0] / sizes[-1]
    directions = directions.T / scale[:, None]
    factor = directions[:, determined] / sizes[determined]
    return Inverse(factor, sizes[determined], directions[:, ~determined], float(condition))


def invert(matrix: Float[np.ndarray, "n n"], tolerance: float) -> Inverse:
    """The inverse of a symmetric matrix that should be positive definite."""
    scale = np.sqrt(np.abs(np.diagonal(matrix)))
    scale[scale == 0] = 1.0
    scaled = (matrix + matrix.T) / 2 / scale / scale[:, None]
    n = len(scaled)
    try:
        inverse = _inverse_of_triangle(np.linalg.cholesky(scaled, upper=True))
    except np.linalg.LinAlgError:
        pass
    else:
        condition = _size(scaled) * _size(inverse) ** 2
        if condition < 1 / tolerance:
            return Inverse(inverse / scale[:, None], np.ones(n), np.empty((n, 0)), condition)
    sizes, directions = np.linalg.eigh(scaled)
    largest = np.abs(sizes).max()
    determined, falling = sizes > tolerance * largest, sizes < -tolerance * largest
    smallest = np.abs(sizes).min()
    condition = np.inf if smallest == 0 else largest / smallest
    directions = directions / scale[:, None]
    roots = np.sqrt(sizes[determined])
    factor = directions[:, determined] / roots
    return Inverse(factor, roots, directions[:, ~determined], float(condition), int(falling.sum()))


def is_undetermined(inverse: Inverse, tolerance: float) -> Bool[np.ndarray, " n"]:
    """Which rows change along the flat directions."""
    change = np.linalg.norm(inverse.flat, axis=1)
    total = np.hypot(change, np.linalg.norm(inverse.factor * inverse.sizes, axis=1))
    return change > tolerance ** (1 / 3) * total


def errors(inverse: Inverse, scale: float, tolerance: float) -> Float[np.ndarray, " n"]:
    """Standard errors of what the rows stand for; infinite where it is not determined.

    `scale` is the standard error that belongs to a variance of one.
    """
    lengths = np.linalg.norm(inverse.factor, axis=1)
    # Where nothing depends on the parameters, the error is zero also if the scale is infinite.
    errors = np.where(lengths > 0, scale, 1.0) * lengths
    errors[is_undetermined(inverse, tolerance)] = np.inf
    return errors


def correlation(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The correlations; NaN where an error is zero, infinite or NaN.

    >>> correlation(np.array([[4.0, 1.0], [1.0, 1.0]]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    variances = np.diagonal(covariance)
    known = (variances > 0) & np.isfinite(variances)
    errors = np.sqrt(np.where(known, variances, np.nan))
    result = np.clip(np.where(known, covariance, np.nan) / errors / errors[:, None], -1.0, 1.0)
    np.fill_diagonal(result, np.where(known, 1.0, np.nan))
    return result


def _inverse_of_triangle(upper: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    from scipy.linalg import get_lapack_funcs  # comes with jax; slow to import

    (invert,) = get_lapack_funcs(("trtri",), (upper,))
    inverse, _ = invert(upper)
    return inverse


def _size(matrix: Float[np.ndarray, "n n"]) -> float:
    """About the largest singular value, by power iteration; with a factor of the inverse, its root."""
    direction = np.random.default_rng(0).standard_normal(len(matrix))
    size = 0.0
    for _ in range(_ITERATIONS):
        direction = matrix @ (matrix.T @ (direction / np.linalg.norm(direction)))
        size = np.linalg.norm(direction) ** 0.5
    return float(size)
