"""`OptaxOptimizer.run` against loops written by hand, and closed forms."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import OptaxOptimizer, Parameter
from fitopt.engine.records import MOST_STEPS

from .conftest import close, counted_compilations, decay_loss, hand_written, quadratic

STACKED = (optax.adam(1e-2), optax.sgd(optax.exponential_decay(0.1, 100, 0.5), momentum=0.9))


@pytest.mark.parametrize(
    "optimizer",
    [
        *STACKED,
        optax.MultiSteps(optax.adam(1e-2), 4).gradient_transformation(),
        optax.apply_if_finite(optax.adam(1e-2), 3),
        optax.polyak_sgd(),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=5)),
        optax.chain(optax.clip_by_global_norm(0.1), optax.lamb(1e-2)),
    ],
    ids=["adam", "sgd", "MultiSteps", "apply_if_finite", "polyak", "plateau", "lamb"],
)
def test_the_trajectory_is_that_of_a_hand_written_loop(decay, optimizer):
    params, losses = hand_written(decay_loss, optimizer, fitopt.values(decay), 200)
    fitted, history = OptaxOptimizer(decay_loss, optimizer).run(decay, 200)
    # To the last bit where leaves are not stacked; XLA rounds in another order where they are.
    tolerance = 2e-6 if optimizer in STACKED else 0
    np.testing.assert_allclose(history["loss"], losses, rtol=tolerance)
    for name in params:
        np.testing.assert_allclose(fitted[name].value, params[name], rtol=5 * tolerance)


def test_adafactor_follows_a_hand_written_loop_to_rounding(decay):  # its means depend on XLA's fusions
    _, losses = hand_written(decay_loss, optax.adafactor(1e-2), fitopt.values(decay), 200)
    _, history = OptaxOptimizer(decay_loss, optax.adafactor(1e-2)).run(decay, 200)
    np.testing.assert_allclose(history["loss"], losses, rtol=2e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    ],
    ids=["lbfgs", "backtracking-stored", "backtracking"],
)
def test_line_searches_follow_a_hand_written_loop(decay, optimizer):
    _, losses = hand_written(decay_loss, optimizer, fitopt.values(decay), 12)
    _, history = OptaxOptimizer(decay_loss, optimizer).run(decay, 12)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-4)


def test_a_line_search_does_not_compute_value_and_gradient_again():
    evaluations = []

    def loss(state):
        jax.debug.callback(lambda: evaluations.append(1))
        return jnp.sum(state["x"] ** 2)

    # A full gradient step of 0.5 lands in the minimum: the search accepts its first trial.
    search = optax.scale_by_backtracking_linesearch(15, store_grad=True)
    state = {"x": Parameter("x", jnp.array([1.0, 2.0]))}
    OptaxOptimizer(loss, optax.chain(optax.sgd(0.5), search)).run(state, 3)
    jax.effects_barrier()
    # One at the start, and one or two (value, then gradient) for the trial of each of the steps and
    # of the evaluation after them; without reuse there would be one more for each.
    assert len(evaluations) <= 1 + 2 * 4


def test_forward_mode_gives_the_same_fit(decay):
    _, reverse = OptaxOptimizer(decay_loss, optax.adam(1e-2)).run(decay, 100)
    _, forward = OptaxOptimizer(decay_loss, optax.adam(1e-2)).run(decay, 100, mode="fwd")
    np.testing.assert_allclose(forward["loss"], reverse["loss"], rtol=1e-4)


def steps_of_halving(state):
    """x / 2ⁿ by a loop whose end reverse mode cannot know: a quarter of x, if x is about 4."""
    halve = lambda carry: (carry[0] + 1, carry[1] / 2)
    _, y = jax.lax.while_loop(lambda carry: carry[0] < 2, halve, (0, state["x"]))
    return (y - 1.0) ** 2


def test_forward_mode_fits_through_a_while_loop():
    fitted, _ = OptaxOptimizer(steps_of_halving, optax.sgd(4.0)).run(
        {"x": Parameter("x", 0.0)}, 60, mode="fwd"
    )
    assert float(fitted["x"]) == pytest.approx(4.0, rel=1e-4)


def test_reverse_mode_through_a_while_loop_says_to_use_forward_mode():
    with pytest.raises(ValueError, match='mode="fwd"'):
        OptaxOptimizer(steps_of_halving, optax.sgd(1.0)).run({"x": Parameter("x", 0.0)}, 5)


@pytest.mark.parametrize("mode", ["rev", "fwd"])
@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.adam(0.1), optax.lbfgs()],
    ids=["sgd", "adam", "lbfgs"],
)
def test_complex_parameters_descend(mode, optimizer):
    target = jnp.array([0.5 - 0.25j, -1.0 + 2.0j])
    state = {"z": Parameter("z", jnp.array([1 + 2j, 3 - 1j]))}
    loss = lambda state: jnp.sum(jnp.abs(state["z"] - target) ** 2)
    fitted, _ = OptaxOptimizer(loss, optimizer).run(state, 600, mode=mode)
    np.testing.assert_allclose(fitted["z"].value, target, atol=1e-4)


def test_complex_sgd_is_the_hand_written_loop_with_conjugate_gradients():
    loss = lambda state: jnp.sum(jnp.abs(state["z"] ** 2 - (1 + 1j)) ** 2)
    state = {"z": Parameter("z", jnp.array([1 + 0.3j]))}
    _, losses = hand_written(loss, optax.sgd(0.02), fitopt.values(state), 50)
    _, history = OptaxOptimizer(loss, optax.sgd(0.02)).run(state, 50)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_losses_belong_to_the_parameters_before_each_update(parabola):
    fitted, history = OptaxOptimizer(quadratic, optax.sgd(0.1)).run(parabola, 10)
    distances = 2.0 * 0.8 ** np.arange(11)
    np.testing.assert_allclose(history["loss"], distances[:-1] ** 2, rtol=1e-5)
    assert history["final_loss"] == pytest.approx(distances[-1] ** 2, rel=1e-5)
    assert float(fitted["x"]) == pytest.approx(1.0 + distances[-1], rel=1e-6)


def test_the_final_loss_is_what_the_next_step_would_record(decay):
    optimizer = OptaxOptimizer(decay_loss, optax.adam(1e-2))
    _, short = optimizer.run(decay, 50)
    _, longer = optimizer.run(decay, 51)
    assert short["final_loss"] == float(longer["loss"][-1])


def test_history_says_what_a_fit_has_done(parabola):
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1)).run(parabola, 10)
    assert history["n_steps"] == 10 and len(history["loss"]) == 10
    assert history["best_step"] == 9 and history["best_loss"] == float(history["loss"][9])
    assert "max_steps" in history["stop_reason"]
    assert history["elapsed"] > 0
    np.testing.assert_array_equal(history.steps("loss"), np.arange(10))


def test_no_steps_return_the_state_as_it_is_and_its_loss(decay):
    fitted, history = OptaxOptimizer(decay_loss, optax.adam(1e-2)).run(decay, 0)
    assert fitted is decay
    assert history["n_steps"] == 0 and history["loss"].shape == (0,)
    assert history["final_loss"] == pytest.approx(float(decay_loss(fitopt.values(decay))), rel=1e-6)


def test_fixed_parameters_and_other_leaves_stay_what_they_are():
    def loss(state):
        assert state["n"] == 2 and isinstance(state["n"], int)
        assert state["flag"] is True and state["name"] == "model"
        return (state["function"](state["x"]) - state["offset"]) ** state["n"]

    offset = Parameter("offset", 0.25, free=False)
    state = {
        "x": Parameter("x", 0.5),
        "offset": offset,
        "n": 2,
        "flag": True,
        "name": "model",
        "function": jnp.tanh,
        "nothing": None,
    }
    fitted, _ = OptaxOptimizer(loss, optax.sgd(0.5)).run(state, 100)
    assert float(fitted["x"]) == pytest.approx(np.arctanh(0.25), rel=1e-4)
    assert fitted["offset"].value is offset.value and not fitted["offset"].free
    assert {k: fitted[k] for k in ("n", "flag", "name", "function", "nothing")} == {
        "n": 2,
        "flag": True,
        "name": "model",
        "function": jnp.tanh,
        "nothing": None,
    }


class Pair(NamedTuple):
    left: Parameter
    right: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    p: Parameter
    q: jax.Array


class Model(eqx.Module):
    weight: Parameter
    label: str = eqx.field(static=True)

    def __call__(self, x):
        return self.weight * x


@pytest.mark.parametrize(
    ("state", "predict"),
    [
        ([Parameter("w", 0.0), 2.0], lambda s: s[0] * s[1]),
        ((Parameter("w", 0.0),), lambda s: 2.0 * s[0]),
        (Pair(Parameter("w", 0.0), 2.0), lambda s: s.left * s.right),
        (Data(Parameter("w", 0.0), jnp.array(2.0)), lambda s: s.p * s.q),
        (Model(Parameter("w", 0.0), "line"), lambda s: s(2.0)),
        ({"a": [{"b": Model(Parameter("w", 0.0), "line")}]}, lambda s: s["a"][0]["b"](2.0)),
        (Parameter("w", 0.0), lambda s: 2.0 * s),
    ],
    ids=["list", "tuple", "NamedTuple", "dataclass", "Equinox", "nested", "bare"],
)
def test_any_pytree_can_be_fitted(state, predict):
    optimizer = OptaxOptimizer(lambda state: (predict(state) - 3.0) ** 2, optax.sgd(0.1))
    fitted, _ = optimizer.run(state, 60)
    assert type(fitted) is type(state)
    assert float(predict(fitted)) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize(
    ("bounds", "optimum", "expected"),
    [
        ({"lower": 0.0}, -1.0, 0.0),
        ({"upper": 2.0}, 3.0, 2.0),
        ({"lower": 0.0, "upper": 5.0}, 4.0, 4.0),
        ({"lower": 0.0, "scale": 100.0}, 250.0, 250.0),
        ({"scale": 100.0}, 250.0, 250.0),
    ],
)
def test_bounded_and_scaled_parameters_find_the_constrained_optimum(bounds, optimum, expected):
    scale = bounds.get("scale", 1.0)
    state = {"x": Parameter("x", 1.0, **bounds)}
    loss = lambda state: ((state["x"] - optimum) / scale) ** 2
    fitted, history = OptaxOptimizer(loss, optax.adam(0.05)).run(state, 2000)
    assert float(fitted["x"]) == pytest.approx(expected, abs=0.01 * scale)
    assert bounds.get("lower", -np.inf) <= float(fitted["x"]) <= bounds.get("upper", np.inf)


@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.sgd(0.1)], ids=["adam", "sgd"])
def test_a_fit_that_starts_on_a_bound_is_not_stuck(start, optimizer):
    state = {"x": Parameter("x", start, lower=0.0, upper=5.0)}
    fitted, _ = OptaxOptimizer(lambda s: (s["x"] - 2.0) ** 2, optimizer).run(state, 3000)
    assert float(fitted["x"]) == pytest.approx(2.0, abs=1e-2)


def test_masked_entries_stay_bit_identical():
    start = jnp.array([0.1, 0.2, 0.3], jnp.float32)
    state = {"x": Parameter("x", start, lower=0.0, mask=jnp.array([True, False, True]))}
    optimizer = optax.adamw(0.05, weight_decay=0.1)
    fitted, _ = OptaxOptimizer(lambda s: jnp.sum((s["x"] - 1.0) ** 2), optimizer).run(state, 50)
    assert fitted["x"][1] == start[1]
    assert bool(jnp.all(fitted["x"][jnp.array([0, 2])] != start[jnp.array([0, 2])]))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_survive_the_run(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        state = {"x": Parameter("x", jnp.array(3.0, dtype), lower=0)}
        fitted, history = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.adam(0.1)).run(state, 5)
        assert fitted["x"].dtype == dtype and history["loss"].dtype == dtype


def test_integer_values_are_fitted_as_floats():
    fitted, _ = OptaxOptimizer(lambda s: (s["n"] - 2.5) ** 2, optax.sgd(0.1)).run(
        {"n": Parameter("n", 3)}, 100
    )
    assert float(fitted["n"]) == pytest.approx(2.5)


def test_a_second_run_on_new_data_of_the_same_shape_compiles_nothing(decay):
    optimizer = OptaxOptimizer(decay_loss, optax.adam(1e-2), fitopt.callbacks.KeepBest())
    data = jnp.ones(40)
    optimizer.run({**decay, "data": data}, 20)
    other = {name: p.replace(value=float(p) + 0.1) for name, p in decay.items()}
    more, still_more = data + 1, data + 2
    with counted_compilations() as compiled:
        optimizer.run({**other, "data": more}, 30)
        optimizer.run({**other, "data": still_more}, 1)
    assert compiled == []


def test_floats_are_traced_and_ints_are_not():
    optimizer = OptaxOptimizer(lambda s: s["a"] * s["x"] ** s["n"], optax.sgd(0.1))
    state = {"x": Parameter("x", 1.0), "a": 1.0, "n": 2}
    optimizer.run(state, 2)
    with counted_compilations() as compiled:
        optimizer.run({**state, "a": 2.0}, 2)
    assert compiled == []
    with counted_compilations() as compiled:
        optimizer.run({**state, "n": 4}, 2)
    assert compiled != []


def test_aux_data_may_be_any_pytree(parabola):
    loss = lambda state: (quadratic(state), {"residual": state["x"] - state["target"], "n": 3})
    seen = []
    callback = lambda step, diff, static, history, aux, value, grads: seen.append(aux)
    OptaxOptimizer(loss, optax.sgd(0.1), callback, has_aux=True).run(parabola, 3)
    np.testing.assert_allclose([aux["residual"] for aux in seen], 2 * 0.8 ** np.arange(3), rtol=1e-6)


def test_the_callers_arrays_are_left_alone(decay):
    before = jax.tree.map(np.array, decay)
    OptaxOptimizer(decay_loss, optax.adam(1e-2)).run(decay, 5)
    jax.tree.map(np.testing.assert_array_equal, decay, before)


def test_stretches_of_any_length_give_the_same_fit(decay):
    visits = lambda every: type(
        "Visit", (), {"every": every, "__call__": lambda self, *arguments: None}
    )()
    _, free = OptaxOptimizer(decay_loss, optax.adam(1e-2)).run(decay, 100)
    for every in (1, 7, 50):
        _, visited = OptaxOptimizer(decay_loss, optax.adam(1e-2), visits(every)).run(decay, 100)
        np.testing.assert_array_equal(visited["loss"], free["loss"])


def test_fits_longer_than_a_stretch_lose_no_step(parabola):
    steps = 3 * MOST_STEPS + 5
    optimizer = OptaxOptimizer(quadratic, optax.sgd(1e-5), fitopt.callbacks.RecordParameters(every=1000))
    _, history = optimizer.run(parabola, steps)
    assert history["loss"].shape == (steps,)
    close(history["loss"][::1000], 4 * (1 - 2e-5) ** (2 * np.arange(0, steps, 1000)), rtol=1e-2)
    np.testing.assert_array_equal(history.steps("parameters"), np.arange(0, steps, 1000))
    expected = 1 + np.sqrt(history["loss"][::1000])
    np.testing.assert_allclose(history["parameters"]["x"], expected, rtol=1e-5)
