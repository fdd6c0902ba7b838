"""`report`: what a fit has found, as text, as HTML, and as plain numbers."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..parameter import Parameter
from ..state import ParameterVector, PyTree, flatten
from ..uncertainty import Interval, Uncertainty
from ..uncertainty.messages import listed
from .elements import Element, Elements, blocks, derived_elements, elements, parameters_of
from .goodness import durbin_watson, goodness, r_squared
from .html import html
from .tables import Tables, correlation_rows, course_rows, parameter_columns, quality_rows
from .text import text

_WEAK = 0.1  # correlations up to here are not worth telling


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a fit has found: text at the prompt and by `str()`, HTML in a notebook.

    `fitopt.report` makes one. All of it are plain numbers and strings, None for what is not known.

    - `parameters`: a list of `fitopt.reporting.Element`, one for each real number, at last the derived
    - `correlations`: `(name, name, correlation)` of those above 0.1, the strongest first
    - `n_data`: how many residuals, or data points
    - `n_variables`: how many numbers the data were to determine: not those on a bound nor, in least
        squares, those that the residuals do not depend on
    - `degrees_of_freedom`: the difference of both
    - `loss`: of the fitted state
    - `chi_square`, `reduced_chi_square`: the (weighted) sum of squares; over the degrees of freedom
    - `deviance`: minus twice the logarithm of the likelihood, up to a constant
    - `aic`, `aicc`, `bic`: the information criteria of Akaike, also corrected for few data, and of
        Schwarz
    - `r_squared`: the part of the variance of `data` that the fit explains
    - `durbin_watson`: about 2 where residuals that follow each other are independent, less where they
        are alike, so that the model misses something
    - `absolute_sigma`: whether errors follow from `sigma` alone; None for other losses
    - `stop_reason`: a sentence
    - `n_steps`: of the fit
    - `n_evaluations`: of the residuals, in least squares
    - `seconds`: of the fit, compilation included
    - `messages`: sentences on what to know before the numbers are used
    """

    correlations: list[tuple[str, str, float]]
    n_data: int | None
    n_variables: int
    degrees_of_freedom: int | None
    loss: float | None
    chi_square: float | None
    reduced_chi_square: float | None
    deviance: float | None
    aic: float | None
    aicc: float | None
    bic: float | None
    r_squared: float | None
    durbin_watson: float | None
    absolute_sigma: bool | None
    stop_reason: str | None
    n_steps: int | None
    n_evaluations: int | None
    seconds: float | None
    messages: list[str]
    _elements: tuple[Elements, ...]
    _level: float | None
    _digits: int

    @property
    def parameters(self) -> list[Element]:
        """One for each real number of each Parameter and each Derived."""
        return [element for one in self._elements for element in one]

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and plain numbers, of which some may be infinite."""
        rows = [{**row._asdict(), "relative_error": row.relative_error} for row in self.parameters]
        correlations = [[*one] for one in self.correlations]
        return {"parameters": rows, **self._facts(), "correlations": correlations}

    def to_json(self, indent: int | None = None) -> str:
        """The same as JSON: NaN is null, and infinite numbers are the strings "inf" and "-inf"."""
        return json.dumps(_valid(self.to_dict()), indent=indent, allow_nan=False)

    def _facts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _tables(self) -> Tables:
        return Tables(
            parameter_columns(self._elements, self._level, self._digits),
            correlation_rows(self.correlations),
            quality_rows(self._facts()),
            course_rows(self._facts()),
            self.messages,
        )

    def __repr__(self) -> str:
        return text(self._tables())

    def _repr_html_(self) -> str:
        return html(self._tables())


def report(
    state: PyTree,
    history: Mapping[str, Any],
    uncertainty: Uncertainty | None = None,
    intervals: Mapping[str, Interval] | None = None,
    *,
    start: PyTree = None,
    n_data: int | None = None,
    data: PyTree = None,
    digits: int = 2,
) -> Report:
    """Sum up a fit: values and their errors, how good it is, and how it went.

    **Arguments:**

    - `state`, `history`: what `run` has returned.
    - `uncertainty`: what `uncertainty(state)` has returned. Without it there are no errors and no
        correlations, and nothing that depends on what kind of loss it is.
    - `intervals`: what `uncertainty.confidence_intervals()` has returned, all of one level.
    - `start`: the state in which the fit began, by default the one that the history knows. A history
        from a file, or from a fit inside `jit`, knows none.
    - `n_data`: the number of data points of a scalar loss, for BIC and degrees of freedom.
    - `data`: what the residuals of a least-squares fit are distances to, for R²: an array, or a pytree
        in the structure of the residuals.
    - `digits`: how many significant digits errors are shown with. Values end at the same place.

    With k variables and n data points, the information criteria are n ln(χ²/n) + 2k (Akaike) and
    n ln(χ²/n) + k ln n (Schwarz) in least squares, as in lmfit. For a scalar loss they are D + 2k and
    D + k ln n, where D is the loss over `errordef`: twice a negative log-likelihood, or χ². There they
    are worth as much as the loss is one of these, and lack the constants that it leaves out.

    **Returns:** a `fitopt.Report`: print it, show it in a notebook, or take its numbers.

    **Raises:** `TypeError` and `ValueError` for what does not belong to one fit.

    >>> import jax.numpy as jnp
    >>> from fitopt import LeastSquares, Parameter, report
    >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
    >>> y = jnp.array([0.1, 0.9, 2.1, 2.9])
    >>> opt = LeastSquares(lambda state: state["slope"] * x + state["offset"] - y)
    >>> state = {"slope": Parameter("slope", 0.5, lower=0), "offset": Parameter("offset", 0.0)}
    >>> fitted, history = opt.run(state)
    >>> found = report(fitted, history, opt.uncertainty(fitted))
    >>> print(str(found).partition("stopped")[0].rstrip())
    name    value ± error  relative  start  bounds
    slope   0.960 ± 0.057     5.9 %    0.5  [0, inf)
    offset   0.06 ± 0.11      180 %      0
    <BLANKLINE>
    correlations
      slope, offset  -0.802
    <BLANKLINE>
    data points         4
    variables           2
    degrees of freedom  2
    chi-square          0.032
    reduced chi-square  0.016
    AIC                 -15.3133
    BIC                 -16.5407
    Durbin-Watson       3.4
    """
    intervals = intervals or {}
    _check(history, intervals, n_data, digits)
    parameters = parameters_of(state)
    if not any(parameter.free for parameter in parameters.values()):
        raise ValueError("state has no free Parameter, as one that was fitted would have")
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((state, dict(history)))):
        raise TypeError("report works with NumPy on the host, not inside jit, vmap or grad")
    began = getattr(history, "start", None) if start is None else start
    starts = None
    if began is not None:
        starts = parameters_of(began)
        _check_starts(starts, parameters, "the start of history" if start is None else "start")
        parameters = {path: parameters[path] for path in starts}  # in the order of the user
    flat = flatten(state)
    vector = ParameterVector.of(flat.layout, flat.free)
    described = blocks(parameters, vector)
    found = elements(described, parameters, starts, uncertainty, intervals)
    found += derived_elements(state, uncertainty)
    quality = goodness(history, uncertainty, vector.n_displacements, n_data)
    n_steps = None if history.get("n_steps") is None else int(history["n_steps"])
    is_least_squares = uncertainty is not None and uncertainty.n_data is not None
    return Report(
        correlations=[] if uncertainty is None else _correlations(uncertainty, found),
        n_data=quality.n_data,
        n_variables=quality.n_variables,
        degrees_of_freedom=quality.degrees_of_freedom,
        loss=quality.loss,
        chi_square=quality.chi_square,
        reduced_chi_square=quality.reduced_chi_square,
        deviance=quality.deviance,
        aic=quality.aic,
        aicc=quality.aicc,
        bic=quality.bic,
        r_squared=r_squared(uncertainty, data),
        durbin_watson=durbin_watson(uncertainty),
        absolute_sigma=None if uncertainty is None else uncertainty.absolute_sigma,
        stop_reason=history.get("stop_reason"),
        n_steps=n_steps,
        n_evaluations=n_steps if is_least_squares else None,
        seconds=history.get("elapsed"),
        messages=_messages(uncertainty, intervals),
        _elements=found,
        _level=next((one.level for one in intervals.values()), None),
        _digits=digits,
    )


def _check(history: Any, intervals: Any, n_data: Any, digits: Any) -> None:
    if not isinstance(history, Mapping):
        raise TypeError(f"history must be what run has returned, got {history!r}")
    if np.ndim(history.get("n_steps", 0)):
        raise ValueError(
            "history is that of several fits, from vmap: take one, such as "
            "jax.tree.map(lambda x: x[0], history), and its state"
        )
    if not isinstance(intervals, Mapping):
        raise TypeError(f"intervals must be what confidence_intervals has returned, got {intervals!r}")
    if any(isinstance(one, list) for one in intervals.values()):
        raise ValueError("intervals must be of one level, got those of several")
    if len({one.level for one in intervals.values()}) > 1:
        raise ValueError("intervals must be of one level, got several")
    if n_data is not None and not (isinstance(n_data, int | np.integer) and n_data > 0):
        raise ValueError(f"n_data must be a number of data points, got {n_data!r}")
    if not (isinstance(digits, int) and 1 <= digits <= 9):
        raise ValueError(f"digits must be a whole number from 1 to 9, got {digits!r}")


def _check_starts(starts: dict[str, Parameter], parameters: dict[str, Parameter], who: str) -> None:
    shapes = [{path: p.value.shape for path, p in one.items()} for one in (starts, parameters)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{who} must have the Parameters of state, {listed(list(parameters))}, "
            f"in the same shapes; it has {listed(list(starts))}"
        )


def _correlations(
    uncertainty: Uncertainty, parameters: tuple[Elements, ...]
) -> list[tuple[str, str, float]]:
    """The strongest first; of equally strong ones in the order of the parameters."""
    rows = {name: row for row, name in enumerate(uncertainty.names)}
    order = [label for one in parameters for label in one.block.labels if label in rows]
    at = [rows[name] for name in order]
    matrix = uncertainty.correlation[np.ix_(at, at)]
    pairs = np.argwhere(np.triu(np.abs(matrix) > _WEAK, k=1)).tolist()
    pairs.sort(key=lambda pair: -abs(matrix[*pair]))
    return [(order[i], order[j], float(matrix[i, j])) for i, j in pairs]


def _messages(uncertainty: Uncertainty | None, intervals: Mapping[str, Interval]) -> list[str]:
    found = [] if uncertainty is None else [*uncertainty.messages]
    if uncertainty is not None:
        found += [f"{name} is {uncertainty.notes[name]}" for name in uncertainty.undetermined]
    return [*found, *(message for one in intervals.values() for message in one.messages)]


def _valid(tree: Any) -> Any:
    """What JSON can say."""
    if isinstance(tree, dict):
        return {name: _valid(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_valid(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None if math.isnan(tree) else str(tree)
    return tree
