"""Models side by side: against lmfit, scipy and closed forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fitopt import LeastSquares, OptaxOptimizer, Parameter, compare, report

X = np.linspace(-3.0, 3.0, 60)
Y = (
    np.exp(-((X - 0.3) ** 2))
    + 0.4 * np.exp(-((X + 1.2) ** 2) / 0.3)
    + 0.05 * np.random.default_rng(1).normal(size=60)
)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def polynomial(degree, **options):
    """The report of a polynomial fitted to the first data."""
    names = [f"c{i}" for i in range(degree + 1)]
    residuals = lambda s: sum(s[name] * X**i for i, name in enumerate(names)) - Y
    optimizer = LeastSquares(residuals, **options)
    fitted, history = optimizer.run({name: Parameter(name, 0.0) for name in names})
    return report(fitted, history, optimizer.uncertainty(fitted), data=Y)


@pytest.fixture(scope="module")
def reports(in_float64):
    return {f"degree {degree}": polynomial(degree) for degree in (1, 2, 4)}


def chi_square(degree):
    return np.sum((np.polyval(np.polyfit(X, Y, degree), X) - Y) ** 2)


def test_criteria_and_weights_are_those_of_the_textbook(reports):
    found = compare(reports)
    n = 60
    aicc = {}
    for degree in (1, 2, 4):
        k = degree + 1
        aic = n * np.log(chi_square(degree) / n) + 2 * k
        aicc[f"degree {degree}"] = aic + 2 * k * (k + 1) / (n - k - 1)
    best = min(aicc.values())
    weights = {name: np.exp(-(value - best) / 2) for name, value in aicc.items()}
    assert found.criterion == "aicc" and found.models[0].name == min(aicc, key=aicc.get)
    for model in found.models:
        assert model.aicc == pytest.approx(aicc[model.name])
        assert model.weight == pytest.approx(weights[model.name] / sum(weights.values()))
        assert model.difference == pytest.approx(aicc[model.name] - best)


def test_nested_models_are_tested_by_f_and_by_the_likelihood_ratio(reports):
    (test,) = compare(reports, nested=[("degree 1", "degree 4")]).tests
    small, large = chi_square(1), chi_square(4)
    f = (small - large) / 3 / (large / 55)
    assert test.f == pytest.approx(f)
    assert test.p_value_f == pytest.approx(stats.f.sf(f, 3, 55))
    ratio = 60 * np.log(small / large)
    assert test.likelihood_ratio == pytest.approx(ratio)
    assert test.p_value == pytest.approx(stats.chi2.sf(ratio, 3))


def test_with_absolute_sigma_the_ratio_is_the_difference_of_chi_squares():
    known = {"sigma": 0.05, "absolute_sigma": True}
    models = {"line": polynomial(1, **known), "parabola": polynomial(2, **known)}
    (test,) = compare(models, nested=[("line", "parabola")]).tests
    assert test.likelihood_ratio == pytest.approx((chi_square(1) - chi_square(2)) / 0.05**2)
    assert test.f is None


def test_likelihoods_are_compared_too():
    data = jnp.array([3.0, 5.0, 4.0, 9.0, 8.0, 10.0])

    def report_of(rates, state):  # which is at the minimum
        nll = lambda s: jnp.sum(rates(s) - data * jnp.log(rates(s)))
        optimizer = OptaxOptimizer(nll, optax.sgd(0.1))
        fitted, history = optimizer.run(state, 0)
        return report(fitted, history, optimizer.uncertainty(fitted))

    one = report_of(lambda s: s["a"] * jnp.ones(6), {"a": Parameter("a", 6.5)})
    halves = lambda s: jnp.repeat(s["ab"], 3, total_repeat_length=6)
    two = report_of(halves, {"ab": Parameter("ab", [4.0, 9.0])})
    found = compare({"one": one, "two": two}, nested=[("one", "two")])
    expected = 2 * (12 * np.log(12 / 19.5) + 27 * np.log(27 / 19.5))
    assert found.tests[0].likelihood_ratio == pytest.approx(expected)
    assert found.criterion == "aic" and found.models[0].bic is None


def test_it_is_shown_as_text_html_table_and_dict(reports):
    found = compare(reports, nested=[("degree 1", "degree 2")])
    first, second, *_ = str(found).splitlines()
    assert first.split() == ["model", "variables", "loss", "AIC", "AICc", "BIC", "difference", "weight"]
    assert second.startswith(found.models[0].name) and "degree 1 in degree 2" in str(found)
    assert found._repr_html_().count("<table") == 2
    assert found.to_dict()["models"][0]["name"] == found.models[0].name
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.to_dataframe(), pandas.DataFrame)
    assert found.to_dataframe().loc["degree 1", "n_variables"] == 2


def test_too_few_data_for_aicc_are_told_of(reports):
    line, parabola = reports["degree 1"], reports["degree 2"]
    few = {"n_data": 4, "aicc": None}
    models = {
        "line": dataclasses.replace(line, n_data=4),
        "parabola": dataclasses.replace(parabola, **few),
    }
    found = compare(models)
    assert found.criterion == "aic"
    assert found.messages == [
        "AICc needs two data more than variables; 'parabola' has 4 data and 3 variables"
    ]
    with pytest.raises(ValueError, match="aicc of 'parabola' is not known"):
        compare(models, criterion="aicc")


def test_what_cannot_be_compared_is_refused(reports):
    line = reports["degree 1"]
    other = {
        "of the same data": dataclasses.replace(reports["degree 2"], n_data=50),
        "losses of one kind": polynomial(2, sigma=0.05, absolute_sigma=True),
    }
    for sentence, one in other.items():
        with pytest.raises(ValueError, match=sentence):
            compare({"line": line, "other": one})
    with pytest.raises(ValueError, match="two models or more"):
        compare({"line": line})
    with pytest.raises(TypeError, match="reports must be a dict"):
        compare([line, line])
    with pytest.raises(ValueError, match="there is no model 'cubic'"):
        compare(reports, nested=[("degree 1", "cubic")])
    with pytest.raises(ValueError, match="'degree 1' must have more variables than 'degree 2'"):
        compare(reports, nested=[("degree 2", "degree 1")])


def test_r_squared_is_lmfits_and_durbin_watson_that_of_the_formula(reports):
    lmfit = pytest.importorskip("lmfit")
    theirs = lmfit.models.PolynomialModel(degree=4).fit(Y, x=X, **{f"c{i}": 0.0 for i in range(5)})
    found = reports["degree 4"]
    assert found.r_squared == pytest.approx(theirs.rsquared, rel=1e-6)
    residuals = np.polyval(np.polyfit(X, Y, 4), X) - Y
    expected = np.sum(np.diff(residuals) ** 2) / np.sum(residuals**2)
    assert found.durbin_watson == pytest.approx(expected, rel=1e-6)
    assert "R-squared" in str(found) and "Durbin-Watson" in str(found)


def test_r_squared_of_weighted_data_is_that_of_weighted_sums():
    sigma = 0.1 + 0.02 * np.abs(X)
    found = polynomial.__wrapped__(2, sigma=sigma)
    weights = sigma**-2
    fit = np.polyval(np.polyfit(X, Y, 2, w=1 / sigma), X)
    mean = np.average(Y, weights=weights)
    expected = 1 - np.sum(weights * (fit - Y) ** 2) / np.sum(weights * (Y - mean) ** 2)
    assert found.r_squared == pytest.approx(expected)


def test_data_that_do_not_fit_are_refused():
    optimizer = LeastSquares(lambda s: s["a"] - Y)
    fitted, history = optimizer.run({"a": Parameter("a", 0.0)})
    with pytest.raises(ValueError, match="data must be those of the 60 residuals, got 3 numbers"):
        report(fitted, history, optimizer.uncertainty(fitted), data=Y[:3])
    with pytest.raises(ValueError, match="which needs its uncertainty"):
        report(fitted, history, data=Y)
