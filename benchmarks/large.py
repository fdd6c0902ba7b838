"""Large problems: `python -m benchmarks.large tall|hessian ROUNDS SHRINK` prints JSON.

In double precision, so in a process of its own.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import least_squares

from fitopt import LeastSquares, OptaxOptimizer, Parameter

from .subprocesses import measure
from .table import Row
from .timing import Effort, Timings, interleave

_PEAKS = 10


def tall(effort: Effort) -> Sequence[Row]:
    """Ten peaks, two parameters each, fitted to many data; beside scipy with its default tolerances."""
    found = _measured("tall", effort)
    faster = min(found[method]["median"] for method in ("trf", "lm"))
    of = f"{100_000 // _shrink(effort):,} residuals, 20 parameters, float64, warm: ms (evaluations)"
    rows = []
    for name, what in {
        "fitopt": "fitopt: LeastSquares.run, rtol=1e-8",
        "trf": "scipy: least_squares(method='trf'), jitted exact Jacobian, ftol=xtol=gtol=1e-8",
        "lm": "scipy: least_squares(method='lm'), jitted exact Jacobian, ftol=xtol=gtol=1e-8",
    }.items():
        seconds = found[name]["median"]
        target = "≤ 1x scipy's faster" if name == "fitopt" else ""
        figure = f"{seconds * 1e3:.1f} ({found[name]['steps']})"
        met = seconds <= faster if target else None
        rows.append(Row(what, of, figure, seconds / faster, target, met))
    return rows


def hessian(effort: Effort) -> Sequence[Row]:
    """Standard errors from the Hessian of a scalar loss, beside its Hessian-vector products alone."""
    found = _measured("hessian", effort)
    products, errors = found["products"]["median"], found["errors"]["median"]
    of = f"scalar loss of {1_000 // _shrink(effort):,} parameters, float64, warm: ms"
    by_hand = "by hand: all Hessian-vector products, jit(vmap), forward over reverse"
    ratio = errors / products
    return [
        Row(by_hand, of, f"{products * 1e3:.1f}", 1.0),
        Row("fitopt: uncertainty", of, f"{errors * 1e3:.1f}", ratio, "< 10x by hand", ratio < 10),
    ]


def _measured(name: str, effort: Effort) -> dict[str, Any]:
    return measure("benchmarks.large", name, str(max(1, effort.rounds // 3)), str(_shrink(effort)))


def _shrink(effort: Effort) -> int:
    return min(effort.shrink, 500)


def _fit_peaks(shrink: int, effort: Effort) -> tuple[Timings, dict[str, int]]:
    random = np.random.default_rng(0)
    x = np.linspace(0.0, 10.0, 100_000 // shrink)
    true = np.concatenate([random.uniform(1, 3, _PEAKS), random.uniform(0.2, 0.4, _PEAKS)])

    def model(b: Any) -> Any:
        widths = b[_PEAKS:]
        return sum(b[i] * jnp.exp(-(((x - i - 0.5) / widths[i]) ** 2) / 2) for i in range(_PEAKS))

    y = np.asarray(model(true)) + 0.1 * random.standard_normal(x.size)
    start = np.repeat([1.0, 0.3], _PEAKS)
    fit = LeastSquares(lambda state: model(state["b"]) - y)
    state = {"b": Parameter("b", start)}
    residuals = jax.jit(lambda b: model(b) - y)
    jacobian = jax.jit(jax.jacfwd(residuals))

    def scipy(method: str) -> Callable[[], Any]:
        f, jac = (lambda b: np.asarray(residuals(b))), (lambda b: np.asarray(jacobian(b)))
        return lambda: least_squares(f, start, jac, method=method)

    fits = {"fitopt": lambda: fit.run(state), "trf": scipy("trf"), "lm": scipy("lm")}
    timings = interleave(fits, effort)
    steps = {"fitopt": fit.run(state)[1]["n_steps"]}
    return timings, steps | {name: fits[name]().nfev for name in ("trf", "lm")}


def _invert_hessian(shrink: int, effort: Effort) -> tuple[Timings, dict[str, int]]:
    n = 1_000 // shrink
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.standard_normal((2 * n, n)) / n**0.5)
    true = jnp.asarray(random.standard_normal(n))
    data = jnp.tanh(inputs @ true)

    def loss(w: Any) -> Any:  # its minimum is known
        return jnp.sum((jnp.tanh(inputs @ w) - data) ** 2) / 2

    product = lambda v: jax.jvp(jax.grad(loss), (true,), (v,))[1]
    products = jax.jit(lambda basis: jax.vmap(product)(basis))
    opt = OptaxOptimizer(lambda state: loss(state["w"]), optax.adam(1e-3))
    state = {"w": Parameter("w", true)}
    basis = jnp.eye(n)
    both = {
        "products": lambda: jax.block_until_ready(products(basis)),
        "errors": lambda: opt.uncertainty(state).standard_errors["w"],
    }
    return interleave(both, effort), {}


def main(name: str, rounds: int, shrink: int) -> None:
    """Print the median seconds of each, and the steps or evaluations it made."""
    jax.config.update("jax_enable_x64", True)
    timings, steps = {"tall": _fit_peaks, "hessian": _invert_hessian}[name](shrink, Effort(rounds, 20.0))
    names = timings.seconds
    print(json.dumps({n: {"median": timings.median(n), "steps": steps.get(n, 0)} for n in names}))


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {"tall": tall, "hessian": hessian}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
