"""What the named optimizers are made of: parts in a row, and the learning rate that some depend on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array
from optax.contrib import split_real_and_imaginary
from optax.transforms import PartitionState

from ..state import PyTree
from ..transforms.transform import real_dtype
from .arguments import fraction, is_zero, number, one_of, positive

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


def compose(lr: LearningRate, grad_clip_norm: Clip, grad_clip_value: Clip, *parts: Part) -> Optimizer:
    """Clipping and the parts in a row; those that depend on the learning rate are functions of it."""
    parts = (*clip(grad_clip_norm, grad_clip_value), *parts)
    schedule = lr if callable(lr) else None
    if schedule is None:
        number("lr", lr, expected="a number or a schedule")

    def build(rate: Array) -> Optimizer:
        made = [part(rate) if callable(part) else part for part in parts]
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
    return known_rate(_find_rate(state))


def set_learning_rate(state: PyTree, learning_rate: ArrayLike | Mapping[str, ArrayLike]) -> PyTree:
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
    current, new = known_rate(_find_rate(state)), learning_rate
    if isinstance(new, Mapping):
        known = [*current] if isinstance(current, Mapping) else []
        if unknown := [label for label in new if label not in known]:
            raise ValueError(f"no groups {unknown} with a learning rate; there are {known}")

    def change(node: Any) -> Any:
        if isinstance(node, PartitionState):
            with_rate = {k: x for k, x in node.inner_states.items() if has_rate(x)}
            rates: Mapping[Any, Any] = new if isinstance(new, Mapping) else dict.fromkeys(with_rate, new)
            changed = {k: set_learning_rate(x, rates[k]) for k, x in with_rate.items() if k in rates}
            return node._replace(inner_states={**node.inner_states, **changed})
        if not _holds_rate(node):
            return node
        scheduled = isinstance(node, InjectLearningRateState) and node.count is not None
        if scheduled or "learning_rate" in getattr(node, "hyperparams_states", ()):
            raise ValueError(
                "a schedule sets this learning rate; make the optimizer with a number instead"
            )
        old = jnp.asarray(node.hyperparams["learning_rate"])
        rate = jnp.asarray(number("learning_rate", new, shape=old.shape), old.dtype)
        return node._replace(
            hyperparams={**node.hyperparams, "learning_rate": jnp.broadcast_to(rate, old.shape)}
        )

    return jax.tree.map(change, state, is_leaf=_holds_rate)


def has_rate(state: PyTree) -> bool:
    """Whether an optimizer's state holds its learning rate."""
    return _find_rate(state) is not None


def known_rate(rate: PyTree | None, who: str = "") -> PyTree:
    """A learning rate, or for None the one error that says that there is none; `who` wants to know."""
    if rate is None:
        raise ValueError(
            f"{who}: " * bool(who) + "the state of this optimizer holds no learning rate; "
            "use one of fitopt.optimizers, or optax.inject_hyperparams"
        )
    return rate


def _find_rate(state: PyTree) -> PyTree | None:
    for node in jax.tree.leaves(state, is_leaf=_holds_rate):
        if isinstance(node, PartitionState):
            found = {label: _find_rate(inner) for label, inner in node.inner_states.items()}
            if known := {label: rate for label, rate in found.items() if rate is not None}:
                return known
        elif _holds_rate(node):
            return node.hyperparams["learning_rate"]
    return None


def _holds_rate(x: Any) -> bool:
    return isinstance(x, PartitionState) or "learning_rate" in getattr(x, "hyperparams", ())


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
    if isinstance(linesearch, optax.GradientTransformation):
        return linesearch
    if not isinstance(linesearch, str):
        raise TypeError(f"linesearch must be a string, None or one of optax, got {linesearch!r}")
    if one_of("linesearch", linesearch, ("zoom", "backtracking")) == "zoom":
        return optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
    return optax.scale_by_backtracking_linesearch(  # from 1 each time, whatever the last step was
        30, decrease_factor=0.5, increase_factor=jnp.inf, store_grad=True
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
