"""`trainable`: the arrays of a module as Parameters."""

from typing import Any, TypeVar

import equinox as eqx
import jax

from .parameter import Parameter

Tree = TypeVar("Tree")


def trainable(module: Tree) -> Tree:
    """A module, or any pytree, with its real and complex floating arrays as free Parameters.

    They are named after their places, such as `layers/0/weight`; all else stays as it is. The loss gets
    the module with plain arrays, so it can call it.

    >>> import equinox as eqx, jax, optax
    >>> from fitopt import OptaxOptimizer, trainable
    >>> model = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    >>> def loss(model):
    ...     x = jax.numpy.linspace(0.0, 1.0, 20)[:, None]
    ...     return jax.numpy.mean((jax.vmap(model)(x) - 2 * x) ** 2)
    >>> fitted, history = OptaxOptimizer(loss, optax.adam(0.1)).run(trainable(model), 500)
    >>> print(f"{fitted.weight[0, 0]:.2f}")
    2.00
    """

    def parameter(x: Any) -> Any:
        if isinstance(x, Parameter) or not eqx.is_inexact_array(x):
            return x
        return Parameter(x)

    return jax.tree.map(parameter, module, is_leaf=lambda x: isinstance(x, Parameter))
