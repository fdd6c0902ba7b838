import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fitopt
from fitopt import Parameter, starts, transforms, vary


def values_of(states, name):
    return np.array([np.asarray(fitopt.values(state)[name]) for state in states])


def assert_uniform(unit):
    """Points that fill [0, 1] as evenly as quasi-random ones do."""
    counts, _ = np.histogram(unit, 8, (0, 1))
    assert unit.min() >= 0 and unit.max() <= 1
    np.testing.assert_allclose(counts, len(unit) / 8, atol=0.02 * len(unit) + 1)


@pytest.mark.parametrize("method", ["sobol", "halton", "latin_hypercube"])
def test_values_with_two_bounds_are_drawn_evenly_between_them(method):
    state = {"x": Parameter("x", 1.0, lower=-2, upper=6), "n": 3}
    drawn = starts(state, 257, method=method)
    assert drawn[0]["x"].value == 1.0
    assert drawn[5]["n"] == 3
    assert_uniform((values_of(drawn, "x")[1:] + 2) / 8)


def test_exp_is_drawn_evenly_in_the_logarithm():
    rate = Parameter("rate", 1.0, lower=1e-3, upper=1e3, transform=transforms.Exp())
    rates = values_of(starts({"rate": rate}, 257), "rate")[1:]
    assert_uniform((np.log10(rates) + 3) / 6)


def test_values_without_bounds_are_normal_with_their_scale():
    x = values_of(starts({"x": Parameter("x", np.full(3, 5.0), scale=0.1)}, 1025), "x")[1:]
    np.testing.assert_allclose(x.mean(axis=0), 5.0, atol=0.01)
    np.testing.assert_allclose(x.std(axis=0), 0.1, rtol=0.05)
    z = values_of(starts({"z": Parameter("z", 0.0)}, 1025), "z")[1:]
    np.testing.assert_allclose(z.std(), 1.0, rtol=0.05)
    complex_values = values_of(starts({"c": Parameter("c", 1j)}, 1025), "c")[1:]
    np.testing.assert_allclose(complex_values.mean(), 1j, atol=0.05)


def test_what_lies_beyond_a_single_bound_is_reflected():
    x = values_of(starts({"x": Parameter("x", 0.0, lower=0)}, 1025), "x")[1:]
    assert x.min() >= 0
    np.testing.assert_allclose(np.sqrt(np.mean(x**2)), 1.0, rtol=0.05)  # half of a normal distribution
    y = values_of(starts({"y": Parameter("y", -1.0, upper=0)}, 1025), "y")
    assert y.max() <= 0


def test_masks_and_transforms_of_several_entries_are_kept():
    state = {
        "w": Parameter("w", np.arange(3.0), mask=np.array([True, False, True])),
        "p": Parameter("p", np.full(3, 1 / 3), transform=transforms.Simplex()),
        "fixed": Parameter("fixed", 2.0, free=False),
    }
    drawn = starts(state, 20)
    w, p = values_of(drawn, "w"), values_of(drawn, "p")
    assert (w[:, 1] == 1.0).all() and len(np.unique(w[:, 0])) == 20
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    assert len(np.unique(p[:, 0])) == 20


def test_the_same_seed_gives_the_same_starts_and_more_of_them_begin_alike():
    state = {"x": Parameter("x", 1.0, lower=0, upper=3), "y": Parameter("y", 0.0)}
    first, again, more = (values_of(starts(state, n, seed=3), "x") for n in (20, 20, 60))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, more[:20])
    assert (values_of(starts(state, 20, seed=4), "x")[1:] != first[1:]).all()


def test_starts_that_cannot_be_meant_are_errors():
    state = {"x": Parameter("x", 1.0)}
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        starts(state, 0)
    with pytest.raises(ValueError, match="method must be one of 'sobol'"):
        starts(state, 3, method="random")
    with pytest.raises(ValueError, match="nothing in the state is free"):
        starts({"x": 1.0}, 3)
    with pytest.raises(ValueError, match="Sobol's sequence has at most 21201 dimensions, and 21202"):
        starts({"x": Parameter("x", np.zeros(21202))}, 3)


def test_vary_holds_once_what_does_not_vary():
    data = jnp.arange(4.0)
    state = {"rate": Parameter("rate", 1.0, lower=0), "layers": [{"w": data}], "y": np.zeros(2), "n": 2}
    rows = np.arange(6.0).reshape(3, 2)
    states = vary(state, {"y": rows, "rate": np.array([1.0, 2.0, 3.0])})
    assert len(states) == 3
    assert states[2]["layers"][0]["w"] is data
    np.testing.assert_array_equal(states[-1]["y"], rows[2])
    assert [float(s["rate"]) for s in states[1:]] == [2.0, 3.0]
    assert states[1]["rate"].lower == 0 and states[1]["n"] == 2
    np.testing.assert_array_equal(vary(state, {"layers/0/w": np.ones((2, 4))})[1]["layers"][0]["w"], 1)


def test_what_cannot_vary_is_an_error():
    state = {"rate": Parameter("k", 1.0), "y": np.zeros(2), "n": 2}
    with pytest.raises(KeyError, match="nothing at 'x' in the state; there are n, rate, y"):
        vary(state, {"x": np.ones(3)})
    with pytest.raises(ValueError, match="leading axes of one length, got 'y': 3, 'k': 2"):
        vary(state, {"y": np.ones((3, 2)), "k": np.ones(2)})
    with pytest.raises(ValueError, match="of shape \\(\\), got \\(3, 2\\)"):
        vary(state, {"rate": np.ones((3, 2))})
    with pytest.raises(TypeError, match="'n' is 2 in the state"):
        vary(state, {"n": np.ones(3)})
    with pytest.raises(TypeError, match="leading axis"):
        vary(state, {"y": 3.0})
    with pytest.raises(ValueError, match="nothing to fit"):
        vary(state, {"y": np.ones((0, 2))})
    with pytest.raises(ValueError, match="values is empty"):
        vary(state, {})


def test_states_are_a_pytree_of_arrays_only_when_asked_for():
    states = starts({"x": Parameter("x", 1.0)}, 100_000)
    assert len(states) == 100_000
    assert isinstance(states[99_999]["x"].value, jax.Array)
    assert repr(states) == "<100000 states with the free Parameters x>"
