"""What needs something besides value and gradient, and how it is fitted with, beside a loop by hand."""

import functools

import jax
import numpy as np
import optax
import pytest
from optax import contrib

from fitopt import OptaxOptimizer, optimizers, values

from ..conftest import close
from .options import filled, per_example, plain
from .problem import INPUTS, START, STEPS, TARGETS, example_loss, loss, parameters


def by_hand(optimizer, update, params=START, seen=lambda params: params):
    """Parameters, optimizer state and losses; `update(grads, state, params)` is the optimizer's."""

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(seen(params))
            updates, state = update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)

    (params, state), losses = fit(params)
    return params, state, np.asarray(losses)


def assert_same(optimizer, params, losses):
    fitted, history = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    np.testing.assert_array_equal(history["loss"], losses)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), values(fitted), params)
    assert history["final_loss"] < losses[0]


def adversary():
    return optax.chain(contrib.normalize(), optax.sgd(0.05))


def test_sam_runs():
    sam = contrib.sam(optax.sgd(0.1), adversary(), sync_period=2)
    params, _, losses = by_hand(sam, sam.update)
    assert_same(sam, params, losses)


def test_opaque_sam_runs():
    sam = contrib.sam(optax.sgd(0.1), adversary(), sync_period=3, opaque_mode=True)
    grad_fn = lambda params, step: jax.grad(loss)(params)
    params, _, losses = by_hand(sam, functools.partial(sam.update, grad_fn=grad_fn))
    assert_same(sam, params, losses)


def test_sophia_runs():
    sophia = contrib.sophia(
        0.05, update_interval=4, hessian_diagonal_fn=contrib.hutchinson_estimator_diag_hessian()
    )
    params, _, losses = by_hand(sophia, functools.partial(sophia.update, obj_fn=loss))
    assert_same(sophia, params, losses)


@pytest.mark.parametrize(
    "make",
    [
        lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
        lambda: contrib.schedule_free_sgd(0.5, warmup_steps=5),
        lambda: contrib.schedule_free_adamw(0.1, weight_decay=0.01),
    ],
    ids=["schedule_free", "schedule_free_sgd", "schedule_free_adamw"],
)
def test_schedule_free_returns_evaluation_parameters(make):
    optimizer = make()
    params, state, losses = by_hand(optimizer, optimizer.update)
    expected = contrib.schedule_free_eval_params(state, params)
    fitted, history = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    np.testing.assert_array_equal(history["loss"], losses)
    close(values(fitted), expected, rtol=1e-6, atol=1e-7)  # compiled on their own, with another rounding
    assert history["final_loss"] == pytest.approx(float(loss(expected)), rel=1e-6)


def test_lookahead_of_fitopt_is_that_of_optax_on_pairs():
    pairs = optax.lookahead(optax.adam(0.1), 6, 0.3)
    start = optax.LookaheadParams.init_synced(START)
    params, _, losses = by_hand(pairs, pairs.update, start, seen=lambda params: params.fast)
    optimizer = optimizers.lookahead(optax.adam(0.1), 6, 0.3)
    fitted, history = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    # optax adds to the slow ones, and takes from the fast ones, what fitopt computes once
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    close(values(fitted), params.slow, rtol=1e-5, atol=1e-6)


def gradients(params):
    return jax.vmap(jax.grad(example_loss), (None, 0, 0))(params, INPUTS, TARGETS)


@pytest.mark.filterwarnings("ignore:.*seed.* is deprecated:DeprecationWarning")  # by dpsgd itself
@pytest.mark.parametrize("private", ["dpsgd", "differentially_private_aggregate"])
def test_private_ones_run_with_the_gradient_of_each_example(private):
    if private == "dpsgd":
        optimizer = contrib.dpsgd(0.1, l2_norm_clip=0.7, noise_multiplier=0.1, seed=3, momentum=0.5)
    else:
        aggregate = contrib.differentially_private_aggregate(0.7, 0.1, key=jax.random.key(3))
        optimizer = optax.chain(aggregate, optax.adam(0.1))
    params, _, losses = by_hand(optimizer, lambda g, s, p: optimizer.update(gradients(p), s, p))
    assert_same(per_example(optimizer, example_loss, INPUTS, TARGETS), params, losses)


def test_without_noise_and_clipping_a_private_one_is_gradient_descent():
    private = contrib.differentially_private_aggregate(1e9, 0.0, key=jax.random.key(0))
    optimizer = per_example(optax.chain(private, optax.sgd(0.1)), example_loss, INPUTS, TARGETS)
    fitted, _ = OptaxOptimizer(loss, optimizer).run(parameters(START), STEPS)
    descended, _ = OptaxOptimizer(loss, optax.sgd(0.1)).run(parameters(START), STEPS)
    close(values(fitted), values(descended), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(optax, "experimental"), reason="came with optax 0.2.7")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.process(optax.clip(0.5), x.average_per_element_updates(), optax.adam(0.1)),
        lambda x: x.process(optax.identity(), x.average_incrementally_updates(0, 2), optax.adam(0.1)),
        lambda x: x.add_mean_variance_to_opt(optax.adam(0.1)),
    ],
    ids=["average", "average_incrementally", "mean_and_variance"],
)
def test_aggregators_run_with_the_gradient_of_each_example(make):
    optimizer = make(optax.experimental.aggregating)
    params, _, losses = by_hand(optimizer, lambda g, s, p: optimizer.update(gradients(p), s, p))
    assert_same(per_example(optimizer, example_loss, INPUTS, TARGETS), params, losses)


@pytest.mark.skipif(not hasattr(optax, "experimental"), reason="came with optax 0.2.7")
def test_an_accumulator_runs_without_extra_arguments():
    aggregating = optax.experimental.aggregating
    accumulator = aggregating.accumulate_avg_updates(2)
    optimizer = aggregating.process(optax.identity(), accumulator, optax.sgd(0.1))
    params, _, losses = by_hand(optimizer, optimizer.update)
    assert_same(plain(optimizer), params, losses)


@pytest.mark.skipif(not hasattr(optax, "monitor"), reason="came with optax 0.2.7")
def test_monitor_runs_once_its_state_is_complete():
    averaged = optax.measure_with_ema(optax.tree.norm, 0.9)
    monitor = filled(optax.monitor({"norm": optax.tree.norm, "averaged": averaged}))
    optimizer = optax.chain(monitor, optax.sgd(0.1))
    params, state, losses = by_hand(optimizer, optimizer.update)
    assert_same(optimizer, params, losses)
    assert float(optax.tree.get(state, "norm")) > 0
