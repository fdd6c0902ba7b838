"""Pictures of histories and parameters: what is drawn where, and how the axes are labelled."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import History, OptaxOptimizer, Parameter, plot_parameters
from fitopt.callbacks import Record, RecordParameters, StopOnLoss
from fitopt.plotting import plot_history

pyplot = pytest.importorskip("matplotlib.pyplot")
to_hex = pytest.importorskip("matplotlib.colors").to_hex


@pytest.fixture(autouse=True)
def agg():
    with pyplot.rc_context({"backend": "Agg"}):
        yield
    pyplot.close("all")


def history_of(losses, **series):
    history = History(loss=np.asarray(losses, float), n_steps=len(losses), **series)
    history.every = {name: 1 for name in series}
    return history


def parameters(state, **values):
    """A history that recorded these values at steps 0, 1, ..., and the state."""
    recorded = {name: np.asarray(value) for name, value in values.items()}
    length = len(next(iter(recorded.values())))
    return history_of(np.ones(length), parameters=recorded), state


def texts(axes):
    return {text.get_text() for text in axes.texts}


def heights(axes):
    """The heights of the dashed lines: those of bounds."""
    lines = [artist for artist in axes.get_children() if isinstance(artist, pyplot.Line2D)]
    return sorted(line.get_ydata()[0] for line in lines if line.is_dashed())


# Series.


def test_the_loss_is_drawn_over_the_steps_and_its_least_value_marked():
    losses = [5.0, 3.0, 1.0, 2.0]
    axes = plot_history(history_of(losses))
    line, mark = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), losses)
    assert mark.get_xdata() == [2] and mark.get_ydata() == [1.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["least 1 at step 2"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


@pytest.mark.parametrize(
    ("losses", "log", "scale"),
    [
        ([1000.0, 1.0], None, "log"),
        ([90.0, 1.0], None, "linear"),
        ([1000.0, 0.0], None, "linear"),
        ([1000.0, -1.0], None, "linear"),
        ([90.0, 1.0], True, "log"),
        ([1000.0, 1.0], False, "linear"),
        ([1000.0, np.nan, 1.0], None, "log"),
    ],
)
def test_the_axis_is_logarithmic_above_two_decades_of_positive_values_or_as_told(losses, log, scale):
    assert plot_history(history_of(losses), log=log).get_yscale() == scale


def test_log_without_positive_values_is_an_error_and_makes_no_figure():
    with pytest.raises(ValueError, match="log must be None or False where nothing is positive"):
        plot_history(history_of([-1.0, -2.0]), log=True)
    assert not pyplot.get_fignums()


def test_named_series_are_drawn_at_the_steps_at_which_they_were_recorded():
    norm = Record("gradient_norm", lambda info: jnp.abs(info.grads["x"]), every=3)
    optimizer = OptaxOptimizer(lambda s: s["x"] ** 2, optax.sgd(0.1), norm)
    _, history = optimizer.run({"x": Parameter("x", 1.0)}, 10)
    axes = plot_history(history, "gradient_norm")
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 3, 6, 9])
    np.testing.assert_allclose(line.get_ydata(), 2 * 0.8 ** np.array([0, 3, 6, 9]), rtol=1e-6)
    assert axes.get_ylabel() == "gradient norm" and axes.get_legend() is None


def test_several_series_and_the_leaves_of_one_are_told_apart_by_a_legend():
    rates = {"slow": np.full(3, 0.1), "fast": np.full(3, 0.5)}
    axes = plot_history(history_of([3.0, 2.0, 1.0], learning_rate=rates), "loss", "learning_rate")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["loss", "least 1 at step 2", "fast", "slow"]
    assert len({to_hex(line.get_color()) for line in axes.lines}) == 3
    assert axes.get_ylabel() == "loss, learning rate"


def test_a_series_that_was_not_recorded_is_an_error_that_names_those_that_were():
    with pytest.raises(KeyError, match="no series 'norm' was recorded; there are 'loss', 'size'"):
        plot_history(history_of([1.0], size=np.ones(1)), "norm")


def test_given_axes_are_used_and_a_second_fit_gets_another_colour():
    axes = pyplot.figure().add_subplot()
    for losses in ([3.0, 2.0], [5.0, 4.0, 3.0]):
        assert plot_history(history_of(losses), ax=axes) is axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert len(lines) == 2 and lines[0].get_color() != lines[1].get_color()
    assert len(pyplot.get_fignums()) == 1


def test_a_long_series_keeps_its_spikes_and_becomes_few_points():
    rng = np.random.default_rng(0)
    losses = rng.uniform(1.0, 2.0, 1_000_003)
    losses[[123_456, 999_999]] = 50.0, 0.5
    axes = plot_history(history_of(losses))
    steps, drawn = axes.lines[0].get_data()
    assert len(drawn) <= 5000 and np.all(np.diff(steps) > 0)
    np.testing.assert_array_equal(drawn, losses[steps])
    assert steps[0] == 0 and steps[-1] == 1_000_002
    for part in np.array_split(np.arange(1_000_003), 100):
        inside = drawn[(steps >= part[0]) & (steps <= part[-1])]
        least, greatest = np.quantile(losses[part], [0.001, 0.999])
        assert inside.min() <= least and inside.max() >= greatest
    assert {50.0, 0.5} <= set(drawn)


def test_a_fit_of_no_or_one_step_can_be_drawn():
    assert len(plot_history(history_of([])).lines[0].get_xdata()) == 0
    axes = plot_history(history_of([2.0]))
    assert axes.lines[0].get_marker() == "." and axes.get_xlim() == (-0.5, 0.5)


def test_lanes_of_vmap_end_where_they_have_stopped():
    optimizer = OptaxOptimizer(
        lambda s: (s["x"] - s["target"]) ** 2, optax.sgd(0.1), [StopOnLoss(0.5), RecordParameters()]
    )

    def fit(target):
        return optimizer.run({"x": Parameter("x", 0.0), "target": target}, 20)

    fitted, history = jax.vmap(fit)(jnp.array([1.0, 2.0, 4.0]))
    lines = plot_history(history).lines
    lengths = [np.sum(np.isfinite(line.get_ydata())) for line in lines]
    assert lengths == history["n_steps"].tolist() and max(lengths) == len(lines[0].get_xdata()) < 20
    (axes,) = plot_parameters(history, fitted)
    for line, target, length in zip(axes.lines, [1.0, 2.0, 4.0], lengths, strict=True):
        values = line.get_ydata()[:length]
        np.testing.assert_allclose(values, target * (1 - 0.8 ** np.arange(length)), rtol=1e-5)


def test_many_lanes_are_drawn_by_median_quartiles_and_range_that_hold_what_has_stopped():
    rng = np.random.default_rng(0)
    losses = rng.uniform(1.0, 2.0, (40, 12))
    n_steps = np.arange(40) % 12 + 1
    held = np.where(np.arange(12) < n_steps[:, None], losses, losses[range(40), n_steps - 1, None])
    losses = np.where(np.arange(12) < n_steps[:, None], losses, np.nan)
    axes = plot_history(History(loss=losses, n_steps=n_steps))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(held, axis=0))
    whole, middle = (band.get_paths()[0].vertices for band in axes.collections)
    for at in range(12):
        drawn = [path[path[:, 0] == at][:, 1] for path in (whole, middle)]
        expected = np.quantile(held[:, at], [0, 1]), np.quantile(held[:, at], [0.25, 0.75])
        for heights_at, pair in zip(drawn, expected, strict=True):
            np.testing.assert_allclose([heights_at.min(), heights_at.max()], pair)
    (label,) = axes.get_legend().get_texts()
    assert label.get_text() == "median, quartiles, range of 40"


# Parameters.


def test_each_parameter_has_a_panel_with_its_name_values_and_bounds():
    record = RecordParameters(every=5)
    optimizer = OptaxOptimizer(
        lambda s: (s["k"] - 2) ** 2 + (s["c"] - s["d"]) ** 2, optax.sgd(0.1), record
    )
    state = {
        "k": Parameter("rate", 1.0, lower=0, upper=3),
        "c": Parameter("offset", 0.5),
        "d": Parameter("fixed", 1.0, free=False),
    }
    _, history = optimizer.run(state, 20)
    axes = plot_parameters(history)
    assert [one.get_ylabel() for one in axes] == ["offset", "rate"]
    for one, name in zip(axes, ["c", "k"], strict=True):
        steps, values = one.lines[0].get_data()
        np.testing.assert_array_equal(steps, [0, 5, 10, 15])
        np.testing.assert_array_equal(values, history["parameters"][name])
    assert heights(axes[0]) == [] and heights(axes[1]) == [0, 3]
    assert texts(axes[1]) == {"≥ 0", "≤ 3"} and not texts(axes[0])
    assert axes[1].get_ylim()[0] < 0 and axes[1].get_ylim()[1] > 3


def test_a_history_from_a_file_takes_names_and_bounds_from_a_state_or_has_paths(tmp_path):
    optimizer = OptaxOptimizer(lambda s: s["layers"][0] ** 2, optax.sgd(0.1), RecordParameters())
    fitted, history = optimizer.run({"layers": [Parameter("rate", 1.0, lower=0)]}, 20)
    history.save(tmp_path / "fit.npz")
    loaded = History.load(tmp_path / "fit.npz")
    (axes,) = plot_parameters(loaded)
    assert axes.get_ylabel() == "layers/0" and not heights(axes)
    (axes,) = plot_parameters(loaded, fitted)
    assert axes.get_ylabel() == "rate" and heights(axes) == [0]


def test_a_state_that_is_one_parameter_needs_no_path():
    history = history_of(np.ones(2), parameters=np.array([1.0, 2.0]))
    (axes,) = plot_parameters(history, Parameter("gain", 1.0))
    assert axes.get_ylabel() == "gain"
    assert plot_parameters(history)[0].get_ylabel() == "parameter"


def test_names_that_occur_twice_are_told_apart_by_their_paths():
    state = {"a": Parameter("w", 1.0), "b": Parameter("w", 1.0)}
    axes = plot_parameters(*parameters(state, a=[1.0, 2.0], b=[1.0, 3.0]))
    assert [one.get_ylabel() for one in axes] == ["w (a)", "w (b)"]


def test_a_bound_far_away_is_an_arrow_and_does_not_flatten_the_curve():
    state = {"t": Parameter("t", 300.0, lower=0, upper=310)}
    (axes,) = plot_parameters(*parameters(state, t=[300.0, 306.0]))
    assert texts(axes) == {"≥ 0 ↓", "≤ 310"}
    assert heights(axes) == [0, 310]
    assert axes.get_ylim()[0] > 290 and axes.get_ylim()[1] > 310


def test_infinite_bounds_are_not_drawn():
    state = {"x": Parameter("x", jnp.ones(2), lower=jnp.array([-jnp.inf, 0.0]))}
    (axes,) = plot_parameters(*parameters(state, x=[[1.0, 1.0], [1.0, 2.0]]))
    assert heights(axes) == [0] and texts(axes) == {"≥ 0"}


def test_bounds_of_entries_are_all_drawn_and_the_outermost_labelled():
    state = {"x": Parameter("x", jnp.ones(3), lower=jnp.array([-1.0, 0.0, 0.5]), upper=2.0)}
    (axes,) = plot_parameters(*parameters(state, x=np.ones((3, 3)) * [0.0, 1.0, 1.5]))
    assert heights(axes) == [-1, 0, 0.5, 2]
    assert texts(axes) - {""} == {"≥ \N{MINUS SIGN}1", "≤ 2"}


def test_an_array_has_a_line_for_each_entry_that_is_fitted():
    state = {"x": Parameter("x", jnp.ones(3), mask=jnp.array([True, False, True]))}
    values = np.arange(12.0).reshape(4, 3)
    (axes,) = plot_parameters(*parameters(state, x=values))
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], values.T[[0, 2]])


def test_the_entries_of_an_array_are_labelled():
    state = {"w": Parameter("w", np.ones((2, 2)), mask=[[True, False], [True, True]])}
    (axes,) = plot_parameters(*parameters(state, w=np.ones((5, 2, 2))))
    assert [text.get_text() for text in axes.get_legend().texts] == ["[0,0]", "[1,0]", "[1,1]"]
    state = {"w": Parameter("w", np.ones(9))}
    (axes,) = plot_parameters(*parameters(state, w=np.ones((5, 9))))
    assert [text.get_text() for text in axes.get_legend().texts] == ["[0]", "…", "[8]"]


def test_a_large_array_is_drawn_by_median_quartiles_and_range():
    values = np.random.default_rng(0).normal(size=(5, 10, 10))
    (axes,) = plot_parameters(*parameters({"x": Parameter("x", jnp.ones((10, 10)))}, x=values))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.median(values, axis=(1, 2)))
    assert axes.get_title(loc="right") == "median, quartiles, range of 100"
    whole = axes.collections[0].get_paths()[0].vertices
    assert whole[:, 1].max() == values.max() and whole[:, 1].min() == values.min()


def test_a_complex_parameter_has_two_curves():
    (axes,) = plot_parameters(*parameters({"z": Parameter("z", 1 + 1j)}, z=[1 + 2j, 3 - 4j]))
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], [[1, 3], [2, -4]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["real", "imaginary"]


def test_a_parameter_that_spans_decades_has_a_logarithmic_axis():
    state = {"x": Parameter("x", 1.0, lower=0)}
    (axes,) = plot_parameters(*parameters(state, x=[1e-3, 1.0]))
    assert axes.get_yscale() == "log" and texts(axes) == {"≥ 0 ↓"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("rate*", ["rate a", "rate b"]),
        (["offset", "b"], ["rate b", "offset"]),
        ("?", ["rate a", "rate b"]),
    ],
)
def test_patterns_choose_parameters_by_name_or_path(names, chosen):
    state = {
        "a": Parameter("rate a", 1.0),
        "b": Parameter("rate b", 1.0),
        "cc": Parameter("offset", 1.0),
    }
    history, _ = parameters(state, a=[1.0], b=[1.0], cc=[1.0])
    axes = plot_parameters(history, state, names=names)
    assert [one.get_ylabel() for one in axes] == chosen


def test_given_axes_are_used_in_order():
    history, state = parameters({"x": Parameter("x", 1.0)}, x=[1.0, 2.0])
    figure, axes = pyplot.subplots(2)
    (used,) = plot_parameters(history, state, ax=axes)
    assert used is axes[0] and not axes[1].lines
    assert plot_parameters(history, state, ax=axes[1])[0] is axes[1]
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    ("state", "options", "error", "message"),
    [
        ({"x": 1.0}, {}, ValueError, "state has no Parameter at x, which the history recorded"),
        (
            {"x": Parameter("x", [1.0], lower=[0.0])},
            {},
            ValueError,
            r"'x' has not the recorded shape \(\)",
        ),
        ({"x": Parameter("x", 1.0)}, {"names": "y*"}, ValueError, "got 'y\\*'; recorded are x"),
        ({"x": Parameter("x", 1.0)}, {"ax": []}, ValueError, "ax must be 1 axes, one for each"),
    ],
)
def test_what_does_not_fit_the_history_is_named(state, options, error, message):
    history, _ = parameters(None, x=[1.0, 2.0])
    with pytest.raises(error, match=message):
        plot_parameters(history, state, **options)


def test_a_fit_that_recorded_no_parameters_is_told_what_to_add():
    with pytest.raises(KeyError, match=r"add RecordParameters\(\)"):
        plot_parameters(history_of([1.0]))


def test_only_the_lowest_panels_of_each_column_are_labelled_with_steps():
    values = {str(i): [1.0, 2.0] for i in range(8)}
    axes = plot_parameters(*parameters({name: Parameter(name, 1.0) for name in values}, **values))
    labelled = [one.xaxis.label.get_visible() for one in axes]
    assert labelled == [False] * 4 + [True] * 4
    assert {one.get_xlabel() for one in axes} == {"step"}


# Both.


def test_the_settings_of_matplotlib_stay_as_they_are():
    before = dict(pyplot.rcParams)
    history, state = parameters({"x": Parameter("x", 1.0)}, x=[1.0, 2.0])
    plot_history(history)
    plot_parameters(history, state)
    assert dict(pyplot.rcParams) == before


@pytest.mark.parametrize("draw", [plot_history, fitopt.plot_parameters])
def test_without_matplotlib_an_error_says_what_to_install(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    history, _ = parameters(None, x=[1.0])
    with pytest.raises(ImportError, match=r'pip install "fitopt\[plot\]"'):
        draw(history)
