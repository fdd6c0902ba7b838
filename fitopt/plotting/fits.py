"""`plot_fit`: a picture of data, the fitted curve with its band, and the residuals."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..state import ParameterVector, PyTree, flatten, values
from ..uncertainty import Uncertainty
from .style import ABOVE, BLUE, COLORS, DARK, GREY, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FINE = 400  # points of a curve
_MANY = 100  # data: more are drawn smaller, and below the curve
_BAND = {"alpha": 0.25, "linewidth": 0}
_NEW_BAND = {"alpha": 0.12, "linewidth": 0}


def plot_fit(
    fn: Callable[[Any, Any], Any],
    state: PyTree,
    x: ArrayLike,
    y: ArrayLike,
    sigma: ArrayLike | None = None,
    uncertainty: Uncertainty | None = None,
    *,
    level: float = 0.95,
    components: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    residuals: bool = True,
    prediction: bool = False,
    grid: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    ax: "Axes | Sequence[Axes] | None" = None,
) -> np.ndarray:
    """Draw data and the fitted curve, its parts, and below what is left between data and curve.

    **Arguments:**

    - `fn`: the model: `fn(state, x)` gives the curve at any ascending `x`, for the state with plain
        arrays in place of Parameters.
    - `state`: what `run` has returned.
    - `x`, `y`: the data, of shapes `(n,)` and `(n,)`; of several series `(n,)` and `(n, series)`.
    - `sigma`: the standard deviations of `y`, in any shape that broadcasts to it: drawn as error bars,
        and as the unit of the residuals.
    - `uncertainty`: what `uncertainty(state)` has returned: for a band around the curve. At each x
        the band holds the true curve with this confidence, to first order; new data scatter more.
    - `level`: the confidence, a probability.
    - `components`: parts of the model by name, such as its peaks, each a function like `fn`; they are
        drawn as thin lines.
    - `residuals`: whether to draw them, in axes of their own.
    - `prediction`: whether to draw a second band, which holds new data with this confidence; it needs
        the `uncertainty`, and `sigma` where that of the fit was an array.
    - `grid`: where to draw the curve; by default 400 points across the range of `x`.
    - `labels`: what to call the series.
    - `ax`: axes to draw data and curve into, or two, the second for the residuals; by default those of
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
    if prediction and uncertainty is None:
        raise ValueError("prediction=True needs the uncertainty")
    chosen = _panels(ax, residuals)
    if grid is None:
        spaced = np.geomspace if chosen[0].get_xscale() == "log" else np.linspace
        grid = spaced(x[0], x[-1], _FINE)
    grid = np.asarray(grid, float)
    model = functools.partial(_model, fn, shape)
    flat = flatten(state)
    with ParameterVector.of(flat.layout, flat.free).precision():
        curves, at_data = (np.asarray(model(at, values(state)), float) for at in (grid, x))
        parts = {
            name: np.asarray(_model(part, shape, grid, values(state)), float)
            for name, part in (components or {}).items()
        }
    reach, new_reach = np.zeros(curves.shape), np.zeros(curves.shape)
    if uncertainty is not None:
        errors, data_errors = _errors(
            uncertainty, functools.partial(model, grid), state, prediction, grid, x, sigma
        )
        quantile = _quantile(uncertainty, level)
        reach, new_reach = quantile * errors, quantile * data_errors
    left = y - at_data if sigma is None else (y - at_data) / sigma
    for i, (name, color) in enumerate(zip(names, itertools.cycle(COLORS[1:]), strict=False)):
        dots = DARK if len(names) == 1 else color
        bars = None if sigma is None else sigma[:, i]
        _draw_points(chosen[0], x, y[:, i], bars, dots, name or "data")
        zorder = 4 if x.size > _MANY else 2
        if prediction:
            _draw_band(chosen[0], grid, curves[:, i], new_reach[:, i], color, 1, _NEW_BAND)
        _draw_curve(chosen[0], grid, curves[:, i], reach[:, i], color, None if name else "fit", zorder)
        if len(chosen) > 1:
            bars = None if sigma is None else np.ones_like(x)
            _draw_points(chosen[1], x, left[:, i], bars, dots, None)
    _draw_parts(chosen[0], grid, parts)
    one_color = BLUE if len(names) == 1 else GREY
    if np.any(reach > 0):
        label = f"{100 * level:g} % confidence band"
        chosen[0].fill_between([], [], color=one_color, label=label, **_BAND)
    if prediction:
        label = f"{100 * level:g} % of new data"
        chosen[0].fill_between([], [], color=one_color, label=label, **_NEW_BAND)
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


def _errors(
    uncertainty: Uncertainty,
    curve: Callable[[Any], Any],
    state: PyTree,
    prediction: bool,
    grid: Float[np.ndarray, " m"],
    x: Float[np.ndarray, " n"],
    sigma: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The errors of a curve, and those of new data around it; NaN where they are not finite."""
    if prediction:
        at_grid = None
        if sigma is not None:
            at_grid = np.stack([np.interp(grid, x, column) for column in sigma.T], axis=1)
        _, errors, data_errors = uncertainty.predict(curve, state, sigma=at_grid)
    else:
        _, errors = uncertainty.propagate(curve, state)
        data_errors = errors
    known = lambda errors: np.where(np.isfinite(errors), errors, np.nan)
    return known(errors), known(data_errors)


def _panels(ax: "Axes | Sequence[Axes] | None", residuals: bool) -> np.ndarray:
    if ax is not None:
        chosen = np.array([*ax] if np.iterable(ax) else [ax], object).ravel()
        if len(chosen) not in (1, 2):
            raise ValueError(f"ax must be one or two axes, got {len(chosen)}")
        return chosen if residuals else chosen[:1]
    if not residuals:
        return np.array([new_axes("plot_fit")], object)
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
    zorder: float,
) -> None:
    if np.any(reach > 0):
        _draw_band(axes, x, curve, reach, color, zorder, _BAND)
    axes.plot(x, curve, color=color, label=label, zorder=zorder)


def _draw_band(
    axes: "Axes",
    x: Float[np.ndarray, " m"],
    curve: Float[np.ndarray, " m"],
    reach: Float[np.ndarray, " m"],
    color: str,
    zorder: float,
    style: dict[str, Any],
) -> None:
    axes.fill_between(x, curve - reach, curve + reach, color=color, zorder=zorder, **style)


def _draw_parts(
    axes: "Axes", x: Float[np.ndarray, " m"], parts: Mapping[str, Float[np.ndarray, "m series"]]
) -> None:
    for (name, curves), color in zip(parts.items(), itertools.cycle(COLORS[2:]), strict=False):
        axes.plot(x, curves[:, 0], color=color, label=name, linewidth=1, zorder=1.5)
        axes.plot(x, curves[:, 1:], color=color, linewidth=1, zorder=1.5)


def _draw_points(
    axes: "Axes",
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    bars: Float[np.ndarray, " n"] | None,
    color: str,
    label: str | None,
) -> None:
    style: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    if x.size > _MANY:
        size = max(4.5 * (_MANY / x.size) ** 0.3, 1.5)
        style = {"markersize": size, "markeredgewidth": 0, "alpha": 0.5}
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
    axes[0].legend([handles[i] for i in order], [labels[i] for i in order], ncols=4, **ABOVE)
