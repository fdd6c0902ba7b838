"""Priors: a loss, or residuals, with what was known before the data."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..state import PyTree, values

_WRAPPERS = ("Independent", "ExpandedDistribution")  # of numpyro: the same distribution in another shape


class WithPriors:
    """A function of the state and the priors of its Parameters: see `with_priors`."""

    def __init__(self, function: Callable[[Any], Any], priors: Mapping[str, Any]):
        self.function = function
        self.priors = dict(priors)

    def __call__(self, state: PyTree) -> Any:
        plain = values(state)
        output = self.function(plain)
        loss, *aux = output if isinstance(output, tuple) else (output,)
        loss = loss - sum(self.log_priors(plain).values())
        return (loss, *aux) if isinstance(output, tuple) else loss

    def log_priors(self, plain: PyTree) -> dict[str, Float[Array, ""]]:
        """The logarithm of each prior's density, at a state of plain arrays."""
        return {
            name: jnp.sum(_log_prob(name, self.priors[name], value))
            for name, value in self._values(plain).items()
        }

    def residuals(self, plain: PyTree) -> dict[str, Array]:
        """How many standard deviations values are from the means of their normal priors."""
        return {
            name: _residuals(name, self.priors[name], value)
            for name, value in self._values(plain).items()
        }

    def check_start(self, state: PyTree) -> None:
        """Raise `ValueError` if a prior forbids what a fit is to begin with."""
        plain = values(state)
        start = self._values(plain)
        for name, log_prior in self.log_priors(plain).items():
            if not jnp.isfinite(log_prior):
                raise ValueError(
                    f"the prior of {name!r} forbids the start, {start[name]}: its log_prob is "
                    f"{log_prior} there; start elsewhere"
                )

    def _values(self, plain: PyTree) -> dict[str, Array]:
        known = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree.leaves_with_path(plain)
        }
        found = {}
        for name in self.priors:
            places = [path for path in known if path == name or path.endswith(f"/{name}")]
            place = name if name in known else places[0] if len(places) == 1 else None
            if place is None:
                raise ValueError(
                    f"there is {'nothing' if not places else 'more than one'} called {name!r} in the "
                    f"state that a prior could be of; there are {', '.join(map(repr, known))}: what is "
                    "in the state goes by its place there"
                )
            found[name] = jnp.asarray(known[place])
        return found


def with_priors(function: Callable[[Any], Any], priors: Mapping[str, Any]) -> WithPriors:
    """A loss whose minimum is the mode of the posterior: less the logarithms of priors.

    **Arguments:**

    - `function`: a function of the state: the negative logarithm of a likelihood, for
        `fitopt.OptaxOptimizer`; or residuals in units of their standard deviation, for
        `fitopt.LeastSquares` with `absolute_sigma=True`, where normal priors become residuals.
    - `priors`: for places in the state, such as `"rate"` or `"layers/0/bias"`, a distribution each:
        anything with `log_prob`, such as those of `numpyro.distributions`, or a function that gives the
        logarithm of the density. The end of a place will do, such as `"bias"`, where only one has it.
        What is derived may have a prior, too. Where a distribution has a `support`, its density is zero
        outside.

    **Returns:** a function of the state, to fit as any other loss or residuals.

    **Raises:** `TypeError` for arguments of the wrong kind; when it is called, `ValueError` for a name
    that is not in the state and for a prior of another shape, and, at the beginning of a fit, for one
    that forbids the start.

    >>> import jax.numpy as jnp
    >>> import fitopt
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> nll = lambda state: 0.5 * jnp.sum((state["mean"] - jnp.array([1.0, 3.0])) ** 2)
    >>> loss = fitopt.with_priors(nll, {"mean": lambda x: -0.5 * (x / 0.5) ** 2})
    >>> state = {"mean": Parameter("mean", 1.0)}
    >>> fitted, _ = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-5)).run(state)
    >>> print(f"{fitted['mean']:.4f}")
    0.6667
    """
    if not callable(function):
        raise TypeError(f"with_priors needs a function of the state, got {function!r}")
    if not isinstance(priors, Mapping) or not priors:
        raise TypeError(f"priors must be a dict from names to distributions, got {priors!r}")
    for name, prior in priors.items():
        if not isinstance(name, str):
            raise TypeError(f"priors must go by name, got {name!r}")
        if isinstance(prior, type) or not (hasattr(prior, "log_prob") or callable(prior)):
            raise TypeError(
                f"the prior of {name!r} must have a method log_prob, or be a function that gives the "
                f"logarithm of a density, got {prior!r}"
            )
    return WithPriors(function, priors)


@contextlib.contextmanager
def explained_by_priors(function: Any, state: PyTree) -> Iterator[None]:
    """Say which prior forbids the start, where that is why a fit cannot begin."""
    try:
        yield
    except ValueError as error:
        if isinstance(function, WithPriors) and "at the start of the fit" in str(error):
            function.check_start(state)
        raise


def _log_prob(name: str, prior: Any, value: Array) -> Array:
    log_prob = prior.log_prob if hasattr(prior, "log_prob") else prior
    try:
        support: Any = getattr(prior, "support", None)
        with warnings.catch_warnings():
            if support is not None:  # numpyro warns of values outside, which are taken care of here
                warnings.simplefilter("ignore", UserWarning)
            density = jnp.asarray(log_prob(value))
        if support is not None:
            density = jnp.where(support(value), density, -jnp.inf)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the prior of {name!r} does not take its value of shape {value.shape}: {error}"
        ) from error
    if density.shape != value.shape[: density.ndim]:
        raise ValueError(
            f"the prior of {name!r} gives log_prob in shape {density.shape} for a value of shape "
            f"{value.shape}: it is one for another shape"
        )
    return density


def _residuals(name: str, prior: Any, value: Array) -> Array:
    while type(prior).__name__ in _WRAPPERS:
        prior = prior.base_dist
    kind = type(prior).__name__
    if kind not in ("Normal", "MultivariateNormal"):
        raise TypeError(
            f"LeastSquares takes normal priors, such as numpyro.distributions.Normal(loc, scale); that "
            f"of {name!r} is {prior!r}; take OptaxOptimizer with a negative log-likelihood"
        )
    _log_prob(name, prior, value)  # says so if the shapes do not fit
    if kind == "Normal":
        return (value - prior.loc) / prior.scale
    difference = (value - prior.loc)[..., None]
    return jax.scipy.linalg.solve_triangular(prior.scale_tril, difference, lower=True)[..., 0]
