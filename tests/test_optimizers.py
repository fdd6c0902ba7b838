"""The named optimizers against loops written by hand with optax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Parameter, optimizers

from .conftest import close, decay_loss, hand_written

NAMES = [
    "sgd",
    "momentum",
    "momentum_nesterov",
    "adam",
    "adamw",
    "adagrad",
    "adadelta",
    "rmsprop",
    "adamax",
    "nadam",
    "radam",
    "lamb",
    "lars",
    "lookahead",
    "yogi",
    "lbfgs",
    "rprop",
    "adafactor",
    "adabelief",
    "lion",
    "sm3",
    "novograd",
    "fromage",
]

START = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.4])}
TARGET = {"w": jnp.array([[0.5, 1.0], [-0.5, 2.0]]), "b": jnp.array([1.0, 0.2])}
STEPS = 7


def loss(state):
    """Squares of unequal curvature, coupled by a sine."""
    w, b = state["w"] - TARGET["w"], state["b"] - TARGET["b"]
    return jnp.sum(jnp.array([1.0, 3.0]) * w**2) + jnp.sum(b**2) + 0.1 * jnp.sin(w.sum() * b.sum())


def run(optimizer, steps=STEPS, loss=loss, start=START):
    state = {name: Parameter(name, value) for name, value in start.items()}
    fitted, history = fitopt.OptaxOptimizer(loss, optimizer).run(state, max_steps=steps)
    return fitopt.values(fitted), history["loss"]


def by_hand(optimizer, steps=STEPS, start=START):
    return hand_written(loss, optimizer, start, steps)


def same(optimizer, reference, rtol=1e-6):
    """Both go through the same losses, to the same parameters."""
    fitted, losses = run(optimizer)
    expected, expected_losses = by_hand(reference)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=rtol)
    close(fitted, expected, rtol=rtol, atol=rtol)


L2 = lambda reference: optax.chain(optax.add_decayed_weights(0.1), reference)

# Each with its weight decay, if it has one, against what optax has, or against its parts.
REFERENCES = {
    "sgd": (optimizers.sgd(0.02), optax.sgd(0.02)),
    "sgd with momentum": (optimizers.sgd(0.02, 0.8), optax.sgd(0.02, 0.8)),
    "sgd, nesterov": (optimizers.sgd(0.02, 0.8, nesterov=True), optax.sgd(0.02, 0.8, nesterov=True)),
    "sgd, decay": (optimizers.sgd(0.02, weight_decay=0.1), L2(optax.sgd(0.02))),
    "momentum": (optimizers.momentum(0.02, weight_decay=0.1), L2(optax.sgd(0.02, 0.9))),
    "momentum_nesterov": (
        optimizers.momentum_nesterov(0.02, weight_decay=0.1),
        L2(optax.sgd(0.02, 0.9, nesterov=True)),
    ),
    "adam": (optimizers.adam(0.02), optax.adam(0.02)),
    "adam, betas": (optimizers.adam(0.02, (0.5, 0.9), 1e-3), optax.adam(0.02, 0.5, 0.9, 1e-3)),
    "adam, decay": (optimizers.adam(0.02, weight_decay=0.1), L2(optax.adam(0.02))),
    "adam, amsgrad": (optimizers.adam(0.02, amsgrad=True), optax.amsgrad(0.02)),
    "adamw": (optimizers.adamw(0.02, weight_decay=0.1), optax.adamw(0.02, weight_decay=0.1)),
    "adagrad": (
        optimizers.adagrad(0.2, initial_accumulator_value=0.1, eps=1e-7, weight_decay=0.1),
        L2(optax.adagrad(0.2)),
    ),
    "adagrad, lr_decay": (
        optimizers.adagrad(0.2, lr_decay=0.5),
        optax.adagrad(lambda t: 0.2 / (1 + 0.5 * t), 0.0, 1e-10),
    ),
    "adadelta": (
        optimizers.adadelta(20.0, weight_decay=0.1),
        optax.adadelta(20.0, weight_decay=0.1),
    ),
    "rmsprop": (optimizers.rmsprop(0.02, weight_decay=0.1), L2(optax.rmsprop(0.02, 0.99))),
    "rmsprop, centered": (
        optimizers.rmsprop(0.002, momentum=0.5, centered=True),
        optax.rmsprop(0.002, 0.99, momentum=0.5, centered=True),
    ),
    "adamax": (optimizers.adamax(0.02, weight_decay=0.1), L2(optax.adamax(0.02))),
    "nadam": (optimizers.nadam(0.02, weight_decay=0.1), L2(optax.nadam(0.02))),
    "radam": (
        optimizers.radam(0.02, weight_decay=0.1),
        optax.chain(optax.scale_by_radam(), optax.add_decayed_weights(0.1), optax.scale(-0.02)),
    ),
    "lamb": (optimizers.lamb(0.02, weight_decay=0.1), optax.lamb(0.02, weight_decay=0.1)),
    "lars": (
        optimizers.lars(10.0, weight_decay=0.1),
        optax.lars(10.0, weight_decay=0.1, eps=1e-8),
    ),
    "yogi": (optimizers.yogi(0.02, weight_decay=0.1), L2(optax.yogi(0.02))),
    "lbfgs": (optimizers.lbfgs(), optax.lbfgs()),
    "lbfgs without a search": (
        optimizers.lbfgs(0.5, 3, linesearch=None),
        optax.lbfgs(0.5, 3, linesearch=None),
    ),
    "adafactor": (
        optimizers.adafactor(0.02, beta1=0.5),
        optax.adafactor(0.02, momentum=0.5),
    ),
    "adabelief": (
        optimizers.adabelief(0.02, weight_decay=0.1),
        optax.chain(
            optax.scale_by_belief(eps=1e-16), optax.add_decayed_weights(0.1), optax.scale(-0.02)
        ),
    ),
    "lion": (optimizers.lion(0.02, weight_decay=0.1), optax.lion(0.02, weight_decay=0.1)),
    "sm3": (optimizers.sm3(0.2, weight_decay=0.1), L2(optax.sm3(0.2))),
    "novograd": (
        optimizers.novograd(0.02, weight_decay=0.1),
        optax.novograd(0.02, 0.9, 0.999, 1e-8, weight_decay=0.1),
    ),
    "fromage": (optimizers.fromage(0.02), optax.fromage(0.02)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_follows_the_trajectory_of_optax(name):
    same(*REFERENCES[name])


@pytest.mark.parametrize("name", ["sgd", "adam", "momentum", "lion", "adamw"])
def test_one_update_has_the_very_bits_of_optax(name):
    ours, reference = REFERENCES[name]
    grads = jax.grad(loss)(START)
    one, _ = ours.update(grads, ours.init(START), START)
    other, _ = reference.update(grads, reference.init(START), START)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), one, other)))


def make(name, **options):
    return (
        optimizers.lookahead(optimizers.adam(0.02), **options)
        if name == "lookahead"
        else (getattr(optimizers, name)(**options))
    )


@pytest.mark.parametrize("name", NAMES)
def test_defaults_run_on_numbers_and_matrices_and_can_be_clipped(name):
    assert name in optimizers.__all__
    start = {"A": 1.0, "k": 1.0, "C": 0.1}
    optimizer = make(name, grad_clip_norm=1.0, grad_clip_value=0.5)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    fitted, losses = run(optimizer, 3, decay_loss, start)
    assert np.isfinite(losses).all()
    assert all(jnp.shape(x) == () and x.dtype == jnp.float32 for x in fitted.values())
    assert float(optimizers.learning_rate(make(name).init(START))) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sm3", "lbfgs")])
def test_keeps_half_precision_beside_complex_numbers(name):
    params = {"h": jnp.ones(2, jnp.float16), "z": jnp.array([1 + 1j, 2 - 1j])}
    optimizer = make(name)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    _, again = optimizer.update(params, state, params)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, again)
    assert jax.tree.map(jnp.result_type, optax.apply_updates(params, updates)) == {
        "h": jnp.float16,
        "z": jnp.complex64,
    }


def test_defaults_are_the_published_ones():
    arguments = lambda name: inspect.signature(getattr(optimizers, name)).parameters
    default = lambda name, argument: arguments(name)[argument].default
    assert default("adam", "lr") == 1e-3 and default("adam", "betas") == (0.9, 0.999)
    assert default("adamw", "weight_decay") == 0.01
    assert default("lion", "betas") == (0.9, 0.99)
    assert default("lbfgs", "linesearch") == "zoom"
    with_decay = {name for name in NAMES if "weight_decay" in arguments(name)}
    assert set(NAMES) - with_decay == {"lookahead", "lbfgs", "rprop", "fromage"}


def test_rprop_takes_each_step_at_once_and_bounds_it():
    # By hand: steps 0.5, 0.75 (x 1.5), the sign turns: none, then 0.75 / 4 the other way.
    gradients, updates = [1.0, 1.0, -1.0, -1.0, -2.0], []
    optimizer = optimizers.rprop(0.5, etas=(0.25, 1.5), step_sizes=(1e-6, 0.25))
    state = optimizer.init(jnp.zeros(()))
    for gradient in gradients:
        update, state = optimizer.update(jnp.array(gradient), state)
        updates.append(float(update))
    np.testing.assert_allclose(updates, [-0.5, -0.25, 0.0, 0.0625, 0.09375], rtol=1e-6)


def test_rprop_converges_faster_than_the_delayed_one_of_optax():
    assert run(optimizers.rprop(0.1), 40)[1][-1] < by_hand(optax.rprop(0.1), 40)[1][-1]


def test_fromage_is_a_relative_step_on_a_shrunk_sphere():
    optimizer = optimizers.fromage(0.1)
    x, g = jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])
    update, _ = optimizer.update(g, optimizer.init(x), x)
    np.testing.assert_allclose(x + update, (x - 0.1 * 5.0 * g / 2.0) / np.sqrt(1.01), rtol=1e-6)


def test_adafactor_without_a_rate_takes_the_papers_relative_steps():
    same(optimizers.adafactor(), optax.adafactor(lambda t: jnp.minimum(1e-2, 1 / jnp.sqrt(t + 1))))


def test_adafactor_decays_weights_decoupled():
    optimizer = optimizers.adafactor(0.5, weight_decay=0.1)
    zero = jax.tree.map(jnp.zeros_like, START)
    updates, _ = optimizer.update(zero, optimizer.init(START), START)
    close(updates, jax.tree.map(lambda x: -0.05 * x, START))


def test_sm3_takes_numbers_as_vectors_of_one():
    x, g = jnp.array([2.0]), jnp.array([0.7])
    ours, reference = optimizers.sm3(0.1), optax.sm3(0.1)
    update, _ = ours.update(g[0], ours.init(x[0]))
    expected, _ = reference.update(g, reference.init(x))
    assert update.shape == () and update == expected[0]


# --- clipping ---


def test_clips_the_norm_then_the_entries_then_adds_the_decay():
    optimizer = optimizers.sgd(1.0, weight_decay=0.1, grad_clip_norm=5.0, grad_clip_value=3.5)
    x, g = jnp.array([10.0, 0.0]), jnp.array([6.0, 8.0])
    update, _ = optimizer.update(g, optimizer.init(x), x)
    np.testing.assert_allclose(update, [-3.0 - 1.0, -3.5], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lookahead"])
def test_clipping_comes_first(name):
    options = {"linesearch": None} if name == "lbfgs" else {}
    clipped, plain = make(name, grad_clip_norm=0.5, **options), make(name, **options)
    grads = jax.grad(loss)(START)
    small = jax.tree.map(lambda g: g * 0.5 / optax.tree.norm(grads), grads)
    updates, _ = clipped.update(grads, clipped.init(START), START)
    close(updates, plain.update(small, plain.init(START), START)[0], rtol=1e-5)


def test_clips_both_parts_of_complex_gradients():
    optimizer = optimizers.sgd(1.0, grad_clip_value=1.0)
    z = jnp.array([3 - 0.5j])
    assert optimizer.update(z, optimizer.init(z), z)[0] == -1 + 0.5j


# --- the learning rate ---


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("lookahead", "lbfgs")])
def test_the_rate_lies_in_the_state_and_can_be_set_there(name):
    optimizer, faster = make(name, lr=0.02), make(name, lr=0.05)
    grads = jax.grad(loss)(START)
    state = optimizer.init(START)
    assert np.isclose(optax.tree.get(state, "learning_rate"), 0.02)
    for changed in (
        optax.tree.set(state, learning_rate=0.05),
        optimizers.set_learning_rate(state, 0.05),
    ):
        updates, _ = optimizer.update(grads, changed, START)
        expected, after = faster.update(grads, faster.init(START), START)
        close(updates, expected)
        assert np.isclose(optimizers.learning_rate(after), 0.05)


def test_the_rate_of_lbfgs_is_not_that_of_its_line_search():
    state = optimizers.lbfgs(0.5).init(START)
    assert optimizers.learning_rate(state) == 0.5
    assert optimizers.learning_rate(optimizers.set_learning_rate(state, 0.25)) == 0.25


SCHEDULE = lambda count: 0.05 / (1 + count)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", optax.sgd(SCHEDULE)),
        ("adamw", optax.adamw(SCHEDULE, weight_decay=0.01)),
        ("fromage", optax.fromage(SCHEDULE)),
        ("lars", optax.lars(SCHEDULE, eps=1e-8)),
    ],
)
def test_schedules_count_updates(name, reference):
    same(make(name, lr=SCHEDULE), reference)


def test_the_state_shows_the_rate_that_a_schedule_gave():
    optimizer = optimizers.adam(SCHEDULE)
    state, seen = optimizer.init(START), []
    for _ in range(3):
        _, state = optimizer.update(START, state, START)
        seen.append(float(optax.tree.get(state, "learning_rate")))
    np.testing.assert_allclose(seen, [0.05, 0.025, 0.05 / 3], rtol=1e-6)
    with pytest.raises(ValueError, match="a schedule sets this learning rate"):
        optimizers.set_learning_rate(state, 0.1)


def test_rprop_stands_still_where_a_schedule_is_at_zero():
    optimizer = optimizers.rprop(lambda t: jnp.where(t == 1, 0.0, 0.1))
    state, updates = optimizer.init(jnp.ones(())), []
    for _ in range(3):
        update, state = optimizer.update(jnp.ones(()), state)
        updates.append(float(update))
    np.testing.assert_allclose(updates, [-0.1, 0.0, -0.144], rtol=1e-5)


def test_reads_and_sets_the_rate_that_optax_injected():
    state = optax.inject_hyperparams(optax.sgd)(0.5).init(START)
    assert optimizers.learning_rate(optimizers.set_learning_rate(state, 0.25)) == 0.25
    with pytest.raises(ValueError, match="holds no learning rate"):
        optimizers.learning_rate(optax.sgd(0.1).init(START))


def test_the_rates_of_many_fits_are_set_by_one_number_or_one_each():
    state = jax.vmap(optimizers.adam(0.5).init)(jnp.zeros((3, 2)))
    rates = lambda lr: optimizers.learning_rate(optimizers.set_learning_rate(state, lr)).tolist()
    assert rates(0.25) == [0.25, 0.25, 0.25] and rates(np.array([1, 2, 3])) == [1, 2, 3]
    for wrong in (jnp.ones(2), jnp.ones((3, 1))):
        with pytest.raises(TypeError, match=r"learning_rate must be .* an array of shape \(3,\), got"):
            rates(wrong)
    with pytest.raises(ValueError, match="learning_rate must be at least 0 and finite"):
        rates(jnp.array([1.0, -1.0, 1.0]))

    grouped = optimizers.groups({"a": optimizers.sgd(0.1)}, default=optimizers.sgd(0.2))
    state = jax.vmap(grouped.init)({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    changed = optimizers.learning_rate(optimizers.set_learning_rate(state, {"a": jnp.array([1.0, 2.0])}))
    np.testing.assert_allclose([changed["a"], changed["(default)"]], [[1, 2], [0.2, 0.2]], rtol=1e-6)


def test_a_number_adds_one_multiplication_to_the_loop_and_no_counter():
    count = lambda optimizer: len(
        jax.make_jaxpr(optimizer.update)(START, optimizer.init(START), START).jaxpr.eqns
    )
    assert count(optimizers.adam(0.1)) <= count(optax.adam(0.1)) + 2
    leaves = lambda optimizer: len(jax.tree.leaves(optimizer.init(START)))
    assert leaves(optimizers.adam(0.1)) == leaves(optax.adam(0.1)) + 1


# --- lbfgs ---


@pytest.mark.parametrize("linesearch", ["zoom", "backtracking"])
def test_lbfgs_searches_along_the_line(linesearch, decay):
    optimizer = optimizers.lbfgs(linesearch=linesearch)
    fitted, history = fitopt.OptaxOptimizer(decay_loss, optimizer).run(decay, max_steps=40)
    assert np.all(np.diff(history["loss"]) <= 1e-7)
    gradient = jax.grad(decay_loss)(fitopt.values(fitted))
    assert optax.tree.norm(gradient) < 1e-3


def test_lbfgs_takes_a_line_search_of_optax():
    search = optax.scale_by_backtracking_linesearch(10)
    same(optimizers.lbfgs(linesearch=search), optax.lbfgs(1.0, linesearch=search))


# --- lookahead ---


def paired(base, steps, period, size):
    """Losses, fast and slow weights of optax.lookahead, which moves pairs of parameters."""
    optimizer = optax.lookahead(base, period, size)
    params = optax.LookaheadParams.init_synced(START)
    state, losses = optimizer.init(params), []
    for _ in range(steps):
        value, grads = jax.value_and_grad(loss)(params.fast)
        losses.append(value)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(losses), params


@pytest.mark.parametrize("steps", [3, 8, 9])
def test_lookahead_follows_the_pairs_of_optax(steps):
    losses, params = paired(optax.adam(0.1), steps, 4, 0.3)
    optimizer = optimizers.lookahead(optimizers.adam(0.1), 4, 0.3)
    np.testing.assert_allclose(run(optimizer, steps)[1], losses, rtol=1e-5)

    fast, state = START, optimizer.init(START)
    for _ in range(steps):
        updates, state = jax.jit(optimizer.update)(jax.grad(loss)(fast), state, fast)
        fast = optax.apply_updates(fast, updates)
    close(fast, params.fast, rtol=1e-5)
    close(optimizers.evaluation_params(state, fast), params.slow, rtol=1e-5)
    assert isinstance(state, optimizers.LookaheadState)


def test_lookahead_makes_its_line_search_forget_where_it_was():
    optimizer = optimizers.lookahead(optimizers.lbfgs(linesearch="backtracking"), 2)

    @jax.jit
    def step(params, state):  # value and gradient computed anew each time
        value, grads = jax.value_and_grad(loss)(params)
        extra = dict(value=value, grad=grads, value_fn=loss)
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    params, state, expected = START, optimizer.init(START), []
    for _ in range(6):
        params, state, value = step(params, state)
        expected.append(value)
    np.testing.assert_allclose(run(optimizer, 6)[1], expected, rtol=1e-3, atol=1e-5)


def test_lookahead_clips_before_its_base():
    clipped = optimizers.lookahead(optimizers.adam(0.1), grad_clip_value=0.1)
    inside = optimizers.lookahead(optimizers.adam(0.1, grad_clip_value=0.1))
    np.testing.assert_array_equal(run(clipped)[1], run(inside)[1])


def test_evaluation_params_averages_schedule_free():
    optimizer = optax.contrib.schedule_free_sgd(0.1)
    updates, state = optimizer.update(START, optimizer.init(START), START)
    params = optax.apply_updates(START, updates)
    expected = optax.contrib.schedule_free_eval_params(state, params)
    close(optimizers.evaluation_params((state,), params), expected)
    assert optimizers.evaluation_params(optax.adam(0.1).init(START), START) is START


# --- under transformations ---


def test_runs_under_jit_and_over_learning_rates_under_vmap():
    def final(lr):
        state = {name: Parameter(name, value) for name, value in START.items()}
        optimizer = optimizers.adamw(lr)
        return fitopt.OptaxOptimizer(loss, optimizer).run(state, max_steps=STEPS)[1]["final_loss"]

    batch, slopes = jax.jit(jax.vmap(jax.value_and_grad(final)))(jnp.array([0.019, 0.02, 0.021]))
    np.testing.assert_allclose(batch[1], final(0.02), rtol=1e-5)
    np.testing.assert_allclose(slopes[1], (batch[2] - batch[0]) / 0.002, rtol=1e-2)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"lr": -0.1}, ValueError, "lr must be at least 0 and finite, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be"),
        ({"lr": float("inf")}, ValueError, "lr must be"),
        ({"lr": "fast"}, TypeError, "lr must be a number or a schedule, got 'fast'"),
        ({"lr": None}, TypeError, "lr must be a number or a schedule"),
        ({"lr": True}, TypeError, "lr must be a number or a schedule"),
        ({"lr": jnp.ones(3)}, TypeError, "lr must be a number or a schedule"),
        ({"lr": optax.sgd(0.1)}, TypeError, "lr must be a number or a schedule"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"betas": 0.9}, TypeError, "betas must be a pair of numbers"),
        ({"eps": -1e-8}, ValueError, "eps must be"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be"),
        ({"grad_clip_norm": 0.0}, ValueError, "grad_clip_norm must be positive, got 0.0"),
        ({"grad_clip_value": -1.0}, ValueError, "grad_clip_value must be"),
    ],
)
def test_bad_arguments_of_adam(arguments, error, match):
    with pytest.raises(error, match=match):
        optimizers.adam(**arguments)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: optimizers.lbfgs(linesearch="wolfe"), ValueError, "linesearch must be .*'wolfe'"),
        (lambda: optimizers.lbfgs(memory_size=0), ValueError, "memory_size must be a positive"),
        (lambda: optimizers.sgd(nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda: optimizers.momentum(momentum=1.0), ValueError, "momentum must be in"),
        (lambda: optimizers.rprop(etas=(1.2, 0.5)), ValueError, "etas must be"),
        (lambda: optimizers.rprop(step_sizes=(1.0, 0.1)), ValueError, "step_sizes must be"),
        (lambda: optimizers.lookahead(optax.sgd), TypeError, "base_optimizer must be an optimizer"),
        (lambda: optimizers.lookahead(optax.sgd(0.1), 0), ValueError, "sync_period"),
        (lambda: optimizers.lookahead(optax.sgd(0.1), 2.5), TypeError, "sync_period"),
        (lambda: optimizers.lookahead(optax.sgd(0.1), 5, 0.0), ValueError, "alpha"),
        (lambda: optimizers.lookahead(optax.sgd(0.1), 5, 1.5), ValueError, "alpha"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
