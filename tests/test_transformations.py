"""`run` inside `jit`, `vmap` and `grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Callback, History, OptaxOptimizer, Parameter
from fitopt.callbacks import EarlyStopping, KeepBest, PrintLoss, RecordParameters, StopOnLoss

from .conftest import decay_loss, quadratic

ADAM = optax.adam(0.05)


def start(target):
    return {"x": Parameter("x", 3.0, lower=0.0), "target": target}


def test_inside_jit_a_fit_has_the_same_result():
    callbacks = [StopOnLoss(1e-2), KeepBest(), RecordParameters(every=4)]
    optimizer = OptaxOptimizer(quadratic, ADAM, callbacks)
    fitted, history = optimizer.run(start(1.0), 100)
    jitted, traced = jax.jit(lambda target: optimizer.run(start(target), 100))(1.0)
    n = history["n_steps"]
    assert isinstance(traced, History) and int(traced["n_steps"]) == n < 100
    assert isinstance(jitted["x"], Parameter) and jitted["x"].lower == 0
    np.testing.assert_allclose(jitted["x"], fitted["x"], rtol=1e-6)
    np.testing.assert_allclose(traced["loss"][:n], history["loss"], rtol=1e-5)
    assert traced["loss"].shape == (100,) and np.isnan(traced["loss"][n:]).all()
    for key in ("final_loss", "best_loss"):
        assert float(traced[key]) == pytest.approx(history[key], rel=1e-5)
    assert int(traced["best_step"]) == history["best_step"]
    records = len(history["parameters"]["x"])
    np.testing.assert_allclose(
        traced["parameters"]["x"][:records], history["parameters"]["x"], rtol=1e-6
    )
    assert "stop_reason" not in traced and "elapsed" not in traced


def test_inside_vmap_each_lane_stops_by_itself():
    optimizer = OptaxOptimizer(quadratic, optax.sgd(0.1), [StopOnLoss(0.5), KeepBest()])
    state = lambda target: {"x": Parameter("x", 3.0), "target": target}
    run = lambda target: optimizer.run(state(target), 60)
    targets = jnp.array([2.9, 1.0, -2.0])
    fitted, histories = jax.vmap(run)(targets)
    for lane, target in enumerate(targets):
        alone, history = run(float(target))
        assert int(histories["n_steps"][lane]) == history["n_steps"]
        np.testing.assert_allclose(fitted["x"].value[lane], alone["x"].value, rtol=1e-6)
        assert float(histories["final_loss"][lane]) == pytest.approx(history["final_loss"], rel=1e-5)


def unrolled(optimizer, loss, x, steps):
    state = optimizer.init(x)
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
    return x


@pytest.mark.parametrize("optimizer", [ADAM, optax.sgd(0.1)], ids=["adam", "sgd"])
def test_the_derivative_with_respect_to_data_is_that_of_an_unrolled_loop(optimizer):
    state = lambda target: {"x": Parameter("x", 3.0), "target": target}
    fit = OptaxOptimizer(quadratic, optimizer)
    fitted = lambda target: fit.run(state(target), 20)[0]["x"].value
    by_hand = lambda target: unrolled(optimizer, lambda x: (x - target) ** 2, jnp.array(3.0), 20)
    np.testing.assert_allclose(jax.grad(fitted)(1.0), jax.grad(by_hand)(1.0), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(fitted)(1.0), jax.grad(by_hand)(1.0), rtol=1e-5)


def test_the_derivative_with_respect_to_a_hyperparameter_the_optimizer_closes_over():
    def fitted(rate):
        state = {"x": Parameter("x", 3.0), "target": 1.0}
        return OptaxOptimizer(quadratic, optax.sgd(rate)).run(state, 20)[0]["x"].value

    exact = lambda rate: 1 + 2 * (1 - 2 * rate) ** 20
    np.testing.assert_allclose(jax.grad(fitted)(0.1), jax.grad(exact)(0.1), rtol=1e-4)


def test_the_derivative_with_respect_to_data_the_loss_closes_over():
    def fitted(target):
        loss = lambda state: (state["x"] - target) ** 2
        return OptaxOptimizer(loss, optax.sgd(0.1)).run({"x": Parameter("x", 3.0)}, 20)[0]["x"].value

    np.testing.assert_allclose(jax.grad(fitted)(1.0), 1 - 0.8**20, rtol=1e-5)
    exact = 3 + (np.arange(3) - 3) * (1 - 0.8**20)
    np.testing.assert_allclose(jax.vmap(fitted)(jnp.arange(3.0)), exact, rtol=1e-5)


def test_the_derivative_with_respect_to_the_starting_value():
    def fitted(x):
        return (
            OptaxOptimizer(quadratic, optax.sgd(0.1))
            .run({"x": Parameter("x", x), "target": 1.0}, 20)[0]["x"]
            .value
        )

    np.testing.assert_allclose(jax.grad(fitted)(3.0), 0.8**20, rtol=1e-5)


def test_the_derivative_after_an_early_stop_is_that_of_the_steps_made():
    fit = OptaxOptimizer(quadratic, optax.sgd(0.1), StopOnLoss(4 * 0.64**5 * 1.001))
    fitted = lambda target: fit.run({"x": Parameter("x", 3.0), "target": target}, 50)[0]["x"].value
    np.testing.assert_allclose(jax.grad(fitted)(1.0), 1 - 0.8**6, rtol=1e-5)


def test_keep_best_inside_jit_returns_the_best_state():
    # Steps of 1.5 overshoot further and further: the first state is the best.
    optimizer = OptaxOptimizer(quadratic, optax.sgd(1.5), KeepBest())
    fitted, history = jax.jit(lambda x: optimizer.run({"x": Parameter("x", x), "target": 1.0}, 5))(1.5)
    assert float(fitted["x"]) == 1.5 and float(history["final_loss"]) == 0.25


def test_inside_jit_a_loss_that_becomes_nan_ends_at_the_last_good_state():
    loss = lambda state: jnp.where(state["x"] < 1.1, jnp.nan, state["x"] ** 2)
    optimizer = OptaxOptimizer(loss, optax.sgd(0.1))
    run = lambda x: optimizer.run({"x": Parameter("x", x)}, 50)
    with pytest.warns(RuntimeWarning, match="last good"):
        fitted, history = run(3.0)
    jitted, traced = jax.jit(run)(3.0)
    assert float(jitted["x"]) == float(fitted["x"]) >= 1.1
    assert int(traced["n_steps"]) == history["n_steps"]
    assert float(traced["final_loss"]) == pytest.approx(history["final_loss"])


def test_forward_mode_inside_jit():
    optimizer = OptaxOptimizer(quadratic, ADAM)
    run = lambda mode: jax.jit(lambda target: optimizer.run(start(target), 20, mode)[1]["loss"])(1.0)
    np.testing.assert_allclose(run("fwd"), run("rev"), rtol=1e-5)


def test_a_host_callback_inside_jit_is_a_clear_error():
    optimizer = OptaxOptimizer(quadratic, ADAM, [EarlyStopping(3), PrintLoss()])
    with pytest.raises(TypeError, match="callback PrintLoss runs in Python.*jit, vmap or grad"):
        jax.jit(lambda target: optimizer.run(start(target), 5)[1]["loss"])(1.0)


def test_finish_is_for_the_host_alone():
    class Host(Callback):
        def finish(self, history, carry):
            history["finished"] = float(history["final_loss"])

    optimizer = OptaxOptimizer(quadratic, ADAM, Host())
    assert "finished" in optimizer.run(start(1.0), 2)[1]
    assert "finished" not in jax.jit(lambda t: optimizer.run(start(t), 2)[1])(1.0)


def test_no_steps_inside_jit(decay):
    optimizer = OptaxOptimizer(decay_loss, ADAM)
    state, history = jax.jit(lambda state: optimizer.run(state, 0))(decay)
    expected = float(decay_loss(fitopt.values(decay)))
    assert float(history["final_loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(state["A"]) == float(decay["A"])


def test_a_fitted_state_passes_through_jit_and_vmap_as_it_is(decay):
    fitted, _ = OptaxOptimizer(decay_loss, ADAM).run(decay, 5)
    same = jax.jit(lambda state: state)(fitted)
    assert jax.tree.structure(same) == jax.tree.structure(fitted)
    losses = jax.vmap(lambda a: decay_loss({**fitopt.values(fitted), "A": a}))(jnp.arange(3.0))
    assert losses.shape == (3,)
