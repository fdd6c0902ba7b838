"""Profile likelihood: how the least loss rises while one element is held away from the best."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .conditional_fits import ConditionalFits
from .likelihood import Likelihood
from .refit import Refit

_FAR = 1e6  # of the first step: there the search for the end of an interval gives up
_BEYOND = 1.25  # of the interval: how far the curve goes
NO_SCATTER = "there is no scatter of the residuals to tell how far the loss may rise"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Interval:
    """A confidence interval. It unpacks: `low, high = interval`.

    - `name`: of the element
    - `level`: of confidence, between 0 and 1
    - `value`: the fitted value
    - `low`, `high`: the ends; infinite where the loss never rises far enough
    - `minus`, `plus`: how far the ends are from the value, both positive
    - `at_bound`: whether low, and whether high, is a bound, where the interval ends before the loss has
        risen far enough
    - `messages`: sentences on what went wrong, a tuple
    """

    name: str
    level: float
    value: float
    low: float
    high: float
    at_bound: tuple[bool, bool]
    messages: tuple[str, ...]

    @property
    def minus(self) -> float:
        """How far the lower end is below the fitted value."""
        return self.value - self.low

    @property
    def plus(self) -> float:
        """How far the upper end is above the fitted value."""
        return self.high - self.value

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([self.low, self.high], dtype)

    def __repr__(self) -> str:
        known = [one for one in (self.minus, self.plus) if 0 < one < np.inf]
        places = 6 if not known else max(0, 1 - math.floor(math.log10(min(known))))
        shown = lambda x: f"{x:.{places}f}" if places <= 6 else f"{x:.6g}"
        ends = [
            shown(end) + (" (a bound)" if is_bound else "")
            for end, is_bound in zip(self, self.at_bound, strict=True)
        ]
        return (
            f"{self.name} = {shown(self.value)} (-{self.minus:.2g}, +{self.plus:.2g}): "
            f"{100 * self.level:g} % from {ends[0]} to {ends[1]}"
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Profile(Interval):
    """An `Interval` and the curve that it was read from.

    - `values`: where the element was held, growing; shape `(points,)`
    - `losses`: the least loss there
    - `best_loss`: the least of all
    - `threshold`: by how much the loss has risen at the ends of the interval
    - `others`: for the names of the other elements what was fitted there, shape `(points,)`
    - `standard_error`: of the element, as the `Uncertainty` has it; infinite or NaN where there is none
    - `unit`: by how much the loss rises at one standard error
    """

    values: Float[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]
    best_loss: float
    threshold: float
    others: dict[str, Float[np.ndarray, " points"]]
    standard_error: float
    unit: float


def intervals(
    likelihood: Likelihood, minimum: Refit, row: int, levels: Sequence[float]
) -> list[Interval]:
    """The confidence intervals of an element; `minimum` is the least loss with none held."""
    if 0 < likelihood.unit < np.inf:
        fits = ConditionalFits(likelihood, [row], minimum)
        return [_interval(likelihood, minimum, row, level, fits) for level in levels]
    value, name = float(likelihood.values[row]), likelihood.vector.labels[row]
    ends, message = ((value, value), "the residuals are zero")
    if likelihood.unit != 0:
        ends, message = (-np.inf, np.inf), NO_SCATTER
    return [Interval(name, level, value, *ends, (False, False), (message,)) for level in levels]


def _interval(
    likelihood: Likelihood, minimum: Refit, row: int, level: float, fits: ConditionalFits
) -> Interval:
    vector = likelihood.vector
    quantile, value = likelihood.quantile(level, 1) ** 0.5, float(minimum.values[row])
    first = quantile * likelihood.size(row)
    ends, at_bound = [], []
    for sign, bound in ((-1, vector.lower[row]), (1, vector.upper[row])):
        height = lambda distance, sign=sign: fits.height(np.array([value + sign * distance]))
        limit = abs(bound - value)
        distance, is_bound = crossing(height, first, quantile, limit, precision(likelihood))
        ends.append(float(bound) if is_bound else value + sign * distance)
        at_bound.append(is_bound)
    if not ends[0] <= likelihood.values[row] <= ends[1]:
        where = f"the interval of {vector.labels[row]}, {ends[0]:.6g} to {ends[1]:.6g},"
        raise ValueError(not_inside(where, likelihood.values[row], likelihood, minimum))
    return Interval(
        name=vector.labels[row],
        level=level,
        value=float(likelihood.values[row]),
        low=ends[0],
        high=ends[1],
        at_bound=(at_bound[0], at_bound[1]),
        messages=fits.messages(f"the profile of {vector.labels[row]}"),
    )


def profile(likelihood: Likelihood, minimum: Refit, row: int, level: float, points: int) -> Profile:
    """The curve of the least loss over an element, a little beyond its confidence interval."""
    check_unit(likelihood)
    vector, fits = likelihood.vector, ConditionalFits(likelihood, [row], minimum)
    interval = _interval(likelihood, minimum, row, level, fits)
    value = float(minimum.values[row])
    far = 3 * likelihood.size(row)
    sides = []
    for end, bound in ((interval.low, vector.lower[row]), (interval.high, vector.upper[row])):
        reach = abs(end - value) * _BEYOND if np.isfinite(end) else far
        end = value + np.sign(end - value) * min(reach, abs(bound - value))
        held_at = np.linspace(value, end, points // 2 + 1)[1:]
        sides.append([(x, fits(np.array([x]))) for x in held_at if x != value])
    curve = [*reversed(sides[0]), (value, minimum), *sides[1]]
    return Profile(
        **{field.name: getattr(interval, field.name) for field in dataclasses.fields(interval)},
        values=np.array([x for x, _ in curve]),
        losses=np.array([float(point.loss) for _, point in curve]),
        best_loss=float(minimum.loss),
        threshold=likelihood.unit * likelihood.quantile(level, 1),
        others={
            name: np.array([point.values[i] for _, point in curve])
            for i, name in enumerate(vector.labels)
            if i != row
        },
        standard_error=float(likelihood.errors[row]),
        unit=likelihood.unit,
    )


def not_inside(where: str, values: Any, likelihood: Likelihood, minimum: Refit) -> str:
    """Why a region that leaves out the state is none to report."""
    return (
        f"{where} does not contain the fitted {np.array2string(np.asarray(values), precision=6)}: it is "
        f"around a minimum whose loss is {likelihood.loss - minimum.loss:.3g} less; fit on first"
    )


def check_unit(likelihood: Likelihood) -> None:
    """Raise unless it is known how far the loss may rise."""
    if not 0 < likelihood.unit < np.inf:
        raise ValueError(NO_SCATTER)


def precision(likelihood: Likelihood) -> float:
    """To what part of its length an interval is found."""
    return float(np.finfo(likelihood.vector.dtype).eps) ** (1 / 3)


def crossing(
    height: Callable[[float], float], first: float, wanted: float, limit: float, precision: float
) -> tuple[float, bool]:
    """At which distance a height, zero at zero, is reached; or `limit`, and whether it is that."""
    from scipy.optimize import brentq  # takes long to import

    if limit == 0:
        return 0.0, True
    heights = {0.0: 0.0}

    def excess(distance: float) -> float:
        if distance not in heights:
            heights[distance] = min(height(distance), 10 * wanted)
        return heights[distance] - wanted

    below, distance = 0.0, min(first, limit)
    while excess(distance) < 0:
        if distance == limit:
            return limit, True
        if distance > _FAR * first:
            return np.inf, False
        growth = wanted / max(heights[distance], 0.25 * wanted)
        below, distance = distance, min(distance * max(growth * 1.01, 1.02), limit)
    root: Any = brentq(excess, below, distance, xtol=precision * distance)
    return float(root), False
