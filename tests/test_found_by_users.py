"""What users have stumbled over, each with what they should see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fitopt
from fitopt import LeastSquares, OptaxOptimizer, Parameter
from fitopt.callbacks import KeepBest


def parabola(state):
    return jnp.sum((state["x"] - 1.0) ** 2)


START = {"x": Parameter("x", 3.0)}


def test_a_fit_runs_inside_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    shift = jnp.arange(2.0)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec("i")
    )
    def fit(targets):
        loss = lambda s: jnp.sum((s["x"] - targets) ** 2)
        state = {"x": Parameter("x", jnp.zeros_like(targets))}
        return OptaxOptimizer(loss, optax.sgd(0.5)).run(state, 3)[0]["x"].value

    np.testing.assert_allclose(jax.jit(fit)(shift), shift)


def test_a_callback_may_return_another_random_key():
    def loss(state):
        return parabola(state) + 0.0 * jax.random.normal(state["key"])

    keys = []

    def split(step, diff_state, static_state, *rest):
        key = jax.random.split(static_state["key"])[0]
        keys.append(key)
        return False, diff_state, {**static_state, "key": key}

    fitted, _ = OptaxOptimizer(loss, optax.sgd(0.1), split).run(START | {"key": jax.random.key(0)}, 3)
    assert len(keys) == 3 and fitted["key"] == keys[-1]


def test_a_callback_that_returns_something_else_for_a_key_is_told_so():
    wrong = lambda step, free, fixed, *rest: (False, free, {**fixed, "key": jnp.zeros(2)})
    with pytest.raises(TypeError, match="not as a key"):
        OptaxOptimizer(parabola, optax.sgd(0.1), wrong).run(START | {"key": jax.random.key(0)}, 3)


def test_the_best_state_keeps_its_sharding():
    sharding = NamedSharding(
        jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,)), PartitionSpec("i")
    )
    start = {"x": Parameter("x", jax.device_put(jnp.array([3.0, 2.0]), sharding))}
    fitted, history = OptaxOptimizer(parabola, optax.sgd(1.2), KeepBest()).run(start, 3)
    assert history["final_loss"] == history["best_loss"]
    assert fitted["x"].value.sharding == sharding


@pytest.mark.parametrize(
    "make", [lambda f: OptaxOptimizer(f, optax.sgd(0.1)), LeastSquares], ids=["loss", "residuals"]
)
def test_numpy_in_a_loss_is_an_error_that_says_jax_numpy(make):
    with pytest.raises(TypeError, match=r"hands a traced array to NumPy: write jax\.numpy"):
        make(lambda state: np.exp(state["x"])).run(START, 1)


def test_a_loss_that_has_reverse_mode_alone_says_so_in_forward_mode():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    fit = OptaxOptimizer(lambda s: (square(s["x"]), s["x"]), optax.sgd(0.1), has_aux=True)
    with pytest.raises(
        ValueError, match=r'forward mode cannot differentiate; call run\(..., mode="rev"'
    ):
        fit.run(START, 1, mode="fwd")


def test_a_scalar_loss_is_not_taken_for_residuals():
    state = {"x": Parameter("x", [3.0, 2.0])}
    with pytest.raises(ValueError, match=r"a single number, for 2 .* fitopt.OptaxOptimizer\(loss"):
        LeastSquares(parabola).run(state)


def test_one_parameter_in_two_places_is_refused():
    p = Parameter("p", 1.0)
    with pytest.raises(ValueError, match="more than once: to share it, keep it in one place"):
        OptaxOptimizer(lambda s: s["a"] + s["b"], optax.sgd(0.1)).run({"a": p, "b": p}, 1)


def test_fits_run_where_ranks_must_not_be_promoted():
    state = {
        "x": Parameter("x", [3.0, 2.0], lower=0.0, upper=10.0),
        "y": Parameter("y", 1.0, scale=2.0, mask=True),
    }
    residuals = lambda s: jnp.concatenate([s["x"] - jnp.array([1.0, 4.0]), s["y"][None] - 2.0])
    with jax.numpy_rank_promotion("raise"):
        for fit in (
            LeastSquares(residuals),
            OptaxOptimizer(lambda s: jnp.sum(residuals(s) ** 2), fitopt.LBFGSB(1e-5)),
        ):
            fitted, _ = fit.run(state)
            np.testing.assert_allclose(fitted["x"], [1.0, 4.0], rtol=1e-4)
        OptaxOptimizer(lambda s: jnp.sum(residuals(s) ** 2), optax.adam(0.1)).run(state, 2)


def test_a_vmapped_start_outside_its_bounds_fails_alone():
    fit = OptaxOptimizer(parabola, optax.sgd(0.25))

    def run(x):
        state, history = fit.run({"x": Parameter("x", x, lower=0.0, upper=5.0)}, 20)
        return state["x"].value, history["final_loss"], history["n_steps"]

    values, losses, steps = jax.jit(jax.vmap(run))(jnp.array([2.0, -1.0, 9.0]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])
    np.testing.assert_array_equal(np.isnan(values), [False, True, True])
    np.testing.assert_array_equal(steps, [20, 0, 0])


@pytest.mark.parametrize("monitor", [None, lambda info: info.loss])
def test_the_best_counts_anew_after_a_callback_has_changed_the_objective(monitor):
    def harder(step, free, fixed, *_):
        return False, free, {**fixed, "target": jnp.array(5.0), "floor": jnp.array(1.0)}

    loss = lambda s: (s["x"] - s["target"]) ** 2 + s["floor"]
    start = {"x": Parameter("x", 0.5), "target": jnp.array(0.0), "floor": jnp.array(0.0)}
    only_once = fitopt.callbacks.every(1000, harder)
    optimizer = OptaxOptimizer(loss, optax.sgd(0.25), [only_once, KeepBest(monitor=monitor)])
    fitted, history = optimizer.run(start, 40)
    assert float(fitted["x"]) == pytest.approx(5.0) and history["final_loss"] == pytest.approx(1.0)
