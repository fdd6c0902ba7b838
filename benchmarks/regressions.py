"""NIST's regressions solved warm: `python -m benchmarks.regressions ROUNDS NAME...` prints JSON.

In float64, so in a process of its own. Each solver begins at both starts of each problem.
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array
from scipy.optimize import least_squares

from fitopt import LeastSquares

from . import nist
from .timing import Effort, interleave

Solve = Callable[[], Any]  # returns the values of the parameters


def solvers(problem: nist.Problem) -> dict[str, Callable[[np.ndarray], Solve]]:
    """Ways to solve a problem: functions of the start.

    Each as its users have it, with its default tolerances: scipy with a compiled function and exact
    Jacobian that return NumPy's arrays, lmfit with a model in NumPy and finite differences of its own.
    """

    def residuals(b: Array) -> Array:
        return problem.model(problem.x, *b) - problem.y

    ours = LeastSquares(problem.residuals)
    function, jacobian = jax.jit(residuals), jax.jit(jax.jacfwd(residuals))
    in_numpy = nist.in_numpy(problem.model)
    solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-12)
    compiled = jax.jit(
        lambda b: (
            optx.least_squares(lambda b, _: residuals(b), solver, b, max_steps=10_000, throw=False).value
        )
    )

    def fitopt(start: np.ndarray) -> Solve:
        state = problem.state(start)

        def fit() -> list[Array]:
            fitted, _ = ours.run(state)
            return [fitted[name].value for name in problem.names]

        return fit

    def scipy(method: str) -> Callable[[np.ndarray], Solve]:
        f, jac = (lambda b: np.asarray(function(b))), (lambda b: np.asarray(jacobian(b)))
        return lambda start: lambda: least_squares(f, start, jac, method=method).x

    def optimistix(start: np.ndarray) -> Solve:
        b = jnp.asarray(start)
        return lambda: jax.block_until_ready(compiled(b))

    def lmfit(f: Callable[..., np.ndarray], start: np.ndarray) -> Solve:
        from lmfit import Parameters, minimize

        parameters = Parameters()
        for name, value in zip(problem.names, start, strict=True):
            parameters.add(name, value)

        def fit() -> list[float]:
            found = minimize(lambda p: f(*p.valuesdict().values()), parameters).params
            return [found[name].value for name in problem.names]

        return fit

    return {
        "fitopt": fitopt,
        "trf": scipy("trf"),
        "lm": scipy("lm"),
        "lmfit": partial(lmfit, lambda *b: np.asarray(function(np.array(b)))),
        "lmfit, NumPy": partial(lmfit, lambda *b: in_numpy(problem.x, *b) - problem.y),
        "optimistix": optimistix,
    }


def main(rounds: int, names: list[str]) -> None:
    """Print the median seconds of a fit for each solver, and how many starts it solves to six digits."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")  # what peers say of overflows on their way
    seconds: dict[str, list[float]] = {}
    solved: dict[str, int] = {}
    for problem in map(nist.load, names or nist.MODELS):
        made = solvers(problem)
        for start in problem.starts:
            fits = {name: _safely(make, start) for name, make in made.items()}
            timings = interleave(fits, Effort(rounds, seconds=5.0))
            for name, fit in fits.items():
                values = np.asarray(fit(), float)
                close = np.all(np.abs(values / problem.values - 1) < 1e-6)
                solved[name] = solved.get(name, 0) + int(close)
                seconds.setdefault(name, []).append(timings.median(name))
    print(json.dumps({name: (float(np.median(s)), solved[name]) for name, s in seconds.items()}))


def _safely(make: Callable[[np.ndarray], Solve], start: np.ndarray) -> Solve:
    """A fit that gives NaN where a peer raises, as lmfit does for residuals that are not finite."""
    fit = make(start)

    def run() -> Any:
        try:
            return fit()
        except ValueError:
            return np.full(start.shape, np.nan)

    return run


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
