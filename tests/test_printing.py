"""Callbacks that print."""

import optax
import pytest

from fitopt import OptaxOptimizer
from fitopt.callbacks import PrintLoss

from .conftest import quadratic


def test_print_loss_prints_at_its_steps_and_at_the_last(parabola, capsys):
    OptaxOptimizer(quadratic, optax.sgd(0.25), PrintLoss(every=3)).run(parabola, 9)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 0: loss 4",
        "step 3: loss 0.0625",
        "step 6: loss 0.000976562",
        "step 8: loss 6.10352e-05",
    ]


def test_print_loss_does_not_print_the_last_step_twice(parabola, capsys):
    OptaxOptimizer(quadratic, optax.sgd(0.25), PrintLoss(every=3)).run(parabola, 7)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "step 0",
        "step 3",
        "step 6",
    ]


def test_every_must_be_a_positive_integer():
    with pytest.raises(ValueError, match="PrintLoss: every must be a positive integer, got -1"):
        PrintLoss(every=-1)
