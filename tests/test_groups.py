"""Parameter groups: which optimizer moves what, and what is said about patterns that do not fit."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Parameter, optimizers
from fitopt.optimizers import adam, groups, lbfgs, learning_rate, lookahead, set_learning_rate, sgd
from fitopt.optimizers.groups import by_name

from .conftest import close, hand_written

START = {"rate_a": 2.0, "rate_b": jnp.array([1.0, -1.0]), "weights": {"in": 3.0, "out": [0.5, -2.0]}}
START = jax.tree.map(jnp.asarray, START)


def loss(state):
    return sum(jnp.sum((x - 1.0) ** 2) for x in jax.tree.leaves(state)) + jnp.sin(state["rate_a"])


def parameters():
    make = lambda path, x: Parameter(jax.tree_util.keystr(path, simple=True, separator="/"), x)
    return jax.tree_util.tree_map_with_path(make, START)


def run(optimizer, steps=5, state=None, loss=loss):
    state = parameters() if state is None else state
    fitted, history = fitopt.OptaxOptimizer(loss, optimizer).run(state, max_steps=steps)
    return fitopt.values(fitted), history["loss"]


def test_each_group_moves_as_optax_partition_moves_it():
    optimizer = groups({"rate*": adam(0.1), "weights/*": sgd(0.05, weight_decay=0.1)})
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05))
    labels = {"rate_a": "r", "rate_b": "r", "weights": {"in": "w", "out": ["w", "w"]}}
    reference = optax.partition({"r": optax.adam(0.1), "w": decayed}, labels)
    fitted, losses = run(optimizer)
    expected, expected_losses = hand_written(loss, reference, START, 5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    close(fitted, expected)


def moved(optimizer):
    """Paths of the parameters that sgd(1.0) moves, where all else is frozen."""
    updates, _ = optimizer.update(START, optimizer.init(START), START)
    flat, _ = jax.tree_util.tree_flatten_with_path(updates)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    return {path for path, x in paths.items() if jnp.any(x != 0)}


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("rate_a", {"rate_a"}),
        ("rate_?", {"rate_a", "rate_b"}),
        ("weights/in", {"weights/in"}),
        ("in", {"weights/in"}),
        ("weights/out/*", {"weights/out/0", "weights/out/1"}),
        ("[01]", {"weights/out/0", "weights/out/1"}),
        ("*", {"rate_a", "rate_b", "weights/in", "weights/out/0", "weights/out/1"}),
    ],
)
def test_patterns_match_whole_paths_and_their_last_parts(pattern, paths):
    assert moved(groups({pattern: sgd(1.0)}, default=optax.set_to_zero())) == paths


def test_the_first_pattern_that_matches_decides():
    assert moved(groups({"rate_a": None, "rate*": sgd(1.0), "*": None})) == {"rate_b"}


NAMES = {"rate_a": "alpha", "rate_b": "beta", "weights": {"in": "w", "out": ["u", "v"]}}


def test_names_match_where_they_are_known():
    optimizer = groups({"alpha": sgd(1.0), "rate_b": sgd(1.0), "[uvw]": None})
    assert moved(by_name(optimizer, NAMES)) == {"rate_a", "rate_b"}
    with pytest.raises(ValueError, match=r"rate_a \(alpha\), rate_b \(beta\), weights/in \(w\)"):
        by_name(groups({"gamma": sgd(1.0)}, default=sgd(1.0)), NAMES).init(START)
    with pytest.raises(
        ValueError, match=r"'alpha' matches none; the free parameters are: rate_a, rate_b"
    ):
        optimizer.init(START)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(10.0), tx),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: lookahead(tx, 100),
        lambda tx: groups({"weights/*": None}, default=tx),
        lambda tx: optax.masked(tx, {"rate_a": True, "rate_b": True, "weights": False}),
    ],
    ids=["chain", "MultiSteps", "apply_if_finite", "lookahead", "groups", "masked"],
)
def test_names_are_known_within_any_wrapper(wrap):
    optimizer = by_name(wrap(groups({"alpha": sgd(1.0)}, default=optax.set_to_zero())), NAMES)
    updates, _ = optimizer.update(START, optimizer.init(START), START)
    assert updates["rate_a"] == -START["rate_a"] and (updates["rate_b"] == 0).all()


def test_names_of_one_fit_do_not_reach_the_next():
    optimizer = groups({"alpha": sgd(1.0)}, default=sgd(1.0))
    by_name(optimizer, NAMES).init(START)
    with pytest.raises(ValueError, match="'alpha' matches none"):
        optimizer.init(START)
    with pytest.raises(ValueError, match="no pattern"):
        by_name(groups({"alpha": None}), NAMES).init(START)
    with pytest.raises(ValueError, match="'alpha' matches none"):
        optimizer.init(START)


def test_fits_at_once_keep_their_names_apart():
    optimizer, found = groups({"alpha": sgd(0.5), "beta": None}), {}

    def fit(first, second):
        state = {"a": Parameter(first, 3.0), "b": Parameter(second, 3.0)}
        found[first], _ = run(optimizer, 1, state, loss=lambda s: (s["a"] - 1) ** 2 + (s["b"] - 1) ** 2)

    threads = [threading.Thread(target=fit, args=x) for x in (("alpha", "beta"), ("beta", "alpha"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"alpha": {"a": 1.0, "b": 3.0}, "beta": {"a": 3.0, "b": 1.0}}


def test_what_optimizers_are_handed_besides_goes_by_name_too():
    def update(updates, state, params=None, *, grad, value_fn, obj_fn, grad_fn, **extra):
        assert jax.tree.structure(updates) == jax.tree.structure(params) == jax.tree.structure(grad)
        assert jax.tree.structure(grad_fn(params)) == jax.tree.structure(params)
        return jax.tree.map(lambda x: x + value_fn(params) + obj_fn(params), updates), state

    probe = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = by_name(optax.chain(groups({"alpha": None}, default=sgd(1.0)), probe), NAMES)
    functions = {"value_fn": loss, "obj_fn": loss, "grad_fn": jax.grad(loss)}
    updates, _ = optimizer.update(START, optimizer.init(START), START, grad=START, **functions)
    close(updates["rate_a"], 2 * loss(START))


def test_without_groups_an_optimizer_gets_the_trees_as_they_are():
    slower = optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, updates, {"a": 0.5, "b": 1.0})
    )
    state = {"a": Parameter("alpha", 3.0), "b": Parameter("beta", 3.0)}
    fitted, _ = run(optax.chain(sgd(0.5), slower), 1, state, loss=lambda s: s["a"] ** 2 + s["b"] ** 2)
    assert fitted == {"a": 1.5, "b": 0.0}


def test_names_change_no_number_of_a_line_search_behind_groups():
    def losses(name):
        search = optax.scale_by_backtracking_linesearch(5, store_grad=True)
        optimizer = optax.chain(groups({"*": sgd(0.8)}), search)
        state = {"a": Parameter(name, 3.0), "b": Parameter("b", 2.0)}
        return run(optimizer, 6, state, loss=lambda s: s["a"] ** 4 + s["b"] ** 2)[1]

    np.testing.assert_array_equal(losses("alpha"), losses("a"))


def test_groups_within_lookahead_go_by_name_through_run():
    state = {"a": Parameter("alpha", 3.0), "b": Parameter("beta", 3.0)}
    optimizer = lookahead(groups({"alpha": sgd(0.1), "beta": None}), 2, 0.5)
    fitted, history = run(optimizer, 4, state, loss=lambda s: (s["a"] - 1) ** 2 + s["b"])
    slow = fast = 3.0
    for _ in range(2):
        fast = 1 + 0.8**2 * (fast - 1)
        slow = fast = slow + 0.5 * (fast - slow)
    np.testing.assert_allclose([fitted["a"], fitted["b"]], [slow, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(10.0), tx),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["chain", "MultiSteps", "apply_if_finite"],
)
def test_groups_within_optax_go_by_name_through_run(wrap):
    state = {"a": Parameter("alpha", 3.0), "b": Parameter("beta", 3.0)}
    optimizer = wrap(groups({"alpha": sgd(0.1), "beta": None}))
    fitted, _ = run(optimizer, 2, state, loss=lambda s: (s["a"] - 1) ** 2 + s["b"])
    np.testing.assert_allclose([fitted["a"], fitted["b"]], [1 + 2 * 0.8**2, 3.0], rtol=1e-6)


def test_a_state_that_is_one_parameter_has_a_name_alone():
    state = Parameter("k", 3.0)
    fitted, _ = run(groups({"k": sgd(0.5)}), 1, state, loss=lambda k: (k - 1) ** 2)
    assert fitted == 1.0
    with pytest.raises(ValueError, match="the pattern 'q' matches none; the free parameters are: k"):
        run(groups({"q": sgd(0.5)}, default=sgd(0.1)), 1, state, loss=lambda k: k**2)


def test_a_pattern_that_matches_nothing_is_an_error_with_the_names():
    names = "the free parameters are: rate_a, rate_b, weights/in, weights/out/0, weights/out/1"
    with pytest.raises(ValueError, match=f"the pattern 'tau' matches none; {names}"):
        run(groups({"tau": sgd(0.1)}, default=sgd(0.1)))


def test_a_pattern_that_comes_too_late_is_an_error():
    with pytest.raises(ValueError, match="'rate_a' finds all its parameters taken by patterns before"):
        run(groups({"*": sgd(0.1), "rate_a": sgd(0.2)}))


def test_a_parameter_that_nothing_matches_is_an_error_with_the_names():
    match = r"no pattern matches weights/in, weights/out/0, weights/out/1: .*'rate\*'"
    with pytest.raises(ValueError, match=match):
        run(groups({"rate*": sgd(0.1)}))


@pytest.mark.parametrize("bad", [[("a", sgd(0.1))], {1: sgd(0.1)}, {"a": optax.sgd}, {"a": 0.1}])
def test_what_is_no_optimizer_is_an_error(bad):
    with pytest.raises(TypeError, match=r"groups takes a dict|a group takes an optimizer"):
        groups(bad)


def test_a_default_that_is_not_needed_is_fine():
    fitted, losses = run(groups({"*": sgd(0.1)}, default=adam(0.1)))
    np.testing.assert_array_equal(losses, run(sgd(0.1))[1])


@pytest.mark.parametrize("frozen", [None, optax.set_to_zero()])
def test_a_frozen_group_keeps_its_bits(frozen):
    fitted, losses = run(groups({"rate*": frozen}, default=adam(0.1)))
    assert losses[-1] < losses[0]
    assert fitted["rate_a"] == START["rate_a"] and (fitted["rate_b"] == START["rate_b"]).all()
    assert fitted["weights"]["in"] != START["weights"]["in"]


def test_freezing_a_group_leaves_the_state_of_the_others_valid():
    both = groups({"rate*": adam(0.1), "weights/*": adam(0.05)})
    frozen = groups({"rate*": None, "weights/*": adam(0.05)})
    _, state = both.update(START, both.init(START), START)
    going_on = frozen.init(START)
    inner = {**going_on.inner_states, "weights/*": state.inner_states["weights/*"]}
    updates, after = frozen.update(START, going_on._replace(inner_states=inner), START)
    expected, expected_after = both.update(START, state, START)
    close(updates["weights"], expected["weights"])
    assert updates["rate_a"] == 0
    label = "weights/*"
    close(after.inner_states[label], expected_after.inner_states[label])


def test_fixed_parameters_are_no_business_of_groups():
    state = parameters()
    state["rate_a"] = state["rate_a"].fix()
    fitted, _ = run(groups({"rate*": sgd(0.1)}, default=sgd(0.1)), state=state)
    assert fitted["rate_a"] == START["rate_a"] and (fitted["rate_b"] != START["rate_b"])[1]


def test_rates_are_read_and_set_by_group():
    optimizer = groups({"rate*": adam(0.5), "in": None}, default=sgd(0.25))
    state = optimizer.init(START)
    assert learning_rate(state) == {"(default)": 0.25, "rate*": 0.5}
    slower = set_learning_rate(state, {"rate*": 0.125})
    assert learning_rate(slower) == {"(default)": 0.25, "rate*": 0.125}
    assert learning_rate(set_learning_rate(state, 2.0)) == {"(default)": 2.0, "rate*": 2.0}
    with pytest.raises(ValueError, match=r"no groups \['in'\] with a learning rate"):
        set_learning_rate(state, {"in": 0.1})


def test_a_group_may_look_ahead():
    optimizer = groups({"rate*": lookahead(sgd(0.1), 2, 0.5)}, default=sgd(0.1))
    params, state = START, optimizer.init(START)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    shown = optimizers.evaluation_params(state, params)
    close(shown["weights"], params["weights"])
    assert shown["rate_a"] != params["rate_a"]


def test_a_line_search_in_a_group_sees_the_others_stand_still():
    optimizer = groups({"rate*": lbfgs(linesearch="backtracking")}, default=sgd(0.1))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        extra = dict(value=value, grad=grads, value_fn=loss)
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = START, optimizer.init(START), []
    for _ in range(8):
        params, state, value = step(params, state)
        losses.append(value)
    assert np.all(np.diff(losses) < 1e-6)
    assert abs(jax.grad(loss)(params)["rate_a"]) < 1e-3
    expected, _ = hand_written(loss, optax.sgd(0.1), START, 8)
    close(params["weights"], expected["weights"])


def test_runs_under_jit_and_vmap():
    def fit(start):
        state = {"a": Parameter("a", start), "rate_a": Parameter("rate_a", 1.0)}
        optimizer = groups({"a": adam(0.1), "rate*": None})
        return fitopt.OptaxOptimizer(loss, optimizer).run(state, max_steps=3)[1]["final_loss"]

    batch = jax.jit(jax.vmap(fit))(jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(batch, [fit(0.0), fit(2.0)], rtol=1e-6)
