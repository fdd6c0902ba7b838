"""Reports against lmfit, closed forms and what people read: every number, word and line of them."""

import json
import re
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import History, LeastSquares, OptaxOptimizer, Parameter
from fitopt.reporting.digits import measured, percent, span

RNG = np.random.default_rng(5)
X = np.linspace(0.0, 4.0, 40)
SIGMA = 0.05 + 0.02 * X
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + SIGMA * RNG.normal(size=X.size)


def decay_residuals(state):
    return state["height"] * jnp.exp(-state["rate"] * X) + state["floor"] - Y


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def decay():
    """State, history, and the uncertainty by the scatter of the residuals and by sigma alone."""
    state = {
        "rate": Parameter("rate", 1.0, lower=0, upper=5),
        "height": Parameter("height", 1.0),
        "floor": Parameter("floor", 0.0, lower=-1),
    }
    optimizer = LeastSquares(decay_residuals, sigma=SIGMA)
    fitted, history = optimizer.run(state)
    absolute = LeastSquares(decay_residuals, sigma=SIGMA, absolute_sigma=True)
    return fitted, history, optimizer.uncertainty(fitted), absolute.uncertainty(fitted)


def entries(report):
    return {entry.name: entry for entry in report.parameters}


def lines(report, label):
    return [line for line in str(report).splitlines() if line.startswith(label)]


# Numbers.


@pytest.mark.parametrize("scale_covar", [True, False], ids=["scatter", "absolute sigma"])
def test_the_numbers_of_a_least_squares_fit_are_those_of_lmfit(decay, scale_covar):
    lmfit = pytest.importorskip("lmfit")
    model = lmfit.Model(lambda x, rate, height, floor: height * np.exp(-rate * x) + floor)
    theirs = model.fit(
        Y, x=X, weights=1 / SIGMA, rate=1.0, height=1.0, floor=0.0, scale_covar=scale_covar
    )
    fitted, history, *uncertainties = decay
    report = fitopt.report(fitted, history, uncertainties[0 if scale_covar else 1])
    assert (report.n_data, report.n_variables, report.degrees_of_freedom) == (40, 3, 37)
    ours = [report.chi_square, report.reduced_chi_square, report.aic, report.bic]
    expected = [theirs.chisqr, theirs.redchi, theirs.aic, theirs.bic]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    for name, entry in entries(report).items():
        np.testing.assert_allclose(entry.value, theirs.params[name].value, rtol=1e-6)
        np.testing.assert_allclose(entry.error, theirs.params[name].stderr, rtol=1e-4)
        relative = theirs.params[name].stderr / abs(theirs.params[name].value)
        np.testing.assert_allclose(entry.relative_error, relative, rtol=1e-4)
    found = {(a, b): r for a, b, r in report.correlations}
    pairs = [("rate", "height"), ("rate", "floor"), ("height", "floor")]
    expected = {(a, b): theirs.params[a].correl[b] for a, b in pairs}
    expected = {pair: r for pair, r in expected.items() if abs(r) > 0.1}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[pair] for pair in expected], list(expected.values()), atol=1e-4)


def test_correlations_are_sorted_by_size(decay):
    fitted, history, uncertainty, _ = decay
    sizes = [abs(r) for *_, r in fitopt.report(fitted, history, uncertainty).correlations]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 1


@pytest.fixture(scope="module")
def normal():
    """The greatest likelihood of a normal distribution, as it is known: no step is made."""
    data = RNG.normal(3.0, 0.7, 50)

    def loss(state):
        z = (data - state["mean"]) / state["deviation"]
        return jnp.sum(z**2) / 2 + data.size * jnp.log(state["deviation"])

    state = {"mean": Parameter("mean", data.mean()), "deviation": Parameter("deviation", data.std())}
    optimizer = OptaxOptimizer(loss, optax.sgd(0.1))
    fitted, history = optimizer.run(state, max_steps=0)
    return data, fitted, history, optimizer


def test_a_negative_log_likelihood_gives_the_errors_and_criteria_of_the_closed_form(normal):
    data, fitted, history, optimizer = normal
    report = fitopt.report(fitted, history, optimizer.uncertainty(fitted), n_data=data.size)
    found = entries(report)
    np.testing.assert_allclose(found["mean"].error, data.std() / np.sqrt(50), rtol=1e-6)
    np.testing.assert_allclose(found["deviation"].error, data.std() / np.sqrt(100), rtol=1e-6)
    log_likelihood = -25 - 50 * np.log(data.std())
    np.testing.assert_allclose(report.aic, -2 * log_likelihood + 2 * 2, rtol=1e-9)
    np.testing.assert_allclose(report.bic, -2 * log_likelihood + 2 * np.log(50), rtol=1e-9)
    assert report.correlations == []
    assert report.chi_square is None and lines(report, "loss") and not lines(report, "chi-square")
    assert report.degrees_of_freedom == 48


def test_without_the_number_of_data_a_likelihood_has_aic_but_no_bic(normal):
    _, fitted, history, optimizer = normal
    report = fitopt.report(fitted, history, optimizer.uncertainty(fitted))
    assert report.aic is not None and report.bic is None and report.degrees_of_freedom is None
    assert not lines(report, "BIC") and not lines(report, "data points")


def test_a_loss_with_errordef_1_is_a_chi_square():
    data = np.array([1.0, 2.0, 4.0, 5.0])
    optimizer = OptaxOptimizer(lambda s: jnp.sum((s["m"] - data) ** 2), optax.sgd(0.1))
    fitted, history = optimizer.run({"m": Parameter("m", 3.0)}, max_steps=0)
    report = fitopt.report(fitted, history, optimizer.uncertainty(fitted, errordef=1), n_data=4)
    assert report.chi_square == pytest.approx(10) and report.reduced_chi_square == pytest.approx(10 / 3)
    assert report.aic == pytest.approx(10 + 2) and report.bic == pytest.approx(10 + np.log(4))
    assert entries(report)["m"].error == pytest.approx(0.5)


def test_a_perfect_fit_has_errors_of_zero_and_valid_json():
    optimizer = LeastSquares(lambda s: s["k"] * jnp.arange(1.0, 4.0) - jnp.arange(1.0, 4.0))
    fitted, history = optimizer.run({"k": Parameter("k", 1.0)}, max_steps=0)
    report = fitopt.report(fitted, history, optimizer.uncertainty(fitted))
    assert report.chi_square == 0 and report.aic == -np.inf
    assert lines(report, "k")[0].split()[:4] == ["k", "1", "±", "0"]
    assert json.loads(report.to_json())["aic"] == "-inf"


# What there is to say of parameters.


@pytest.fixture(scope="module")
def odd():
    """A state with something of everything, at its minimum: no step is made."""

    def residuals(state):
        flat = state["a"] * state["b"] * jnp.array([1.0, -1.0, 1.0]) - jnp.array([1.1, -0.9, 1.0])
        parts = [flat, state["low"] + jnp.array([1.0, 1.1]), state["z"] - (1 + 2j)]
        parts += [state["many"] - jnp.arange(12.0), state["many"] - jnp.arange(12.0) - 0.1]
        return parts

    state = {
        "z": Parameter("z", 1.0 + 2.0j),
        "a": Parameter("first", 2.0),
        "b": Parameter("second", 0.5),
        "low": Parameter("low", 0.0, lower=0),
        "many": Parameter("many", jnp.arange(12.0) + 0.05, mask=np.arange(12) != 1),
        "constant": Parameter("constant", 7.0, free=False),
    }
    optimizer = LeastSquares(residuals)
    fitted, history = optimizer.run(state, max_steps=0)
    return fitted, history, optimizer.uncertainty(fitted)


def test_each_entry_has_a_status(odd):
    found = entries(fitopt.report(*odd))
    statuses = {name: entry.status for name, entry in found.items() if not name.startswith("many")}
    assert statuses == {
        "z.real": "fitted",
        "z.imag": "fitted",
        "first": "not determined",
        "second": "not determined",
        "low": "at a bound",
        "constant": "fixed",
    }
    assert found["first"].error == np.inf and found["first"].relative_error is None
    assert found["low"].error is None and (found["low"].lower, found["low"].upper) == (0.0, None)
    assert found["many[1]"].status == "fixed" and found["many[1]"].error is None
    assert found["constant"].start is None and found["many[2]"].start == 2.05


def test_the_text_says_in_words_what_has_no_error(odd):
    report = fitopt.report(*odd)
    assert "2 (not determined)" in lines(report, "first")[0]
    assert "0 (at a bound)" in lines(report, "low")[0]
    assert "7 (fixed)" in lines(report, "constant")[0]
    assert any("first is not determined" in line and "second" in line for line in lines(report, "! "))
    assert any("at a bound" in line and "low" in line for line in lines(report, "! "))
    assert "inf" not in "".join(line for line in lines(report, "first")) and "nan" not in str(report)


def test_of_long_arrays_the_text_shows_the_first_entries_and_the_numbers_are_all_there(odd):
    report = fitopt.report(*odd)
    assert len(lines(report, "many[")) == 7 and lines(report, "many:") == ["many: 5 more"]
    assert sum(name.startswith("many[") for name in entries(report)) == 12


def test_variables_are_those_that_the_data_determine(odd):
    report = fitopt.report(*odd)  # z twice, the product of first and second, and 11 of many
    assert report.n_variables == 14 and report.n_data == 3 + 2 + 2 + 24


def test_parameters_come_in_the_order_of_the_users_dict(decay, odd):
    assert list(entries(fitopt.report(*decay[:3]))) == ["rate", "height", "floor"]
    assert list(entries(fitopt.report(*odd)))[:3] == ["z.real", "z.imag", "first"]


def test_names_that_are_not_unique_get_their_path():
    optimizer = OptaxOptimizer(lambda s: (s[0]["k"] - s[1]["k"]) ** 2, optax.sgd(0.1))
    state = [{"k": Parameter("k", 1.0)}, {"k": Parameter("k", 2.0, free=False)}]
    report = fitopt.report(*optimizer.run(state))
    assert list(entries(report)) == ["k", "k (1/k)"]


# The start, and what else may not be known.


def test_the_start_is_what_the_history_knows_or_what_is_given(decay):
    fitted, history, uncertainty, _ = decay
    starts = {name: entry.start for name, entry in entries(fitopt.report(*decay[:3])).items()}
    assert starts == {"rate": 1.0, "height": 1.0, "floor": 0.0}
    elsewhere = {name: Parameter(name, 0.25) for name in fitted}
    report = fitopt.report(fitted, history, uncertainty, start=elsewhere)
    assert {entry.start for entry in report.parameters} == {0.25}


def test_a_history_from_a_file_leaves_out_the_start(decay, tmp_path):
    fitted, history, uncertainty, _ = decay
    history.save(tmp_path / "fit.npz")
    report = fitopt.report(fitted, History.load(tmp_path / "fit.npz"), uncertainty)
    assert "start" not in str(report).splitlines()[0]
    assert all(entry.start is None for entry in report.parameters)
    assert report.n_steps == history["n_steps"] and report.stop_reason == history["stop_reason"]


def test_without_uncertainty_there_are_values_but_no_errors_nor_chi_square(decay):
    fitted, history, *_ = decay
    report = fitopt.report(fitted, history)
    assert str(report).splitlines()[0].split() == ["name", "value", "start", "bounds"]
    assert "±" not in str(report) and "chi" not in str(report) and "AIC" not in str(report)
    assert report.loss == history["final_loss"] and report.n_variables == 3


def test_errors_of_some_parameters_leave_the_others_without():
    optimizer = OptaxOptimizer(lambda s: s["a"] ** 2 + 2 * s["b"] ** 2, optax.sgd(0.1))
    fitted, history = optimizer.run({"a": Parameter("a", 0.0), "b": Parameter("b", 0.0)}, 0)
    found = entries(fitopt.report(fitted, history, optimizer.uncertainty(fitted, parameters=["b"])))
    assert found["a"].error is None and found["b"].error == pytest.approx(0.5)


def test_confidence_intervals_get_a_column(decay):
    fitted, history, uncertainty, _ = decay
    intervals = uncertainty.confidence_intervals(level=0.9, parameters=["rate"])
    report = fitopt.report(fitted, history, uncertainty, intervals)
    low, high = intervals["rate"]
    assert "90 % interval" in str(report).splitlines()[0]
    assert f"{low:.3f} to {high:.3f}" in lines(report, "rate")[0]
    assert report.to_dict()["parameters"][0]["interval"] == (low, high)
    assert entries(report)["height"].interval is None
    with pytest.raises(ValueError, match="intervals must be those of the fitted rate, height and floor"):
        fitopt.report(fitted, history, intervals={"k": intervals["rate"]})


# Text, HTML and JSON.


def test_the_text_is_aligned_and_at_most_100_characters_wide(odd, decay):
    for given in (odd, decay[:3]):
        table = str(fitopt.report(*given)).split("\n\n")[0].splitlines()
        assert len({line.index("±") for line in table if "±" in line}) == 1
        assert all(len(line) <= 100 for line in str(fitopt.report(*given)).splitlines())


def test_how_the_fit_went_is_told(decay):
    fitted, history, uncertainty, _ = decay
    report = fitopt.report(fitted, history, uncertainty)
    told = " ".join(str(report).split())
    assert history["stop_reason"] in told
    assert f"steps {history['n_steps']}, each an evaluation of the residuals" in told
    assert report.n_evaluations == history["n_steps"] and report.seconds == history["elapsed"]


def test_digits_are_those_of_the_errors(decay):
    fitted, history, uncertainty, _ = decay
    error = entries(fitopt.report(fitted, history, uncertainty))["rate"].error
    for digits in (1, 2, 4):
        text = str(fitopt.report(fitted, history, uncertainty, digits=digits))
        shown = re.search(r"rate +(\S+) ± (\S+)", text)
        assert shown[2] == f"{error:#.{digits}g}" and float(shown[1]) == pytest.approx(1.3, abs=0.2)
        assert len(shown[1].partition(".")[2]) == len(shown[2].partition(".")[2])


def test_html_is_well_formed_says_the_same_and_has_no_colours(odd):
    fitted, history, uncertainty = odd
    report = fitopt.report(fitted, history, uncertainty)
    html = report._repr_html_()
    texts = " ".join(ElementTree.fromstring(html).itertext())
    for cell in ("first", "(not determined)", "chi-square", "many: 5 more", report.messages[0]):
        assert cell in texts
    assert "color" not in html and "<style" not in html


def test_html_escapes_names():
    optimizer = OptaxOptimizer(lambda s: s["x"] ** 2, optax.sgd(0.1))
    report = fitopt.report(*optimizer.run({"x": Parameter("<b>&", 1.0)}))
    assert "&lt;b&gt;&amp;" in report._repr_html_()
    ElementTree.fromstring(report._repr_html_())


def test_json_is_valid_and_holds_what_the_dict_holds(odd):
    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    report = fitopt.report(*odd)
    loaded, numbers = json.loads(report.to_json(), parse_constant=strict), report.to_dict()
    assert loaded.keys() == numbers.keys() >= {"parameters", "correlations", "aic", "n_steps"}
    assert loaded["chi_square"] == numbers["chi_square"] and loaded["messages"] == numbers["messages"]
    first = next(entry for entry in loaded["parameters"] if entry["name"] == "first")
    assert first["error"] == "inf" and first["relative_error"] is None
    assert report.to_json(indent=2).count("\n") > 50


# Digits.


def test_measured_rounds_the_error_to_its_digits_and_the_value_to_the_same_place():
    rng = np.random.default_rng(0)
    for _ in range(500):
        error = rng.uniform(1, 10) * 10.0 ** rng.integers(-30, 30)
        value = rng.normal() * error * 10.0 ** rng.integers(-2, 8)
        digits = int(rng.integers(1, 4))
        shown, spread = measured(value, error, digits)
        match = re.fullmatch(r"\(?(\S+) ± ([^)]+)\)?(e\S+)?", f"{shown} {spread}")
        factor = float(f"1{match[3] or ''}")
        unit = 10.0 ** (np.floor(np.log10(error)) - digits + 1)
        assert abs(float(match[2]) * factor - error) <= 0.5001 * unit
        assert abs(float(match[1]) * factor - value) <= 5.001 * unit  # ten times if the error rounds up
        decimals = [len(part.partition(".")[2]) for part in (match[1], match[2])]
        assert decimals[0] == decimals[1]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.539875, 0.0387, "2.540 ± 0.039"),
        (0.0, 0.01, "0.000 ± 0.010"),
        (-0.0001, 0.012, "0.000 ± 0.012"),
        (9.996, 0.00996, "9.996 ± 0.010"),
        (123456.0, 1234.0, "123500 ± 1200"),
        (12345678.0, 0.0012, "12345678.0000 ± 0.0012"),
        (5.50156e-4, 7.2669e-6, "(5.502 ± 0.073)e-04"),
        (1.0, 1e8, "(0.0 ± 1.0)e+08"),
        (0.0951, 5.3e-17, "0.0951 ± 5.3e-17"),
    ],
)
def test_measured_is_what_one_would_write(value, error, text):
    assert " ".join(measured(value, error)) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1.232246, 1.404712, "1.232 to 1.405"),
        (12345.67, 12345.92, "12345.670 to 12345.920"),
        (5.41e-9, 6.72e-9, "5.41e-09 to 6.72e-09"),
        (-np.inf, 0.25, "-inf to 0.25"),
        (2.0, 2.0, "2 to 2"),
    ],
)
def test_span_tells_the_ends_apart(low, high, text):
    assert span(low, high) == text


def test_percent_has_two_digits():
    assert [percent(x) for x in (0.01234, 0.999, 12.0, 0.0)] == ["1.2 %", "100 %", "1200 %", "0 %"]


# Errors.


def test_what_does_not_belong_to_one_fit_is_an_error_that_names_the_argument(decay, odd):
    fitted, history, uncertainty, _ = decay
    with pytest.raises(ValueError, match="uncertainty must be that of state, in which .*rate"):
        fitopt.report(fitted, history, odd[2])
    moved = {**fitted, "rate": fitted["rate"].replace(value=2.0)}
    with pytest.raises(ValueError, match="uncertainty must be that of state, where rate is 2, not"):
        fitopt.report(moved, history, uncertainty)
    with pytest.raises(ValueError, match="the start of history must have the Parameters of state"):
        fitopt.report(fitted, odd[1], uncertainty)
    with pytest.raises(ValueError, match="start must have the Parameters of state, floor, height"):
        fitopt.report(fitted, history, start={"rate": Parameter("rate", 1.0)})
    with pytest.raises(ValueError, match="n_data must be None, as there are 40 residuals; got 7"):
        fitopt.report(fitted, history, uncertainty, n_data=7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"history": None}, TypeError, "history must be what run has returned, got None"),
        ({"history": History(n_steps=np.zeros(2))}, ValueError, "several fits, from vmap"),
        ({"state": {"x": 1.0}}, ValueError, "state has no free Parameter"),
        ({"intervals": 0.95}, TypeError, "intervals must be what confidence_intervals has returned"),
        ({"digits": 0}, ValueError, "digits must be a whole number from 1 to 9, got 0"),
        ({"n_data": 0}, ValueError, "n_data must be a number of data points, got 0"),
    ],
)
def test_arguments_of_the_wrong_kind_are_errors(change, error, message):
    given = {"state": {"x": Parameter("x", 1.0)}, "history": History(n_steps=1)}
    with pytest.raises(error, match=message):
        fitopt.report(**{**given, **change})


def test_inside_jit_a_report_is_an_error():
    def fit(x):
        return fitopt.report({"x": Parameter("x", x)}, History()).loss

    with pytest.raises(TypeError, match="not inside jit"):
        jax.jit(fit)(1.0)
