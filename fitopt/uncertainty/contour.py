"""Contours: the borders of regions in which two elements lie together."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .conditional_fits import ConditionalFits
from .likelihood import Likelihood
from .profile import check_unit, crossing, not_inside, precision
from .refit import Refit


@dataclasses.dataclass(frozen=True, eq=False)
class Contour:
    """The border of a joint confidence region of two elements.

    - `names`: of the two
    - `level`: of confidence that both lie inside
    - `points`: of the border, in order, with those besides at which it meets a bound; shape
        `(points, 2)`; the last is the first once more
    - `at_bound`: which of the points lie on a bound, where the region ends before the loss has risen far
        enough; shape `(points,)`
    - `threshold`: by how much the loss has risen at the others
    - `messages`: sentences on what went wrong, a tuple
    - `values`: the fitted values of the two, shape `(2,)`
    """

    names: tuple[str, str]
    level: float
    points: Float[np.ndarray, "points 2"]
    at_bound: Bool[np.ndarray, " points"]
    threshold: float
    messages: tuple[str, ...]
    values: Float[np.ndarray, "2"]


class _Point(NamedTuple):
    """One on the border."""

    place: Float[np.ndarray, "2"]
    bound: int | None = None  # the element that is on a bound there


def contour(
    likelihood: Likelihood,
    minimum: Refit,
    fits: ConditionalFits,
    rows: tuple[int, int],
    level: float,
    points: int,
) -> Contour:
    """The border of the joint confidence region of two elements, along rays from the best."""
    check_unit(likelihood)
    vector, pair = likelihood.vector, list(rows)
    centre, quantile = minimum.values[pair], likelihood.quantile(level, 2) ** 0.5
    names, values = (vector.labels[rows[0]], vector.labels[rows[1]]), likelihood.values[pair]
    # Only a state far above the minimum may lie outside; with others fitted again, it may yet be inside.
    is_far = likelihood.loss - minimum.loss > likelihood.unit * quantile**2
    if is_far and fits.height(values) > quantile:
        where = f"the region of {names[0]} and {names[1]}"
        raise ValueError(not_inside(where, values, likelihood, minimum))
    axes = likelihood.covariance[np.ix_(pair, pair)]
    if np.isfinite(axes).all():
        axes = np.linalg.cholesky(axes)
    else:
        axes = np.diag([likelihood.size(row) for row in rows])
    border = []
    for angle in np.linspace(0, 2 * np.pi, points, endpoint=False):
        ray = axes @ [np.cos(angle), np.sin(angle)]
        bounds = np.where(ray > 0, vector.upper[pair], vector.lower[pair])
        limits = np.abs(bounds - centre) / np.maximum(np.abs(ray), np.finfo(float).tiny)
        nearest = int(np.argmin(limits))
        height = lambda distance, ray=ray: fits.height(centre + distance * ray)
        distance, is_bound = crossing(height, quantile, quantile, limits[nearest], precision(likelihood))
        place = centre + distance * ray if np.isfinite(distance) else np.full(2, np.nan)
        if is_bound:
            place[nearest] = bounds[nearest]
        border.append(_Point(place, nearest if is_bound else None))
    border = [
        point
        for here, there in itertools.pairwise([*border, border[0]])
        for point in (here, *_between(likelihood, fits, rows, centre, quantile, here, there))
    ]
    border.append(border[0])
    messages = fits.messages(f"the contour of {names[0]} and {names[1]}")
    if any(np.isnan(point.place).any() for point in border):
        messages += ("the region has no end in some directions; points there are NaN",)
    return Contour(
        names=names,
        level=level,
        points=np.array([point.place for point in border]),
        at_bound=np.array([point.bound is not None for point in border]),
        threshold=likelihood.unit * likelihood.quantile(level, 2),
        messages=messages,
        values=values,
    )


def _between(
    likelihood: Likelihood,
    fits: ConditionalFits,
    rows: tuple[int, int],
    centre: Float[np.ndarray, "2"],
    quantile: float,
    here: _Point,
    there: _Point,
) -> list[_Point]:
    """The corner between two points of which one is on a bound, or each on another."""
    if here.bound == there.bound or np.isnan([here.place, there.place]).any():
        return []
    if here.bound is not None and there.bound is not None:
        corner = np.where(np.arange(2) == here.bound, here.place, there.place)
        return [_Point(corner, here.bound)] if fits.height(corner) <= quantile else []
    on, off = (here, there) if here.bound is not None else (there, here)
    fixed = int(on.bound or 0)
    other = 1 - fixed
    # The corner lies on the bound, before the place at which the ray through the other point meets it.
    ray, wall = off.place - centre, on.place[fixed] - centre[fixed]
    meets = ray[fixed] * wall > 0
    end = centre[other] + ray[other] * wall / ray[fixed] if meets else np.copysign(np.inf, ray[other])
    vector, row = likelihood.vector, rows[other]
    end = np.clip(end, vector.lower[row], vector.upper[row]) - on.place[other]

    def height(distance: float) -> float:
        place = on.place.copy()
        place[other] += np.sign(end) * distance
        return fits.height(place)

    first = min(abs(end), likelihood.size(row))
    distance, _ = crossing(height, first, quantile, abs(end), precision(likelihood))
    corner = on.place.copy()
    corner[other] += np.sign(end) * distance
    return [_Point(corner, fixed)] if np.isfinite(distance) else []
