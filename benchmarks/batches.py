"""Data in batches: a network beside a scan that gathers its rows by hand, streams, memory."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import fitopt
from fitopt import Minibatches, OptaxOptimizer
from fitopt.callbacks import Validate

from .sharded_rows import ROWS
from .subprocesses import measure
from .table import Row
from .timing import Effort, interleave

_ROWS, _BATCH, _SIZES = 50_000, 64, (64, 256, 256, 1)
_OPTIMIZER = optax.adam(1e-3)


def network() -> list[tuple[jax.Array, jax.Array]]:
    """Weights and biases of a network 64-256-256-1."""
    random = np.random.default_rng(1)
    return [
        (jnp.asarray(random.normal(size=(a, b)) / np.sqrt(a), jnp.float32), jnp.zeros(b))
        for a, b in itertools.pairwise(_SIZES)
    ]


def loss(layers: Any, batch: Any) -> jax.Array:
    """Mean squared error of the network's outputs."""
    x, y = batch
    for weights, biases in layers[:-1]:
        x = jnp.tanh(x @ weights + biases)
    return jnp.mean((x @ layers[-1][0] + layers[-1][1] - y) ** 2)


def by_hand(data: Any, steps: int) -> Callable[[], Any]:
    """A scan that draws a permutation at the start of each epoch, and gathers rows by it."""
    in_epoch, layers, key = _ROWS // _BATCH, network(), jax.random.key(0)

    @jax.jit
    def fit(layers: Any, data: Any) -> Any:
        def step(carry: Any, number: Any) -> Any:
            layers, state, order = carry
            shuffle = lambda: jax.random.permutation(jax.random.fold_in(key, number), _ROWS)
            order = lax.cond(number % in_epoch == 0, shuffle, lambda: order)
            rows = lax.dynamic_slice_in_dim(order, number % in_epoch * _BATCH, _BATCH)
            value, grads = jax.value_and_grad(loss)(layers, jax.tree.map(lambda x: x[rows], data))
            updates, state = _OPTIMIZER.update(grads, state, layers)
            return (optax.apply_updates(layers, updates), state, order), value

        start = layers, _OPTIMIZER.init(layers), jnp.arange(_ROWS)
        return lax.scan(step, start, jnp.arange(steps))

    return lambda: jax.block_until_ready(fit(layers, data))


def endless(data: Any) -> Iterator[Any]:
    """Batches of NumPy arrays, one after the other."""
    for begin in itertools.cycle(range(0, _ROWS - _BATCH, _BATCH)):
        yield tuple(x[begin : begin + _BATCH] for x in data)


def network_in_batches(effort: Effort) -> Sequence[Row]:
    """A step on 64 of 50,000 rows; and what a loader and a validation add to it."""
    random = np.random.default_rng(0)
    x = random.normal(size=(_ROWS, _SIZES[0])).astype(np.float32)
    host = x, np.tanh(x[:, :1])
    data = jax.tree.map(jnp.asarray, host)
    test = jax.tree.map(lambda x: x[:2_000], data)
    steps = effort.steps(2_000)
    state, source = fitopt.trainable(network()), Minibatches(data, _BATCH)
    plain = OptaxOptimizer(loss, _OPTIMIZER)
    validated = OptaxOptimizer(loss, _OPTIMIZER, Validate(loss, test, every=100))
    evaluate, layers = jax.jit(loss), network()
    evaluations = -(-steps // 100)
    functions = {
        "by hand": by_hand(data, steps),
        "minibatches": lambda: plain.run(state, steps, batches=source),
        "stream": lambda: plain.run(state, steps, batches=endless(host)),
        "loader": lambda: [*itertools.islice(endless(host), steps)],
        "validated": lambda: validated.run(state, steps, batches=source),
        "evaluation": lambda: [evaluate(layers, test).block_until_ready() for _ in range(evaluations)],
    }
    timings = interleave(functions, effort)
    measured = f"network {'-'.join(map(str, _SIZES))}, 64 of {_ROWS:,} rows, {steps:,} steps: µs a step"
    figure = lambda name: f"{timings.median(name) / steps * 1e6:.0f}"
    drawn = timings.ratio("minibatches", "by hand")
    slower = max("minibatches", "loader", key=timings.median)
    speed = timings.ratio(slower, "stream")
    both = timings.seconds["minibatches"] + timings.seconds["evaluation"]
    cost = float(np.median(timings.seconds["validated"] / both))
    return [
        Row("bare jit(lax.scan): permutation and gather by hand", measured, figure("by hand"), 1.0),
        Row("fitopt: Minibatches", measured, figure("minibatches"), drawn, "≤ 1.1x", drawn <= 1.1),
        Row(
            f"fitopt: a generator of NumPy arrays (speed beside the slower of {slower} and it alone)",
            measured,
            figure("stream"),
            speed,
            "≥ 0.9x the slower alone",
            speed >= 0.9,
        ),
        Row(
            "fitopt: Minibatches, Validate(2,000 rows, every=100)",
            measured,
            figure("validated"),
            cost,
            "≤ 1.05x fit and evaluations apart",
            cost <= 1.05,
        ),
    ]


def mapped_file(effort: Effort) -> Sequence[Row]:
    """Resident memory while a file of 4 GB is streamed."""
    size = max(4_000 // effort.shrink, 40)
    found = measure("benchmarks.mapped_file", str(size))
    grown = found["grown"]
    return [
        Row(
            "fitopt: a memory-mapped file, streamed",
            f"{size:,} MB of rows in batches of 1 MB: resident memory above the start, MB",
            f"{grown:.0f}",
            None,
            "≤ 500 MB",
            grown <= 500,
        )
    ]


def sharded_rows(effort: Effort) -> Sequence[Row]:
    """Weak scaling: as many rows in each of some processes, whose gradients are added at each step."""
    steps = effort.steps(60)
    found = {n: measure("benchmarks.sharded_rows", f"{n}", f"{steps}") for n in (1, 2, 4)}
    alone = found[1]["seconds"]
    milliseconds = lambda seconds: f"{seconds / steps * 1e3:.1f}"
    measured = (
        f"network {'-'.join(map(str, _SIZES))}, {ROWS:,} rows in each: ms a step (of its processor)"
    )
    rows = [
        Row(
            f"fitopt: sharded rows, {n} process{'es' * (n > 1)} of one thread",
            measured,
            f"{milliseconds(one['seconds'])} ({milliseconds(one['busy'])})",
            one["seconds"] / alone,
        )
        for n, one in found.items()
    ]
    agreement = [
        Row(
            f"fitopt: {n} processes agree on a chunk",
            "ms a chunk, of which there are about ten a second",
            f"{found[n]['agreement'] * 1e3:.2f}",
            None,
            "≤ 5 ms",
            found[n]["agreement"] <= 5e-3,
        )
        for n in (2, 4)
    ]
    return [*rows, *agreement]


GROUPS = {"batches": network_in_batches, "mapped": mapped_file, "processes": sharded_rows}
