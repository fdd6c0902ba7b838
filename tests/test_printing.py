"""Callbacks that print."""

import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter, transforms
from fitopt.callbacks import PrintGradients, PrintLoss, PrintParameters

from .conftest import quadratic
from .walk import run_walk

SGD = optax.sgd(0.25)  # the distance to the target is halved at each step


def printed(capsys):
    """The header, and the cells of each row."""
    header, *rows = capsys.readouterr().out.splitlines()
    return header, [row.split() for row in rows]


@pytest.mark.parametrize(("steps", "expected"), [(9, [0, 3, 6, 8]), (7, [0, 3, 6]), (1, [0]), (0, [])])
def test_it_prints_at_its_steps_and_once_at_the_last(parabola, capsys, steps, expected):
    OptaxOptimizer(quadratic, SGD, PrintLoss(every=3)).run(parabola, steps)
    rows = [[str(step), f"{4 * 0.25**step:.6g}"] for step in expected]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        *([["step", "loss"]] if steps else []),
        *rows,
    ]


def test_columns_are_aligned_whatever_the_numbers_are(parabola, capsys):
    state = {"x": Parameter("x", -1.0), "long": Parameter("a name that is longer", 1e-30)}
    loss = lambda state: 1.23456e-20 * state["x"] - 12345.678 * state["long"]
    callbacks = [PrintParameters(every=500), PrintGradients(every=500)]
    OptaxOptimizer(loss, optax.sgd(1e-3), callbacks).run(state, 1001)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    heads = lines[0], lines[2]  # the rows of the two tables come in turn
    assert {len(line) for line in lines} == {len(head) for head in heads}


def test_parameters_are_printed_by_name_as_they_were_when_the_loss_was_taken(capsys):
    losses = [5.0, 3.0, 4.0, 1.0, 2.0, 0.0]
    run_walk(losses, PrintParameters(every=2))
    header, rows = printed(capsys)
    assert header.split() == ["step", "loss", "x"]
    assert [[float(cell) for cell in row] for row in rows] == [[0, 5, 0], [2, 4, 2], [4, 2, 4]]
    run_walk(losses, PrintParameters(every=3))  # the last step is none of its own
    _, rows = printed(capsys)
    assert [[float(cell) for cell in row] for row in rows] == [[0, 5, 0], [3, 1, 3], [4, 2, 4]]


def test_the_last_good_step_is_printed_after_a_fault_too(capsys):
    with pytest.warns(RuntimeWarning, match="not finite at step 5"):
        run_walk([5.0, 3.0, 4.0, 1.0, 2.0, np.nan, 0.0, 0.0], PrintParameters(every=4))
    assert [float(x) for x in printed(capsys)[1][-1]] == [4, 2, 4]
    with pytest.warns(RuntimeWarning, match="not finite at step 3"):
        run_walk([5.0, 3.0, 4.0, np.nan, 2.0, 0.0, 0.0, 0.0], PrintParameters(every=4))
    assert [float(x) for x in printed(capsys)[1][-1]] == [2, 4, 2]


def test_values_are_in_units_of_the_user_and_arrays_are_summed_up(capsys):
    state = {
        "rate": Parameter("rate", 3.0, lower=1.0, upper=5.0),
        "pair": [Parameter("pair", jnp.array([1.5, -2.0]), scale=1e3)],
        "image": Parameter("image", jnp.arange(12.0).reshape(3, 4)),
        "wave": Parameter("wave", 3.0 + 4.0j),
        "many": Parameter("many", jnp.array([3.0 + 4.0j, 0.0, 1.0, 1.0, 1.0])),
        "twice": [Parameter("same", 1.0), Parameter("same", 2.0)],
        "fixed": Parameter("fixed", 7.0, free=False),
    }
    OptaxOptimizer(lambda state: 0.0 * state["rate"], SGD, PrintParameters()).run(state, 1)
    header, row = (
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in capsys.readouterr().out.splitlines()
    )
    assert dict(zip(header, row, strict=True)) == {
        "step": "0",
        "loss": "0",
        "rate": "3",
        "pair": "[1.5 -2]",
        "image (3, 4)": "0 … 11",
        "wave": "3+4j",
        "|many| (5,)": "0 … 5",
        "same (twice/0)": "1",
        "same (twice/1)": "2",
    }


def test_gradients_are_by_value_not_by_coordinate(capsys):
    state = {
        "plain": Parameter("plain", 3.0),
        "bounded": Parameter("bounded", 3.0, lower=1.0, upper=4.0),
        "scaled": Parameter("scaled", 3.0, scale=100.0),
        "logarithm": Parameter("logarithm", 3.0, transform=transforms.Exp()),
        "masked": Parameter("masked", jnp.array([3.0, -9.0]), lower=0.0, mask=[True, False]),
    }
    loss = lambda s: sum(jnp.sum((x - 1.0) ** 2) for x in s.values())
    OptaxOptimizer(loss, SGD, PrintGradients()).run(state, 1)
    header, ((step, value, *cells),) = printed(capsys)
    assert [name.strip() for name in header.split("d/d")[1:]] == sorted(state)
    derivatives = [float(cell.strip("[]")) for cell in cells]
    np.testing.assert_allclose(derivatives, [4, 4, 4, 0, 4, 4], rtol=1e-5)


def test_where_entries_depend_on_each_other_a_star_says_that_gradients_are_by_coordinate(capsys):
    state = {"p": Parameter("p", jnp.array([0.2, 0.3, 0.5]), transform=transforms.Simplex())}
    OptaxOptimizer(lambda s: jnp.sum(s["p"] ** 2), SGD, PrintGradients()).run(state, 1)
    header, ((_, _, *cells),) = printed(capsys)
    assert header.endswith("d/d p*") and len(cells) == 2  # a coordinate less than there are entries


@pytest.mark.parametrize("kind", [PrintLoss, PrintParameters, PrintGradients])
def test_lines_go_to_a_logger_that_is_handed_in(parabola, capsys, caplog, kind):
    logger = logging.getLogger("a fit of mine")
    logger.setLevel(logging.INFO)
    OptaxOptimizer(quadratic, SGD, kind(every=2, logger=logger)).run(parabola, 4)
    assert capsys.readouterr().out == ""
    assert {record.name for record in caplog.records} == {"a fit of mine"}
    assert [record.getMessage().split()[0] for record in caplog.records] == ["step", "0", "2", "3"]


def test_what_is_no_logger_is_an_error():
    with pytest.raises(TypeError, match="PrintGradients: logger must be a logging.Logger, got 'fit'"):
        PrintGradients(logger="fit")


def test_every_must_be_a_positive_integer():
    with pytest.raises(ValueError, match="PrintLoss: every must be a positive integer, got -1"):
        PrintLoss(every=-1)
