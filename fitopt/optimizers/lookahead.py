"""`lookahead`, and the parameters that a fit with it, or with averaging, returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from ..state import PyTree
from .arguments import fraction, is_zero, positive, whole
from .composition import Clip, Optimizer, clip
from .groups import merge, restrict, without_names
from .line_search import forget


class LookaheadState(NamedTuple):
    """The state of `lookahead`.

    **Arguments:**

    - `slow`: the slow weights, which a fit returns.
    - `fast_state`: the state of `base_optimizer`.
    - `steps_since_sync`: a counter.

    >>> from fitopt.optimizers import lookahead, sgd
    >>> lookahead(sgd(0.1)).init({"x": 3.0}).slow
    {'x': Array(3., dtype=float32, weak_type=True)}
    """

    slow: PyTree
    fast_state: PyTree
    steps_since_sync: Array


def lookahead(
    base_optimizer: optax.GradientTransformation,
    sync_period: int = 5,
    alpha: float = 0.5,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Lookahead: every `sync_period` updates of `base_optimizer`, s ← s + a (x - s) and x ← s.

    The loss sees the fast weights x, which `base_optimizer` moves (it holds the learning rate); `run`
    returns the slow weights s, which start where x does. a is `alpha`, above 0 and at most 1.

    Zhang et al., Lookahead optimizer: k steps forward, 1 step back, arXiv:1907.08610.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> optimizer = optimizers.lookahead(optimizers.sgd(0.1))
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizer)
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=150)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    if not isinstance(base_optimizer, optax.GradientTransformation):
        raise TypeError(
            f"base_optimizer must be an optimizer such as optimizers.adam(1e-3), got {base_optimizer!r}"
        )
    sync_period = whole("sync_period", sync_period)
    if not is_zero(1.0 - positive("alpha", alpha)):
        fraction("alpha", alpha)
    clipped = optax.chain(*clip(grad_clip_norm, grad_clip_value), base_optimizer)

    def init(params: Any) -> LookaheadState:
        return LookaheadState(
            jax.tree.map(jnp.asarray, params), clipped.init(params), jnp.zeros((), jnp.int32)
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("lookahead needs the parameters: update(grads, state, params)")
        updates, fast_state = clipped.update(updates, state.fast_state, params, **extra)
        count = state.steps_since_sync + 1
        synced = count == sync_period

        def sync() -> tuple[Any, Any]:
            ahead = lambda s, x, u: (s + alpha * (x + u - s)).astype(s.dtype)
            slow = jax.tree.map(ahead, state.slow, params, updates)
            return slow, jax.tree.map(lambda s, x, u: (s - x).astype(u.dtype), slow, params, updates)

        slow, updates = jax.lax.cond(synced, sync, lambda: (state.slow, updates))
        fast_state = forget(fast_state, synced)
        return updates, LookaheadState(slow, fast_state, jnp.where(synced, 0, count))

    return Optimizer(init, update)


def evaluation_params(state: PyTree, params: PyTree) -> PyTree:
    """What a fit hands to the user: the parameters at which to evaluate, given an optimizer's state.

    The slow weights where `lookahead` is part of the optimizer, the averaged ones with
    `optax.contrib.schedule_free`, each for its parameter group, and else `params` themselves.

    >>> from fitopt.optimizers import adam, evaluation_params, lookahead
    >>> state = lookahead(adam(0.1)).init({"x": 3.0})
    >>> evaluation_params(state, {"x": 2.8})
    {'x': Array(3., dtype=float32, weak_type=True)}
    """
    kinds = LookaheadState | ScheduleFreeState
    state = without_names(state)
    for node in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(node, LookaheadState):
            params = merge(node.slow, params)
        elif isinstance(node, ScheduleFreeState):
            params = merge(schedule_free_eval_params(node, restrict(params, node.z)), params)
    return params
