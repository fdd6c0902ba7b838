"""A fit that visits a table of losses, entry by entry."""

import jax
import jax.numpy as jnp
import optax

from fitopt import OptaxOptimizer, Parameter

ONE_TO_THE_RIGHT = optax.sgd(1.0)


def run_walk(losses, callbacks, validation=None, optimizer=ONE_TO_THE_RIGHT):
    """Fit a parameter that walks 0, 1, 2, ... over a table of losses, to the table's end.

    `validation` is another table, which the loss returns besides.
    """
    table = jnp.asarray(losses, jnp.float32)
    other = None if validation is None else jnp.asarray(validation, jnp.float32)

    def loss(state):
        x = state["x"]  # the value is the table's, the slope always -1: sgd(1) goes one to the right
        here = jnp.round(x).astype(int)
        value = table[here] + (jax.lax.stop_gradient(x) - x)
        return value if other is None else (value, {"validation": other[here]})

    state = {"x": Parameter("x", 0.0)}
    fit = OptaxOptimizer(loss, optimizer, callbacks, has_aux=other is not None)
    return fit.run(state, len(losses) - 1)
