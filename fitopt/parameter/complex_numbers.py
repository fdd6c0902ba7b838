"""Complex arrays as real ones: optimizers, matrices and tables know real numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def to_real(tree: Any) -> Any:
    """A pytree with real leaves: a complex one becomes its real and imaginary parts, stacked.

    >>> to_real(jnp.array(1 + 2j)).tolist()
    [1.0, 2.0]
    """
    split = lambda x: jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x
    return jax.tree.map(split, tree)


def from_real(tree: Any, like: Any) -> Any:
    """The inverse of `to_real`; `like` says which leaves are complex."""
    join = lambda x, y: jax.lax.complex(x[0], x[1]) if jnp.iscomplexobj(y) else x
    return jax.tree.map(join, tree, like)


def joined(real: Float[np.ndarray, "*shape"], imag: Float[np.ndarray, "*shape"]) -> np.ndarray:
    """Complex numbers of their parts; by `real + 1j * imag` those with an infinite part would be NaN.

    >>> joined(np.array(1.0), np.array(np.inf))
    array(1.+infj)
    """
    numbers = np.empty(np.shape(real), complex)
    numbers.real, numbers.imag = real, imag
    return numbers
