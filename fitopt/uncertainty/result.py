"""`Uncertainty`: standard errors, correlations and confidence intervals of a fit."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Array, Float

from ..methods.derivatives import MODES
from ..parameter.complex_numbers import joined
from ..state import ParameterVector, PyTree, flatten
from . import conditional_fits, covariance, messages, sampling
from . import profile as profiles
from .contour import Contour, contour
from .likelihood import Likelihood
from .named_matrix import NamedMatrix
from .prediction import Prediction, predicted
from .refit import Refit


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Uncertainty:
    """How well the data determine the free Parameters of a fitted state.

    `opt.uncertainty(state)` makes one. All of it are plain numbers and NumPy arrays in the user's units.
    Matrices and vectors have one row for each *element*: each real number in a free Parameter that is
    fitted, named such as `k`, `w[0]`, `w[1,2]`, and for complex numbers `z.real`, `z.imag`. What a mask
    or equal bounds fix is not among them.

    - `names`: of the elements, a tuple of strings
    - `values`: their fitted values, shape `(elements,)`
    - `covariance`, `correlation`: shape `(elements, elements)`, also by name: `correlation["a", "k"]`,
        `correlation.to_dataframe()`
    - `standard_errors`: for each free Parameter's name a float, or an array of its shape
    - `errors`: the same as a pytree in the structure of the state, None for all that is not free
    - `undetermined`: the names of the elements that the data do not determine, a tuple
    - `at_bound`: the names of those that lie on a bound, a tuple
    - `notes`: for the names of both a sentence why, a dict
    - `messages`: sentences on what to know before the numbers are used, a tuple
    - `condition_number`: of the scaled Jacobian or Hessian
    - `loss`: the sum of squares, or the loss, at the state
    - `n_data`, `degrees_of_freedom`: how many residuals, and how many more than what was fitted; None
        for a loss that is no sum of squares
    - `variance`: of a residual: the sum of squares over the degrees of freedom; NaN where there are
        none, None likewise
    - `absolute_sigma`: whether errors follow from `sigma` alone; None likewise
    - `errordef`: how much more loss makes one standard error; None for least squares
    - `residuals`: all in one vector, weighted where there is a `sigma`; None for a loss that is no sum
        of squares
    - `sigma`: of the data, as it was given; None likewise
    - `state`: the fitted state itself

    An error is infinite where the data do not determine the element, and NaN where there is none: for
    elements on a bound, and for numbers that are not fitted. Elements on a bound stay there while the
    errors of the others are computed. Where an error is infinite or NaN, covariances are NaN.
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, " elements"]
    covariance: NamedMatrix
    correlation: NamedMatrix
    standard_errors: dict[str, Any]
    errors: PyTree
    undetermined: tuple[str, ...]
    at_bound: tuple[str, ...]
    notes: dict[str, str]
    messages: tuple[str, ...]
    condition_number: float
    loss: float
    n_data: int | None
    degrees_of_freedom: int | None
    variance: float | None
    absolute_sigma: bool | None
    errordef: float | None
    residuals: Float[np.ndarray, " residuals"] | None
    sigma: PyTree
    state: PyTree
    _likelihood: Likelihood | None

    def propagate(
        self, fn: Callable[[Any], PyTree], state: PyTree = None, *, mode: str | None = None
    ) -> tuple[PyTree, PyTree]:
        """Value and standard error of any function of the state, to first order.

        **Arguments:**

        - `fn`: a function of the state, which it gets with plain arrays in place of Parameters, as a
            loss does. It returns an array or a pytree of arrays: a prediction, a derived quantity.
        - `state`: where to evaluate it, by default `self.state`. It must have the same free
            Parameters; all else may differ, such as the times at which to predict.
        - `mode`: `"fwd"` or `"rev"`: how `fn` is differentiated; by default in forward mode, or in
            reverse mode where that does not work, as with a `jax.custom_vjp`.

        The same function is compiled once, so do not define it anew for each call.

        **Returns:** two pytrees of NumPy arrays in the structure of what `fn` returns. An error is
        infinite where undetermined elements matter; a product or a sum of such may well be determined.

        **Raises:** `ValueError` if the free Parameters are others.

        >>> import jax.numpy as jnp
        >>> from fitopt import LeastSquares, Parameter
        >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
        >>> y = jnp.array([0.1, 0.9, 2.1, 2.9])
        >>> line = lambda state: state["slope"] * x + state["offset"]
        >>> opt = LeastSquares(lambda state: line(state) - y)
        >>> fitted, _ = opt.run({"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)})
        >>> value, error = opt.uncertainty(fitted).propagate(line)
        >>> print(error.round(3))
        [0.106 0.069 0.069 0.106]
        """
        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "rev", "fwd" or None, got {mode!r}')
        flat = flatten(self.state if state is None else state)
        likelihood = self._complete()
        vector, inverse = likelihood.vector, likelihood.inverse
        given = ParameterVector.of(flat.layout, flat.free)
        if given.labels != vector.labels:
            raise ValueError(
                f"state must have the fitted elements {messages.listed(vector.labels)}; "
                f"it has {messages.listed(given.labels)}"
            )

        directions = np.concatenate([inverse.factor, inverse.flat], axis=1).T
        with vector.precision():
            output, changes = likelihood.propagation(fn, flat, directions, mode)
        determined = inverse.factor.shape[1]

        def error(changes: np.ndarray, like: np.ndarray) -> np.ndarray:
            rows = changes.reshape(len(directions), -1).T.astype(float)
            here = inverse._replace(factor=rows[:, :determined], flat=rows[:, determined:])
            errors = covariance.errors(here, likelihood.error_scale, likelihood.tolerance)
            errors = errors.reshape(changes.shape[1:])
            return joined(*errors) if np.iscomplexobj(like) else errors

        return output, jax.tree.map(error, changes, output)

    def predict(
        self,
        fn: Callable[[Any], PyTree],
        state: PyTree = None,
        *,
        sigma: PyTree = None,
        mode: str | None = None,
    ) -> Prediction:
        """Value of any function of the state, the error of its mean, and that of new data.

        **Arguments:**

        - `fn`, `state`, `mode`: as for `propagate`.
        - `sigma`: the standard deviation of new data, a number, an array or a pytree like what `fn`
            returns; by default that of the fit, as far as it has the same shape. Where errors follow
            from the scatter of the residuals, so does that of new data, in units of `sigma`.

        **Returns:** a `fitopt.uncertainty.Prediction`: `(value, error, data_error)`, pytrees of NumPy
        arrays. An interval of some confidence reaches as many errors as a normal distribution says, or
        Student's t for the degrees of freedom where errors follow from the scatter.

        **Raises:** `ValueError` if the free Parameters are others, for a `sigma` that does not fit, and
        where nothing tells how new data scatter.

        >>> import jax.numpy as jnp
        >>> from fitopt import LeastSquares, Parameter
        >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
        >>> y = jnp.array([0.1, 0.9, 2.1, 2.9])
        >>> line = lambda state: state["slope"] * x + state["offset"]
        >>> opt = LeastSquares(lambda state: line(state) - y)
        >>> fitted, _ = opt.run({"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)})
        >>> value, error, data_error = opt.uncertainty(fitted).predict(line)
        >>> print(data_error.round(3))
        [0.165 0.144 0.144 0.165]
        """
        value, error = self.propagate(fn, state, mode=mode)
        scatter = None
        if self.variance is not None:
            scatter = 1.0 if self.absolute_sigma else self.variance**0.5
        return predicted(value, error, sigma, self.sigma, scatter)

    def sample(self, key: Array, n: int) -> sampling.Samples:
        """States drawn from the normal approximation by unconstrained value, inside all bounds.

        **Arguments:**

        - `key`: of JAX' random numbers, such as `jax.random.key(0)`.
        - `n`: how many.

        **Returns:** a `fitopt.uncertainty.Samples`: a sequence of states, with `values(name)`,
        `map(fn)` and `to_dataframe()`. What lies on a bound stays there, of which a `RuntimeWarning`
        tells.

        **Raises:** `ValueError` if the covariance is singular, as the data do not determine something.

        >>> import jax, jax.numpy as jnp
        >>> from fitopt import LeastSquares, Parameter
        >>> opt = LeastSquares(lambda s: s["k"] - jnp.array([1.0, 2.0, 3.0]))
        >>> fitted, _ = opt.run({"k": Parameter("k", 1.0, lower=0)})
        >>> samples = opt.uncertainty(fitted).sample(jax.random.key(0), 2000)
        >>> print(f"{samples.values('k').std():.1f}", len(samples), bool(samples[7]["k"] > 0))
        0.6 2000 True
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise TypeError(f"n must be a number of samples, got {n!r}")
        if n < 1:
            raise ValueError(f"n must be a number of samples, got {n}")
        likelihood = self._complete()
        samples = sampling.sample(likelihood, key, int(n))
        if self.at_bound:
            warnings.warn(
                f"all samples have {messages.listed(self.at_bound)} on the bound that the state is on",
                RuntimeWarning,
                stacklevel=2,
            )
        return samples

    @property
    def unconstrained_covariance(self) -> Float[np.ndarray, "numbers numbers"]:
        """The covariance by unconstrained value: a mass matrix for samplers.

        Its rows are in the order of `jax.flatten_util.ravel_pytree` of `fitopt.unconstrained(state)`'s
        position. What lies on a bound, where it has no error, gets a variance of one.

        **Raises:** `ValueError` if the covariance is singular.
        """
        return sampling.unconstrained_covariance(self._complete())

    def profile(self, name: str, level: float = 0.95, points: int = 24) -> profiles.Profile:
        """How the least loss rises while one element is held away from its best value.

        **Arguments:**

        - `name`: of an element, one of `self.names`
        - `level`: of confidence, for the interval that the profile has besides
        - `points`: how many, on both sides together; the best value comes on top

        **Returns:** a `fitopt.uncertainty.Profile`.

        **Raises:** `KeyError` if there is no such element; `ValueError` if it cannot be held by itself,
        as the transform of its Parameter (`Simplex`, `Ordered`, `PositiveDefinite`) does not act entry
        by entry. There are its `standard_errors`, and `propagate` for functions of it.
        """
        row, level = self._row(name), _checked(level)
        return profiles.profile(self._complete(), self._minimum, row, level, points)

    @overload
    def confidence_intervals(
        self, level: float = 0.95, parameters: Sequence[str] | None = None
    ) -> dict[str, profiles.Interval]: ...

    @overload
    def confidence_intervals(
        self, level: Sequence[float], parameters: Sequence[str] | None = None
    ) -> dict[str, list[profiles.Interval]]: ...

    def confidence_intervals(
        self, level: float | Sequence[float] = 0.95, parameters: Sequence[str] | None = None
    ) -> Any:
        """Intervals by profile likelihood, as unsymmetric as the loss is.

        At the ends of an interval the least loss, with all other elements fitted again, has risen by
        what belongs to the level: for a negative log-likelihood and for residuals with absolute `sigma`
        by the quantile of χ² times `errordef` (MINOS does the same); for residuals whose variance is
        taken from the fit by the quantile of the F statistic (as `lmfit.conf_interval` does).

        **Arguments:**

        - `level`: of confidence, such as 0.6827 for what is one standard error of a normal distribution;
            or several: `[0.68, 0.95]`
        - `parameters`: names of Parameters or elements; all by default

        **Returns:** for the name of each element a `fitopt.uncertainty.Interval`, which unpacks:
        `low, high = ...["k"]`. With several levels it is a list of them.

        A `RuntimeWarning` tells when a better minimum is found on the way.

        **Raises:** `KeyError` if there is no such element, `ValueError` if an interval does not contain
        its fitted value, as the state is not at the minimum; or if one cannot be held by itself, as for
        `profile`; name the others in `parameters`.

        >>> import jax.numpy as jnp
        >>> from fitopt import LeastSquares, Parameter
        >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
        >>> y = jnp.array([2.9, 1.9, 1.0, 0.8])
        >>> opt = LeastSquares(lambda s: s["height"] * jnp.exp(-s["rate"] * x) - y)
        >>> fitted, _ = opt.run({"height": Parameter("height", 3.0), "rate": Parameter("rate", 1.0)})
        >>> low, high = opt.uncertainty(fitted).confidence_intervals(level=0.68)["rate"]
        >>> print(f"{low:.2f} to {high:.2f}")
        0.41 to 0.53
        """
        likelihood, levels = self._complete(), _all_checked(level)
        names = likelihood.vector.select(self.names if parameters is None else parameters)
        rows = [self._row(name) for name in names]
        intervals = [profiles.intervals(likelihood, self._minimum, row, levels) for row in rows]
        if np.ndim(level) == 0:
            intervals = [one for (one,) in intervals]
        return dict(zip(names, intervals, strict=True))

    @overload
    def contour(self, a: str, b: str, level: float = 0.95, points: int = 40) -> Contour: ...

    @overload
    def contour(self, a: str, b: str, level: Sequence[float], points: int = 40) -> list[Contour]: ...

    def contour(self, a: str, b: str, level: float | Sequence[float] = 0.95, points: int = 40) -> Any:
        """The border of the region in which two elements lie together.

        There the loss has risen as `confidence_intervals` says, with the quantile for two elements.

        **Arguments:**

        - `a`, `b`: names of two elements
        - `level`: of confidence that both lie inside, or several: `[0.68, 0.95]`
        - `points`: of the border, on rays from the best values

        **Returns:** a `fitopt.uncertainty.Contour`, with `points` that draw a closed line; with several
        levels a list of them.

        **Raises:** as `profile`; `ValueError` if the two are the same.
        """
        if a == b:
            raise ValueError(f"a contour needs two different elements, got {a!r} twice")
        rows, levels = (self._row(a), self._row(b)), _all_checked(level)
        likelihood = self._complete()
        fits = conditional_fits.ConditionalFits(likelihood, rows, self._minimum)
        found = [contour(likelihood, self._minimum, fits, rows, one, points) for one in levels]
        return found if np.ndim(level) else found[0]

    @property
    def is_complete(self) -> bool:
        """Whether it is about all that was fitted, not only about some of it."""
        return self._likelihood is not None

    def _complete(self) -> Likelihood:
        if self._likelihood is None:
            raise ValueError("this needs the uncertainty of all parameters, not only of some")
        return self._likelihood

    @functools.cached_property
    def _minimum(self) -> Refit:
        """The least loss around, which should be that of the state."""
        return conditional_fits.minimum(self._complete())

    def _row(self, name: str) -> int:
        """Where an element lies, if it can be held by itself."""
        vector = self._complete().vector
        if name not in self.names:
            raise KeyError(f"no element {name!r}; there are {messages.listed(self.names, most=50)}")
        row = self.names.index(name)
        if vector.displacement_of[row] < 0:
            raise ValueError(
                f"{name} cannot be held by itself: the transform of Parameter {vector.owner(row)!r} "
                "does not act entry by entry, so its elements change together; take standard_errors or "
                "propagate for it, or profile Parameters that have no such transform: those can be "
                "named in confidence_intervals(parameters=[...])"
            )
        return row

    def __repr__(self) -> str:
        errors = np.sqrt(np.diagonal(self.covariance))
        return messages.table(self.names, self.values, errors, self.notes, self.messages)


def _all_checked(level: float | Sequence[float]) -> list[float]:
    if np.ndim(level) == 1 and len(np.asarray(level)):
        return [_checked(one) for one in np.asarray(level).tolist()]
    return [_checked(level)]


def _checked(level: Any) -> float:
    if not (np.ndim(level) == 0 and 0 < level < 1):
        raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
    return float(level)
