"""Each projection of optax keeps a fit in its set."""

import jax
import jax.numpy as jnp
import optax
import pytest

from fitopt import OptaxOptimizer, values

from ..conftest import close
from .options import projected
from .problem import parameters
from .projections import AIM, PROJECTIONS
from .table import exported


def distance(params):
    return sum(jnp.sum((params[name] - AIM[name]) ** 2) for name in AIM)


def by_hand(project, start, steps):
    """Projected gradient descent, as in textbooks."""
    for _ in range(steps):
        grads = jax.grad(distance)(start)
        start = project({name: start[name] - 0.1 * grads[name] for name in start})
    return start


@pytest.mark.parametrize("name", [name for name in PROJECTIONS if name in exported()])
def test_projected_gradient_descent_is_that_of_textbooks(name):
    project = jax.jit(PROJECTIONS[name])
    start = project({name: jnp.ones_like(x) for name, x in AIM.items()})
    optimizer = optax.chain(optax.sgd(0.1), projected(PROJECTIONS[name]))
    fitted, history = OptaxOptimizer(distance, optimizer).run(parameters(start), 20)
    reached = values(fitted)
    # x + (y - x) is y but for the last bits
    close(reached, by_hand(project, start, 20), rtol=1e-5, atol=1e-5)
    close(reached, project(reached), rtol=1e-5, atol=1e-5)
    assert 0.1 < history["final_loss"] < history["loss"][0]


def test_a_callback_can_project_too():
    project = jax.jit(PROJECTIONS["projections.projection_simplex"])
    start = project({name: jnp.ones_like(x) for name, x in AIM.items()})

    def callback(step, diff_state, static_state, *_):
        inside = project(values(diff_state))
        edited = {name: diff_state[name].replace(value=inside[name]) for name in AIM}
        return False, edited, static_state

    fitted, _ = OptaxOptimizer(distance, optax.sgd(0.1), callback).run(parameters(start), 5)
    close(values(fitted), by_hand(project, start, 5), rtol=1e-5, atol=1e-5)
