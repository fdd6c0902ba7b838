"""optimistix' minimisers behind `OptaxOptimizer`: its own driver's results, and what it leaves open."""

import functools
import inspect

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import optimistix as optx
import pytest
from jax.flatten_util import ravel_pytree

from fitopt import OptaxOptimizer, Parameter, callbacks, values

from .conftest import close, counted_compilations

TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}
ADAM = optx.OptaxMinimiser(optax.adam(0.1), **TOLERANCES)

# Each with how many more steps than with optimistix' own driver a fit has: the first one evaluates the
# start, which most of the solvers do by themselves.
MINIMISERS = {
    "BFGS": (optx.BFGS(**TOLERANCES), 0),
    "DFP": (optx.DFP(**TOLERANCES), 0),
    "LBFGS": (optx.LBFGS(**TOLERANCES), 0),
    "NonlinearCG": (optx.NonlinearCG(**TOLERANCES), 0),
    "GradientDescent": (optx.GradientDescent(0.1, **TOLERANCES), 0),
    "NelderMead": (optx.NelderMead(**TOLERANCES), 1),
    "OptaxMinimiser": (ADAM, 1),
    "BestSoFarMinimiser": (optx.BestSoFarMinimiser(ADAM), 1),
}
REFUSED = {"GoldenSearch": optx.GoldenSearch(**TOLERANCES)}  # needs an interval


class TrustRegionBFGS(optx.AbstractBFGS):
    """A minimiser put together from optimistix' parts, as its documentation shows."""

    rtol: float = 1e-5
    atol: float = 1e-5
    norm: object = optx.max_norm
    use_inverse: bool = False
    descent: optx.AbstractDescent = optx.DoglegDescent(linear_solver=lineax.Cholesky())
    search: optx.AbstractSearch = optx.ClassicalTrustRegion()
    verbose: object = staticmethod(lambda **kwargs: None)


class Halving(optx.AbstractMinimiser):
    """A minimiser from scratch: steps of a tenth against the sign of the slope, halved at each turn."""

    rtol: float = 1e-5
    atol: float = 1e-5
    norm: object = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return jax.tree.map(lambda x: jnp.full_like(x, 0.1), y), jax.tree.map(jnp.zeros_like, y)

    def step(self, fn, y, args, options, state, tags):
        size, before = state
        (_, aux), slope = jax.value_and_grad(fn, has_aux=True)(y, args)
        size = jax.tree.map(lambda s, a, b: jnp.where(a * b < 0, s / 2, s), size, slope, before)
        new = jax.tree.map(lambda x, s, g: x - s * jnp.sign(g), y, size, slope)
        return new, (size, slope), aux

    def terminate(self, fn, y, args, options, state, tags):
        return self.norm(state[0]) < self.atol, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


OWN = {"parts": (TrustRegionBFGS(), 0), "scratch": (Halving(), 1)}
STATE = {
    "x": Parameter("x", jnp.array([1.5, -0.5])),
    "y": Parameter("y", 2.0),
    "target": jnp.array([0.25, 1.0]),
}


def valley(state):
    """A smooth function with its least value, 0.5, at x = target and y = 1."""
    x, y = state["x"] - state["target"], state["y"] - 1.0
    return 0.5 + jnp.sum(jnp.cosh(x)) - 2.0 + jnp.log1p(y**2) + 0.3 * jnp.sum(x) * jnp.tanh(y)


def minimum(state):
    return {**values(state), "x": state["target"], "y": 1.0}


@functools.cache
def fit(name):
    """A fit with 64 bits, and what optimistix' own driver finds."""
    solver, _ = {**MINIMISERS, **OWN}[name]
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), STATE)
        fitted, history = OptaxOptimizer(valley, solver, callbacks.RecordParameters()).run(state, 500)

        start, unravel = ravel_pytree({name: state[name].value for name in ("x", "y")})
        start = [*start]  # numbers, as their Nelder-Mead makes no simplex of an array

        def function(y, args):
            return valley({**unravel(jnp.stack(y)), "target": state["target"]})

        theirs = optx.minimise(function, solver, start, max_steps=500, throw=False)
        return fitted, history, theirs


def test_every_minimiser_of_optimistix_is_looked_at():
    exported = {
        name
        for name, found in vars(optx).items()
        if inspect.isclass(found)
        and issubclass(found, optx.AbstractMinimiser)
        and not name.startswith("Abstract")
    }
    assert exported == {*MINIMISERS, *REFUSED}


@pytest.mark.parametrize("name", [*MINIMISERS, *OWN])
def test_minimisers_find_what_optimistix_own_driver_finds_in_as_many_steps(name):
    fitted, history, theirs = fit(name)
    more = {**MINIMISERS, **OWN}[name][1]
    assert history["n_steps"] == int(theirs.stats["num_steps"]) + more
    found = {"x": fitted["x"].value, "y": fitted["y"].value}
    rtol = 1e-3 if "BestSoFar" in name else 1e-10  # theirs does not look at the last point
    close(np.concatenate([found["x"], found["y"][None]]), np.array(theirs.value), rtol, atol=rtol)


@pytest.mark.parametrize("name", [*MINIMISERS, *OWN])
def test_convergence_ends_the_fit_and_names_the_tolerances(name):
    _, history, _ = fit(name)
    assert "converged" in history["stop_reason"]
    assert "rtol=1e-05 and atol=1e-05" in history["stop_reason"]
    assert f"(at step {history['n_steps'] - 1})" in history["stop_reason"]
    assert history["final_loss"] < 0.5 + (0.02 if name == "OptaxMinimiser" else 1e-4)


@pytest.mark.parametrize("name", [*MINIMISERS, *OWN])
def test_the_loss_of_a_step_is_that_of_the_parameters_recorded_with_it_and_begins_at_the_start(name):
    fitted, history, _ = fit(name)
    with jax.enable_x64(True):
        recorded = {**history["parameters"], "target": STATE["target"].astype(jnp.float64)}
        in_axes = ({"x": 0, "y": 0, "target": None},)
        losses = jax.vmap(valley, in_axes)(recorded)
        np.testing.assert_allclose(history["loss"], losses, rtol=1e-12)
        np.testing.assert_allclose(history["loss"][0], valley(values(STATE)), rtol=1e-6)
        assert history["final_loss"] == pytest.approx(float(valley(values(fitted))), rel=1e-12)


def test_best_so_far_never_gets_worse_where_the_minimiser_does():
    alone, best = fit("OptaxMinimiser")[1]["loss"], fit("BestSoFarMinimiser")[1]["loss"]
    assert np.any(np.diff(alone) > 0)
    np.testing.assert_allclose(best, np.minimum.accumulate(alone), rtol=1e-12)


@pytest.mark.parametrize("name", ["BFGS", "NelderMead", "OptaxMinimiser"])
def test_no_steps_return_the_state_as_it_is_and_one_step_evaluates_it(name):
    optimizer = OptaxOptimizer(valley, MINIMISERS[name][0])
    expected = float(valley(values(STATE)))
    fitted, history = optimizer.run(STATE, max_steps=0)
    assert fitted is STATE and history["final_loss"] == pytest.approx(expected, rel=1e-6)
    fitted, history = optimizer.run(STATE, max_steps=1)
    assert history["loss"] == pytest.approx([expected], rel=1e-6)
    assert float(fitted["y"]) == 2.0 and history["stop_reason"] == "reached max_steps=1"


@pytest.mark.parametrize("name", ["DFP", "OptaxMinimiser"])
def test_callbacks_see_loss_gradients_and_aux_of_one_and_the_same_point(name):
    seen = []

    def look(step, free, fixed, history, aux, loss, grads):
        seen.append((values(free), float(aux), float(loss), grads))
        return step == 9

    optimizer = OptaxOptimizer(
        lambda state: (valley(state), state["y"] ** 2), MINIMISERS[name][0], look, has_aux=True
    )
    _, history = optimizer.run(STATE, 100)
    assert len(seen) == history["n_steps"] == 10 and "asked to stop" in history["stop_reason"]
    for params, aux, loss, grads in seen:
        state = {**params, "target": STATE["target"]}
        assert loss == pytest.approx(float(valley(state)), rel=1e-6)
        assert aux == pytest.approx(float(params["y"] ** 2), rel=1e-6)
        expected = jax.grad(lambda p: valley({**p, "target": STATE["target"]}))(params)
        close(grads, expected, rtol=1e-4, atol=1e-5)


def test_the_fit_goes_on_from_a_state_that_a_callback_has_edited():
    def edit(step, free, fixed, history, aux, loss, grads):
        if step == 3:
            return False, {**free, "y": free["y"].replace(value=jnp.array(3.0))}, fixed

    solver = MINIMISERS["BFGS"][0]
    fitted, history = OptaxOptimizer(valley, solver, [edit, callbacks.RecordParameters()]).run(
        STATE, 200
    )
    assert float(history["parameters"]["y"][4]) == 3.0
    assert history["loss"][4] > history["loss"][3]
    close({name: fitted[name].value for name in "xy"}, {"x": STATE["target"], "y": 1.0}, atol=1e-2)


@pytest.mark.parametrize("name", ["LBFGS", "NelderMead", "BFGS"])
def test_single_precision_is_kept_while_double_precision_is_on(name):
    with jax.enable_x64(True):
        fitted, history = OptaxOptimizer(valley, MINIMISERS[name][0]).run(STATE, 500)
    assert fitted["x"].dtype == fitted["y"].dtype == np.float32
    assert history["final_loss"] == pytest.approx(0.5, abs=1e-3)


def test_complex_parameters_find_their_target():
    target = np.array([0.5 - 0.25j, -1.0 + 2.0j], np.complex64)
    state = {"z": Parameter("z", np.array([1 + 2j, 3 - 1j], np.complex64))}
    optimizer = OptaxOptimizer(lambda s: jnp.sum(jnp.abs(s["z"] - target) ** 2), MINIMISERS["BFGS"][0])
    fitted, _ = optimizer.run(state, 100)
    np.testing.assert_allclose(fitted["z"].value, target, atol=1e-4)


def test_a_second_run_compiles_nothing_and_the_loss_is_traced_twice():
    calls = []

    def counted(state):
        calls.append(1)
        return valley(state)

    optimizer = OptaxOptimizer(counted, MINIMISERS["LBFGS"][0])
    optimizer.run(STATE, 20)
    other = {**STATE, "target": STATE["target"] + 0.1}
    with counted_compilations() as compiled:
        optimizer.run(other, 30)
    assert compiled == [] and len(calls) == 2


def test_many_problems_are_minimised_at_once():
    solver = optx.BFGS(rtol=1e-3, atol=1e-3)

    def find(target):
        fitted, history = OptaxOptimizer(valley, solver).run({**STATE, "target": target}, 40)
        return fitted["x"].value, history["n_steps"]

    targets = jnp.array([[0.25, 1.0], [0.0, 0.5], [-1.0, 1.0]])
    found, steps = jax.jit(jax.vmap(find))(targets)
    np.testing.assert_allclose(found, targets, atol=2e-2)
    assert np.all(steps < 40) and int(steps[0]) == find(targets[0])[1]


# Losses that are not smooth, or not defined everywhere.


def staircase(state):
    """Without a derivative: what a callback to NumPy computes, and a loop besides."""
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    value = jax.pure_callback(
        lambda x: np.float32(np.round(x, 3)), shape, state["x"], vmap_method="sequential"
    )
    _, twice = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + value), (0, 0.0))
    return (twice / 2 - 2.0) ** 2


def test_nelder_mead_asks_for_no_derivatives():
    seen = []
    look = lambda step, free, fixed, history, aux, loss, grads: seen.append(grads["x"])
    fitted, _ = OptaxOptimizer(staircase, MINIMISERS["NelderMead"][0], look).run(
        {"x": Parameter("x", 1.0)}, 100
    )
    assert float(fitted["x"]) == pytest.approx(2.0, abs=1e-2)
    assert np.all(np.isnan(seen))  # there are none


def with_a_loop(state):
    """(x - 4)², by a loop whose end reverse mode cannot know."""
    halve = lambda carry: (carry[0] + 1, carry[1] / 2)
    _, quarter = jax.lax.while_loop(lambda carry: carry[0] < 2, halve, (0, state["x"]))
    return 16 * (quarter - 1.0) ** 2


def test_forward_mode_fits_through_a_while_loop():
    optimizer = OptaxOptimizer(with_a_loop, MINIMISERS["BFGS"][0], callbacks.RecordGradients())
    fitted, history = optimizer.run({"x": Parameter("x", 0.0)}, 60, mode="fwd")
    assert float(fitted["x"]) == pytest.approx(4.0, rel=1e-4)
    assert history["gradients"]["x"][0] == pytest.approx(-8.0)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("BFGS", "rev", r'loss contains a lax.while_loop.*call run\(..., mode="fwd"\)'),
        ("OptaxMinimiser", "fwd", "while_loop.*OptaxMinimiser needs that mode; take another solver"),
    ],
)
def test_a_mode_that_does_not_work_is_an_error_that_says_what_to_do(name, mode, message):
    with pytest.raises(ValueError, match=message):
        OptaxOptimizer(with_a_loop, MINIMISERS[name][0]).run({"x": Parameter("x", 0.0)}, 5, mode)


def of_a_root(state):
    """Least at x = 0.25; NaN where a step goes too far."""
    return (jnp.sqrt(state["x"]) - 0.5) ** 2 + 0.01 * state["x"] ** 2


@pytest.mark.parametrize("name", ["BFGS", "NonlinearCG", "NelderMead"])
def test_a_trial_point_with_nan_is_rejected_and_the_fit_goes_on(name):
    solver = MINIMISERS[name][0]
    start = {"x": Parameter("x", 60.0)}
    fitted, history = OptaxOptimizer(of_a_root, solver).run(start, 500)
    assert float(fitted["x"]) == pytest.approx(0.25, rel=0.05)
    assert np.all(np.isfinite(history["loss"])) and "converged" in history["stop_reason"]


@pytest.mark.parametrize("name", ["BFGS", "NelderMead", "OptaxMinimiser"])
def test_a_loss_that_is_not_finite_at_the_start_is_an_error_that_names_the_parameters(name):
    with pytest.raises(ValueError, match="loss is nan at the start of the fit, with x=-1.0"):
        OptaxOptimizer(of_a_root, MINIMISERS[name][0]).run({"x": Parameter("x", -1.0)}, 5)


def test_derivatives_that_are_not_finite_end_the_fit_and_are_named():
    optimizer = OptaxOptimizer(of_a_root, MINIMISERS["LBFGS"][0])
    fitted, history = optimizer.run({"x": Parameter("x", 0.0)}, 20)
    assert "LBFGS could not go on" in history["stop_reason"] and "derivatives" in history["stop_reason"]
    assert float(fitted["x"]) == 0.0 and history["final_loss"] == 0.25


def test_a_solver_that_needs_an_interval_is_refused():
    with pytest.raises(ValueError, match="GoldenSearch needs an interval"):
        OptaxOptimizer(of_a_root, REFUSED["GoldenSearch"]).run({"x": Parameter("x", 1.0)}, 5)
