"""optimistix' solvers behind the seam: least squares and minimisation, one step at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Int, PyTree

from .callback import StepInfo
from .differentiation import value_and_gradient
from .line_search import from_real, to_real
from .stepper import Objective, Stepper

CONVERGED, FAILED = 1, 2

_WITH_INFO = (optx.AbstractGaussNewton, optx.AbstractQuasiNewton, optx.AbstractGradientDescent)


def check_solver(solver: Any) -> Any:
    """A least-squares solver, or None for the default; TypeError for anything else."""
    if solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver):
        return solver
    hint = ""
    if isinstance(solver, type):
        hint = f"; make one: {solver.__name__}(rtol, atol)"
    elif hasattr(solver, "update") or isinstance(solver, optx.AbstractMinimiser):
        hint = "; this one minimises a scalar loss, for which there is fitopt.OptaxOptimizer"
    raise TypeError(f"solver must be a least-squares solver of optimistix, got {solver!r}{hint}")


def _chosen(solver: Any, coordinates: PyTree) -> Any:
    """The solver itself, or the default in the precision of the coordinates.

    These tolerances solve all 54 of NIST's nonlinear regressions to six digits; atol is small since
    parameters may be.
    """
    if solver is not None:
        return solver
    double = jnp.finfo(jnp.result_type(float, *jax.tree.leaves(coordinates))).bits >= 64
    return (
        optx.LevenbergMarquardt(rtol=1e-8, atol=1e-12) if double else optx.LevenbergMarquardt(1e-5, 1e-8)
    )


def endings(solver: Any, values: Sequence[Array]) -> tuple[str, ...]:
    """What `stop_reason` says when a solver has come to its end: CONVERGED, or FAILED."""
    solver = _chosen(solver, values)
    name = type(solver).__name__
    return (
        f"{name} converged: the last step changed parameters and loss by less than its tolerances, "
        f"rtol={solver.rtol:g} and atol={solver.atol:g}",
        f"{name} could not go on: it found no finite step",
    )


def make(solver: Any, objective: Objective, mode: str | None, names: PyTree) -> Stepper:
    """What a Problem needs of a solver."""
    return SolverStepper(objective, solver, mode)


class SolverStepper(Stepper):
    """A solver of optimistix, either for least squares or a minimiser.

    A step tries the point that the last one has chosen; where the solver accepts it the coordinates
    move there. The loss of a step is that of the coordinates after it. `function` gives residuals, or
    the loss, at some coordinates.
    """

    def __init__(self, function: Objective, solver: Any, mode: str | None):
        self._function = function
        self._given = solver
        self._mode = mode
        self._sums_squares = solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver)

    def _solver(self, coordinates: PyTree) -> Any:
        return _chosen(self._given, coordinates)

    def evaluate(self, coordinates: PyTree) -> tuple[Array, Any]:
        output, aux = self._function(coordinates)
        return self._loss(output), aux

    def _loss(self, output: PyTree) -> Array:
        if not self._sums_squares:
            return output
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(output))  # type: ignore

    def init(self, coordinates: PyTree) -> PyTree:
        state = self._first_state(coordinates)
        return coordinates, _arrays(state), jnp.zeros((), jnp.int32)

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        coordinates, arrays, _ = carry
        template = eqx.filter_eval_shape(self._first_state, coordinates)
        state, y = _with_arrays(template, arrays), to_real(coordinates)
        function, options = self._real_function(coordinates), self._options(coordinates)
        solver = self._solver(coordinates)
        new, state, _ = solver.step(function, y, None, options, state, frozenset())
        done, result = solver.terminate(function, y, None, options, state, frozenset())
        failed = (result != optx.RESULTS.successful) | ~_finite(getattr(state, "y_eval", new))
        ending = jnp.where(done, CONVERGED, 0)
        ending = jnp.where(failed, FAILED, ending).astype(jnp.int32)
        coordinates = jax.tree.map(
            lambda x, like: x.astype(like.dtype), from_real(new, coordinates), coordinates
        )
        loss, aux, grads = self._info(coordinates, state)
        info = StepInfo(jnp.zeros((), jnp.int32), loss, aux, coordinates, grads)
        return (coordinates, _arrays(state, like=arrays), ending), info

    def _info(self, coordinates: PyTree, state: Any) -> tuple[Array, Any, PyTree]:
        """Loss, aux and gradients at the coordinates; what the solver knows is not computed again."""
        if not isinstance(self._solver(coordinates), _WITH_INFO):
            (loss, aux), grads = value_and_gradient(self.evaluate, self._mode or "rev")(coordinates)
            return loss, aux, grads
        if self._sums_squares:
            loss = self._loss(state.f_info.residual)
            grads = jax.tree.map(lambda g: 2 * g, state.f_info.compute_grad())
        else:
            loss, grads = state.f_info.f, state.f_info.grad
        return loss, self._function(coordinates)[1], from_real(grads, coordinates)

    def coordinates(self, carry: PyTree) -> PyTree:
        return carry[0]

    def move(self, carry: PyTree, coordinates: PyTree) -> PyTree:
        return self.init(coordinates)

    def ended(self, carry: PyTree) -> Int[Array, ""]:
        return carry[2]

    def _first_state(self, coordinates: PyTree) -> Any:
        y, function = to_real(coordinates), self._real_function(coordinates)
        shapes, aux_shapes = jax.eval_shape(lambda y: function(y, None), y)
        options = self._options(coordinates)
        return self._solver(coordinates).init(
            function, y, None, options, shapes, aux_shapes, frozenset()
        )

    def _real_function(self, coordinates: PyTree) -> Callable[[PyTree, Any], tuple[Any, Any]]:
        def function(y: PyTree, args: Any) -> tuple[Any, Any]:
            output, _ = self._function(from_real(y, coordinates))
            return output, None

        return function

    def _options(self, coordinates: PyTree) -> dict[str, str]:
        if not self._sums_squares:
            return {"autodiff_mode": "fwd" if self._mode == "fwd" else "bwd"}
        mode = self._mode
        if mode is None:
            outputs, _ = jax.eval_shape(self._function, coordinates)
            mode = "fwd" if _size(to_real(coordinates)) <= _size(outputs) else "rev"
        return {"jac": "fwd" if mode == "fwd" else "bwd"}


# A solver's state holds functions besides arrays, which no loop can carry.


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def _arrays(state: Any, like: dict[str, Array] | None = None) -> dict[str, Array]:
    """The arrays in a solver's state, by their path; in the dtypes of others, if given."""
    leaves, _ = jax.tree.flatten_with_path(state)
    arrays = {jax.tree_util.keystr(path): x for path, x in leaves if _is_array(x)}
    return arrays if like is None else {path: x.astype(like[path].dtype) for path, x in arrays.items()}


def _with_arrays(template: Any, arrays: dict[str, Array]) -> Any:
    """A solver's state with these arrays; all else is the template's."""
    leaves, treedef = jax.tree.flatten_with_path(template)
    filled = [arrays[jax.tree_util.keystr(path)] if _is_array(x) else x for path, x in leaves]
    return jax.tree.unflatten(treedef, filled)


def _finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _size(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
