"""`History`: a dict that knows at which steps its series were recorded."""

import jax
import numpy as np
import optax
import pytest

from fitopt import History, OptaxOptimizer
from fitopt.callbacks import RecordParameters
from fitopt.history import Series

from .conftest import quadratic


@pytest.fixture(scope="module")
def history():
    import fitopt

    state = {"x": fitopt.Parameter("x", 3.0), "target": 1.0}
    return OptaxOptimizer(quadratic, optax.sgd(0.1), RecordParameters(every=4)).run(state, 10)[1]


def test_it_is_a_dict_of_arrays_and_plain_values(history):
    assert isinstance(history, dict)
    assert isinstance(history["loss"], np.ndarray)
    types = {key: type(history[key]) for key in history if key not in ("loss", "parameters")}
    assert types == {
        "n_steps": int,
        "final_loss": float,
        "best_loss": float,
        "best_step": int,
        "stop_reason": str,
        "elapsed": float,
    }


def test_steps_says_when_a_series_was_recorded(history):
    np.testing.assert_array_equal(history.steps("loss"), np.arange(10))
    np.testing.assert_array_equal(history.steps("parameters"), [0, 4, 8])


@pytest.mark.parametrize("name", ["n_steps", "nothing"])
def test_steps_of_something_else_is_an_error_that_lists_the_series(history, name):
    with pytest.raises(KeyError, match=f"no series '{name}'.*'loss', 'parameters'"):
        history.steps(name)


def test_its_repr_is_short_and_readable(history):
    text = repr(history)
    assert text.startswith("History of 10 steps in ") and "max_steps" in text
    assert "final loss" in text and "recorded: parameters" in text and len(text) < 300


def test_it_is_a_pytree_that_keeps_what_it_knows(history):
    doubled = jax.tree.map(lambda x: x if isinstance(x, str) else 2 * x, history)
    assert isinstance(doubled, History)
    assert doubled["n_steps"] == 20
    np.testing.assert_array_equal(doubled.steps("parameters"), [0, 4, 8])


def test_a_series_grows_by_chunks_and_takes_only_what_counts():
    series = Series(most=1000)
    expected = []
    rng = np.random.default_rng(0)
    for count in (1, 0, 3, 200, 7):
        chunk = {"a": rng.normal(size=(256, 2)), "b": rng.integers(9, size=256)}
        series.extend(chunk, count)
        expected.append(jax.tree.map(lambda x, count=count: x[:count], chunk))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *expected)
    jax.tree.map(np.testing.assert_array_equal, series.view(), whole)
