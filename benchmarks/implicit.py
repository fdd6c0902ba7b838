"""The derivative of a fit by its data: through 500 unrolled steps, and at the minimum itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fitopt import LeastSquares, OptaxOptimizer, Parameter

from .table import Row
from .timing import Effort, interleave

_STEPS, _DATA = 500, 2_000


def derivatives(effort: Effort) -> Sequence[Row]:
    """Seconds and memory of `grad` around a run, with its two adjoints."""
    rows = []
    for name, fit in {"adam": _adam, "LevenbergMarquardt": _least_squares}.items():
        rows += _compared(name, fit, effort)
    return rows


def _model(state: Any) -> Any:
    t = jnp.linspace(0.0, 4.0, _DATA)
    return state["A"] * jnp.exp(-state["k"] * t) + state["C"]


def _start() -> dict[str, Parameter]:
    return {"A": Parameter("A", 1.0), "k": Parameter("k", 1.0, lower=0), "C": Parameter("C", 0.0)}


def _adam(data: Any, adjoint: str) -> Any:
    loss = lambda state: jnp.mean((_model(state) - data) ** 2)
    return OptaxOptimizer(loss, optax.adam(0.05)).run(_start(), _STEPS, adjoint=adjoint)


def _least_squares(data: Any, adjoint: str) -> Any:
    return LeastSquares(lambda state: _model(state) - data).run(_start(), _STEPS, adjoint=adjoint)


def _compared(name: str, fit: Callable[[Any, str], Any], effort: Effort) -> list[Row]:
    noise = 0.05 * np.random.default_rng(0).normal(size=_DATA)
    data = _model({"A": 2.5, "k": 1.3, "C": 0.5}) + noise
    compiled = {
        adjoint: jax.jit(jax.grad(lambda data, a=adjoint: fit(data, a)[0]["k"].value))
        .lower(data)
        .compile()
        for adjoint in ("unrolled", "implicit")
    }
    calls = {a: lambda run=run: jax.block_until_ready(run(data)) for a, run in compiled.items()}
    timings = interleave(calls, effort)
    seconds = {adjoint: timings.median(adjoint) for adjoint in compiled}
    memory = {a: run.memory_analysis().temp_size_in_bytes for a, run in compiled.items()}
    of = f"gradient of a rate by {_DATA:,} data, {name}, {_STEPS} steps:"
    rows = []
    for adjoint in compiled:
        faster, smaller = (x["unrolled"] / x[adjoint] for x in (seconds, memory))
        targets = ("≥ 5x less", "≥ 20x less") if adjoint == "implicit" else ("", "")
        met = (faster >= 5, smaller >= 20) if adjoint == "implicit" else (None, None)
        rows += [
            Row(
                f"adjoint={adjoint!r}",
                f"{of} ms",
                f"{seconds[adjoint] * 1e3:.1f}",
                1 / faster,
                targets[0],
                met[0],
            ),
            Row(
                f"adjoint={adjoint!r}",
                f"{of} kB",
                f"{memory[adjoint] / 1e3:.0f}",
                1 / smaller,
                targets[1],
                met[1],
            ),
        ]
    return rows


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {"implicit": derivatives}
