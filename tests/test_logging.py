"""`CSVLogger`: what is in the file, while it grows, after a crash, and when the disk fails."""

import contextlib
import csv
import resource
import shutil
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import History, OptaxOptimizer, Parameter
from fitopt.callbacks import CSVLogger, Record, RecordParameters, RecordTime

from .conftest import quadratic

SGD = optax.sgd(0.1)


def fit(callbacks, state, steps=20, **options):
    return OptaxOptimizer(quadratic, SGD, callbacks).run(state, steps, **options)


def read(path):
    """The columns of a CSV file, by name; None for an empty cell."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    cells = [[None if cell == "" else float(cell) for cell in row] for row in rows]
    return dict(zip(header, zip(*cells, strict=True), strict=True))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.csv"


@pytest.mark.parametrize("every, steps", [(1, list(range(20))), (6, [0, 6, 12, 18, 19]), (50, [0, 19])])
def test_the_file_holds_every_so_many_steps_and_the_last_one_in_full_precision(
    parabola, path, every, steps
):
    _, history = fit(CSVLogger(path, every), parabola)
    table = read(path)
    assert list(table) == ["step", "loss"]
    assert list(table["step"]) == steps
    assert list(table["loss"]) == history["loss"][steps].tolist()


def test_other_series_have_columns_that_are_empty_where_nothing_was_recorded(parabola, path):
    _, history = fit([RecordParameters(every=6), CSVLogger(path, every=4)], parabola)
    table = read(path)
    assert table["step"] == (0, 4, 8, 12, 16, 19)
    x = history["parameters"]["x"].tolist()
    assert table["parameters/x"] == (x[0], None, None, x[2], None, None)


def test_small_arrays_have_a_column_for_each_entry_and_large_ones_none(path):
    state = {
        "w": [Parameter("w", jnp.ones((2, 2)))],
        "z": Parameter("z", 1 + 2j),
        "large": Parameter("large", jnp.ones(9)),
    }

    def loss(s):
        return jnp.sum(s["w"][0] ** 2) + jnp.abs(s["z"]) ** 2 + jnp.sum(s["large"])

    _, history = OptaxOptimizer(loss, SGD, [RecordParameters(), CSVLogger(path)]).run(state, 3)
    table = read(path)
    names = [f"parameters/w/0[{i},{j}]" for i in range(2) for j in range(2)]
    assert list(table) == ["step", "loss", *names, "parameters/z.real", "parameters/z.imag"]
    assert list(table[names[2]]) == history["parameters"]["w"][0][:, 1, 0].tolist()
    assert list(table["parameters/z.imag"]) == history["parameters"]["z"].imag.tolist()


def test_a_name_with_a_comma_and_values_that_are_not_finite_can_be_read_back(parabola, path):
    record = Record("a, b", lambda info: jnp.where(info.step == 1, jnp.nan, jnp.inf))
    fit([record, CSVLogger(path)], parabola, 3)
    np.testing.assert_array_equal(read(path)["a, b"], [np.inf, np.nan, np.inf])


def test_the_file_can_be_read_while_it_grows(parabola, path):
    seen = []

    def look(step, *rest):
        seen.append((step, read(path)["step"][-1]))

    fit([CSVLogger(path, every=3), look], parabola, 8)
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6)]


def test_a_series_that_a_later_callback_records_is_complete(parabola, path):
    _, history = fit([CSVLogger(path), RecordTime(every=2)], parabola, 7)
    times = read(path)["time"]
    assert list(times[::2]) == history["time"].tolist() and set(times[1::2]) == {None}


def test_a_series_that_appears_late_gets_its_column_in_all_rows(parabola, path):
    class Late(fitopt.HostCallback):
        @contextlib.contextmanager
        def open(self, fit):
            def record(step, *rest):
                for value in {3: [0, 1, 2, 3], 4: [4], 5: [5]}.get(step, []):
                    fit.record("late", value)

            yield record

    fit([Late(), CSVLogger(path)], parabola, 6)
    assert read(path)["late"] == (0, 1, 2, 3, 4, 5)


def test_a_new_fit_overwrites_the_file_and_the_logger_has_nothing_left_of_the_last(parabola, path):
    logger = CSVLogger(path, every=3)
    fit(logger, parabola, 20)
    fit(logger, parabola, 8)
    again = path.read_text()
    path.unlink()
    fit(CSVLogger(path, every=3), parabola, 8)
    assert again == path.read_text()


def test_directories_are_made(parabola, tmp_path):
    fit(CSVLogger(tmp_path / "a" / "b" / "fit.csv"), parabola, 2)
    assert read(tmp_path / "a" / "b" / "fit.csv")["step"] == (0, 1)


# After a resume.


def first_steps(history, steps):
    """What was recorded in the first steps."""
    part = History()
    part.every = dict(history.every)
    for name, every in {"loss": 1, **part.every}.items():
        part[name] = jax.tree.map(lambda x, every=every: x[: -(-steps // every)], history[name])
    return part


def go_on(logger, history, start, stops):
    """Show a logger a fit that is resumed at a step, and comes back to Python after others."""
    running = types.SimpleNamespace(
        history=first_steps(history, start), max_steps=stops[-1], writes=True
    )
    with logger.open(running) as visit:
        for stop in stops:
            running.history.update(first_steps(history, stop))
            visit(stop - 1, {}, {}, running.history, None, running.history["loss"][-1], None)


@pytest.mark.parametrize("checkpoint", [1, 6, 7, 13])
@pytest.mark.parametrize("killed_at_byte", [0, 5, 40, 90, 200, -3, None])
def test_after_a_crash_at_any_byte_a_resumed_fit_completes_the_file(
    parabola, path, checkpoint, killed_at_byte
):
    logger = CSVLogger(path, every=3)
    _, history = fit([RecordParameters(every=6), logger], parabola)
    whole = path.read_bytes()
    path.write_bytes(whole[:killed_at_byte])
    go_on(logger, history, checkpoint, [14, 15, 20])
    assert path.read_bytes() == whole


def test_a_fit_that_is_resumed_after_its_end_has_the_rows_of_one_fit(parabola, path):
    logger = CSVLogger(path, every=3)
    _, history = fit(logger, parabola, 20)
    whole = path.read_bytes()
    _, first = fit(logger, parabola, 9)
    assert read(path)["step"] == (0, 3, 6, 8)
    go_on(logger, history, 9, [20])
    assert path.read_bytes() == whole


# Faults.


def test_a_file_that_cannot_be_opened_is_an_error_before_the_first_step(parabola, tmp_path):
    (tmp_path / "file").touch()
    steps = []
    with pytest.raises(OSError, match="file"):
        fit([CSVLogger(tmp_path / "file" / "fit.csv"), lambda step, *rest: steps.append(step)], parabola)
    assert steps == []


@pytest.mark.parametrize("returns", [True, False])
def test_a_directory_that_vanishes_is_one_warning_and_the_fit_goes_on(parabola, tmp_path, returns):
    path = tmp_path / "there" / "fit.csv"

    def vanish(step, *rest):
        if step == 4:
            shutil.rmtree(path.parent)
        if step == 18 and returns:
            path.parent.mkdir()

    with pytest.warns(RuntimeWarning, match="CSVLogger.*fit.csv.*cannot write") as caught:
        _, history = fit([vanish, CSVLogger(path)], parabola)
    assert len(caught) == 1 and history["n_steps"] == 20
    assert path.exists() == returns
    if returns:
        assert list(read(path)["loss"]) == history["loss"].tolist()


def test_a_full_disk_is_one_warning_and_leaves_whole_rows_once_there_is_room(parabola, path):
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, *rest):
        if step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, most))
        if step == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))

    try:
        with pytest.warns(RuntimeWarning, match="cannot write, and the fit goes on: OSError") as caught:
            _, history = fit([fill, CSVLogger(path)], parabola)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert len(caught) == 1
    assert list(read(path)["loss"]) == history["loss"].tolist()


def test_a_file_that_somebody_has_deleted_is_written_again(parabola, path):
    def delete(step, *rest):
        if step == 7:
            path.unlink()

    _, history = fit([delete, CSVLogger(path)], parabola)
    assert list(read(path)["loss"]) == history["loss"].tolist()


def test_rows_are_there_up_to_an_exception_in_another_callback(parabola, path):
    def fail(step, *rest):
        if step == 7:
            raise RuntimeError("no more")

    logger = CSVLogger(path)
    with pytest.raises(RuntimeError, match="no more"):
        fit([fail, logger], parabola)
    assert read(path)["step"] == tuple(range(8))
    fit(logger, parabola, 3)  # the file is free again
    assert read(path)["step"] == (0, 1, 2)


def test_ctrl_c_in_the_middle_of_writing_leaves_each_row_once(parabola, path, monkeypatch):
    write = fitopt.callbacks.loggers._lines
    calls = []

    def interrupted(rows):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write(rows)

    monkeypatch.setattr(fitopt.callbacks.loggers, "_lines", interrupted)
    _, history = fit([lambda *arguments: None, CSVLogger(path)], parabola)
    assert "interrupted" in history["stop_reason"] and 0 < history["n_steps"] < 20
    assert read(path)["step"] == tuple(range(history["n_steps"]))


def test_two_fits_at_once_cannot_write_to_one_file(parabola, path):
    logger = CSVLogger(path)
    errors = []

    def second():
        try:
            fit(logger, parabola, 3)
        except ValueError as error:
            errors.append(str(error))

    def start(step, *rest):
        if step == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    fit([logger, start], parabola, 5)
    assert len(errors) == 1 and "another fit" in errors[0] and "fit.csv" in errors[0]
    assert read(path)["step"] == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("fit.csv", 0), ValueError, "CSVLogger: every must be a positive integer, got 0"),
        (("fit.csv", 1.5), TypeError, "CSVLogger: every must be an integer, got 1.5"),
        (("fit.csv", True), TypeError, "CSVLogger: every must be an integer, got True"),
        ((3,), TypeError, "CSVLogger: path must be a path, got 3"),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        CSVLogger(*arguments)


def test_a_fit_of_no_steps_leaves_the_header(parabola, path):
    fit(CSVLogger(path), parabola, 0)
    assert path.read_text() == "step,loss\n"
