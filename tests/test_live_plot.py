"""`LivePlot`: which pictures there are, what they show, and what stays as it was."""

import sys
import threading
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import LivePlot, RecordParameters, StopOnLoss, plotting

from .conftest import quadratic

pyplot = pytest.importorskip("matplotlib.pyplot")
backend_bases = pytest.importorskip("matplotlib.backend_bases")
image = pytest.importorskip("matplotlib.image")

SGD = optax.sgd(0.1)


@pytest.fixture(autouse=True)
def agg():
    with pyplot.rc_context({"backend": "Agg"}):
        yield
    pyplot.close("all")


@pytest.fixture
def drawn(monkeypatch):
    """The lengths of the losses in each picture, which is not drawn."""
    lengths = []
    monkeypatch.setattr(
        plotting, "_draw", lambda figure, history, *rest: lengths.append(len(history["loss"]))
    )
    return lengths


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(plotting, "time", clock)
    return clock


def fit(callbacks, state, steps=10):
    return OptaxOptimizer(quadratic, SGD, callbacks).run(state, steps)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# Files.


@pytest.mark.parametrize(("every", "steps"), [(4, [0, 4, 8, 9]), (3, [0, 3, 6, 9]), (100, [0, 9])])
def test_there_is_a_file_for_each_due_step_and_the_last(every, steps, parabola, tmp_path, drawn):
    fit(LivePlot(every, tmp_path / "new" / "frames"), parabola)
    assert names(tmp_path / "new" / "frames") == [f"{step:06d}.png" for step in steps]
    assert drawn == [step + 1 for step in steps]


def test_the_last_step_of_a_fit_that_stops_early_is_drawn(parabola, tmp_path, drawn):
    _, history = fit([LivePlot(3, tmp_path), StopOnLoss(1.0)], parabola)
    assert drawn == [1, 4, history["n_steps"]] == [1, 4, 5]


def test_a_name_without_a_step_is_that_of_one_file(parabola, tmp_path):
    fit(LivePlot(5, tmp_path / "fit.svg"), parabola)
    assert names(tmp_path) == ["fit.svg"]
    assert (tmp_path / "fit.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("name", ["rate 0.1", "{a}", "a.png"])
def test_a_directory_may_have_any_name(name, parabola, tmp_path, drawn):
    if name == "a.png":
        (tmp_path / name).mkdir()
    fit(LivePlot(100, tmp_path / name), parabola)
    assert names(tmp_path / name) == ["000000.png", "000009.png"]


def test_one_object_serves_two_fits(parabola, tmp_path, drawn):
    live = LivePlot(5, tmp_path / "{step}.png")
    fit(live, parabola, 7)
    fit(live, parabola, 3)
    assert drawn == [1, 6, 7, 1, 3]


def test_two_fits_at_once_do_not_mix(parabola, tmp_path):
    seen = {}

    def run(target):
        live = LivePlot(2, tmp_path / str(target))
        _, history = fit([live, RecordParameters()], {**parabola, "target": target}, 5)
        seen[target] = history["loss"]

    threads = [threading.Thread(target=run, args=(target,)) for target in (0.0, 1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path / "0.0") == names(tmp_path / "1.0") == [f"00000{i}.png" for i in (0, 2, 4)]
    pictures = [image.imread(tmp_path / name / "000004.png") for name in ("0.0", "1.0")]
    assert pictures[0].shape == pictures[1].shape and not np.array_equal(*pictures)
    fit([LivePlot(2, tmp_path / "alone"), RecordParameters()], {**parabola, "target": 0.0}, 5)
    np.testing.assert_array_equal(image.imread(tmp_path / "alone" / "000004.png"), pictures[0])


def test_a_file_that_cannot_be_written_warns_once_and_the_fit_goes_on(parabola, tmp_path, drawn):
    def vanish(step, *rest):
        if step == 3:
            for path in (tmp_path / "frames").iterdir():
                path.unlink()
            (tmp_path / "frames").rmdir()
            (tmp_path / "frames").write_text("in the way")

    with pytest.warns(RuntimeWarning, match="LivePlot failed at step 4, and the fit goes on") as caught:
        _, history = fit([LivePlot(2, tmp_path / "frames"), vanish], parabola)
    assert len(caught) == 1 and history["n_steps"] == 10


def test_a_place_where_nothing_can_be_written_is_an_error_at_the_first_step(parabola, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        fit(LivePlot(path=tmp_path / "file" / "frames"), parabola)


# What is drawn.


@pytest.fixture
def figures(monkeypatch):
    """For each picture the labels of its axes, and the values of their first lines."""
    seen = []
    draw = plotting._draw

    def look(figure, *rest):
        draw(figure, *rest)
        seen.append({axes.get_ylabel(): axes.lines[0].get_ydata().copy() for axes in figure.axes})

    monkeypatch.setattr(plotting, "_draw", look)
    return seen


def test_the_loss_and_the_recorded_parameters_are_drawn_with_their_names(parabola, tmp_path, figures):
    parabola["x"] = Parameter("position", 3.0, upper=4)
    _, history = fit([LivePlot(4, tmp_path), RecordParameters(every=2)], parabola)
    assert [set(figure) for figure in figures] == [{"loss", "position"}] * 4
    np.testing.assert_array_equal(figures[1]["loss"], history["loss"][:5])
    np.testing.assert_array_equal(figures[1]["position"], history["parameters"]["x"][:3])
    np.testing.assert_array_equal(figures[-1]["loss"], history["loss"])


def test_without_recorded_parameters_the_loss_is_drawn_alone(parabola, tmp_path, figures):
    fit(LivePlot(100, tmp_path), parabola)
    assert [set(figure) for figure in figures] == [{"loss"}] * 2


def test_the_first_twelve_parameters_are_drawn_or_those_that_names_match(tmp_path, figures):
    state = [Parameter(f"p{i}", 0.0) for i in range(14)]

    def fit_with(live):
        loss = lambda state: sum(jnp.square(x) for x in state)
        OptaxOptimizer(loss, SGD, [RecordParameters(), live]).run(state)

    fit_with(LivePlot(path=tmp_path))
    assert set(figures[-1]) == {"loss", *(f"p{i}" for i in range(12))}
    fit_with(LivePlot(path=tmp_path, names="p1[23]"))
    assert set(figures[-1]) == {"loss", "p12", "p13"}


def test_names_that_match_nothing_are_an_error_at_the_first_step(parabola, tmp_path):
    with pytest.raises(ValueError, match="names must match recorded parameters"):
        fit([LivePlot(path=tmp_path, names="k*"), RecordParameters()], parabola)


# Notebooks.


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, picture):
        self.shown.append(picture)


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook shows: a list of PNG bytes for each output."""
    outputs = []

    def display(picture, display_id):
        assert display_id is True
        outputs.append([picture])
        return Handle(outputs[-1])

    ipython, shown = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    shown.display, shown.Image = display, lambda data, width: data
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return outputs


def test_in_a_notebook_one_output_is_updated_and_no_figure_is_left(parabola, notebook, clock):
    def pass_time(*rest):
        clock.now += 1.0

    for _ in range(2):
        fit([LivePlot(4), pass_time], parabola)
    assert len(notebook) == 2 and pyplot.get_fignums() == []
    for output in notebook:
        assert len(output) == 4 and all(png.startswith(b"\x89PNG") for png in output)


def test_redraws_wait_until_enough_steps_and_time_have_passed(parabola, notebook, clock, drawn):
    times = iter([0.0, 0.1, 0.2, 0.3, 0.3, 0.3, 5.0, 5.0, 5.0, 5.0])

    def pass_time(*rest):
        clock.now = next(times)

    fit([pass_time, LivePlot(2)], parabola)
    assert drawn == [1, 4, 7, 10]  # a quarter of a second after the first, at once at 5 s, at the end


def test_redrawing_takes_a_twentieth_of_the_time_at_most(parabola, notebook, clock, monkeypatch):
    drawn = []

    def slow(figure, history, *rest):
        drawn.append(len(history["loss"]))
        clock.now += 1.0

    def pass_time(*rest):
        clock.now += 1.0

    monkeypatch.setattr(plotting, "_draw", slow)
    fit([pass_time, LivePlot(1)], parabola, 70)
    assert drawn == [1, 21, 41, 61, 70]


# Windows.


@pytest.fixture
def windows(monkeypatch):
    """A backend whose windows count how often they are drawn."""
    from matplotlib.backends import backend_agg

    class FigureCanvas(backend_agg.FigureCanvasAgg):
        required_interactive_framework = "headless"
        draws = 0

        def draw(self):
            self.draws += 1
            super().draw()

        def flush_events(self):
            assert pyplot.fignum_exists(self.figure.number)

    class FigureManager(backend_bases.FigureManagerBase):
        def show(self):
            pass

    FigureCanvas.manager_class = FigureManager
    module = types.ModuleType("counting_backend")
    module.FigureCanvas, module.FigureManager = FigureCanvas, FigureManager
    monkeypatch.setitem(sys.modules, "counting_backend", module)
    pyplot.switch_backend("module://counting_backend")
    yield module
    pyplot.close("all")
    pyplot.switch_backend("Agg")


def test_a_window_shows_the_last_step_stays_open_and_is_not_the_current_figure(parabola, windows):
    mine = pyplot.figure()
    fit(LivePlot(100), parabola)
    assert pyplot.gcf() is mine and len(pyplot.get_fignums()) == 2
    figure = pyplot.figure(pyplot.get_fignums()[-1])
    assert figure.canvas.draws == 2 and len(figure.axes[0].lines[0].get_ydata()) == 10


def test_a_window_that_was_closed_is_not_drawn_again(parabola, windows, drawn):
    def close(step, *rest):
        if step == 0:
            pyplot.close("all")

    fit([LivePlot(2), close], parabola)
    assert drawn == [1] and pyplot.get_fignums() == []


def test_a_window_in_another_thread_is_refused(parabola, windows):
    errors = []

    def run():
        try:
            fit(LivePlot(), parabola)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "windows open in the main thread alone" in errors[0]


def test_where_nothing_can_be_shown_the_fit_does_not_start(parabola):
    with pytest.raises(RuntimeError, match="backend '[Aa]gg' opens no windows; give it a path"):
        fit(LivePlot(), parabola)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "LivePlot: every must be a positive integer, got 0"),
        ((1, "frames/{step}"), "LivePlot: path must be a directory, or the name of a picture"),
        ((1, "{steps}.png"), "path must be .* got '{steps}.png'"),
        ((1, "{.png"), "path must be .* got '{.png'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LivePlot(*arguments)


def test_a_path_of_another_kind_is_an_error_of_type():
    with pytest.raises(TypeError, match="LivePlot: path must be a path, got 3"):
        LivePlot(path=3)


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fitopt\[plot\]"'):
        LivePlot()


def test_the_settings_of_matplotlib_stay_as_they_are(parabola, tmp_path):
    before = dict(pyplot.rcParams)
    fit(LivePlot(5, tmp_path), parabola)
    assert dict(pyplot.rcParams) == before and not pyplot.get_fignums()
