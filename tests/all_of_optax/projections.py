"""Each of optax' projections, onto a set that the minimum of the loss is not in."""

import jax
import jax.numpy as jnp
from optax import projections

AIM = {"a": jnp.array([2.0, -1.0], jnp.float32), "b": jnp.array([0.5, 3.0, -2.0], jnp.float32)}
_DIRECTION = {"a": jnp.array([1.0, 0.5], jnp.float32), "b": jnp.array([-1.0, 2.0, 1.0], jnp.float32)}
_LOWER = jax.tree.map(lambda x: jnp.full_like(x, -1.5), AIM)
_UPPER = jax.tree.map(jnp.ones_like, AIM)

PROJECTIONS = {
    "projections.projection_box": lambda x: projections.projection_box(x, _LOWER, _UPPER),
    "projections.projection_halfspace": lambda x: projections.projection_halfspace(x, _DIRECTION, 1.0),
    "projections.projection_hypercube": lambda x: jax.tree.map(projections.projection_hypercube, x),
    "projections.projection_hyperplane": lambda x: projections.projection_hyperplane(x, _DIRECTION, 1.0),
    "projections.projection_l1_ball": lambda x: projections.projection_l1_ball(x, 2.0),
    "projections.projection_l1_sphere": lambda x: projections.projection_l1_sphere(x, 2.0),
    "projections.projection_l2_ball": lambda x: projections.projection_l2_ball(x, 2.0),
    "projections.projection_l2_sphere": lambda x: projections.projection_l2_sphere(x, 2.0),
    "projections.projection_linf_ball": lambda x: projections.projection_linf_ball(x, 1.5),
    "projections.projection_non_negative": projections.projection_non_negative,
    "projections.projection_simplex": lambda x: projections.projection_simplex(x, 2.0),
    "projections.projection_vector": lambda x: projections.projection_vector(x, _DIRECTION),
}
