"""The progress bar."""

import io
import logging

import optax
import pytest

from fitopt import OptaxOptimizer
from fitopt.callbacks import ProgressBar, StopOnLoss

from .conftest import quadratic


@pytest.mark.parametrize("callbacks", [[], [StopOnLoss(1e-3)]])
def test_a_progress_bar_ends_complete_and_shows_loss_and_rate(parabola, callbacks):
    stream = io.StringIO()
    bar = ProgressBar(file=stream, ascii=True)
    _, history = OptaxOptimizer(quadratic, optax.sgd(0.01), [bar, *callbacks]).run(parabola, 300)
    last = stream.getvalue().split("\r")[-1]
    steps = history["n_steps"]
    assert "100%" in last and f"{steps}/{steps}" in last and "step/s" in last
    assert f"loss {history['final_loss']:.6g}" in last


def test_a_progress_bar_may_be_lines_of_a_log(parabola, capfd, caplog):
    logger = logging.getLogger("a fit of mine")
    logger.setLevel(logging.INFO)
    bar = ProgressBar(logger=logger, mininterval=0.0)
    OptaxOptimizer(quadratic, optax.sgd(0.01), bar).run(parabola, 300)
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert "0/300" in first and "100%" in last and "300/300" in last and "loss" in last
    assert all("\r" not in line and "\n" not in line for line in (first, last))
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_is_closed_after_an_error(parabola):
    def broken(step, *rest):
        raise RuntimeError("mine")

    stream = io.StringIO()
    optimizer = OptaxOptimizer(quadratic, optax.sgd(0.1), [ProgressBar(file=stream), broken])
    with pytest.raises(RuntimeError, match="mine"):
        optimizer.run(parabola, 5)
    assert stream.getvalue().endswith("\n")
