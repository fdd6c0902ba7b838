"""LBFGSB: what it promises, on small programs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from fitopt import LBFGSB


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def rosenbrock(y):
    return 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2


@jax.custom_jvp
def lying(y):
    return 1 + jnp.sum(y**2)


lying.defjvp(lambda primals, tangents: (lying(*primals), -jnp.sum(2 * primals[0] * tangents[0])))

UNITS = np.array([1e6, 1e-6])
TIMES = np.linspace(0, 5, 40)
LOSSES = {
    "rosenbrock": rosenbrock,
    "in other units": lambda y: rosenbrock(y / UNITS),
    "with rounding": lambda y: 1e4 + rosenbrock(y),
    "NaN below one": lambda y: jnp.sum(y - 3 * jnp.log(y - 1)),
    "with a kink": lambda y: jnp.maximum(y[0] - 1, 2 - 2 * y[0]) + 1 + (y[1] - 1) ** 2,
    "wrong gradient": lying,
    "next to a pole": lambda y: 1e-9 / (y[0] + 1e-12) + (y[0] - 3) ** 2 + 0.01 * (y[1] - 2) ** 2 + 1,
    "without end": lambda y: -jnp.sum(y**3),
    "bowl": lambda y: 5 + jnp.sum((y - 1) ** 2),
    "decay": lambda y: jnp.sum((y[0] * jnp.exp(-y[1] * TIMES) - 2 * np.exp(-TIMES)) ** 2),
}
NOWHERE = np.full(2, np.inf)


class Run(NamedTuple):
    y: np.ndarray
    state: Any
    well: bool
    steps: int
    points: np.ndarray  # after every step
    trials: np.ndarray


def scanned(solver, fn, y, options, length):
    """The solver's steps until it ends, and whether all was well then."""
    state = solver.init(fn, y, None, options, None, None, frozenset())

    def step(carry, _):
        y, state, done, well = carry
        new = solver.step(fn, y, None, options, state, frozenset())[:2]
        y, state = jax.tree.map(lambda a, b: jnp.where(done, b, a), new, (y, state))
        ended, result = solver.terminate(fn, y, None, options, state, frozenset())
        well = result == optx.RESULTS.successful
        return (y, state, ended | ~well, well), (y, state.y_eval, done)

    return jax.lax.scan(step, (y, state, jnp.array(False), jnp.array(True)), None, length=length)


@jax.jit
def _between(which, start, lower, upper):
    fn = lambda y, args: (jax.lax.switch(which, list(LOSSES.values()), y), None)
    return scanned(LBFGSB(1e-9), fn, start, {"lower": lower, "upper": upper}, 400)


def solve(loss, start, lower=-NOWHERE, upper=NOWHERE):
    """Any loss between any bounds, all by one compiled program."""
    arrays = (np.asarray(x, float) for x in (start, lower, upper))
    (y, state, done, well), (points, trials, before) = _between([*LOSSES].index(loss), *arrays)
    assert done
    return Run(
        np.asarray(y), state, bool(well), int((~before).sum()), np.asarray(points), np.asarray(trials)
    )


@pytest.mark.parametrize(
    ("lower", "upper", "solution", "exact"),
    [
        ((-2, -2), (2, 2), (1, 1), (False, False)),
        ((-2, -2), (0.5, 2), (0.5, 0.25), (True, False)),
        ((1.5, -2), (3, 4), (1.5, 2.25), (True, False)),
        ((0, 2), (1, 3), (1, 2), (True, True)),
        ((0.5, -2), (0.5, 2), (0.5, 0.25), (True, False)),
    ],
)
def test_solutions_from_every_corner(lower, upper, solution, exact):
    for x in (lower[0], upper[0]):
        for y in (lower[1], upper[1]):
            run = solve("rosenbrock", (x, y), lower, upper)
            assert run.well and not run.state.stalled
            np.testing.assert_allclose(run.y, solution, rtol=1e-6)
            assert ((run.y == solution) | ~np.array(exact)).all()


def test_every_trial_keeps_the_bounds():
    lower, upper = np.array([-0.5, -0.1]), np.array([0.7, 1.9])
    run = solve("rosenbrock", lower, lower, upper)
    for visited in (run.points, run.trials):
        assert (visited >= lower).all() and (visited <= upper).all()
    assert run.y[0] == 0.7


def test_units_do_not_matter():
    bounds = np.array([-2.0, -2.0]), np.array([2.0, 2.0])
    scaled = solve("in other units", np.array([-1.2, 1]) * UNITS, *(x * UNITS for x in bounds))
    plain = solve("rosenbrock", [-1.2, 1], *bounds)
    np.testing.assert_allclose(scaled.y / UNITS, 1, rtol=1e-7)
    assert abs(scaled.steps - plain.steps) < 10 and not scaled.state.stalled


def test_the_first_step_aims_half_way_to_bounds_but_no_further_than_the_loss_suggests():
    near = solve("bowl", [0, 2.5], [-4, -4], [4, 4])  # a fall of 2·2 + 3·3.25 from 8.25
    np.testing.assert_allclose(near.trials[0], [2, -0.75])
    far = solve("bowl", [0, 2.5], [-400, -400], [400, 400])
    np.testing.assert_allclose(np.abs(far.trials[0] - [0, 2.5]) @ [2, 3], 2 * 8.25)


def test_bounds_may_be_far_away():
    for start in ([1, 0.1], [9, 0.2], [0.2, 4]):
        run = solve("decay", start, [0, 0], [1e4, 1e4])
        assert not run.state.stalled
        np.testing.assert_allclose(run.y, [2, 1], rtol=1e-6)


def test_not_finite_is_stepped_back_from():
    run = solve("NaN below one", [1.001, 1.5])
    assert run.well and not run.state.stalled and np.isfinite(run.points).all()
    np.testing.assert_allclose(run.y, 4, rtol=1e-7)


@pytest.mark.parametrize("loss", ["with a kink", "wrong gradient"])
def test_stalls(loss):
    assert solve(loss, [0.3, 0.2]).state.stalled


def test_a_huge_first_gradient_is_no_excuse():
    """Next to a pole the gradient falls by any factor, far from the solution."""
    run = solve("next to a pole", [0, 9], [0, 0], [10, 10])
    assert not run.state.stalled
    np.testing.assert_allclose(run.y, [3, 2], rtol=1e-5)


def test_descent_without_end_is_no_success():
    run = solve("without end", [1, 1])
    assert not run.well or run.state.stalled


def test_the_start_is_the_solution():
    for lower, upper, start in (((-2, -2), (2, 2), (1, 1)), ((1, -2), (2, -1), (1, -1))):
        run = solve("bowl", start, lower, upper)
        assert run.well and not run.state.stalled and run.steps == 1


def test_rounding_of_the_loss_does_not_hide_the_solution():
    run = solve("with rounding", [-1.2, 1])
    assert run.well and not run.state.stalled and run.steps < 200
    assert np.abs(run.state.f_info.grad).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unbounded(dtype):
    rtol = 1e-4 if dtype == np.float32 else 1e-8
    fn = lambda y, args: (rosenbrock(y), None)
    run = jax.jit(lambda y: scanned(LBFGSB(rtol), fn, y, {}, 100)[0])
    y, state, done, well = run(np.array([-1.2, 1], dtype))
    assert done and well and not state.stalled
    assert y.dtype == dtype and all(x.dtype == dtype for x in (state.f_info.f, state.memory.steps))
    np.testing.assert_allclose(y, 1, rtol=rtol)


def test_forward_mode():
    def looped(y, args):
        add = lambda c: (c[0] + 1, c[1] + rosenbrock(y))
        return jax.lax.while_loop(lambda c: c[0] < 2, add, (0, 0.0))[1], None

    options = {"autodiff_mode": "fwd"}
    run = jax.jit(lambda y: scanned(LBFGSB(1e-8), looped, y, options, 100)[0])
    y, state, done, well = run(np.array([-1.2, 1]))
    assert done and well and not state.stalled
    np.testing.assert_allclose(y, 1, rtol=1e-7)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_derivative_through_a_scan(direction):
    """Of the solution with respect to what the loss depends on, inside and on bounds."""
    solver, options = LBFGSB(1e-8), {"lower": jnp.array([-2.0, -2.0]), "upper": jnp.array([0.8, 2.0])}

    def solution(a):
        fn = lambda y, args: (jnp.sum(jnp.cosh(y - a * jnp.array([1.0, 2.0])) + 0.1 * y[0] * y[1]), None)
        y = jnp.zeros(2)
        state = solver.init(fn, y, None, options, None, None, frozenset())
        step = lambda c, _: (solver.step(fn, c[0], None, options, c[1], frozenset())[:2], None)
        return jax.lax.scan(step, (y, state), None, length=20)[0][0]

    derivative = jax.jacfwd(solution) if direction == "forward" else jax.jacrev(solution)
    at = jax.jit(lambda a: (solution(a), derivative(a)))
    for a in (0.5, 0.95):
        slopes = np.asarray(at(a)[1])
        h = 1e-5
        np.testing.assert_allclose(slopes, (at(a + h)[0] - at(a - h)[0]) / (2 * h), atol=1e-4)


@pytest.mark.parametrize("arguments", [(1,), (-0.1,), (1e-3, -1), (1e-3, np.inf), (1e-3, 0, 0)])
def test_bad_numbers(arguments):
    with pytest.raises(ValueError, match="LBFGSB"):
        LBFGSB(*arguments)


@pytest.mark.parametrize("arguments", [("a",), (True,), (1e-3, None), (1e-3, 0, 2.5)])
def test_bad_types(arguments):
    with pytest.raises(TypeError, match="LBFGSB"):
        LBFGSB(*arguments)
