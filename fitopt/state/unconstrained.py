"""`unconstrained`: the free Parameters of a state as a sampler sees them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..parameter.complex_numbers import to_real
from .layout import flatten
from .parameter_vector import Block, ParameterVector
from .trees import PyTree

Position = dict[str, Array]  # by the names of the free Parameters


class Unconstrained(NamedTuple):
    """The free Parameters of a state on the whole real line, where bounds and transforms are no concern.

    - `position`: for the name of each free Parameter its unconstrained value, real, in its shape; where
        a mask or equal bounds fix some entries, a vector of the others; of a complex one its real and
        imaginary parts along an axis in front
    - `to_state(position)`: the state with the values that belong to a position
    - `log_det_jacobian(position)`: the logarithm of the volume of values over that of positions: what a
        density by value gains when it is taken by position
    """

    position: Position
    to_state: Callable[[Mapping[str, Any]], PyTree]
    log_det_jacobian: Callable[[Mapping[str, Any]], Float[Array, ""]]


def unconstrained(state: PyTree) -> Unconstrained:
    """The free Parameters of a state by unconstrained value: what samplers move.

    **Arguments:**

    - `state`: any state with a free Parameter. A value on a bound, which has no unconstrained value, is
        taken a tenth of the width, or of the scale, inside.

    **Returns:** `(position, to_state, log_det_jacobian)`, an `Unconstrained`. Its functions can be
    traced, and raise `ValueError` for a position with other names or shapes.

    **Raises:** `ValueError` if nothing is free.

    >>> import fitopt
    >>> state = {"rate": fitopt.Parameter("rate", 2.0, lower=0), "n": 3}
    >>> view = fitopt.unconstrained(state)
    >>> print(f"{view.position['rate']:.4f}")
    1.8546
    >>> view.to_state({"rate": 0.0})
    {'n': 3, 'rate': Parameter('rate', 0.6931472, lower=0)}
    >>> print(f"{view.log_det_jacobian({'rate': 0.0}):.4f}")
    -0.6931
    """
    flat = flatten(state)
    if not flat.free:
        raise ValueError("nothing in the state is free, so it has no unconstrained values")
    blocks = dict(zip(flat.layout.names, ParameterVector.of(flat.layout, flat.free).blocks, strict=True))
    position = {
        name: _numbers(block, block.to_position(jnp.asarray(value)))
        for (name, block), value in zip(blocks.items(), flat.free, strict=True)
    }

    def unraveled(given: Mapping[str, Any]) -> list[Array]:
        if set(given) != set(position):
            raise ValueError(f"position must have {', '.join(position)}; it has {', '.join(given)}")
        for name, numbers in position.items():
            if jnp.shape(given[name]) != numbers.shape:
                raise ValueError(
                    f"position: {name!r} must have shape {numbers.shape}, got {jnp.shape(given[name])}"
                )
        return [block.step(jnp.ravel(given[name])) for name, block in blocks.items()]

    def to_state(position: Mapping[str, Any]) -> PyTree:
        triples = zip(blocks.values(), unraveled(position), flat.free, strict=True)
        values = [block.to_value(x, value) for block, x, value in triples]
        return flat.layout.state(values, flat.fixed)

    def log_det_jacobian(position: Mapping[str, Any]) -> Array:
        pairs = zip(blocks.values(), unraveled(position), strict=True)
        return sum((_log_det(block, x) for block, x in pairs), jnp.zeros(()))

    return Unconstrained(position, to_state, log_det_jacobian)


def _numbers(block: Block, position: Array) -> Array:
    reals = to_real(position)
    return reals if block.moved.size == reals.size else reals.ravel()[block.moved]


def _log_det(block: Block, position: Array) -> Array:
    log_det = block.transform.log_det_jacobian(position)
    if not block.transform.elementwise:
        return jnp.sum(log_det)
    fitted = True if block.spec.fitted is None else block.spec.fitted
    # A complex number counts twice: its real and its imaginary part are stretched alike.
    each = jnp.where(fitted, jnp.broadcast_to(log_det, position.shape), 0)
    return jnp.sum(each) * (1 + block.is_complex)
