"""A host callback that keeps checkpoints of a fit."""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fitopt.callback import Fit, HostCallback, RunningFits
from fitopt.engine.resume import contents_of
from fitopt.optimizers.arguments import path, real, whole
from fitopt.storage import checkpoint


class Checkpoint(HostCallback):
    """Keep checkpoints in a directory, from which `run(..., resume_from=directory)` goes on.

    A fit that is resumed with the same callbacks takes the same steps, to the last bit, as if it had not
    been interrupted (with others XLA may round in another order). A checkpoint holds the unconstrained
    values, the optimizer's state, that of callbacks, and the history so far. A thread writes it while
    the fit goes on, and of the history only what is new: checkpoints share the files of series, in
    `history/`.

    Of `run_many` it keeps the fits that have ended, and where those under way stand, for
    `run_many(..., resume_from=directory)`.

    A last one is written when the fit ends: at its last step, at Ctrl-C, when a callback raises, and at
    SIGTERM, by which batch queues announce the end and which ends the fit as Ctrl-C does (a second one
    ends the process). A disk that is full or gone does not end the fit: there is one warning, and the
    next checkpoints are tried again.

    **Arguments:**

    - `directory`: made if need be. One that holds checkpoints already is for resuming from it; a
        fit that begins anew with the same callback, as when a cell is run again, replaces its own.
    - `every`: write after steps 0, `every`, 2 `every`, ... instead of by the clock; of many fits at once
        whenever so many more have ended.
    - `seconds`: without `every`, write when so much time has passed since the last one.
    - `keep`: how many of the last checkpoints are kept.

    **Raises:** `FileExistsError` when a fit starts anew in a directory with the checkpoints of another;
    `ImportError` without orbax; `TypeError` and `ValueError` for arguments that cannot be meant.

    >>> import tempfile, optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> directory = tempfile.mkdtemp()
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.adam(0.1), Checkpoint(directory))
    >>> _ = fit.run({"x": Parameter("x", 0.0)}, max_steps=50)
    >>> _, history = fit.run({"x": Parameter("x", 0.0)}, max_steps=80, resume_from=directory)
    >>> len(history["loss"])
    80
    """

    uses: tuple[str, ...] = ()
    steers = False

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int | None = None,
        *,
        seconds: float = 60.0,
        keep: int = 3,
    ):
        self.directory: Path = path("Checkpoint: directory", directory)
        self.every: int | None = None if every is None else whole("Checkpoint: every", every)
        self.seconds: float = real("Checkpoint: seconds", seconds)
        self.keep: int = whole("Checkpoint: keep", keep)
        self._mine = False  # whether this object has written what lies in the directory

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        with contextlib.closing(_Writer(self.directory, self.keep, fit)) as writer:
            writer.begin(may_replace=self._mine)
            self._mine = True
            last = fit.seconds

            def look(*_: Any) -> None:
                nonlocal last
                if self.every is not None or fit.seconds - last >= self.seconds:
                    writer.write()
                    last = fit.seconds

            try:
                with _stopped_by_sigterm(fit):
                    yield look
            except BaseException:
                if not writer.is_shared:  # the other processes are somewhere else
                    writer.write()
                raise
            writer.write()

    @contextlib.contextmanager
    def open_many(self, fits: RunningFits) -> Iterator[Callable[[], None]]:
        last, done, warned = time.monotonic(), fits.done, False

        def write() -> None:
            nonlocal last, done, warned
            try:
                fits.save(self.directory, self._mine)
                self._mine = True
            except FileExistsError:
                raise
            except OSError as error:
                if not warned:
                    _tell(self.directory, "the fits go on", error)
                warned = True
            last, done = time.monotonic(), fits.done

        write()

        def look() -> None:
            enough = time.monotonic() - last >= self.seconds
            if enough if self.every is None else fits.done - done >= self.every:
                write()

        try:
            with _stopped_by_sigterm(fits):
                yield look
        finally:
            write()


class _Writer:
    """Writes the checkpoints of one fit, in a thread of its own; a fault of the disk is told once."""

    def __init__(self, directory: Path, keep: int, fit: Fit):
        self.directory = directory
        self.keep = keep
        self.fit = fit
        self.last = len(fit.history["loss"])  # the step of the last checkpoint
        self.is_shared = len(fit.processes) > 1
        self.manager: Any = self.open()
        self.thread = ThreadPoolExecutor(1, "fitopt-checkpoint")
        self.pending: Future[None] | None = None
        self.warned = False
        self.complete = False  # whether the last checkpoint is that of a complete fit

    def open(self) -> Any:
        self.series = checkpoint.open_series(self.directory)
        return checkpoint.open_manager(self.directory, self.keep, True, self.fit.processes)

    def begin(self, may_replace: bool) -> None:
        """Make room: checkpoints of steps to come are in the way of new ones."""
        self.fit.meet()  # when all have seen the same ones
        later = [step for step in self.manager.all_steps() if step > self.last]
        if later and self.last == 0 and not may_replace:
            raise FileExistsError(
                f"Checkpoint: {self.directory} holds the checkpoints of another fit, up to step "
                f"{max(later)}; go on with it by run(..., resume_from=...), or use another directory"
            )
        for step in later:
            self.manager.delete(step)

    def write(self) -> None:
        """Begin to write where the fit stands, when the checkpoint before is complete."""
        self.wait()
        point = self.fit.resume_point()
        is_new = point.steps > self.last
        if point.carry is None or not (is_new or (point.final is not None and not self.complete)):
            return
        self.complete = point.final is not None
        with self.faults_told():
            frozen = checkpoint.freeze(contents_of(point, self.fit.history), self.fit.writes)
            if self.is_shared:  # when none of the processes computes
                self.write_now(frozen)
            else:
                self.pending = self.thread.submit(self.write_now, frozen)

    def write_now(self, frozen: checkpoint.Frozen) -> None:
        if self.manager is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.manager = self.open()
        if not self.directory.is_dir():
            raise FileNotFoundError(f"{self.directory} is gone")
        if frozen.contents.step in self.manager.all_steps():  # written before the fit was complete
            self.manager.delete(frozen.contents.step)
        checkpoint.write(self.manager, self.series, frozen)
        self.last = frozen.contents.step

    def wait(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            with self.faults_told():
                pending.result()

    def close(self) -> None:
        self.wait()
        self.thread.shutdown()
        if self.manager is not None:
            self.manager.close()

    @contextlib.contextmanager
    def faults_told(self) -> Iterator[None]:
        """Warn of the first fault of the disk, in whatever form orbax tells of it; then begin afresh."""
        try:
            yield
        except Exception as error:
            if not self.warned:
                _tell(self.directory, "the fit goes on", error)
            self.warned = True
            with contextlib.suppress(Exception):
                self.manager.close()
            self.manager = None


def _tell(directory: Path, consequence: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    message = f"Checkpoint: could not write to {directory}, {consequence} ({reason})"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


@contextlib.contextmanager
def _stopped_by_sigterm(fit: Fit | RunningFits) -> Iterator[None]:
    """Let SIGTERM request the fit's end; only in the main thread, and where nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        fit.stop("terminated (SIGTERM)")

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
