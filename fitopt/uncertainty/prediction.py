"""Predictions: a value, how well its mean is known, and how far new data scatter around it."""

from typing import NamedTuple

import jax
import numpy as np

from ..state import PyTree


class Prediction(NamedTuple):
    """What `uncertainty.predict(fn)` gives; it unpacks.

    - `value`: what the function returns at the fitted state
    - `error`: the standard error of that, as it is the mean of data
    - `data_error`: the standard deviation of new data around the value: the error and their own scatter
    """

    value: PyTree
    error: PyTree
    data_error: PyTree


def predicted(
    value: PyTree, error: PyTree, sigma: PyTree, fitted_sigma: PyTree, scatter: float | None
) -> Prediction:
    """A prediction; `scatter` is that of residuals in units of `sigma`, None where it is not known."""
    if sigma is None and scatter is None:
        raise ValueError(
            "what new data scatter by is not known for a loss that is no sum of squares: give sigma, "
            "their standard deviation; for the error of the mean alone there is propagate"
        )
    given = sigma if sigma is not None else fitted_sigma if fitted_sigma is not None else 1.0
    sigmas = _like(given, value, "sigma" if sigma is not None else "the sigma of the fit")
    scatter = 1.0 if scatter is None else scatter
    data_error = jax.tree.map(lambda error, s: np.hypot(np.abs(error), scatter * s), error, sigmas)
    return Prediction(value, error, data_error)


def _like(sigma: PyTree, value: PyTree, who: str) -> PyTree:
    """A standard deviation for each predicted number."""
    leaves, structure = jax.tree.flatten(value)
    given = jax.tree.leaves(sigma)
    if jax.tree.structure(sigma) != structure:
        given = given * len(leaves) if len(given) == 1 else given
    if len(given) != len(leaves):
        raise ValueError(
            f"{who} must be one array, or one for each of the {len(leaves)} that fn returns"
        )
    arrays = []
    for s, x in zip(given, leaves, strict=True):
        s = np.asarray(s, float)
        try:
            arrays.append(np.broadcast_to(s, np.shape(x)))
        except ValueError:
            raise ValueError(
                f"{who}, of shape {s.shape}, does not fit what fn returns, of shape {np.shape(x)}; give "
                "sigma for the new data"
            ) from None
        if not np.all(s >= 0):
            raise ValueError(f"sigma must not be negative, got {s.min()}")
    return jax.tree.unflatten(structure, arrays)
