"""What the named optimizers and `Optimizer` add to optax, and braintools' loop beside ours."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fitopt import OptaxOptimizer, Optimizer, Parameter, optimizers

from .problems import exponential
from .table import Row
from .timing import Effort, Timings, interleave

_RATE = 1e-3

# Each named optimizer, and what makes the same updates with optax, whose rprop makes them a step late.
# Only lookahead has no equal there: that of optax moves pairs of parameters, which `run` does not have.
PAIRS: dict[str, tuple[optax.GradientTransformation, optax.GradientTransformation]] = {
    "sgd": (optimizers.sgd(_RATE), optax.sgd(_RATE)),
    "momentum": (optimizers.momentum(_RATE), optax.sgd(_RATE, 0.9)),
    "momentum_nesterov": (optimizers.momentum_nesterov(_RATE), optax.sgd(_RATE, 0.9, nesterov=True)),
    "adam": (optimizers.adam(_RATE), optax.adam(_RATE)),
    "adamw": (optimizers.adamw(_RATE), optax.adamw(_RATE, weight_decay=0.01)),
    "adagrad": (optimizers.adagrad(_RATE), optax.adagrad(_RATE, 0.0, 1e-10)),
    "adadelta": (optimizers.adadelta(1.0), optax.adadelta(1.0)),
    "rmsprop": (optimizers.rmsprop(_RATE), optax.rmsprop(_RATE, 0.99)),
    "adamax": (optimizers.adamax(_RATE), optax.adamax(_RATE)),
    "nadam": (optimizers.nadam(_RATE), optax.nadam(_RATE)),
    "radam": (optimizers.radam(_RATE), optax.radam(_RATE)),
    "lamb": (optimizers.lamb(_RATE), optax.lamb(_RATE)),
    "lars": (optimizers.lars(_RATE), optax.lars(_RATE, eps=1e-8)),
    "yogi": (optimizers.yogi(_RATE), optax.yogi(_RATE)),
    "lbfgs": (optimizers.lbfgs(), optax.lbfgs()),
    "rprop": (optimizers.rprop(_RATE), optax.rprop(_RATE)),
    "adafactor": (optimizers.adafactor(_RATE), optax.adafactor(_RATE)),
    "adabelief": (optimizers.adabelief(_RATE), optax.adabelief(_RATE)),
    "lion": (optimizers.lion(_RATE), optax.lion(_RATE, weight_decay=0.0)),
    "sm3": (optimizers.sm3(_RATE), optax.sm3(_RATE)),
    "novograd": (optimizers.novograd(_RATE), optax.novograd(_RATE, 0.9, 0.999, 1e-8)),
    "fromage": (optimizers.fromage(_RATE), optax.fromage(_RATE)),
}


def named_optimizers(effort: Effort) -> list[Row]:
    """`run` with each named optimizer beside `run` with what optax has: the median and the slowest."""

    def measure(name: str, effort: Effort) -> Timings:
        ours, theirs = (_run(optimizer, steps[name]) for optimizer in PAIRS[name])
        return interleave({"fitopt": ours, "optax": theirs}, effort)

    def row(place: str, name: str, timings: Timings) -> Row:
        title = f"fitopt.optimizers, {place} of {len(PAIRS)}: {name}"
        measured = f"A·exp(-k·t)+C, {steps[name]:,} steps, beside the same with optax: µs a step (least)"
        figure, ratio = _microseconds(timings, "fitopt", steps[name]), timings.ratio("fitopt", "optax")
        return Row(title, measured, figure, ratio, "≤ 1.05x optax", ratio <= 1.05)

    steps = {name: effort.steps(500 if name == "lbfgs" else 10_000) for name in PAIRS}
    each = effort._replace(seconds=effort.seconds / 5)
    timings = {name: measure(name, each) for name in PAIRS}
    ordered = sorted(PAIRS, key=lambda name: timings[name].ratio("fitopt", "optax"))
    median, slowest = ordered[len(ordered) // 2], ordered[-1]
    again = measure(slowest, effort.times(2))  # of many ratios the largest is so by chance, too
    return [row("the median", median, timings[median]), row("the slowest", slowest, again)]


def _run(optimizer: optax.GradientTransformation, steps: int) -> Callable[[], Any]:
    problem = exponential()
    fit = OptaxOptimizer(problem.loss, optimizer)
    vectors = {name: jnp.atleast_1d(x) for name, x in problem.params.items()}  # optax' SM3 wants axes
    state = {**{name: Parameter(name, x) for name, x in vectors.items()}, **problem.data}
    return lambda: jax.block_until_ready(fit.run(state, max_steps=steps))


def _microseconds(timings: Timings, name: str, steps: int) -> str:
    return f"{timings.median(name) * 1e6 / steps:.2f} ({timings.least(name) * 1e6 / steps:.2f})"


Loop = Callable[[], Any]  # returns when the result is there


class Task(NamedTuple):
    """A loss of parameters, and where to start."""

    name: str
    loss: Callable[[Any], Float[Array, ""]]
    params: Any


def network() -> Task:
    """Three layers of 32, fitted to a sine at 64 points."""
    sizes = (1, 32, 32, 1)
    normal = np.random.default_rng(0).normal
    weights = [normal(size=shape) / shape[0] ** 0.5 for shape in zip(sizes[:-1], sizes[1:], strict=True)]
    params = [{"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(w.shape[1])} for w in weights]
    x = jnp.linspace(-1.0, 2.0, 64)[:, None]  # not symmetric: gradients of biases are not rounding alone

    def loss(params: Any) -> Float[Array, ""]:
        *hidden, last = params
        y = x
        for layer in hidden:
            y = jnp.tanh(y @ layer["w"] + layer["b"])
        return jnp.mean((y @ last["w"] + last["b"] - jnp.sin(3.0 * x)) ** 2)

    return Task("three-layer network", loss, params)


def scalars() -> Task:
    """The three numbers of A·exp(-k·t) + C."""
    problem = exponential()
    return Task("three numbers", lambda params: problem.loss({**params, **problem.data}), problem.params)


def one_at_a_time(effort: Effort) -> list[Row]:
    """`Optimizer.update` in a jitted step, beside the step that one writes with optax."""
    adam, momentum = optax.adam(_RATE), optax.sgd(_RATE, 0.9)
    return [
        *_steps(network(), adam, "adam", effort, 1.05),
        *_steps(scalars(), adam, "adam", effort, 1.05),
        *_steps(scalars(), momentum, "momentum, whose steps optax does not count", effort),
    ]


def _steps(
    task: Task,
    tx: optax.GradientTransformation,
    name: str,
    effort: Effort,
    limit: float | None = None,
) -> list[Row]:
    @jax.jit
    def by_hand(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(task.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def ours(params: Any, optimizer: Any) -> tuple[Any, Any]:
        return optimizer.update(jax.grad(task.loss)(params), params), optimizer

    def loop(step: Callable[..., Any], carry: Any) -> Loop:
        def run() -> Any:
            params, state = task.params, carry
            for _ in range(steps):
                params, state = step(params, state)
            return jax.block_until_ready(params)

        return run

    steps = effort.steps(500)
    first, second = "optax by hand", "fitopt.Optimizer"
    functions = {
        first: loop(by_hand, tx.init(task.params)),
        second: loop(ours, Optimizer(tx).init(task.params)),
    }
    timings = interleave(functions, effort.times(10))
    measured = f"{name}, {task.name}, a jitted step called from Python: µs a step (least)"
    ratio = timings.ratio(second, first)
    met = None if limit is None else ratio <= limit
    target = "" if limit is None else f"≤ {limit}x by hand"
    return [
        Row(first, measured, _microseconds(timings, first, steps), 1.0),
        Row(second, measured, _microseconds(timings, second, steps), ratio, target, met),
    ]


# braintools' optimizers make a step outside of jit with a small program for each operation.


def beside_braintools(effort: Effort) -> list[Row]:
    """Loops over its steps beside loops over ours; the ratio says how many times longer they take."""
    steps = effort.steps(40)
    try:
        theirs = braintools_loops(network(), steps)
    except ImportError as error:
        return [Row("braintools", "", f"cannot be measured: {error}")]
    ours, rows = fitopt_loops(network(), steps), []
    for title, slower, faster, times in (
        ("step(grads) alone, beside Optimizer.update", "update", "update", 5.0),
        ("loop with jitted gradients, beside the same with Optimizer", "jitted", "jitted", 5.0),
        ("loop as documented, beside OptaxOptimizer.run", "eager", "run", 5.0),
        ("loop as documented, beside the same with Optimizer", "eager", "eager", None),
        ("loop over its jitted step, beside the same with Optimizer", "whole", "whole", None),
    ):
        pair = {"braintools": theirs[slower], "fitopt": ours[faster]}
        timings = interleave(pair, effort._replace(seconds=effort.seconds / 3))
        ratio = timings.ratio("braintools", "fitopt")
        figure = ", fitopt ".join(_microseconds(timings, name, steps) for name in pair)
        rows.append(
            Row(
                f"braintools {version('braintools')}: {title}",
                "adam, three-layer network: µs a step (least)",
                figure,
                ratio,
                "" if times is None else f"> {times:g}x fitopt",
                None if times is None else ratio > times,
            )
        )
    return rows


def braintools_loops(task: Task, steps: int) -> dict[str, Loop]:
    """Ways to fit a network with braintools; each returns the parameters."""
    import brainstate
    import braintools

    leaves, structure = jax.tree.flatten(task.params)
    states = {str(i): brainstate.ParamState(x) for i, x in enumerate(leaves)}
    optimizer = braintools.optim.Adam(lr=_RATE)
    optimizer.register_trainable_weights(states)
    values = lambda: [state.value for state in states.values()]
    loss = lambda: task.loss(jax.tree.unflatten(structure, values()))
    gradients = brainstate.transform.grad(loss, states)
    compiled = brainstate.transform.jit(gradients)
    known = compiled()

    def loop(step: Callable[[], Any]) -> Loop:
        def run() -> Any:
            for _ in range(steps):
                step()
            return jax.block_until_ready(values())

        return run

    eager = lambda: optimizer.step(gradients())
    return {
        "update": loop(lambda: optimizer.step(known)),
        "jitted": loop(lambda: optimizer.step(compiled())),
        "eager": loop(eager),
        "whole": loop(brainstate.transform.jit(eager)),
    }


def fitopt_loops(task: Task, steps: int) -> dict[str, Loop]:
    """The same with `fitopt.Optimizer`, and `OptaxOptimizer.run`."""
    adam = optax.adam(_RATE)
    optimizer = Optimizer(adam).init(task.params)
    gradients = jax.grad(task.loss)
    compiled = jax.jit(gradients)
    known = compiled(task.params)

    def loop(step: Callable[[Any, Any], Any]) -> Loop:
        def run() -> Any:
            carry = task.params, optimizer
            for _ in range(steps):
                carry = step(*carry)
            return jax.block_until_ready(carry[0])

        return run

    def eager(params: Any, optimizer: Any) -> tuple[Any, Any]:
        return optimizer.update(gradients(params), params), optimizer

    def from_compiled(params: Any, optimizer: Any) -> tuple[Any, Any]:
        return optimizer.update(compiled(params), params), optimizer

    parameters = jax.tree.map(lambda x: Parameter("weights", x), task.params)
    fit = OptaxOptimizer(task.loss, adam)
    return {
        "update": loop(lambda params, optimizer: (optimizer.update(known, params), optimizer)),
        "jitted": loop(
            lambda params, optimizer: (optimizer.update(compiled(params), params), optimizer)
        ),
        "eager": loop(eager),
        "whole": loop(jax.jit(eager)),
        "run": lambda: jax.block_until_ready(fit.run(parameters, max_steps=steps)),
    }


GROUPS: dict[str, Callable[[Effort], list[Row]]] = {
    "named": named_optimizers,
    "step": one_at_a_time,
    "braintools": beside_braintools,
}
