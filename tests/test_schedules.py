"""Learning-rate schedules, point by point against torch's.

The tables in `data/torch_schedules.json` say under "origin" with which torch and by which script they
were made; to make them anew, save that script as a file and run it with the path of the tables.
"""

import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Parameter, schedules

from .conftest import quadratic

TABLES = json.loads(
    pathlib.Path(__file__).with_name("data").joinpath("torch_schedules.json").read_text()
)
CASES = [pytest.param(table, id=f"{i}-{table['schedule']}") for i, table in enumerate(TABLES["tables"])]
every_case = pytest.mark.parametrize("case", CASES)


def build(name, arguments):
    inner = {"schedules": [build(*each) for each in arguments.get("schedules", [])]}
    return getattr(schedules, name)(**arguments | (inner if inner["schedules"] else {}))


def schedule_of(case):
    return build(case["schedule"], case["arguments"])


FAR = np.array([1000, 2**24 + 1, 2**31 - 1], np.int32)


@pytest.mark.parametrize(
    ("floats", "tolerance"), [(jnp.float64, 1e-9), (jnp.float32, 1e-5)], ids=["float64", "float32"]
)
@every_case
def test_every_point_is_that_of_torch_and_all_later_ones_are_finite(case, floats, tolerance):
    values = np.array(case["values"])
    steps = np.concatenate([np.arange(len(values), dtype=np.int32), FAR])  # int32, as optax counts
    with jax.enable_x64(floats == jnp.float64):
        rates = jax.jit(jax.vmap(schedule_of(case)))(steps)
    assert rates.dtype == floats
    rates, later = np.split(np.asarray(rates), [len(values)])
    np.testing.assert_allclose(rates, values, rtol=tolerance, atol=tolerance * 1e-2 * values.max())
    assert case["arguments"].get("gamma", 0) > 1 or np.all(np.isfinite(later) & (later >= 0))


@every_case
def test_a_step_may_be_any_number(case):
    schedule, value = schedule_of(case), case["values"][6]
    for step in (6, 6.0, np.int64(6), jnp.array(6.0)):
        assert float(schedule(step)) == pytest.approx(value, rel=1e-5)


def test_the_tables_cover_every_schedule():
    assert {*schedules.__all__} == {"constant", "plot"} | {
        table["schedule"] for table in TABLES["tables"]
    }
    assert TABLES["origin"]["torch"].startswith("2.") and "lr_scheduler" in TABLES["origin"]["what"]


def test_constant_is_constant():
    assert {float(schedules.constant(0.3)(i)) for i in (0, 7, 10**9)} == {0.3}


EXACT = {
    "step": (schedules.step(0.1, 49, gamma=0.5), {0: 0.1, 48: 0.1, 49: 0.05, 97: 0.05, 98: 0.025}),
    "staircase": (
        schedules.exponential_decay(0.1, 49, 0.5, staircase=True),
        {0: 0.1, 48: 0.1, 49: 0.05, 97: 0.05, 98: 0.025},
    ),
    "linear": (schedules.linear(0.1, 0.7, 0.3, 49), {0: 0.1 * 0.7, 49: 0.1 * 0.3, 50: 0.1 * 0.3}),
    "polynomial": (schedules.polynomial(0.1, 49, 1.5), {0: 0.1, 49: 0.0, 99: 0.0}),
    "cosine": (schedules.cosine_annealing(0.1, 49, 0.007), {0: 0.1, 49: 0.007, 98: 0.1, 147: 0.007}),
    "restarts": (schedules.cosine_warm_restarts(0.1, 49, 2, 0.007), {0: 0.1, 49: 0.1, 147: 0.1}),
    "warmup": (schedules.warmup(0.1, 49, 0.003), {0: 0.003, 49: 0.1, 50: 0.1}),
    "no warmup": (schedules.warmup(0.1, 0, 0.003), {0: 0.1, 1: 0.1}),
    "warmup_cosine": (
        schedules.warmup_cosine(0.1, 7, 56, 0.003, 0.007),
        {0: 0.003, 7: 0.1, 56: 0.007, 57: 0.007},
    ),
    "cosine that stays down": (schedules.warmup_cosine(0.1, 0, 49), {0: 0.1, 49: 0.0, 98: 0.0}),
    "cyclic": (schedules.cyclic(0.003, 0.1, 49, 7), {0: 0.003, 49: 0.1, 56: 0.003, 105: 0.1}),
    "one_cycle": (
        schedules.one_cycle(0.1, 100, 0.25, div_factor=4.0, final_div_factor=2.0),
        {0: 0.025, 24: 0.1, 99: 0.0125, 100: 0.0125, 10**6: 0.0125},
    ),
    "piecewise": (schedules.piecewise_constant(0.1, [49], [0.007]), {48: 0.1, 49: 0.007}),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_boundaries_are_exact(name, x64):
    schedule, expected = EXACT[name]
    with jax.enable_x64(x64):
        rates = jax.jit(jax.vmap(schedule))(jnp.array(list(expected), jnp.int32))
        np.testing.assert_array_equal(rates, np.array(list(expected.values()), rates.dtype))


@pytest.mark.parametrize("T_mult", [1, 2, 3, 10])
def test_warm_restarts_hit_every_restart_that_an_int32_can_count_to(T_mult):
    schedule = jax.jit(schedules.cosine_warm_restarts(1.0, T_0=7, T_mult=T_mult))
    restart, length = (7 * (2**31 // 7 - 5), 7) if T_mult == 1 else (7, 7 * T_mult)
    while restart < 2**31:
        assert schedule(restart - 1) < 0.06 and schedule(restart) == 1.0
        restart, length = restart + length, length * T_mult


def test_cycles_keep_their_phase_where_float32_no_longer_counts():
    far = 2**31 - 8
    assert jax.jit(schedules.cyclic(0.0, 1.0, 4))(far + 4) == 1.0
    np.testing.assert_allclose(jax.jit(schedules.cosine_annealing(1.0, 4))(far + 2), 0.5, rtol=1e-6)
    assert jax.jit(schedules.step(1.0, 2**30, gamma=0.5))(2**30 - 1) == 1.0


def test_exponential_decay_begins_late_and_stops_at_its_end_value():
    rate = schedules.exponential_decay(0.1, 5, 0.5, transition_begin=10, end_value=0.02)
    expected = [max(0.1 * 0.5 ** (max(i - 10, 0) / 5), 0.02) for i in range(40)]
    np.testing.assert_allclose(jax.vmap(rate)(jnp.arange(40)), expected, rtol=1e-6)


def test_schedules_of_optax_combine_with_these():
    halves = optax.exponential_decay(0.2, 1, 0.5)
    joined = schedules.sequential(
        [halves, schedules.constant(0.3), lambda step: 0.1 / (1 + step)], [2, 4]
    )
    np.testing.assert_allclose([joined(i) for i in range(6)], [0.2, 0.1, 0.3, 0.3, 0.1, 0.05], rtol=1e-6)
    both = schedules.chained(0.2, [halves, schedules.step(0.2, 2, 0.1)])
    np.testing.assert_allclose([both(i) for i in range(3)], [0.2, 0.1, 0.005], rtol=1e-6)


def test_learning_rates_may_be_traced():
    rates = jnp.array([0.1, 0.2])
    for make in (
        lambda lr: schedules.cosine_annealing(lr, 10),
        lambda lr: schedules.one_cycle(lr, 10),
        lambda lr: schedules.warmup_cosine(lr, 5, 20),
        lambda lr: schedules.piecewise_constant(lr, [5], [0.1 * lr]),
        lambda lr: schedules.chained(lr, [schedules.exponential(lr, 0.9), schedules.polynomial(lr, 9)]),
    ):
        values_and_slopes = jax.vmap(jax.value_and_grad(lambda lr, make=make: make(lr)(6)))
        values, slopes = jax.jit(values_and_slopes)(rates)
        np.testing.assert_allclose(values, [make(0.1)(6), make(0.2)(6)], rtol=1e-5)
        np.testing.assert_allclose(slopes, values / rates, rtol=1e-4)


@pytest.mark.parametrize("make", [optax.linear_schedule, schedules.linear])
def test_a_fit_follows_its_schedule(make, parabola):
    schedule = make(0.4, 0.1, 20) if make is optax.linear_schedule else make(0.4, 1.0, 0.25, 20)
    fitted, history = fitopt.OptaxOptimizer(quadratic, optax.sgd(schedule)).run(parabola, max_steps=6)
    distance = 2 * math.prod(1 - 2 * (0.4 - 0.3 * i / 20) for i in range(6))
    assert fitted["x"].value - 1 == pytest.approx(distance, rel=1e-2)
    start = {"x": Parameter("x", 3.0), "target": 1.0}
    _, constant = fitopt.OptaxOptimizer(quadratic, optax.sgd(0.4)).run(start, max_steps=6)
    assert history["loss"][1] == pytest.approx(constant["loss"][1])
    assert history["loss"][5] > constant["loss"][5]


BAD_VALUES = [
    ("step", (-0.1, 5), "lr must be at least 0 and finite, got -0.1"),
    ("step", (math.nan, 5), "lr must be"),
    ("step", (0.1, 0), "step_size must be a positive integer, got 0"),
    ("step", (0.1, 2, 0.0), "gamma must be positive, got 0.0"),
    ("multi_step", (0.1, [3, -1]), r"milestones\[1\] must be an integer of at least 0, got -1"),
    ("piecewise_constant", (0.1, [5, 5], [1, 2]), r"boundaries must increase, got \[5, 5\]"),
    ("piecewise_constant", (0.1, [5, 6], [1, -2]), r"values\[1\] must be at least 0 and finite"),
    ("piecewise_constant", (0.1, [5, 6], [1]), r"values must be 2, one a boundary, got \[1\]"),
    ("exponential", (0.1, -0.9), "gamma must be at least 0 and finite, got -0.9"),
    ("exponential_decay", (0.1, 0, 0.5), "decay_steps must be a positive integer, got 0"),
    ("linear", (0.1, -1.0), "start_factor must be at least 0 and finite, got -1.0"),
    ("polynomial", (0.1, 5, -1), "power must be at least 0 and finite, got -1"),
    ("cosine_annealing", (0.1, 0), "T_max must be a positive integer, got 0"),
    ("warmup", (0.1, -1), "warmup_steps must be an integer of at least 0, got -1"),
    ("warmup_cosine", (0.1, 10, 10), r"total_steps must be above warmup_steps \(10\), got 10"),
    ("cyclic", (0.1, 0.2, 5, 0), "step_size_down must be a positive integer, got 0"),
    ("cyclic", (0.1, 0.2, 5, 5, "square"), "mode must be one of 'triangular', .* got 'square'"),
    ("cyclic", (0.1, 0.2, 5, 5, "exp_range", 1.5), "gamma must be at most 1, got 1.5"),
    ("one_cycle", (0.1, 10, 1.5), "pct_start must be at most 1, got 1.5"),
    ("one_cycle", (0.1, 10, 0.6, "cos", 25, 10, True), "pct_start must be at most 0.5 with three_phase"),
    ("one_cycle", (0.1, 10, 0.3, "sin"), "anneal_strategy must be one of 'cos', 'linear', got 'sin'"),
    ("chained", (0.1, []), "schedules must hold at least one"),
    ("chained", (0.0, [optax.constant_schedule(1.0)]), "lr must be positive, got 0.0"),
    ("sequential", ([abs, abs], []), "milestones must hold one step less than schedules, 1"),
    ("sequential", ([abs, abs, abs], [5, 3]), r"milestones must increase, got \[5, 3\]"),
    ("plot", (abs, 0), "n_steps must be a positive integer, got 0"),
]
OF_ANOTHER_KIND = [
    ("constant", ("0.1",), "lr must be a number, got '0.1'"),
    ("constant", (None,), "lr must be a number, got None"),
    ("constant", (np.ones(2),), "lr must be a number"),
    ("step", (0.1, 2.5), "step_size must be an integer, got 2.5"),
    ("multi_step", (0.1, 30), "milestones must be a list of integers, got 30"),
    ("cosine_warm_restarts", (0.1, 5, 1.5), "T_mult must be an integer, got 1.5"),
    ("cyclic", (0.1, 0.2, 5, 5, 2), "mode must be a string, got 2"),
    ("sequential", ([0.1, 0.2], [3]), r"schedules\[0\] must be a function of the step, got 0.1"),
    ("sequential", (abs, [3]), "schedules must be a list of schedules"),
    ("plot", (0.1, 5), "schedule must be a function of the step, got 0.1"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD_VALUES)
def test_an_argument_out_of_range_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(schedules, name)(*arguments)


@pytest.mark.parametrize(("name", "arguments", "message"), OF_ANOTHER_KIND)
def test_an_argument_of_another_kind_is_named(name, arguments, message):
    with pytest.raises(TypeError, match=message):
        getattr(schedules, name)(*arguments)


@pytest.fixture
def pyplot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.rc_context({"backend": "Agg"}):
        yield pyplot
    pyplot.close("all")


def test_plot_draws_the_learning_rate_of_every_step(pyplot):
    schedule = schedules.cosine_annealing(0.1, 20)
    axes = schedules.plot(schedule, 30)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(30))
    np.testing.assert_allclose(line.get_ydata(), [schedule(i) for i in range(30)], atol=1e-7)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "learning rate")
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0


def test_plot_is_logarithmic_above_two_decades_and_takes_axes(pyplot):
    axes = pyplot.figure().add_subplot()
    assert schedules.plot(schedules.exponential(0.1, 0.9), 100, axes) is axes
    assert axes.get_yscale() == "log"
    schedules.plot(optax.constant_schedule(0.01), 100, axes)
    assert axes.get_yscale() == "log" and len(axes.lines) == 2


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fitopt\[plot\]"'):
        schedules.plot(schedules.constant(0.1), 10)
