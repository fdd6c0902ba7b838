"""`LivePlot`: a picture of the fit while it runs."""

import abc
import contextlib
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitopt.callback import Fit, HostCallback
from fitopt.history import History
from fitopt.optimizers import arguments
from fitopt.plotting.histories import find_panels, plot_history
from fitopt.plotting.style import GREY, grid
from fitopt.storage.atomic_files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAUSE = 0.25  # seconds between two redraws, at least
_SHARE = 0.05  # of the fit's time that redrawing may take
_DPI = 144
_MOST_PANELS = 12
_drawing = threading.Lock()  # fits may run in several threads, and matplotlib is not made for that


class LivePlot(HostCallback):
    """Draw the loss, and what `RecordParameters` records, while the fit runs.

    In a notebook the picture is below the cell; elsewhere it is a window, which stays open after the
    fit. It is redrawn when `every` more steps were made, but at most four times a second, and less often
    where that would take more than a twentieth of the time. With `path` there are files instead, one at
    each `every`-th step. Either way, the last picture shows the last step.

    **Arguments:**

    - `every`: the number of steps from one picture to the next.
    - `path`: a directory for the files, or a name for them such as `"frames/{step:06d}.svg"`, with the
        ending of a format that matplotlib can write. A name without `{step}` is that of one file, which
        is written anew each time. Directories are made.
    - `names`: which parameters are drawn: patterns as in `fitopt.plot_parameters`; by default all, or
        the first twelve.

    **Raises:** `TypeError` and `ValueError` for arguments that cannot be meant; `ImportError` without
    matplotlib. When a fit starts: `RuntimeError` if there is no `path` and pictures cannot be shown,
    because this is no notebook, and matplotlib's backend opens no windows, or not in this thread. Once
    there was a picture, one that cannot be drawn or written does not end the fit: there is one
    `RuntimeWarning`.

    >>> import optax, tempfile
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     live = LivePlot(every=10, path=directory)
    ...     optimizer = OptaxOptimizer(lambda s: (s["k"] - 2) ** 2, optax.sgd(0.1), live)
    ...     _ = optimizer.run({"k": Parameter("k", 1.0)}, max_steps=15)
    ...     sorted(os.listdir(directory))
    ['000000.png', '000010.png', '000014.png']
    """

    uses: tuple[str, ...] = ()
    steers = False

    def __init__(
        self,
        every: int = 100,
        path: str | os.PathLike[str] | None = None,
        names: str | Sequence[str] | None = None,
    ):
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError('LivePlot needs matplotlib: pip install "fitopt[plot]"') from error
        self.interval: int = arguments.whole("LivePlot: every", every)
        self.path: str | None = None if path is None else _file_name(path)
        self.every: int | None = None if path is None else every
        self.names: str | Sequence[str] | None = names

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        if not fit.writes:
            yield lambda *arguments: None
            return
        screen = _screen() if self.path is None else _Files(self.path)
        drawn, not_before, warned = -1, 0.0, False

        def draw(step: int) -> None:
            nonlocal drawn, not_before, warned
            began = time.perf_counter()
            try:
                with _drawing:
                    _draw(screen.figure, fit.history, self.names)
                    screen.show(step)
            except Exception as error:
                if drawn < 0:
                    raise
                if not warned:
                    warned = True
                    what = f"LivePlot failed at step {step}, and the fit goes on: {error!r}"
                    warnings.warn(what, RuntimeWarning, stacklevel=2)
            drawn, ended = step, time.perf_counter()
            not_before = ended + max(_PAUSE, (ended - began) / _SHARE)

        def visit(step: int, *rest: Any) -> None:
            is_next = step // self.interval > drawn // self.interval
            if self.every or (is_next and screen.is_open and time.perf_counter() >= not_before):
                draw(step)
            screen.wait()

        yield visit
        last = fit.history["n_steps"] - 1
        if drawn < last and screen.is_open:
            draw(last)
            screen.wait()


def _draw(figure: "Figure", history: History, names: str | Sequence[str] | None) -> None:
    panels = []
    if names is not None or "parameters" in history:
        panels = find_panels(history, names=names)
    shown = panels[:_MOST_PANELS]
    columns = -(-len(shown) // 4)
    size = {0: (6, 3.4), 1: (8, 3.4)}.get(columns, (9.6, 3.4 if len(shown) <= 6 else 4.6))
    if not figure.axes and not figure.subfigs:  # a window may since have been given another size
        figure.set_size_inches(*size)
    figure.clear()
    left = figure
    if shown:
        ratios = (3, 2) if columns == 1 else (1, 1.3)
        halves: Any = figure.subfigures(1, 2, width_ratios=ratios)
        left, right = halves
        for panel, axes in zip(shown, grid(right, len(shown), columns), strict=True):
            panel.draw(axes)
        if len(shown) < len(panels):
            note = f"{len(shown)} of {len(panels)} parameters"
            right.suptitle(note, fontsize="small", color=GREY)
    plot_history(history, ax=left.subplots())


# Where pictures go.


class _Screen(abc.ABC):
    """A figure, and how to show it."""

    figure: "Figure"
    is_open = True

    @abc.abstractmethod
    def show(self, step: int) -> None:
        """Show the figure as it is after a step."""

    def wait(self) -> None:  # noqa: B027  # may stay empty
        """Let the user look and click."""


def _screen() -> _Screen:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return _Notebook()
    import matplotlib
    from matplotlib.backends.registry import backend_registry

    backend = matplotlib.get_backend()
    canvas = backend_registry.load_backend_module(backend).FigureCanvas
    if not canvas.required_interactive_framework:
        hindrance = f"this is no notebook, and matplotlib's backend {backend!r} opens no windows"
    elif threading.current_thread() is not threading.main_thread():
        hindrance = "windows open in the main thread alone"
    else:
        return _Window()
    raise RuntimeError(
        f'LivePlot cannot show a picture: {hindrance}; give it a path, as in path="frames"'
    )


class _Notebook(_Screen):
    def __init__(self):
        from matplotlib.figure import Figure

        self.figure = Figure(layout="constrained", dpi=_DPI)
        self.handle: Any = None

    def show(self, step: int) -> None:
        from IPython.display import Image, display

        png = io.BytesIO()
        self.figure.savefig(png, format="png")
        image = Image(png.getvalue(), width=round(96 * self.figure.get_figwidth()))
        if self.handle is None:
            self.handle = display(image, display_id=True)
        else:
            self.handle.update(image)


class _Window(_Screen):
    def __init__(self):
        from matplotlib import pyplot

        current = pyplot.gcf() if pyplot.get_fignums() else None
        self.figure = pyplot.figure(layout="constrained")
        self.number = self.figure.number
        if current is not None:
            pyplot.figure(current)
        self.figure.show()

    @property
    def is_open(self) -> bool:
        from matplotlib import pyplot

        return pyplot.fignum_exists(self.number)

    def show(self, step: int) -> None:
        self.figure.canvas.draw()

    def wait(self) -> None:
        if self.is_open:
            self.figure.canvas.flush_events()


class _Files(_Screen):
    def __init__(self, name: str):
        from matplotlib.figure import Figure

        self.figure = Figure(layout="constrained", dpi=_DPI)
        self.name = name

    def show(self, step: int) -> None:
        path = Path(self.name.format(step=step))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            self.figure.savefig(file, format=path.suffix[1:])


def _file_name(path: str | os.PathLike[str]) -> str:
    """The name of a file, with a place for the step, that a path stands for."""
    from matplotlib.backend_bases import FigureCanvasBase

    name = str(arguments.path("LivePlot: path", path))
    is_picture = Path(name).suffix[1:].lower() in FigureCanvasBase.get_supported_filetypes()
    try:
        if Path(name).is_dir() or not (is_picture or "{step" in name):
            return os.path.join(name.replace("{", "{{").replace("}", "}}"), "{step:06d}.png")
        name.format(step=0)
    except (KeyError, IndexError, ValueError):
        is_picture = False
    if not is_picture:
        raise ValueError(
            'LivePlot: path must be a directory, or the name of a picture such as "{step:06d}.png", '
            f"got {name!r}"
        )
    return name
