"""Pictures of components, of where new data lie, of contours at several levels, and corners."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from fitopt import (
    Derived,
    LeastSquares,
    Parameter,
    plot_contour,
    plot_corner,
    plot_fit,
)

matplotlib.use("agg")
from matplotlib import pyplot

X = np.linspace(0.0, 4.0, 40)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.random.default_rng(3).normal(size=X.size)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def decay(state, x):
    return state["height"] * jnp.exp(-state["rate"] * x)


def floor(state, x):
    return state["floor"] + 0 * x


def curve(state, x):
    return decay(state, x) + floor(state, x)


@pytest.fixture(scope="module")
def fit():
    state = {
        "height": Parameter("height", 1.0),
        "rate": Parameter("rate", 1.0, lower=0),
        "floor": Parameter("floor", 0.0),
        "half_life": Derived("half_life", lambda state: jnp.log(2) / state["rate"]),
    }
    optimizer = LeastSquares(lambda state: curve(state, X) - Y)
    fitted, _ = optimizer.run(state)
    return fitted, optimizer.uncertainty(fitted)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().texts]


def test_components_are_lines_with_names(fit):
    fitted, uncertainty = fit
    parts = {"decay": decay, "floor": floor}
    upper, _ = plot_fit(curve, fitted, X, Y, uncertainty=uncertainty, components=parts)
    assert {"decay", "floor"} <= set(labels(upper))
    line = next(line for line in upper.lines if line.get_label() == "decay")
    np.testing.assert_allclose(line.get_ydata()[0], float(fitted["height"]), rtol=1e-5)


def test_without_residuals_there_is_one_panel(fit):
    fitted, _ = fit
    assert len(plot_fit(curve, fitted, X, Y, residuals=False)) == 1
    assert len(plot_fit(curve, fitted, X, Y)) == 2


def test_the_band_of_new_data_is_wider_and_holds_about_as_many_as_it_says(fit):
    fitted, uncertainty = fit
    upper, _ = plot_fit(curve, fitted, X, Y, uncertainty=uncertainty, prediction=True, grid=X)
    assert "95 % of new data" in labels(upper)
    outlines = [band.get_paths()[0].vertices[:, 1] for band in upper.collections if band.get_paths()]
    heights = [np.ptp(outline) for outline in outlines if np.ptp(outline) > 0]
    assert max(heights) > min(heights)
    _, _, data_error = uncertainty.predict(lambda state: curve(state, X))
    assert 0.85 <= np.mean(np.abs(Y - curve(fitted, X)) < 2 * data_error) <= 1


def test_with_a_sigma_of_each_datum_new_data_scatter_by_it_between_them(fit):
    fitted, _ = fit
    sigma = 0.02 + 0.02 * X
    optimizer = LeastSquares(lambda state: curve(state, X) - Y, sigma=sigma, absolute_sigma=True)
    fitted, _ = optimizer.run(fitted)
    plot_fit(curve, fitted, X, Y, sigma, optimizer.uncertainty(fitted), prediction=True)


def test_new_data_need_the_uncertainty(fit):
    with pytest.raises(ValueError, match="prediction=True needs the uncertainty"):
        plot_fit(curve, fit[0], X, Y, prediction=True)


def test_contours_at_several_levels_go_into_one_picture(fit):
    contours = fit[1].contour("rate", "floor", level=[0.68, 0.95], points=8)
    axes = plot_contour(contours)
    assert [text.get_text() for text in axes.texts] == ["68 %", "95 %"]


def test_a_corner_plot_has_a_panel_for_each_pair(fit):
    samples = fit[1].sample(jax.random.key(0), 3000)
    figure = plot_corner(samples, ["rate", "half_life"])
    assert len(figure.axes) == 4
    assert figure.axes[2].get_xlabel() == "rate" and figure.axes[2].get_ylabel() == "half_life"
    assert plot_corner(fit[1], ["rate", "half_life"], figure=figure, color="k") is figure
    optimizer = LeastSquares(lambda s: jnp.stack([s["a"] - 1.0, s["b"] + 1.0, s["a"] - 1.5]))
    on_bound, _ = optimizer.run({"a": Parameter("a", 0.0), "b": Parameter("b", 1.0, lower=0)})
    assert len(plot_corner(optimizer.uncertainty(on_bound)).axes) == 1  # of a alone
    with pytest.raises(KeyError, match="no samples of 'k'"):
        plot_corner(fit[1], ["k"])
