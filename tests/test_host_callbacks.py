"""Plain Python callbacks: when they are called, what they see, what their answers do."""

import contextlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import HostCallback, OptaxOptimizer, Parameter
from fitopt.callbacks import every

from .conftest import quadratic

SGD = optax.sgd(0.1)  # the distance to the target shrinks by 0.8 a step


def fit(callback, state, steps=10, **options):
    return OptaxOptimizer(quadratic, SGD, callback, **options).run(state, steps)


class Steps:
    """Notes the steps after which it is called."""

    def __init__(self):
        self.steps = []

    def __call__(self, step, diff, static, history, aux, loss, grads):
        self.steps.append(step)


def test_a_callback_sees_its_step(parabola):
    seen = []

    def look(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads):
        assert aux_data is None
        assert static_state["target"] == 1.0 and static_state["x"] is None
        assert diff_state["target"] is None and diff_state["x"].name == "x"
        assert float(fitting_data["loss"][-1]) == float(loss_value)
        seen.append((step, len(fitting_data["loss"]), float(diff_state["x"]), float(grads["x"])))

    fit(look, parabola, 4)
    before, after = 2 * 0.8 ** np.arange(4), 2 * 0.8 ** np.arange(1, 5)
    steps, lengths, values, gradients = zip(*seen, strict=True)
    assert steps == (0, 1, 2, 3) and lengths == (1, 2, 3, 4)
    np.testing.assert_allclose(values, 1 + after, rtol=1e-6)
    np.testing.assert_allclose(gradients, 2 * before, rtol=1e-6)


def test_diff_state_and_static_state_combine_to_the_state(parabola):
    states = []
    fit(lambda i, diff, static, *rest: states.append(fitopt.combine(diff, static)), parabola, 3)
    fitted, _ = fit(None, parabola, 3)
    assert repr(states[-1]) == repr(fitted)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_every_counts_steps(parabola, n):
    steps = Steps()
    fit(every(n, steps), parabola, 20)
    assert steps.steps == list(range(0, 20, n))


def test_callbacks_with_different_rhythms_do_not_disturb_each_other(parabola):
    two, three = Steps(), Steps()
    fit([every(2, two), every(3, three)], parabola, 10)
    assert two.steps == [0, 2, 4, 6, 8] and three.steps == [0, 3, 6, 9]


@pytest.mark.parametrize("stop", [True, np.bool_(True), np.array(True), jnp.array(True)])
@pytest.mark.parametrize("alone", [True, False])
def test_a_callback_may_stop_the_fit(parabola, stop, alone):
    def halt(step, diff, static, *rest):
        answer = stop if step == 3 else False
        return answer if alone else (answer, diff, static)

    _, history = fit(halt, parabola)
    assert history["n_steps"] == 4
    assert "halt" in history["stop_reason"] and "step 3" in history["stop_reason"]


def test_a_state_returned_unedited_changes_nothing_to_the_last_bit():
    state = {"x": Parameter("x", 0.3, lower=0.0, upper=7.0), "target": 0.1}
    _, plain = fit(None, state)
    for give_back in (
        lambda i, diff, static, *rest: (False, diff, static),
        lambda i, diff, static, *rest: (False, jax.tree.map(lambda x: x, diff), static),
        lambda i, diff, static, *rest: (False, jax.tree.map(np.array, diff), static),
        lambda *arguments: None,
    ):
        _, history = fit(give_back, state)
        np.testing.assert_array_equal(history["loss"], plain["loss"])


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: x.replace(value=11.0),
        lambda x: 0 * x + 11.0,
        lambda x: 11.0,
        lambda x: np.float64(11.0),
    ],
    ids=["Parameter", "array", "float", "float64"],
)
def test_the_fit_goes_on_from_an_edited_value(parabola, edit):
    def jump(step, diff, static, *rest):
        return False, {**diff, "x": edit(diff["x"])} if step == 2 else diff, static

    _, history = fit(jump, parabola, 6)
    np.testing.assert_allclose(history["loss"][3:], 100 * 0.64 ** np.arange(3), rtol=1e-5)


def test_an_edit_changes_only_the_entries_that_it_changes():
    # Values go through the logistic function and back; untouched entries must not.
    state = {"x": Parameter("x", jnp.array([0.3, 0.7]), lower=0.0, upper=1.0)}
    loss = lambda state: jnp.sum((state["x"] - 0.6) ** 2)

    def jump(step, diff, static, *rest):
        return False, {"x": diff["x"].at[1].set(0.9)} if step == 2 else diff, static

    first, _ = OptaxOptimizer(loss, SGD).run(state, 20)
    edited, _ = OptaxOptimizer(loss, SGD, jump).run(state, 20)
    assert edited["x"][0] == first["x"][0] and edited["x"][1] != first["x"][1]


def test_an_edit_may_change_an_entry_that_the_mask_keeps_from_the_optimizer():
    state = {"x": Parameter("x", jnp.array([3.0, 7.0]), mask=[True, False])}
    loss = lambda state: jnp.sum((state["x"] - 1.0) ** 2)

    def set_it(step, diff, static, *rest):
        return False, {"x": diff["x"].at[1].set(5.0)} if step == 2 else diff, static

    fitted, history = OptaxOptimizer(loss, SGD, set_it).run(state, 10)
    assert fitted["x"][1] == 5.0
    np.testing.assert_allclose(history["loss"][2:4], [4 * 0.64**2 + 36, 4 * 0.64**3 + 16], rtol=1e-5)


def test_an_edited_float_of_the_static_state_takes_effect(parabola):
    def move(step, diff, static, *rest):
        return False, diff, {**static, "target": 5.0} if step == 4 else static

    fitted, history = fit(move, parabola, 80)
    assert float(fitted["x"]) == pytest.approx(5.0) and fitted["target"] == 5.0
    assert history["final_loss"] < 1e-8


def test_an_edited_integer_of_the_static_state_takes_effect():
    loss = lambda state: (state["x"] - state["n"]) ** 2
    state = {"x": Parameter("x", 0.0), "n": 1}

    def change(step, diff, static, *rest):
        return False, diff, {**static, "n": 2} if step == 30 else static

    fitted, _ = OptaxOptimizer(loss, SGD, change).run(state, 90)
    assert float(fitted["x"]) == pytest.approx(2.0, rel=1e-5) and fitted["n"] == 2


def test_a_line_search_forgets_what_it_knew_of_the_place_before_an_edit():
    def jump(step, diff, static, *rest):
        return False, {"x": jnp.array([5.0, -5.0])} if step == 1 else diff, static

    loss = lambda state: jnp.sum((state["x"] - 1.0) ** 2)
    state = {"x": Parameter("x", jnp.array([3.0, 2.0]))}
    _, history = OptaxOptimizer(loss, optax.lbfgs(), jump).run(state, 20)
    assert history["loss"][2] == pytest.approx(16 + 36)
    assert history["final_loss"] < 1e-8


BAD_EDITS = {
    "structure": (lambda diff: {"x": 1.0}, ValueError, "structure"),
    "shape": (lambda diff: {**diff, "x": jnp.ones(3)}, ValueError, r"'x' with shape \(3,\), not \(\)"),
    "kind": (lambda diff: {**diff, "x": 1j}, TypeError, "'x'"),
    "bounds": (lambda diff: {**diff, "x": 9.0}, ValueError, "'x'.*9.0.*upper=5"),
    "nan": (lambda diff: {**diff, "x": np.nan}, ValueError, "'x'.*nan"),
    "fixing": (lambda diff: {**diff, "x": diff["x"].fix()}, ValueError, "value only"),
}


@pytest.mark.parametrize(("edit", "error", "message"), BAD_EDITS.values(), ids=BAD_EDITS)
def test_an_edit_that_does_not_fit_is_an_error_that_names_the_callback(edit, error, message):
    state = {"x": Parameter("x", 3.0, upper=5), "target": 1.0}

    def meddle(step, diff, static, *rest):
        return False, edit(diff), static

    with pytest.raises(error, match=f"meddle.*{message}"):
        fit(meddle, state)


@pytest.mark.parametrize("answer", ["stop", 1, 2.5, (True, 1), [False], {}, np.array([True])])
def test_an_answer_of_another_kind_is_an_error_that_names_the_callback(parabola, answer):
    def babble(*arguments):
        return answer

    with pytest.raises(TypeError, match="callback babble must return"):
        fit(babble, parabola)


def test_an_exception_comes_out_with_its_own_traceback(parabola):
    def broken(step, *rest):
        if step == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        fit(broken, parabola)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "broken"


def test_callbacks_run_in_the_order_of_the_list_and_see_earlier_edits(parabola):
    seen = []
    first = lambda i, diff, static, *rest: (False, {**diff, "x": 100.0}, static)
    second = lambda i, diff, static, *rest: seen.append(float(diff["x"]))
    fit([first, second], parabola, 2)
    assert seen == [100.0, 100.0]


def test_what_a_callback_writes_into_the_history_stays(parabola):
    def note(step, diff, static, fitting_data, *rest):
        fitting_data.setdefault("mine", []).append(step)

    _, history = fit(note, parabola, 3)
    assert history["mine"] == [0, 1, 2]


def test_the_first_in_the_list_is_named_when_several_stop(parabola):
    def halt(step, *rest):
        return step == 2

    traced = fitopt.callbacks.StopOnLoss(4 * 0.64**2 * 1.001)  # the loss of step 2
    for callbacks, named in (([traced, halt], "StopOnLoss"), ([halt, traced], "halt")):
        _, history = fit(callbacks, parabola)
        assert history["n_steps"] == 3 and named in history["stop_reason"]


class Session(HostCallback):
    """Keeps a log of what happens to it."""

    uses = ()

    def __init__(self, every=1):
        self.every = every
        self.log = []

    @contextlib.contextmanager
    def open(self, fit):
        self.log.append(("open", fit.max_steps))
        calls = 0

        def call(step, diff, static, history, aux, loss, grads):
            nonlocal calls
            calls += 1
            assert aux is None and grads is None
            if step == 50:
                raise RuntimeError("in the middle")

        try:
            yield call
            self.log.append(("well", fit.history["n_steps"]))
        finally:
            self.log.append(("close", calls))


def test_a_host_callback_is_opened_and_closed_around_a_fit(parabola):
    session = Session(every=4)
    optimizer = OptaxOptimizer(quadratic, SGD, session)
    optimizer.run(parabola, 10)
    assert session.log == [("open", 10), ("well", 10), ("close", 3)]


def test_a_host_callback_is_closed_after_an_exception_and_can_be_used_again(parabola):
    session = Session()
    optimizer = OptaxOptimizer(quadratic, SGD, session)
    with pytest.raises(RuntimeError, match="in the middle"):
        optimizer.run(parabola, 100)
    assert session.log == [("open", 100), ("close", 51)]
    optimizer.run(parabola, 5)
    assert session.log[2:] == [("open", 5), ("well", 5), ("close", 5)]
