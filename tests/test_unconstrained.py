"""The unconstrained view: against automatic differentiation, numpyro, and known densities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import transforms as theirs

import fitopt
from fitopt import Derived, Parameter, log_density, unconstrained, values
from fitopt.transforms import (
    Affine,
    Bounded,
    Chain,
    Exp,
    Identity,
    Interval,
    Ordered,
    PositiveDefinite,
    Simplex,
    Transform,
)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


X = np.linspace(-3.0, 3.0, 7)

ELEMENTWISE = {
    "identity": Identity(),
    "affine": Affine(2.0, np.linspace(-2.0, 1.5, 7)),
    "exp": Exp(),
    "lower": Interval(1.0, scale=0.3),
    "upper": Interval(upper=-2.0),
    "both": Interval(-1.0, 5.0),
    "both, scale": Interval(-1.0, 5.0, scale=0.2),
    "mixed": Interval([0, 0, 0, -np.inf, -np.inf, 0, -np.inf], [1, 9, np.inf, 1, np.inf, 2, np.inf]),
    "chain": Chain(Affine(0.0, 3.0), Exp(), Affine(1.0, 0.5)),
    "bounded": Bounded(Exp(), 0.1, 10.0),
    "bounded, falling": Bounded(Affine(1.0, -2.0), -3.0),
}


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_slopes_are_those_of_automatic_differentiation(kind):
    transform = ELEMENTWISE[kind]
    slopes = np.diagonal(jax.jacfwd(transform.forward)(jnp.asarray(X)))
    got = transform.log_det_jacobian(jnp.asarray(X))
    np.testing.assert_allclose(got, np.log(np.abs(slopes)), atol=1e-12)


@pytest.mark.parametrize("kind", ["lower", "upper", "both", "mixed", "bounded"])
def test_slopes_stay_finite_far_out_where_they_underflow_themselves(kind):
    far = jnp.full(7, 2000.0)
    for x in (far, -far):
        log_slope, slope_of_it = jax.jvp(ELEMENTWISE[kind].log_det_jacobian, (x,), (jnp.ones(7),))
        assert np.isfinite(log_slope).all() and np.isfinite(slope_of_it).all()


def lower_triangle(matrix):
    return matrix[np.tril_indices(3)]


JOINT = {
    "ordered": (Ordered(), 4, lambda y: y),
    "simplex": (Simplex(), 3, lambda y: y[:-1]),
    "positive definite": (PositiveDefinite(), 6, lower_triangle),
    "chain": (Chain(Affine(0.0, 2.0), Ordered()), 4, lambda y: y),
}


@pytest.mark.parametrize("kind", JOINT)
def test_determinants_are_those_of_automatic_differentiation(kind):
    transform, size, independent = JOINT[kind]
    x = jnp.asarray(np.random.default_rng(0).normal(size=size))
    jacobian = jax.jacfwd(lambda x: independent(transform.forward(x)))(x)
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(transform.log_det_jacobian(x), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["ordered", "simplex", "positive definite"])
def test_determinants_of_several_vectors_add_up(kind):
    transform, size, _ = JOINT[kind]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, size)))
    each = [transform.log_det_jacobian(row) for row in x]
    np.testing.assert_allclose(transform.log_det_jacobian(x), np.sum(each), rtol=1e-12)


NUMPYRO = {
    "exp": (Exp(), theirs.ExpTransform()),
    "affine": (Affine(1.0, -2.0), theirs.AffineTransform(1.0, -2.0)),
    "lower": (Interval(0.0), theirs.SoftplusTransform()),
    "lower, scale": (
        Interval(1.0, scale=2.0),
        theirs.ComposeTransform([theirs.SoftplusTransform(), theirs.AffineTransform(1.0, 2.0)]),
    ),
    "both": (
        Interval(-1.0, 5.0, scale=1.5),  # a quarter of the width
        theirs.ComposeTransform([theirs.SigmoidTransform(), theirs.AffineTransform(-1.0, 6.0)]),
    ),
}


@pytest.mark.parametrize("kind", NUMPYRO)
def test_transforms_and_slopes_are_numpyros(kind):
    ours, other = NUMPYRO[kind]
    slope = 2 * 1.5 / 3.0 if kind == "both" else 1.0
    y = other(jnp.asarray(X) * slope)
    np.testing.assert_allclose(ours.forward(jnp.asarray(X)), y, rtol=1e-12)
    expected = other.log_abs_det_jacobian(jnp.asarray(X) * slope, y) + math.log(slope)
    np.testing.assert_allclose(ours.log_det_jacobian(jnp.asarray(X)), expected, rtol=1e-9)


def test_covariance_matrices_have_numpyros_determinant():
    x = jnp.asarray(np.random.default_rng(3).normal(size=6))
    by_rows = np.array([1, 3, 4, 0, 2, 5])  # numpyro has what is below the diagonal first
    factor_of, square = theirs.LowerCholeskyTransform(), theirs.CholeskyTransform().inv
    factor = factor_of(x[by_rows])
    np.testing.assert_allclose(PositiveDefinite().forward(x), square(factor), rtol=1e-12)
    expected = factor_of.log_abs_det_jacobian(x[by_rows], factor) + square.log_abs_det_jacobian(
        factor, square(factor)
    )
    np.testing.assert_allclose(PositiveDefinite().log_det_jacobian(x), expected, rtol=1e-12)


class Squashed(Transform):
    elementwise = False

    def forward(self, coordinate):
        return jnp.tanh(coordinate) + 0.1 * jnp.sum(coordinate)

    def inverse(self, value):
        return value

    def __hash__(self):
        return 0


def test_transforms_of_ones_own_are_differentiated():
    x = jnp.array([0.2, -0.4])
    expected = np.linalg.slogdet(jax.jacfwd(Squashed().forward)(x))[1]
    np.testing.assert_allclose(Squashed().log_det_jacobian(x), expected)

    class Longer(Squashed):
        def forward(self, coordinate):
            return jnp.append(coordinate, 1.0)

    with pytest.raises(ValueError, match="needs a method log_det_jacobian"):
        Longer().log_det_jacobian(x)


def full_state():
    return {
        "rate": Parameter("rate", 2.0, lower=0, upper=5),
        "w": Parameter("w", [1.0, 2.0, 3.0], mask=[True, False, True], scale=2.0),
        "held": Parameter("held", [1.0, 3.0], lower=[1.0, 0.0], upper=[1.0, 9.0]),
        "z": Parameter("z", 1.0 + 2.0j, scale=3.0),
        "p": Parameter("p", [0.2, 0.3, 0.5], transform=Simplex()),
        "fixed": Parameter("fixed", 7.0, free=False),
        "double": Derived("double", lambda state: 2 * state["rate"]),
        "label": "text",
    }


def test_the_way_to_a_position_and_back_changes_no_value():
    state = full_state()
    view = unconstrained(state)
    back = view.to_state(view.position)
    assert back["label"] == "text" and back["double"] == state["double"]
    assert jax.tree.structure(back) == jax.tree.structure(state)
    plain, again = values(state), values(back)
    for name in ("rate", "w", "held", "z", "p", "fixed", "double"):
        np.testing.assert_allclose(again[name], plain[name], rtol=1e-12)


def test_positions_hold_what_is_fitted_and_nothing_else():
    shapes = {name: x.shape for name, x in unconstrained(full_state()).position.items()}
    assert shapes == {"rate": (), "w": (2,), "held": (1,), "z": (2,), "p": (2,)}


def test_the_determinant_of_a_whole_state_is_that_of_its_fitted_numbers():
    view = unconstrained(full_state())
    flat, unravel = jax.flatten_util.ravel_pytree(view.position)

    def numbers(flat):
        plain = values(view.to_state(unravel(flat)))
        z = plain["z"]
        parts = [plain["held"][1:], plain["p"][:2], plain["rate"][None], plain["w"][jnp.array([0, 2])]]
        return jnp.concatenate([*parts, jnp.stack([z.real, z.imag])])

    expected = np.linalg.slogdet(jax.jit(jax.jacfwd(numbers))(flat))[1]
    np.testing.assert_allclose(view.log_det_jacobian(view.position), expected, rtol=1e-10)


def test_a_density_by_position_integrates_to_one():
    state = {"rate": Parameter("rate", 1.0, lower=0)}
    density = log_density(lambda state: state["rate"] ** 2 / 2 + 0.5 * jnp.log(jnp.pi / 2), state)
    x = jnp.linspace(-40.0, 12.0, 20_001)
    mass = jnp.exp(jax.vmap(lambda x: density({"rate": x}))(x))
    np.testing.assert_allclose(jnp.trapezoid(mass, x), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "use, sentence",
    [
        (lambda: unconstrained({"k": Parameter("k", 1.0, free=False)}), "nothing in the state is free"),
        (lambda: unconstrained(full_state()).to_state({"rate": 1.0}), "position must have"),
        (
            lambda: unconstrained({"k": Parameter("k", 1.0)}).to_state({"k": jnp.zeros(2)}),
            r"'k' must have shape \(\), got \(2,\)",
        ),
    ],
)
def test_bad_positions_are_refused(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use()


def test_a_density_needs_a_scalar_loss():
    density = log_density(lambda state: jnp.zeros(3), full_state())
    with pytest.raises(TypeError, match="must return a real scalar"):
        density(fitopt.unconstrained(full_state()).position)
    with pytest.raises(TypeError, match="loss must be a function"):
        log_density(3, full_state())
