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

from fitopt import OptaxOptimizer, Parameter, callbacks, values

from .conftest import close

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

        def function(y, args):
            return valley({**y, "target": state["target"]})

        start = {name: state[name].value for name in ("x", "y")}
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
    close(found, theirs.value, rtol, atol=rtol)


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
