"""Pictures of how a fit went: series of its history, and parameters with their bounds."""

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from ..history import History
from ..parameter import Parameter
from ..state import PyTree, is_parameter
from ..state.block import Block
from ..state.layout import unique_names
from .curves import Curve, real_curves, records, series, thinned, title
from .style import BLUE, GREY, ORANGE, grid, new_axes, number, pyplot, tidy, unused_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BOUNDS = 8  # of one array; of more, the outermost are drawn


def plot_history(
    history: History, *names: str, ax: "Axes | None" = None, log: bool | None = None
) -> "Axes":
    """Draw series of a history over the steps.

    The least loss is marked. However long a series is, each of its spikes is visible. Arrays with up to
    twenty entries get a line for each; of more, the median, the quartiles and the range are drawn. So
    it is with the lanes of a fit inside `vmap`; in these three, a lane that has stopped keeps its last
    value.

    **Arguments:**

    - `history`: of a fit.
    - `names`: of the series; the loss by default.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.
    - `log`: whether the axis is logarithmic; by default it is where all that is drawn is positive and
        spans more than two decades.

    **Returns:** the axes.

    **Raises:** `KeyError` for a series that was not recorded, `ValueError` for `log=True` where nothing
    is positive, `ImportError` without matplotlib.

    >>> history = History(loss=np.exp(-np.arange(9.0)), n_steps=9)
    >>> axes = plot_history(history)
    >>> axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()
    ('step', 'loss', 'log')
    """
    names = names or ("loss",)
    curves = [curve for name in names for curve in series(history, name)]
    if log and not any((curve.values > 0).any() for curve in curves):
        raise ValueError("log must be None or False where nothing is positive, got True")
    axes = new_axes("plot") if ax is None else ax
    for curve, color in zip(curves, unused_colors(axes), strict=False):
        curve.draw(axes, color, labelled=len(curves) > 1)
        if curve.label == "loss" and curve.values.shape[1] == 1:
            _mark_least(axes, curve, color)
    _scale(axes, log)
    axes.set(xlabel="step", ylabel=", ".join(map(title, names)))
    tidy(axes)
    _add_legend(axes)
    return axes


def plot_parameters(
    history: History,
    state: PyTree = None,
    *,
    names: str | Sequence[str] | None = None,
    ax: "Axes | Iterable[Axes] | None" = None,
) -> np.ndarray:
    """Draw how the parameters went, a panel for each; for fits with `RecordParameters`.

    Finite bounds are dashed lines; one far away is an arrow at the edge. Arrays with up to twenty fitted
    entries get a line for each, of which four are labelled, or the first and the last; of more, the
    median, the quartiles and the range are drawn. An axis is logarithmic where the values are positive
    and span more than two decades.

    **Arguments:**

    - `history`: of a fit.
    - `state`: the state, fitted or not, to take names and bounds from, where the history does not know
        them: read from a file, or from a fit inside `vmap`. Without it such a history's parameters are
        called by their paths.
    - `names`: which parameters: patterns such as `"rate*"` or `"layers/0/*"` for names and paths; all by
        default.
    - `ax`: the axes to draw into, one a parameter; by default those of a new pyplot figure.

    **Returns:** the axes, an array with one dimension, in the order of the state.

    **Raises:** `KeyError` without recorded parameters; `ValueError` for a state that is not the
    history's, a pattern that matches nothing, too few axes; `ImportError` without matplotlib.

    >>> import optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> from fitopt.callbacks import RecordParameters
    >>> optimizer = OptaxOptimizer(lambda s: (s["k"] - 2) ** 2, optax.sgd(0.1), RecordParameters())
    >>> _, history = optimizer.run({"k": Parameter("rate", 1.0, lower=0)}, max_steps=20)
    >>> (axes,) = plot_parameters(history)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('step', 'rate')
    """
    panels = find_panels(history, state, names)
    if ax is None:
        columns = min(len(panels), 4 if -len(panels) % 4 < -len(panels) % 3 else 3)
        size = (8.7 if columns > 2 else 3.6 * columns, 1.7 * -(-len(panels) // columns) + 0.4)
        figure = pyplot("plot_parameters").figure(figsize=size, layout="constrained")
        chosen = grid(figure, len(panels), columns)
        figure.align_ylabels(chosen)
    else:
        chosen = np.array([*ax] if np.iterable(ax) else [ax], object).ravel()[: len(panels)]
        if len(chosen) < len(panels):
            raise ValueError(f"ax must be {len(panels)} axes, one for each parameter; got {len(chosen)}")
    for panel, one in zip(panels, chosen, strict=True):
        panel.draw(one)
    return chosen


# Parameters.


class Panel(NamedTuple):
    """What is drawn of one parameter."""

    name: str
    curves: list[Curve]  # two of a complex one
    lower: Float[np.ndarray, " n"]  # the finite bounds of its fitted entries, ordered, each once
    upper: Float[np.ndarray, " m"]

    def draw(self, axes: "Axes") -> None:
        """The curves and the bounds."""
        for curve, color in zip(self.curves, (BLUE, ORANGE), strict=False):
            curve.draw(axes, color, labelled=len(self.curves) > 1)
        _scale(axes, None)
        axes.set_xlabel("step", fontsize="small")
        axes.set_ylabel(textwrap.fill(self.name, 22), fontsize="small")
        axes.tick_params(labelsize="small")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set_fontsize("small")
        tidy(axes, ticks=4)
        if self.curves[0].summary and len(self.curves) == 1:
            axes.set_title(self.curves[0].summary, loc="right", fontsize="small", color=GREY)
        elif axes.get_legend_handles_labels()[1]:
            corner = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.0}
            tight = {"handlelength": 0, "handletextpad": 0, "columnspacing": 0.7, "frameon": False}
            columns = 4 if len(self.curves) == 1 else 2
            axes.legend(ncols=columns, fontsize="small", labelcolor="linecolor", **tight, **corner)
        axes.get_ylim()  # settles the view of the curves alone
        to_view = axes.transData + axes.transAxes.inverted()
        is_near = lambda bound: abs(to_view.transform((0, bound))[1] - 0.5) < 2
        near = [[bool(is_near(bound)) for bound in bounds] for bounds in (self.lower, self.upper)]
        _draw_bounds(axes, self.lower, near[0], upper=False)
        _draw_bounds(axes, self.upper, near[1], upper=True)


def find_panels(
    history: History, state: PyTree = None, names: str | Sequence[str] | None = None
) -> list[Panel]:
    """A panel for each recorded parameter that `names` match."""
    if "parameters" not in history:
        raise KeyError("no parameters were recorded; add RecordParameters() to the callbacks")
    steps, leaves = records(history, "parameters")
    known = _parameters(history, state, leaves)
    called = unique_names([None if one is None else one.name for one in known.values()], list(known))
    patterns = [names] if isinstance(names, str) else names
    panels, unmatched = [], set(patterns or ())
    for (path, parameter), name in zip(known.items(), called, strict=True):
        known_as = {path, name, path if parameter is None else parameter.name or path}
        matching = {p for p in patterns or () if any(fnmatchcase(one, p) for one in known_as)}
        unmatched -= matching
        if patterns is None or matching:
            panels.append(_panel(name, parameter, steps, leaves[path]))
    if unmatched or not panels:
        raise ValueError(
            f"names must match recorded parameters, got {names!r}; recorded are {', '.join(called)}"
        )
    return panels


def _parameters(history: History, state: PyTree, leaves: dict[str, Any]) -> dict[str, Parameter | None]:
    """The recorded Parameters by path, None where one is not known."""
    given = history.start if state is None else state
    pairs = jax.tree_util.tree_leaves_with_path(given, is_leaf=is_parameter)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    known = {path: leaf if is_parameter(leaf := found.get(path)) else None for path in leaves}
    missing = [path for path, parameter in known.items() if parameter is None]
    if missing and state is not None:
        raise ValueError(f"state has no Parameter at {', '.join(missing)}, which the history recorded")
    return known


def _panel(
    name: str,
    parameter: Parameter | None,
    steps: Int[np.ndarray, " records"],
    values: Shaped[np.ndarray, "records lanes *shape"],
) -> Panel:
    """What there is to draw of a Parameter, as far as it is known: its fitted entries, their bounds."""
    if parameter is None:
        return Panel(name, real_curves("", steps, values), np.empty(0), np.empty(0))
    shape = values.shape[2:]
    block = dataclasses.replace(Block.of(name, parameter), shape=shape)  # of one lane
    try:
        fitted = np.isin(np.arange(math.prod(shape)), block.fitted).reshape(shape)
        ends = [block.constant(x, np.inf) for x in (block.spec.lower, block.spec.upper)]
    except ValueError:
        raise ValueError(f"state: Parameter {name!r} has not the recorded shape {shape}") from None
    lower, upper = (np.unique(bound[np.isfinite(bound)]) for bound in ends)
    curves = real_curves("", steps, values[:, :, fitted])
    if shape and values.shape[1] == 1:
        entries = [label.removeprefix(name) for label in block.labels]
        each = np.array_split(entries, len(curves))
        curves = [curve._replace(entries=tuple(own)) for curve, own in zip(curves, each, strict=True)]
    return Panel(name, curves, lower, upper)


def _draw_bounds(axes: "Axes", bounds: np.ndarray, near: list[bool], upper: bool) -> None:
    """Dashed lines, for which the panel makes room where they are near."""
    from matplotlib.lines import Line2D

    across = axes.get_yaxis_transform()
    style: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1}
    text: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": "small"}
    outermost = bounds[-1:] if upper else bounds[:1]
    # Plain characters: mathematical text takes matplotlib milliseconds to parse, at each redraw.
    sign, arrow = ("≤", "↑") if upper else ("≥", "↓")
    for bound, is_near in zip(bounds, near, strict=True):
        if len(bounds) > _MOST_BOUNDS and bound not in outermost:
            continue
        label = f"{sign} {number(bound)}" if bound in outermost else ""
        if is_near:
            axes.axhline(bound, **style)
            axes.annotate(label, (1, bound), xycoords=across, va="center_baseline", color=GREY, **text)
        else:  # out of sight until one zooms out
            axes.add_artist(Line2D([0, 1], [bound, bound], transform=across, **style))
            label = label and f"{label} {arrow}"
            edge, va = (1, "top") if upper else (0, "bottom")
            axes.annotate(label, (1, edge), xycoords="axes fraction", va=va, color=GREY, **text)


def _scale(axes: "Axes", log: bool | None) -> None:
    least, greatest = axes.dataLim.intervaly
    if log or (log is None and 0 < 100 * least < greatest):
        axes.set_yscale("log")
    elif log is False:
        axes.set_yscale("linear")


def _mark_least(axes: "Axes", curve: Curve, color: str) -> None:
    steps, losses = thinned(curve.steps, curve.values[:, 0])
    if np.isnan(losses).all():
        return
    best = np.nanargmin(losses)
    label = f"least {number(losses[best])} at step {steps[best]:,}"
    style: dict[str, Any] = {"color": color, "markersize": 5, "markerfacecolor": "white", "zorder": 3}
    axes.plot(steps[best], losses[best], "o", label=label, markeredgewidth=1.3, **style)


def _add_legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[1]:
        frame = {"framealpha": 0.8, "edgecolor": "none"}
        axes.legend(loc="best", fontsize="small", handlelength=1.3, **frame)
