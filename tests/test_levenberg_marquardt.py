"""The default solver on test problems of Moré, Garbow and Hillstrom (1981, ACM TOMS 7, 17-41).

They give the sums of squares at the solutions.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from jaxtyping import Array
from scipy.optimize import least_squares

from fitopt import LeastSquares, LevenbergMarquardt, Parameter

SOLVER = LevenbergMarquardt(rtol=1e-8)


def rosenbrock(x):
    return jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x):
    x1, x2 = x
    return jnp.array([-13 + x1 + ((5 - x2) * x2 - 2) * x2, -29 + x1 + ((x2 + 1) * x2 - 14) * x2])


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


_BARD = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]


def bard(x):
    u = jnp.arange(1, 16)
    return jnp.array(_BARD) - (x[0] + u / ((16 - u) * x[1] + jnp.minimum(u, 16 - u) * x[2]))


_GAUSSIAN = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]


def gaussian(x):
    t = (8 - jnp.arange(1, 16)) / 2
    y = jnp.array([*_GAUSSIAN, 0.3989, *_GAUSSIAN[::-1]])
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


_MEYER = [
    34780,
    28610,
    23650,
    19630,
    16370,
    13720,
    11540,
    9744,
    8261,
    7030,
    6005,
    5147,
    4427,
    3820,
    3307,
    2872,
]


def meyer(x):
    t = 45 + 5 * jnp.arange(1, 17)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - jnp.array(_MEYER)


def box(x):
    t = jnp.arange(1, 11) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x):
    return jnp.array(
        [x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2]
    )


def wood(x):
    return jnp.array(
        [
            10 * (x[1] - x[0] ** 2),
            1 - x[0],
            90**0.5 * (x[3] - x[2] ** 2),
            1 - x[2],
            10**0.5 * (x[1] + x[3] - 2),
            10**-0.5 * (x[1] - x[3]),
        ]
    )


_KOWALIK = [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]


def kowalik_osborne(x):
    u = jnp.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    return jnp.array(_KOWALIK) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    t = jnp.arange(1, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


_OSBORNE_1 = [
    0.844,
    0.908,
    0.932,
    0.936,
    0.925,
    0.908,
    0.881,
    0.850,
    0.818,
    0.784,
    0.751,
    0.718,
    0.685,
    0.658,
    0.628,
    0.603,
    0.580,
    0.558,
    0.538,
    0.522,
    0.506,
    0.490,
    0.478,
    0.467,
    0.457,
    0.448,
    0.438,
    0.431,
    0.424,
    0.420,
    0.414,
    0.411,
    0.406,
]


def osborne_1(x):
    t = 10 * jnp.arange(33)
    return jnp.array(_OSBORNE_1) - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


_OSBORNE_2 = [
    1.366,
    1.191,
    1.112,
    1.013,
    0.991,
    0.885,
    0.831,
    0.847,
    0.786,
    0.725,
    0.746,
    0.679,
    0.608,
    0.655,
    0.616,
    0.606,
    0.602,
    0.626,
    0.651,
    0.724,
    0.649,
    0.649,
    0.694,
    0.644,
    0.624,
    0.661,
    0.612,
    0.558,
    0.533,
    0.495,
    0.500,
    0.423,
    0.395,
    0.375,
    0.372,
    0.391,
    0.396,
    0.405,
    0.428,
    0.429,
    0.523,
    0.562,
    0.607,
    0.653,
    0.672,
    0.708,
    0.633,
    0.668,
    0.645,
    0.632,
    0.591,
    0.559,
    0.597,
    0.625,
    0.739,
    0.710,
    0.729,
    0.720,
    0.636,
    0.581,
    0.428,
    0.292,
    0.162,
    0.098,
    0.054,
]


def osborne_2(x):
    t = jnp.arange(65) / 10
    peaks = sum(x[i] * jnp.exp(-((t - x[i + 7]) ** 2) * x[i + 4]) for i in (1, 2, 3))
    return jnp.array(_OSBORNE_2) - (x[0] * jnp.exp(-t * x[4]) + peaks)


def watson(x):
    n = x.size
    t = jnp.arange(1, 30)[:, None] / 29
    j = jnp.arange(n)
    powers = t**j
    slopes = jnp.where(j > 0, j * t ** jnp.maximum(j - 1, 0), 0)
    return jnp.concatenate([slopes @ x - (powers @ x) ** 2 - 1, jnp.array([x[0], x[1] - x[0] ** 2 - 1])])


def chebyquad(x):
    n = x.size
    values, last, this = [], jnp.ones(n), 2 * x - 1
    for i in range(1, n + 1):
        values.append(jnp.mean(this) - (-1.0 / (i * i - 1) if i % 2 == 0 else 0.0))
        last, this = this, 2 * (2 * x - 1) * this - last
    return jnp.stack(values)


def brown_almost_linear(x):
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


def linear_full_rank(x):
    return jnp.append(x, jnp.zeros(10)) - 2 * jnp.sum(x) / 15 - 1


def linear_rank_1(x):
    return jnp.arange(1, 11) * (jnp.arange(1, 6) @ x) - 1


def linear_rank_1_with_zeros(x):
    j = jnp.arange(1, 6)
    weights = jnp.where((j == 1) | (j == 5), 0, j)
    i = jnp.arange(10)
    return jnp.where((i == 0) | (i == 9), 0, i) * (weights @ x) - 1


def biggs(x):
    t = jnp.arange(1, 14) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def gulf(x):
    t = jnp.arange(1, 100) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


PROBLEMS = {
    rosenbrock: ([-1.2, 1.0], 0.0),
    freudenstein_roth: ([0.5, -2.0], 48.9842),
    powell_badly_scaled: ([0.0, 1.0], 0.0),
    brown_badly_scaled: ([1.0, 1.0], 0.0),
    beale: ([1.0, 1.0], 0.0),
    jennrich_sampson: ([0.3, 0.4], 124.362),
    helical_valley: ([-1.0, 0.0, 0.0], 0.0),
    bard: ([1.0, 1.0, 1.0], 8.21487e-3),
    gaussian: ([0.4, 1.0, 0.0], 1.12793e-8),
    meyer: ([0.02, 4000.0, 250.0], 87.9458),
    gulf: ([5.0, 2.5, 0.15], 0.0),
    box: ([0.0, 10.0, 20.0], 0.0),
    powell_singular: ([3.0, -1.0, 0.0, 1.0], 0.0),
    wood: ([-3.0, -1.0, -3.0, -1.0], 0.0),
    kowalik_osborne: ([0.25, 0.39, 0.415, 0.39], 3.07505e-4),
    brown_dennis: ([25.0, 5.0, -5.0, -1.0], 85822.2),
    osborne_1: ([0.5, 1.5, -1.0, 0.01, 0.02], 5.46489e-5),
    biggs: ([1.0, 2.0, 1.0, 1.0, 1.0, 1.0], 0.0),  # and 5.65565e-3 at a local minimum
    osborne_2: ([1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5], 4.01377e-2),
    watson: ([0.0] * 6, 2.28767e-3),
    chebyquad: ([(i + 1) / 9 for i in range(8)], 3.51687e-3),
    brown_almost_linear: ([0.5] * 10, 0.0),
    linear_full_rank: ([1.0] * 5, 10.0),
    linear_rank_1: ([1.0] * 5, 2.14286),
    linear_rank_1_with_zeros: ([1.0] * 5, 3.64706),
}


def solve(residuals, start, solver=SOLVER, max_steps=1000, **bounds):
    """As a user of optimistix does."""
    bounds = {side: jnp.array(values, float) for side, values in bounds.items()}
    function, start = (lambda x, _: residuals(x)), jnp.asarray(start)
    return optx.least_squares(function, solver, start, options=bounds, max_steps=max_steps, throw=False)


class End(NamedTuple):
    """Of a fit that runs without the driver of optimistix."""

    steps: Array
    value: Array
    terminated: Array
    stalled: Array


@functools.cache
def _program(residuals, rtol, first_radius):
    solver = LevenbergMarquardt(rtol, first_radius)
    function = lambda x, _: (residuals(x), None)

    @jax.jit
    def run(start, bounds):
        shapes = jax.eval_shape(residuals, start)
        state = solver.init(function, start, None, bounds, shapes, None, frozenset())
        arrays, rest = eqx.partition(state, eqx.is_array)

        def body(carry):
            count, y, arrays = carry
            state = eqx.combine(arrays, rest)
            y, state, _ = solver.step(function, y, None, bounds, state, frozenset())
            return count + 1, y, eqx.filter(state, eqx.is_array)

        going_on = lambda carry: (carry[0] < 1000) & ~carry[2].terminate
        count, y, arrays = jax.lax.while_loop(going_on, body, (0, start, arrays))
        return End(count, y, arrays.terminate, arrays.stalled)

    return run


def fit(residuals, start, rtol=1e-8, first_radius=1.0, **bounds):
    """The same as `solve`, compiled once for all starts and bounds."""
    bounds = {side: jnp.array(values, float) for side, values in bounds.items()}
    return _program(residuals, rtol, first_radius)(jnp.asarray(start), bounds)


def gradient(residuals, found):
    return jax.jacfwd(residuals)(found).T @ residuals(found)


FROM_AFAR = (rosenbrock, helical_valley, meyer, wood, brown_dennis, osborne_1, watson)  # 10, 100 times


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("residuals", PROBLEMS, ids=lambda f: f.__name__)
def test_it_finds_the_published_sums_of_squares(residuals):
    start, expected = PROBLEMS[residuals]
    factors = [1, 10, 100] if residuals in FROM_AFAR else [1]
    for factor in factors:
        _, found, ended, stalled = fit(residuals, factor * jnp.array(start))
        np.testing.assert_allclose(jnp.sum(residuals(found) ** 2), expected, rtol=5e-6, atol=1e-16)
        assert not stalled
        assert ended


@pytest.mark.parametrize("factor", [1, 100])
@pytest.mark.parametrize(
    ("residuals", "most"), [(linear_rank_1, 10), (linear_rank_1_with_zeros, 10), (powell_singular, 60)]
)
def test_a_singular_jacobian_is_no_reason_to_go_on_for_ever(residuals, most, factor):
    count, *_, stalled = fit(residuals, factor * jnp.array(PROBLEMS[residuals][0]))
    assert count <= most and not stalled


@pytest.mark.parametrize("residuals", [bard, helical_valley], ids=lambda f: f.__name__)
def test_it_does_so_under_the_driver_of_optimistix(residuals):
    start, expected = PROBLEMS[residuals]
    found = solve(residuals, start)
    assert found.result == optx.RESULTS.successful
    np.testing.assert_allclose(jnp.sum(residuals(found.value) ** 2), expected, rtol=5e-6, atol=1e-16)


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
    # Rounding counts by the square of the condition where residuals are large (Wedin 1973).
    np.testing.assert_allclose(found, expected, rtol=1e-19 * condition**2 + 1e-10)


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


# Bounds

LINES = {0.25: lambda x: x - 0.25, 2.0: lambda x: x - 2.0}


@pytest.mark.parametrize(
    ("target", "start", "expected"),
    [(0.25, 1.0, 0.25), (0.25, 0.0, 0.25), (2.0, 0.0, 1.0), (2.0, 1.0, 1.0)],
)
def test_a_start_on_a_bound_leaves_it_and_a_solution_on_one_is_there_exactly(target, start, expected):
    found = fit(LINES[target], [start], lower=[0.0], upper=[1.0])
    assert found.value[0] == expected
    assert found.terminated and not found.stalled


@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0], [2.0, 0.7, 0.6], [9.9, 4.9, 4.9], [0.0, 5.0, 10.0]])
def test_bounds_hold_and_the_solution_on_them_is_that_of_scipy(start):
    lower, upper = np.array([0.0, 0.0, 0.6]), np.array([10.0, 5.0, np.inf])
    start = np.maximum(start, lower)
    found = fit(decay, start, lower=lower, upper=upper).value
    peer = least_squares(
        lambda x: np.asarray(decay(x)), [2.0, 1.0, 0.7], bounds=(lower, upper), xtol=1e-15, ftol=1e-15
    )
    assert found[2] == 0.6  # without bounds it is less
    np.testing.assert_allclose(found[:2], peer.x[:2], rtol=1e-6)
    np.testing.assert_allclose(gradient(decay, found)[:2], 0.0, atol=1e-6)
    assert gradient(decay, found)[2] > 0


@pytest.mark.parametrize("start", [[0.0, 10.0, 5.0], [20.0, 0.0, 5.0]])
def test_a_start_on_a_bound_does_not_send_the_others_away(start):
    time = np.linspace(0, 8, 40)

    def uptake(x):
        return x[0] * x[1] / (x[1] - x[2]) * (jnp.exp(-x[2] * time) - jnp.exp(-x[1] * time))

    data = uptake(np.array([4.0, 2.0, 0.4]))
    found = fit(lambda x: uptake(x) - data, start, lower=[0.0, 0.0, 0.0])
    np.testing.assert_allclose(uptake(found.value), data, atol=1e-6)


def test_no_trial_point_is_out_of_bounds():
    # Where these residuals are not finite nothing has been evaluated: they would have been noticed.
    guarded = lambda x: decay(x) + jnp.where(jnp.all((x >= 0) & (x <= 3)), 0.0, jnp.nan)
    seen = []

    def residuals(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return guarded(x)

    fit(residuals, [3.0, 0.0, 0.0], lower=[0.0] * 3, upper=[3.0] * 3)
    assert len(seen) > 5 and np.all(np.array(seen) >= 0) and np.all(np.array(seen) <= 3)


def test_one_side_may_be_bounded_alone_and_bounds_far_away_change_nothing():
    free = fit(decay, [1.0, 0.5, 0.1])
    for bounds in ({"lower": [-1e9] * 3}, {"upper": [np.inf] * 3}):
        found = fit(decay, [1.0, 0.5, 0.1], **bounds)
        np.testing.assert_array_equal(found.value, free.value)
        assert found.steps == free.steps


def test_units_do_not_matter_within_bounds_either():
    start, units = jnp.array([1.0, 0.5, 3.0]), jnp.array([2.0**40, 2.0**-30, 8.0])
    lower, upper = jnp.array([0.0, 0.0, 0.6]), jnp.array([10.0, jnp.inf, 5.0])
    plain = fit(decay, start, lower=lower, upper=upper)
    scaled = lambda x: 2.0**-20 * decay(x / units)
    other = fit(scaled, start * units, lower=lower * units, upper=upper * units)
    assert plain.steps == other.steps
    np.testing.assert_array_equal(plain.value * units, other.value)


def test_bounds_that_leave_no_room_give_no_nan():
    found = fit(decay, [1.0, 1.3, 0.1], lower=[0.0, 1.3, 0.0], upper=[10.0, 1.3, 5.0]).value
    assert found[1] == 1.3
    np.testing.assert_allclose(gradient(decay, found)[jnp.array([0, 2])], 0.0, atol=1e-6)


def test_fits_in_a_batch_are_those_one_by_one():
    starts = jnp.array([[0.0, 0.0, 0.0], [5.0, 2.0, 3.0], [10.0, 5.0, 5.0]])
    found = lambda start: fit(decay, start, lower=[0.0] * 3, upper=[10.0, 5.0, 5.0]).value
    np.testing.assert_allclose(jax.vmap(found)(starts), [found(x) for x in starts], rtol=1e-7)


# Endings


def steps(residuals, start, count, **bounds):
    """So many steps in a scan, which reverse mode differentiates; unlike optimistix' loop."""
    function, options = (lambda x, _: (residuals(x), None)), {k: jnp.array(x) for k, x in bounds.items()}
    start = jnp.array(start)
    shapes = jax.eval_shape(lambda: residuals(start))
    state = SOLVER.init(function, start, None, options, shapes, None, frozenset())
    arrays, rest = eqx.partition(state, eqx.is_array)

    def body(carry, _):
        y, state, _ = SOLVER.step(
            function, carry[0], None, options, eqx.combine(carry[1], rest), frozenset()
        )
        return (y, eqx.filter(state, eqx.is_array)), None

    return jax.lax.scan(body, (start, arrays), None, length=count)[0][0]


def test_both_modes_differentiate_a_fit_and_a_parameter_on_its_bound_has_no_derivative():
    def fitted(shift):
        residuals = lambda x: decay(x) + shift * jnp.arange(25) / 25
        return steps(residuals, [1.0, 0.5, 1.0], 40, lower=[0.0, 0.0, 0.7], upper=[10.0, 5.0, 5.0])

    forward, reverse = jax.jit(jax.jacfwd(fitted))(0.1), jax.jit(jax.jacrev(fitted))(0.1)
    difference = (jax.jit(fitted)(0.1001) - jax.jit(fitted)(0.0999)) / 0.0002
    assert forward[2] == reverse[2] == difference[2] == 0
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)
    np.testing.assert_allclose(forward, difference, rtol=1e-5)


def test_where_no_step_helps_though_the_gradient_does_not_vanish_it_has_stalled():
    found = solve(lambda x: 1 + jnp.abs(x - 0.3), [1.0])
    assert found.state.terminate and found.state.stalled
    np.testing.assert_allclose(found.value, 0.3, rtol=1e-12)


@pytest.mark.parametrize(
    "residuals", [freudenstein_roth, jennrich_sampson, bard], ids=lambda f: f.__name__
)
def test_rounding_is_no_stalling(residuals):
    found = fit(residuals, PROBLEMS[residuals][0], rtol=0.0)
    assert found.terminated and not found.stalled


def test_a_short_step_by_itself_is_no_convergence():
    # From the first radius alone the steps are short: it goes on until the gradient vanishes.
    found = fit(decay, [1.0, 0.5, 0.1], first_radius=1e-9)
    assert not found.stalled
    np.testing.assert_allclose(found.value, fit(decay, [1.0, 0.5, 0.1]).value, rtol=1e-6)


def test_in_single_precision_it_converges_to_that():
    expected = fit(decay, [1.0, 0.5, 0.1]).value
    narrow = lambda x: decay(x).astype(jnp.float32)
    found = fit(narrow, jnp.array([1.0, 0.5, 0.1], jnp.float32), rtol=1e-5)
    assert found.value.dtype == jnp.float32
    assert found.terminated and not found.stalled
    np.testing.assert_allclose(found.value, expected, rtol=1e-4)


def test_residuals_that_are_not_finite_at_the_start_end_it():
    found = solve(lambda x: jnp.log(x), [-1.0])
    assert found.result == optx.RESULTS.nonlinear_divergence
    assert found.stats["num_steps"] == 1


def test_columns_that_depend_on_each_other_share_a_step():
    found = fit(
        lambda x: jnp.array([1.0, 2.0]) * (x[0] + x[1]) - jnp.array([3.0, 6.0]), [0.0, 0.0]
    ).value
    np.testing.assert_allclose(found, [1.5, 1.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"rtol": "1e-8"}, TypeError),
        ({"rtol": None}, TypeError),
        ({"rtol": True}, TypeError),
        ({"rtol": -1e-8}, ValueError),
        ({"rtol": 1}, ValueError),
        ({"rtol": 1e-8, "first_radius": "1"}, TypeError),
        ({"rtol": 1e-8, "first_radius": 0}, ValueError),
        ({"rtol": 1e-8, "first_radius": float("inf")}, ValueError),
    ],
)
def test_an_argument_out_of_range_is_an_error(arguments, error):
    with pytest.raises(error, match=f"LevenbergMarquardt: {list(arguments)[-1]} must be"):
        LevenbergMarquardt(**arguments)


@pytest.mark.parametrize("upper", [0.7, 1.0, 1.2])
def test_a_solution_on_a_bound_is_exact_in_single_precision_too(upper):
    t = np.linspace(0.0, 4.0, 50, dtype=np.float32)
    data = 2.5 * np.exp(-1.3 * t) + 0.5 + 0.05 * np.sin(37 * t).astype(np.float32)
    fit = LeastSquares(lambda s: s["a"] * jnp.exp(-s["k"] * t) + s["c"] - data)
    bounded = Parameter(jnp.float32(0.5), lower=0, upper=upper)
    state = {"a": Parameter(jnp.float32(1.0)), "k": bounded, "c": Parameter(jnp.float32(0.0))}
    fitted, history = fit.run(state)
    assert history["converged"]
    assert fitted["k"].value == jnp.float32(upper)
