"""Pictures of what a fit has found: curves with their bands, correlations, profiles and contours.

They share the look of `fitopt.plotting`, and import matplotlib as late.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .digits import span
from .entries import precision_of
from .partition import flatten, values
from .plotting import BLUE, COLORS, DARK, GREY, ORANGE, new_axes, tidy
from .profile import Contour, Profile
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FINE = 400  # points of a curve
_BAND = {"alpha": 0.25, "linewidth": 0}
_ABOVE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "borderaxespad": 0.2,
    "fontsize": "small",
    "handlelength": 1.6,
    "frameon": False,
}
_NUMBERED = 12  # entries whose matrix has room for numbers
_NAMED = 40  # entries that have room for their names


def plot_fit(
    fn: Callable[[Any, Any], Any],
    final_state: PyTree,
    x: ArrayLike,
    y: ArrayLike,
    sigma: ArrayLike | None = None,
    uncertainty: Uncertainty | None = None,
    *,
    level: float = 0.95,
    grid: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    axes: "Axes | Sequence[Axes] | None" = None,
) -> np.ndarray:
    """Draw data and the fitted curve, and below what is left between them.

    **Arguments:**

    - `fn`: the model: `fn(state, x)` gives the curve at any ascending `x`, for the state with plain
        arrays in place of Parameters.
    - `final_state`: what `run` has returned.
    - `x`, `y`: the data, of shapes `(n,)` and `(n,)`; of several series `(n,)` and `(n, series)`.
    - `sigma`: the standard deviations of `y`, in any shape that broadcasts to it: drawn as error bars,
        and as the unit of the residuals.
    - `uncertainty`: what `uncertainty(final_state)` has returned: for a band around the curve. At each x
        the band holds the true curve with this confidence, to first order; new data scatter more.
    - `level`: the confidence, a probability.
    - `grid`: where to draw the curve; by default 400 points across the range of `x`.
    - `labels`: what to call the series.
    - `axes`: one to draw data and curve into, or two, the second for the residuals; by default those of
        a new pyplot figure.

    **Returns:** the axes, an array with one dimension.

    **Raises:** `ValueError` for shapes that do not fit, `ImportError` without matplotlib.

    >>> from fitopt import LeastSquares, Parameter
    >>> x = np.array([0.0, 1.0, 2.0, 3.0])
    >>> y = np.array([0.1, 0.9, 2.1, 2.9])
    >>> line = lambda state, x: state["slope"] * x + state["offset"]
    >>> opt = LeastSquares(lambda state: line(state, x) - y)
    >>> fitted, _ = opt.run({"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)})
    >>> upper, lower = plot_fit(line, fitted, x, y, uncertainty=opt.uncertainty(fitted))
    >>> upper.get_legend_handles_labels()[1]
    ['fit', '95 % confidence band', 'data']
    """
    x, y, sigma, shape = _checked(x, y, sigma)
    names = _names(labels, y.shape[1])
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
    chosen = _panels(axes)
    if grid is None:
        spaced = np.geomspace if chosen[0].get_xscale() == "log" else np.linspace
        grid = spaced(x[0], x[-1], _FINE)
    grid = np.asarray(grid, float)
    model = functools.partial(_model, fn, shape)
    with precision_of(flatten(final_state).free):
        curves, at_data = (np.asarray(model(at, values(final_state)), float) for at in (grid, x))
    reach = np.zeros(curves.shape)
    if uncertainty is not None:
        _, errors = uncertainty.propagate(functools.partial(model, grid), final_state)
        reach = _quantile(uncertainty, level) * np.where(np.isfinite(errors), errors, np.nan)
    residuals = y - at_data if sigma is None else (y - at_data) / sigma
    for i, (name, color) in enumerate(zip(names, itertools.cycle(COLORS[1:]), strict=False)):
        dots = DARK if len(names) == 1 else color
        bars = None if sigma is None else sigma[:, i]
        _draw_points(chosen[0], x, y[:, i], bars, dots, name or "data")
        _draw_curve(chosen[0], grid, curves[:, i], reach[:, i], color, None if name else "fit")
        if len(chosen) > 1:
            bars = None if sigma is None else np.ones_like(x)
            _draw_points(chosen[1], x, residuals[:, i], bars, dots, None)
    if np.any(reach > 0):
        chosen[0].fill_between(
            [],
            [],
            color=BLUE if len(names) == 1 else GREY,
            label=f"{100 * level:g} % confidence band",
            **_BAND,
        )
    _finish(chosen, len(names), "data − fit" if sigma is None else "(data − fit) / σ")
    return chosen


def _checked(
    x: ArrayLike, y: ArrayLike, sigma: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, ...]]:
    """The data in the order of x, with a column for each series, and the shape of y at each x."""
    x, y = np.asarray(x), np.asarray(y)
    for name, array in (("x", x), ("y", y)):
        if np.iscomplexobj(array):
            raise ValueError(f"{name} must be real, got numbers of type {array.dtype}")
    x, y = x.astype(float), y.astype(float)
    if x.ndim != 1 or not x.size or y.ndim not in (1, 2) or len(y) != len(x):
        raise ValueError(
            "x and y must have shapes (n,) and (n,), or (n,) and (n, series); "
            f"got {x.shape} and {y.shape}"
        )
    shape, order = y.shape[1:], np.argsort(x, kind="stable")
    if sigma is not None:
        try:
            sigma = np.broadcast_to(np.asarray(sigma, float), y.shape).reshape(len(y), -1)[order]
        except ValueError:
            raise ValueError(
                f"sigma of shape {np.shape(sigma)} does not fit y of shape {y.shape}"
            ) from None
    return x[order], y.reshape(len(y), -1)[order], sigma, shape


def _names(labels: Sequence[str] | None, series: int) -> list[str]:
    """What to call the series; one alone may go without a name."""
    if labels is None:
        return [""] if series == 1 else [f"series {i + 1}" for i in range(series)]
    if isinstance(labels, str) or len(labels) != series:
        raise ValueError(f"labels must be {series}, one for each series, got {labels!r}")
    return list(labels)


def _model(fn: Callable[[Any, Any], Any], shape: tuple[int, ...], at: np.ndarray, state: Any) -> Array:
    """The curves of all series, a column each."""
    output = jnp.asarray(fn(state, jnp.asarray(at)))
    if output.shape != (at.size, *shape):
        raise ValueError(
            f"fn must return an array of shape {(at.size, *shape)} for x of shape {at.shape}, "
            f"as y has shape {('n', *shape)}; got {output.shape}"
        )
    return output.reshape(at.size, -1)


def _quantile(uncertainty: Uncertainty, level: float) -> float:
    """How many standard errors reach as far as a two-sided confidence."""
    from scipy.special import ndtri, stdtrit  # comes with jax; slow to import

    if uncertainty.absolute_sigma is not False:
        return float(ndtri((1 + level) / 2))
    return float(stdtrit(uncertainty.degrees_of_freedom, (1 + level) / 2))


def _panels(axes: "Axes | Sequence[Axes] | None") -> np.ndarray:
    if axes is not None:
        chosen = np.array([*axes] if np.iterable(axes) else [axes], object).ravel()
        if len(chosen) not in (1, 2):
            raise ValueError(f"axes must be one or two, got {len(chosen)}")
        return chosen
    figure: Any = new_axes("plot_fit").figure
    figure.clear()
    figure.set_size_inches(6, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    return np.array([upper, lower], object)


def _draw_curve(
    axes: "Axes",
    x: Float[np.ndarray, " m"],
    curve: Float[np.ndarray, " m"],
    reach: Float[np.ndarray, " m"],
    color: str,
    label: str | None,
) -> None:
    if np.any(reach > 0):
        axes.fill_between(x, curve - reach, curve + reach, color=color, **_BAND)
    axes.plot(x, curve, color=color, label=label)


def _draw_points(
    axes: "Axes",
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    bars: Float[np.ndarray, " n"] | None,
    color: str,
    label: str | None,
) -> None:
    style: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.errorbar(x, y, bars, fmt="o", color=color, elinewidth=1, label=label, zorder=3, **style)


def _finish(axes: np.ndarray, series: int, residual: str) -> None:
    """Labels, where there are none yet, and the common look."""
    axes[0].set_ylabel(axes[0].get_ylabel() or "y")
    axes[-1].set_xlabel(axes[-1].get_xlabel() or "x")
    if len(axes) > 1:
        axes[1].axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes[1].set_ylabel(axes[1].get_ylabel() or residual)
        axes[0].figure.align_ylabels(axes.tolist())
    for one in axes:
        tidy(one)
    handles, labels = axes[0].get_legend_handles_labels()
    order = [*range(-series, 0), *range(len(handles) - series)]  # the points first
    axes[0].legend([handles[i] for i in order], [labels[i] for i in order], ncols=4, **_ABOVE)


def plot_correlation(uncertainty: Uncertainty, ax: "Axes | None" = None) -> "Axes":
    """Draw the correlations between fitted numbers, as colours in a matrix.

    Those of up to twelve are written into the cells, too. A cell is grey where there is no correlation,
    as one of the two lies on a bound or is not determined.

    **Arguments:**

    - `uncertainty`: what `uncertainty(final_state)` has returned.
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
        side = np.clip(0.55 * count, 2, 6.5)
        figure.set_size_inches(side + 2, side + 1)
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

    The dashed parabola has the same curvature at the minimum: it is what a standard error goes by. Where
    the two differ, the profile is to be trusted. The confidence interval ends where the profile reaches
    the level that is drawn, or at a bound.

    **Arguments:**

    - `profile`: what `uncertainty.profile(name)` has returned.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.

    **Returns:** the axes.

    **Raises:** `ImportError` without matplotlib.

    >>> x = np.linspace(-2.5, 2.5, 11)
    >>> gaussian = Profile("x", 0.95, 0.0, -1.96, 1.96, (False, False), (), x, x**2 / 2, 0.0, 1.92, {})
    >>> plot_profile(gaussian).get_title("right")
    '-1.96 to 1.96'
    """
    axes = new_axes("plot_profile") if ax is None else ax
    rise = np.maximum(profile.losses - profile.best_loss, 0)
    best = profile.values[np.argmin(rise)]
    away = np.sign(profile.values - best) * np.sqrt(rise)
    fine = np.linspace(profile.values[0], profile.values[-1], _FINE)
    curvature = _curvature(profile.values - best, rise, profile.threshold)
    if curvature is not None:
        axes.plot(
            fine,
            curvature * (fine - best) ** 2,
            "--",
            color=GREY,
            label="parabola of the same curvature",
        )
    axes.plot(fine, np.interp(fine, profile.values, away) ** 2, color=BLUE, label="profile")
    axes.plot(profile.values, rise, ".", color=BLUE, markersize=4)
    _mark_level(axes, profile, np.interp(np.asarray(profile), profile.values, rise))
    axes.set(xlabel=profile.name, ylabel="loss above its minimum", ylim=(0, 1.5 * profile.threshold))
    tidy(axes)
    axes.legend(ncols=2, **_ABOVE)
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
            axes.annotate("bound", (end, 0.5 * profile.threshold), color=GREY, rotation=90, **text)
        elif np.isfinite(end):
            axes.vlines(end, 0, height, color=ORANGE, linewidth=1)
    interval = span(profile.low, profile.high)
    axes.set_title(interval, loc="right", fontsize="small", color=ORANGE)


def _curvature(
    distance: Float[np.ndarray, " points"], rise: Float[np.ndarray, " points"], threshold: float
) -> float | None:
    """The factor of the square in a polynomial through the points next to the minimum, if it is one."""
    near = rise < threshold / 3
    if min(np.sum(distance[near] < 0), np.sum(distance[near] > 0)) < 2:
        return None
    size = np.abs(distance[near]).max()
    powers = (distance[near] / size)[:, None] ** [2, 3, 4]
    return float(np.linalg.lstsq(powers, rise[near])[0][0]) / size**2


def plot_contour(contour: Contour, ax: "Axes | None" = None) -> "Axes":
    """Draw the region in which two numbers lie together; several levels go into the same axes.

    **Arguments:**

    - `contour`: what `uncertainty.contour(a, b)` has returned.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.

    **Returns:** the axes.

    **Raises:** `ImportError` without matplotlib.

    >>> angle = np.linspace(0, 2 * np.pi, 41)
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> circle[-1] = circle[0]
    >>> region = Contour(("a", "b"), 0.95, circle, np.zeros(41, bool), 3.0, ())
    >>> plot_contour(region).get_xlabel()
    'a'
    """
    axes = new_axes("plot_contour") if ax is None else ax
    points = _smooth(contour)
    axes.fill(*points.T, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(*points.T, color=BLUE, linewidth=1.2)
    known = points[np.isfinite(points).all(axis=1)]
    if len(known):
        top = known[np.argmax(known[:, 1])]
        style: dict[str, Any] = {"fontsize": "small", "color": BLUE, "textcoords": "offset points"}
        axes.annotate(f"{100 * contour.level:g} %", top, (0, 3), ha="center", va="bottom", **style)
    axes.set(xlabel=contour.names[0], ylabel=contour.names[1])
    tidy(axes)
    return axes


def _smooth(contour: Contour) -> Float[np.ndarray, "points 2"]:
    """A smooth line through the points, where all of them are the same kind of border."""
    if contour.at_bound.any() or not np.isfinite(contour.points).all():
        return contour.points
    from scipy.interpolate import CubicSpline  # comes with jax; slow to import

    places = np.arange(len(contour.points))
    spline = CubicSpline(places, contour.points, bc_type="periodic")
    return spline(np.linspace(0, places[-1], _FINE))
