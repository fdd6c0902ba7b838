"""`bootstrap`: errors and intervals from fits of resampled data."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..many.fits import Fits
from ..many.states import States
from ..optimizers.arguments import one_of, whole
from ..parameter import Derived
from ..state import Flat, ParameterVector, PyTree, flatten, is_leaf
from .profile import Interval

_KINDS = ("residual", "case")
_METHODS = ("bca", "percentile")
_GROUPS = 200  # of data, at most, each of which is left out once


class Resampled(Protocol):
    """What a `LeastSquares` offers a bootstrap."""

    def weighted_residuals(self, state: PyTree) -> PyTree: ...

    def with_residuals(self, change: Any) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bootstrap:
    """What fits of resampled data say of the free Parameters.

    - `names`: of the elements, a tuple of strings
    - `values`: their fitted values, shape `(elements,)`
    - `samples`: those of the fits of resampled data, shape `(fits, elements)`
    - `fits`: these fits; the state of each is a pair of the state and of how the data were resampled
    - `messages`: sentences on what to know before the numbers are used
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, " elements"]
    samples: Float[np.ndarray, "fits elements"]
    fits: Fits
    messages: tuple[str, ...]
    _left_out: Float[np.ndarray, "groups elements"]  # fits without a part of the data each
    _bounds: tuple[Float[np.ndarray, " elements"], Float[np.ndarray, " elements"]]

    @property
    def standard_errors(self) -> dict[str, float]:
        """The standard deviation of the samples of each element."""
        return dict(zip(self.names, np.std(self.samples, axis=0, ddof=1).tolist(), strict=True))

    @property
    def bias(self) -> dict[str, float]:
        """By how much the mean of the samples is above the fitted value."""
        return dict(zip(self.names, (self.samples.mean(axis=0) - self.values).tolist(), strict=True))

    def confidence_intervals(self, level: float = 0.95, method: str = "bca") -> dict[str, Interval]:
        """An interval for each element.

        **Arguments:**

        - `level`: of confidence.
        - `method`: `"percentile"`, between quantiles of the samples; or `"bca"`, which chooses other
            quantiles such that bias and skewness are corrected (Efron, 1987, Better bootstrap confidence
            intervals, JASA 82, 171-185).

        **Returns:** for the name of each element an `Interval`, as `fitopt.report` takes them.

        **Raises:** `ValueError` for a level that is no probability, or another method.
        """
        if not (np.ndim(level) == 0 and 0 < level < 1):
            raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
        one_of("method", method, _METHODS)
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        found = {}
        for i, name in enumerate(self.names):
            samples = self.samples[:, i]
            at = tails if method == "percentile" else self._corrected(tails, i)
            low, high = np.quantile(samples, at).tolist()
            at_bound = low <= self._bounds[0][i], high >= self._bounds[1][i]
            value = float(self.values[i])
            found[name] = Interval(name, float(level), value, low, high, at_bound, ())
        return found

    def _corrected(self, tails: Float[np.ndarray, "2"], element: int) -> Float[np.ndarray, "2"]:
        """The quantiles that BCa takes: formula 6.8 of Efron and Tibshirani (1993)."""
        from scipy.special import ndtr, ndtri  # slow to import

        samples, value = self.samples[:, element], self.values[element]
        below = np.mean(samples < value) + np.mean(samples == value) / 2
        shift = ndtri(np.clip(below, 1 / (2 * samples.size), 1 - 1 / (2 * samples.size)))
        away = self._left_out[:, element].mean() - self._left_out[:, element]
        spread = np.sum(away**2) ** 1.5
        acceleration = np.sum(away**3) / (6 * spread) if spread > 0 else 0.0
        z = shift + ndtri(tails)
        return ndtr(shift + z / (1 - acceleration * z))

    def __repr__(self) -> str:
        lines = [f"Bootstrap of {len(self.samples)} fits"]
        intervals, errors = self.confidence_intervals(), self.standard_errors
        width = max(map(len, self.names))
        for name, value in zip(self.names, self.values, strict=True):
            low, high = intervals[name]
            lines.append(
                f"  {name.ljust(width)}  {value:.6g} ± {errors[name]:.2g}, 95 %: {low:.6g} to {high:.6g}"
            )
        return "\n".join([*lines, *(f"! {message}" for message in self.messages)])


def bootstrap(
    fit: Resampled,
    state: PyTree,
    n: int = 1000,
    seed: int = 0,
    *,
    kind: str = "residual",
    options: Mapping[str, Any] | None = None,
) -> Bootstrap:
    """Errors and intervals of a least-squares fit from fits of resampled data.

    **Arguments:**

    - `fit`: a `fitopt.LeastSquares`.
    - `state`: what its `run` has returned.
    - `n`: how many fits.
    - `seed`: the same seed gives the same data.
    - `kind`: `"residual"`: the fitted model plus residuals drawn anew, for errors that are alike
        everywhere; they are weighted with `sigma` before, and centred, and enlarged by the root of data
        over degrees of freedom. Or `"case"`: data drawn with repetition, whatever their errors are like.
        A datum is an entry along the leading axis of the residuals; arrays of the same length belong
        together.
    - `options`: further arguments of `run_many`, such as `{"lanes": 256}`.

    All fits run at once, and begin at `state`; so do up to 200 that leave out a part of the data each,
    from which intervals learn of skewness.

    **Returns:** a `fitopt.uncertainty.Bootstrap`. Its `confidence_intervals()` stand beside the standard
    errors in `fitopt.report(state, history, uncertainty, intervals)`.

    **Raises:** `TypeError` and `ValueError` for arguments that cannot be meant.

    >>> import jax.numpy as jnp
    >>> from fitopt import LeastSquares, Parameter, bootstrap
    >>> x = jnp.arange(10.0)
    >>> y = 2 * x + jnp.sin(7 * x)
    >>> fit = LeastSquares(lambda state: state["slope"] * x - y)
    >>> fitted, history = fit.run({"slope": Parameter("slope", 1.0)})
    >>> low, high = bootstrap(fit, fitted, n=200).confidence_intervals()["slope"]
    >>> bool(low < fitted["slope"] < high)
    True
    """
    if not hasattr(fit, "with_residuals"):
        raise TypeError(
            f"fit must be a LeastSquares, whose residuals can be resampled, got a {type(fit).__name__}"
        )
    count, seed = whole("n", n, 2), whole("seed", seed, 0)
    one_of("kind", kind, _KINDS)
    flat = flatten(state)
    vector = ParameterVector.of(flat.layout, flat.free)
    residuals = jax.device_get(fit.weighted_residuals(state))
    leaves, structure = jax.tree.flatten(residuals)
    draws = _Draws([_rows(leaf) for leaf in leaves], np.random.default_rng(seed))
    size = sum(leaf.size for leaf in leaves)
    left = size - vector.n_displacements
    shifts, weights = [], []
    for leaf, rows in zip(leaves, draws.rows, strict=True):
        groups = draws.groups(rows)
        if kind == "residual":
            centred = (leaf - leaf.mean()) * np.sqrt(size / left if left > 0 else 1.0)
            drawn = draws.entries(leaf.size, count).reshape(count, *leaf.shape)
            shift = centred.ravel()[drawn] - leaf
            none = np.zeros((len(groups), *leaf.shape))
            shifts.append(np.concatenate([shift, none]).astype(leaf.dtype))
            counts = np.ones((count, rows))
        else:
            shifts.append(np.zeros((), leaf.dtype))
            counts = draws.counts(rows, count)
        weights.append(np.sqrt(np.concatenate([counts, groups])).astype(leaf.dtype))
    change = _changed_all if kind == "residual" else _repeated_all
    total = len(weights[0])
    fits = fit.with_residuals(change).run_many(
        _states(state, flat, structure, shifts, weights, total, kind == "residual"), **(options or {})
    )
    return _summed_up(vector, flat, fits, count)


class _Draws:
    """Random numbers; those for as many rows are the same."""

    def __init__(self, rows: list[int], rng: np.random.Generator):
        self.rows = rows
        self._rng = rng
        self._groups = min(_GROUPS, max(rows))
        self._counts: dict[int, Float[np.ndarray, "n rows"]] = {}

    def entries(self, size: int, n: int) -> Int[np.ndarray, "n size"]:
        """Entries drawn with repetition."""
        return self._rng.integers(size, size=(n, size))

    def counts(self, rows: int, n: int) -> Float[np.ndarray, "n rows"]:
        """How often each row is drawn."""
        if rows not in self._counts:
            chances = np.full(rows, 1 / rows)
            self._counts[rows] = self._rng.multinomial(rows, chances, size=n).astype(float)
        return self._counts[rows]

    def groups(self, rows: int) -> Float[np.ndarray, "groups rows"]:
        """One for each row that stays while a group is left out."""
        return (np.arange(rows) % self._groups != np.arange(self._groups)[:, None]).astype(float)


def _rows(leaf: Any) -> int:
    return leaf.shape[0] if leaf.ndim else 1


def _changed_all(residuals: PyTree, extra: Any) -> PyTree:
    shifts, weights = extra
    return jax.tree.map(lambda r, s, w: _weighted(r + s, w), residuals, shifts, weights)


def _repeated_all(residuals: PyTree, extra: Any) -> PyTree:
    return jax.tree.map(_weighted, residuals, extra[1])


def _weighted(residual: Array, weight: Array) -> Array:
    return residual * jnp.reshape(weight, (-1, *[1] * (residual.ndim - 1)) if residual.ndim else ())


def _states(
    state: PyTree,
    flat: Flat,
    structure: Any,
    shifts: list[Any],
    weights: list[Any],
    count: int,
    is_shifted: bool,
) -> States:
    """Pairs of the fitted state and of what changes its residuals."""
    # What is derived follows from the state, not from the pair.
    of_pair = lambda x: Derived(x.name, lambda pair: x.fn(pair[0])) if isinstance(x, Derived) else x
    state = jax.tree.map(of_pair, state, is_leaf=is_leaf)
    first = [x[0] if is_shifted else x for x in shifts], [x[0] for x in weights]
    template = flatten((state, tuple(jax.tree.unflatten(structure, x) for x in first)))
    free = [np.broadcast_to(np.asarray(x), (count, *x.shape)) for x in flat.free]
    number = len(flat.fixed)
    varying = {number + len(shifts) + i: x for i, x in enumerate(weights)}
    if is_shifted:
        varying = {number + i: x for i, x in enumerate(shifts)} | varying
    return States(template, count, free, varying)


def _summed_up(vector: ParameterVector, flat: Flat, fits: Fits, count: int) -> Bootstrap:
    """The samples, and what to say of those that are missing."""
    _, ends = fits.elements()
    has_loss = np.isfinite(fits.final_loss)
    made = has_loss[:count]
    notes = []
    if not made.all():
        notes.append(f"{int((~made).sum())} of {count} fits have no loss, and are left out")
    if rest := int((made & ~fits.converged[:count]).sum()):
        notes.append(f"{rest} of {count} fits have not converged")
    values = np.asarray(vector.elements(flat.free), float)
    left_out = ends[count:][has_loss[count:]]
    return Bootstrap(
        names=vector.labels,
        values=values,
        samples=ends[:count][made],
        fits=fits[:count],
        messages=tuple(notes),
        _left_out=left_out,
        _bounds=(vector.lower, vector.upper),
    )
