"""optimistix' solvers as methods: least squares and minimisation."""

from collections.abc import Sequence
from typing import Any

import optimistix as optx
from jaxtyping import Array

from .method import Method, Objective, Stepper, StopReason, TracedOnce
from .solver_steppers import OURS, BestSoFarStepper, SearchStepper, SolverStepper, chosen

# Solvers that try one point in each step, and move there if they accept it.
_SEARCHES = (
    *OURS,
    optx.AbstractGaussNewton,
    optx.AbstractQuasiNewton,
    optx.AbstractGradientDescent,
)
_BEST_SO_FAR = (optx.BestSoFarLeastSquares, optx.BestSoFarMinimiser)


class OptimistixMethod(Method):
    """A solver of optimistix for least squares, or a minimiser; None for the default."""

    loss_after_update = True

    def __init__(self, solver: Any):
        if isinstance(solver, optx.GoldenSearch):
            raise ValueError("GoldenSearch needs an interval to search, which a state does not have")
        self.solver = solver

    @property
    def keeps_bounds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver is None or isinstance(self.solver, OURS)

    def bind(self, objective: Objective) -> Stepper:
        return _bound(self.solver, TracedOnce(objective))

    def stop_reasons(self, values: Sequence[Array]) -> tuple[StopReason, ...]:
        solver = chosen(self.solver, values)
        name = type(solver).__name__
        tolerances = f"rtol={solver.rtol:g}" + (f" and atol={solver.atol:g}" if solver.atol else "")
        return (
            StopReason(
                f"{name} converged: the last step changed parameters and loss by less than its "
                f"tolerances, {tolerances}",
                converged=True,
            ),
            StopReason(
                f"{name} converged: in the precision of the parameters its next step would not change "
                "them",
                converged=True,
            ),
            StopReason(
                f"{name} could not go on: its next step is not finite; either the derivatives are not, "
                "or a parameter has no effect",
            ),
            StopReason(
                f"{name} stalled: it makes no more progress, though the gradient says that this is no "
                "minimum; the loss may be discontinuous or not differentiable here, or too imprecise"
            ),
        )


def is_minimiser(optimizer: Any) -> bool:
    """Whether it is a minimiser of optimistix; a TypeError for its other solvers, and for classes."""
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    call = f"{kind.__name__}(rtol, atol)"
    is_class = isinstance(optimizer, type)
    given, solver = (f"the class {kind.__name__}", call) if is_class else (kind.__name__, "solver")
    if issubclass(kind, optx.AbstractIterativeSolver) and not issubclass(kind, optx.AbstractMinimiser):
        raise TypeError(
            f"optimizer must minimise a scalar loss, and {given} of optimistix does not; for "
            f"least squares use fitopt.LeastSquares(residuals, {solver})"
        )
    if isinstance(optimizer, type) and issubclass(kind, optx.AbstractMinimiser):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation or a minimiser of optimistix, "
            f"got {given}; call it: {call}"
        )
    return isinstance(optimizer, optx.AbstractMinimiser)


def check_solver(solver: Any) -> Any:
    """A least-squares solver, or None for the default; TypeError for anything else."""
    if solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver):
        return solver
    hint = ""
    kind = solver if isinstance(solver, type) else type(solver)
    if issubclass(kind, optx.AbstractLeastSquaresSolver):
        hint = f"; call it: {kind.__name__}(rtol, atol)"
    elif callable(solver) or hasattr(solver, "update") or issubclass(kind, optx.AbstractMinimiser):
        hint = "; for one that minimises a scalar loss there is fitopt.OptaxOptimizer(loss, optimizer)"
    raise TypeError(f"solver must be a least-squares solver of optimistix, got {solver!r}{hint}")


def _bound(solver: Any, objective: TracedOnce) -> "SolverStepper | BestSoFarStepper":
    if isinstance(solver, _BEST_SO_FAR):
        return BestSoFarStepper(_bound(solver.solver, objective))
    searches = solver is None or isinstance(solver, _SEARCHES)
    return (SearchStepper if searches else SolverStepper)(solver, objective)
