"""Errors of losses that JAX differentiates in one mode only, or only once, or not often."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import LeastSquares, OptaxOptimizer, Parameter

from .conftest import counted_compilations

X = np.linspace(0.0, 4.0, 9)
Y = 2.5 * np.exp(-1.3 * X) + 0.2 * np.random.default_rng(0).normal(size=9)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


@jax.custom_vjp
def reverse_only(x):
    return jnp.exp(-x)


reverse_only.defvjp(lambda x: (jnp.exp(-x), jnp.exp(-x)), lambda y, g: (-y * g,))


@jax.custom_vjp
def once(x):
    return jnp.exp(-x)


def negative(y):
    return jax.pure_callback(lambda y: -np.asarray(y), jax.ShapeDtypeStruct(y.shape, y.dtype), y)


once.defvjp(lambda x: (jnp.exp(-x), jnp.exp(-x)), lambda y, g: (negative(y) * g,))


def forward_only(x):
    return jax.lax.while_loop(lambda c: c[1] < 1, lambda c: (jnp.exp(-c[0]), c[1] + 1), (x, 0))[0]


def start():
    return {"A": Parameter(2.5), "k": Parameter(1.3)}


def model(exp, state, x=X):
    return state["A"] * exp(state["k"] * x)


def fits(exp):
    squares = LeastSquares(lambda s: model(exp, s) - Y, sigma=0.2, absolute_sigma=True)
    loss = lambda s: jnp.sum((model(exp, s) - Y) ** 2) / 0.08
    return squares, OptaxOptimizer(loss, optax.sgd(0.1))


@pytest.fixture(scope="module")
def known():
    opts = fits(lambda x: jnp.exp(-x))
    fitted, _ = opts[0].run(start())
    return fitted, *(opt.uncertainty(fitted) for opt in opts)


@pytest.mark.parametrize("exp", [reverse_only, forward_only, once])
def test_a_mode_that_works_is_found(known, exp):
    fitted, squares, likelihood = known
    tolerance = 1e-5 if exp is once else 1e-9
    for opt, expected in zip(fits(exp), (squares, likelihood), strict=True):
        found = opt.uncertainty(fitted)
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=tolerance)
        assert any("differences of gradients" in m for m in found.messages) == (
            exp is once and expected is likelihood
        )
        _, error = found.propagate(lambda s: model(exp, s, X[:3]))
        _, same = expected.propagate(lambda s: model(lambda x: jnp.exp(-x), s, X[:3]))
        np.testing.assert_allclose(error, same, rtol=tolerance)
    ends = found.confidence_intervals(0.68, parameters=["k"])["k"]
    np.testing.assert_allclose(
        ends, squares.confidence_intervals(0.68, parameters=["k"])["k"], rtol=1e-4
    )


def test_a_loss_may_be_more_precise_than_its_parameters():
    single = {name: Parameter(np.float32(one.value)) for name, one in start().items()}
    with pytest.warns(RuntimeWarning, match="not come to the minimum"):
        found = fits(forward_only)[1].uncertainty(single)
    assert not any("differences" in message for message in found.messages)


def test_a_mode_that_is_asked_for_is_the_one_that_is_taken(known):
    fitted, squares, likelihood = known
    for opt in fits(reverse_only):
        with pytest.raises(TypeError, match="custom_vjp"):
            opt.uncertainty(fitted, mode="fwd")
    with pytest.raises(TypeError, match="custom_vjp"):
        squares.propagate(lambda s: model(reverse_only, s), mode="fwd")
    with pytest.raises(ValueError, match='mode must be "rev", "fwd" or None, got 1'):
        squares.propagate(lambda s: s["A"], mode=1)
    with pytest.raises(ValueError, match="Reverse-mode"):
        fits(forward_only)[1].uncertainty(fitted, mode="rev")


def test_differences_stay_within_bounds():
    def loss(state):  # e^x - x, which is least and has a curvature of one at x = 0
        p = state["p"]
        return jnp.where(p < 0, jnp.nan, once(0.002 - p) - p)

    opt = OptaxOptimizer(loss, optax.sgd(0.1))
    found = opt.uncertainty({"p": Parameter("p", 0.002, lower=0.0)})
    assert "differences of gradients" in found.messages[0]
    assert found.standard_errors["p"] == pytest.approx(1.0, rel=1e-3)


def test_some_errors_come_from_products_in_a_mode_that_works(known):
    fitted, _, likelihood = known
    found = fits(forward_only)[1].uncertainty(fitted, parameters=["k"])
    assert found.standard_errors["k"] == pytest.approx(likelihood.standard_errors["k"])


def test_propagate_compiles_once_for_each_function(known):
    fitted, squares, _ = known
    traces = []

    def curve(state):
        traces.append(state)
        return model(lambda x: jnp.exp(-x), state, state["x"])

    elsewhere = [{**fitted, "x": X + shift} for shift in (0.0, 1.0)]
    first = squares.propagate(curve, elsewhere[0])[1]
    with counted_compilations() as compilations:
        second = squares.propagate(curve, elsewhere[1])[1]
        squares.propagate(curve, elsewhere[0])
    assert len(traces) == 1 and not compilations
    assert not np.allclose(first, second)


def test_diffrax_needs_no_other_adjoint():
    """Euler's method for y' = -k y gives A (1 - k h)^n, exactly."""
    diffrax = pytest.importorskip("diffrax")
    term = diffrax.ODETerm(lambda t, y, args: -args * y)

    def solution(state):
        given = (term, diffrax.Euler(), 0.0, X[-1], 0.5, state["A"], state["k"])
        return diffrax.diffeqsolve(*given, saveat=diffrax.SaveAt(ts=jnp.asarray(X)), max_steps=16).ys

    exact = lambda s: s["A"] * (1 - 0.5 * s["k"]) ** (2 * X)
    expected = LeastSquares(lambda s: exact(s) - Y)
    fitted, _ = expected.run(start())
    expected = expected.uncertainty(fitted)
    found = LeastSquares(lambda s: solution(s) - Y).uncertainty(fitted)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6)
    loss = lambda s, y: jnp.sum((y - Y) ** 2) / (2 * expected.variance)
    dense, known = (
        OptaxOptimizer(lambda s, model=model: loss(s, model(s)), optax.sgd(0.1)).uncertainty(fitted)
        for model in (solution, exact)
    )
    np.testing.assert_allclose(dense.covariance, known.covariance, rtol=1e-3)
