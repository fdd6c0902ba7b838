"""Fits with bounds from many starts, through `run` and with scipy: how many are solved.

A design is a model, a box for its parameters, and a range of true parameters, which may exceed the box,
so that some solutions lie on bounds. Starts lie at random, in corners of the box, and at 1 % and 5 % of
its width from bounds. A start is solved if it leads to the best sum of squares that anyone has found
for its data set; it is wrong if a fit says that it has converged where the first-order conditions do
not hold.
`python -m benchmarks.bounds NAME...` prints JSON, in float64.
"""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import least_squares, minimize

from fitopt import LBFGSB, LeastSquares, OptaxOptimizer, Parameter

from .subprocesses import measure
from .table import Row
from .timing import Effort

INF = np.inf
_DATA_SETS = 20
_SOLVED = 1e-6  # relative to the best sum of squares
_STATIONARY = 1e-4  # the largest cosine between residuals and a column of the Jacobian that may go down


class Design(NamedTuple):
    """A model of some predictor, its bounds, and where true values and starts come from."""

    name: str
    model: Callable[[Array, Array], Array]  # of the predictor and the parameters
    x: Float[np.ndarray, " m"]
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    truth: tuple[list[float], list[float]]  # the range of true values
    starts: tuple[list[float], list[float]]  # that of starts, within the bounds
    noise: float  # relative to the largest datum

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Where starts may lie."""
        return np.array(self.starts[0], float), np.array(self.starts[1], float)

    def data(self) -> Float[np.ndarray, "sets m"]:
        """Data sets with noise."""
        random = np.random.default_rng(_seed(self.name))
        low, high = (np.array(side, float) for side in self.truth)
        truths = random.uniform(low, high, size=(_DATA_SETS, low.size))
        clean = np.array([self.model(self.x, jnp.array(truth)) for truth in truths])
        size = np.abs(clean).max(axis=1, keepdims=True)
        return clean + self.noise * size * random.normal(size=clean.shape)

    def beginnings(self) -> Float[np.ndarray, "starts n"]:
        """Ten for each data set: at random, in corners, at 1 % and at 5 % of the width from bounds."""
        random = np.random.default_rng(_seed(self.name) + 1)
        low, high = self.box
        shape = (_DATA_SETS, 2, low.size)
        corners = [np.where(random.random(shape) < 0.5, part, 1 - part) for part in (0.0, 0.01, 0.05)]
        inside = random.uniform(0.02, 0.98, size=(_DATA_SETS, 4, low.size))
        return low + (high - low) * np.concatenate([inside, *corners], axis=1)


def _seed(name: str) -> int:
    """The same in each process."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def decay(x, p):
    return p[0] * jnp.exp(-p[1] * x) + p[2]


def peak(x, p):
    return p[0] * jnp.exp(-(((x - p[1]) / p[2]) ** 2) / 2)


def lorentzian(x, p):
    return p[0] / (1 + ((x - p[1]) / p[2]) ** 2)


def biexponential(x, p):
    return p[0] * jnp.exp(-p[1] * x) + p[2] * jnp.exp(-p[3] * x)


def two_peaks(x, p):
    return peak(x, p[:3]) + peak(x, p[3:])


def logistic(x, p):
    return p[0] / (1 + jnp.exp(-p[1] * (x - p[2])))


def michaelis(x, p):
    return p[0] * x / (p[1] + x)


def oscillation(x, p):
    return p[0] * jnp.exp(-p[1] * x) * jnp.cos(p[2] * x + p[3])


T = np.linspace(0.0, 4.0, 40)
X = np.linspace(-5.0, 5.0, 60)

DESIGNS = [
    Design(
        "decay",
        decay,
        T,
        np.array([0.0, 0, 0]),
        np.array([10.0, 5, 5]),
        ([1, 0.2, -0.5], [9, 3, 2]),
        ([0, 0, 0], [10, 5, 5]),
        0.03,
    ),
    Design(
        "gaussian",
        peak,
        X,
        np.array([0.0, -INF, 0]),
        np.array([INF, INF, INF]),
        ([1, -3, 0.4], [5, 3, 2]),
        ([0, -5, 0], [10, 5, 5]),
        0.05,
    ),
    Design(
        "lorentzian",
        lorentzian,
        X,
        np.array([0.0, -5, 0]),
        np.array([10.0, 5, 2]),
        ([1, -3, 0.3], [5, 3, 2.5]),
        ([0, -5, 0], [10, 5, 2]),
        0.05,
    ),
    Design(
        "biexponential",
        biexponential,
        T,
        np.array([0.0, 0, 0, 0]),
        np.array([10.0, 10, 10, 10]),
        ([1, 0.1, 1, 2], [6, 1, 6, 8]),
        ([0, 0, 0, 0], [10, 10, 10, 10]),
        0.01,
    ),
    Design(
        "two peaks",
        two_peaks,
        X,
        np.array([0.0, -5, 0.05, 0, -5, 0.05]),
        np.array([10.0, 5, 3, 10, 5, 3]),
        ([1, -3, 0.3, 1, 0, 0.3], [5, 0, 1.2, 5, 3, 1.2]),
        ([0, -5, 0.05, 0, -5, 0.05], [10, 5, 3, 10, 5, 3]),
        0.03,
    ),
    Design(
        "logistic",
        logistic,
        2.5 * T,
        np.array([0.0, 0, 0]),
        np.array([20.0, 5, 10]),
        ([5, 0.5, 2], [22, 3, 7]),
        ([0, 0, 0], [20, 5, 10]),
        0.03,
    ),
    Design(
        "Michaelis-Menten",
        michaelis,
        np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]),
        np.array([0.0, 0]),
        np.array([10.0, 10]),
        ([2, 0.2], [11, 8]),
        ([0, 0], [10, 10]),
        0.04,
    ),
    Design(
        "oscillation",
        oscillation,
        2 * T,
        np.array([0.0, 0, 0.5, -np.pi]),
        np.array([5.0, 2, 6, np.pi]),
        ([1, -0.05, 1, -3], [4, 0.5, 5, 3]),
        ([0, 0, 0.5, -np.pi], [5, 2, 6, np.pi]),
        0.03,
    ),
]


class Outcome(NamedTuple):
    """Where fits have ended."""

    losses: Float[np.ndarray, "fits"]
    points: Float[np.ndarray, "fits n"]
    converged: Bool[np.ndarray, "fits"]


def _fits(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Data and start of each fit."""
    starts = design.beginnings()
    per_set = starts.shape[1]
    return np.repeat(design.data(), per_set, axis=0), starts.reshape(-1, starts.shape[-1])


def ours(design: Design, kind: str) -> Outcome:
    """With `LeastSquares`, or its scalar loss with `LBFGSB`."""
    residuals = lambda s: design.model(design.x, s["p"]) - s["y"]
    if kind == "residuals":
        fit: Any = LeastSquares(residuals)
    else:
        fit = OptaxOptimizer(lambda s: jnp.sum(residuals(s) ** 2), LBFGSB(rtol=1e-8))
    ends = []
    for y, start in zip(*_fits(design), strict=True):
        state = {"p": Parameter("p", start, lower=design.lower, upper=design.upper), "y": y}
        try:
            with warnings.catch_warnings(action="ignore"):
                fitted, history = fit.run(state, max_steps=3000)
        except ValueError:  # residuals that are not finite
            ends.append((np.inf, start, False))
        else:
            ends.append((history["final_loss"], np.asarray(fitted["p"]), history["converged"]))
    return Outcome(*map(np.array, zip(*ends, strict=True)))


def scipy(design: Design, kind: str) -> Outcome:
    """With trf, exact Jacobian, both choices of scales, or L-BFGS-B on the scalar loss."""
    residuals = jax.jit(lambda p, y: design.model(design.x, p) - y)
    jacobian = jax.jit(jax.jacfwd(lambda p, y: design.model(design.x, p) - y))
    loss = jax.jit(jax.value_and_grad(lambda p, y: jnp.sum((design.model(design.x, p) - y) ** 2)))
    bounds = design.lower, design.upper
    ends = []
    for y, start in zip(*_fits(design), strict=True):
        if kind == "L-BFGS-B":
            options = {"maxiter": 3000, "maxfun": 9000, "ftol": 1e-12, "gtol": 1e-9}
            found = minimize(
                lambda p, y=y: jax.device_get(loss(p, y)),
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(*bounds, strict=True)),
                options=options,
            )
            ends.append((float(found.fun), found.x, found.success))
            continue
        try:
            found = least_squares(
                lambda p, y=y: np.asarray(residuals(p, y)),
                start,
                lambda p, y=y: np.asarray(jacobian(p, y)),
                bounds,
                ftol=1e-12,
                xtol=1e-12,
                gtol=1e-12,
                x_scale=kind,  # pyright: ignore[reportArgumentType]
                max_nfev=3000,
            )
            ends.append((2 * found.cost, found.x, found.success))
        except ValueError:  # residuals that are not finite, or a singular Jacobian
            ends.append((np.inf, start, False))
    return Outcome(*map(np.array, zip(*ends, strict=True)))


def _stationary(design: Design, outcome: Outcome) -> Bool[np.ndarray, "fits"]:
    """Whether no parameter, alone, could reduce the sum of squares within its bounds."""

    def cosines(p: Array, y: Array) -> Array:
        residuals = design.model(design.x, p) - y
        jacobian = jax.jacfwd(lambda p: design.model(design.x, p))(p)
        sizes = jnp.linalg.norm(jacobian, axis=0) * jnp.linalg.norm(residuals)
        cosine = jacobian.T @ residuals / jnp.where(sizes > 0, sizes, 1)
        blocked = ((p <= design.lower) & (cosine > 0)) | ((p >= design.upper) & (cosine < 0))
        return jnp.max(jnp.where(blocked, 0, jnp.abs(cosine)))

    found = jax.jit(jax.vmap(cosines))(jnp.array(outcome.points), jnp.array(_fits(design)[0]))
    return np.asarray(found) <= _STATIONARY


METHODS: dict[str, Callable[[Design], Outcome]] = {
    "fitopt: LeastSquares": lambda design: ours(design, "residuals"),
    "scipy: least_squares(method='trf')": lambda design: scipy(design, 1.0),  # type: ignore
    "scipy: least_squares(method='trf', x_scale='jac')": lambda design: scipy(design, "jac"),
    "fitopt: LBFGSB on the sum of squares": lambda design: ours(design, "loss"),
    "scipy: minimize(method='L-BFGS-B')": lambda design: scipy(design, "L-BFGS-B"),
}


def count(design: Design) -> dict[str, tuple[int, int, int]]:
    """For each method: starts solved, starts wrong, and how many there are."""
    outcomes = {name: method(design) for name, method in METHODS.items()}
    losses = np.array([outcome.losses for outcome in outcomes.values()])
    by_set = losses.reshape(len(outcomes), _DATA_SETS, -1)
    best = np.nanmin(by_set, axis=(0, 2))[:, None]
    counts = {}
    for (name, outcome), own in zip(outcomes.items(), by_set, strict=True):
        solved = (own <= best * (1 + _SOLVED) + 1e-20).ravel()
        wrong = outcome.converged & ~solved & ~_stationary(design, outcome)
        counts[name] = int(solved.sum()), int(wrong.sum()), solved.size
    return counts


def bounds(effort: Effort) -> Sequence[Row]:
    """A row for each design and method."""
    names = [] if effort.rounds > 5 else ["decay"]
    rows = []
    for design, counts in measure("benchmarks.bounds", *names).items():
        for method, (solved, wrong, starts) in counts.items():
            what = f"{design}, with bounds: starts solved"
            target, met = "", None
            if method == "fitopt: LeastSquares":
                peers = [x[0] for name, x in counts.items() if "trf" in name]
                target, met = "≥ both of trf, none wrong", solved >= max(peers) and not wrong
            if method.startswith("fitopt: LBFGSB"):
                target = "≥ L-BFGS-B, none wrong"
                met = solved >= counts["scipy: minimize(method='L-BFGS-B')"][0] and not wrong
            figure = f"{solved} of {starts}, wrong yet said converged {wrong}"
            rows.append(Row(method, what, figure, None, target, met))
    return rows


GROUPS = {"bounds": bounds}


def main(names: list[str]) -> None:
    """Print counts, by the names of designs and methods."""
    jax.config.update("jax_enable_x64", True)
    chosen = [design for design in DESIGNS if not names or design.name in names]
    print(json.dumps({design.name: count(design) for design in chosen}))


if __name__ == "__main__":
    main(sys.argv[1:])
