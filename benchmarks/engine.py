"""What fitopt adds to a hand-written scan: a step, a call, a compilation."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fitopt import OptaxOptimizer
from fitopt.callbacks import EarlyStopping, KeepBest

from .problems import OPTIMIZER, Problem, bare_scan, exponential, simulation
from .subprocesses import measure
from .table import Row
from .timing import Effort, Timings, interleave

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


def number_of_steps(number: int) -> str:
    """In words."""
    return f"{number:,} step{'s' if number > 1 else ''}"


def _scan(title: str, problem: Problem, effort: Effort, limit: float) -> list[Row]:
    timings = interleave({"bare": bare_scan(problem), "fitopt": fit(problem)}, effort.times(5))
    measured = f"{title}, {number_of_steps(problem.steps)}, warm: µs a step (least)"

    ratio = timings.ratio("fitopt", "bare")
    return [
        Row("bare jit(lax.scan)", measured, microseconds(timings, "bare", problem), 1.0),
        Row(
            GUARDED,
            measured,
            microseconds(timings, "fitopt", problem),
            ratio,
            f"≤ {limit}x bare scan",
            ratio <= limit,
        ),
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
    rows = [Row(first, measured, milliseconds(timings.seconds[first]), 1.0)]
    for name in others:
        met = timings.median(name) < 1e-3
        figure, ratio = milliseconds(timings.seconds[name]), timings.ratio(name, first)
        rows.append(Row(name, measured, figure, ratio, "< 1 ms", met))
    return rows


def microseconds(timings: Timings, name: str, problem: Problem) -> str:
    """A step, and in brackets the least."""
    per_step = 1e6 / problem.steps
    return f"{timings.median(name) * per_step:.3f} ({timings.least(name) * per_step:.3f})"


def milliseconds(seconds: Any) -> str:
    """The median, and in brackets the least."""
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
    measured = f"{number_of_steps(steps)}, first call in a new process: ms (least)"
    target = "≤ 1.5x bare scan"
    return [
        Row("bare jit(lax.scan)", measured, milliseconds(bare), 1.0),
        Row(GUARDED, measured, milliseconds(ours), ratio, target, ratio <= 1.5),
    ]


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "scan": first_problem,
    "simulation": second_problem,
    "call": one_step,
    "compile": first_call,
}
