"""NIST's nonlinear regression problems: what the files hold, and that their models are typed in right."""

import collections

import jax
import numpy as np
import pytest

from benchmarks import nist

PROBLEMS = nist.problems()
IDS = [problem.name for problem in PROBLEMS]


def test_there_are_27_problems_of_three_levels_of_difficulty():
    levels = collections.Counter(problem.difficulty for problem in PROBLEMS)
    assert levels == {"lower": 8, "average": 11, "higher": 8}


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_the_certified_values_give_the_certified_sum_of_squares(problem):
    with jax.enable_x64(True):
        residuals = np.asarray(problem.residuals(problem.state(problem.values)))
    sum_of_squares = residuals @ residuals
    if (
        problem.name == "Lanczos1"
    ):  # a perfect fit: eleven digits of each value leave more than is certified
        assert problem.sum_of_squares < 1e-24 and sum_of_squares < 1e-20
    else:
        np.testing.assert_allclose(sum_of_squares, problem.sum_of_squares, rtol=1e-10)
