"""Priors: the mode of a posterior that is known, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import fitopt
from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter, with_priors

RNG = np.random.default_rng(4)
X = np.stack([np.ones(20), np.linspace(-1.0, 2.0, 20)], axis=1)
SIGMA = 0.3
Y = X @ [0.7, -1.2] + SIGMA * RNG.normal(size=20)

MEAN, DEVIATION = np.array([0.0, 1.0]), np.array([0.5, 0.2])
# The posterior of a linear model with normal priors, by its formula.
PRECISION = X.T @ X / SIGMA**2 + np.diag(DEVIATION**-2)
POSTERIOR = np.linalg.solve(PRECISION, X.T @ Y / SIGMA**2 + MEAN / DEVIATION**2)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def start():
    return {"layers": [{"w": Parameter([0.0, 0.0])}]}


def residuals(state):
    return X @ state["layers"][0]["w"] - Y


def nll(state):
    return 0.5 * jnp.sum(jnp.square(residuals(state) / SIGMA))


NORMAL = {  # made where they are needed, in double precision
    "numpyro": lambda: dist.Normal(MEAN, DEVIATION),
    "independent": lambda: dist.Normal(MEAN, DEVIATION).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(MEAN, np.diag(DEVIATION**2)),
    "a function": lambda: lambda w: -0.5 * jnp.square((w - MEAN) / DEVIATION),
}


@pytest.mark.parametrize("prior", ["numpyro", "a function"])
def test_the_minimum_and_the_errors_are_those_of_the_posterior(prior):
    loss = with_priors(nll, {"layers/0/w": NORMAL[prior]()})
    optimizer = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-10))
    fitted, _ = optimizer.run(start())
    np.testing.assert_allclose(fitted["layers"][0]["w"], POSTERIOR, rtol=1e-6)
    covariance = optimizer.uncertainty(fitted).covariance
    np.testing.assert_allclose(covariance, np.linalg.inv(PRECISION), rtol=1e-6)


def test_least_squares_takes_normal_priors_as_residuals():
    posterior = with_priors(residuals, {"layers/0/w": NORMAL["multivariate"]()})
    optimizer = LeastSquares(posterior, sigma=SIGMA, absolute_sigma=True)
    fitted, history = optimizer.run(start())
    np.testing.assert_allclose(fitted["layers"][0]["w"], POSTERIOR, rtol=1e-8)
    uncertainty = optimizer.uncertainty(fitted)
    np.testing.assert_allclose(uncertainty.covariance, np.linalg.inv(PRECISION), rtol=1e-8)
    assert uncertainty.n_data == 22 and history["converged"]


def test_normal_priors_of_all_kinds_differ_by_a_constant_alone():
    plain = [{"layers": [{"w": jnp.asarray(w)}]} for w in ([0.3, 0.1], [-2.0, 1.5])]
    zero = lambda state: jnp.zeros(())
    squares = np.sum(((np.array([[0.3, 0.1], [-2.0, 1.5]]) - MEAN) / DEVIATION) ** 2, axis=1)
    for name, prior in NORMAL.items():
        loss = with_priors(zero, {"w": prior()})
        np.testing.assert_allclose(loss(plain[1]) - loss(plain[0]), np.diff(squares)[0] / 2)
        if name != "a function":
            found = [jnp.sum(loss.residuals(state)["w"] ** 2) for state in plain]
            np.testing.assert_allclose(found, squares)


def test_any_optimizer_finds_the_mode():
    loss = with_priors(nll, {"layers/0/w": NORMAL["numpyro"]()})
    fitted, _ = OptaxOptimizer(loss, optax.adam(0.02)).run(start(), 1500)
    np.testing.assert_allclose(fitted["layers"][0]["w"], POSTERIOR, rtol=1e-4)


def test_auxiliary_data_pass_through():
    loss = with_priors(lambda state: (nll(state), {"n": 3}), {"layers/0/w": NORMAL["numpyro"]()})
    value, aux = loss({"layers": [{"w": jnp.zeros(2)}]})
    assert aux == {"n": 3} and float(value) > float(nll({"layers": [{"w": jnp.zeros(2)}]}))
    _, history = OptaxOptimizer(loss, optax.adam(0.02), has_aux=True).run(start(), 2)
    assert history["n_steps"] == 2


def test_the_end_of_a_place_will_do_where_only_one_has_it():
    state = {"a": {"rate": jnp.array(2.0), "width": jnp.array(1.0)}, "b": {"width": jnp.array(3.0)}}
    zero = lambda state: jnp.zeros(())
    prior = dist.Normal(0.0, 1.0)
    assert float(with_priors(zero, {"rate": prior})(state)) == -float(prior.log_prob(2.0))
    assert float(with_priors(zero, {"b/width": prior})(state)) == -float(prior.log_prob(3.0))
    with pytest.raises(ValueError, match="there is more than one called 'width'"):
        with_priors(zero, {"width": prior})(state)


def test_what_is_derived_may_have_a_prior_and_by_hand_the_loss_is_the_same():
    state = {"k": Parameter("k", 2.0), "double": Derived("double", lambda state: 2 * state["k"])}
    loss = with_priors(lambda state: jnp.zeros(()), {"double": dist.Normal(3.0, 0.5)})
    fitted, history = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-10)).run(state)
    assert float(fitted["k"]) == pytest.approx(1.5)
    assert float(loss(fitted)) == pytest.approx(history["final_loss"])


def test_outside_of_a_support_the_density_is_zero():
    loss = with_priors(lambda state: jnp.zeros(()), {"k": dist.HalfNormal(1.0)})
    assert float(loss({"k": jnp.array(-1.0)})) == np.inf
    assert np.isfinite(loss({"k": jnp.array(1.0)}))


def test_a_prior_that_forbids_the_start_is_named():
    loss = with_priors(lambda state: state["k"] ** 2, {"k": dist.Uniform(0.0, 1.0)})
    with pytest.raises(
        ValueError, match="the prior of 'k' forbids the start, 3.0: its log_prob is -inf"
    ):
        OptaxOptimizer(loss, optax.adam(0.1)).run({"k": Parameter("k", 3.0)})


SCALAR = {"k": Parameter("k", 1.0)}
run = lambda priors: OptaxOptimizer(with_priors(lambda s: s["k"] ** 2, priors), optax.adam(0.1)).run(
    SCALAR
)


@pytest.mark.parametrize(
    "use, error, sentence",
    [
        (
            lambda: run({"rate": dist.Normal()}),
            ValueError,
            "nothing called 'rate' in the state.*there are 'k'",
        ),
        (
            lambda: run({"k": dist.Normal(np.zeros(3))}),
            ValueError,
            r"'k' gives log_prob in shape \(3,\)",
        ),
        (lambda: with_priors(nll, {"k": 3.0}), TypeError, "'k' must have a method log_prob"),
        (lambda: with_priors(nll, {"k": dist.Normal}), TypeError, "'k' must have a method log_prob"),
        (lambda: with_priors(nll, {1: dist.Normal()}), TypeError, "priors must go by name, got 1"),
        (lambda: with_priors(nll, {}), TypeError, "priors must be a dict"),
        (lambda: with_priors(3, {"k": dist.Normal()}), TypeError, "needs a function of the state"),
        (
            lambda: LeastSquares(with_priors(residuals, {"k": dist.Normal()})),
            ValueError,
            "priors need absolute_sigma=True and a sigma",
        ),
        (
            lambda: LeastSquares(
                with_priors(residuals, {"k": dist.Normal()}),
                sigma=1.0,
                absolute_sigma=True,
                loss="huber",
            ),
            ValueError,
            'priors go with loss="linear"',
        ),
        (
            lambda: LeastSquares(
                with_priors(lambda s: s["k"], {"k": dist.Laplace()}), sigma=1.0, absolute_sigma=True
            ).run(SCALAR),
            TypeError,
            "takes normal priors.*'k' is",
        ),
    ],
)
def test_bad_priors_are_refused_with_a_sentence(use, error, sentence):
    with pytest.raises(error, match=sentence):
        use()
