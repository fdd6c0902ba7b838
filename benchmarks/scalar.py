"""NIST's regressions by their scalar loss alone: `python -m benchmarks.scalar NAME...` prints JSON.

One recipe for all problems and starts: L-BFGS on the root mean square of the residuals, with Parameters
scaled by where they start. Root and scale were chosen on these problems, among some fifteen
combinations, so other problems may want another. In float64, so in a process of its own.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import KeepBest, StopOnStep

from . import nist
from .subprocesses import measure
from .table import Row
from .timing import Effort

_MOST_STEPS = 3000
_QUICK = ["Misra1a", "Rat43"]
_LEAST = 46  # starts to be solved


def optimizer(residuals: Callable[[Mapping[str, Any]], Any]) -> OptaxOptimizer:
    """The recipe. The root is less steep than the mean square where the fit is bad."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=50, initial_guess_strategy="one")
    return OptaxOptimizer(
        lambda state: jnp.sqrt(jnp.mean(residuals(state) ** 2)),
        optax.lbfgs(memory_size=50, linesearch=search),
        [StopOnStep(rtol=1e-12, atol=0.0), KeepBest()],
    )


def solve(problem: nist.Problem, opt: OptaxOptimizer, start: np.ndarray) -> tuple[float, int]:
    """To how many digits all parameters are right, at most the eleven certified ones; and the steps."""
    values = zip(problem.names, start, strict=True)
    parameters = {name: Parameter(name, value, scale=abs(value) / 2) for name, value in values}
    fitted, history = opt.run({**parameters, "x": problem.x, "y": problem.y}, _MOST_STEPS)
    found = np.array([float(fitted[name]) for name in problem.names])
    error = np.max(np.abs(found / problem.values - 1))
    return float(-np.log10(np.clip(error, 1e-11, 1.0))), int(history["n_steps"])


def scalar(effort: Effort) -> Sequence[Row]:
    """All problems from both starts: a row for each, and how many are solved."""
    names = [] if effort.rounds > 5 else _QUICK
    found = measure("benchmarks.scalar", *names)
    measured = "correct digits (steps) from the far and the near start"
    rows = [
        Row(name, measured, ", ".join(f"{digits:.1f} ({steps})" for digits, steps in starts))
        for name, starts in found.items()
    ]
    digits = [digits for starts in found.values() for digits, _ in starts]
    four, six = (sum(d >= least for d in digits) for least in (4, 6))
    total = f"{six} of {len(digits)} to 6 digits, {four} to 4"
    target = "" if names else f"≥ {_LEAST} of 54"
    met = None if names else six >= _LEAST
    what = "L-BFGS on a scalar loss: OptaxOptimizer.run, scaled Parameters"
    return [*rows, Row(what, "NIST's regressions, float64: starts solved", total, None, target, met)]


def main(names: list[str]) -> None:
    """Print digits and steps from both starts, by the names of problems."""
    jax.config.update("jax_enable_x64", True)
    found = {}
    for problem in map(nist.load, names or nist.MODELS):
        opt = optimizer(problem.residuals)
        found[problem.name] = [solve(problem, opt, start) for start in problem.starts]
    print(json.dumps(found))


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {"scalar": scalar}

if __name__ == "__main__":
    main(sys.argv[1:])
