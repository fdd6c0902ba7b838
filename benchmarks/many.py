"""Many fits at once: their throughput, beside loops over one fit each and other libraries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from jaxtyping import Array

from fitopt import Callback, LeastSquares, OptaxOptimizer, Parameter, starts, vary
from fitopt.callbacks import EarlyStopping, KeepBest
from fitopt.parameter import with_value

from .subprocesses import measure
from .table import Row
from .timing import Effort, Timings, interleave

T = np.linspace(0.0, 5.0, 50).astype(np.float32)
_LOOP = 40  # fits of a loop that are timed
_MOST_STEPS = 2_000


def residuals(state: Mapping[str, Any]) -> Array:
    """A·exp(-k·t) + C on 50 points with noise."""
    return state["A"] * jnp.exp(-state["k"] * T) + state["C"] - state["y"]


def loss(state: Mapping[str, Any]) -> Array:
    return jnp.mean(residuals(state) ** 2)


def data(sets: int = 1, seed: int = 0) -> np.ndarray:
    """As many data sets."""
    rng = np.random.default_rng(seed)
    amplitude, rate = rng.uniform(2, 4, (sets, 1)), rng.uniform(0.5, 1.2, (sets, 1))
    y = amplitude * np.exp(-rate * T) + 0.5 + 0.05 * rng.normal(size=(sets, T.size))
    return y.astype(np.float32)


def state() -> dict[str, Any]:
    return {
        "A": Parameter("A", 1.0, lower=0.2, upper=5.0),
        "k": Parameter("k", 0.3, lower=0.05, upper=3.0),
        "C": Parameter("C", 0.0, lower=-1.0, upper=2.0),
        "y": jnp.asarray(data()[0]),
    }


def adam() -> OptaxOptimizer:
    return OptaxOptimizer(loss, optax.adam(0.05), [EarlyStopping(50, 1e-6), KeepBest()])


def _compare(
    title: str,
    n: int,
    functions: Mapping[str, tuple[int, Callable[[], Any]]],
    targets: Mapping[str, float],
    effort: Effort,
) -> list[Row]:
    """Rows of functions, each with how many fits it makes, beside the first one."""
    timings: Timings = interleave({name: f for name, (_, f) in functions.items()}, effort, warm=2)
    first, *others = functions
    each = lambda name: timings.seconds[name] / functions[name][0]
    measured = f"{n:,} starts of A·exp(-k·t)+C, {title}, warm: µs a fit (least)"
    shown = lambda name: f"{np.median(each(name)) * 1e6:.1f} ({each(name).min() * 1e6:.1f})"
    rows = [Row(first, measured, shown(first), 1.0)]
    for name in others:
        ratio, target = float(np.median(each(name) / each(first))), targets.get(name)
        told = "" if target is None else f"run_many is ≥ {target:g}x as fast"
        rows.append(Row(name, measured, shown(name), ratio, told, target and ratio >= target))
    return rows


def gradient_descent(effort: Effort) -> list[Row]:
    """adam with EarlyStopping and KeepBest."""
    n, optimizer = effort.steps(1_000), adam()
    states = starts(state(), n)
    few = list(states[:_LOOP])
    batched = jax.vmap(lambda free: optimizer.run({**state(), **free}, _MOST_STEPS)[1]["final_loss"])
    together = jax.jit(batched)
    free = {name: p for name, p in _stacked(states).items() if name != "y"}
    functions = {
        "fitopt: run_many": (n, lambda: optimizer.run_many(states, _MOST_STEPS)),
        "a loop of run": (len(few), lambda: [optimizer.run(one, _MOST_STEPS) for one in few]),
        "jit(vmap(run))": (n, lambda: jax.block_until_ready(together(free))),
    }
    targets = {"a loop of run": 30.0, "jit(vmap(run))": 1.0}
    return _compare("adam, EarlyStopping, KeepBest", n, functions, targets, effort)


def least_squares(effort: Effort) -> list[Row]:
    """Levenberg and Marquardt's method, beside other libraries."""
    import lmfit
    import scipy.optimize

    n, optimizer = effort.steps(1_000), LeastSquares(residuals)
    states = starts(state(), n)
    few = list(states[:_LOOP])
    y, points = np.asarray(state()["y"]), np.stack(states.starts(slice(None)), axis=1)

    def plain(p: Any) -> np.ndarray:  # in the order of the names
        return p[0] * np.exp(-p[2] * T) + p[1] - y

    def with_lmfit(p: Any) -> Any:
        names = zip(("A", "C", "k"), p, strict=True)
        parameters = lmfit.create_params(**{name: float(x) for name, x in names})
        return lmfit.minimize(lambda q: plain([q["A"], q["C"], q["k"]]), parameters)

    solver = optimistix.LevenbergMarquardt(rtol=1e-5, atol=1e-8)
    solve = lambda p: (
        optimistix.least_squares(
            lambda p, _: residuals({"A": p[0], "C": p[1], "k": p[2], "y": y}), solver, p, throw=False
        ).value
    )
    together = jax.jit(jax.vmap(solve))
    functions = {
        "fitopt: LeastSquares.run_many": (n, lambda: optimizer.run_many(states)),
        "a loop of LeastSquares.run": (len(few), lambda: [optimizer.run(one) for one in few]),
        "optimistix: jit(vmap(least_squares))": (n, lambda: jax.block_until_ready(together(points))),
        "a loop of scipy: least_squares(method='lm')": (
            _LOOP,
            lambda: [scipy.optimize.least_squares(plain, p, method="lm") for p in points[:_LOOP]],
        ),
        "a loop of lmfit: minimize": (_LOOP, lambda: [with_lmfit(p) for p in points[:_LOOP]]),
    }
    return _compare("least squares", n, functions, {"a loop of LeastSquares.run": 20.0}, effort)


class StopAt(Callback):
    """Stops after so many steps as a Parameter says, whose gradient is zero."""

    def update(self, info: Any, carry: Any) -> tuple[Any, Array]:
        return carry, info.step + 1 >= info.params["steps"]


def unequal_lengths(effort: Effort) -> list[Row]:
    """Fits of 1 to 30 units of steps, beside as many of equal length."""
    n = effort.steps(1_000)
    optimizer = OptaxOptimizer(loss, optax.adam(0.01), StopAt())
    lengths = np.random.default_rng(0).uniform(60, 1_800, n).round()
    alike = np.full(n, lengths.mean().round())
    fitted = state() | {"steps": Parameter("steps", 0.0)}
    functions = {
        name: functools.partial(optimizer.run_many, vary(fitted, {"steps": x}), 10_000)
        for name, x in (("equal", alike), ("unequal", lengths))
    }
    timings = interleave(functions, effort)
    ratio = timings.ratio("unequal", "equal")
    measured = f"{n:,} fits, adam: ms (least)"
    shown = lambda name: f"{timings.median(name) * 1e3:.0f} ({timings.least(name) * 1e3:.0f})"
    return [
        Row("run_many, 930 steps each", measured, shown("equal"), 1.0),
        Row(
            "run_many, 60 to 1,800 steps, the same sum",
            measured,
            shown("unequal"),
            ratio,
            "≤ 1.4x equal lengths",
            ratio <= 1.4,
        ),
    ]


def growth(effort: Effort) -> list[Row]:
    """Whether later fits cost more."""
    optimizer, few, many = adam(), effort.steps(1_000), effort.steps(10_000)
    functions = {
        str(n): functools.partial(optimizer.run_many, starts(state(), n), _MOST_STEPS)
        for n in (few, many)
    }
    timings = interleave(functions, effort)
    ratio = timings.ratio(str(many), str(few)) * few / many
    measured = "adam, EarlyStopping, KeepBest, warm: µs a fit"
    return [
        Row(f"run_many, {few:,} starts", measured, f"{timings.median(str(few)) / few * 1e6:.1f}", 1.0),
        Row(
            f"run_many, {many:,} starts",
            measured,
            f"{timings.median(str(many)) / many * 1e6:.1f}",
            ratio,
            "≤ 1.1x a fit",
            ratio <= 1.1,
        ),
    ]


def memory(effort: Effort) -> list[Row]:
    """Of very many data sets, in a new process."""
    sets = effort.steps(100_000)
    found = measure("benchmarks.many_memory", str(sets))
    above = (found["peak"] - found["start"]) / 1e6
    measured = f"{sets:,} data sets of 50 points: most resident memory above the data, MB"
    name = f"LeastSquares.run_many, {found['seconds']:.1f} s"
    return [Row(name, measured, f"{above:.0f}", None, "≤ 300 MB", above <= 300)]


def processes(effort: Effort) -> list[Row]:
    """Four processes under jax.distributed beside one with two devices."""
    n = str(effort.steps(20_000))
    seconds = [
        measure("benchmarks.many_processes", n, kind)["seconds"] for kind in ("devices", "processes")
    ]
    ratio = seconds[1] / seconds[0]
    measured = f"{int(n):,} starts, adam, warm: s"
    return [
        Row("run_many, one process with two devices", measured, f"{seconds[0]:.2f}", 1.0),
        Row(
            "run_many, four processes",
            measured,
            f"{seconds[1]:.2f}",
            ratio,
            "≤ 1.1x one process",
            ratio <= 1.1,
        ),
    ]


def all_of_them(effort: Effort) -> list[Row]:
    """Everything about many fits."""
    parts = (gradient_descent, least_squares, unequal_lengths, growth, memory, processes)
    return [row for part in parts for row in part(effort)]


def _stacked(states: Any) -> dict[str, Any]:
    """The free Parameters with a leading axis, as vmap takes them."""
    values = states.starts(slice(None))
    pairs = zip(states.layout.names, states.layout.specs, values, strict=True)
    return {name: with_value(spec, jnp.asarray(x)) for name, spec, x in pairs}


GROUPS: dict[str, Callable[[Effort], list[Row]]] = {"many": all_of_them}
