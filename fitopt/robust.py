"""Robust losses: functions that bend residuals so that large ones count less.

With z = (r/C)², `scipy.optimize.least_squares` minimises half the sum of C² ρ(z). C √ρ with the sign of
r is a residual whose square is just that; so least-squares solvers need not know.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

RobustLoss = Callable[[Float[Array, "*n"]], Float[Array, "*n"]] | None


def _bent(ratio: Callable[[Array], Array], slope: float) -> Callable[[Array], Array]:
    """r ↦ r √(ρ(r²)/r²), given ρ(z)/z away from 0, and 1 + `slope` z for it near 0."""

    def bend(r: Array) -> Array:
        z = jnp.square(r)
        near = z < jnp.finfo(r.dtype).eps ** 0.5
        safe = jnp.where(near, 1.0, z)
        return r * jnp.sqrt(jnp.where(near, 1.0 + slope * z, ratio(safe)))

    return bend


def _huber(r: Array) -> Array:
    large = jnp.abs(r) > 1
    safe = jnp.where(large, jnp.abs(r), 1.0)
    return jnp.where(large, jnp.sign(r) * jnp.sqrt(2.0 * safe - 1.0), r)


def _soft_l1(r: Array) -> Array:
    return r * jnp.sqrt(2.0 / (jnp.sqrt(1.0 + jnp.square(r)) + 1.0))


LOSSES: dict[str, RobustLoss] = {
    "linear": None,  # ρ(z) = z
    "soft_l1": _soft_l1,  # ρ(z) = 2 (√(1 + z) - 1)
    "huber": _huber,  # ρ(z) = z up to 1, then 2 √z - 1
    "cauchy": _bent(lambda z: jnp.log1p(z) / z, -1 / 2),  # ρ(z) = ln(1 + z)
    "arctan": _bent(lambda z: jnp.arctan(z) / z, 0.0),  # ρ(z) = arctan z
}
