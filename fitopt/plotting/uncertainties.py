"""Pictures of an `Uncertainty`: correlations, profiles and contours."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..reporting.digits import span
from ..uncertainty import Contour, Profile, Uncertainty
from .style import ABOVE, BLUE, GREY, ORANGE, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FINE = 400  # points of a curve
_NUMBERED = 12  # elements whose matrix has room for numbers
_NAMED = 40  # elements that have room for their names


def plot_correlation(uncertainty: Uncertainty, ax: "Axes | None" = None) -> "Axes":
    """Draw the correlations between fitted numbers, as colours in a matrix.

    Those of up to twelve are written into the cells, too. A cell is grey where there is no correlation,
    as one of the two lies on a bound or is not determined.

    **Arguments:**

    - `uncertainty`: what `uncertainty(state)` has returned.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.

    **Returns:** the axes.

    **Raises:** `ImportError` without matplotlib.

    >>> from fitopt import LeastSquares, Parameter
    >>> x = np.array([0.0, 1.0, 2.0, 3.0])
    >>> y = np.array([0.1, 0.9, 2.1, 2.9])
    >>> opt = LeastSquares(lambda state: state["slope"] * x + state["offset"] - y)
    >>> fitted, _ = opt.run({"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)})
    >>> axes = plot_correlation(opt.uncertainty(fitted))
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['offset', 'slope']
    """
    names, matrix = uncertainty.names, uncertainty.correlation
    count = len(names)
    axes = new_axes("plot_correlation") if ax is None else ax
    from matplotlib.colors import LinearSegmentedColormap  # new_axes says so where there is none

    if ax is None:
        figure: Any = axes.figure
        side, longest = np.clip(0.55 * count, 2, 6.5), max(map(len, names), default=0)
        beside = 0.09 * longest if count <= _NAMED else 0.5  # inches that the names take
        figure.set_size_inches(side + 1.3 + beside, side + 0.3 + 0.75 * beside)
    colors = LinearSegmentedColormap.from_list("correlation", [BLUE, "white", ORANGE])
    colors = colors.with_extremes(bad="#dddddd")
    image = axes.imshow(matrix, cmap=colors, vmin=-1, vmax=1, interpolation="nearest")
    scale = axes.figure.colorbar(
        image, cax=axes.inset_axes((1.04, 0, 0.05, 1)), ticks=(-1, -0.5, 0, 0.5, 1)
    )
    scale.set_label("correlation")
    scale.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize="small")
    if count <= _NAMED:
        axes.set_yticks(range(count), names)
        axes.set_xticks(range(count), names)
        if max(map(len, names)) > 4:
            axes.tick_params("x", rotation=45)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    if count <= _NUMBERED:
        for i, j in np.argwhere(np.isfinite(matrix)).tolist():
            text = "1" if i == j else f"{matrix[i, j]:.2f}".replace("-", "−")
            color = "white" if abs(matrix[i, j]) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize="small")
    return axes


def plot_profile(profile: Profile, ax: "Axes | None" = None) -> "Axes":
    """Draw how the least loss rises while one number is held away from its best value.

    The dashed parabola is that of the standard error: what the loss would be if it were a square, as the
    error takes it to be. Where the two differ, the profile is to be trusted. There is none where the
    element has no finite error. The confidence interval ends where the profile reaches the level that is
    drawn, or at a bound.

    **Arguments:**

    - `profile`: what `uncertainty.profile(name)` has returned.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.

    **Returns:** the axes.

    **Raises:** `ImportError` without matplotlib.

    >>> x = np.linspace(-2.5, 2.5, 11)
    >>> ends = -1.96, 1.96, (False, False)
    >>> gaussian = Profile("x", 0.95, 0.0, *ends, (), x, x**2 / 2, 0.0, 1.92, {}, 1.0, 0.5)
    >>> axes = plot_profile(gaussian)
    >>> [text.get_text() for text in axes.texts]
    ['95 %', '-1.96 to 1.96']
    >>> [text.get_text() for text in axes.get_legend().texts]
    ['parabola of the standard error', 'profile']
    """
    axes = new_axes("plot_profile") if ax is None else ax
    rise = np.maximum(profile.losses - profile.best_loss, 0)
    least = int(np.argmin(rise))
    best = profile.values[least]
    away = np.sign(profile.values - best) * np.sqrt(rise)
    fine = np.linspace(profile.values[0], profile.values[-1], _FINE)
    curve = np.interp(fine, profile.values, away) ** 2
    if least in (0, rise.size - 1):  # from a bound the loss rises with a slope
        nearest = profile.values[1] if least == 0 else profile.values[-2]
        is_next = np.abs(fine - best) <= abs(nearest - best)
        curve = np.where(is_next, np.interp(fine, profile.values, rise), curve)
    if 0 < profile.standard_error < np.inf:
        parabola = profile.unit * ((fine - profile.value) / profile.standard_error) ** 2
        axes.plot(fine, parabola, "--", color=GREY, label="parabola of the standard error")
    axes.plot(fine, curve, color=BLUE, label="profile")
    axes.plot(profile.values, rise, ".", color=BLUE, markersize=4)
    _mark_level(axes, profile, np.interp(np.asarray(profile), profile.values, rise))
    axes.set(xlabel=profile.name, ylabel="loss above its minimum", ylim=(0, 1.5 * profile.threshold))
    tidy(axes)
    axes.legend(ncols=2, **ABOVE)
    return axes


def _mark_level(axes: "Axes", profile: Profile, heights: Float[np.ndarray, "2"]) -> None:
    """The rise of the loss that belongs to the level, and the interval."""
    text: dict[str, Any] = {"fontsize": "small", "xytext": (4, 0), "textcoords": "offset points"}
    line: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3))}
    axes.axhline(profile.threshold, color=ORANGE, **line)
    place = {"xycoords": axes.get_yaxis_transform(), "va": "center_baseline"}
    level = f"{100 * profile.level:g} %"
    axes.annotate(level, (1, profile.threshold), color=ORANGE, **place, **text)
    for end, height, is_bound in zip(profile, heights, profile.at_bound, strict=True):
        if is_bound:
            axes.axvline(end, color=GREY, **line)
            # Beyond the bound there is no profile that the word could hide.
            side = {"xytext": (-2, 0), "ha": "right"} if end == profile.low else {"xytext": (3, 0)}
            word = {**text, **side, "rotation": 90, "va": "center", "color": GREY}
            axes.annotate("bound", (end, 0.5 * profile.threshold), **word)
        elif np.isfinite(end):
            axes.vlines(end, 0, height, color=ORANGE, linewidth=1)
    middle = np.clip(np.mean([profile.low, profile.high]), profile.values[0], profile.values[-1])
    text = {**text, "xytext": (0, -4), "ha": "center", "va": "top"}
    axes.annotate(span(profile.low, profile.high), (middle, profile.threshold), color=ORANGE, **text)


def plot_contour(contour: Contour | Sequence[Contour], ax: "Axes | None" = None) -> "Axes":
    """Draw the region in which two numbers lie together, and a cross at their fitted values.

    Several levels go into the same axes.

    **Arguments:**

    - `contour`: what `uncertainty.contour(a, b)` has returned, at one level or at several.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.

    **Returns:** the axes.

    **Raises:** `ImportError` without matplotlib.

    >>> angle = np.linspace(0, 2 * np.pi, 41)
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> circle[-1] = circle[0]
    >>> region = Contour(("a", "b"), 0.95, circle, np.zeros(41, bool), 3.0, (), np.zeros(2))
    >>> plot_contour(region).get_xlabel()
    'a'
    """
    axes = new_axes("plot_contour") if ax is None else ax
    if not isinstance(contour, Contour):
        for one in contour:
            plot_contour(one, axes)
        return axes
    points = _smooth(contour)
    axes.fill(*points.T, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(*points.T, color=BLUE, linewidth=1.2)
    axes.plot(*contour.values, "+", color=BLUE, markersize=7)
    known = points[np.isfinite(points).all(axis=1)]
    if len(known):
        top = known[np.argmax(known[:, 1])]
        style: dict[str, Any] = {"fontsize": "small", "color": BLUE, "textcoords": "offset points"}
        axes.annotate(f"{100 * contour.level:g} %", top, (0, 3), ha="center", va="bottom", **style)
    axes.set(xlabel=contour.names[0], ylabel=contour.names[1])
    tidy(axes)
    return axes


def _smooth(contour: Contour) -> Float[np.ndarray, "points 2"]:
    """A smooth line through the points, straight along bounds."""
    points, at_bound = contour.points[:-1], contour.at_bound[:-1]
    if not np.isfinite(points).all():
        return contour.points
    if not at_bound.any():
        return _spline(contour.points, "periodic")
    first = int(np.argmax(at_bound))
    points = np.roll(points, -first, axis=0)
    points = np.append(points, points[:1], axis=0)
    anchors = np.flatnonzero(np.append(np.roll(at_bound, -first), True))
    arcs = [
        _spline(points[a : b + 1], "not-a-knot") if b > a + 1 else points[a : b + 1]
        for a, b in itertools.pairwise(anchors.tolist())
    ]
    return np.concatenate(arcs)


def _spline(points: Float[np.ndarray, "points 2"], ends: str) -> Float[np.ndarray, "fine 2"]:
    from scipy.interpolate import CubicSpline  # takes long to import

    steps = np.diff(points, axis=0) / np.ptp(points, axis=0)
    places = np.cumsum([0.0, *(np.hypot(*steps.T) + 1e-9)])  # which no two may have in common
    return CubicSpline(places, points, bc_type=ends)(np.linspace(0, places[-1], _FINE))
