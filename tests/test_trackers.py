"""`TensorBoardLogger` and `MLflowLogger`, read back by other means than those they write with."""

import re
import shutil
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import MLflowLogger, RecordParameters, TensorBoardLogger

from .conftest import quadratic
from .test_logging import first_steps, go_on

SGD = optax.sgd(0.1)


def fit(callbacks, state, steps=10, **options):
    return OptaxOptimizer(quadratic, SGD, callbacks).run(state, steps, **options)


@pytest.mark.parametrize(
    "logger, package",
    [(lambda: TensorBoardLogger("here"), "tensorboardX"), (lambda: MLflowLogger(), "mlflow")],
)
def test_a_missing_extra_is_an_error_that_names_the_command(monkeypatch, logger, package):
    monkeypatch.setitem(sys.modules, package, None)
    command = re.escape('pip install "fitopt[logging]"')
    with pytest.raises(ImportError, match=f"Logger needs {package}: {command}"):
        logger()


# TensorBoard.


def events(directory):
    """All events in the order in which TensorBoard reads them: a file is a row of framed messages."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def shown(directory):
    """What TensorBoard shows: for each tag the values by step. A start hides all from its step on."""
    tags = {}
    for event in events(directory):
        if event.HasField("session_log"):
            tags = {
                tag: {step: value for step, value in values.items() if step < event.step}
                for tag, values in tags.items()
            }
        for value in event.summary.value:
            steps = tags.setdefault(value.tag, {})
            assert event.step not in steps, "written twice"
            steps[event.step] = value
    return tags


def scalars(directory, tag):
    return {step: value.simple_value for step, value in shown(directory)[tag].items()}


def test_tensorboard_gets_every_series_as_scalars(parabola, tmp_path):
    _, history = fit([RecordParameters(every=2), TensorBoardLogger(tmp_path, every=3)], parabola, 9)
    assert scalars(tmp_path, "loss") == {step: history["loss"][step] for step in (0, 3, 6, 8)}
    x = history["parameters"]["x"]
    assert scalars(tmp_path, "parameters/x") == {0: x[0], 6: x[3], 8: x[4]}


def test_tensorboard_gets_arrays_as_histograms_and_small_ones_also_as_scalars(tmp_path):
    start = jnp.linspace(-1.0, 2.0, 30)
    state = {"large": Parameter("large", start), "small": Parameter("small", jnp.ones((1, 2)))}
    callbacks = [RecordParameters(every=2), TensorBoardLogger(tmp_path)]

    def loss(s):
        return jnp.sum(s["large"] ** 2) + jnp.sum(s["small"] ** 2)

    _, history = OptaxOptimizer(loss, SGD, callbacks).run(state, 3)
    tags = shown(tmp_path)
    assert list(tags["parameters/large"]) == [0, 2]
    histogram = tags["parameters/large"][0].histo
    counts, limits = np.array(histogram.bucket), np.array(histogram.bucket_limit)
    assert counts.sum() == histogram.num == 30
    assert (histogram.min, histogram.max) == (-1.0, 2.0)
    below = np.searchsorted(np.sort(np.asarray(start, float)), limits[:-1])
    np.testing.assert_array_equal(np.cumsum(counts)[:-1], below)
    small = history["parameters"]["small"]
    assert scalars(tmp_path, "parameters/small.0.1") == {0: small[0, 0, 1], 2: small[1, 0, 1]}


@pytest.mark.parametrize(
    "values, finite",
    [([np.nan, 1, 2], 2), ([np.inf, np.nan], 0), ([1, 1 + 1e-15], 2), ([0, 0], 2), ([-1e30, 1e30], 2)],
)
def test_any_array_has_a_histogram_of_what_is_finite(tmp_path, values, finite):
    history = fitopt.History(loss=np.zeros(0))
    history.every = {"x": 1}
    running = types.SimpleNamespace(history=history, max_steps=1, writes=True)
    with TensorBoardLogger(tmp_path).open(running) as visit:
        history.update(loss=np.zeros(1), x=np.array([values], float))
        visit(0, {}, {})
    found = shown(tmp_path).get("x", {})
    assert [value.histo.num for value in found.values()] == ([finite] if finite else [])


def test_tensorboard_shows_the_parameters_with_their_bounds(tmp_path):
    state = {"x": Parameter("x", 3.0, lower=0, upper=4), "target": Parameter("t", 1.0, free=False)}
    fit(TensorBoardLogger(tmp_path), state, 2)
    (text,) = shown(tmp_path)["fit/text_summary"].values()
    text = text.tensor.string_val[0].decode()
    assert "| max_steps | 2 |" in text
    assert "| parameters/x | x: free, lower=0, upper=4 |" in text
    assert "| parameters/target | t: fixed at 1.0 |" in text


def test_a_new_fit_hides_what_the_last_one_has_written(parabola, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(logger, parabola, 9)
    _, history = fit(logger, {**parabola, "target": 2.0}, 4)
    assert scalars(tmp_path, "loss") == dict(enumerate(history["loss"]))


def test_a_resumed_fit_continues_the_curve(parabola, tmp_path):
    logger = TensorBoardLogger(tmp_path, every=2)
    _, history = fit(logger, parabola, 9)
    go_on(logger, history, 5, [6, 9])
    assert scalars(tmp_path, "loss") == {step: history["loss"][step] for step in (0, 2, 4, 6, 8)}


def test_a_directory_of_tensorboard_that_vanishes_is_one_warning(parabola, tmp_path):
    directory = tmp_path / "there"

    def vanish(step, *rest):
        if step == 4:
            shutil.rmtree(directory)
        if step == 9:
            directory.mkdir()

    with pytest.warns(RuntimeWarning, match="TensorBoardLogger.*there.*cannot write") as caught:
        _, history = fit([vanish, TensorBoardLogger(directory)], parabola, 12)
    assert len(caught) == 1 and history["n_steps"] == 12
    assert scalars(directory, "loss") == {step: history["loss"][step] for step in range(4, 12)}


# MLflow.


@pytest.fixture(autouse=True)
def no_reports_home(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def store(tmp_path):
    return f"file:{tmp_path / 'mlruns'}"


def runs(uri, monkeypatch, experiment="Default"):
    """The client and the runs of an experiment, the first one first."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def metric(client, run, name):
    return {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, name)}


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_mlflow_gets_metrics_parameters_and_how_the_fit_ended(kind, tmp_path, monkeypatch):
    uri = f"file:{tmp_path}/mlruns" if kind == "file" else f"sqlite:///{tmp_path}/fits.db"
    state = {"x": Parameter("x", 3.0, lower=0), "target": 1.0}
    logger = MLflowLogger(uri, experiment="hares", run_name="first", every=3)
    _, history = fit([RecordParameters(every=3), logger], state, 8)
    client, (run,) = runs(uri, monkeypatch, "hares")
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    assert run.data.params == {"max_steps": "8", "parameters/x": "x: free, lower=0"}
    assert run.data.tags["stop_reason"] == "reached max_steps=8"
    assert metric(client, run, "loss") == {step: history["loss"][step] for step in (0, 3, 6, 7)}
    x = history["parameters"]["x"]
    assert metric(client, run, "parameters/x") == {0: x[0], 3: x[1], 6: x[2]}
    assert metric(client, run, "final_loss") == {8: history["final_loss"]}


def test_a_run_of_mlflow_tells_that_its_fit_has_failed_or_was_interrupted(parabola, store, monkeypatch):
    def halt(error, step):
        if step == 3:
            raise error

    fit([MLflowLogger(store), lambda step, *rest: halt(KeyboardInterrupt, step)], parabola)
    with pytest.raises(RuntimeError):
        fit([MLflowLogger(store), lambda step, *rest: halt(RuntimeError, step)], parabola)
    client, (interrupted, failed) = runs(store, monkeypatch)
    assert (interrupted.info.status, failed.info.status) == ("KILLED", "FAILED")
    assert list(metric(client, failed, "loss")) == [0, 1, 2, 3]


@pytest.mark.parametrize("written, checkpoint", [(7, 4), (4, 7)])
def test_a_resumed_fit_goes_on_with_the_run_of_its_name(
    parabola, store, monkeypatch, written, checkpoint
):
    logger = MLflowLogger(store, run_name="one")
    _, history = fit([], parabola, 10)
    fit(MLflowLogger(store, run_name="other"), parabola, 2)
    with pytest.raises(SystemExit):  # as if it were killed there
        fit([logger, lambda step, *rest: sys.exit() if step == written - 1 else None], parabola)
    go_on(logger, history, checkpoint, [10])
    client, found = runs(store, monkeypatch)
    (run,) = (run for run in found if run.info.run_name == "one")
    steps = [entry.step for entry in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(10))
    assert metric(client, run, "loss") == dict(enumerate(history["loss"]))


def test_without_a_name_a_resumed_fit_makes_a_run_with_all_steps(parabola, store, monkeypatch):
    _, history = fit(MLflowLogger(store), parabola, 6)
    go_on(MLflowLogger(store), history, 4, [6])
    client, (_, run) = runs(store, monkeypatch)
    assert metric(client, run, "loss") == dict(enumerate(history["loss"]))


def test_a_tracker_that_fails_is_one_warning_and_gets_the_rest_later(parabola, store, monkeypatch):
    import mlflow

    log_batch = mlflow.MlflowClient.log_batch
    step = -1

    def watch(now, *rest):
        nonlocal step
        step = now

    def fails(*arguments, **options):
        if 3 <= step < 9:
            raise ConnectionError("nobody answers")
        return log_batch(*arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fails)
    with pytest.warns(RuntimeWarning, match="MLflowLogger cannot write.*nobody answers") as caught:
        _, history = fit([watch, MLflowLogger(store)], parabola, 12)
    assert len(caught) == 1
    client, (run,) = runs(store, monkeypatch)
    assert metric(client, run, "loss") == dict(enumerate(history["loss"]))


def test_first_steps_is_what_a_shorter_fit_records(parabola):
    _, long = fit(RecordParameters(every=3), parabola, 9)
    _, short = fit(RecordParameters(every=3), parabola, 7)
    part = first_steps(long, 7)
    np.testing.assert_array_equal(part["loss"], short["loss"])
    np.testing.assert_array_equal(part["parameters"]["x"], short["parameters"]["x"])
