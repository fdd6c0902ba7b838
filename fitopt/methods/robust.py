"""Robust losses: functions that bend residuals so that large ones count less.

With z = (r/C)², `scipy.optimize.least_squares` minimises half the sum of C² ρ(z). C √ρ with the sign of
r is a residual whose square is just that; so least-squares solvers need not know.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

RobustLoss = Callable[[Float[Array, "*n"]], Float[Array, "*n"]] | None


def _bent(
    ratio: Callable[[Array], Array], slope: float, far: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """r ↦ √ρ with the sign of r.

    Given are ρ(z)/z for z = r² up to 1, its `slope` at 0, and ρ as a function of |r| from 1 on: neither
    it nor its derivatives may overflow where r does not. An infinite residual stays infinite.
    """

    def bend(r: Array) -> Array:
        large = jnp.abs(r) > 1
        inner = jnp.where(large, 1.0, r)
        outer = jnp.where(large & jnp.isfinite(r), jnp.abs(r), 1.0)
        z = jnp.square(inner)
        near = z < jnp.finfo(r.dtype).eps ** 0.5
        inside = inner * jnp.sqrt(jnp.where(near, 1.0 + slope * z, ratio(jnp.where(near, 1.0, z))))
        outside = jnp.sign(r) * jnp.sqrt(far(outer))
        return jnp.where(large, jnp.where(jnp.isfinite(r), outside, r), inside)

    return bend


LOSSES: dict[str, RobustLoss] = {
    # ρ(z) = z
    "linear": None,
    # ρ(z) = 2 (√(1 + z) - 1)
    "soft_l1": _bent(
        lambda z: 2.0 / (jnp.sqrt(1.0 + z) + 1.0),
        slope=-1 / 4,
        far=lambda r: 2.0 * (r * jnp.sqrt(1.0 + r**-2) - 1.0),
    ),
    # ρ(z) = z up to 1, then 2 √z - 1
    "huber": _bent(jnp.ones_like, slope=0.0, far=lambda r: 2.0 * r - 1.0),
    # ρ(z) = ln(1 + z)
    "cauchy": _bent(
        lambda z: jnp.log1p(z) / z,
        slope=-1 / 2,
        far=lambda r: 2.0 * jnp.log(r) + jnp.log1p(r**-2),
    ),
    # ρ(z) = arctan z
    "arctan": _bent(
        lambda z: jnp.arctan(z) / z,
        slope=0.0,
        far=lambda r: jnp.pi / 2 - jnp.arctan(r**-2),
    ),
}
