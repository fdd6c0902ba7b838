"""What fitopt adds to a hand-written scan: a step, a call, a compilation, a visit to Python."""

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fitopt import OptaxOptimizer
from fitopt.callbacks import EarlyStopping, KeepBest, ProgressBar

from .problems import OPTIMIZER, Problem, bare_scan, exponential, simulation
from .subprocesses import measure
from .table import Row
from .timing import Effort, interleave

PLAIN = "fitopt: history, finite guard"
GUARDED = f"{PLAIN}, EarlyStopping, KeepBest"


def guards(problem: Problem) -> list[Any]:
    """The traced callbacks that are always on here; neither ends the fit early."""
    return [EarlyStopping(patience=problem.steps), KeepBest()]


def fit(problem: Problem, *more: Any) -> Callable[[], Any]:
    """A whole fit with `guards` and more callbacks; returns when the result is there."""
    return fit_with(problem, [*guards(problem), *more])


def fit_with(problem: Problem, callbacks: Sequence[Any] = ()) -> Callable[[], Any]:
    """A whole fit with these callbacks alone."""
    optimizer = OptaxOptimizer(problem.loss, OPTIMIZER, list(callbacks))
    state = problem.state()
    return lambda: jax.block_until_ready(optimizer.run(state, max_steps=problem.steps))


def _steps(number: int) -> str:
    return f"{number:,} step{'s' if number > 1 else ''}"


def _scan(title: str, problem: Problem, effort: Effort, limit: float) -> list[Row]:
    timings = interleave({"bare": bare_scan(problem), "fitopt": fit(problem)}, effort.times(5))
    measured = f"{title}, {_steps(problem.steps)}, warm: µs a step (least)"

    def figure(name: str) -> str:
        per_step = 1e6 / problem.steps
        return f"{timings.median(name) * per_step:.3f} ({timings.least(name) * per_step:.3f})"

    ratio = timings.ratio("fitopt", "bare")
    return [
        Row("bare jit(lax.scan)", measured, figure("bare"), 1.0),
        Row(GUARDED, measured, figure("fitopt"), ratio, f"≤ {limit}x bare scan", ratio <= limit),
    ]


def first_problem(effort: Effort) -> list[Row]:
    """Steps of about a microsecond."""
    return _scan("A·exp(-k·t)+C", exponential(effort.steps(20_000)), effort, 1.25)


def second_problem(effort: Effort) -> list[Row]:
    """Steps of about a hundred microseconds."""
    return _scan("predator-prey simulation", simulation(effort.steps(2_000)), effort, 1.03)


def one_step(effort: Effort) -> list[Row]:
    """What a call costs once all is compiled."""
    problems = [exponential(1, seed) for seed in range(8)]
    optimizer = OptaxOptimizer(problems[0].loss, OPTIMIZER, guards(problems[0]))
    states = itertools.cycle([problem.state() for problem in problems])
    functions = {
        "bare jit(lax.scan)": bare_scan(problems[0]),
        "fitopt: run, same state": fit(problems[0]),
        "fitopt: run, new data of the same shape": lambda: jax.block_until_ready(
            optimizer.run(next(states), max_steps=1)
        ),
    }
    timings = interleave(functions, effort.times(20), warm=3)
    first, *others = functions
    measured = "one step, warm: ms (least)"
    rows = [Row(first, measured, _milliseconds(timings.seconds[first]), 1.0)]
    for name in others:
        met = timings.median(name) < 1e-3
        figure, ratio = _milliseconds(timings.seconds[name]), timings.ratio(name, first)
        rows.append(Row(name, measured, figure, ratio, "< 1 ms", met))
    return rows


def _milliseconds(seconds: Any) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2] * 1e3:.3f} ({ordered[0] * 1e3:.3f})"


def first_call(effort: Effort) -> list[Row]:
    """Tracing, compiling and running for the first time, each time in a new process."""
    steps = effort.steps(20_000)

    def child(kind: str) -> float:
        return measure("benchmarks.first_call", kind, str(steps))["seconds"]

    rounds = max(1, min(7, effort.rounds))
    pairs = [(child("bare"), child("fitopt")) for _ in range(rounds)]
    bare, ours = zip(*pairs, strict=True)
    ratios = sorted(b / a for a, b in pairs)
    ratio = ratios[len(ratios) // 2]
    measured = f"{_steps(steps)}, first call in a new process: ms (least)"
    target = "≤ 1.5x bare scan"
    return [
        Row("bare jit(lax.scan)", measured, _milliseconds(bare), 1.0),
        Row(GUARDED, measured, _milliseconds(ours), ratio, target, ratio <= 1.5),
    ]


class Visit:
    """A host callback that looks at the loss."""

    def __init__(self, every: int):
        self.every = every

    def __call__(self, step: int, diff: Any, static: Any, data: Any, aux: Any, loss: Any, grads: Any):
        return bool(loss < 0.0)


def host_callbacks(effort: Effort) -> list[Row]:
    """What a plain Python callback costs, spread over the steps."""
    rows = []
    for every, number, limit in ((100, 20_000, 2), (1, 2_000, 100)):
        problem = exponential(effort.steps(number))
        functions = {"without": fit(problem), "with": fit(problem, Visit(every))}
        timings = interleave(functions, effort)
        cost = timings.difference("with", "without") * 1e6 / problem.steps
        name = "host callback every " + (f"{every} steps" if every > 1 else "step")
        measured = f"{_steps(problem.steps)}: µs a step more than without it"
        ratio = timings.ratio("with", "without")
        rows.append(Row(name, measured, f"{cost:.2f}", ratio, f"≤ {limit} µs a step", cost <= limit))
    return rows


def progress_bar(effort: Effort) -> list[Row]:
    """A run with a progress bar beside the same run without."""
    rows = []
    for problem in (exponential(effort.steps(20_000)), exponential(effort.steps(400_000))):
        bar = ProgressBar(file=io.StringIO())
        timings = interleave({"without": fit(problem), "with": fit(problem, bar)}, effort)
        figure = _milliseconds(timings.seconds["with"])
        ratio = timings.ratio("with", "without")
        measured = f"A·exp(-k·t)+C, {_steps(problem.steps)}: ms (least)"
        rows.append(Row("ProgressBar", measured, figure, ratio, "≤ 1.05x without", ratio <= 1.05))
    return rows


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "scan": first_problem,
    "simulation": second_problem,
    "call": one_step,
    "compile": first_call,
    "callbacks": host_callbacks,
    "progress": progress_bar,
}
