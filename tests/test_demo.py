"""The demo against an independent maximum-likelihood fit, SciPy's integrator, and its command line."""

import sys

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fitopt
from fitopt import demo

MAXIMUM_LIKELIHOOD = {
    "alpha": 0.5400,
    "beta": 0.02716,
    "gamma": 0.7966,
    "delta": 0.02370,
    "hare0": 34.60,
    "lynx0": 5.844,
    "sigma_hare": 0.2184,
    "sigma_lynx": 0.2201,
}
STANDARD_ERRORS = {
    "alpha": 0.0549,
    "beta": 0.00357,
    "gamma": 0.0779,
    "delta": 0.00305,
    "hare0": 2.60,
    "lynx0": 0.449,
    "sigma_hare": 0.0338,
    "sigma_lynx": 0.0341,
}
EACH = pytest.mark.parametrize(("name", "value"), MAXIMUM_LIKELIHOOD.items())


@pytest.fixture(scope="module")
def fit():
    """The demo's fit, done once; also the setting of x64 before and after it."""
    before = jax.config.jax_enable_x64
    fitted, history = demo.fit()
    assert jax.config.jax_enable_x64 == before
    return fitted, history


@pytest.fixture(scope="module")
def report(fit):
    return demo.report(*fit)


@pytest.fixture
def fitted_before(monkeypatch, fit, report):
    """The command line without the time of a fit."""
    monkeypatch.setattr(demo, "fit", lambda: fit)
    monkeypatch.setattr(demo, "report", lambda *_: report)


@EACH
def test_the_fit_reaches_the_maximum_likelihood_to_3_digits(fit, name, value):
    fitted, _ = fit
    assert f"{float(fitted[name]):.3g}" == f"{value:.3g}"
    assert float(fitted[name]) == pytest.approx(value, rel=5e-4)


@EACH
def test_the_fit_starts_at_least_30_percent_away(name, value):
    assert abs(demo.START[name] - value) > 0.3 * value


def test_the_loss_of_the_fit_is_the_least_negative_log_likelihood(fit):
    _, history = fit
    assert history["final_loss"] == pytest.approx(-42.7406, abs=1e-4)
    assert history["loss"].dtype == np.float64
    assert "EarlyStopping" in history["stop_reason"]


def test_the_standard_errors_are_the_certified_ones_to_3_digits(report):
    errors = {entry.name: f"{entry.error:.3g}" for entry in report.parameters}
    assert errors == {name: f"{error:.3g}" for name, error in STANDARD_ERRORS.items()}


def test_the_information_criteria_count_8_variables_and_42_data_points(report):
    assert report.aic == pytest.approx(2 * -42.7406 + 2 * 8, abs=1e-3)
    assert report.bic == pytest.approx(2 * -42.7406 + 8 * np.log(42), abs=1e-3)


def test_the_loss_at_the_given_maximum_is_the_given_one():
    with jax.enable_x64(True):
        loss = demo.negative_log_likelihood(MAXIMUM_LIKELIHOOD, demo.load_pelts())
    assert float(loss) == pytest.approx(-42.7406, abs=1e-3)


def test_simulate_agrees_with_scipy():
    alpha, beta, gamma, delta, *start = list(MAXIMUM_LIKELIHOOD.values())[:6]
    years = demo.load_pelts().years
    reference = solve_ivp(
        lambda t, y: [(alpha - beta * y[1]) * y[0], (delta * y[0] - gamma) * y[1]],
        (years[0], years[-1]),
        start,
        method="DOP853",
        t_eval=years,
        rtol=1e-12,
        atol=1e-12,
    )
    with jax.enable_x64(True):
        simulated, finer = (
            np.asarray(demo.simulate(MAXIMUM_LIKELIHOOD, years, substeps)) for substeps in (10, 20)
        )
    np.testing.assert_allclose(simulated, reference.y.T, rtol=3e-6)
    error, smaller = (np.abs(x - reference.y.T).max() for x in (simulated, finer))
    assert 13 < error / smaller < 19  # fourth order: half the step, a sixteenth of the error


def test_the_data_are_21_years_of_two_species():
    years, counts = demo.load_pelts()
    np.testing.assert_array_equal(years, np.arange(1900, 1921))
    assert counts.shape == (21, 2)
    assert counts[[0, -1]].tolist() == [[30.0, 4.0], [24.7, 8.6]]


def test_the_command_fits_prints_the_report_and_saves_the_picture(tmp_path, capsys):
    assert demo.main(["demo", "--output", str(tmp_path / "new" / "folder")]) == 0
    picture = tmp_path / "new" / "folder" / "lynx_hare.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    header, *rows = printed.out.splitlines()[: len(MAXIMUM_LIKELIHOOD) + 1]
    assert header.split() == ["name", "value", "±", "error", "relative", "start", "bounds"]
    for row, (name, value) in zip(rows, MAXIMUM_LIKELIHOOD.items(), strict=True):
        error, start = f"{STANDARD_ERRORS[name]:#.3g}", f"{demo.START[name]:g}"
        assert row.split()[:4] == [name, f"{value:#.4g}", "±", error]
        assert row.split()[-3:] == [start, "[0,", "inf)"]
    for line in ("loss                -42.7406", "EarlyStopping", str(picture)):
        assert line in printed.out
    assert "100%" in printed.err


@pytest.mark.usefixtures("fitted_before")
def test_the_picture_goes_to_the_current_directory_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["demo"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lynx_hare.png"]


@pytest.mark.usefixtures("fitted_before")
def test_no_plot_prints_the_table_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "plot", None)
    assert demo.main(["demo", "--no-plot"]) == 0
    assert "alpha" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fitted_before")
def test_without_matplotlib_the_table_is_printed_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(["demo", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "alpha" in printed
    assert 'pip install "fitopt[plot]"' in printed


def test_an_output_that_is_a_file_is_an_error_before_the_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "fit", None)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stopped:
        demo.main(["demo", "--output", str(file)])
    assert stopped.value.code == 2
    assert f"cannot make the directory {file}" in capsys.readouterr().err


@pytest.mark.usefixtures("fitted_before")
def test_a_picture_that_cannot_be_saved_is_an_error_after_the_table(tmp_path, capsys):
    picture = tmp_path / "lynx_hare.png"
    picture.mkdir()
    with pytest.raises(SystemExit) as stopped:
        demo.main(["demo", "--output", str(tmp_path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "alpha" in printed.out
    assert f"cannot save {picture}" in printed.err


def test_the_command_alone_prints_its_help(capsys):
    assert demo.main([]) == 0
    assert "usage: fitopt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--version"], fitopt.__version__), (["demo", "--help"], "--no-plot")],
    ids=["version", "help"],
)
def test_what_the_command_says_about_itself(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 0
    assert expected in capsys.readouterr().out
