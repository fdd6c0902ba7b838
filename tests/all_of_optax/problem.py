"""The small fit that every optimizer runs: a vector and a matrix, eight examples, twenty steps."""

import jax
import jax.numpy as jnp
import numpy as np

from fitopt import Parameter

STEPS = 20
_random = np.random.default_rng(0)
INPUTS = jnp.asarray(_random.normal(size=(8, 4)), jnp.float32)
TARGETS = jnp.sin(INPUTS.sum(1))
START = {
    "v": jnp.array([0.5, -0.5, 1.0], jnp.float32),
    "W": jnp.asarray(0.5 * _random.normal(size=(4, 3)), jnp.float32),
}


def example_loss(params, x, y):
    """The loss of one example."""
    return (jnp.tanh(x @ params["W"]) @ params["v"] - y) ** 2


def loss(params):
    """The mean over the examples."""
    return jnp.mean(jax.vmap(example_loss, (None, 0, 0))(params, INPUTS, TARGETS))


def rough_loss(params):
    """`loss`, but the gradient of the first entry of v is NaN once that is above 0.7."""
    return loss(params) + 0.1 * jnp.sqrt(jnp.maximum(0.7 - params["v"][0], 0.0))


def parameters(values):
    """The same tree with each leaf a Parameter, named after its path."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree.map_with_path(lambda path, x: Parameter(name(path), x), values)
