"""What gives all pictures one look: colours, axes, ticks, legends."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# Okabe and Ito's colours, which the colour-blind can tell apart, and greys.
BLUE, ORANGE, DARK, GREY = "#0072b2", "#d55e00", "#444444", "#767676"
COLORS = (DARK, BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

ABOVE: dict[str, Any] = {  # for a legend that hides nothing
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "borderaxespad": 0.2,
    "fontsize": "small",
    "handlelength": 1.6,
    "frameon": False,
}


def pyplot(who: str) -> Any:
    """matplotlib's pyplot, for the function that is called so."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f'{who} needs matplotlib: pip install "fitopt[plot]"') from error
    return pyplot


def new_axes(who: str) -> "Axes":
    """The axes of a new pyplot figure, for the function that is called so."""
    return pyplot(who).subplots(figsize=(6, 3.6), layout="constrained")[1]


def tidy(axes: "Axes", ticks: int = 6) -> None:
    """Give axes the look of fitopt's pictures: half a frame, steps as whole numbers, powers of ten."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_xlabel() == "step":
        locator = MaxNLocator(ticks, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        axes.xaxis.set_major_locator(locator)
        if axes.dataLim.width == 0:
            axes.set_xlim(axes.dataLim.x0 - 0.5, axes.dataLim.x0 + 0.5, auto=True)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "linear":
            formatter = ScalarFormatter(useMathText=True)
            formatter.set_powerlimits((-3, 5))
            axis.set_major_formatter(formatter)


def grid(figure: "FigureBase", panels: int, columns: int) -> np.ndarray:
    """Axes for so many panels, which share their steps; the lowest in each column are labelled."""
    rows = -(-panels // columns)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for one in axes[panels:]:
        one.remove()
    for one in axes[: max(panels - columns, 0)]:
        one.xaxis.label.set_visible(False)
    for one in axes[max(panels - columns, 0) : panels]:
        one.tick_params(labelbottom=True)
        one.xaxis.get_offset_text().set_visible(True)
    return axes[:panels]


def unused_colors(axes: "Axes") -> Iterator[str]:
    """Colours for more curves, beginning with those that the axes do not show yet."""
    from matplotlib.colors import to_hex

    used = {to_hex(line.get_color()) for line in axes.lines}
    return itertools.cycle([color for color in COLORS if color not in used] or COLORS)


def number(x: float) -> str:
    """A number with four digits, with a minus sign as in formulas."""
    return f"{x:.4g}".replace("-", "\N{MINUS SIGN}")
