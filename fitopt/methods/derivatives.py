"""Value and gradient of a loss, in reverse and in forward mode; matrices of linear maps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

MODES = ("rev", "fwd")

# So many directions at once: enough to keep the processor busy, few enough to bound the memory.
_AT_ONCE = 128


def value_and_gradient(
    function: Callable[[PyTree], tuple[Array, Any]], mode: str
) -> Callable[[PyTree], tuple[tuple[Array, Any], PyTree]]:
    """Differentiate a function that returns `(value, aux)` with respect to its argument.

    The gradient points uphill: for a complex leaf it is the conjugate of what `jax.grad` gives, so
    that a step against it descends. Forward mode takes value and gradient in one pass, one tangent
    for each real number in the argument; it also differentiates `lax.while_loop`.

    >>> f = value_and_gradient(lambda x: (jnp.sum(x**2), None), "fwd")
    >>> f(jnp.array([1.0, 2.0]))
    ((Array(5., dtype=float32), None), Array([2., 4.], dtype=float32))
    """
    return _forward(function) if mode == "fwd" else _reverse(function)


def _reverse(function: Callable) -> Callable:
    value_and_grad = jax.value_and_grad(function, has_aux=True)

    def run(x: PyTree) -> tuple[tuple[Array, Any], PyTree]:
        try:
            value, grads = value_and_grad(x)
        except ValueError as error:
            if "Reverse-mode differentiation does not work" in str(error):
                raise ValueError(
                    "the loss contains a lax.while_loop (or a fori_loop whose bounds are traced), "
                    'which reverse mode cannot differentiate; call run(..., mode="fwd")'
                ) from error
            raise
        return value, jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)

    return run


def _forward(function: Callable) -> Callable:
    def run(x: PyTree) -> tuple[tuple[Array, Any], PyTree]:
        leaves, treedef = jax.tree.flatten(x)
        # The real numbers in x, leaf by leaf; a complex leaf has its real parts, then its imaginary.
        counts = [leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in leaves]
        offsets = np.cumsum([0, *counts])

        def tangent(leaf: Array, one_hot: Array) -> Array:
            parts = one_hot.reshape(-1, *leaf.shape)
            tangent = parts[0] + 1j * parts[1] if jnp.iscomplexobj(leaf) else parts[0]
            return tangent.astype(leaf.dtype)

        def along(direction: Array) -> tuple[Array, Array, Any]:
            pieces = [direction[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
            tangents = jax.tree.unflatten(treedef, [*map(tangent, leaves, pieces)])
            return jax.jvp(function, (x,), (tangents,), has_aux=True)

        basis = jnp.eye(int(offsets[-1]), dtype=jnp.finfo(leaves[0].dtype).dtype)
        value, slopes, aux = jax.vmap(along, out_axes=(None, 0, None))(basis)
        grads = [
            tangent(leaf, slopes[a:b])
            for leaf, a, b in zip(leaves, offsets[:-1], offsets[1:], strict=True)
        ]
        return (value, aux), jax.tree.unflatten(treedef, grads)

    return run


def along_basis(product: Callable[[Array], Array], n: int, dtype: np.dtype) -> Float[Array, "n *output"]:
    """A linear map applied to the n unit vectors, many at a time."""
    batches = -(-n // _AT_ONCE)
    size = -(-n // batches)

    def batch(first: Array) -> Array:
        indices = first + jnp.arange(size)
        return jax.vmap(lambda i: product(jax.nn.one_hot(i, n, dtype=dtype)))(indices)

    if batches == 1:
        return batch(jnp.zeros((), int))
    rows = jax.lax.map(batch, size * jnp.arange(batches))
    return rows.reshape(-1, *rows.shape[2:])[:n]
