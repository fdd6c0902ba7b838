"""Each optimizer, transformation and wrapper of optax, beside a loop written by hand, to the last bit.

Both do the same arithmetic: the Parameters have no bounds, so coordinates are values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, values

from ..conftest import hand_written
from .problem import START, STEPS, loss, parameters, rough_loss
from .schedules import SCHEDULES
from .table import LOWEST, MENDED, exported, version
from .transformations import ROUGH, TRANSFORMATIONS

STILL = {"set_to_zero"}


def known(names):
    """Those that the installed optax has, and not broken."""
    installed = version(optax.__version__)
    mended = lambda name: version(MENDED.get(name, LOWEST)) <= installed
    return [name for name in names if name in exported() and mended(name)]


def assert_same(fitted, history, expected, losses):
    assert history["n_steps"] == len(losses)
    np.testing.assert_array_equal(history["loss"], losses)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), values(fitted), expected)


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", known(TRANSFORMATIONS))
def test_it_runs_as_in_a_loop_by_hand(name):
    optimizer = TRANSFORMATIONS[name]()
    objective = rough_loss if name in ROUGH else loss
    fitted, history = OptaxOptimizer(objective, optimizer).run(parameters(START), STEPS)
    params, losses = hand_written(objective, optimizer, START, STEPS)
    assert_same(fitted, history, params, losses)
    moved = any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.any(x != y)), params, START)))
    assert moved is (name not in STILL)
    assert history["final_loss"] <= losses[0]
    if name in ROUGH:
        assert np.isnan(jax.grad(objective)(params)["v"][0])


@pytest.mark.parametrize(
    "behind",
    [lambda: optax.scale(0.5), lambda: optax.keep_params_nonnegative(), lambda: optax.apply_every(2)],
    ids=["scale", "keep_params_nonnegative", "apply_every"],
)
def test_behind_a_line_search_the_loss_is_that_of_where_the_fit_is(behind):
    optimizer = optax.chain(optax.lbfgs(), behind())
    fitted, history = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    assert_same(fitted, history, *hand_written(loss, optimizer, START, STEPS))


def test_steps_taken_together_may_end_in_a_line_search():
    optimizer = optax.MultiSteps(optax.lbfgs(), 2)
    fitted, history = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    by_hand = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    assert_same(fitted, history, *hand_written(loss, by_hand, START, STEPS))


def test_a_wrapper_for_complex_parameters_gets_them():
    aim = jnp.array([1 + 2j, -0.5j])
    objective = lambda params: jnp.sum(jnp.abs(params["z"] - aim) ** 2)
    optimizer = optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    start = {"z": jnp.array([0.3 - 1j, 2 + 0j])}
    fitted, history = OptaxOptimizer(objective, optimizer).run(parameters(start), STEPS)
    assert_same(fitted, history, *hand_written(objective, optimizer, start, STEPS))


def test_each_schedule_drives_gradient_descent_as_in_a_loop_by_hand():
    names = known(SCHEDULES)
    optimizer = optax.partition(
        {name: optax.sgd(SCHEDULES[name]()) for name in names}, {name: name for name in names}
    )
    objective = lambda params: sum((x - 1.0) ** 2 for x in params.values())
    state = {name: Parameter(name, 3.0) for name in names}
    fitted, history = OptaxOptimizer(objective, optimizer).run(state, STEPS)
    params, losses = hand_written(objective, optimizer, dict.fromkeys(names, jnp.array(3.0)), STEPS)
    assert_same(fitted, history, params, losses)
    for name in names:
        rates = jax.vmap(SCHEDULES[name]())(jnp.arange(STEPS))
        assert float(fitted[name]) == pytest.approx(
            1 + 2 * np.prod(1 - 2 * np.asarray(rates)), abs=1e-5
        ), name
