"""The minimum differentiated: against finite differences, closed forms and the steps unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

import fitopt
from fitopt import LeastSquares, OptaxOptimizer, Parameter

X = np.linspace(0.0, 3.0, 20)
Y = 2.0 * np.exp(-1.1 * X) + 0.3 * np.sin(5 * X)  # with large residuals


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def start(rate=1.0, **bounds):
    return {"height": Parameter("height", 1.0), "rate": Parameter("rate", rate, **bounds)}


def residuals_of(y):
    return lambda state: state["height"] * jnp.exp(-state["rate"] * X) - y


def loss_of(y):
    return lambda state: jnp.sum(jnp.square(residuals_of(y)(state)))


FITS = {
    "LevenbergMarquardt": lambda y: LeastSquares(residuals_of(y)).run(start(), 30, adjoint="implicit"),
    "LBFGSB": lambda y: OptaxOptimizer(loss_of(y), fitopt.LBFGSB(rtol=1e-12)).run(
        start(lower=0), 100, adjoint="implicit"
    ),
    "lbfgs of optax": lambda y: OptaxOptimizer(loss_of(y), optax.lbfgs()).run(
        start(lower=0), 60, adjoint="implicit"
    ),
    "forward mode": lambda y: OptaxOptimizer(loss_of(y), fitopt.LBFGSB(rtol=1e-12)).run(
        start(), 100, mode="fwd", adjoint="implicit"
    ),
}


def fitted_numbers(kind):
    def numbers(y):
        state, _ = FITS[kind](y)
        return jnp.stack([state["height"].value, state["rate"].value])

    return numbers


def precise(y):
    """The fitted numbers to all digits: Newton's method with derivatives by hand."""
    height, rate = 2.0, 1.1
    for _ in range(30):
        e = np.exp(-rate * X)
        r, slopes = height * e - y, np.stack([e, -height * X * e])
        mixed = -np.sum(r * X * e)
        curvature = [[0.0, mixed], [mixed, np.sum(r * height * X**2 * e)]]
        step = np.linalg.solve(slopes @ slopes.T + curvature, slopes @ r)
        height, rate = height - step[0], rate - step[1]
    return np.array([height, rate])


@pytest.fixture(scope="module")
def expected():
    """How the fitted numbers change with each datum, by central differences."""
    step = 1e-4
    columns = [(precise(Y + step * e) - precise(Y - step * e)) / (2 * step) for e in np.eye(Y.size)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("kind", FITS)
def test_both_modes_agree_with_finite_differences_to_five_digits(kind, expected):
    numbers, direction = fitted_numbers(kind), np.cos(np.arange(Y.size))

    @jax.jit
    def derivatives(y):
        _, change = jax.jvp(numbers, (y,), (direction,))
        return (change, None) if kind == "forward mode" else (change, jax.jacrev(numbers)(y))

    change, slopes = derivatives(Y)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(change, expected @ direction, atol=2 * tolerance)
    if slopes is not None:
        np.testing.assert_allclose(slopes, expected, atol=tolerance)


def test_data_in_the_state_are_differentiated_too(expected):
    def residuals(state):
        return state["height"] * jnp.exp(-state["rate"] * X) - state["y"]

    optimizer = LeastSquares(residuals)
    rate = lambda y: optimizer.run({**start(), "y": y, "n": 3}, 30, adjoint="implicit")[0]["rate"].value
    np.testing.assert_allclose(jax.jit(jax.grad(rate))(jnp.asarray(Y)), expected[1], atol=1e-6)


def test_second_derivatives_are_those_of_a_closed_form():
    # The minimum of x⁴/4 - y x is the cubic root of y.
    def root(y):
        optimizer = OptaxOptimizer(lambda s: s["x"] ** 4 / 4 - y * s["x"], fitopt.LBFGSB(rtol=1e-14))
        return optimizer.run({"x": Parameter("x", 1.0)}, 50, adjoint="implicit")[0]["x"].value

    y = 2.0
    first, second = jax.jit(jax.value_and_grad(jax.grad(root)))(y)
    np.testing.assert_allclose(first, y ** (-2 / 3) / 3, rtol=1e-6)
    np.testing.assert_allclose(second, -2 / 9 * y ** (-5 / 3), rtol=1e-5)


def test_the_least_loss_has_the_derivative_of_the_envelope():
    def least(y):
        return LeastSquares(residuals_of(y)).run(start(), 30, adjoint="implicit")[1]["final_loss"]

    height, rate = precise(Y)
    np.testing.assert_allclose(
        jax.jit(jax.grad(least))(jnp.asarray(Y)), -2 * (height * np.exp(-rate * X) - Y), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["kept as bounds", "transformed"])
def test_what_a_bound_holds_stays_while_the_others_move(kind):
    def height_and_rate(y):
        state = start(rate=0.4, upper=0.5)  # the best rate is larger
        if kind == "kept as bounds":
            fitted, _ = LeastSquares(residuals_of(y)).run(state, 30, adjoint="implicit")
        else:
            optimizer = OptaxOptimizer(loss_of(y), optimistix.BFGS(1e-10, 1e-10))
            fitted, _ = optimizer.run(state, 200, adjoint="implicit")
        return jnp.stack([fitted["height"].value, fitted["rate"].value])

    slopes = jax.jit(jax.jacrev(height_and_rate))(jnp.asarray(Y))
    shape = np.exp(-0.5 * X)
    np.testing.assert_allclose(slopes[0], shape / np.sum(shape**2), atol=1e-4)
    assert (slopes[1] == 0).all()


def test_masks_and_joint_transforms_are_differentiated_through():
    counts = jnp.array([2.0, 3.0, 5.0])

    def weights(counts):
        state = {
            "p": Parameter("p", [0.3, 0.3, 0.4], transform=fitopt.transforms.Simplex()),
            "w": Parameter("w", [1.0, 7.0], mask=[True, False]),
        }
        loss = lambda s: -jnp.sum(counts * jnp.log(s["p"])) + (s["w"][0] - counts[0] * s["w"][1]) ** 2
        optimizer = OptaxOptimizer(loss, optimistix.BFGS(1e-12, 1e-12))
        fitted, _ = optimizer.run(state, 100, adjoint="implicit")
        return fitted["p"].value, fitted["w"].value

    p, w = jax.jit(jax.jacrev(weights))(counts)
    n = 10.0
    np.testing.assert_allclose(p, np.eye(3) / n - np.asarray(counts)[:, None] / n**2, atol=1e-6)
    np.testing.assert_allclose(w, [[7, 0, 0], [0, 0, 0]], atol=1e-6)


def test_many_fits_inside_vmap_are_differentiated_each_by_itself(expected):
    rate = lambda y: fitted_numbers("LevenbergMarquardt")(y)[1]
    slopes = jax.jit(jax.vmap(jax.grad(rate)))(jnp.stack([Y, Y]))
    np.testing.assert_allclose(slopes, np.stack([expected[1]] * 2), atol=1e-6)


def test_outside_of_a_transformation_nothing_changes():
    fitted, history = LeastSquares(residuals_of(Y)).run(start(), adjoint="implicit")
    np.testing.assert_allclose(fitted["rate"], precise(Y)[1], rtol=1e-7)
    assert history["converged"]


def test_what_the_data_do_not_determine_changes_as_little_as_can_be():
    def ab(y):
        state = {"a": Parameter("a", 1.0), "b": Parameter("b", 1.0)}
        fitted, _ = LeastSquares(lambda s: s["a"] + s["b"] - y).run(state, 10, adjoint="implicit")
        return jnp.stack([fitted["a"].value, fitted["b"].value])

    np.testing.assert_allclose(jax.jit(jax.jacrev(ab))(jnp.array([1.0, 2.0])), np.full((2, 2), 0.25))


def test_an_unknown_adjoint_is_an_error():
    with pytest.raises(ValueError, match='adjoint must be "unrolled" or "implicit"'):
        LeastSquares(residuals_of(Y)).run(start(), adjoint="backward")


def test_it_takes_a_twentieth_of_the_memory_of_unrolled_steps():
    y = jnp.linspace(0.0, 1.0, 500)

    def memory(adjoint):
        def last(y):
            optimizer = OptaxOptimizer(lambda s: jnp.mean(jnp.sin(s["x"] - y) ** 2), optax.sgd(0.1))
            return optimizer.run({"x": Parameter("x", 0.0)}, 500, adjoint=adjoint)[0]["x"].value

        compiled = jax.jit(jax.grad(last)).lower(y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 20 * memory("implicit") < memory("unrolled")
