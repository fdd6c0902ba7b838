"""NIST's regressions solved by their scalar loss alone, by the recipe of the benchmark."""

import jax
import pytest

from benchmarks import nist, scalar


@pytest.mark.parametrize("name", ["Misra1a", "MGH17", "Lanczos3", "Rat43"])
def test_lbfgs_solves_a_regression_from_both_starts_without_seeing_the_residuals(name):
    problem = nist.load(name)
    opt = scalar.optimizer(problem.residuals)
    with jax.enable_x64(True):
        for start in problem.starts:
            digits, _ = scalar.solve(problem, opt, start)
            assert digits >= 6


def test_a_solution_in_the_wrong_place_has_no_digits():
    problem = nist.load("Misra1a")
    opt = scalar.optimizer(lambda state: state["b1"] - 1.0 + 0 * state["b2"])
    with jax.enable_x64(True):
        assert scalar.solve(problem, opt, problem.starts[1])[0] < 1
