"""`Keys`: a fresh random key at each step."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from ..optimizers.arguments import whole
from .source import Source


def seed_of(name: str, seed: Any) -> UInt32[np.ndarray, ""]:
    """A seed as an array: so another one is no other program."""
    whole_seed = whole(f"{name}: seed", seed, 0)
    if whole_seed >= 2**32:
        raise ValueError(f"{name}: seed must be less than 2**32, got {seed!r}")
    return np.array(whole_seed, np.uint32)


class Keys(Source):
    """A fresh random key at each step: for dropout, noise and Monte Carlo estimates of a loss.

    The batch of step i is `jax.random.fold_in(jax.random.key(seed), i)`.

    **Arguments:**

    - `seed`: an integer from which all keys follow.

    **Raises:** `TypeError` for a seed that is no integer; `ValueError` for one below 0 or above 2³² - 1.

    >>> import jax, optax
    >>> from fitopt import Keys, OptaxOptimizer, Parameter
    >>> def loss(state, key):
    ...     return (state["x"] - 2 + 0.1 * jax.random.normal(key)) ** 2
    >>> fit = OptaxOptimizer(loss, optax.sgd(0.1))
    >>> fitted, _ = fit.run({"x": Parameter("x", 1.0)}, max_steps=100, batches=Keys(seed=0))
    >>> print(f"{fitted['x']:.1f}")
    2.0
    """

    seed: UInt32[np.ndarray, ""] = eqx.field(converter=lambda seed: seed_of("Keys", seed))

    def draw(self, step: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.key(self.seed), step)
