"""What callbacks cost: in the compiled loop, on the host, and on the disk."""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fitopt.callbacks import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    KeepBest,
    ProgressBar,
    RecordGradientNorm,
    RecordParameters,
    StopOnGradient,
    every,
)

from .engine import fit, fit_with, microseconds, milliseconds, number_of_steps
from .problems import Problem, bare_scan, exponential
from .table import Row
from .timing import Effort, interleave


def traced(effort: Effort) -> list[Row]:
    """Five callbacks of the library in the compiled loop."""
    problem = exponential(effort.steps(20_000))
    library = [
        EarlyStopping(patience=problem.steps),
        KeepBest(),
        StopOnGradient(tolerance=0.0),
        RecordGradientNorm(),
        RecordParameters(every=100),
    ]
    functions = {"bare": bare_scan(problem), "library": fit_with(problem, library)}
    timings = interleave(functions, effort.times(5))
    ratio = timings.ratio("library", "bare")
    names = ", ".join(type(callback).__name__ for callback in library)
    measured = f"A·exp(-k·t)+C, {number_of_steps(problem.steps)}, warm: µs a step (least)"
    return [
        Row("bare jit(lax.scan)", measured, microseconds(timings, "bare", problem), 1.0),
        Row(
            f"fitopt: {names}(every=100)",
            measured,
            microseconds(timings, "library", problem),
            ratio,
            "≤ 1.6x bare scan",
            ratio <= 1.6,
        ),
    ]


def visit(step: int, diff: Any, static: Any, data: Any, aux: Any, loss: Any, grads: Any) -> bool:
    """A host callback that looks at the loss."""
    return bool(loss < 0.0)


def host(effort: Effort) -> list[Row]:
    """What visits to Python cost, spread over the steps."""
    rows = []
    for n, number, limit in ((100, 20_000, 2), (1, 2_000, 100)):
        name = "host callback every " + (f"{n} steps" if n > 1 else "step")
        callback = every(n, visit)
        rows.append(_more_a_step(name, exponential(effort.steps(number)), callback, limit, effort))
    with tempfile.TemporaryDirectory() as directory:
        logger = CSVLogger(Path(directory) / "fit.csv", every=100)
        problem = exponential(effort.steps(200_000))
        rows.append(_more_a_step("CSVLogger(every=100)", problem, logger, 2, effort))
    return rows


def _more_a_step(name: str, problem: Problem, callback: Any, limit: float, effort: Effort) -> Row:
    timings = interleave({"without": fit(problem), "with": fit(problem, callback)}, effort)
    cost = timings.difference("with", "without") * 1e6 / problem.steps
    measured = f"{number_of_steps(problem.steps)}: µs a step more than without it"
    ratio = timings.ratio("with", "without")
    return Row(name, measured, f"{cost:.2f}", ratio, f"≤ {limit} µs a step", cost <= limit)


def progress_bar(effort: Effort) -> list[Row]:
    """A run with a progress bar beside the same run without."""
    rows = []
    for problem in (exponential(effort.steps(20_000)), exponential(effort.steps(400_000))):
        rows.append(
            _times_as_long(problem, ProgressBar(file=io.StringIO()), "ProgressBar", 1.05, effort)
        )
    return rows


def checkpoints(effort: Effort) -> list[Row]:
    """A fit of some seconds that writes a checkpoint every second."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Checkpoint(directory, seconds=1.0)
        problem = exponential(effort.steps(7_000_000))
        longer = effort._replace(seconds=3 * effort.seconds)  # or there would be but one round
        return [_times_as_long(problem, checkpoint, "Checkpoint(seconds=1)", 1.02, longer)]


def _times_as_long(problem: Problem, callback: Any, name: str, limit: float, effort: Effort) -> Row:
    timings = interleave({"without": fit(problem), "with": fit(problem, callback)}, effort)
    ratio = timings.ratio("with", "without")
    measured = f"A·exp(-k·t)+C, {number_of_steps(problem.steps)}: ms (least)"
    figure = milliseconds(timings.seconds["with"])
    return Row(name, measured, figure, ratio, f"≤ {limit}x without", ratio <= limit)


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "traced": traced,
    "callbacks": host,
    "progress": progress_bar,
    "checkpoints": checkpoints,
}
