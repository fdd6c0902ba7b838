"""What `LeastSquares` takes for residuals, parameters, modes and sigma; and what it says of the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.optimize
from jax import lax

from fitopt import LeastSquares, OptaxOptimizer, Parameter, transforms

from .conftest import DATA, TIMES, close
from .test_least_squares import (
    BEST,
    BEST_VALUES,
    LM,
    SOLVERS,
    STATE,
    fitted_values,
    in_double,
    residuals,
)

# Pytrees, complex numbers, Parameters of all kinds.


def test_residuals_may_be_a_pytree_of_any_shapes():
    def split(state):
        r = residuals(state)
        return {"first": r[:10].reshape(2, 5), "rest": [r[10:39], r[39]]}

    fitted, history = LeastSquares(split).run(STATE)
    close(fitted_values(fitted), BEST_VALUES, rtol=1e-4)
    assert history["final_loss"] == pytest.approx(2 * BEST.cost, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("LevenbergMarquardt", "fwd"), ("GaussNewton", "rev"), ("Dogleg", "fwd")],
)
def test_complex_amplitudes_are_those_of_the_linear_problem(name, mode):
    rng = np.random.default_rng(3)
    matrix = (rng.normal(size=(12, 2)) + 1j * rng.normal(size=(12, 2))).astype(np.complex64)
    data = (rng.normal(size=12) + 1j * rng.normal(size=12)).astype(np.complex64)
    state = {"z": Parameter("z", np.zeros(2, np.complex64))}
    fitted, history = LeastSquares(lambda s: matrix @ s["z"] - data, SOLVERS[name]).run(state, mode=mode)
    expected, squares, *_ = np.linalg.lstsq(matrix, data)
    np.testing.assert_allclose(fitted["z"].value, expected, rtol=1e-4)
    assert fitted["z"].dtype == np.complex64
    assert history["final_loss"] == pytest.approx(squares[0], rel=1e-5)


def test_bounds_scales_masks_transforms_and_fixed_parameters_are_kept():
    def model(state):
        assert state["power"] == 2 and isinstance(state["power"], int)
        a, b = state["ab"]
        shape = a * jnp.exp(-state["k"] * TIMES) + b
        return shape * state["size"] + state["offset"] * TIMES ** state["power"] - DATA

    state = {
        "ab": Parameter("ab", [2.0, 0.1], mask=[True, False]),
        "k": Parameter("k", 1.0, lower=0.5, upper=5.0),
        "size": Parameter("size", 1.0, free=False),
        "offset": Parameter("offset", 0.02, transform=transforms.Exp(), scale=0.1),
        "power": 2,
    }
    theirs = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * TIMES) + 0.1 + p[2] * TIMES**2 - DATA, [2.0, 1.0, 0.02]
    )
    fitted, history = LeastSquares(model).run(state)
    found = [float(fitted["ab"][0]), float(fitted["k"]), float(fitted["offset"])]
    np.testing.assert_allclose(found, theirs.x, rtol=1e-3)
    assert history["final_loss"] == pytest.approx(2 * theirs.cost, rel=1e-4)
    assert fitted["ab"][1] == np.float32(0.1) and fitted["size"].value is state["size"].value


def test_a_fit_whose_optimum_lies_outside_comes_to_the_bound():
    state = {**STATE, "k": Parameter("k", 0.8, lower=0.0, upper=1.0)}
    theirs = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * np.asarray(TIMES)) + p[2] - np.asarray(DATA),
        [1.0, 0.8, 0.0],
        bounds=([-np.inf, 0.0, -np.inf], [np.inf, 1.0, np.inf]),
    )
    fitted, history = LeastSquares(residuals).run(state)
    assert float(fitted["k"]) == pytest.approx(1.0, abs=1e-3) and float(fitted["k"]) <= 1.0
    assert history["final_loss"] == pytest.approx(2 * theirs.cost, rel=1e-3)


@pytest.mark.parametrize("name", ["LevenbergMarquardt", "Dogleg"])
def test_single_precision_is_kept_while_double_precision_is_on(name):
    with jax.enable_x64(True):
        fitted, _ = LeastSquares(residuals, SOLVERS[name]).run(STATE)
    close(fitted_values(fitted), BEST_VALUES, rtol=1e-3)
    assert all(fitted[name].dtype == np.float32 for name in STATE)


def test_parameters_and_residuals_may_differ_in_precision():
    with jax.enable_x64(True):
        mixed = {**STATE, "A": Parameter("A", np.float64(1.0))}
        fitted, _ = LeastSquares(residuals).run({**mixed, "data": in_double(DATA)})
    close(fitted_values(fitted), BEST_VALUES, rtol=1e-3)
    assert [fitted[name].dtype for name in ("A", "k")] == [np.float64, np.float32]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_fitted_as_well_as_it_can_be(dtype):
    x = jnp.linspace(0.0, 1.0, 11, dtype=dtype)
    state = {"slope": Parameter("slope", jnp.zeros((), dtype))}
    fitted, _ = LeastSquares(lambda s: s["slope"] * x - 3 * x).run(state)
    assert fitted["slope"].dtype == dtype and float(fitted["slope"]) == pytest.approx(3.0, rel=0.01)


# More Parameters than the data determine.


def test_more_parameters_than_residuals_are_fitted():
    state = {"x": Parameter("x", np.full(5, 0.5))}
    fit = LeastSquares(lambda s: jnp.stack([jnp.sum(s["x"]) - 1.0, s["x"][0] * s["x"][1] - 2.0]))
    fitted, history = fit.run(state)
    assert history["final_loss"] < 1e-10 and np.all(np.isfinite(fitted["x"].value))


def test_levenberg_marquardt_leaves_a_parameter_without_effect_and_gauss_newton_says_why_it_cannot():
    unused = {"x": Parameter("x", 1.0), "unused": Parameter("unused", 5.0)}
    fitted, _ = LeastSquares(lambda s: s["x"] - jnp.arange(3.0)).run(unused)
    assert float(fitted["x"]) == pytest.approx(1.0) and float(fitted["unused"]) == 5.0
    fitted, history = LeastSquares(lambda s: s["x"] - jnp.arange(3.0), SOLVERS["GaussNewton"]).run(
        unused
    )
    assert "GaussNewton could not go on" in history["stop_reason"]
    assert "a parameter has no effect" in history["stop_reason"] and float(fitted["x"]) == 1.0


# Modes.


def with_a_loop(state):
    """The residuals, by a loop whose end reverse mode cannot know."""
    halve = lambda carry: (carry[0] + 1, carry[1] * jnp.exp(-state["k"] * TIMES / 2))
    _, decay = lax.while_loop(lambda carry: carry[0] < 2, halve, (0, state["A"] * jnp.ones_like(TIMES)))
    return decay + state["C"] - DATA


@jax.custom_vjp
def decay(a, k):
    return a * jnp.exp(-k * TIMES)


def decay_pull(saved, g):
    a, k = saved
    return jnp.sum(g * jnp.exp(-k * TIMES)), jnp.sum(-g * a * TIMES * jnp.exp(-k * TIMES))


decay.defvjp(lambda a, k: (decay(a, k), (a, k)), decay_pull)


def with_a_rule(state):
    """The residuals, with a derivative that forward mode cannot use."""
    return decay(state["A"], state["k"]) + state["C"] - DATA


@pytest.mark.parametrize(
    ("function", "mode"),
    [
        (residuals, "fwd"),
        (residuals, "rev"),
        (with_a_loop, None),
        (with_a_loop, "fwd"),
        (with_a_rule, None),
        (with_a_rule, "rev"),
    ],
)
def test_all_modes_find_the_same_where_they_can(function, mode):
    def look(step, free, fixed, history, aux, loss, grads):
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))

    fitted, _ = LeastSquares(function, LM, look).run(STATE, mode=mode)
    close(fitted_values(fitted), BEST_VALUES, rtol=1e-3)


def test_more_parameters_than_residuals_do_not_need_reverse_mode():
    fitted, history = LeastSquares(lambda state: with_a_loop(state)[:2]).run(STATE)
    assert history["final_loss"] < 1e-8


@pytest.mark.parametrize(
    ("function", "solver", "mode", "message"),
    [
        (with_a_loop, LM, "rev", r'residuals contain a lax.while_loop.*run\(..., mode="fwd"\)'),
        (
            with_a_loop,
            SOLVERS["Dogleg"],
            None,
            "while_loop.*Dogleg needs that mode; take another solver",
        ),
        (with_a_rule, LM, "fwd", r'residuals contain a jax.custom_vjp.*run\(..., mode="rev"\)'),
        (residuals, LM, "forward", 'mode must be "rev", "fwd" or None, got \'forward\''),
    ],
)
def test_a_mode_that_does_not_work_is_an_error_that_says_what_to_do(function, solver, mode, message):
    with pytest.raises(ValueError, match=message):
        LeastSquares(function, solver).run(STATE, mode=mode)


# Inside jit, vmap and grad.


def fitted_to(data, steps=12):
    solver = optx.LevenbergMarquardt(rtol=1e-3, atol=1e-3)
    fitted, history = LeastSquares(residuals, solver).run({**STATE, "data": data}, steps)
    return {name: fitted[name].value for name in STATE}, history["final_loss"], history["n_steps"]


def test_many_data_sets_are_fitted_at_once():
    data = jnp.stack([DATA, 2 * DATA, DATA + 1])
    found, losses, steps = jax.jit(jax.vmap(fitted_to))(data)
    for i in range(3):
        alone, loss, alone_steps = fitted_to(data[i])
        close({name: x[i] for name, x in found.items()}, alone, rtol=1e-5)
        assert losses[i] == pytest.approx(loss, rel=1e-5) and steps[i] == alone_steps < 12


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_the_fit_differentiates_like_the_minimum_that_the_data_define(derivative):
    # Where the gradient is zero, JᵀJ dp = Jᵀ d(data) but for terms with the residuals: there are none.
    with jax.enable_x64(True):
        times = in_double(TIMES)
        truth = in_double({"A": 2.5, "k": 1.3, "C": 0.5})
        exact = truth["A"] * jnp.exp(-truth["k"] * times) + truth["C"]

        def rate(data):
            state = {name: Parameter(name, np.float64(x)) for name, x in BEST_VALUES.items()}
            model = lambda s: s["A"] * jnp.exp(-s["k"] * times) + s["C"] - data
            fitted, _ = LeastSquares(model, LM).run(state, 8)
            return fitted["k"].value

        e = np.exp(-1.3 * np.asarray(times))
        jacobian = np.stack([e, -2.5 * np.asarray(times) * e, np.ones(40)], axis=1)
        expected = np.linalg.pinv(jacobian)[1]
        np.testing.assert_allclose(derivative(rate)(exact), expected, rtol=1e-5, atol=1e-8)


# Weights.


@pytest.mark.parametrize("sigma", [0.2, np.linspace(0.1, 1.0, 40)], ids=["number", "array"])
def test_sigma_weights_the_residuals_as_curve_fit_does(sigma):
    times, data = (np.asarray(x, float) for x in (TIMES, DATA))
    theirs, _ = scipy.optimize.curve_fit(
        lambda t, a, k, c: a * np.exp(-k * t) + c,
        times,
        data,
        p0=[1.0, 1.0, 0.0],
        sigma=np.broadcast_to(np.asarray(sigma, float), 40),
        xtol=1e-12,
        ftol=1e-12,
    )
    expected = dict(zip("AkC", theirs, strict=True))
    fitted, history = LeastSquares(residuals, sigma=sigma).run(STATE)
    close(fitted_values(fitted), expected, rtol=1e-3)
    left = (theirs[0] * np.exp(-theirs[1] * times) + theirs[2] - data) / np.asarray(sigma, float)
    assert history["final_loss"] == pytest.approx(np.sum(left**2), rel=1e-4)


def test_sigma_may_be_a_pytree_whose_leaves_are_broadcast():
    def rows(state):
        return {"a": residuals(state).reshape(4, 10), "b": (residuals(state)[:3] + 0j) * 1j}

    per_row = np.array([[0.1], [0.2], [0.3], [0.4]])
    _, history = LeastSquares(rows, sigma={"a": per_row, "b": 0.5}).run(STATE, 0)
    r = np.asarray(residuals({name: p.value for name, p in STATE.items()}))
    expected = np.sum((r.reshape(4, 10) / per_row) ** 2) + np.sum((r[:3] / 0.5) ** 2)
    assert history["final_loss"] == pytest.approx(expected, rel=1e-5)


# What is not finite.


def of_logarithms(state):
    """Zero at a = 0.001 and k = 0.01; NaN where a step goes too far."""
    return jnp.stack([jnp.log(state["a"]) - jnp.log(1e-3), jnp.sqrt(state["k"]) - 0.1])


LOGARITHMS = {"a": Parameter("a", 50.0), "k": Parameter("k", 9.0)}


def test_a_trial_point_with_nan_is_rejected_and_the_fit_goes_on():
    fitted, history = LeastSquares(of_logarithms).run(LOGARITHMS, 200)
    assert float(fitted["a"]) == pytest.approx(1e-3, rel=1e-3)
    assert float(fitted["k"]) == pytest.approx(1e-2, rel=1e-3)
    assert "converged" in history["stop_reason"] and np.all(np.isfinite(history["loss"]))


def test_a_trial_step_that_is_not_finite_itself_is_shortened():
    # Rounding makes optimistix' dogleg take the root of a negative number on the way.
    _, history = LeastSquares(of_logarithms, SOLVERS["Dogleg"]).run(LOGARITHMS, 40)
    assert history["stop_reason"] == "reached max_steps=40"


def test_a_solver_that_rejects_nothing_ends_at_the_last_good_point():
    with pytest.warns(RuntimeWarning, match=r"loss \(nan\) was not finite at step 1"):
        fitted, history = LeastSquares(of_logarithms, SOLVERS["GaussNewton"]).run(LOGARITHMS)
    assert float(fitted["a"]) == 50.0 and np.isfinite(history["final_loss"])
    solver = SOLVERS["BestSoFarLeastSquares"]
    fitted, history = LeastSquares(of_logarithms, solver).run(LOGARITHMS)
    assert float(fitted["a"]) == 50.0 and "could not go on" in history["stop_reason"]


@pytest.mark.parametrize("max_steps", [0, 5])
def test_residuals_that_are_not_finite_at_the_start_are_an_error_that_names_the_parameters(max_steps):
    with pytest.raises(ValueError, match="loss is nan at the start.*a=-1.0, k=9.0"):
        LeastSquares(of_logarithms).run({**LOGARITHMS, "a": Parameter("a", -1.0)}, max_steps)


def test_derivatives_that_are_not_finite_end_the_fit_and_are_named():
    fit = LeastSquares(lambda s: jnp.stack([jnp.sqrt(s["x"]) - 2.0, s["x"] - 1.0]))
    fitted, history = fit.run({"x": Parameter("x", 0.0)})
    assert "could not go on" in history["stop_reason"] and "derivatives" in history["stop_reason"]
    assert float(fitted["x"]) == 0.0 and history["final_loss"] == 5.0


# Arguments of the wrong kind.


def run(function=residuals, state=STATE, **options):
    return LeastSquares(function, **options).run(state, 1)


TABLE = {
    "residuals not callable": (lambda: run(3), TypeError, "residuals must be a function.*3"),
    "an int": (lambda: run(lambda s: 3), TypeError, "must return arrays.*3 of type int"),
    "an array of ints": (lambda: run(lambda s: jnp.arange(3)), TypeError, "not of dtype int32"),
    "booleans": (lambda: run(lambda s: s["A"] > TIMES), TypeError, "not of dtype bool"),
    "a string": (lambda: run(lambda s: "r"), TypeError, "must return arrays.*'r' of type str"),
    "nothing": (lambda: run(lambda s: None), TypeError, "must return arrays.*None"),
    "an empty dict": (lambda: run(lambda s: {}), TypeError, r"must return arrays.*\{\}"),
    "aux without has_aux": (
        lambda: run(lambda s: (residuals(s), "aux")),
        TypeError,
        "must return arrays.*'aux'",
    ),
    "no pair with has_aux": (lambda: run(has_aux=True), TypeError, r"pair \(residuals, aux\)"),
    "has_aux a number": (lambda: run(has_aux=1), TypeError, "has_aux must be True or False, got 1"),
    "solver a class": (
        lambda: run(solver=optx.LevenbergMarquardt),
        TypeError,
        r"LevenbergMarquardt.*call it: LevenbergMarquardt\(rtol, atol\)",
    ),
    "a function of optax": (lambda: run(solver=optax.adam), TypeError, "adam.*fitopt.OptaxOptimizer"),
    "the class of a minimiser": (
        lambda: run(solver=optx.BFGS),
        TypeError,
        "least-squares solver.*BFGS.*fitopt.OptaxOptimizer",
    ),
    "solver of optax": (lambda: run(solver=optax.adam(0.1)), TypeError, "fitopt.OptaxOptimizer"),
    "a minimiser": (lambda: run(solver=optx.BFGS(1e-5, 1e-5)), TypeError, "fitopt.OptaxOptimizer"),
    "a root finder": (lambda: run(solver=optx.Newton(1e-5, 1e-5)), TypeError, "least-squares solver"),
    "solver a string": (lambda: run(solver="lm"), TypeError, "least-squares solver.*'lm'"),
    "max_steps negative": (lambda: LeastSquares(residuals).run(STATE, -1), ValueError, "max_steps"),
    "nothing free": (lambda: run(state={"A": 1.0}), ValueError, "nothing in the state is free"),
    "loss unknown": (lambda: run(loss="tukey"), ValueError, "loss must be one of linear,.*'tukey'"),
    "loss a function": (lambda: run(loss=abs), ValueError, "loss must be one of"),
    "f_scale zero": (lambda: run(f_scale=0.0), ValueError, "f_scale must be positive.*0.0"),
    "f_scale infinite": (lambda: run(f_scale=np.inf), ValueError, "f_scale must be positive.*inf"),
    "f_scale an array": (lambda: run(f_scale=np.ones(2)), TypeError, "f_scale must be a number"),
    "f_scale a string": (lambda: run(f_scale="1"), TypeError, "f_scale must be a number, got '1'"),
    "f_scale None": (lambda: run(f_scale=None), TypeError, "f_scale must be a number, got None"),
    "sigma zero": (lambda: run(sigma=0.0), ValueError, "sigma must be positive.*0.0"),
    "sigma negative": (lambda: run(sigma=-np.ones(40)), ValueError, "sigma must be positive"),
    "sigma NaN": (lambda: run(sigma=np.nan), ValueError, "sigma must be positive and finite.*nan"),
    "sigma infinite": (lambda: run(sigma=np.inf), ValueError, "sigma must be positive and finite.*inf"),
    "sigma complex": (lambda: run(sigma=1j), TypeError, "sigma must hold numbers.*1j"),
    "sigma a string": (lambda: run(sigma="0.1"), TypeError, "sigma must hold numbers.*'0.1'"),
    "sigma too short": (lambda: run(sigma=np.ones(39)), ValueError, r"sigma of shape \(39,\).*\(40,\)"),
    "sigma too deep": (lambda: run(sigma=np.ones((2, 40))), ValueError, r"sigma of shape \(2, 40\)"),
    "sigma of another structure": (
        lambda: run(sigma={"a": 0.1, "b": 0.1}),
        ValueError,
        "one array or have the structure of the residuals",
    ),
    "absolute_sigma without sigma": (
        lambda: run(absolute_sigma=True),
        ValueError,
        "absolute_sigma=True needs a sigma",
    ),
    "absolute_sigma a number": (
        lambda: run(sigma=0.1, absolute_sigma=1),
        TypeError,
        "absolute_sigma must be True or False, got 1",
    ),
    "a solver for OptaxOptimizer": (
        lambda: OptaxOptimizer(lambda s: s["A"] ** 2, LM),
        TypeError,
        r"LevenbergMarquardt of optimistix does not.*fitopt.LeastSquares\(residuals, solver\)",
    ),
    "a root finder for OptaxOptimizer": (
        lambda: OptaxOptimizer(lambda s: s["A"] ** 2, optx.Newton(1e-5, 1e-5)),
        TypeError,
        "Newton of optimistix does not",
    ),
}


@pytest.mark.parametrize("what", TABLE)
def test_bad_input_is_an_error_that_says_what_was_given(what):
    call, error, message = TABLE[what]
    with pytest.raises(error, match=message):
        call()
