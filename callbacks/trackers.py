"""Host callbacks that write series to trackers: TensorBoard and MLflow."""

import contextlib
import importlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fitopt.callback import Fit
from fitopt.history import Column, History, leaves
from fitopt.optimizers import arguments
from fitopt.parameter import Parameter
from fitopt.parameter.specification import text
from fitopt.state import PyTree, is_parameter

from .loggers import Log, Logger, Steps, held

_BINS = 40  # of a histogram


class TensorBoardLogger(Logger):
    """Write the loss and all other series as scalars for TensorBoard, and arrays as histograms.

    The scalars are the columns of `History.to_dataframe`, at every `every`-th step and at the last;
    those of arrays are called such as `parameters/weight.0.1`. Where `RecordParameters` or another
    callback records arrays, each array that is recorded at such a step becomes a histogram too. The
    text `fit` shows the Parameters with their bounds.

    What an earlier fit has written to the directory is hidden when a fit begins, and from its first
    new step on when it is resumed. (After a crash a few points may lack in TensorBoard if `Checkpoint`
    comes before this callback in the list.)

    An error of the disk does not end the fit: there is one warning, and what is missing is written later
    if that is possible, at the latest when the fit ends.

    **Arguments:**

    - `directory`: of one fit, made if need be: `tensorboard --logdir` takes it, or the one above.
    - `every`: write steps 0, `every`, 2 `every`, ...; a step takes some tens of microseconds, a
        histogram some hundred.

    **Raises:** `TypeError` and `ValueError` for arguments that cannot be meant; `ImportError` without
    tensorboardX; when a fit starts, `OSError` if the directory cannot be written, and `ValueError` if
    another fit is writing to it.

    >>> import os, tempfile, optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     logger = TensorBoardLogger(f"{directory}/first", every=10)
    ...     fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.sgd(0.25), logger)
    ...     _ = fit.run({"x": Parameter("x", 0.0)}, max_steps=50)
    ...     print(len(os.listdir(f"{directory}/first")), "file of events")
    1 file of events
    """

    def __init__(self, directory: str | os.PathLike[str], every: int = 1):
        super().__init__(every)
        _module("TensorBoardLogger", "tensorboardX")
        self.directory: Path = arguments.path("TensorBoardLogger: directory", directory)

    @contextlib.contextmanager
    def log(self, fit: Fit) -> Iterator[Log]:
        directory = self.directory.absolute()
        with held(directory):
            directory.mkdir(parents=True, exist_ok=True)
            log = _EventLog(directory, fit.history, self.interval)
            log.open()
            try:
                yield log
            finally:
                with log.guarded():
                    log.close()


class _EventLog(Log):
    def __init__(self, directory: Path, history: History, every: int):
        super().__init__(f"TensorBoardLogger({str(directory)!r})", history, every)
        self.start = len(history["loss"])
        self.directory = directory
        self.events = _module("TensorBoardLogger", "tensorboardX.proto.event_pb2")
        self.summary = _module("TensorBoardLogger", "tensorboardX.summary")
        self.writer: Any = None

    def open(self) -> None:
        # Not SummaryWriter: it writes in a thread of its own, where a full disk makes it hang.
        module = _module("TensorBoardLogger", "tensorboardX.event_file_writer")
        self.suffix = f".{os.getpid()}.{time.time_ns()}"  # without it, names differ by seconds alone
        self.writer = module.EventsWriter(str(self.directory / "events"), self.suffix)
        status = self.events.SessionLog(status=self.events.SessionLog.START)
        self.emit(self.start, session_log=status)  # hides what was written from here on
        self.writer.flush()

    def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def emit(self, step: int, **content: Any) -> None:
        self.writer.write_event(self.events.Event(step=step, wall_time=time.time(), **content))

    def describe(self, state: PyTree, max_steps: int) -> None:
        facts = {"max_steps": str(max_steps), **_parameters(state)}
        table = "\n".join(["| | |", "|-|-|", *(f"| {k} | {v} |" for k, v in facts.items())])
        self.emit(self.start, summary=self.summary.text("fit", table))

    def write(self, table: dict[str, Column], rows: Callable[[int], Steps]) -> None:
        steps = rows(self.start)
        if not len(steps):
            return
        try:
            if self.writer is None:
                self.open()
            self.write_steps(table, steps)
            # A file that has been deleted takes everything without a word.
            if not any(self.directory.glob(f"events.*{self.suffix}")):
                raise FileNotFoundError(f"{self.directory} has vanished")
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise
        self.start = int(steps[-1]) + 1

    def write_steps(self, table: dict[str, Column], steps: Steps) -> None:
        scalars = [(_tag(name), column.cells(steps)) for name, column in table.items()]
        arrays = [
            (_tag(name), every, values)
            for name, every, values in leaves(self.history)
            if math.prod(values.shape[1:]) > 1
        ]
        for row, step in enumerate(steps.tolist()):
            content = [
                {"tag": tag, "simple_value": float(cells[row])}
                for tag, cells in scalars
                if cells[row] is not None
            ]
            for tag, every, values in arrays:
                if step % every == 0 and step // every < len(values):
                    content += self.histogram(tag, values[step // every])
            self.emit(step, summary={"value": content})
        self.writer.flush()

    def histogram(self, tag: str, values: np.ndarray) -> list[Any]:
        values = values[np.isfinite(values)].astype(float)
        if not values.size:
            return []
        if np.ptp(values) < 1e-9 * np.abs(values).max():  # too narrow to be divided into bins
            values = np.full_like(values, values.mean())
        return list(self.summary.histogram(tag, values, bins=_BINS).value)


class MLflowLogger(Logger):
    """Write the loss and all other series as the metrics of an MLflow run.

    The metrics are the columns of `History.to_dataframe`, at every `every`-th step and at the last;
    those of arrays are called such as `parameters/weight.0.1`. The run's parameters tell `max_steps` and
    each Parameter with its bounds. When the fit ends, the run gets the metrics `final_loss` and
    `best_loss`, the tag `stop_reason`, and the status `FINISHED`, `KILLED` (Ctrl-C) or `FAILED` (an
    exception).

    A resumed fit goes on with the latest run of that `run_name`, after the last step that it holds;
    without a name, or where there is none, a new run gets all from the first step on.

    An error of the tracker does not end the fit: there is one warning, and what is missing is written
    later if that is possible, at the latest when the fit ends.

    **Arguments:**

    - `tracking_uri`: such as `sqlite:///fits.db`, `file:./mlruns`, or a server; by default MLflow's own.
    - `experiment`: its name; it is made if need be.
    - `run_name`: by default MLflow makes one up.
    - `every`: write steps 0, `every`, 2 `every`, ...; a step takes some hundred microseconds for each
        metric, and a server takes longer.

    MLflow makes a SQLite file with all its tables in some seconds, once, and reports its use to its
    makers unless the environment has `MLFLOW_DISABLE_TELEMETRY=true`.

    **Raises:** `TypeError` and `ValueError` for an `every` that cannot be meant; `ImportError` without
    MLflow; what MLflow raises when a fit starts, if it cannot open the tracker.

    >>> logger = MLflowLogger("sqlite:///fits.db", experiment="hares", run_name="first", every=100)
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "Default",
        run_name: str | None = None,
        every: int = 1,
    ):
        super().__init__(every)
        _module("MLflowLogger", "mlflow")
        self.tracking_uri: str | None = tracking_uri
        self.experiment: str = experiment
        self.run_name: str | None = run_name

    @contextlib.contextmanager
    def log(self, fit: Fit) -> Iterator[Log]:
        mlflow = _module("MLflowLogger", "mlflow")
        with _file_store_allowed() if self.tracking_uri else contextlib.nullcontext():
            client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        log = _RunLog(client, fit.history, self.interval)
        log.open(self.experiment, self.run_name)
        status = "FAILED"
        try:
            yield log
            interrupted = fit.history.get("stop_reason", "").startswith("interrupted")
            status = "KILLED" if interrupted else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            with log.guarded():
                log.close(status)


class _RunLog(Log):
    def __init__(self, client: Any, history: History, every: int):
        super().__init__("MLflowLogger", history, every)
        self.client = client
        self.entities = _module("MLflowLogger", "mlflow.entities")
        self.run_id = ""
        self.is_new = True

    def open(self, experiment: str, run_name: str | None) -> None:
        found = self.client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self.client.create_experiment(experiment)
        if run_name is not None and len(self.history["loss"]):
            runs = self.client.search_runs([where], order_by=["attributes.start_time DESC"])
            for run in runs:
                if run.info.run_name == run_name:
                    self.run_id, self.is_new = run.info.run_id, False
                    self.client.update_run(self.run_id, status="RUNNING")
                    losses = self.client.get_metric_history(self.run_id, "loss")
                    self.start = max((metric.step + 1 for metric in losses), default=0)
                    return
        self.run_id = self.client.create_run(where, run_name=run_name).info.run_id

    def describe(self, state: PyTree, max_steps: int) -> None:
        if not self.is_new:  # MLflow allows no change
            return
        facts = {"max_steps": str(max_steps), **_parameters(state)}
        params = [self.entities.Param(_tag(name), fact) for name, fact in facts.items()]
        for i in range(0, len(params), 100):  # the most that MLflow takes
            self.client.log_batch(self.run_id, params=params[i : i + 100])

    def write(self, table: dict[str, Column], rows: Callable[[int], Steps]) -> None:
        steps = rows(self.start)
        names = [_tag(name) for name in table]
        batch = max(1, 1000 // len(names))  # 1000 is the most that MLflow takes
        for i in range(0, len(steps), batch):
            chunk = steps[i : i + batch]
            cells = zip(*(column.cells(chunk) for column in table.values()), strict=True)
            now = int(1000 * time.time())
            metrics = [
                self.entities.Metric(name, float(value), now, step)
                for step, row in zip(chunk.tolist(), cells, strict=True)
                for name, value in zip(names, row, strict=True)
                if value is not None
            ]
            for j in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[j : j + 1000])
            self.start = int(chunk[-1]) + 1

    def close(self, status: str) -> None:
        history, now = self.history, int(1000 * time.time())
        if "n_steps" in history:
            self.client.set_tag(self.run_id, "stop_reason", history["stop_reason"])
            metrics = [
                self.entities.Metric(name, history[name], now, history["n_steps"])
                for name in ("final_loss", "best_loss")
            ]
            self.client.log_batch(self.run_id, metrics=metrics)
        self.client.set_terminated(self.run_id, status)


def _module(who: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f'{who} needs {package}: pip install "fitopt[logging]"') from error


def _tag(name: str) -> str:
    """A column's name in the characters that trackers allow: `weight[0,1]` is `weight.0.1`."""
    return re.sub(r"[^\w./-]", "_", re.sub(r"[\[,]", ".", name).replace("]", ""))


def _parameters(state: PyTree) -> dict[str, str]:
    """What each Parameter of a state is besides its value, by its path."""
    facts = {}
    for path, leaf in jax.tree.leaves_with_path(state, is_leaf=is_parameter):
        if isinstance(leaf, Parameter):
            parts = ["free" if leaf.free else f"fixed at {text(leaf.value)}"]
            parts += [f"shape {leaf.shape}"] if leaf.shape else []
            parts += [setting for setting in leaf.spec.settings() if setting != "free=False"]
            inner = jax.tree_util.keystr(path, simple=True, separator="/")
            facts[f"parameters/{inner}" if inner else "parameters"] = f"{leaf.name}: {', '.join(parts)}"
    return facts


@contextlib.contextmanager
def _file_store_allowed() -> Iterator[None]:
    """Let MLflow open a store of plain files, which it does only where a variable says so."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        del os.environ[name]
