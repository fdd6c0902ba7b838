"""Hand-over to samplers: posteriors that are known, by NUTS of blackjax and of NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fitopt
from fitopt import Derived, OptaxOptimizer, Parameter, log_density, to_inference_data, with_priors

dist = pytest.importorskip("numpyro.distributions")

RNG = np.random.default_rng(8)
X = np.stack([np.ones(30), np.linspace(-1.0, 2.0, 30)], axis=1)
SIGMA = 0.5
Y = X @ [0.7, -1.2] + SIGMA * RNG.normal(size=30)
COUNTS = np.array([2.0, 4.0, 1.0, 3.0])

# What the posterior is: normal for the weights, a gamma distribution for the rate.
PRECISION = X.T @ X / SIGMA**2 + np.eye(2)
MEAN = np.linalg.solve(PRECISION, X.T @ Y / SIGMA**2)
DEVIATION = np.sqrt(np.diagonal(np.linalg.inv(PRECISION)))
SHAPE, INVERSE_SCALE = 2.0 + COUNTS.sum(), 1.0 + COUNTS.size

CHAINS, DRAWS = 4, 4000


def negative_log_likelihood(state):
    normal = 0.5 * jnp.sum(jnp.square((X @ state["w"] - Y) / SIGMA))
    return normal + jnp.sum(state["rate"] - COUNTS * jnp.log(state["rate"]))


@pytest.fixture(scope="module")
def posterior():
    """The fitted state, the log-density, and the covariance by position."""
    with jax.enable_x64(True):
        priors = {"w": dist.Normal(0.0, 1.0), "rate": dist.Gamma(2.0, 1.0)}
        loss = with_priors(negative_log_likelihood, priors)
        state = {
            "w": Parameter("w", [0.0, 0.0]),
            "rate": Parameter("rate", 1.0, lower=0),
            "mean time": Derived("mean time", lambda state: 1 / state["rate"]),
        }
        optimizer = OptaxOptimizer(loss, fitopt.LBFGSB(rtol=1e-9))
        fitted, _ = optimizer.run(state)
        covariance = optimizer.uncertainty(fitted).unconstrained_covariance
        yield fitted, log_density(loss, fitted), covariance


def check(found):
    """All means and standard deviations to two percent, of a standard deviation or of themselves."""
    drawn = found.posterior
    w, rate = np.asarray(drawn["w"]).reshape(-1, 2), np.asarray(drawn["rate"]).ravel()
    rate_mean, rate_deviation = SHAPE / INVERSE_SCALE, SHAPE**0.5 / INVERSE_SCALE
    np.testing.assert_allclose((w.mean(axis=0) - MEAN) / DEVIATION, 0, atol=0.02)
    np.testing.assert_allclose(w.std(axis=0), DEVIATION, rtol=0.02)
    np.testing.assert_allclose(rate.mean(), rate_mean, rtol=0.02)
    np.testing.assert_allclose(rate.std(), rate_deviation, rtol=0.02)
    np.testing.assert_allclose(drawn["mean time"], 1 / drawn["rate"])


def test_blackjax_samples_the_posterior(posterior):
    blackjax = pytest.importorskip("blackjax")
    fitted, density, covariance = posterior
    nuts = blackjax.nuts(density, step_size=0.8, inverse_mass_matrix=covariance)

    @jax.jit
    @jax.vmap
    def chain(key):
        start = nuts.init(fitopt.unconstrained(fitted).position)
        step = lambda state, key: (nuts.step(key, state)[0],) * 2
        return jax.lax.scan(step, start, jax.random.split(key, DRAWS))[1].position

    check(to_inference_data(chain(jax.random.split(jax.random.key(0), CHAINS)), fitted))


def test_numpyro_samples_the_posterior(posterior):
    infer = pytest.importorskip("numpyro.infer")
    fitted, density, covariance = posterior
    kernel = infer.NUTS(
        potential_fn=lambda position: -density(position),
        inverse_mass_matrix=covariance,
        dense_mass=True,
        adapt_mass_matrix=False,
    )
    options = {"num_warmup": 200, "num_samples": DRAWS, "num_chains": CHAINS}
    mcmc = infer.MCMC(kernel, **options, chain_method="vectorized", progress_bar=False)
    start = jax.tree.map(lambda x: jnp.stack([x] * CHAINS), fitopt.unconstrained(fitted).position)
    mcmc.run(jax.random.key(1), init_params=start)
    check(to_inference_data(mcmc.get_samples(group_by_chain=True), fitted))


def test_the_normal_approximation_is_close_where_the_posterior_is_normal(posterior):
    fitted, density, covariance = posterior
    flat, unravel = jax.flatten_util.ravel_pytree(fitopt.unconstrained(fitted).position)
    rows = unravel(jnp.arange(3.0))["w"].astype(int)
    np.testing.assert_allclose(covariance[np.ix_(rows, rows)], np.linalg.inv(PRECISION), rtol=1e-6)


def test_draws_of_another_shape_are_refused(posterior):
    fitted, *_ = posterior
    with pytest.raises(ValueError, match=r"positions: 'w' must have the axes of chains and draws"):
        to_inference_data({"w": np.zeros((10, 2)), "rate": np.zeros((1, 10))}, fitted)
