"""What fitopt adds to a hand-written scan: a step, a call, a compilation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
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


def beside_bare(title: str, problem: Problem, effort: Effort, limits: Mapping[str, float]) -> list[Row]:
    """A bare scan, and fitopt with the usual callbacks and without; `limits` are of their ratios."""
    names = "bare jit(lax.scan)", GUARDED, PLAIN
    functions = bare_scan(problem), fit(problem), fit_with(problem)
    timings = interleave(dict(zip(names, functions, strict=True)), effort)
    measured = f"{title}, {number_of_steps(problem.steps)}, warm: µs a step (least)"
    rows = [Row(names[0], measured, microseconds(timings, names[0], problem), 1.0)]
    for name, limit in limits.items():
        figure, ratio = microseconds(timings, name, problem), timings.ratio(name, names[0])
        rows.append(Row(name, measured, figure, ratio, f"≤ {limit:g}x bare scan", ratio <= limit))
    return rows


def first_problem(effort: Effort) -> list[Row]:
    """Steps of about a microsecond."""
    problem = exponential(effort.steps(20_000))
    return beside_bare("A·exp(-k·t)+C", problem, effort.times(5), {GUARDED: 1.0, PLAIN: 0.9})


def second_problem(effort: Effort) -> list[Row]:
    """Steps of about a hundred microseconds."""
    problem, limits = simulation(effort.steps(2_000)), {GUARDED: 1.03, PLAIN: 1.03}
    return beside_bare("predator-prey simulation", problem, effort.times(5), limits)


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
    return [
        *_first_call("A·exp(-k·t)+C", 3, effort.steps(20_000), effort),
        *_first_call("300 named scalars", 300, effort.steps(2_000), effort),
    ]


def _first_call(title: str, scalars: int, steps: int, effort: Effort) -> list[Row]:
    def child(kind: str) -> float:
        return measure("benchmarks.first_call", kind, str(steps), str(scalars))["seconds"]

    rounds = max(1, min(7, effort.rounds))
    pairs = [(child("bare"), child("fitopt")) for _ in range(rounds)]
    bare, ours = zip(*pairs, strict=True)
    ratios = sorted(b / a for a, b in pairs)
    ratio = ratios[len(ratios) // 2]
    measured = f"{title}, {number_of_steps(steps)}, first call in a new process: ms (least)"
    target = "≤ 1.2x bare scan"
    return [
        Row("bare jit(lax.scan)", measured, milliseconds(bare), 1.0),
        Row(GUARDED, measured, milliseconds(ours), ratio, target, ratio <= 1.2),
    ]


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "scan": first_problem,
    "simulation": second_problem,
    "call": one_step,
    "compile": first_call,
}
