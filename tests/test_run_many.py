import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Callback, LeastSquares, OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import EarlyStopping, KeepBest, PrintLoss, RecordGradientNorm, StopOnLoss

from .conftest import counted_compilations

T = np.linspace(0.0, 5.0, 30)
Y = 3.0 * np.exp(-0.8 * T) + 0.5 + 0.05 * np.random.default_rng(0).normal(size=T.size)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def residuals(state):
    return state["A"] * jnp.exp(-state["k"] * state["t"]) + state["C"] - state["y"]


def loss(state):
    return jnp.mean(residuals(state) ** 2)


def decays(n, seed=0):
    rng, t, y = np.random.default_rng(seed), jnp.asarray(T), jnp.asarray(Y)
    return [
        {
            "A": Parameter("A", rng.uniform(1, 4)),
            "k": Parameter("k", rng.uniform(0.1, 2), lower=0),
            "C": Parameter("C", rng.uniform(0, 1)),
            "t": t,
            "y": y,
        }
        for _ in range(n)
    ]


def assert_as_run(optimizer, states, fits, *arguments, same=("best_step",)):
    """Each fit is what `run` makes of its state."""
    assert len(fits) == len(states)
    for state, (fitted, history) in zip(states, fits, strict=True):
        expected, wanted = optimizer.run(state, *arguments)
        for name in ("n_steps", "stop_reason", "converged", *same):
            assert history[name] == wanted[name], name
        for name in ("final_loss", "best_loss"):
            np.testing.assert_allclose(history[name], wanted[name], rtol=1e-9)
        assert jax.tree.structure(fitted) == jax.tree.structure(expected)
        free = (jax.tree.leaves(fitopt.partition(state)[0]) for state in (fitted, expected))
        for x, y in zip(*free, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-8)


@pytest.fixture(scope="module")
def adam():
    return OptaxOptimizer(loss, optax.adam(0.1), [EarlyStopping(10, 1e-6), KeepBest()])


@pytest.fixture(scope="module")
def solver():
    return LeastSquares(residuals)


def test_each_fit_is_what_run_makes_of_its_state_whichever_lane_it_comes_to(adam):
    states = decays(11)
    fits = adam.run_many(states, 150, lanes=4)
    assert len({*fits.n_steps.tolist()}) > 4
    assert_as_run(adam, states, fits, 150)


def test_least_squares_fits_are_what_run_makes_of_them(solver):
    states = decays(11, seed=1)
    fits = solver.run_many(states, lanes=4)
    assert fits.converged.all()
    assert_as_run(solver, states, fits)


def test_a_fit_that_cannot_begin_does_not_end_the_others(solver, adam):
    states = decays(4)
    states[1]["k"] = jax.tree.map(jnp.negative, states[1]["k"])
    states[2]["A"] = states[2]["A"].replace(value=jnp.asarray(1e200))
    for optimizer in (solver, adam):
        fits = optimizer.run_many(states, 100, lanes=4)
        assert np.isnan(fits.final_loss).tolist() == [False, True, True, False]
        assert fits.n_steps[1] == fits.n_steps[2] == 0
        for number in (1, 2):
            with pytest.raises(ValueError) as error:
                optimizer.run(states[number], 100)
            assert fits.stop_reason[number] == f"could not begin: {error.value}"
            assert fits[number][0]["A"].value == states[number]["A"].value
    assert_as_run(adam, states[3:], fits[3:], 100)


def test_the_last_good_state_is_returned_where_a_step_goes_wrong():
    broken = lambda state: jnp.where(state["x"] < 1, -jnp.log(1 - state["x"]) - 3 * state["x"], jnp.nan)
    optimizer = OptaxOptimizer(broken, optax.sgd(0.5))
    states = [{"x": Parameter("x", x)} for x in (0.0, 0.5, -2.0, 0.66)]
    fits = optimizer.run_many(states, 40)
    assert "was not finite" in fits.stop_reason[0]
    with pytest.warns(RuntimeWarning):
        assert_as_run(optimizer, states, fits, 40)


def test_an_update_that_is_not_finite_is_told_with_its_gradients():
    root = lambda state: jnp.sqrt(state["x"]) + state["b"] ** 2
    optimizer = OptaxOptimizer(root, optax.sgd(0.5))
    states = [{"x": Parameter("x", x), "b": Parameter("b", 1.0)} for x in (0.0, 1.0)]
    fits = optimizer.run_many(states, 3)
    assert "not finite: the gradients of x" in fits.stop_reason[0]
    with pytest.warns(RuntimeWarning):
        assert_as_run(optimizer, states, fits, 3)


def test_losses_and_records_of_callbacks_are_kept_if_asked():
    optimizer = OptaxOptimizer(loss, optax.adam(0.1), [StopOnLoss(0.01), RecordGradientNorm(every=3)])
    states = decays(5)
    fits = optimizer.run_many(states, 100, lanes=2, record=True)
    assert len({*fits.n_steps.tolist()}) > 1
    for state, (_, history) in zip(states, fits, strict=True):
        _, wanted = optimizer.run(state, 100)
        np.testing.assert_allclose(history["loss"], wanted["loss"], rtol=1e-9)
        np.testing.assert_allclose(history["gradient_norm"], wanted["gradient_norm"], rtol=1e-7)
        assert history.steps("gradient_norm").tolist() == wanted.steps("gradient_norm").tolist()
    assert "loss" not in optimizer.run_many(states[:1], 3)[0][1]


def test_a_fit_that_a_bound_holds_has_not_converged():
    optimizer = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.sgd(0.1), EarlyStopping(3))
    states = [{"x": Parameter("x", x, lower=0, upper=50)} for x in (1e-14, 0.8)]
    fits = optimizer.run_many(states, 500)
    assert fits.converged.tolist() == [False, True]
    with pytest.warns(RuntimeWarning, match="stalled at the bounds of x"):
        assert_as_run(optimizer, states, fits, 500)


def test_without_a_step_states_are_evaluated(adam, solver):
    states = decays(3)
    for optimizer in (adam, solver):
        assert_as_run(optimizer, states, optimizer.run_many(states, 0, lanes=2), 0)


@pytest.mark.parametrize(
    "method",
    [
        optimizers.adam(0.05),
        optax.lbfgs(),
        optax.contrib.schedule_free_sgd(0.1),
        optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)),
    ],
)
def test_any_optimizer_makes_the_same_steps_in_lanes(method):
    optimizer = OptaxOptimizer(loss, method)
    states = decays(3)
    assert_as_run(optimizer, states, optimizer.run_many(states, 12, lanes=2), 12)


class CountSteps(Callback):
    def init(self, info):
        return jnp.zeros((), int)

    def update(self, info, carry):
        return carry + 1, False

    def finish(self, history, carry):
        history["count"] = carry.item()


def test_callbacks_finish_the_history_of_each_fit():
    optimizer = OptaxOptimizer(loss, optax.adam(0.1), [CountSteps(), StopOnLoss(0.05)])
    fits = optimizer.run_many(decays(5), 60, lanes=2)
    assert [history["count"] for _, history in fits] == fits.n_steps.tolist()
    assert len({*fits.n_steps.tolist()}) > 1


def test_minimisers_end_by_themselves():
    optimizer = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-8))
    states = decays(5)
    # The last losses differ by rounding, which is another in lanes.
    assert_as_run(optimizer, states, optimizer.run_many(states, lanes=2), same=())


def test_masks_names_and_static_leaves_stay():
    def objective(state):
        return jnp.sum((state["w"] - state["target"]) ** 2) * state["power"]

    states = [
        {
            "w": Parameter("w", jnp.zeros(3), mask=np.array([True, False, True])),
            "target": jnp.full(3, target),
            "power": 2,
            "name": "x",
        }
        for target in (1.0, 2.0)
    ]
    optimizer = OptaxOptimizer(objective, optax.sgd(0.1))
    fits = optimizer.run_many(states, 50)
    assert_as_run(optimizer, states, fits, 50)
    assert fits[1][0]["name"] == "x"
    assert fits.values("w")[:, 1].tolist() == [0.0, 0.0]


def test_a_second_call_compiles_nothing(adam):
    states = decays(11)
    adam.run_many(states, 20, lanes=4)
    others = decays(10, seed=3)
    with counted_compilations() as compiled:
        adam.run_many(others, 30, lanes=4)
    assert compiled == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"A": Parameter("A", np.ones(2, np.float32))},
            r"A is free Parameter.*state 0, free Parameter 'A', float32\[2\] in state 1",
        ),
        ({"k": Parameter("k", 1.0)}, "k is .*lower=0.* in state 0"),
        ({"extra": 1.0}, "extra is missing in state 0"),
        ({"y": np.ones(5)}, r"y is float64\[30\] in state 0, float64\[5\] in state 1"),
    ],
)
def test_states_that_are_not_alike_are_told_with_what_differs(adam, change, message):
    first, second = decays(2)
    with pytest.raises(ValueError, match=message):
        adam.run_many([first, second | change], 5)


def test_arguments_that_cannot_be_meant_are_errors(adam):
    states = decays(2)
    with pytest.raises(ValueError, match="states is empty"):
        adam.run_many([], 5)
    with pytest.raises(TypeError, match="sequence of states"):
        adam.run_many(states[0], 5)
    with pytest.raises(ValueError, match="lanes must be a positive integer, got 0"):
        adam.run_many(states, 5, lanes=0)
    with pytest.raises(TypeError, match="lanes must be an integer"):
        adam.run_many(states, 5, lanes=2.0)
    with pytest.raises(TypeError, match="devices must be"):
        adam.run_many(states, 5, devices=["cpu"])
    with pytest.raises(ValueError, match="nothing in the state is free"):
        adam.run_many([{"x": 1.0}], 5)
    with pytest.raises(TypeError, match="record must be"):
        adam.run_many(states, 5, record=1)
    with pytest.raises(TypeError, match="PrintLoss.*traced callbacks"):
        OptaxOptimizer(loss, optax.sgd(0.1), PrintLoss()).run_many(states, 5)
    with pytest.raises(TypeError, match="not inside jit"):
        jax.jit(lambda s: adam.run_many([s], 5)[0][1]["final_loss"])(states[0])
