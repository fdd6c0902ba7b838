"""The default solver on test problems of Moré, Garbow and Hillstrom (1981, ACM TOMS 7, 17-41).

They give the sums of squares at the solutions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from scipy.optimize import least_squares

from fitopt import LeastSquares, LevenbergMarquardt, Parameter

SOLVER = LevenbergMarquardt(rtol=1e-8)


def rosenbrock(x):
    return jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x):
    x1, x2 = x
    return jnp.array(
        [-13 + x1 + ((5 - x2) * x2 - 2) * x2, -29 + x1 + ((x2 + 1) * x2 - 14) * x2],
    )


def powell_badly_scaled(x):
    return jnp.array([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x):
    return jnp.array([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x):
    i = jnp.arange(1, 4)
    return jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** i)


def jennrich_sampson(x):
    i = jnp.arange(1, 11)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x):
    theta = jnp.arctan(x[1] / x[0]) / (2 * jnp.pi) + jnp.where(x[0] < 0, 0.5, 0.0)
    return jnp.array([10 * (x[2] - 10 * theta), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


def bard(x):
    y = jnp.array(
        [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
    )
    u = jnp.arange(1, 16)
    return y - (x[0] + u / ((16 - u) * x[1] + jnp.minimum(u, 16 - u) * x[2]))


def powell_singular(x):
    return jnp.array(
        [
            x[0] + 10 * x[1],
            5**0.5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            10**0.5 * (x[0] - x[3]) ** 2,
        ]
    )


def brown_dennis(x):
    t = jnp.arange(1, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


# Start, and the sum of squares at the solution.
PROBLEMS = {
    rosenbrock: ([-1.2, 1.0], 0.0),
    freudenstein_roth: ([0.5, -2.0], 48.9842),
    powell_badly_scaled: ([0.0, 1.0], 0.0),
    brown_badly_scaled: ([1.0, 1.0], 0.0),
    beale: ([1.0, 1.0], 0.0),
    jennrich_sampson: ([0.3, 0.4], 124.362),
    helical_valley: ([-1.0, 0.0, 0.0], 0.0),
    bard: ([1.0, 1.0, 1.0], 8.21487e-3),
    powell_singular: ([3.0, -1.0, 0.0, 1.0], 0.0),
    brown_dennis: ([25.0, 5.0, -5.0, -1.0], 85822.2),
}


def solve(residuals, start):
    start = jnp.array(start)
    return optx.least_squares(lambda x, _: residuals(x), SOLVER, start, max_steps=1000, throw=False)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("residuals", PROBLEMS, ids=lambda f: f.__name__)
def test_it_finds_the_published_sums_of_squares_under_the_driver_of_optimistix(residuals):
    start, expected = PROBLEMS[residuals]
    found = solve(residuals, start).value
    np.testing.assert_allclose(jnp.sum(residuals(found) ** 2), expected, rtol=5e-6, atol=1e-16)


def decay(x):
    t = jnp.linspace(0.0, 3.0, 25)
    return x[0] * jnp.exp(-x[1] * t) + x[2] - (2 * jnp.exp(-1.3 * t) + 0.5 + 0.05 * jnp.sin(9 * t))


def test_units_of_parameters_and_residuals_do_not_matter():
    start, units = jnp.array([1.0, 0.5, 0.1]), jnp.array([2.0**40, 2.0**-30, 8.0])  # exact in binary
    plain = solve(decay, start)
    other = solve(lambda x: 2.0**-20 * decay(x / units), start * units)
    assert plain.stats["num_steps"] == other.stats["num_steps"]
    np.testing.assert_array_equal(plain.value * units, other.value)


def test_fewer_residuals_than_parameters_are_met_exactly():
    found = solve(
        lambda x: jnp.array([x[0] * x[1] - 2.0, x[1] + x[2] ** 2 - 3.0]), [1.0, 1.0, 1.0]
    ).value
    np.testing.assert_allclose([found[0] * found[1], found[1] + found[2] ** 2], [2.0, 3.0], rtol=1e-10)


@pytest.mark.parametrize("condition", [1e2, 1e7])
def test_many_residuals_are_reduced_without_a_loss_of_digits(condition):
    random = np.random.default_rng(0)
    design = np.linalg.qr(random.normal(size=(5_000, 6)))[0] * np.geomspace(1, 1 / condition, 6)
    design = design @ np.linalg.qr(random.normal(size=(6, 6)))[0]
    data = random.normal(size=5_000)
    expected = np.linalg.lstsq(design, data)[0]
    found = solve(lambda x: design @ x - data, np.zeros(6)).value
    np.testing.assert_allclose(found, expected, rtol=1e-14 * condition + 1e-10)


def test_a_parameter_without_effect_stays_where_it_is():
    found = solve(lambda x: decay(x[:3]), [1.0, 0.5, 0.1, 7.0]).value
    assert found[3] == 7.0
    np.testing.assert_allclose(found[:3], solve(decay, [1.0, 0.5, 0.1]).value, rtol=1e-6)


def test_derivatives_of_a_fit_are_those_of_the_implicit_function():
    def fitted(shift):
        state = {"x": Parameter("x", jnp.array([1.0, 0.5, 0.1])), "shift": shift}
        optimizer = LeastSquares(lambda state: decay(state["x"]) + state["shift"] * jnp.arange(25) / 25)
        return optimizer.run(state, max_steps=25)[0]["x"].value

    def moved(shift):
        function = lambda x: np.asarray(decay(jnp.array(x)) + shift * jnp.arange(25) / 25)
        return least_squares(function, [1.0, 0.5, 0.1], xtol=1e-15, ftol=1e-15, gtol=1e-15).x

    tangent = jax.jvp(fitted, (0.1,), (1.0,))[1]
    np.testing.assert_allclose(tangent, (moved(0.1001) - moved(0.0999)) / 0.0002, rtol=1e-4)


def test_residuals_that_are_not_finite_at_a_trial_point_are_stepped_back_from():
    residuals = lambda x: jnp.array([jnp.log(x[0]) - 1.0, 0.1 * (x[0] - 2.0)])
    found = solve(residuals, [60.0]).value  # the first step leads to negative numbers
    expected = least_squares(lambda x: np.asarray(residuals(jnp.array(x))), [2.5], xtol=1e-15).x
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("rtol", "error"),
    [("1e-8", TypeError), (None, TypeError), (True, TypeError), (-1e-8, ValueError), (1, ValueError)],
)
def test_a_tolerance_out_of_range_is_an_error(rtol, error):
    with pytest.raises(error, match="LevenbergMarquardt: rtol must be"):
        LevenbergMarquardt(rtol)
