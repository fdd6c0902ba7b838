"""The series of a history as curves, ready to be drawn."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ..history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 20  # entries of an array that get a line each
_LABELLED = 4  # entries that get a label each
_PARTS = 1000  # of a long series; each is drawn by what is least and greatest in it
_UNITS = {"time": "s"}


class Curve(NamedTuple):
    """A series as it is drawn: a column for each entry of an array, and for each lane of a `vmap`."""

    label: str
    steps: Int[np.ndarray, " records"]
    values: Float[np.ndarray, "records columns"]  # NaN where there is nothing to draw
    entries: tuple[str, ...] = ()  # what the columns are called, where they are entries of an array

    def draw(self, axes: "Axes", color: str, labelled: bool) -> None:
        """A line for each column; of many columns the median, the quartiles and the range."""
        columns = self.values.shape[1]
        width = 1.3 if len(self.steps) <= _PARTS and columns <= 8 else 0.8
        label = self.label if labelled else None
        if columns <= _FEW:
            labels = _few(self.entries) if self.entries else [label] + [None] * (columns - 1)
            lines = zip(self.values.T, _shades(color, columns), labels, strict=True)
            for column, shade, label in lines:
                (line,) = axes.plot(*thinned(self.steps, column), color=shade, linewidth=width)
                line.set(label=label, marker="." if len(self.steps) == 1 else "none")
        elif len(self.steps):
            steps, least, lower, median, upper, greatest = _summary(self.steps, self.values)
            axes.fill_between(steps, least, greatest, color=color, alpha=0.15, linewidth=0)
            axes.fill_between(steps, lower, upper, color=color, alpha=0.25, linewidth=0)
            axes.plot(steps, median, color=color, label=label or self.summary, linewidth=1.3)

    @property
    def summary(self) -> str | None:
        """What stands for the columns where there are too many for a line each."""
        columns = self.values.shape[1]
        return f"median, quartiles, range of {columns:,}" if columns > _FEW else None


def records(history: History, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps of a series, and its leaves by path, of shape `(records, lanes, ...)`."""
    n_steps = np.asarray(history.get("n_steps", np.iinfo(int).max))  # not yet known while the fit runs
    one_lane = jax.tree.map(lambda x: x[(0,) * n_steps.ndim], history) if n_steps.ndim else history
    steps = one_lane.steps(name)
    steps = steps[: np.searchsorted(steps, n_steps.max())]
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(history[name]):
        values = np.asarray(leaf)
        values = values.reshape(n_steps.size, *values.shape[n_steps.ndim :]).swapaxes(0, 1)[: len(steps)]
        if values.dtype.kind not in "fc":
            values = values.astype(float)
        if n_steps.ndim:
            made = steps[:, None] < n_steps.ravel()
            values = np.where(np.expand_dims(made, tuple(range(2, values.ndim))), values, np.nan)
        leaves[jax.tree_util.keystr(path, simple=True, separator="/")] = values
    return steps, leaves


def series(history: History, name: str) -> list[Curve]:
    """The curves of a series: one for each leaf, or two where it is complex."""
    steps, leaves = records(history, name)
    labelled = [(path or title(name), values) for path, values in leaves.items()]
    return [curve for label, values in labelled for curve in real_curves(label, steps, values)]


def real_curves(label: str, steps: np.ndarray, values: np.ndarray) -> list[Curve]:
    """The curve of a leaf, with lanes and entries as columns; two of a complex leaf."""
    values = values.reshape(len(steps), int(np.prod(values.shape[1:])))
    if not np.iscomplexobj(values):
        return [Curve(label, steps, values)]
    parts = {"real": np.real(values), "imaginary": np.imag(values)}
    return [Curve(f"{label}, {name}".removeprefix(", "), steps, part) for name, part in parts.items()]


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first, least, greatest and last of each part: what shows of a line on a screen or on paper."""
    width = -(-len(values) // _PARTS)
    if width <= 4:
        return steps, values
    starts = np.arange(0, len(values) - width + 1, width)
    parts = values[: len(starts) * width].reshape(-1, width)
    places = [np.zeros_like(starts), parts.argmin(axis=1), parts.argmax(axis=1), starts * 0 + width - 1]
    if not np.isfinite(values[starts + places[1:3]]).all():
        whole = np.isfinite(parts)
        places[1] = np.where(whole, parts, np.inf).argmin(axis=1)
        places[2] = np.where(whole, parts, -np.inf).argmax(axis=1)
    tail = np.arange(len(starts) * width, len(values))
    kept = np.unique(np.append(starts + places, tail))
    return steps[kept], values[kept]


def _summary(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Steps, and over the columns the least, the quartiles and the greatest."""
    starts = np.arange(0, len(steps), -(-len(steps) // _PARTS))
    values = np.where(np.isfinite(values), values, np.nan)
    least = np.fmin.reduce(_held(np.fmin.reduceat(values, starts)), axis=1)
    greatest = np.fmax.reduce(_held(np.fmax.reduceat(values, starts)), axis=1)
    ordered = np.sort(_held(values[starts]), axis=1)  # NaN last
    last = np.maximum(np.sum(~np.isnan(ordered), axis=1, keepdims=True) - 1, 0)
    places = last * [0.25, 0.5, 0.75]
    below, above = (np.take_along_axis(ordered, i.astype(int), 1) for i in (places, np.ceil(places)))
    quartiles = below + (places % 1) * (above - below)
    return steps[starts], least, *quartiles.T, greatest


def _held(values: np.ndarray) -> np.ndarray:
    """Each column goes on with its last value where it has ended."""
    rows, columns = values.shape
    last = rows - 1 - np.argmax(~np.isnan(values[::-1]), axis=0)
    return np.where(np.arange(rows)[:, None] > last, values[last, np.arange(columns)], values)


def title(name: str) -> str:
    """What the axis of a series is called."""
    return name.replace("_", " ") + (f" ({_UNITS[name]})" if name in _UNITS else "")


def _few(entries: tuple[str, ...]) -> list[str | None]:
    """The labels that there is room for; between the first and the last, shades tell the order."""
    if len(entries) <= _LABELLED:
        return [*entries]
    return [entries[0], "…", *[None] * (len(entries) - 3), entries[-1]]


def _shades(color: str, count: int) -> list[tuple[float, ...]]:
    """The colour, and lighter and lighter ones."""
    from matplotlib.colors import to_rgb

    rgb, mix = np.array(to_rgb(color)), np.linspace(0, 0.6, count)[:, None]
    return [tuple(shade) for shade in (rgb * (1 - mix) + mix).tolist()]
