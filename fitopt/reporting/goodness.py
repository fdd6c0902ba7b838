"""How good a fit is: degrees of freedom, χ², and the information criteria."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..parameter.complex_numbers import to_real
from ..state import PyTree
from ..uncertainty import Uncertainty


class Goodness(NamedTuple):
    """What a loss says about a fit, as far as it is known what kind of loss it is.

    >>> found = Goodness(n_variables=2, n_data=4, loss=0.04, chi_square=0.04, deviance=-18.5)
    >>> found.degrees_of_freedom, found.reduced_chi_square, found.aic
    (2, 0.02, -14.5)
    """

    n_variables: int
    n_data: int | None
    loss: float | None
    chi_square: float | None = None
    deviance: float | None = None  # minus twice the logarithm of the likelihood, up to a constant

    @property
    def degrees_of_freedom(self) -> int | None:
        """How many data there are more than variables."""
        return None if self.n_data is None else self.n_data - self.n_variables

    @property
    def reduced_chi_square(self) -> float | None:
        """χ² over the degrees of freedom, where there are any."""
        left = self.degrees_of_freedom or 0
        return None if self.chi_square is None or left <= 0 else self.chi_square / left

    @property
    def aic(self) -> float | None:
        """Akaike's information criterion."""
        return None if self.deviance is None else self.deviance + 2 * self.n_variables

    @property
    def aicc(self) -> float | None:
        """Akaike's criterion, corrected for few data; None where there are too few for that."""
        left = 0 if self.n_data is None else self.n_data - self.n_variables - 1
        if self.aic is None or left <= 0:
            return None
        return self.aic + 2 * self.n_variables * (self.n_variables + 1) / left

    @property
    def bic(self) -> float | None:
        """Schwarz' information criterion, called Bayesian."""
        if self.deviance is None or self.n_data is None:
            return None
        return self.deviance + self.n_variables * math.log(self.n_data)


def goodness(
    history: Mapping[str, Any], uncertainty: Uncertainty | None, n_fitted: int, n_data: int | None
) -> Goodness:
    """What `fitopt.report` tells of a fit of so many numbers."""
    if uncertainty is None:
        loss = history.get("final_loss")
        return Goodness(n_fitted, n_data, None if loss is None else float(np.asarray(loss)))
    loss = float(uncertainty.loss)
    if uncertainty.n_data is not None and uncertainty.degrees_of_freedom is not None:
        if n_data not in (None, uncertainty.n_data):
            raise ValueError(
                f"n_data must be None, as there are {uncertainty.n_data} residuals; got {n_data!r}"
            )
        n_data = uncertainty.n_data
        deviance = n_data * (math.log(loss / n_data) if loss > 0 else -math.inf)
        return Goodness(n_data - uncertainty.degrees_of_freedom, n_data, loss, loss, deviance)
    errordef = uncertainty.errordef or 0.5
    n_fitted -= len(uncertainty.at_bound)
    return Goodness(n_fitted, n_data, loss, loss if errordef == 1 else None, loss / errordef)


def r_squared(uncertainty: Uncertainty | None, data: PyTree) -> float | None:
    """The part of the (weighted) variance of the data that a least-squares fit explains."""
    if data is None:
        return None
    if uncertainty is None or uncertainty.residuals is None:
        raise ValueError("data are for R² of a least-squares fit, which needs its uncertainty")
    leaves = jax.tree.leaves(to_real(jax.tree.map(jnp.asarray, data)))
    sizes = [leaf.size for leaf in leaves]
    if sum(sizes) != uncertainty.residuals.size:
        raise ValueError(
            f"data must be those of the {uncertainty.residuals.size} residuals, got {sum(sizes)} numbers"
        )
    sigmas = jax.tree.leaves(1.0 if uncertainty.sigma is None else uncertainty.sigma)
    sigmas = sigmas * len(leaves) if len(sigmas) == 1 else sigmas
    pairs = zip(leaves, sigmas, strict=True)
    weights = [np.broadcast_to(np.asarray(s, float), y.shape).ravel() ** -2 for y, s in pairs]
    numbers, weight = np.concatenate([np.ravel(y) for y in leaves]), np.concatenate(weights)
    mean = np.average(numbers, weights=weight)
    total = float(np.sum(weight * (numbers - mean) ** 2))
    return 1 - float(np.sum(uncertainty.residuals**2)) / total if total > 0 else None


def durbin_watson(uncertainty: Uncertainty | None) -> float | None:
    """How much residuals that follow each other differ: 2 if they are independent, less if alike.

    Durbin and Watson, *Testing for serial correlation in least squares regression* (1950).
    """
    if uncertainty is None or uncertainty.residuals is None:
        return None
    residuals = uncertainty.residuals.astype(float)
    total = float(np.sum(residuals**2))
    return float(np.sum(np.diff(residuals) ** 2)) / total if total > 0 and residuals.size > 1 else None
