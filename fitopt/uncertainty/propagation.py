"""How a function of the state changes with the elements, to first order."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..methods.derivatives import along_basis
from ..parameter.complex_numbers import to_real
from ..state import Flat, Layout, ParameterVector, PyTree
from .curvature import first_differentiable

_MOST = 16  # functions whose programs are kept

Program = Callable[[Sequence[Array], Sequence[Any], Array], tuple[PyTree, PyTree]]


class Propagation:
    """Output and its changes along directions, with a compiled program for each function."""

    def __init__(self, vector: ParameterVector):
        self._vector = vector
        self._programs: dict[Any, Program] = {}

    def __call__(
        self,
        fn: Callable[[Any], PyTree],
        flat: Flat,
        directions: Float[np.ndarray, "directions elements"],
        mode: str | None,
    ) -> tuple[PyTree, PyTree]:
        """What `fn` returns, and how it changes; complex leaves change in two parts, stacked."""
        args = flat.free, flat.fixed, jnp.asarray(directions, self._vector.dtype)
        key = fn, flat.layout, mode
        try:
            program = self._programs.get(key)
        except TypeError:  # a function without a hash, such as a module that holds arrays
            key, program = None, None
        if program is None:
            modes = ("fwd", "rev") if mode is None else (mode,)
            make = lambda mode: _program(fn, self._vector, flat.layout, mode)
            _, program = first_differentiable(modes, make, *args)
            if key is not None:
                self._programs[key] = program
                if len(self._programs) > _MOST:
                    del self._programs[next(iter(self._programs))]
        return jax.device_get(program(*args))


def _program(fn: Callable[[Any], PyTree], vector: ParameterVector, layout: Layout, mode: str) -> Program:
    @jax.jit
    def program(
        free: Sequence[Array], fixed: Sequence[Any], directions: Float[Array, "directions elements"]
    ) -> tuple[PyTree, PyTree]:
        def function(changes: Float[Array, " elements"]) -> tuple[PyTree, PyTree]:
            values = vector.with_elements(free, vector.elements(free) + changes)
            output = jax.tree.map(jnp.asarray, fn(layout.plain(values, fixed)))
            return to_real(output), output

        zero = jnp.zeros(len(vector.labels), vector.dtype)
        if mode == "fwd":
            _, push, output = jax.linearize(function, zero, has_aux=True)
            return output, jax.vmap(push)(directions)
        real, pull, output = jax.vjp(function, zero, has_aux=True)
        row, unravel = ravel_pytree(real)
        jacobian = along_basis(lambda row: pull(unravel(row))[0], row.size, row.dtype)
        return output, jax.vmap(unravel)(directions @ jacobian.T)

    return program
