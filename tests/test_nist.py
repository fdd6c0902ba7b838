"""NIST's nonlinear regressions: what the files hold, and that fits come to the certified results.

https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml certifies eleven digits, for double precision.
"""

import collections

import jax
import numpy as np
import pytest

from benchmarks import nist
from fitopt import LeastSquares

PROBLEMS = nist.problems()
IDS = [problem.name for problem in PROBLEMS]


def digits(found, certified):
    """To how many digits all of some numbers are right."""
    with np.errstate(divide="ignore"):
        return -np.log10(np.max(np.abs(np.divide(found, certified) - 1)))


def test_there_are_27_problems_of_three_levels_of_difficulty():
    levels = collections.Counter(problem.difficulty for problem in PROBLEMS)
    assert levels == {"lower": 8, "average": 11, "higher": 8}


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_the_certified_values_give_the_certified_sum_of_squares(problem):
    with jax.enable_x64(True):
        residuals = np.asarray(problem.residuals(problem.state(problem.values)))
    sum_of_squares = residuals @ residuals
    if problem.name == "Lanczos1":  # a perfect fit: eleven digits of values leave more than is certified
        assert problem.sum_of_squares < 1e-24 and sum_of_squares < 1e-20
    else:
        np.testing.assert_allclose(sum_of_squares, problem.sum_of_squares, rtol=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_numpy_computes_the_same_model(problem):
    found = nist.in_numpy(problem.model)(problem.x, *problem.values)
    assert type(found) is np.ndarray
    with jax.enable_x64(True):
        np.testing.assert_allclose(found, problem.model(problem.x, *problem.values), rtol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_both_starts_come_to_the_certified_values_and_standard_errors(problem):
    opt = LeastSquares(problem.residuals)
    # The residuals of Lanczos1 are 1e-13 of data of about 1: float64 resolves two or three digits of
    # them, and errors are proportional to them.
    of_residuals = 2 if problem.name == "Lanczos1" else 9
    with jax.enable_x64(True):
        for start in problem.starts:
            fitted, history = opt.run(problem.state(start))
            assert "converged" in history["stop_reason"]
            assert digits(history["final_loss"], problem.sum_of_squares) >= of_residuals
            assert digits([float(fitted[name]) for name in problem.names], problem.values) >= 6
            errors = opt.uncertainty(fitted).standard_errors
            found = [errors[name] for name in problem.names]
            assert digits(found, problem.standard_errors) >= min(4, of_residuals)
