"""What follows from the rest of a state: computed for the loss, kept in the state, reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Derived, LeastSquares, OptaxOptimizer, Parameter, combine, partition, report, values

from .conftest import counted_compilations

X = np.linspace(0.0, 4.0, 40)
Y = 2.5 * np.exp(-1.3 * X) + 0.03 * np.random.default_rng(2).normal(size=X.size)


def half_life(state):
    return jnp.log(2) / state["rate"]


def doubled(state):
    return 2 * state["half_life"]


def sine(state):
    return jax.lax.sin(state["doubled"])  # lax takes nothing but arrays


STATE = {
    "sine": Derived("sine", sine),
    "doubled": Derived("doubled", doubled),
    "half_life": Derived("half_life", half_life),
    "rate": Parameter("rate", 1.0, lower=0),
    "height": Parameter("height", 1.0),
    "offset": Parameter("offset", 0.0, free=False),
}


def residuals(state):
    return state["height"] * 2 ** (-X / state["half_life"]) + state["offset"] - Y


@pytest.fixture(scope="module")
def fit():
    with jax.enable_x64(True):
        optimizer = LeastSquares(residuals)
        fitted, history = optimizer.run(jax.tree.map(jnp.float64, STATE))
        yield fitted, history, optimizer.uncertainty(fitted)


def test_each_derived_is_an_array_whatever_the_order_in_which_they_need_each_other():
    plain = values(STATE)
    expected = np.log(2), 2 * np.log(2), np.sin(2 * np.log(2))
    got = [plain[name] for name in ("half_life", "doubled", "sine")]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert all(isinstance(x, jax.Array) for x in got)


def test_the_fit_is_that_of_the_loss_with_the_formula_written_out(fit):
    fitted, history, _ = fit

    def written_out(state):
        return state["height"] * jnp.exp(-state["rate"] * X) - Y

    state = {name: STATE[name] for name in ("rate", "height")}
    other, known = LeastSquares(written_out).run(jax.tree.map(jnp.float64, state))
    np.testing.assert_allclose(fitted["rate"], other["rate"], rtol=1e-7)
    np.testing.assert_allclose(history["final_loss"], known["final_loss"], rtol=1e-12)


def test_it_stays_in_the_fitted_state_and_in_the_part_that_is_not_free(fit):
    fitted, *_ = fit
    assert fitted["half_life"] == STATE["half_life"]
    free, fixed = partition(fitted)
    assert free["half_life"] is None and fixed["half_life"] == STATE["half_life"]
    assert jax.tree.structure(combine(free, fixed)) == jax.tree.structure(fitted)
    np.testing.assert_allclose(values(fitted)["half_life"], np.log(2) / fitted["rate"])


def test_the_report_shows_it_with_the_error_by_propagation(fit):
    fitted, history, uncertainty = fit
    shown = {row.name: row for row in report(fitted, history, uncertainty).parameters}
    rate, error = float(fitted["rate"]), uncertainty.standard_errors["rate"]
    assert shown["half_life"].value == pytest.approx(np.log(2) / rate)
    assert shown["half_life"].error == pytest.approx(np.log(2) / rate**2 * error)
    assert shown["doubled"].error == pytest.approx(2 * shown["half_life"].error)
    assert shown["half_life"].status == "derived"
    line = next(one for one in str(report(fitted, history, uncertainty)).splitlines() if "half" in one)
    assert "±" in line and line.endswith("(derived)")


def test_a_report_without_errors_shows_its_value(fit):
    fitted, history, _ = fit
    shown = {row.name: row for row in report(fitted, history).parameters}
    assert shown["doubled"].value == pytest.approx(2 * np.log(2) / float(fitted["rate"]))
    assert shown["doubled"].error is None


def test_arrays_and_integers_are_reported_entry_by_entry():
    state = {
        "w": Parameter("w", [1.0, 2.0]),
        "sums": Derived("sums", lambda state: jnp.cumsum(state["w"])),
        "count": Derived("count", lambda state: 2),
    }
    optimizer = LeastSquares(
        lambda state: state["w"] - jnp.array([3.0, 4.0]), sigma=1.0, absolute_sigma=True
    )
    fitted, history = optimizer.run(state)
    shown = {row.name: row for row in report(fitted, history, optimizer.uncertainty(fitted)).parameters}
    assert shown["sums[1]"].value == pytest.approx(7)
    assert shown["sums[1]"].error == pytest.approx(2**0.5)
    assert shown["count"].error == 0


def test_states_that_are_made_anew_compile_nothing():
    optimizer = OptaxOptimizer(lambda state: (state["half_life"] - 2.0) ** 2, optax.adam(0.1))
    make = lambda rate: {"rate": Parameter("rate", rate), "half_life": Derived("half_life", half_life)}
    optimizer.run(make(1.0), 5)
    with counted_compilations() as counted:
        optimizer.run(make(2.0), 5)
    assert not counted


def test_fits_inside_vmap_keep_it():
    @jax.vmap
    def fit(target):
        state = {"rate": Parameter("rate", 1.0), "half_life": Derived("half_life", half_life)}
        optimizer = OptaxOptimizer(lambda state: (state["half_life"] - target) ** 2, optax.adam(0.1))
        return optimizer.run(state, 200)[0]

    fitted = fit(jnp.array([0.5, 1.0]))
    assert isinstance(fitted["half_life"], Derived)
    np.testing.assert_allclose(fitted["rate"].value, np.log(2) / np.array([0.5, 1.0]), rtol=1e-3)


def test_host_callbacks_see_it_in_the_static_state_and_may_edit_around_it():
    seen = []

    def look(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads):
        whole = values(combine(diff_state, static_state))
        seen.append(float(whole["half_life"] * whole["rate"]))
        return False, {**diff_state, "rate": diff_state["rate"].replace(value=2.0)}, static_state

    state = {"rate": Parameter("rate", 1.0), "half_life": Derived("half_life", half_life)}
    loss = lambda state: (state["half_life"] - 2.0) ** 2
    fitted, _ = OptaxOptimizer(loss, optax.sgd(0.01), look).run(state, 2)
    np.testing.assert_allclose(seen, np.log(2), rtol=1e-6)
    assert float(fitted["rate"]) == 2.0


def test_a_loop_of_ones_own_steps_over_it():
    params = {"rate": Parameter("rate", 1.0), "half_life": Derived("half_life", half_life)}
    optimizer = fitopt.Optimizer(optax.adam(0.1)).init(params)
    loss = lambda params: (values(params)["half_life"] - 0.5) ** 2

    @jax.jit
    def step(params, optimizer):
        params = optimizer.update(jax.grad(loss)(params), params)
        return params, optimizer

    for _ in range(150):
        params, optimizer = step(params, optimizer)
    np.testing.assert_allclose(params["rate"], np.log(2) / 0.5, rtol=1e-3)
    assert params["half_life"] == Derived("half_life", half_life)


def circle_of(size):
    names = "abcd"[:size]
    needs = {name: names[(i + 1) % size] for i, name in enumerate(names)}
    return {
        name: Derived(name, lambda state, other=other: state[other] + 1) for name, other in needs.items()
    }


@pytest.mark.parametrize("size, circle", [(1, "'a' -> 'a'"), (3, "'a' -> 'b' -> 'c' -> 'a'")])
def test_a_circle_is_an_error_that_names_it(size, circle):
    with pytest.raises(ValueError, match=f"in a circle: {circle}"):
        values(circle_of(size))
    state = {**circle_of(size), "k": Parameter("k", 1.0)}
    with pytest.raises(ValueError, match="in a circle"):
        OptaxOptimizer(lambda state: state["k"] ** 2, optax.sgd(0.1)).run(state)


def test_the_error_of_a_function_is_raised_as_it_is():
    with pytest.raises(KeyError, match="nothing"):
        values(
            {
                "a": Derived("a", lambda state: state["nothing"]),
                "b": Derived("b", lambda state: state["a"]),
            }
        )


@pytest.mark.parametrize(
    "use",
    [
        lambda d: 2 * d,
        lambda d: jnp.sin(d),
        lambda d: np.float64(2) * d,
        lambda d: d[0],
        lambda d: float(d),
        lambda d: d.shape,
    ],
)
def test_by_itself_it_has_no_value_and_says_who_knows(use):
    with pytest.raises(TypeError, match=r"'half_life' has no value by itself: fitopt\.values"):
        use(STATE["half_life"])


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Derived(1, half_life), "name must be a string, got 1"),
        (lambda: Derived("a", 3.0), "'a': fn must be a function of the state, got 3.0"),
        (lambda: Derived("a", type("F", (), {"__call__": abs, "__hash__": None})()), "must be hashable"),
        (
            lambda: values({"a": Derived("a", lambda state: {"no": 1})}),
            "must return a number or an array",
        ),
        (lambda: values({"a": Derived("a", lambda state: "no")}), "must return a number or an array"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(make, sentence):
    with pytest.raises(TypeError, match=sentence):
        make()


def test_it_is_shown_by_name_and_function():
    assert repr(STATE["half_life"]) == "Derived('half_life', half_life)"


def test_a_name_without_a_standard_error_is_told_where_to_look():
    state = {"rate": Parameter("rate", 1.0), "half_life": Derived("half_life", half_life)}
    optimizer = LeastSquares(lambda s: 2.5 * jnp.exp(-s["rate"] * X) - Y)
    uncertainty = optimizer.uncertainty(optimizer.run(state)[0])
    with pytest.raises(KeyError, match="'half_life' is fitted; there are rate; .* by propagate"):
        uncertainty.standard_errors["half_life"]
