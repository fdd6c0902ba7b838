"""One step at a time: `Optimizer` against loops written by hand, and its errors."""

import copy
import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt.stateful import Optimizer

from .conftest import close, counted_compilations, decay_loss

PARAMS = {
    "w": jnp.array([1.0, -2.0], jnp.float32),
    "layers": [jnp.ones((2, 3), jnp.float32), jnp.full((), 0.5, jnp.float32)],
}
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
NOISY = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(1)), ADAM)
MOMENTUM = optax.sgd(0.1, momentum=0.9)
SEARCH = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))


def loss(params):
    w, (a, b) = params["w"], params["layers"]
    return jnp.sum((w - 3) ** 2) + jnp.sum(jnp.cos(a) * b) + b**2


def by_hand(tx, params, steps, loss=loss):
    """The loop that one writes with optax."""

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@jax.jit
def train_step(params, optimizer):
    params = optimizer.update(jax.grad(loss)(params), params)
    return params, optimizer


@jax.jit
def step(params, optimizer):
    return optimizer.update(params, params), optimizer


def train(params, optimizer, steps):
    for _ in range(steps):
        params, optimizer = train_step(params, optimizer)
    return params, optimizer


# Plain arrays, against optax by hand


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1),
        optax.adamw(0.1),
        optax.chain(
            optax.clip_by_global_norm(0.5), optax.adabelief(optax.cosine_decay_schedule(0.1, 5))
        ),
        optax.apply_if_finite(optax.sgd(0.1), 3),
        optax.masked(optax.sgd(0.1), {"w": True, "layers": [True, False]}),
        optax.contrib.schedule_free_adamw(0.1),
    ],
    ids=["sgd", "adamw", "chain", "finite", "masked", "schedule_free"],
)
def test_arrays_move_as_by_hand_to_the_bit(tx):
    params, optimizer = train(PARAMS, Optimizer(tx).init(PARAMS), 8)
    expected, state = by_hand(tx, PARAMS, 8)
    identical(params, expected)
    identical(optimizer.opt_state, state)
    assert optimizer.step_count == 8


@pytest.mark.parametrize("tx", [optax.adamw(0.1), ADAM, fitopt.optimizers.adam(0.1)])
def test_a_traced_step_is_no_larger_than_by_hand(tx):
    def hand(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    ours = jax.make_jaxpr(train_step.__wrapped__)(PARAMS, Optimizer(tx).init(PARAMS)).jaxpr
    theirs = jax.make_jaxpr(hand)(PARAMS, tx.init(PARAMS)).jaxpr
    assert len(ours.eqns) == len(theirs.eqns)
    assert (len(ours.invars), len(ours.outvars)) == (len(theirs.invars), len(theirs.outvars))


def test_multi_steps_and_skipped_steps_are_counted():
    optimizer = Optimizer(optax.MultiSteps(optax.adam(0.1), 3)).init(PARAMS)
    for _ in range(2):
        optimizer.update(PARAMS, PARAMS)
    assert optimizer.step_count == 2
    optimizer = Optimizer(optax.apply_if_finite(optax.adam(0.1), 10)).init(PARAMS)
    optimizer.update(jax.tree.map(lambda x: x * jnp.nan, PARAMS), PARAMS)
    assert optimizer.step_count == 1


def test_eager_steps_change_the_optimizer_in_place():
    tx, params = optax.adam(0.1), PARAMS
    first = Optimizer(tx)
    optimizer = first.init(params)
    assert not first.initialized and optimizer.initialized
    for _ in range(3):
        params = optimizer.update(jax.grad(loss)(params), params)
    close(params, by_hand(tx, PARAMS, 3)[0])
    assert optimizer.step_count == 3
    assert optimizer.init(params).step_count == 0
    assert optimizer.step_count == 3


def test_updates_are_returned_instead_of_applied():
    optimizer, tx = Optimizer(optax.adam(0.1)).init(PARAMS), optax.adam(0.1)
    grads, by_optax = jax.grad(loss)(PARAMS), jax.jit(tx.update)
    updates = optimizer.update(grads, PARAMS, apply_updates=False)
    expected, state = by_optax(grads, tx.init(PARAMS), PARAMS)
    identical(updates, expected)
    assert optimizer.step_count == 1
    identical(optimizer.update(grads, apply_updates=False), by_optax(grads, state)[0])


def test_steps_outside_of_jit_are_one_program_that_equal_optimizers_share():
    tx, params, grads = optax.adam(0.1), PARAMS, jax.grad(loss)(PARAMS)
    optimizer = Optimizer(tx).init(params)
    optimizer.update(grads, params)
    other = Optimizer(tx).init(params)
    with counted_compilations() as compiled:
        for _ in range(3):
            params = optimizer.update(grads, params)
        other.update(grads, params)
    assert not compiled
    jaxpr = jax.make_jaxpr(lambda p, o: o.update(p, p))(PARAMS, other)
    assert "advance" not in str(jaxpr)


def test_outside_of_jit_other_extra_arguments_stay_python_objects():
    def update(updates, state, params=None, *, upwards, factor, **_):
        sign = 1.0 if upwards else -1.0
        return jax.tree.map(lambda g: sign * factor * g, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = Optimizer(tx).init({"w": jnp.ones(2)})
    new = optimizer.update({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, upwards=False, factor=0.5)
    assert new["w"].tolist() == [0.5, 0.5]


def test_the_example_of_treex_runs():
    x = jnp.linspace(0, 1, 8)
    y = 3 * x + 1

    def main():
        model = {"a": jnp.zeros(()), "b": jnp.zeros(())}
        optimizer = Optimizer(optax.adam(1e-1))
        optimizer = optimizer.init(model)
        for _ in range(300):
            model, loss, optimizer = train_step(model, x, y, optimizer)
        return model, loss, optimizer

    @jax.jit
    def train_step(model, x, y, optimizer):
        def loss_fn(params):
            return jnp.mean((params["a"] * x + params["b"] - y) ** 2)

        params = model
        loss, grads = jax.value_and_grad(loss_fn)(params)
        params = optimizer.update(grads, params)
        model = params
        return model, loss, optimizer

    model, loss, optimizer = main()
    assert loss < 1e-3 and optimizer.step_count == 300


# As a pytree


def test_it_is_the_carry_of_a_scan():
    def body(carry, _):
        return train_step(*carry), None

    start = (PARAMS, Optimizer(optax.adam(0.1)).init(PARAMS))
    (params, optimizer), _ = jax.lax.scan(body, start, None, length=10)
    close(params, train(*start, 10)[0])
    assert optimizer.step_count == 10


def test_many_fits_run_under_vmap():
    def fit(shift):
        params = {"x": jnp.zeros(2)}
        optimizer = Optimizer(optax.adam(0.1)).init(params)
        for _ in range(3):
            params = optimizer.update({"x": 2 * (params["x"] - shift)}, params)
        return params["x"], optimizer

    shifts = jnp.array([1.0, -2.0, 3.0])
    together, optimizers = jax.vmap(fit)(shifts)
    np.testing.assert_allclose(together, jnp.stack([fit(shift)[0] for shift in shifts]), rtol=1e-6)
    np.testing.assert_array_equal(optimizers.step_count, [3, 3, 3])
    step = lambda x, optimizer: (optimizer.update({"x": x}, {"x": x})["x"], optimizer)
    _, optimizers = jax.vmap(step)(together, optimizers)
    np.testing.assert_array_equal(optimizers.step_count, [4, 4, 4])


@pytest.mark.parametrize("bound", [None, 0.0])
def test_parameters_and_optimizer_may_be_donated(bound):
    params = {"k": fitopt.Parameter("k", jnp.array([0.5, 2.0]), lower=bound), "w": jnp.ones(3)}
    optimizer = Optimizer(optax.contrib.schedule_free_adamw(0.1)).init(params)
    params = optimizer.update(params, params)

    def step(params, optimizer):
        return optimizer.update(params, params), optimizer

    donating = jax.jit(step, donate_argnums=(0, 1))
    expected = step(jax.tree.map(jnp.copy, params), copy.deepcopy(optimizer))[0]
    params, optimizer = donating(params, optimizer)
    close(params, expected)
    params, optimizer = donating(params, optimizer)
    assert optimizer.step_count == 3


def test_equal_optimizers_share_a_program():
    tx = optax.adam(0.1)
    _, optimizer = train_step(PARAMS, Optimizer(tx).init(PARAMS))
    with counted_compilations() as compiled:
        train(PARAMS, Optimizer(tx).init(PARAMS), 2)[1]
        train_step(PARAMS, copy.deepcopy(optimizer))
        train_step(PARAMS, jax.tree.map(lambda x: x, optimizer))
    assert not [name for name in compiled if "train_step" in name]
    assert train_step._cache_size() >= 1
    size = train_step._cache_size()
    train_step(PARAMS, Optimizer(tx).init(PARAMS))
    assert train_step._cache_size() == size


def test_python_numbers_numpy_arrays_and_strangers_in_the_parameters():
    params = {
        "a": 1.0,
        "b": np.ones(2, np.float32),
        "n": 3,
        "name": "x",
        "none": None,
        "k": jnp.arange(2),
    }
    optimizer = Optimizer(optax.sgd(0.5)).init(params)
    new = optimizer.update({"a": 1.0, "b": np.ones(2, np.float32), "none": None} | {"n": None}, params)
    assert new["n"] == 3 and new["name"] == "x" and new["none"] is None and new["k"] is params["k"]
    assert new["a"] == 0.5 and new["b"].tolist() == [0.5, 0.5]
    assert not new["a"].weak_type


def test_an_equinox_module_is_optimised_as_it_is():
    model = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
    x = jnp.linspace(0.0, 1.0, 8)[:, None]
    loss = lambda model: jnp.mean((jax.vmap(model)(x) - 2 * x) ** 2)

    @eqx.filter_jit
    def step(model, optimizer):
        value, grads = eqx.filter_value_and_grad(loss)(model)
        return optimizer.update(grads, model), optimizer, value

    optimizer, losses = Optimizer(optax.adam(0.05)).init(model), []
    for _ in range(40):
        model, optimizer, value = step(model, optimizer)
        losses.append(value)
    assert isinstance(model, eqx.nn.MLP) and losses[-1] < 0.05 * losses[0]


def test_integers_may_have_the_gradients_that_jax_gives_them():
    params = {"x": jnp.ones(2), "n": jnp.arange(2)}
    grads = jax.grad(lambda p: jnp.sum(p["x"] * p["n"]), allow_int=True)(params)
    optimizer = Optimizer(optax.sgd(1.0)).init(params)
    updates = optimizer.update(grads, params, apply_updates=False)
    new = optax.apply_updates(params, updates)
    assert new["x"].tolist() == [1, 0] and new["n"].tolist() == [0, 1]


# Parameters


def parameters():
    return {
        "A": fitopt.Parameter("A", 1.0, lower=0, upper=10),
        "k": fitopt.Parameter("k", 1.0, lower=0, scale=0.5),
        "C": fitopt.Parameter("C", 0.1, scale=3.0),
    }


@pytest.mark.parametrize("by_values", [True, False])
def test_bounded_parameters_go_the_way_of_a_fit(by_values):
    tx, steps = optax.adam(0.05), 30

    @jax.jit
    def step(params, optimizer):
        point = fitopt.values(params) if by_values else params
        params = optimizer.update(jax.grad(decay_loss)(point), params)
        return params, optimizer

    params = parameters()
    optimizer = Optimizer(tx).init(params)
    for _ in range(steps):
        params, optimizer = step(params, optimizer)
    expected, _ = fitopt.OptaxOptimizer(decay_loss, tx).run(parameters(), max_steps=steps)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    close(fitopt.values(params), fitopt.values(expected), rtol=3e-6)


def test_masked_entries_and_fixed_parameters_stay_to_the_bit():
    start = jnp.array([0.3, jnp.nan, -7.1])
    mask = [True, False, False]
    params = {
        "m": fitopt.Parameter("m", start, lower=0, mask=mask),
        "u": fitopt.Parameter("u", start, mask=mask),
        "fixed": fitopt.Parameter("fixed", 0.1, free=False, lower=0),
    }
    noisy = optax.chain(optax.add_noise(1.0, 0.5, 0), optax.adamw(0.1))
    optimizer, grads = Optimizer(noisy).init(params), {"m": jnp.ones(3), "u": jnp.ones(3)}
    updates = optimizer.update(grads, params, apply_updates=False)
    assert updates["m"][1:].tolist() == updates["u"][1:].tolist() == [0, 0]
    new = params
    for _ in range(2):
        new = optimizer.update(grads, new)
    for name in ("m", "u"):
        np.testing.assert_array_equal(new[name].value[1:], start[1:])
        assert new[name].value[0] != start[0]
    assert new["fixed"] is params["fixed"]


def test_bounds_hold_against_any_step():
    params = {"k": fitopt.Parameter("k", 0.5, lower=0, upper=1)}
    optimizer = Optimizer(optax.sgd(100.0)).init(params)
    for grad in (1.0, -1.0, 1.0):
        params = optimizer.update({"k": grad}, params)
        assert 0 <= params["k"] <= 1


def test_applying_returned_updates_goes_the_same_way():
    applied = added = parameters()
    one, two = (Optimizer(optax.adam(0.05)).init(applied) for _ in range(2))
    for _ in range(3):
        applied = one.update(jax.grad(decay_loss)(applied), applied)
        added = optax.apply_updates(
            added, two.update(jax.grad(decay_loss)(added), added, apply_updates=False)
        )
    assert isinstance(added["k"], fitopt.Parameter)
    close(applied, added, rtol=1e-6)


def test_no_round_trip_moves_a_value_that_has_no_gradient():
    params = {"k": fitopt.Parameter("k", jnp.linspace(1e-6, 1e6, 50), lower=0), "x": jnp.ones(())}
    optimizer = Optimizer(optax.sgd(1.0)).init(params)
    still = jax.jit(lambda p, o: (o.update(jax.tree.map(jnp.zeros_like, p), p), o))
    first, optimizer = still(params, optimizer)
    params = first
    for _ in range(50):
        params, optimizer = still(params, optimizer)
    identical(params, first)


def test_a_value_that_was_edited_counts():
    params = {"k": fitopt.Parameter("k", jnp.array([1.0, 2.0]), lower=0)}
    optimizer = Optimizer(optax.sgd(0.1)).init(params)
    params = optimizer.update({"k": jnp.ones(2)}, params)
    edited = {"k": params["k"].replace(value=params["k"].value.at[1].set(5.0))}
    new = optimizer.update({"k": jnp.zeros(2)}, edited)
    np.testing.assert_allclose(new["k"], edited["k"].value, rtol=1e-6)
    assert new["k"][0] == params["k"][0]


def test_a_simplex_is_fitted_through_its_coordinate():
    target = jnp.array([0.7, 0.2, 0.1])
    start = fitopt.Parameter("p", jnp.ones(3) / 3, transform=fitopt.transforms.Simplex())
    loss = lambda p: jnp.sum((jnp.asarray(p) - target) ** 2)
    params, optimizer = start, Optimizer(optax.adam(0.1)).init(start)
    step = jax.jit(lambda p, optimizer: (optimizer.update(jax.grad(loss)(p.value), p), optimizer))
    for _ in range(20):
        params, optimizer = step(params, optimizer)
    expected, _ = fitopt.OptaxOptimizer(loss, optax.adam(0.1)).run(start, max_steps=20)
    close(params.value, expected.value, rtol=1e-5)


# Complex numbers, line searches, extra arguments


def test_complex_leaves_descend_as_with_conjugated_gradients():
    loss = lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)
    z = by = jnp.array([0j, 3 - 1j])
    tx = optax.adam(0.1)
    optimizer, state = Optimizer(tx).init(z), tx.init(z)
    for _ in range(5):
        z = optimizer.update(jax.grad(loss)(z), z)
        updates, state = tx.update(jnp.conj(jax.grad(loss)(by)), state, by)
        by = optax.apply_updates(by, updates)
    close(z, by, rtol=1e-6)
    assert loss(z) < loss(jnp.array([0j, 3 - 1j]))


def test_a_line_search_on_bounded_parameters_goes_the_way_of_a_fit():
    params, optimizer = parameters(), Optimizer(SEARCH).init(parameters())

    @jax.jit
    def step(params, optimizer):
        value, grads = jax.value_and_grad(decay_loss)(params)
        return optimizer.update(grads, params, value=value, value_fn=decay_loss), optimizer

    for _ in range(12):
        params, optimizer = step(params, optimizer)
    expected, _ = fitopt.OptaxOptimizer(decay_loss, SEARCH).run(parameters(), max_steps=12)
    close(fitopt.values(params), fitopt.values(expected), rtol=1e-4)


def test_lbfgs_fits_complex_numbers():
    loss = lambda p: jnp.sum(jnp.abs(p["z"] - (1 + 2j)) ** 2 * jnp.array([1.0, 10.0])) + 0 * p["n"]
    params = {"z": jnp.array([0j, 3 - 1j]), "n": jnp.array(1)}

    @jax.jit
    def step(params, optimizer):
        value, grads = jax.value_and_grad(lambda z: loss(params | {"z": z}))(params["z"])
        return optimizer.update({"z": grads}, params, value=value, value_fn=loss), optimizer

    optimizer = Optimizer(optax.lbfgs()).init(params)
    for _ in range(6):
        params, optimizer = step(params, optimizer)
    np.testing.assert_allclose(params["z"], 1 + 2j, atol=1e-3)


def test_lbfgs_is_that_of_a_loop_by_hand_to_the_bit():
    tx = optax.lbfgs()

    @jax.jit
    def hand(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def own(params, optimizer):
        value, grads = jax.value_and_grad(loss)(params)
        return optimizer.update(grads, params, value=value, grad=grads, value_fn=loss), optimizer

    params, state = PARAMS, tx.init(PARAMS)
    mine, optimizer = PARAMS, Optimizer(tx).init(PARAMS)
    for _ in range(4):
        params, state = hand(params, state)
        mine, optimizer = own(mine, optimizer)
    identical(mine, params)


def test_grad_is_passed_on_by_coordinates():
    def update(updates, state, params=None, *, grad, factor, **_):
        return jax.tree.map(lambda g: -factor * g, grad), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    params = {"k": fitopt.Parameter("k", 2.0, scale=10.0)}
    new = Optimizer(tx).init(params).update({"k": 9.0}, params, grad={"k": 0.01}, factor=0.5)
    np.testing.assert_allclose(new["k"], 2.0 - 0.5 * 0.01 * 10 * 10, rtol=1e-6)


# Groups


def test_a_group_has_its_own_optimizer_and_leaves_the_others_alone():
    params, special = {"w": jnp.array([1.0, 2.0])}, {"special": jnp.array(4.0)}
    optimizer = Optimizer(optax.adam(0.1)).init(params)
    params = optimizer.update(params, params)
    before = optimizer.state_dict()["groups"]["0"]
    optimizer.add_group(special, optax.sgd(0.5))
    jax.tree.map(np.testing.assert_array_equal, optimizer.state_dict()["groups"]["0"], before)
    both = params | special
    new, optimizer = step(both, optimizer)
    w, _ = by_hand(optax.adam(0.1), {"w": jnp.array([1.0, 2.0])}, 2, lambda p: jnp.sum(p["w"] ** 2) / 2)
    np.testing.assert_allclose(new["w"], w["w"], rtol=1e-6)
    assert new["special"] == 2.0 and optimizer.step_count == 2


def test_value_fn_of_a_group_sees_the_other_groups():
    loss = lambda p: (p["a"] - 3) ** 2 + (p["b"] - p["n"]) ** 2
    params = {"a": jnp.zeros(()), "n": jnp.array(5)}
    optimizer = Optimizer(SEARCH).init(params).add_group({"b": jnp.zeros(())}, SEARCH)
    params["b"] = jnp.zeros(())

    @jax.jit
    def step(params, optimizer):
        free = {"a": params["a"], "b": params["b"]}
        value, grads = jax.value_and_grad(lambda free: loss(params | free))(free)
        return optimizer.update(grads, params, value=value, value_fn=loss), optimizer

    for _ in range(30):
        params, optimizer = step(params, optimizer)
    assert loss(params) < 1e-6 and params["n"] == 5


def test_groups_are_dicts_with_keys_of_their_own():
    optimizer = Optimizer(optax.sgd(0.1)).init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="key 'w' belongs to another group"):
        optimizer.add_group({"w": jnp.ones(2)}, optax.sgd(0.1))
    with pytest.raises(TypeError, match="must be dicts"):
        optimizer.add_group([jnp.ones(2)], optax.sgd(0.1))
    with pytest.raises(TypeError, match="must be dicts"):
        Optimizer(optax.sgd(0.1)).init([jnp.ones(2)]).add_group({"w": jnp.ones(2)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="nothing to optimise"):
        optimizer.add_group({"n": 3}, optax.sgd(0.1))
    optimizer.add_group({"v": jnp.ones(2)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="params: leaf 'v' is missing"):
        optimizer.update({"w": jnp.ones(2)}, {"w": jnp.ones(2)})


# The learning rate


def test_the_learning_rate_is_set_between_jitted_steps_without_compiling():
    params, optimizer = train(PARAMS, Optimizer(ADAM).init(PARAMS), 2)
    size = train_step._cache_size()
    optimizer.learning_rate = 0.0
    same, optimizer = train_step(params, optimizer)
    identical(same, params)
    optimizer.learning_rate = 0.2
    moved, optimizer = train_step(params, optimizer)
    assert not np.array_equal(moved["w"], params["w"])
    np.testing.assert_allclose(optimizer.learning_rate, 0.2)
    assert train_step._cache_size() == size


def test_named_optimizers_and_pattern_groups_hold_their_rates():
    optimizer = Optimizer(fitopt.optimizers.adam(0.1)).init(PARAMS)
    optimizer.update(PARAMS, PARAMS)
    optimizer.learning_rate = 0.2
    np.testing.assert_allclose(optimizer.learning_rate, 0.2)
    assert optimizer.step_count == 1
    params = {"a": fitopt.Parameter("rate", 1.0, lower=0), "b": jnp.ones(2), "c": jnp.ones(())}
    sgd = fitopt.optimizers.sgd
    optimizer = Optimizer(fitopt.optimizers.groups({"rate": sgd(0.1), "b": sgd(0.2), "c": None}))
    optimizer = optimizer.init(params)
    optimizer.learning_rate = {"rate": 0.0, "b": 0.5}
    new = optimizer.update(params, params)
    np.testing.assert_allclose(new["a"], 1.0, rtol=1e-6)
    assert new["b"].tolist() == [0.5, 0.5] and new["c"] == 1


def test_groups_by_name_work_within_wrappers_and_share_a_program():
    params = {"a": fitopt.Parameter("rate", 1.0), "b": fitopt.Parameter("offset", 1.0)}
    groups = fitopt.optimizers.groups({"rate": optax.sgd(0.5)}, default=optax.set_to_zero())
    tx = optax.chain(optax.clip(1.0), groups)
    new, _ = step(params, Optimizer(tx).init(params))
    assert (new["a"], new["b"]) == (0.5, 1.0)
    size = step._cache_size()
    step(params, Optimizer(tx).init(params))
    assert step._cache_size() == size


def test_rates_of_many_optimizers_are_set_at_once():
    optimizers = jax.vmap(Optimizer(fitopt.optimizers.sgd(0.1)).init)({"w": jnp.ones((3, 2))})
    optimizers.learning_rate = 0.5
    assert optimizers.learning_rate.tolist() == [0.5, 0.5, 0.5]
    optimizers.learning_rate = jnp.array([0.0, 1.0, 2.0])
    update = lambda w, optimizer: optimizer.update({"w": w}, {"w": w})["w"]
    moved = jax.vmap(update)(jnp.ones((3, 2)), optimizers)
    assert moved[:, 0].tolist() == [1.0, 0.0, -1.0]


def test_setting_the_rate_leaves_copies_alone():
    optimizer = Optimizer(ADAM).init(PARAMS)
    other = copy.copy(optimizer)
    optimizer.learning_rate = 0.5
    np.testing.assert_allclose([other.learning_rate, optimizer.learning_rate], [0.1, 0.5])


def test_several_rates_are_a_tuple():
    optimizer = Optimizer(ADAM).init({"w": jnp.ones(2)}).add_group({"v": jnp.ones(2)}, ADAM)
    optimizer.learning_rate = (0.3, 0.4)
    np.testing.assert_allclose(optimizer.learning_rate, (0.3, 0.4))
    optimizer.learning_rate = 0.5
    np.testing.assert_allclose(optimizer.learning_rate, (0.5, 0.5))
    with pytest.raises(ValueError, match="there are 2 learning rates, got 3"):
        optimizer.learning_rate = (1, 2, 3)
    for wrong in ("fast", jnp.ones(3), 1j, None):
        with pytest.raises(TypeError, match="learning_rate must be a number, got"):
            optimizer.learning_rate = wrong


def test_a_rate_that_is_not_in_the_state_says_what_to_do():
    optimizer = Optimizer(optax.adam(0.1)).init(PARAMS)
    with pytest.raises(AttributeError, match=r"inject_hyperparams\(optax.adam\)\(learning_rate="):
        optimizer.learning_rate  # noqa: B018
    with pytest.raises(AttributeError, match="inject_hyperparams"):
        optimizer.learning_rate = 0.1
    scheduled = optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.5, 0.0, 2))
    optimizer = Optimizer(scheduled).init(PARAMS)
    assert optimizer.learning_rate == 0.5
    with pytest.raises(ValueError, match="a schedule sets this learning rate"):
        optimizer.learning_rate = 0.1


# Saving and loading


def flat(nested, prefix=""):
    for key, x in nested.items():
        assert isinstance(key, str)
        if isinstance(x, dict):
            yield from flat(x, f"{prefix}{key}/")
        else:
            assert type(x) is np.ndarray
            yield prefix + key, x


def through_npz(state):
    file = io.BytesIO()
    np.savez(file, **dict(flat(state)))
    file.seek(0)
    return np.load(file, allow_pickle=False)


def nested(flat):
    tree = {}
    for name, x in flat.items():
        *parents, last = name.split("/")
        inner = tree
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = x
    return tree


def through_lists(state):
    return json.loads(json.dumps(jax.tree.map(lambda x: x.tolist(), state)))


def through_msgpack(state):
    msgpack = pytest.importorskip("msgpack")
    encode = lambda x: {"dtype": str(x.dtype), "shape": x.shape, "bytes": x.tobytes()}

    def decode(x):
        return np.frombuffer(x["bytes"], x["dtype"]).reshape(x["shape"]) if "bytes" in x else x

    return msgpack.unpackb(msgpack.packb(state, default=encode), object_hook=decode)


def through_orbax(state, tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        return checkpointer.restore(tmp_path / "state")


def bounded_and_grouped(params, special):
    return Optimizer(NOISY).init(params).add_group(special, MOMENTUM)


@pytest.mark.parametrize("through", ["nested", "flat", "npz", "lists", "msgpack", "orbax"])
def test_a_fit_goes_on_from_its_state_dict_to_the_bit(through, tmp_path):
    ways = {
        "nested": lambda x: x,
        "flat": through_npz,
        "npz": lambda x: nested(through_npz(x)),
        "lists": through_lists,
        "msgpack": through_msgpack,
        "orbax": lambda x: through_orbax(x, tmp_path),
    }
    params, special = parameters(), {"b": jnp.ones(3, jnp.bfloat16)}
    optimizer = bounded_and_grouped(params, special)
    merged = params | special

    for _ in range(3):
        merged, optimizer = step(merged, optimizer)
    saved = ways[through](optimizer.state_dict())
    loaded = bounded_and_grouped(params, special).load_state_dict(saved)
    assert loaded.step_count == 3
    for _ in range(3):
        one, optimizer = step(merged, optimizer)
        two, loaded = step(merged, loaded)
    identical(one, two)
    dict_one, dict_two = dict(flat(optimizer.state_dict())), dict(flat(loaded.state_dict()))
    assert dict_one.keys() == dict_two.keys()
    assert all(np.array_equal(x, dict_two[name]) for name, x in dict_one.items())


def test_a_state_dict_shares_no_memory():
    optimizer = Optimizer(optax.adam(0.1)).init({"w": jnp.ones(2)})
    saved = optimizer.state_dict()
    loaded = Optimizer(optax.adam(0.1)).init({"w": jnp.ones(2)}).load_state_dict(saved)
    saved["groups"]["0"]["opt_state"]["0"]["mu"]["w"][:] = 7
    for one in (optimizer, loaded):
        assert one.opt_state[0].mu["w"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (optax.sgd(0.1), {"w": jnp.ones(2)}, "ScaleByAdamState"),
        (optax.adabelief(0.1), {"w": jnp.ones(2)}, "ScaleByBeliefState"),
        (optax.adam(0.1), {"w": jnp.ones(3)}, r"opt_state/0/mu/w has shape \(2,\), not \(3,\)"),
        (optax.adam(0.1), {"v": jnp.ones(2)}, "lacks groups/0/opt_state/0/mu/v"),
        (optax.adam(0.1), {"w": jnp.ones(2, jnp.bfloat16)}, "mu/w has dtype float32, not bfloat16"),
        (optax.adam(0.1), {"w": fitopt.Parameter("w", jnp.ones(2), lower=0)}, "lower=0"),
    ],
)
def test_the_state_dict_of_another_optimizer_is_refused(tx, params, message):
    saved = Optimizer(optax.adam(0.1)).init({"w": jnp.ones(2, jnp.float32)}).state_dict()
    optimizer = Optimizer(tx).init(params)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=f"another optimizer.*{message}"):
        optimizer.load_state_dict(saved)
    jax.tree.map(np.testing.assert_array_equal, optimizer.state_dict(), before)


def test_the_state_dict_of_other_bounds_is_refused():
    start = lambda upper: Optimizer(optax.adam(0.1)).init(
        fitopt.Parameter("k", 1.0, lower=0, upper=upper)
    )
    with pytest.raises(ValueError, match="upper=2.*upper=3"):
        start(3).load_state_dict(start(2).state_dict())
    scaled = lambda scale: fitopt.Parameter("k", 1.0, transform=fitopt.transforms.Affine(0, scale))
    saved = Optimizer(optax.sgd(0.1)).init(scaled(2)).state_dict()
    with pytest.raises(ValueError, match="transform=Affine"):
        Optimizer(optax.sgd(0.1)).init(scaled(3)).load_state_dict(saved)
    with pytest.raises(ValueError, match="no state_dict of a fitopt.Optimizer"):
        start(3).load_state_dict({"w": np.ones(2)})


# Errors


@pytest.mark.parametrize(
    "use",
    [
        lambda o: o.update({}, {}),
        lambda o: o.step_count,
        lambda o: o.opt_state,
        lambda o: o.learning_rate,
        lambda o: o.state_dict(),
        lambda o: o.load_state_dict({}),
        lambda o: o.add_group({"w": jnp.ones(2)}, optax.sgd(0.1)),
    ],
)
def test_use_before_init_says_so(use):
    optimizer = Optimizer(optax.adam(0.1))
    assert repr(optimizer) == "Optimizer(before init)"
    with pytest.raises(RuntimeError, match=r"optimizer = optimizer.init\(params\)"):
        use(optimizer)


W = PARAMS["w"]


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (
            {"w": W, "layers": [jnp.ones((2, 3))]},
            ValueError,
            "'layers/1' is missing; got 2 gradients for 3",
        ),
        ({"w": W, "layers": [jnp.ones((2, 3)), None]}, ValueError, "grads: leaf 'layers/1' is missing"),
        (PARAMS | {"v": W}, ValueError, "grads: leaf 'v' is not in the parameters"),
        (PARAMS | {"w": jnp.ones(3)}, ValueError, r"grads: leaf 'w' has shape \(3,\), .* had \(2,\)"),
        (PARAMS | {"w": W.astype(jnp.float16)}, TypeError, "'w' has dtype float16, .* had float32"),
        (PARAMS | {"w": W + 1j}, TypeError, "'w' has dtype complex"),
        (PARAMS | {"w": "x"}, TypeError, "grads: leaf 'w' must be an array, got 'x'"),
        (W, ValueError, "leaf 'layers/0' is missing; got 1 gradients for 3"),
    ],
)
def test_wrong_gradients_are_named(grads, error, message):
    optimizer = Optimizer(optax.adam(0.1)).init(PARAMS)
    with pytest.raises(error, match=message):
        optimizer.update(grads, PARAMS)
    with pytest.raises(error, match=message.replace("grads:", "grad:")):
        optimizer.update(PARAMS, PARAMS, grad=grads)
    assert optimizer.step_count == 0


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"w": W}, ValueError, "params: leaf 'layers/0' is missing"),
        (PARAMS | {"v": W}, ValueError, "params: leaf 'v' was not there"),
        (PARAMS | {"w": jnp.ones(())}, ValueError, r"params: leaf 'w' has shape \(\), .* had \(2,\)"),
        (PARAMS | {"w": jnp.arange(2)}, TypeError, "params: leaf 'w' has dtype int"),
        (
            PARAMS | {"w": fitopt.Parameter("w", W)},
            ValueError,
            "'w' was a plain array at init.*Parameter",
        ),
        (None, ValueError, "needs params"),
    ],
)
def test_wrong_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message):
        Optimizer(optax.adam(0.1)).init(PARAMS).update(PARAMS, params)


def test_a_parameter_that_changed_or_left_its_bounds_is_an_error():
    params = {"k": fitopt.Parameter("k", 1.0, lower=0)}
    optimizer = Optimizer(optax.adam(0.1)).init(params)
    with pytest.raises(ValueError, match=r"'k' was Parameter\('k', lower=0.0\).*upper=2.*init again"):
        optimizer.update(params, {"k": params["k"].replace(upper=2)})
    with pytest.raises(ValueError, match="free=False"):
        optimizer.update(params, {"k": params["k"].fix()})
    with pytest.raises(ValueError, match="outside its bound"):
        optimizer.update(params, jax.tree.map(lambda x: -x, params))
    with pytest.raises(ValueError, match="needs params"):
        optimizer.update(params, apply_updates=False)


def test_what_cannot_be_optimised_is_an_error():
    with pytest.raises(ValueError, match="nothing to optimise"):
        Optimizer(optax.adam(0.1)).init({"n": 3, "k": fitopt.Parameter("k", 1.0, free=False)})
    with pytest.raises(TypeError, match="call it: adam"):
        Optimizer(optax.adam)
