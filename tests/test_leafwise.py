"""Optimizers that treat each leaf by itself, and the stacks in which their leaves are updated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import Checkpoint, EarlyStopping, KeepBest, RecordParameters
from fitopt.methods.leafwise import Leafwise, Packed

from .conftest import counted_compilations

LEAVES = [*map(jnp.float32, range(5)), *(jnp.arange(3.0) + i for i in range(3)), jnp.ones((8, 16))]


def found(optimizer, leaves=LEAVES):
    update = lambda grads, state, params: optimizer.update(grads, state, params)
    return Leafwise.of(update, leaves, optimizer.init(leaves))


INDEPENDENT = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "lamb": optax.lamb(1e-2),  # norms of each leaf
    "lion": optax.lion(1e-2),
    "rmsprop": optax.rmsprop(1e-2, momentum=0.9),
    "schedule": optax.adam(optax.exponential_decay(1e-2, 10, 0.9)),
    "injected": optax.inject_hyperparams(optax.adam)(1e-2),
    "named": optimizers.adam(1e-2, weight_decay=1e-3),
}


@pytest.mark.parametrize("optimizer", INDEPENDENT.values(), ids=INDEPENDENT)
def test_a_stacked_update_is_that_of_optax(optimizer):
    leafwise = found(optimizer)
    assert leafwise is not None
    params, state = LEAVES, optimizer.init(LEAVES)
    packed = leafwise.pack(params, state)
    assert len(packed.stacks) == 3
    for seed in range(3):
        grads = [jnp.sin(seed + x) for x in params]
        stacked, packed = leafwise.update(grads, packed)
        updates, state = optimizer.update(grads, state, params)
        jax.tree.map(close, leafwise.state(packed), state)
        ours = leafwise.position(Packed([], [(x, []) for x in stacked]))
        jax.tree.map(close, ours, updates)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-9)


def test_packing_loses_nothing():
    leafwise, state = found(optax.adam(1e-2)), optax.adam(1e-2).init(LEAVES)
    packed = leafwise.pack(LEAVES, state)
    jax.tree.map(np.testing.assert_array_equal, leafwise.position(packed), LEAVES)
    jax.tree.map(np.testing.assert_array_equal, leafwise.state(packed), state)
    places = [jnp.int32(i) for i in range(len(LEAVES))]
    jax.tree.map(np.testing.assert_array_equal, leafwise.position(packed, places), LEAVES)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        optax.contrib.prodigy(),
        optax.MultiSteps(optax.adam(1e-2), 4).gradient_transformation(),
        optax.apply_if_finite(optax.adam(1e-2), 3),
    ],
    ids=["global norm", "prodigy", "MultiSteps", "apply_if_finite"],
)
def test_leaves_that_depend_on_each_other_are_not_stacked(optimizer):
    assert found(optimizer) is None


def test_leaves_that_are_treated_otherwise_are_not_in_one_stack():
    decayed = optax.masked(optax.add_decayed_weights(1e-2), [True, True, False, False, True])
    leafwise = found(optax.chain(optax.scale_by_adam(), decayed), LEAVES[:5])
    assert sorted(len(stack.leaves) for stack in leafwise._stacks) == [2, 3]


def test_there_is_nothing_to_stack_of_large_or_different_leaves():
    assert found(optax.adam(1e-2), [jnp.ones((20, 20)), jnp.ones((20, 20))]) is None
    assert found(optax.adam(1e-2), [jnp.ones(2), jnp.ones(3)]) is None


# Whole fits.


def loss(state):
    x = jnp.stack([state[f"p{i}"] for i in range(12)])
    return jnp.sum((x - jnp.linspace(-1.0, 2.0, 12)) ** 2) + jnp.sum(state["v"] ** 2) * x[0] ** 2


@pytest.fixture(scope="module")
def state():
    bounds = [{}, {"lower": -4.0}, {"lower": -5.0, "upper": 5.0}]
    scalars = {f"p{i}": Parameter(f"p{i}", 0.1 * i, **bounds[i % 3]) for i in range(12)}
    return {**scalars, "v": Parameter("v", jnp.ones(3))}


ADAM = optax.adam(3e-2)


@pytest.fixture(scope="module")
def fitted(state):
    callbacks = [RecordParameters(), EarlyStopping(1_000), KeepBest()]
    return OptaxOptimizer(loss, ADAM, callbacks).run(state, 150)


def test_a_fit_of_many_named_numbers_is_the_scan_of_its_leaves(state, fitted):
    # Inside jit there are no stacks.
    fit = OptaxOptimizer(loss, ADAM, RecordParameters())
    _, scanned = jax.jit(lambda state: fit.run(state, 150))(state)
    history = fitted[1]
    np.testing.assert_allclose(history["loss"], scanned["loss"], rtol=1e-4)
    for name, values in history["parameters"].items():
        np.testing.assert_allclose(values, scanned["parameters"][name], rtol=1e-3, atol=1e-5)


def test_its_checkpoints_hold_leaves_and_it_goes_on_to_the_last_bit(state, fitted, tmp_path):
    callbacks = [RecordParameters(), EarlyStopping(1_000), KeepBest()]
    fit = OptaxOptimizer(loss, ADAM, [*callbacks, Checkpoint(tmp_path, every=50)])
    _, history = fit.run(state, 70)
    assert len(history.resume_point.carry()) == 1 + 3 * 13 + 1 + 2  # adam, EarlyStopping, KeepBest
    final, resumed = fit.run(state, 150, resume_from=tmp_path)
    np.testing.assert_array_equal(resumed["loss"], fitted[1]["loss"])
    jax.tree.map(np.testing.assert_array_equal, final, fitted[0])


def test_a_second_fit_compiles_nothing(state, fitted):
    fit = OptaxOptimizer(loss, ADAM, KeepBest())
    fit.run(state, 20)
    with counted_compilations() as count:
        fit.run(state, 25)
    assert not count


def test_leaves_of_an_update_with_effects_are_not_stacked():
    def update(grads, state, params=None):
        jax.debug.callback(lambda x: None, grads[0])
        return jax.tree.map(lambda x: -0.1 * x, grads), state

    assert found(optax.GradientTransformation(lambda params: (), update)) is None


def test_an_optimizer_that_evaluates_the_loss_is_not_stacked():
    def update(grads, state, params, *, value_fn, **_):
        return jax.grad(value_fn)(params), state

    again = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = optimizers.groups({"[bc]": optax.chain(again, optax.sgd(0.1))}, optax.sgd(0.1))
    squares = lambda s: sum((s[name] - 1.0) ** 2 for name in "abcd")
    state = {name: Parameter(name, 0.0) for name in "abcd"}
    fitted, _ = OptaxOptimizer(squares, optimizer).run(state, 20)
    np.testing.assert_allclose([fitted[name] for name in "abcd"], 1 - 0.8**20, rtol=1e-5)


def test_weak_types_in_an_optimizer_become_those_of_the_loop():
    weak = lambda params: jax.tree.map(lambda x: jnp.asarray(1.0), params)
    update = lambda grads, state, params=None: (
        grads,
        jax.tree.map(lambda m, x: 0.9 * m + x, state, grads),
    )
    optimizer = optax.chain(optax.GradientTransformation(weak, update), optax.sgd(0.25))
    state = {name: Parameter(name, jnp.ones((), jnp.bfloat16)) for name in "ab"}
    squares = lambda s: (s["a"] ** 2 + s["b"] ** 2).astype(jnp.float32)
    fitted, _ = OptaxOptimizer(squares, optimizer).run(state, 2)
    assert fitted["a"].value == 0.25


def test_what_cannot_be_done_for_a_whole_stack_is_done_leaf_by_leaf():
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    double = jax.jit(lambda x: jax.pure_callback(lambda y: np.asarray(2 * y, np.float32), shape, x))
    optimizer = optax.chain(optax.stateless(lambda u, p: jax.tree.map(double, u)), optax.sgd(0.125))
    state = {name: Parameter(name, 1.0) for name in "ab"}
    fitted, _ = OptaxOptimizer(lambda s: s["a"] ** 2 + s["b"] ** 2, optimizer).run(state, 2)
    assert float(fitted["b"]) == 0.25
