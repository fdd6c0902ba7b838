"""`LeastSquares`: optimistix' solvers, what residuals may be, and what else a fit can do with them."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize

from fitopt import LeastSquares, Parameter, callbacks, values

from .conftest import DATA, TIMES, close, counted_compilations

TOLERANCES = {"rtol": 1e-6, "atol": 1e-6}
GAUSS_NEWTON = optx.GaussNewton(**TOLERANCES)
SOLVERS = {
    "LevenbergMarquardt": optx.LevenbergMarquardt(**TOLERANCES),
    "IndirectLevenbergMarquardt": optx.IndirectLevenbergMarquardt(**TOLERANCES),
    "GaussNewton": GAUSS_NEWTON,
    "Dogleg": optx.Dogleg(**TOLERANCES),
    "BestSoFarLeastSquares": optx.BestSoFarLeastSquares(GAUSS_NEWTON),
}
LM = SOLVERS["LevenbergMarquardt"]


class LineSearched(optx.AbstractGaussNewton):
    """A solver put together from optimistix' parts, as its documentation shows."""

    rtol: float = 1e-6
    atol: float = 1e-6
    norm: object = optx.max_norm
    descent: optx.AbstractDescent = optx.NewtonDescent()
    search: optx.AbstractSearch = optx.BacktrackingArmijo()
    verbose: object = staticmethod(lambda **kwargs: None)


class Landweber(optx.AbstractLeastSquaresSolver):
    """A solver from scratch: y - 0.02 Jᵀ r."""

    rtol: float = 1e-6
    atol: float = 1e-6
    norm: object = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), y)

    def step(self, fn, y, args, options, state, tags):
        residuals, pull, aux = jax.vjp(lambda y: fn(y, args), y, has_aux=True)
        change = jax.tree.map(lambda g: -0.02 * g, pull(residuals)[0])
        return jax.tree.map(jnp.add, y, change), change, aux

    def terminate(self, fn, y, args, options, state, tags):
        return self.norm(state) < self.atol, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


OWN = {"parts": LineSearched(), "scratch": Landweber()}
ALL = {**SOLVERS, **OWN}


def residuals(state):
    """A exp(-k t) + C - data."""
    return state["A"] * jnp.exp(-state["k"] * TIMES) + state["C"] - state.get("data", DATA)


def in_double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def sum_of_squares(residuals, state):
    return sum(jnp.sum(jnp.abs(r) ** 2) for r in jax.tree.leaves(residuals(state)))


START = {"A": 1.0, "k": 1.0, "C": 0.0}
BEST = scipy.optimize.least_squares(
    lambda p: p[0] * np.exp(-p[1] * np.asarray(TIMES, float)) + p[2] - np.asarray(DATA, float),
    [*START.values()],
    method="lm",
    xtol=1e-14,
    ftol=1e-14,
)
BEST_VALUES = dict(zip(START, BEST.x, strict=True))


def fitted_values(fitted):
    return {name: np.asarray(fitted[name].value) for name in START}


# optimistix' solvers.


@functools.cache
def fit(name):
    """A fit with 64 bits, and what optimistix' own driver finds."""
    with jax.enable_x64(True):
        state = {name: Parameter(name, np.float64(value)) for name, value in START.items()}
        optimizer = LeastSquares(residuals, ALL[name], callbacks.RecordParameters())
        fitted, history = optimizer.run(state, 2000)
        start = in_double(START)
        theirs = optx.least_squares(lambda y, args: residuals(y), ALL[name], start, max_steps=2000)
        return fitted_values(fitted), history, theirs


def test_every_least_squares_solver_of_optimistix_is_looked_at():
    exported = {
        name
        for name, found in vars(optx).items()
        if inspect.isclass(found)
        and issubclass(found, optx.AbstractLeastSquaresSolver)
        and not name.startswith("Abstract")
    }
    assert exported == {*SOLVERS}


@pytest.mark.parametrize("name", ALL)
def test_solvers_find_what_optimistix_own_driver_finds_in_as_many_steps(name):
    found, history, theirs = fit(name)
    steps = int(theirs.stats["num_steps"])
    # The first step evaluates the start, which most solvers do by themselves.
    assert history["n_steps"] == steps + (name == "scratch")
    rtol = 1e-6 if name == "BestSoFarLeastSquares" else 1e-10  # theirs does not look at the last point
    close(found, theirs.value, rtol=rtol)
    close(found, BEST_VALUES, rtol=1e-4 if name == "scratch" else 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_convergence_ends_the_fit_and_names_the_tolerances(name):
    _, history, _ = fit(name)
    assert history["stop_reason"] == (
        f"{type(ALL[name]).__name__} converged: the last step changed parameters and loss by less than "
        f"its tolerances, rtol=1e-06 and atol=1e-06 (at step {history['n_steps'] - 1})"
    )


@pytest.mark.parametrize("name", ALL)
def test_the_loss_of_a_step_is_the_sum_of_squares_at_the_parameters_recorded_with_it(name):
    found, history, _ = fit(name)
    with jax.enable_x64(True):
        sums = jax.vmap(functools.partial(sum_of_squares, residuals))(history["parameters"])
        np.testing.assert_allclose(history["loss"], sums, rtol=1e-12)
        assert history["loss"][0] == pytest.approx(float(sum_of_squares(residuals, in_double(START))))
        assert history["final_loss"] == pytest.approx(float(sum_of_squares(residuals, found)), rel=1e-12)
    if name in SOLVERS and name != "GaussNewton":
        assert np.all(np.diff(history["loss"]) <= 0)


def test_the_default_solver_finds_scipys_solution_to_eight_digits():
    with jax.enable_x64(True):
        state = {name: Parameter(name, np.float64(value)) for name, value in START.items()}
        fitted, history = LeastSquares(residuals).run(state)
    close(fitted_values(fitted), BEST_VALUES, rtol=1e-8)
    assert history["final_loss"] == pytest.approx(2 * BEST.cost, rel=1e-12)
    assert "LevenbergMarquardt converged" in history["stop_reason"]


def test_the_fit_ends_when_rounding_rejects_a_step_that_changes_nothing():
    # optimistix' own driver makes steps of nothing for ever here.
    x = np.linspace(0.0, 3.0, 30)
    y = 2.0 * np.exp(-1.2 * x) + 0.3 + 0.05 * np.sin(41 * x)
    y[[3, 11, 12, 25]] += [1.5, -0.8, 0.4, 2.0]
    model = lambda p: p["A"] * jnp.exp(-p["k"] * x) + p["C"] - y
    solver = optx.LevenbergMarquardt(rtol=1e-15, atol=1e-15)
    with jax.enable_x64(True):
        state = {name: Parameter(name, np.float64(value)) for name, value in START.items()}
        _, history = LeastSquares(model, solver, loss="huber", f_scale=0.05).run(state)
    assert "converged" in history["stop_reason"] and history["n_steps"] < 100


# Callbacks.

STATE = {name: Parameter(name, value) for name, value in START.items()}


def test_callbacks_see_loss_gradients_and_aux_of_one_and_the_same_point():
    def with_aux(state):
        return residuals(state), {"offset": 2 * state["C"]}

    seen = []

    def look(step, free, fixed, history, aux, loss, grads):
        seen.append((values(free), aux["offset"], float(loss), grads))

    recorders = [callbacks.RecordGradients(), callbacks.RecordAux()]
    _, history = LeastSquares(with_aux, LM, [look, *recorders], has_aux=True).run(STATE)
    squares = functools.partial(sum_of_squares, residuals)
    assert len(seen) == history["n_steps"]
    for step, (params, offset, loss, grads) in enumerate(seen):
        assert loss == pytest.approx(float(squares(params)), rel=1e-5)
        assert float(offset) == 2 * float(params["C"])
        close(grads, jax.grad(squares)(params), rtol=1e-3, atol=1e-4)
        close(grads, jax.tree.map(lambda x, i=step: x[i], history["gradients"]), rtol=1e-6)
    np.testing.assert_array_equal(history["aux"]["offset"], [offset for _, offset, _, _ in seen])


@pytest.mark.parametrize(
    ("callback", "steps", "reason"),
    [
        (callbacks.StopOnLoss(0.1), 3, "StopOnLoss: the loss reached 0.1"),
        (lambda step, *_: step == 1, 2, "asked to stop"),
        (callbacks.EarlyStopping(1, min_delta=1.0), 3, "EarlyStopping"),
    ],
    ids=["traced", "host", "patience"],
)
def test_callbacks_stop_the_fit(callback, steps, reason):
    _, history = LeastSquares(residuals, LM, callback).run(STATE)
    assert history["n_steps"] == steps and reason in history["stop_reason"]


def test_a_fit_whose_optimum_lies_at_bounds_converges_to_that_of_scipy():
    x = np.linspace(0, 4, 20)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.2 * np.random.default_rng(0).normal(size=20)
    with jax.enable_x64(True):
        state = {
            "A": Parameter("A", 2.0),
            "k": Parameter("k", 1.0, lower=0.0, upper=1.1),
            "C": Parameter("C", 0.8, lower=0.7),
        }
        opt = LeastSquares(lambda s: s["A"] * jnp.exp(-s["k"] * x) + s["C"] - y)
        fitted, history = opt.run(state, 1000)
    assert "converged" in history["stop_reason"]
    expected = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * x) + p[2] - y,
        [2.0, 1.0, 0.8],
        bounds=([-np.inf, 0.0, 0.7], [np.inf, 1.1, np.inf]),
        **dict.fromkeys(["ftol", "xtol", "gtol"], 1e-15),
    )
    np.testing.assert_allclose([float(fitted[name]) for name in "AkC"], expected.x, rtol=1e-7)
    assert history["final_loss"] == pytest.approx(2 * expected.cost, rel=1e-7)


def test_keep_best_returns_the_best_point_of_a_solver_that_gets_worse():
    fit = LeastSquares(lambda s: jnp.arctan(s["x"]) + 0.2, GAUSS_NEWTON, callbacks.KeepBest())
    fitted, history = fit.run({"x": Parameter("x", -1.9)}, 5)  # so far off Newton's method diverges
    best = np.min(history["loss"])
    assert history["loss"][-1] > best and history["final_loss"] == best
    assert (np.arctan(float(fitted["x"])) + 0.2) ** 2 == pytest.approx(best, rel=1e-5)


def test_the_fit_goes_on_from_a_state_that_a_callback_has_edited():
    def edit(step, free, fixed, history, aux, loss, grads):
        if step == 2:
            free = {**free, "A": free["A"].replace(value=jnp.array(0.5))}
            return False, free, {**fixed, "data": fixed["data"] + 1.0}

    start = {**STATE, "data": DATA}
    recorder = callbacks.RecordParameters()
    fitted, history = LeastSquares(residuals, LM, [edit, recorder]).run(start)
    assert float(history["parameters"]["A"][3]) == 0.5
    moved = {name: history["parameters"][name][3] for name in START} | {"data": DATA + 1.0}
    assert history["loss"][3] == pytest.approx(float(sum_of_squares(residuals, moved)), rel=1e-5)
    assert float(fitted["C"]) == pytest.approx(BEST_VALUES["C"] + 1.0, rel=1e-4)


# Steps.


def test_no_steps_return_the_state_as_it_is_and_its_sum_of_squares():
    optimizer = LeastSquares(residuals, LM)
    fitted, history = optimizer.run(STATE, max_steps=0)
    expected = float(sum_of_squares(residuals, START))
    assert fitted is STATE and history["loss"].shape == (0,)
    assert history["final_loss"] == pytest.approx(expected, rel=1e-6)
    fitted, history = optimizer.run(STATE, max_steps=1)
    assert history["loss"] == pytest.approx([expected], rel=1e-6)
    assert {name: float(fitted[name]) for name in START} == START
    _, history = optimizer.run(STATE, max_steps=3)
    assert history["n_steps"] == 3 and history["stop_reason"] == "reached max_steps=3"


def test_a_second_run_compiles_nothing_and_the_residuals_are_traced_twice():
    calls = []

    def counted(state):
        calls.append(1)
        return residuals(state)

    optimizer = LeastSquares(counted, LM, sigma=np.full(40, 0.1), loss="soft_l1")
    optimizer.run({**STATE, "data": DATA})
    assert len(calls) == 2  # once for the start, once for the loop
    data = DATA + 1.0
    with counted_compilations() as compiled:
        optimizer.run({**STATE, "data": data})
        optimizer.run({**STATE, "data": data}, 2)
    assert compiled == [] and len(calls) == 2


def test_a_resumed_fit_is_the_fit_that_was_not_interrupted():
    optimizer = LeastSquares(residuals, LM)
    whole, history = optimizer.run(STATE)
    _, part = optimizer.run(STATE, 3)
    resumed, rest = optimizer.run(STATE, resume_from=part)
    np.testing.assert_array_equal(rest["loss"], history["loss"])
    assert rest["stop_reason"] == history["stop_reason"]
    assert fitted_values(resumed) == fitted_values(whole)


def test_a_step_evaluates_the_residuals_once():
    evaluations = []

    def counted(state):
        jax.debug.callback(lambda x: evaluations.append(x), state["A"])
        return residuals(state)

    _, history = LeastSquares(counted, LM, callbacks.RecordGradients()).run(STATE)
    jax.effects_barrier()
    assert len(evaluations) == history["n_steps"]
