"""Pictures of many fits: their losses in order, and from where they came to which minimum."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from ..many.fits import Fits
from .style import ABOVE, COLORS, GREY, new_axes, number, pyplot, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 5  # minima that have a colour of their own
_MOST = 24  # panels


def plot_waterfall(
    fits: Fits, *, rtol: float = 1e-2, ax: "Axes | None" = None, log: bool | None = None
) -> "Axes":
    """Draw the final losses of many fits in ascending order, coloured by minimum.

    A plateau at the lower end says that many starts have found the same best minimum (Raue et al., 2013,
    PLoS ONE 8, e74335). The five best minima that more than one fit has found have a colour; fits
    without a loss are left out.

    **Arguments:**

    - `fits`: what `run_many` has returned.
    - `rtol`: by how much fits of one minimum differ, as for `fits.minima`.
    - `ax`: the axes to draw into; by default those of a new pyplot figure.
    - `log`: whether the axis is logarithmic; by default it is where all losses are positive and span
        more than two decades.

    **Returns:** the axes.

    **Raises:** `ValueError` if no fit has a loss; `ImportError` without matplotlib.

    >>> import optax
    >>> from fitopt import OptaxOptimizer, Parameter, starts
    >>> fit = OptaxOptimizer(lambda s: (s["x"] ** 2 - 1) ** 2, optax.adam(0.1))
    >>> axes = plot_waterfall(fit.run_many(starts({"x": Parameter("x", 0.5)}, 8), max_steps=100))
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('fits, the best first', 'final loss')
    """
    colors, labels = _colored(fits, rtol)
    order = np.argsort(np.where(np.isfinite(fits.final_loss), fits.final_loss, np.inf), kind="stable")
    order = order[np.isfinite(fits.final_loss[order])]
    axes = new_axes("plot_waterfall") if ax is None else ax
    loss = fits.final_loss[order]
    axes.plot(1 + np.arange(loss.size), loss, color=GREY, linewidth=0.7, zorder=1)
    ranks = np.empty(len(fits), int)
    ranks[order] = 1 + np.arange(loss.size)
    for color, label in labels.items():
        those = order[colors[order] == color]
        axes.scatter(ranks[those], fits.final_loss[those], s=14, color=color, label=label, zorder=2)
    if _is_wide(loss) if log is None else log:
        axes.set_yscale("log")
    axes.set(xlabel="fits, the best first", ylabel="final loss")
    tidy(axes)
    axes.legend(**ABOVE, ncols=3)
    return axes


def plot_starts(
    fits: Fits, names: str | Sequence[str] | None = None, *, rtol: float = 1e-2
) -> np.ndarray:
    """Draw where fits began and where they ended, a panel for each fitted number.

    Each point is a fit: its start is across, its end is up. What lies on a horizontal line has come to
    the same value from wherever it began; the colours are those of `plot_waterfall`. An axis is
    logarithmic where the values are positive and span more than two decades.

    **Arguments:**

    - `fits`: what `run_many` has returned.
    - `names`: of Parameters, or of elements such as `"w[0]"`; all by default.
    - `rtol`: by how much fits of one minimum differ, as for `fits.minima`.

    **Returns:** the axes, an array with one dimension.

    **Raises:** `KeyError` for a name that is not there; `ValueError` for more than 24 panels, or if no
    fit has a loss; `ImportError` without matplotlib.
    """
    labels = fits.labels
    chosen = fits.select_labels([names] if isinstance(names, str) else names)
    if len(chosen) > _MOST:
        raise ValueError(f"{len(chosen)} panels are too many: choose some with names=[...]")
    colors, minima = _colored(fits, rtol)
    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    figure = pyplot("plot_starts").figure(
        figsize=(2.9 * columns, 2.5 * rows + 0.3), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    begun, ended = fits.elements()
    for panel, label in zip(axes, chosen, strict=False):
        row = labels.index(label)
        x, y = begun[:, row], ended[:, row]
        for color, name in reversed(minima.items()):
            those = colors == color
            panel.scatter(x[those], y[those], s=9, color=color, label=name)
        panel.set(xlabel=f"{label} at the start", ylabel=f"{label} at the end")
        panel.set_xscale("log" if _is_wide(x[colors != ""]) else "linear")
        panel.set_yscale("log" if _is_wide(y[colors != ""]) else "linear")
        tidy(panel, 4)
    for panel in axes[len(chosen) :]:
        panel.remove()
    return axes[: len(chosen)]


def _colored(fits: Fits, rtol: float) -> tuple[Shaped[np.ndarray, " fits"], dict[str, str]]:
    """The colour of each fit, empty for those without a loss; and what colours stand for."""
    if not np.isfinite(fits.final_loss).any():
        raise ValueError(f"no fit has a finite loss; the first one: {fits.stop_reason[0]}")
    colors = np.where(np.isfinite(fits.final_loss), GREY, "").astype("U7")
    minima = fits.minima(rtol)
    labels = {}
    for color, minimum in zip(COLORS[1:], [m for m in minima if m.count > 1][:_SHOWN], strict=False):
        colors[minimum.fits] = color
        labels[color] = f"{minimum.count} at {number(minimum.loss)}"
    if rest := int((colors == GREY).sum()):
        labels[GREY] = f"{rest} elsewhere"
    return colors, labels


def _is_wide(x: Shaped[np.ndarray, " n"]) -> bool:
    return bool(x.size and x.min() > 0 and x.max() > 100 * x.min())
