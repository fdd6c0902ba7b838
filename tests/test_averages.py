"""Optimizers whose result is not where they evaluate the loss: the user gets the result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import KeepBest
from fitopt.optimizers import adam, groups, lbfgs, lookahead, sgd

from .conftest import quadratic


def slow_and_fast(steps, rate=0.1, period=5, size=0.5):
    """The two sequences of lookahead over gradient descent on (x - 1)², from 3."""
    slow = fast = 3.0
    for step in range(1, steps + 1):
        fast -= rate * 2 * (fast - 1.0)
        if step % period == 0:
            slow = fast = slow + size * (fast - slow)
    return slow, fast


@pytest.mark.parametrize("steps", [3, 5, 13])
@pytest.mark.parametrize("mode", ["rev", "fwd"])
def test_lookahead_returns_the_slow_weights_and_their_loss(parabola, steps, mode):
    fitted, history = OptaxOptimizer(quadratic, lookahead(sgd(0.1))).run(parabola, steps, mode)
    slow, fast = slow_and_fast(steps - 1)
    assert history["loss"][-1] == pytest.approx((fast - 1) ** 2, rel=1e-5)
    slow, _ = slow_and_fast(steps)
    assert float(fitted["x"]) == pytest.approx(slow, rel=1e-6)
    assert history["final_loss"] == pytest.approx((slow - 1) ** 2, rel=1e-5)


def test_lookahead_inside_jit_is_the_same(parabola):
    optimizer = OptaxOptimizer(quadratic, lookahead(sgd(0.1)))
    fitted, history = optimizer.run(parabola, 13)
    jitted, traced = jax.jit(lambda: optimizer.run(parabola, 13))()
    assert float(jitted["x"]) == pytest.approx(float(fitted["x"]), rel=1e-6)
    assert float(traced["final_loss"]) == pytest.approx(history["final_loss"], rel=1e-5)


def test_keep_best_still_returns_the_least_loss_of_all(parabola):
    _, history = OptaxOptimizer(quadratic, lookahead(sgd(0.1)), KeepBest()).run(parabola, 13)
    assert history["final_loss"] == pytest.approx(min(history["loss"]))


def test_schedule_free_returns_its_evaluation_parameters(parabola):
    optimizer = optax.contrib.schedule_free_sgd(0.3)
    fitted, history = OptaxOptimizer(quadratic, optimizer).run(parabola, 40)
    x, state = jnp.array(3.0), optimizer.init(jnp.array(3.0))
    for _ in range(40):
        updates, state = optimizer.update(2 * (x - 1), state, x)
        x = optax.apply_updates(x, updates)
    expected = optax.contrib.schedule_free_eval_params(state, x)
    np.testing.assert_allclose(fitted["x"], expected, rtol=1e-5)
    assert history["final_loss"] == pytest.approx(float((expected - 1) ** 2), rel=1e-3, abs=1e-10)


def test_groups_go_by_the_names_of_parameters():
    state = {"a": Parameter("rate", 3.0), "b": [Parameter("offset", 3.0), Parameter("shift", 3.0)]}
    loss = lambda s: (s["a"] - 1) ** 2 + (s["b"][0] - 1) ** 2 + (s["b"][1] - 1) ** 2
    optimizer = groups({"rate": sgd(0.1), "b/1": None, "off*": sgd(0.2)})
    fitted, _ = OptaxOptimizer(loss, optimizer).run(state, 4)
    values = [float(fitted["a"]), *map(float, fitted["b"])]
    np.testing.assert_allclose(values, [1 + 2 * 0.8**4, 1 + 2 * 0.6**4, 3.0], rtol=1e-6)


def test_a_line_search_in_a_group_works_through_run():
    state = {"a": Parameter("a", jnp.array([3.0, -2.0])), "b": Parameter("b", 3.0)}
    loss = lambda s: jnp.sum((s["a"] - 1) ** 4) + (s["b"] - 1) ** 2
    optimizer = OptaxOptimizer(loss, groups({"a": lbfgs()}, default=adam(0.1)))
    fitted, history = optimizer.run(state, 200)
    assert history["final_loss"] < 1e-5
    np.testing.assert_allclose(fitted["a"], 1.0, atol=0.1)
