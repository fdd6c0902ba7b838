"""One compiled program that fits again with some elements held at given values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ..methods.levenberg_marquardt import LevenbergMarquardt
from ..state import Layout, ParameterVector

_MOST_STEPS = 500


class Refit(NamedTuple):
    """Where a fit has ended."""

    loss: Any
    values: Any  # of the elements
    converged: Any


def refit_program(
    evaluate: Callable[[Any], tuple[Any, Any]],
    squares: bool,
    vector: ParameterVector,
    layout: Layout,
    mode: str,
) -> Callable[..., Refit]:
    """Compile a fit that starts at the elements `start`, with steps in units of the columns of `axes`.

    `held` says which elements stay at `targets`; it is traced, so that one program does for all. `unit`
    is the rise of the loss that counts as one, and `best` about its least value.
    """

    @jax.jit
    def program(
        free: Sequence[Array],
        fixed: Sequence[Any],
        start: Float[Array, " elements"],
        axes: Float[Array, "displacements displacements"],
        held: Bool[Array, " elements"],
        targets: Float[Array, " elements"],
        unit: Float[Array, ""],
        best: Float[Array, ""],
    ) -> Refit:
        free = vector.with_elements(free, start)
        position, directions = vector.to_position(free), axes / vector.units(free)[:, None]

        def values(steps: Array) -> list[Array]:
            values = vector.from_position(free, position, directions @ steps)
            elements = jnp.where(held, targets, vector.elements(values))
            return vector.with_elements(values, elements)

        def output(steps: Array) -> Array:
            output = evaluate(layout.plain(values(steps), fixed))[0]
            return ravel_pytree(output)[0] if squares else output

        begin = jnp.zeros(axes.shape[1], axes.dtype)
        precision = float(jnp.finfo(start.dtype).eps)
        if squares:
            solution = optx.least_squares(
                lambda steps, _: output(steps) / jnp.sqrt(unit),
                LevenbergMarquardt(rtol=precision**0.5),
                begin,
                options={"jac": "fwd" if mode == "fwd" else "bwd"},
                max_steps=_MOST_STEPS,
                throw=False,
            )
            rise = lambda steps: jnp.sum(jnp.square(output(steps))) / (2 * unit)
        else:
            rise = lambda steps: (output(steps) - best) / (2 * unit)
            solution = optx.minimise(
                lambda steps, _: rise(steps),
                optx.BFGS(rtol=precision**0.5, atol=precision**0.4),
                begin,
                options={"autodiff_mode": "fwd" if mode == "fwd" else "bwd"},
                max_steps=_MOST_STEPS,
                throw=False,
            )
        loss = jnp.sum(jnp.square(output(solution.value))) if squares else output(solution.value)
        # The position of an element on a bound goes on for ever, though nothing changes by that.
        slopes = (jax.jacfwd if mode == "fwd" else jax.grad)(rise)(solution.value)
        is_flat = jnp.max(jnp.abs(slopes)) < precision**0.2
        has_converged = (solution.result == optx.RESULTS.successful) | is_flat
        return Refit(loss, vector.elements(values(solution.value)), has_converged)

    return program
