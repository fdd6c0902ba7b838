"""Pictures of fits and uncertainties: the numbers that are drawn, against closed forms."""

import dataclasses
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fitopt
from fitopt import LeastSquares, Parameter, plot_contour, plot_correlation, plot_fit, plot_profile
from fitopt.uncertainty import Contour, Profile

pyplot = pytest.importorskip("matplotlib.pyplot")

X = np.array([3.0, 0.0, 1.0, 2.0, 5.0])  # not in order
Y = np.array([2.9, 0.1, 0.9, 2.1, 5.2])


def line(state, x):
    return state["slope"] * x + state["offset"]


@pytest.fixture(autouse=True)
def agg():
    with pyplot.rc_context({"backend": "Agg"}):
        yield
    pyplot.close("all")


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def fit():
    state = {"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)}
    optimizer = LeastSquares(lambda state: line(state, X) - Y)
    fitted, _ = optimizer.run(state)
    return fitted, optimizer.uncertainty(fitted)


def curve(axes):
    """The one line without markers that is longer than the data."""
    (found,) = [one for one in axes.lines if len(one.get_xdata()) > X.size]
    return found.get_xydata().T


def points(axes, i=0):
    return axes.containers[i].lines[0].get_xydata().T


def half_band(axes, x):
    """Half the height of the band at x."""
    band = next(c for c in axes.collections if "Poly" in type(c).__name__)
    vertices = band.get_paths()[0].vertices
    heights = vertices[np.isclose(vertices[:, 0], x), 1]
    return np.ptp(heights) / 2


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# Data and curve.


def test_data_curve_and_residuals_are_drawn_in_the_order_of_x(fit):
    fitted, _ = fit
    upper, lower = plot_fit(line, fitted, X, Y)
    slope, offset = np.polyfit(X, Y, 1)
    x, y = curve(upper)
    assert (x[0], x[-1]) == (0.0, 5.0)
    np.testing.assert_allclose(y, slope * x + offset, rtol=1e-6)
    np.testing.assert_array_equal(points(upper), [np.sort(X), Y[np.argsort(X)]])
    np.testing.assert_allclose(points(lower)[1], (Y - slope * X - offset)[np.argsort(X)], atol=1e-7)
    assert labels(upper) == ["data", "fit"]
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("y", "x", "data − fit")


@pytest.mark.parametrize("level", [0.95, 0.6827])
def test_the_band_is_that_of_linear_regression(fit, level):
    fitted, uncertainty = fit
    upper, _ = plot_fit(line, fitted, X, Y, uncertainty=uncertainty, level=level, grid=[0, 2.2, 4, 8])
    found = stats.linregress(X, Y)
    residuals = Y - found.slope * X - found.intercept
    variance = np.sum(residuals**2) / (X.size - 2)
    for x in (2.2, 8.0):
        leverage = 1 / X.size + (x - X.mean()) ** 2 / np.sum((X - X.mean()) ** 2)
        expected = stats.t.ppf((1 + level) / 2, X.size - 2) * np.sqrt(variance * leverage)
        np.testing.assert_allclose(half_band(upper, x), expected, rtol=1e-5)
    assert labels(upper) == ["data", "fit", f"{100 * level:g} % confidence band"]


def test_a_known_sigma_has_normal_quantiles_error_bars_and_residuals_in_its_units(fit):
    fitted, _ = fit
    sigma = np.array([0.1, 0.2, 0.1, 0.2, 0.4])
    optimizer = LeastSquares(lambda s: line(s, X) - Y, sigma=sigma, absolute_sigma=True)
    fitted, _ = optimizer.run(fitted)
    uncertainty = optimizer.uncertainty(fitted)
    upper, lower = plot_fit(line, fitted, X, Y, sigma, uncertainty, grid=[0.0, 2.0, 5.0])
    design = np.stack([np.ones_like(X), X], axis=1) / sigma[:, None]
    covariance = np.linalg.inv(design.T @ design)
    at = np.array([1.0, 2.0])
    np.testing.assert_allclose(
        half_band(upper, 2.0), 1.959964 * np.sqrt(at @ covariance @ at), rtol=1e-5
    )
    best = covariance @ design.T @ (Y / sigma)
    residuals = (Y - best[0] - best[1] * X) / sigma
    np.testing.assert_allclose(points(lower)[1], residuals[np.argsort(X)], atol=1e-6)
    segments = upper.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(s[:, 1]) / 2 for s in segments], sigma[np.argsort(X)])
    assert lower.get_ylabel() == "(data − fit) / σ"


def test_several_series_have_a_colour_and_a_name_each(fit):
    fitted, uncertainty = fit
    both = lambda state, x: jnp.stack([line(state, x), -line(state, x)], axis=1)
    upper, lower = plot_fit(
        both, fitted, X, np.stack([Y, -Y], 1), uncertainty=uncertainty, labels=["up", "down"]
    )
    assert labels(upper) == ["up", "down", "95 % confidence band"]
    colors = [container.lines[0].get_color() for container in upper.containers]
    assert len(set(colors)) == 2
    np.testing.assert_allclose(points(lower, 0)[1], -points(lower, 1)[1])


def test_one_pair_of_axes_goes_without_residuals_and_keeps_its_labels_and_scale(fit):
    fitted, _ = fit
    axes = pyplot.figure().add_subplot(xscale="log", xlabel="time (s)")
    (found,) = plot_fit(line, fitted, X + 1, Y, ax=axes)
    assert found is axes and axes.get_xlabel() == "time (s)" and axes.get_ylabel() == "y"
    np.testing.assert_allclose(np.diff(np.log(curve(axes)[0])), np.log(6) / 399)
    assert len(pyplot.get_fignums()) == 1


def test_two_given_axes_are_used(fit):
    given = pyplot.figure().subplots(1, 2)
    assert list(plot_fit(line, fit[0], X, Y, ax=given)) == list(given)
    assert all(axes.containers for axes in given)


def test_a_curve_that_is_not_determined_has_no_band():
    optimizer = LeastSquares(lambda s: s["a"] * s["b"] * X - Y)
    state = {"a": Parameter("a", 1.0), "b": Parameter("b", 1.02)}
    uncertainty = optimizer.uncertainty(state)
    upper, _ = plot_fit(lambda s, x: s["a"] * x, state, X, Y, uncertainty=uncertainty)
    assert labels(upper) == ["data", "fit"]
    upper, _ = plot_fit(lambda s, x: s["a"] * s["b"] * x, state, X, Y, uncertainty=uncertainty)
    assert labels(upper) == ["data", "fit", "95 % confidence band"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[1:]}, r"x and y must have shapes .*got \(4,\) and \(5,\)"),
        ({"y": Y + 1j}, "y must be real"),
        ({"sigma": np.ones(3)}, r"sigma of shape \(3,\) does not fit y of shape \(5,\)"),
        ({"fn": lambda state, x: state["slope"]}, r"fn must return an array of shape \(400,\)"),
        ({"labels": ["a", "b"]}, "labels must be 1, one for each series"),
        ({"level": 95}, "level must be a probability between 0 and 1, got 95"),
        ({"ax": ()}, "ax must be one or two axes, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(fit, change, message):
    with pytest.raises(ValueError, match=message):
        plot_fit(**{"fn": line, "state": fit[0], "x": X, "y": Y, **change})


# Correlations.


def test_the_matrix_is_drawn_with_names_and_numbers(fit):
    axes = plot_correlation(fit[1])
    correlation = -X.mean() / np.sqrt(np.mean(X**2))
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[1, correlation], [correlation, 1]], rtol=1e-6
    )
    assert axes.images[0].get_clim() == (-1, 1)
    number = f"{correlation:.2f}".replace("-", "−")
    assert [text.get_text() for text in axes.texts] == ["1", number, number, "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["offset", "slope"]


def matrix_of(uncertainty, count):
    names = tuple(f"p{i}" for i in range(count))
    return dataclasses.replace(uncertainty, names=names, correlation=np.eye(count))


def test_many_entries_go_without_numbers_and_very_many_without_names(fit):
    for count, numbers, named in ((12, 144, True), (13, 0, True), (41, 0, False)):
        axes = plot_correlation(matrix_of(fit[1], count))
        assert len(axes.texts) == numbers
        assert ("p3" in [label.get_text() for label in axes.get_yticklabels()]) == named


def test_cells_without_a_correlation_have_a_colour_of_their_own(fit):
    unknown = matrix_of(fit[1], 3)
    unknown.correlation[:, 2] = unknown.correlation[2] = np.nan
    image = plot_correlation(unknown).images[0]
    colors = image.cmap(image.norm(image.get_array()))
    red, green, blue, _ = colors[2, 2]
    assert red == green == blue < 1 and np.allclose(colors[0, 1], 1, atol=0.01)
    assert np.ma.is_masked(np.ma.masked_invalid(image.get_array())[2, 2])


# Profiles and contours.


def test_the_profile_of_a_line_is_the_parabola_of_its_standard_error(fit):
    uncertainty = fit[1]
    axes = plot_profile(uncertainty.profile("slope"))
    parabola, profile, *_ = axes.lines
    x, rise = parabola.get_xydata().T
    error, value = uncertainty.standard_errors["slope"], float(fit[0]["slope"])
    np.testing.assert_allclose(
        rise, uncertainty.variance * ((x - value) / error) ** 2, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(profile.get_ydata(), rise, rtol=1e-3, atol=1e-5)
    reach = stats.t.ppf(0.975, X.size - 2) * error
    level, interval = [text.get_text() for text in axes.texts]
    low, high = interval.split(" to ")
    np.testing.assert_allclose([float(low), float(high)], [value - reach, value + reach], rtol=2e-3)
    assert level == "95 %"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("slope", "loss above its minimum")


def skewed(**changes):
    x = np.concatenate([np.linspace(0, 1, 8, endpoint=False), np.linspace(1, 6, 9)])
    losses = 4 + x - 1 - np.log(np.maximum(x, 1e-9))
    profile = Profile("x", 0.95, 1.0, 0.1, 5.0, (False, False), (), x, losses, 4.0, 2.0, {}, 1.0, 0.5)
    return dataclasses.replace(profile, **changes)


def test_the_parabola_is_that_of_the_standard_error_whatever_the_profile_is():
    axes = plot_profile(skewed(standard_error=2.0, unit=3.0))
    x, rise = axes.lines[0].get_xydata().T
    np.testing.assert_allclose(rise, 3 * ((x - 1) / 2) ** 2, atol=1e-12)
    assert labels(axes) == ["parabola of the standard error", "profile"]


def test_an_end_at_a_bound_is_called_so():
    axes = plot_profile(skewed(low=0.0, at_bound=(True, False)))
    assert [text.get_text() for text in axes.texts] == ["95 %", "bound", "0.00 to 5.00"]


def test_an_interval_without_end_is_drawn_as_far_as_it_is_known():
    axes = plot_profile(skewed(high=np.inf))
    assert [text.get_text() for text in axes.texts] == ["95 %", "0.1 to inf"]
    assert len(axes.collections) == 1


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_without_a_standard_error_there_is_no_parabola(error):
    assert labels(plot_profile(skewed(standard_error=error))) == ["profile"]


def circle(level=0.95, radius=1.0, **changes):
    angle = np.linspace(0, 2 * np.pi, 41)
    border = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    border[-1] = border[0]
    contour = Contour(("a", "b"), level, border, np.zeros(41, bool), 3.0, (), np.array([0.1, -0.2]))
    return dataclasses.replace(contour, **changes)


def test_a_contour_is_a_smooth_closed_line_and_more_go_into_the_same_axes():
    axes = plot_contour(circle())
    assert plot_contour(circle(0.68, 0.5), axes) is axes
    borders, best = axes.lines[::2], axes.lines[1]
    np.testing.assert_array_equal(best.get_xydata(), [[0.1, -0.2]])
    for drawn, radius in zip(borders, (1.0, 0.5), strict=True):
        np.testing.assert_allclose(np.linalg.norm(drawn.get_xydata(), axis=1), radius, rtol=1e-5)
        np.testing.assert_allclose(drawn.get_xydata()[0], drawn.get_xydata()[-1])
    assert [text.get_text() for text in axes.texts] == ["95 %", "68 %"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")


def test_a_contour_with_gaps_is_drawn_as_it_is():
    contour = circle(points=np.where(np.arange(41)[:, None] < 3, np.nan, np.ones(2)))
    np.testing.assert_array_equal(plot_contour(contour).lines[0].get_xydata(), contour.points)


def test_without_matplotlib_the_extra_is_named(fit, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    calls = {
        "plot_fit": lambda: plot_fit(line, fit[0], X, Y),
        "plot_correlation": lambda: plot_correlation(fit[1]),
        "plot_profile": lambda: plot_profile(skewed()),
        "plot_contour": lambda: plot_contour(circle()),
    }
    for name, call in calls.items():
        with pytest.raises(ImportError, match=rf'{name} needs matplotlib: pip install "fitopt\[plot\]"'):
            call()
    assert fitopt.plot_fit is plot_fit


# What must not be hidden or cut off.


def test_long_names_are_not_cut_off_in_a_saved_picture():
    names = [f"a_rather_long_name_of_a_parameter/{i}" for i in range(4)]
    optimizer = LeastSquares(lambda s: jnp.stack([s[name] for name in names] * 2) - 1.0)
    uncertainty = optimizer.uncertainty({name: Parameter(name, 1.0) for name in names})
    axes = plot_correlation(uncertainty)
    axes.figure.savefig(io.BytesIO())
    whole = axes.figure.bbox
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1


def test_hundreds_of_points_do_not_hide_the_curve_and_its_band(fit):
    fitted, uncertainty = fit
    x = np.linspace(0.0, 5.0, 300)
    upper, _ = plot_fit(line, fitted, x, line(fitted, x) + np.sin(x), uncertainty=uncertainty)
    dots = upper.containers[0].lines[0]
    band = next(c for c in upper.collections if "Poly" in type(c).__name__)
    (fine,) = [one for one in upper.lines if len(one.get_xdata()) == 400]
    assert min(fine.get_zorder(), band.get_zorder()) > dots.get_zorder()
    few, _ = plot_fit(line, fitted, X, Y)
    assert dots.get_markersize() < few.containers[0].lines[0].get_markersize()


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_the_word_bound_stands_beyond_the_profile(side):
    optimizer = LeastSquares(lambda s: s["x"] * jnp.ones(1), sigma=1.0, absolute_sigma=True)
    bound = {"lower": -1.0, "upper": 1.0}[side]
    state = {"x": Parameter("x", 0.0, **{side: bound})}
    axes = plot_profile(optimizer.uncertainty(state).profile("x", points=6))
    axes.figure.draw_without_rendering()
    (word,) = [text for text in axes.texts if text.get_text() == "bound"]
    box = word.get_window_extent()
    place = axes.transData.transform((bound, 0))[0]
    assert box.x1 < place if side == "lower" else box.x0 > place


def test_a_contour_at_a_bound_is_smooth_and_has_corners():
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inside = circle[circle[:, 1] > -0.5]
    below = np.array([[-(0.75**0.5), -0.5], [0.0, -0.5], [0.75**0.5, -0.5]])
    points = np.concatenate([inside, below])
    order = np.argsort(np.arctan2(points[:, 1], points[:, 0]))
    points = np.append(points[order], points[order[:1]], axis=0)
    region = Contour(("a", "b"), 0.95, points, points[:, 1] == -0.5, 3.0, (), np.zeros(2))
    x, y = plot_contour(region).lines[0].get_xydata().T
    np.testing.assert_allclose(np.hypot(x, y)[y > -0.5], 1.0, atol=6e-3)
    assert len(x) > 100 and y.min() == -0.5
