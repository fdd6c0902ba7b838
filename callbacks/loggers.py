"""What host callbacks that write series to files and trackers have in common, and `CSVLogger`."""

import abc
import contextlib
import csv
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from fitopt.callback import Fit, HostCallback
from fitopt.history import Column, History, columns
from fitopt.optimizers import arguments
from fitopt.state import PyTree, combine
from fitopt.storage.atomic_files import replacing

_CHUNK = 100_000  # rows in memory at once

Steps = Int[np.ndarray, " rows"]


class Log(abc.ABC):
    """What one fit writes to one place: the series of its history, at every `every`-th step.

    An error while writing does not end the fit. There is one warning; what could not be written is
    tried again when the fit has twice as many steps, and at its end.
    """

    def __init__(self, who: str, history: History, every: int):
        self.who = who
        self.history = history
        self.every = every
        self.start: int = 0  # the first step that has not been written
        self.seen: int = 0
        self.wait: int = 0
        self.warned: bool = False

    @abc.abstractmethod
    def write(self, table: dict[str, Column], rows: Callable[[int], Steps]) -> None:
        """Write what is missing, and move `start`; `rows(i)` are the steps from i on that are due."""

    def describe(self, state: PyTree, max_steps: int) -> None:  # noqa: B027  # may stay empty
        """Write what does not change, once."""

    def visit(self, ended: bool = False) -> None:
        """Write what is due; at the end of a fit also its last step."""
        done = len(self.history["loss"])
        due = -(-self.start // self.every) * self.every
        if not ended and done <= max(due, self.wait):
            return
        with self.guarded():
            table = columns(self.history)
            # A host callback that comes later in the list has not recorded this step: wait a visit.
            complete = min(column.every * len(column.values) for column in table.values())
            until = done if ended else max(min(done, complete), self.seen)
            self.seen = done
            self.wait = 2 * done  # unless all goes well
            self.write(table, lambda start: due_rows(start, until, self.every, ended))
            self.wait = 0

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.warned:
                self.warned = True
                warnings.warn(
                    f"{self.who} cannot write, and the fit goes on: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )


def due_rows(start: int, until: int, every: int, ended: bool) -> Steps:
    """The multiples of `every` among some steps, and the last of these if the fit has ended."""
    rows = np.arange(-(-start // every) * every, until, every)
    last = until - 1
    return np.append(rows, last) if ended and last >= start and last % every else rows


class Logger(HostCallback, abc.ABC):
    """A host callback that writes the series of a fit's history somewhere, after every chunk."""

    every: int | None = None
    uses: tuple[str, ...] = ()
    steers = False

    def __init__(self, every: int):
        self.interval: int = arguments.whole(f"{type(self).__name__}: every", every)

    @abc.abstractmethod
    def log(self, fit: Fit) -> contextlib.AbstractContextManager[Log]:
        """Open what a fit writes to."""

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        if not fit.writes:
            yield lambda *arguments: None
            return
        with self.log(fit) as log:
            described = False

            def visit(step: int, free: PyTree, fixed: PyTree, *_: Any) -> None:
                nonlocal described
                if not described:
                    described = True
                    with log.guarded():
                        log.describe(combine(free, fixed), fit.max_steps)
                log.visit()

            try:
                yield visit
            finally:
                log.visit(ended=True)


_held: set[str] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a place in the file system from other fits of this process."""
    place = os.path.realpath(path)
    with _lock:
        if place in _held:
            raise ValueError(f"another fit that has not ended writes to {os.fspath(path)}")
        _held.add(place)
    try:
        yield
    finally:
        with _lock:
            _held.remove(place)


class CSVLogger(Logger):
    """Write the loss and all other series to a CSV file, a row at every `every`-th step and at the last.

    The columns are those of `History.to_dataframe`: `step`, `loss` and what other callbacks record, such
    as `learning_rate` or `parameters/rate`. A cell is empty where its series was not recorded. Floats
    are written in full: reading them back gives the same numbers.

    The file can be read while it grows. A file that exists is overwritten when a fit begins; a resumed
    fit writes its earlier part from the history, so that no row is doubled or missing.

    An error of the disk does not end the fit: there is one warning, and what is missing is written later
    if that is possible, at the latest when the fit ends.

    **Arguments:**

    - `path`: of the file. Directories are made.
    - `every`: write steps 0, `every`, 2 `every`, ...; a row takes some microseconds.

    **Raises:** `TypeError` and `ValueError` for arguments that cannot be meant; when a fit starts,
    `OSError` if the file cannot be written, and `ValueError` if another fit is writing it.

    >>> import tempfile, optax
    >>> from pathlib import Path
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory, "fit.csv")
    ...     fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.sgd(0.25), CSVLogger(path, every=2))
    ...     _ = fit.run({"x": Parameter("x", 0.0)}, max_steps=4)
    ...     print(path.read_text())
    step,loss
    0,1.0
    2,0.0625
    3,0.015625
    <BLANKLINE>
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1):
        super().__init__(every)
        self.path: Path = arguments.path("CSVLogger: path", path)

    @contextlib.contextmanager
    def log(self, fit: Fit) -> Iterator[Log]:
        path = self.path.absolute()  # wherever the process goes during the fit
        with held(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = _CSVLog(path, fit.history, self.interval)
            done = len(fit.history["loss"])
            log.write(columns(fit.history), lambda start: due_rows(start, done, self.interval, False))
            yield log


class _CSVLog(Log):
    def __init__(self, path: Path, history: History, every: int):
        super().__init__(f"CSVLogger({str(path)!r})", history, every)
        self.path = path
        self.header: list[str] = []
        self.size = 0  # bytes that are known to be good

    def write(self, table: dict[str, Column], rows: Callable[[int], Steps]) -> None:
        header = ["step", *table]
        # If a series has appeared, or somebody has taken the file away, all of it is written again.
        anew = header != self.header or not self.is_intact()
        steps = rows(0 if anew else self.start)
        if not anew and not len(steps):
            return
        with replacing(self.path) if anew else open(self.path, "r+b") as file:
            if anew:
                file.write(_lines([header]))
            else:
                file.seek(self.size)  # over what an error or Ctrl-C may have left of a row
            for i in range(0, len(steps), _CHUNK):
                chunk = steps[i : i + _CHUNK]
                cells = [column.cells(chunk) for column in table.values()]
                file.write(_lines(zip(chunk.tolist(), *cells, strict=True)))
            size = file.truncate()
        self.header, self.size = header, size
        if len(steps):
            self.start = int(steps[-1]) + 1

    def is_intact(self) -> bool:
        try:
            return os.path.getsize(self.path) >= self.size
        except OSError:
            return False


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
