"""The end of a fit whose losses are those of the parameters after each step."""

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from fitopt import LeastSquares, OptaxOptimizer, Parameter, callbacks, values

from .test_least_squares import LM, STATE, residuals, sum_of_squares


def editing(at, value, stop=False):
    def edit(step, free, fixed, history, aux, loss, grads):
        if step == at:
            return stop, {**free, "A": free["A"].replace(value=jnp.array(value))}, fixed

    return edit


@pytest.mark.parametrize("stop", [True, False])
def test_an_edit_after_the_last_step_is_returned_with_its_own_loss(stop):
    optimizer = LeastSquares(residuals, LM, editing(2, 5.0, stop))
    fitted, history = optimizer.run(STATE, 50 if stop else 3)
    assert history["n_steps"] == 3 and float(fitted["A"]) == 5.0
    expected = float(sum_of_squares(residuals, values(fitted)))
    assert history["final_loss"] == pytest.approx(expected, rel=1e-5)


def test_best_so_far_is_offered_after_such_an_edit():
    optimizer = LeastSquares(residuals, LM, [editing(4, 5.0, True), callbacks.KeepBest()])
    fitted, history = optimizer.run(STATE)
    assert history["final_loss"] == np.min(history["loss"]) and float(fitted["A"]) != 5.0


def test_an_edit_to_where_the_loss_is_not_finite_goes_back_to_before_the_edit():
    function = lambda s: residuals(s) * jnp.where(s["A"] > 100.0, jnp.nan, 1.0)
    with pytest.warns(RuntimeWarning, match="not finite at step 3"):
        fitted, history = LeastSquares(function, LM, editing(2, 1e3)).run(STATE)
    expected = float(sum_of_squares(residuals, values(fitted)))
    assert (
        history["final_loss"] == pytest.approx(expected, rel=1e-5) == pytest.approx(history["loss"][-1])
    )
    with pytest.warns(RuntimeWarning, match="not finite at step 3"):
        again, history = LeastSquares(function, LM, editing(2, 1e3, True)).run(STATE)
    assert float(again["A"]) == float(fitted["A"])
    assert history["final_loss"] == pytest.approx(history["loss"][-1])


@pytest.mark.parametrize("every", [1, 1000])
def test_the_state_returned_from_a_loss_that_is_not_finite_is_that_of_the_last_loss(every):
    loss = lambda s: jnp.sqrt(s["x"]) + 0.1 * s["x"]  # walks down to where it is not defined
    look = type("Look", (), {"every": every, "__call__": lambda self, *arguments: None})()
    solver = optx.GradientDescent(1.0, rtol=1e-6, atol=1e-6)
    optimizer = OptaxOptimizer(loss, solver, look)
    for _ in range(2):  # the second begins with a long stretch
        with pytest.warns(RuntimeWarning, match="not finite at step 9"):
            fitted, history = optimizer.run({"x": Parameter("x", 4.0)}, 50)
        assert history["n_steps"] == 9 and history["final_loss"] == history["loss"][-1]
        assert float(loss(values(fitted))) == pytest.approx(history["final_loss"], rel=1e-6)
