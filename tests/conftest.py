"""Problems and tools that the tests share."""

import contextlib
import importlib.metadata
import os
import signal

# Tests compile much and compute little: without XLA's optimizations the suite takes less than half the
# time. `XLA_FLAGS= pytest` runs it with what users have.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

try:
    importlib.metadata.version("fitopt")
except importlib.metadata.PackageNotFoundError:
    pytest.exit('fitopt is not installed here; run: pip install -e ".[test]"', returncode=4)

import fitopt

# A shell starts what runs in its background with Ctrl-C ignored, which tests of Ctrl-C would wait for.
signal.signal(signal.SIGINT, signal.default_int_handler)

TIMES = jnp.linspace(0.0, 4.0, 40)
DATA = 2.5 * jnp.exp(-1.3 * TIMES) + 0.5 + 0.05 * jnp.sin(37 * TIMES)

_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: name.endswith("backend_compile_duration") and _compilations.append(name)
)


@contextlib.contextmanager
def counted_compilations():
    """A list that holds one entry for each program that XLA compiled meanwhile."""
    before, counted = len(_compilations), []
    yield counted
    counted += _compilations[before:]


def decay_loss(state):
    """Mean squared error of A exp(-k t) + C."""
    model = state["A"] * jnp.exp(-state["k"] * TIMES) + state["C"]
    return jnp.mean((model - state.get("data", DATA)) ** 2)


@pytest.fixture
def decay():
    return {
        "A": fitopt.Parameter("A", 1.0),
        "k": fitopt.Parameter("k", 1.0),
        "C": fitopt.Parameter("C", 0.0),
    }


def hand_written(loss, optimizer, params, steps):
    """Final parameters and losses of the loop that one writes by hand with optax."""

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            grads = jax.tree.map(jnp.conj, grads)
            updates, state = optax.with_extra_args_support(optimizer).update(
                grads, state, params, value=value, grad=grads, value_fn=loss
            )
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)

    (params, _), losses = fit(params)
    return params, np.asarray(losses)


def close(tree, other, rtol=1e-6, atol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), tree, other)


def quadratic(state):
    """(x - target)²: with sgd(0.1), the distance to the target shrinks by 0.8 a step."""
    return (state["x"] - state["target"]) ** 2


@pytest.fixture
def parabola():
    return {"x": fitopt.Parameter("x", 3.0), "target": 1.0}
