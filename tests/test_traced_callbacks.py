"""The protocol of callbacks that run inside the compiled loop."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import Callback, OptaxOptimizer, Parameter
from fitopt.callbacks import Record

from .conftest import quadratic


class Everything(Callback):
    """Uses all of the protocol."""

    limit: float

    def init(self, info):
        return {"calls": jnp.zeros((), jnp.int32), "sum": jnp.zeros_like(info.loss)}

    def update(self, info, carry):
        carry = {"calls": carry["calls"] + 1, "sum": carry["sum"] + info.loss}
        return carry, info.params["x"] < self.limit

    def record(self, info):
        return {"gradient": info.grads["x"], "pair": {"step": info.step, "aux": info.aux["twice"]}}

    def finish(self, history, carry):
        assert isinstance(carry["calls"], np.ndarray)
        history["calls"] = int(carry["calls"])
        history["sum"] = float(carry["sum"])


def aux_quadratic(state):
    return quadratic(state), {"twice": 2 * state["x"]}


def test_a_traced_callback_counts_stops_records_and_finishes(parabola):
    optimizer = OptaxOptimizer(aux_quadratic, optax.sgd(0.1), Everything(1.5), has_aux=True)
    for _ in range(2):  # nothing is left over from the first run
        _, history = optimizer.run(parabola, 100)
        x = 1 + 2 * 0.8 ** np.arange(8)  # the first below 1.5 is step 7
        assert history["n_steps"] == 8 and "Everything" in history["stop_reason"]
        assert history["calls"] == 8
        assert history["sum"] == pytest.approx(np.sum((x - 1) ** 2), rel=1e-5)
        np.testing.assert_allclose(history["gradient"], 2 * (x - 1), rtol=1e-5)
        np.testing.assert_array_equal(history["pair"]["step"], np.arange(8))
        np.testing.assert_allclose(history["pair"]["aux"], 2 * x, rtol=1e-6)


def test_what_is_recorded_now_and_then_costs_no_memory_between(parabola):
    class Rare(Callback):
        every: int = 7

        def record(self, info):
            return {"x": info.params["x"]}

    _, history = OptaxOptimizer(quadratic, optax.sgd(0.1), Rare()).run(parabola, 30)
    np.testing.assert_array_equal(history.steps("x"), [0, 7, 14, 21, 28])
    np.testing.assert_allclose(history["x"], 1 + 2 * 0.8 ** np.arange(0, 30, 7), rtol=1e-5)


def test_records_that_fill_their_buffer_before_the_stretch_ends_are_complete():
    class Large(Callback):
        every: int = 3

        def record(self, info):
            return {"large": jnp.full(3_000_000, info.step, jnp.float32)}  # 12 MB; five fit at once

    state = {"x": Parameter("x", 3.0), "target": 1.0}
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.01), Large()).run(state, 40)
    np.testing.assert_array_equal(history["large"][:, 0], np.arange(0, 40, 3))
    np.testing.assert_allclose(history["loss"], 4 * 0.98 ** (2 * np.arange(40)), rtol=1e-4)


def test_params_are_plain_values_in_the_structure_of_the_state():
    class Look(Callback):
        def record(self, info):
            assert not isinstance(info.params["a"][0], Parameter)
            assert info.params["b"] is None and info.params["fixed"] is None
            return {"value": info.params["a"][0]}

    state = {
        "a": [Parameter("a", 4.0, lower=0)],
        "b": "text",
        "fixed": Parameter("f", 1.0, free=False),
    }
    _, history = OptaxOptimizer(lambda s: s["a"][0] * s["fixed"], optax.sgd(0.1), Look()).run(state, 2)
    assert history["value"][0] == pytest.approx(4.0, rel=1e-6)


class Wrong(Callback):
    carry: object = 0.0
    stop: object = False

    def init(self, info):
        return jnp.zeros(())

    def update(self, info, carry):
        return (carry if self.carry is None else self.carry), self.stop


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Wrong(carry=jnp.zeros(3)), "carry like that of init"),
        (Wrong(carry=(1.0, 2.0)), "carry like that of init"),
        (Wrong(carry=None, stop=jnp.array([True])), "stop must be a boolean scalar"),
        (Wrong(carry=None, stop=1), "stop must be a boolean scalar"),
    ],
)
def test_an_update_of_another_kind_is_an_error_that_names_the_callback(parabola, callback, message):
    with pytest.raises(TypeError, match=f"Wrong.update.*{message}"):
        OptaxOptimizer(quadratic, optax.sgd(0.1), callback).run(parabola, 2)


def test_two_series_of_one_name_are_an_error(parabola):
    twice = [Record("x", lambda info: info.loss), Record("x", lambda info: info.step)]
    with pytest.raises(ValueError, match="'x'"):
        OptaxOptimizer(quadratic, optax.sgd(0.1), twice).run(parabola, 2)
