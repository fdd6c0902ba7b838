"""Value and gradient of a loss, in reverse and in forward mode; matrices of linear maps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..parameter.complex_numbers import from_real, to_real
from ..state import PyTree

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
        def with_value(real: PyTree) -> tuple[Array, tuple[Array, Any]]:
            value, aux = function(from_real(real, x))
            return value, (value, aux)

        try:
            grads, value_and_aux = jax.jacfwd(with_value, has_aux=True)(to_real(x))
        except (TypeError, NotImplementedError) as error:
            if "jvp) to a custom_vjp" in str(error) or "'custom_lin'" in str(error):
                raise ValueError(
                    "the loss contains a jax.custom_vjp (diffrax' default adjoint is one), which "
                    'forward mode cannot differentiate; call run(..., mode="rev")'
                ) from error
            raise
        return value_and_aux, from_real(grads, x)

    return run


def along_basis(product: Callable[[Array], Array], n: int, dtype: np.dtype) -> Float[Array, "n *output"]:
    """A linear map applied to the n unit vectors, many at a time."""
    column = lambda i: product(jax.nn.one_hot(i, n, dtype=dtype))
    if n <= _AT_ONCE:
        return jax.vmap(column)(jnp.arange(n))
    return jax.lax.map(column, jnp.arange(n), batch_size=_AT_ONCE)
