"""What the named optimizers are made of: parts in a row, and the learning rate that some depend on."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree
from optax.contrib import split_real_and_imaginary
from optax.transforms import PartitionState

from ..transforms.transform import real_dtype

LearningRate = ArrayLike | Callable[[Array], ArrayLike]
Optimizer = optax.GradientTransformationExtraArgs
Part = optax.GradientTransformation | Callable[[Array], optax.GradientTransformation]
Clip = float | None
Betas = tuple[float, float]


class InjectLearningRateState(NamedTuple):
    """The learning rate, and the states of an optimizer's parts.

    >>> from fitopt.optimizers import sgd
    >>> sgd(0.5).init({"x": 3.0}).hyperparams
    {'learning_rate': Array(0.5, dtype=float32)}
    """

    hyperparams: dict[str, Array]  # as in the state of optax.inject_hyperparams
    count: Array | None  # of updates, where a schedule asks for it
    inner_state: PyTree


def compose(lr: LearningRate, clip: Sequence[Part], *parts: Part) -> Optimizer:
    """The parts in a row; those that depend on the learning rate are functions of it."""
    schedule = lr if callable(lr) else None
    if schedule is None:
        number("lr", lr, expected="a number or a schedule")

    def build(rate: Array) -> Optimizer:
        made = [part(rate) if callable(part) else part for part in (*clip, *parts)]
        return optax.with_extra_args_support(optax.chain(*made))

    def init(params: Any) -> Any:
        count = jnp.zeros((), jnp.int32)
        now = lr if schedule is None else schedule(count)
        rate = jnp.asarray(now, real_dtype(jnp.result_type(float, *jax.tree.leaves(params))))
        count = None if schedule is None else count
        return InjectLearningRateState({"learning_rate": rate}, count, build(rate).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        rate, count = jnp.asarray(state.hyperparams["learning_rate"]), state.count
        if schedule is not None:
            rate, count = jnp.asarray(schedule(count), rate.dtype), count + 1
        updates, inner = build(rate).update(updates, state.inner_state, params, **extra)
        return updates, InjectLearningRateState({"learning_rate": rate}, count, inner)

    return Optimizer(init, update)


def scale_by_rate(rate: Array) -> optax.GradientTransformation:
    """Times -η, each leaf in its own precision."""
    scale = lambda u: -rate.astype(real_dtype(u.dtype)) * u
    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


def learning_rate(state: PyTree) -> Any:
    """The learning rate of the last update; with `groups`, a dict by pattern.

    `state` is an optimizer's state. What `optax.inject_hyperparams` keeps there is found too.

    **Raises:** `ValueError` if there is none.

    >>> from fitopt.optimizers import adam, learning_rate
    >>> print(learning_rate(adam(0.5).init({"x": 3.0})))
    0.5
    """
    for node in jax.tree.leaves(state, is_leaf=_holds_rate):
        if isinstance(node, PartitionState):
            return {k: learning_rate(x) for k, x in node.inner_states.items() if has_rate(x)}
        if _holds_rate(node):
            return node.hyperparams["learning_rate"]
    raise ValueError("this optimizer state holds no learning rate; those of fitopt.optimizers do")


def set_learning_rate(state: PyTree, lr: ArrayLike | Mapping[str, ArrayLike]) -> PyTree:
    """An optimizer's state with another learning rate; with `groups`, one for all, or a dict by pattern.

    The state of many fits at once, made under `vmap`, holds an array of rates: give one number for all,
    or an array of that shape.

    **Raises:** `ValueError` where there is none, where a schedule sets it, and for an unknown pattern;
    `TypeError` and `ValueError` for what is no learning rate.

    >>> from fitopt.optimizers import adam, learning_rate, set_learning_rate
    >>> state = adam(0.5).init({"x": 3.0})
    >>> print(learning_rate(set_learning_rate(state, 0.25)))
    0.25
    """
    current = learning_rate(state)
    if isinstance(lr, Mapping):
        known = list(current) if isinstance(current, dict) else []
        if unknown := [label for label in lr if label not in known]:
            raise ValueError(f"no groups {unknown} with a learning rate; there are {known}")

    def change(node: Any) -> Any:
        if isinstance(node, PartitionState):
            rates = lr if isinstance(lr, Mapping) else dict.fromkeys(current, lr)
            new = {k: set_learning_rate(node.inner_states[k], rate) for k, rate in rates.items()}
            return node._replace(inner_states={**node.inner_states, **new})
        if not _holds_rate(node):
            return node
        scheduled = isinstance(node, InjectLearningRateState) and node.count is not None
        if scheduled or "learning_rate" in getattr(node, "hyperparams_states", ()):
            raise ValueError(
                "a schedule sets this learning rate; make the optimizer with a number instead"
            )
        old = jnp.asarray(node.hyperparams["learning_rate"])
        new = jnp.broadcast_to(jnp.asarray(number("lr", lr, shape=old.shape), old.dtype), old.shape)
        return node._replace(hyperparams={**node.hyperparams, "learning_rate": new})

    return jax.tree.map(change, state, is_leaf=_holds_rate)


def _holds_rate(x: Any) -> bool:
    return isinstance(x, PartitionState) or "learning_rate" in getattr(x, "hyperparams", ())


def has_rate(state: PyTree) -> bool:
    return any(_holds_rate(x) for x in jax.tree.leaves(state, is_leaf=_holds_rate))


# --- parts ---


def clip(norm: Clip, value: Clip) -> list[optax.GradientTransformation]:
    parts = []
    if norm is not None:
        parts.append(optax.clip_by_global_norm(positive("grad_clip_norm", norm)))
    if value is not None:
        parts.append(split_real_and_imaginary(optax.clip(positive("grad_clip_value", value))))
    return parts


def decayed(weight_decay: float) -> optax.GradientTransformation:
    if is_zero(number("weight_decay", weight_decay)):
        return optax.identity()
    return optax.add_decayed_weights(weight_decay)


def trace(momentum: float, nesterov: bool = False) -> optax.GradientTransformation:
    if not is_zero(fraction("momentum", momentum)):
        return optax.trace(momentum, nesterov)
    if nesterov:
        raise ValueError("nesterov needs a momentum above 0")
    return optax.identity()


def relative_step(count: Array) -> Array:
    return jnp.minimum(1e-2, 1 / jnp.sqrt(count + 1))


def line_search(linesearch: Any) -> optax.GradientTransformation:
    if linesearch is None:
        return optax.identity()
    if linesearch == "zoom":
        return optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
    if linesearch == "backtracking":  # from 1 each time, whatever the last step was
        return optax.scale_by_backtracking_linesearch(
            30, decrease_factor=0.5, increase_factor=jnp.inf, store_grad=True
        )
    if isinstance(linesearch, optax.GradientTransformation):
        return linesearch
    raise ValueError(
        f'linesearch must be "zoom", "backtracking", None or one of optax, got {linesearch!r}'
    )


class _RpropState(NamedTuple):
    sizes: PyTree  # of the steps, in units of the learning rate
    signs: PyTree  # of the last gradient; 0 where the sign had turned


def scale_by_rprop(minus: float, plus: float, low: Array, high: Array) -> optax.GradientTransformation:
    # optax.scale_by_rprop applies each step one update late (0.2.8).
    def init(params: Any) -> _RpropState:
        return _RpropState(optax.tree.ones_like(params), optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _RpropState]:
        def resize(g: Array, last: Array, size: Array) -> Array:
            factor = jnp.where(g * last > 0, plus, minus).astype(size.dtype)
            new = jnp.clip(size * factor, low.astype(size.dtype), high.astype(size.dtype))
            return jnp.where(g * last == 0, size, new)

        sizes = jax.tree.map(resize, updates, state.signs, state.sizes)
        signs = jax.tree.map(
            lambda g, last: jnp.where(g * last < 0, 0, jnp.sign(g)), updates, state.signs
        )
        return jax.tree.map(jnp.multiply, sizes, signs), _RpropState(sizes, signs)

    return split_real_and_imaginary(optax.GradientTransformation(init, update))


def with_an_axis(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Numbers as vectors of one entry: optax' SM3 takes none without an axis."""

    def init(params: Any) -> Any:
        return inner.init(jax.tree.map(jnp.atleast_1d, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        raised, state = inner.update(jax.tree.map(jnp.atleast_1d, updates), state)
        return jax.tree.map(lambda u, like: u.reshape(like.shape), raised, updates), state

    return optax.GradientTransformation(init, update)


# --- checks of arguments ---


def number(
    name: str,
    x: Any,
    low: float = 0.0,
    high: float = math.inf,
    expected: str = "a number",
    shape: tuple[int, ...] = (),
) -> Any:
    """`x`, if it is a number in [low, high), or an array of them of this shape, or traced."""
    array = x if isinstance(x, Tracer) else np.asarray(x)
    real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    if array.shape not in ((), shape) or not real:
        expected += f" or an array of shape {shape}" if shape else ""
        raise TypeError(f"{name} must be {expected}, got {x!r}")
    if isinstance(x, Tracer):
        return x
    if not np.all((low <= array) & (array < high)):
        bounds = f"at least {low:g} and finite" if high == math.inf else f"in [{low:g}, {high:g})"
        raise ValueError(f"{name} must be {bounds}, got {x!r}")
    return x


def is_zero(x: Any) -> bool:
    """Whether it is known to be 0: a traced number is not."""
    return not isinstance(x, Tracer) and x == 0


def positive(name: str, x: Any) -> Any:
    if is_zero(number(name, x)):
        raise ValueError(f"{name} must be positive, got {x!r}")
    return x


def fraction(name: str, x: Any) -> Any:
    return number(name, x, high=1.0)


def small(eps: Any) -> Any:
    return number("eps", eps)


def whole(name: str, x: Any) -> int:
    try:
        number = operator.index(x)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {x!r}") from None
    if isinstance(x, bool) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {x!r}")
    return number


def two(name: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {pair!r}")
    return pair[0], pair[1]


def two_betas(betas: Betas) -> tuple[float, float]:
    b1, b2 = two("betas", betas)
    return fraction("betas[0]", b1), fraction("betas[1]", b2)
