"""Every bad input is an error of the right type, at the call, that says what was given and expected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest

from fitopt import HostCallback, OptaxOptimizer, Parameter
from fitopt.callbacks import EarlyStopping

X = {"x": Parameter("x", 3.0)}
SGD = optax.sgd(0.1)


def square(state):
    return state["x"] ** 2


def fit(loss=square, optimizer=SGD, state=X, max_steps=1, mode="rev", **options):
    return OptaxOptimizer(loss, optimizer, **options).run(state, max_steps, mode)


@dataclasses.dataclass
class Unregistered:
    x: Parameter


class NoRhythm:
    every = 0

    def __call__(self, *arguments):
        return None


TABLE = {
    # what: (the call, the type of the error, what the message says)
    "loss not callable": (lambda: fit(loss=3), TypeError, "loss must be a function.*3"),
    "optimizer not called": (
        lambda: fit(optimizer=optax.adam),
        TypeError,
        r"optimizer must be.*function adam.*adam\(learning_rate\)",
    ),
    "optimizer a class of optimistix": (
        lambda: fit(optimizer=optimistix.BFGS),
        TypeError,
        r"optimizer must be.*class BFGS; call it: BFGS\(rtol, atol\)",
    ),
    "optimizer a class for least squares": (
        lambda: fit(optimizer=optimistix.LevenbergMarquardt),
        TypeError,
        r"class LevenbergMarquardt.*fitopt.LeastSquares\(residuals, LevenbergMarquardt\(rtol, atol\)\)",
    ),
    "optimizer a class of optax": (
        lambda: fit(optimizer=optax.MultiSteps),
        TypeError,
        "optimizer must be.*class MultiSteps; call it",
    ),
    "optimizer a number": (lambda: fit(optimizer=0.1), TypeError, "optimizer must be.*0.1"),
    "has_aux a string": (lambda: fit(has_aux="yes"), TypeError, "has_aux must be.*'yes'"),
    "nothing free": (lambda: fit(state={"x": 3.0}), ValueError, "nothing in the state is free"),
    "all fixed": (
        lambda: fit(state={"x": Parameter("rate", 3.0, free=False)}),
        ValueError,
        "nothing in the state is free.*fixed: rate",
    ),
    "not a pytree": (
        lambda: fit(state=Unregistered(Parameter("x", 1.0))),
        ValueError,
        "does not look into Unregistered",
    ),
    "loss a vector": (
        lambda: fit(lambda s: jnp.ones(3) * s["x"]),
        TypeError,
        r"real scalar.*shape \(3,\)",
    ),
    "loss of shape (1,)": (
        lambda: fit(lambda s: jnp.ones(1) * s["x"]),
        TypeError,
        r"real scalar.*shape \(1,\)",
    ),
    "loss an int": (lambda: fit(lambda s: 3), TypeError, "real scalar.*3 of type int"),
    "loss an int array": (lambda: fit(lambda s: s["x"].astype(int)), TypeError, "real scalar.*int"),
    "loss complex": (lambda: fit(lambda s: s["x"] * 1j), TypeError, "real scalar.*complex64"),
    "loss None": (lambda: fit(lambda s: None), TypeError, "real scalar.*None"),
    "loss a list": (lambda: fit(lambda s: [s["x"]]), TypeError, "real scalar.*list of 1"),
    "loss a tuple without has_aux": (
        lambda: fit(lambda s: (s["x"] ** 2, s["x"])),
        TypeError,
        "tuple of 2.*has_aux=True",
    ),
    "no tuple with has_aux": (lambda: fit(has_aux=True), TypeError, r"pair \(loss, aux\)"),
    "three with has_aux": (
        lambda: fit(lambda s: (s["x"], 1, 2), has_aux=True),
        TypeError,
        r"pair \(loss, aux\).*tuple of 3",
    ),
    "mode": (lambda: fit(mode="reverse"), ValueError, 'mode must be "rev" or "fwd".*reverse'),
    "max_steps negative": (lambda: fit(max_steps=-1), ValueError, "max_steps.*negative.*-1"),
    "max_steps a float": (lambda: fit(max_steps=10.0), TypeError, "max_steps.*integer.*10.0"),
    "max_steps a bool": (lambda: fit(max_steps=True), TypeError, "max_steps.*integer.*True"),
    "max_steps a string": (lambda: fit(max_steps="1"), TypeError, "max_steps.*integer.*'1'"),
    "value a string": (lambda: Parameter("k", "fast"), TypeError, "'k'.*number.*'fast'"),
    "value None": (lambda: Parameter("k", None), TypeError, "'k'.*value is missing"),
    "value NaN": (lambda: Parameter("k", np.nan), ValueError, "'k'.*finite.*nan"),
    "value below": (lambda: Parameter("k", -1, lower=0), ValueError, "'k'.*-1.*lower=0"),
    "value above": (lambda: Parameter("k", 2, upper=1), ValueError, "'k'.*2.*upper=1"),
    "bounds swapped": (lambda: Parameter("k", 1, lower=2, upper=0), ValueError, "'k'.*lower.*less"),
    "bounds of another shape": (
        lambda: Parameter("k", jnp.ones(3), lower=jnp.zeros(2)),
        ValueError,
        r"'k'.*lower has shape \(2,\).*\(3,\)",
    ),
    "mask of another shape": (
        lambda: Parameter("k", jnp.ones(3), mask=jnp.array([True, False])),
        ValueError,
        r"'k'.*mask has shape \(2,\).*\(3,\)",
    ),
    "mask of numbers": (lambda: Parameter("k", 1.0, mask=1), TypeError, "'k'.*mask.*boolean"),
    "scale zero": (lambda: Parameter("k", 1.0, scale=0), ValueError, "'k'.*scale.*positive.*0"),
    "name a number": (lambda: Parameter(1, 2.0), TypeError, "name must be a string.*1"),
    "value NaN in the state": (
        lambda: fit(state={"x": X["x"].release(), "y": _with_value(Parameter("y", 1.0), np.nan)}),
        ValueError,
        "'y'.*finite.*nan",
    ),
    "value out of bounds in the state": (
        lambda: fit(state={"x": _with_value(Parameter("x", 1.0, lower=0), -2.0)}),
        ValueError,
        "'x'.*-2.0.*lower=0",
    ),
    "callback a number": (lambda: fit(callback=3), TypeError, "callback must be.*3"),
    "callback in a list": (lambda: fit(callback=[None]), TypeError, "callback must be.*None"),
    "callback a class": (
        lambda: fit(callback=EarlyStopping),
        TypeError,
        "instance.*class EarlyStopping",
    ),
    "callback without rhythm": (
        lambda: fit(callback=NoRhythm()),
        ValueError,
        "NoRhythm.*every.*positive.*0",
    ),
    "callback that returns something else": (
        lambda: fit(callback=lambda *arguments: "go on"),
        TypeError,
        "must return None, True or False.*'go on'",
    ),
    "host callback without open": (
        lambda: fit(callback=HostCallback()),
        TypeError,
        "HostCallback.*override open",
    ),
    "loss NaN at the start": (
        lambda: fit(lambda s: jnp.log(s["x"]), state={"x": Parameter("rate", -2.0)}),
        ValueError,
        "loss is nan at the start.*rate=-2.0",
    ),
    "loss infinite at the start": (
        lambda: fit(lambda s: 1 / s["x"], state={"x": Parameter("rate", 0.0)}, max_steps=0),
        ValueError,
        "loss is inf at the start.*rate=0.0",
    ),
    "steps as a keyword": (
        lambda: OptaxOptimizer(square, SGD).run(X, steps=3),
        TypeError,
        "steps",
    ),
}


def _with_value(parameter, value):
    """A value that only JAX' tree functions can put into a Parameter."""
    return jax.tree.map(lambda _: jnp.asarray(value), parameter)


@pytest.mark.parametrize(("call", "error", "message"), TABLE.values(), ids=TABLE)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=f"(?s){message}") as caught:
        call()
    assert type(caught.value) is error


@pytest.mark.parametrize("steps", [3, np.int64(3), jnp.array(3)])
def test_any_integer_will_do_for_max_steps(steps):
    assert fit(max_steps=steps)[1]["n_steps"] == 3
