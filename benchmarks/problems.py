"""The fits that are timed, and how one writes them by hand."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from fitopt import Parameter

OPTIMIZER = optax.adam(1e-2)


class Problem(NamedTuple):
    """A loss of a flat dict of parameters and data, and where to start."""

    loss: Callable[[Mapping[str, Any]], Float[Array, ""]]
    params: dict[str, Array]
    data: dict[str, Array]
    steps: int

    def state(self) -> dict[str, Any]:
        """What fitopt fits: the parameters marked, the data as they are."""
        return {**{name: Parameter(name, value) for name, value in self.params.items()}, **self.data}


def exponential(steps: int = 20_000, seed: int = 0) -> Problem:
    """A·exp(-k·t) + C on 200 points with noise."""

    def loss(state: Mapping[str, Any]) -> Float[Array, ""]:
        model = state["A"] * jnp.exp(-state["k"] * state["t"]) + state["C"]
        return jnp.mean((model - state["y"]) ** 2)

    t = np.linspace(0.0, 5.0, 200)
    y = 3.0 * np.exp(-0.8 * t) + 0.5 + 0.05 * np.random.default_rng(seed).normal(size=t.size)
    return Problem(loss, _arrays(A=1.0, k=0.3, C=0.0), _arrays(t=t, y=y), steps)


_POINTS = 2000


def simulation(steps: int = 2_000) -> Problem:
    """The rates of a predator-prey model (Lotka 1920), simulated by Heun's method."""

    def trajectory(state: Mapping[str, Any]) -> Float[Array, "time 2"]:
        def slope(x: Array) -> Array:
            prey, predators = x
            return jnp.stack(
                [
                    prey * (state["growth"] - state["hunting"] * predators),
                    predators * (state["hunting"] * prey - state["death"]),
                ]
            )

        def advance(x: Array, _: None) -> tuple[Array, Array]:
            first = slope(x)
            x = x + 0.005 * (first + slope(x + 0.01 * first))
            return x, x

        return lax.scan(advance, jnp.array([1.0, 0.5]), length=_POINTS)[1]

    def loss(state: Mapping[str, Any]) -> Float[Array, ""]:
        return jnp.mean((trajectory(state) - state["y"]) ** 2)

    y = jax.jit(trajectory)({"growth": 1.1, "hunting": 0.8, "death": 0.7})
    return Problem(loss, _arrays(growth=1.0, hunting=1.0, death=1.0), {"y": y}, steps)


def named_scalars(count: int, steps: int) -> Problem:
    """The sum of squares of numbers, each a leaf of its own."""
    return Problem(_sum_of_squares, _arrays(**{f"p{i}": 0.1 * i for i in range(count)}), {}, steps)


def vector(count: int, steps: int) -> Problem:
    """The sum of squares of the entries of an array."""
    return Problem(_sum_of_squares, {"x": jnp.zeros(count, jnp.float32)}, {}, steps)


def _sum_of_squares(state: Mapping[str, Any]) -> Float[Array, ""]:
    return sum((jnp.sum((x - 1.5) ** 2) for x in state.values()), start=jnp.zeros(()))


def network(steps: int, rows: int = 512) -> Problem:
    """The regression of a network with layers of 64, 256, 256 and one on random rows."""
    sizes, rng = (64, 256, 256, 1), np.random.default_rng(0)
    params = {}
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        params[f"weight{layer}"] = rng.normal(size=(before, after)) / np.sqrt(before)
        params[f"bias{layer}"] = np.zeros(after)

    def loss(state: Mapping[str, Any]) -> Float[Array, ""]:
        x = state["x"]
        for layer in range(3):
            x = x @ state[f"weight{layer}"] + state[f"bias{layer}"]
            x = jnp.tanh(x) if layer < 2 else x
        return jnp.mean((x[:, 0] - state["y"]) ** 2)

    data = _arrays(x=rng.normal(size=(rows, 64)), y=rng.normal(size=rows))
    return Problem(loss, _arrays(**params), data, steps)


def _arrays(**values: Any) -> dict[str, Array]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def step_by_hand(problem: Problem) -> Callable[..., tuple[Any, Any, Array]]:
    """One update: `step(params, optimizer_state, data) -> (params, optimizer_state, loss)`."""

    def step(params: Any, state: Any, data: Any) -> tuple[Any, Any, Array]:
        value, grads = jax.value_and_grad(lambda params: problem.loss({**params, **data}))(params)
        updates, state = OPTIMIZER.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def bare_scan(problem: Problem) -> Callable[[], Any]:
    """The fastest one can write: a jitted `lax.scan` that returns parameters and losses."""
    step = step_by_hand(problem)

    @jax.jit
    def fit(params: Any, data: Any) -> tuple[Any, Array]:
        def body(carry: Any, _: None) -> tuple[Any, Array]:
            *carry, loss = step(*carry, data)
            return tuple(carry), loss

        start = (params, OPTIMIZER.init(params))
        (params, _), losses = lax.scan(body, start, length=problem.steps)
        return params, losses

    return lambda: jax.block_until_ready(fit(problem.params, problem.data))
