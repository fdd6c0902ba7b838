"""`compare`: several models of the same data, side by side."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import html, text
from .digits import number
from .report import Report
from .tables import Column

if TYPE_CHECKING:
    from pandas import DataFrame


class Model(NamedTuple):
    """One of the models; None for what is not known of it.

    - `difference`: of the criterion to the best model's
    - `weight`: the probability that it is the best of them, as far as the criterion can say
    """

    name: str
    n_variables: int
    loss: float | None
    aic: float | None
    aicc: float | None
    bic: float | None
    difference: float
    weight: float


class NestedTest(NamedTuple):
    """Whether the larger of two nested models is worth its parameters.

    - `likelihood_ratio`, `p_value`: the difference of deviances, and how probable one as large is if the
        smaller model is true, by the χ² distribution
    - `f`, `p_value_f`: the same by the F distribution, where the scatter of residuals is not known; None
        elsewhere
    """

    smaller: str
    larger: str
    likelihood_ratio: float
    p_value: float
    f: float | None
    p_value_f: float | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Models of the same data: text at the prompt and by `str()`, HTML in a notebook.

    - `models`: a list of `Model`, the best first
    - `criterion`: `"aicc"`, `"aic"` or `"bic"`: what they are ordered and weighed by
    - `tests`: a list of `NestedTest`
    - `messages`: sentences on what to know before the numbers are used
    """

    models: list[Model]
    criterion: str
    tests: list[NestedTest]
    messages: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists, strings and plain numbers."""
        return {
            "models": [model._asdict() for model in self.models],
            "criterion": self.criterion,
            "tests": [test._asdict() for test in self.tests],
            "messages": [*self.messages],
        }

    def to_dataframe(self) -> "DataFrame":
        """The models as a pandas DataFrame, with a row for each name."""
        from pandas import DataFrame

        return DataFrame([model._asdict() for model in self.models]).set_index("name")

    def _columns(self) -> list[Column]:
        shown = {
            "variables": [str(one.n_variables) for one in self.models],
            "loss": [_known(one.loss) for one in self.models],
            "AIC": [_known(one.aic) for one in self.models],
            "AICc": [_known(one.aicc) for one in self.models],
            "BIC": [_known(one.bic) for one in self.models],
            "difference": [number(one.difference, 4) for one in self.models],
            "weight": [number(one.weight, 3) for one in self.models],
        }
        columns = [Column([title, *cells], True) for title, cells in shown.items() if any(cells)]
        return [Column(["model", *(one.name for one in self.models)], False), *columns]

    def _test_columns(self) -> list[Column]:
        shown = {
            "likelihood ratio": [number(one.likelihood_ratio, 4) for one in self.tests],
            "p": [number(one.p_value, 3) for one in self.tests],
            "F": ["" if one.f is None else number(one.f, 4) for one in self.tests],
            "p by F": ["" if one.p_value_f is None else number(one.p_value_f, 3) for one in self.tests],
        }
        names = ["test", *(f"{one.smaller} in {one.larger}" for one in self.tests)]
        columns = [Column([title, *cells], True) for title, cells in shown.items() if any(cells)]
        return [Column(names, False), *columns]

    def __repr__(self) -> str:
        lines = text.table(self._columns())
        if self.tests:
            lines += ["", *text.table(self._test_columns())]
        if self.messages:
            lines += ["", *(f"! {message}" for message in self.messages)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tests = html.table(self._test_columns()) if self.tests else ""
        return f"<div>{html.table(self._columns())}{tests}{html.listed(self.messages)}</div>"


def compare(
    reports: Mapping[str, Report],
    *,
    nested: Sequence[tuple[str, str]] = (),
    criterion: str | None = None,
) -> Comparison:
    """Compare models of the same data by what their reports say.

    **Arguments:**

    - `reports`: for the name of each model its `fitopt.report`, made with the uncertainty.
    - `nested`: pairs of names, `("smaller", "larger")`, of models of which the smaller is the larger
        with some of its parameters fixed: for tests by the likelihood ratio and, in least squares, by F.
    - `criterion`: what to order and weigh by, `"aicc"`, `"aic"` or `"bic"`; by default AICc where it is
        known of all, else AIC.

    Weights are Akaike's: the exponential of minus half the difference to the best, over their sum. See
    Burnham and Anderson, *Model Selection and Multimodel Inference* (2002).

    **Returns:** a `fitopt.Comparison`: print it, show it in a notebook, or take its numbers.

    **Raises:** `TypeError` for what are no reports; `ValueError` for reports that cannot be compared, as
    they are of other data, of another kind of loss, or made without the uncertainty.

    >>> import jax.numpy as jnp
    >>> from fitopt import LeastSquares, Parameter, compare, report
    >>> x = jnp.arange(8.0)
    >>> y = jnp.array([0.1, 0.9, 2.1, 2.9, 4.2, 5.1, 5.8, 7.1])
    >>> def report_of(fn, state):
    ...     opt = LeastSquares(lambda state: fn(state) - y)
    ...     fitted, history = opt.run(state)
    ...     return report(fitted, history, opt.uncertainty(fitted))
    >>> a, b = Parameter("a", 0.0), Parameter("b", 0.0)
    >>> flat = report_of(lambda s: s["a"] + 0 * x, {"a": a})
    >>> line = report_of(lambda s: s["a"] + s["b"] * x, {"a": a, "b": b})
    >>> found = compare({"flat": flat, "line": line}, nested=[("flat", "line")])
    >>> [model.name for model in found.models], found.tests[0].p_value < 0.001
    (['line', 'flat'], True)
    """
    _check(reports, criterion)
    criterion = criterion or _default(reports)
    messages = []
    for name, one in reports.items():
        if one.aicc is None and one.n_data is not None:
            messages.append(
                f"AICc needs two data more than variables; {name!r} has {one.n_data} data and "
                f"{one.n_variables} variables"
            )
    found = {name: getattr(one, criterion) for name, one in reports.items()}
    best = min(found.values())
    # An infinite criterion is that of a perfect fit; all such are as good.
    differences = {name: 0.0 if value == best else value - best for name, value in found.items()}
    total = sum(math.exp(-difference / 2) for difference in differences.values())
    models = [
        Model(
            name,
            one.n_variables,
            one.loss,
            one.aic,
            one.aicc,
            one.bic,
            differences[name],
            math.exp(-differences[name] / 2) / total,
        )
        for name, one in reports.items()
    ]
    tests = [_tested(reports, pair, messages) for pair in nested]
    return Comparison(sorted(models, key=lambda model: model.difference), criterion, tests, messages)


def _check(reports: Any, criterion: Any) -> None:
    if not isinstance(reports, Mapping) or not all(isinstance(x, Report) for x in reports.values()):
        raise TypeError(
            f"reports must be a dict from names to what fitopt.report gives, got {reports!r}"
        )
    if len(reports) < 2:
        raise ValueError(f"there must be two models or more to compare, got {len(reports)}")
    if criterion not in (None, "aic", "aicc", "bic"):
        raise ValueError(f'criterion must be "aicc", "aic" or "bic", got {criterion!r}')
    first, report = next(iter(reports.items()))
    for name, one in reports.items():
        if one.deviance is None:
            raise ValueError(f"the report of {name!r} has no likelihood: make it with the uncertainty")
        if one.n_data != report.n_data:
            raise ValueError(
                f"models must be of the same data: {first!r} has {report.n_data}, {name!r} {one.n_data}"
            )
        if one.absolute_sigma != report.absolute_sigma:
            raise ValueError(
                f"models must have losses of one kind; those of {first!r} and {name!r} are not both "
                "likelihoods, or both least squares with, or without, absolute_sigma"
            )
        if criterion is not None and getattr(one, criterion) is None:
            raise ValueError(
                f"{criterion} of {name!r} is not known: it takes n_data, and as many data as needed"
            )


def _default(reports: Mapping[str, Report]) -> str:
    return "aic" if any(one.aicc is None for one in reports.values()) else "aicc"


def _tested(reports: Mapping[str, Report], pair: tuple[str, str], messages: list[str]) -> NestedTest:
    from scipy.special import chdtrc, fdtrc  # takes long to import

    for name in pair:
        if name not in reports:
            raise ValueError(f"nested: there is no model {name!r}; there are {', '.join(reports)}")
    smaller, larger = (reports[name] for name in pair)
    more = larger.n_variables - smaller.n_variables
    if more <= 0:
        raise ValueError(
            f"nested: {pair[1]!r} must have more variables than {pair[0]!r}, got {larger.n_variables} "
            f"and {smaller.n_variables}"
        )
    known_scatter = smaller.absolute_sigma and smaller.chi_square is not None
    deviances = [one.chi_square if known_scatter else one.deviance for one in (smaller, larger)]
    ratio = float(deviances[0] or 0.0) - float(deviances[1] or 0.0)
    if ratio < 0:
        messages.append(
            f"{pair[1]!r} fits worse than {pair[0]!r}, which it contains: it has not come to its minimum"
        )
    ratio, f, p_value_f = max(ratio, 0.0), None, None
    left = larger.degrees_of_freedom or 0
    if smaller.absolute_sigma is False and left > 0 and larger.chi_square:
        f = max(float(smaller.chi_square or 0.0) / larger.chi_square - 1, 0.0) * left / more
        p_value_f = float(fdtrc(more, left, f))
    return NestedTest(*pair, ratio, float(chdtrc(more, ratio)), f, p_value_f)


def _known(x: float | None) -> str:
    return "" if x is None else number(x)
