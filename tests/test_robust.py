"""Robust losses: what they make of a residual, and scipy's solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fitopt import LeastSquares, Parameter
from fitopt.methods.robust import LOSSES

ROBUST = [name for name in LOSSES if name != "linear"]

# What scipy.optimize.least_squares documents, of z = r² in extended precision.
RHO = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * z / (1 + np.sqrt(1 + z)),
    "huber": lambda z: z if z <= 1 else 2 * np.sqrt(z) - 1,
    "cauchy": np.log1p,
    "arctan": np.arctan,
}
SLOPE = {  # dρ/dz
    "soft_l1": lambda z: 1 / np.sqrt(1 + z),
    "huber": lambda z: 1 if z <= 1 else 1 / np.sqrt(z),
    "cauchy": lambda z: 1 / (1 + z),
    "arctan": lambda z: 1 / (1 + z * z),
}
CURVATURE = {  # d²ρ/dz²
    "soft_l1": lambda z: -0.5 * (1 + z) ** -1.5,
    "huber": lambda z: 0 if z <= 1 else -0.5 * z**-1.5,
    "cauchy": lambda z: -1 / (1 + z) ** 2,
    "arctan": lambda z: -2 * z / (1 + z * z) ** 2,
}


def squared(name):
    bend = LOSSES[name]
    return jax.jit(lambda r: jnp.square(bend(r)))


VALUES = {name: squared(name) for name in ROBUST}
SLOPES = {name: jax.jit(jax.grad(squared(name))) for name in ROBUST}
CURVATURES = {name: jax.jit(jax.grad(jax.grad(squared(name)))) for name in ROBUST}


@pytest.mark.parametrize("name", ROBUST)
@settings(deadline=None)
@given(st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
@example(0.0)
@example(1.0)
@example(-1.0)
@example(1.0000001)
@example(0.018581361)  # where the series near 0 gives way to the formula
@example(0.01858136)
@example(1e-20)
def test_bent_residuals_have_the_squares_and_the_slopes_that_scipy_documents(name, residual):
    r = np.float32(residual)
    z = np.longdouble(r) ** 2
    np.testing.assert_allclose(VALUES[name](r), float(RHO[name](z)), rtol=1e-6, atol=1e-37)
    slope = float(SLOPE[name](z)) * 2 * float(r)
    np.testing.assert_allclose(SLOPES[name](r), slope, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("name", ROBUST)
@settings(deadline=None)
@given(st.floats(-1e3, 1e3, width=32, allow_subnormal=False))
@example(0.0)
@example(0.018581361)
@example(0.01858136)
def test_bent_residuals_have_the_curvature_that_scipy_documents(name, residual):
    r = np.float32(residual)
    z = np.longdouble(r) ** 2
    curvature = float(2 * SLOPE[name](z) + 4 * z * CURVATURE[name](z))
    np.testing.assert_allclose(CURVATURES[name](r), curvature, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1e20, 1e30])
def test_residuals_whose_square_overflows_still_count_for_what_they_are(name, size):
    bent = float(LOSSES[name](jnp.float32(-size)))
    assert bent == pytest.approx(-float(np.sqrt(RHO[name](np.longdouble(size) ** 2))), rel=1e-5)
    assert np.isfinite(jax.grad(LOSSES[name])(jnp.float32(-size)))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("residual", [np.inf, -np.inf, np.nan])
def test_residuals_that_are_not_finite_stay_so(name, residual):
    assert np.array_equal(LOSSES[name](jnp.float32(residual)), residual, equal_nan=True)


X = np.linspace(0.0, 3.0, 30)
SIGMA = 0.5 + 0.5 * X
Y = 2.0 * np.exp(-1.2 * X) + 0.3 + 0.05 * np.sin(41 * X)
Y[[3, 11, 12, 25]] += [1.5, -0.8, 0.4, 2.0]
START = {"a": 1.9, "k": 1.0, "c": 0.2}


def decay(p, exp):
    return p["a"] * exp(-p["k"] * X) + p["c"] - Y


@pytest.mark.parametrize(
    ("name", "f_scale", "sigma"),
    [
        ("linear", 0.5, SIGMA),
        ("soft_l1", 0.5, SIGMA),
        ("huber", 0.05, None),
        ("huber", 0.5, SIGMA),
        ("cauchy", 0.05, SIGMA),
        ("arctan", 0.05, None),
    ],
)
def test_robust_fits_are_scipys_to_six_digits_and_the_loss_twice_its_cost(name, f_scale, sigma):
    theirs = scipy.optimize.least_squares(
        lambda p: decay(dict(zip(START, p, strict=True)), np.exp) / (1.0 if sigma is None else sigma),
        [*START.values()],
        loss=name,
        f_scale=f_scale,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-12,
        x_scale="jac",
        max_nfev=10_000,
    )
    with jax.enable_x64(True):
        state = {name: Parameter(name, np.float64(value)) for name, value in START.items()}
        fit = LeastSquares(lambda p: decay(p, jnp.exp), sigma=sigma, loss=name, f_scale=f_scale)
        fitted, history = fit.run(state)
        np.testing.assert_allclose([float(fitted[k]) for k in START], theirs.x, rtol=1e-6)
        assert history["final_loss"] == pytest.approx(2 * theirs.cost, rel=1e-9)
    assert "converged" in history["stop_reason"]
