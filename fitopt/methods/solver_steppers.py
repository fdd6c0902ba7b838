"""Steppers for solvers of optimistix: least squares and minimisation, one step at a time."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from ..callback import StepInfo
from ..state import PyTree
from .derivatives import value_and_gradient
from .lbfgsb import LBFGSB
from .levenberg_marquardt import LevenbergMarquardt
from .method import Stepper, TracedOnce
from .solver_state import arrays_of, equal, finite, with_arrays

CONVERGED, AT_REST, FAILED, STALLED = 1, 2, 3, 4

OURS = (LevenbergMarquardt, LBFGSB)


def chosen(solver: Any, values: PyTree) -> Any:
    """The solver itself, or the default in the precision of the values."""
    if solver is not None:
        return solver
    return _default(any(jnp.finfo(x.dtype).bits >= 64 for x in jax.tree.leaves(values)))


@functools.cache  # making one takes as long as some steps of a small fit
def _default(double: bool) -> Any:
    return LevenbergMarquardt(rtol=1e-8 if double else 1e-5)


def _by_default(x: Array) -> Array:
    return x.astype(jnp.result_type(float))


class _Carry(NamedTuple):
    vector: Float[Array, " n"]  # the position: each operation on a pytree would be a kernel a leaf
    solver: dict[str, Array]  # the arrays in the solver's state
    begun: Bool[Array, ""] | None  # False before a first step that does not call the solver
    stop_code: Int[Array, ""]


class SolverStepper(Stepper):
    """A solver of optimistix at work.

    The first step evaluates where the fit starts; each later one is a step of the solver. Its loss is
    that of the position after it. Solvers know real numbers of the default precision alone, so they see
    the position as one vector of such, without what masks fix.
    """

    def __init__(self, solver: Any, function: TracedOnce):
        self._given = solver
        self._function = function
        self._objective = function.objective
        self._mode = function.objective.mode
        self._sums_squares = solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver)

    @property
    def _solver(self) -> Any:
        return chosen(self._given, self._objective.constants.start)

    def _vector(self, position: PyTree) -> Float[Array, " n"]:
        return self._objective.vector.ravel(jax.tree.leaves(position))

    def _tree(self, vector: Float[Array, " n"]) -> PyTree:
        return self._objective.tree(self._objective.vector.unravel(vector))

    def evaluate(self, position: PyTree) -> tuple[Array, Any]:
        output, aux = self._function(position)
        return self._loss(jax.tree.map(_by_default, output)), aux

    def _loss(self, output: PyTree) -> Array:
        if not self._sums_squares:
            return output
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(output))  # type: ignore

    def aux(self, position: PyTree) -> Any:
        """What the function returns besides."""
        none = self._function.shapes(position)[1]
        return self._function(position)[1] if jax.tree.leaves(none) else none

    def gradient(self, position: PyTree) -> PyTree:
        """The gradient of the loss; NaN where it has none in this mode, which not all solvers need."""
        try:
            return value_and_gradient(self.evaluate, self._mode or "rev")(position)[1]
        except (TypeError, ValueError, NotImplementedError):
            return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), position)

    def init(self, position: PyTree) -> PyTree:
        vector = self._vector(position)
        with self._advice():
            _, state = self._begin(vector)
        return _Carry(vector, arrays_of(state), jnp.array(False), jnp.zeros((), jnp.int32))

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        look = lambda carry: carry._replace(begun=jnp.array(True))
        with self._advice():
            carry = jax.lax.cond(carry.begun, self._go_on, look, carry)
        position = self.position(carry)
        (loss, aux), grads = self.evaluate(position), self.gradient(position)
        return carry, StepInfo(jnp.zeros((), jnp.int32), loss, aux, position, grads)

    def _go_on(self, carry: _Carry) -> _Carry:
        carry, _, ok = self._solver_step(carry)
        ok &= finite(carry.vector)
        return carry._replace(stop_code=jnp.where(ok, carry.stop_code, FAILED))

    def _solver_step(self, carry: _Carry) -> tuple[_Carry, Any, Array]:
        """The carry after a step of the solver, the solver's state, and whether all went well."""
        solver, y = self._solver, self._as_solver_wants(carry.vector)
        mode, template = eqx.filter_eval_shape(self._begin, carry.vector)
        state, options = with_arrays(template, carry.solver), self._options(mode)
        with jax.numpy_rank_promotion("allow"):  # whatever the user wants of the loss, traced by now
            new, state, _ = solver.step(self._as_solver_calls, y, None, options, state, frozenset())
            done, result = solver.terminate(self._as_solver_calls, y, None, options, state, frozenset())
        stop_code = jnp.where(done, CONVERGED, 0).astype(jnp.int32)
        new = self._rounded(jnp.stack(new) if isinstance(new, list) else new)
        carry = _Carry(new, arrays_of(state, like=carry.solver), carry.begun, stop_code)
        return carry, state, result == optx.RESULTS.successful

    def _rounded(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The vector in numbers that the Parameters can be."""
        blocks = self._objective.vector.blocks
        if all(jnp.finfo(block.dtype).dtype == vector.dtype for block in blocks):
            return vector
        return self._vector(self._tree(vector))

    def position(self, carry: PyTree) -> PyTree:
        return self._tree(carry.vector)

    def move(self, carry: PyTree, position: PyTree) -> PyTree:
        return self.init(position)

    def stop_code(self, carry: PyTree) -> Int[Array, ""]:
        return carry.stop_code

    def _as_solver_wants(self, vector: Float[Array, " n"]) -> PyTree:
        # optimistix makes no proper simplex of an array.
        return [*vector] if isinstance(self._given, optx.NelderMead) else vector

    def _as_solver_calls(self, y: PyTree, args: Any) -> tuple[Any, Any]:
        vector = jnp.stack(y) if isinstance(y, list) else y
        output = jax.tree.map(_by_default, self._function(self._tree(vector))[0])
        if isinstance(self._given, optx.NelderMead):  # which takes NaN for the least
            output = jnp.where(jnp.isnan(output), jnp.inf, output)
        return output, None

    def _begin(self, vector: Float[Array, " n"]) -> tuple[str | None, Any]:
        """The mode of differentiation, and the solver's state before its first step."""
        y, function = self._as_solver_wants(vector), self._as_solver_calls
        default = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.result_type(float))
        shapes = jax.tree.map(default, self._function.shapes(self._tree(vector))[0])
        residuals = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        if self._sums_squares and residuals == 1 < vector.size:
            raise ValueError(
                f"the residuals are a single number, for {vector.size} numbers to be fitted; if it is a "
                "loss, minimise it with fitopt.OptaxOptimizer(loss, optimizer)"
            )

        def begin(mode: str | None) -> tuple[str | None, Any]:
            options = self._options(mode)
            with jax.numpy_rank_promotion("allow"):
                return mode, self._solver.init(function, y, None, options, shapes, None, frozenset())

        if self._mode is not None or not self._sums_squares:
            return begin(self._mode)
        if vector.size > residuals:
            with contextlib.suppress(ValueError):  # there is a while_loop
                return begin("rev")
        with contextlib.suppress(TypeError, NotImplementedError):  # there is a custom_vjp
            jax.eval_shape(functools.partial(_push_twice, function), y)
            return begin("fwd")
        return begin("rev")

    def _options(self, mode: str | None) -> dict[str, Any]:
        name = "jac" if self._sums_squares else "autodiff_mode"
        options: dict[str, Any] = {name: "fwd" if mode == "fwd" else "bwd"}
        if (bounds := self._objective.vector.bounds()) is not None:
            options |= dict(
                zip(("lower", "upper"), map(_by_default, map(jnp.asarray, bounds)), strict=True)
            )
        return options

    @contextlib.contextmanager
    def _advice(self) -> Iterator[None]:
        """Say what to do when JAX cannot differentiate the function."""
        what = "residuals contain" if self._sums_squares else "loss contains"
        try:
            yield
        except (TypeError, ValueError, NotImplementedError) as error:
            if "Reverse-mode differentiation does not work" in str(error):
                loop = "a lax.while_loop (or a fori_loop whose bounds are traced)"
                advice = 'call run(..., mode="fwd")'
                if self._mode == "fwd" or (self._mode is None and self._sums_squares):
                    advice = f"and {type(self._given).__name__} needs that mode; take another solver"
                message = f"the {what} {loop}, which reverse mode cannot differentiate; {advice}"
                raise ValueError(message) from error
            if "jvp) to a custom_vjp" in str(error) or "'custom_lin'" in str(error):
                message = f"the {what} a jax.custom_vjp, which forward mode cannot differentiate"
                raise ValueError(f'{message}; call run(..., mode="rev")') from error
            raise


class SearchStepper(SolverStepper):
    """A solver that tries a point in each step, and moves there if it accepts it.

    Its first step is the evaluation of the start; and it keeps the loss and its derivatives at the
    last point that it accepted, so that nothing needs to be computed again.
    """

    def init(self, position: PyTree) -> PyTree:
        return super().init(position)._replace(begun=None)

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        last = carry
        with self._advice():
            carry, state, ok = self._solver_step(carry)
        stop_code = carry.stop_code
        ours = isinstance(self._solver, OURS)
        if ours:
            stop_code = jnp.where(state.stalled, STALLED, stop_code)
        if not (ours or self._objective.vector.is_affine):
            stop_code = jnp.where(self._settled(last, carry), CONVERGED, stop_code)
        if hasattr(state, "num_steps_since_acceptance"):  # one of optimistix' own for least squares
            # By rounding it may reject for ever a trial point that is no other than the last.
            rests = equal(self._rounded(state.y_eval), carry.vector)
            rests &= (state.num_steps_since_acceptance > 0) & (stop_code == 0)
            stop_code = jnp.where(rests, AT_REST, stop_code)
        if not (ours or self._sums_squares):
            # A trial point that is not finite is rejected, and the next one nearer; unless what all
            # of them come from is not finite. For least squares a linear solver has noticed that.
            ok &= finite(state.y_eval) | finite(state.descent_state)
        carry = carry._replace(stop_code=jnp.where(ok, stop_code, FAILED))
        loss = self._loss(state.f_info.residual) if self._sums_squares else state.f_info.f
        position = self.position(carry)
        aux, grads = self.aux(position), self._tree(self._known_gradient(state))
        return carry, StepInfo(jnp.zeros((), jnp.int32), loss, aux, position, grads)

    def _settled(self, last: _Carry, carry: _Carry) -> Array:
        """Whether an accepted step has passed the solver's own test of convergence in values.

        Solvers make it in unconstrained values, which on the way to a bound have no end.
        """
        solver = self._solver
        output = ".f_info.residual" if self._sums_squares else ".f_info.f"

        def small(new: PyTree, old: PyTree) -> Array:
            ratio = lambda x, y: jnp.abs(x - y) / (solver.atol + solver.rtol * jnp.abs(x))
            return solver.norm(jax.tree.map(ratio, new, old)) < 1

        def both(of: Callable[[_Carry], PyTree]) -> Array:
            return small(of(carry), of(last))

        elements = lambda carry: self._objective.vector.elements(
            self._objective.values(self.position(carry))
        )
        settled = both(elements)
        settled &= both(lambda carry: {k: x for k, x in carry.solver.items() if k.startswith(output)})
        return settled & ~equal(carry.vector, last.vector)

    def _known_gradient(self, state: Any) -> Float[Array, " n"]:
        info = state.f_info
        if not self._sums_squares:
            return info.grad
        try:
            gradient = info.compute_grad()
        except ValueError:  # a while_loop has no transpose
            half = lambda d: sum(
                jnp.sum(r * slope)
                for r, slope in zip(
                    jax.tree.leaves(info.residual), jax.tree.leaves(info.jac.mv(d)), strict=True
                )
            )
            gradient = jax.jacfwd(half)(state.y_eval)
        return 2 * gradient


class _Best(NamedTuple):
    inner: Any
    position: PyTree
    loss: Array


class BestSoFarStepper(Stepper):
    """Another stepper, whose best position so far is taken for that after each step."""

    def __init__(self, inner: "SolverStepper | BestSoFarStepper"):
        self._inner = inner

    def evaluate(self, position: PyTree) -> tuple[Array, Any]:
        return self._inner.evaluate(position)

    def aux(self, position: PyTree) -> Any:
        return self._inner.aux(position)

    def gradient(self, position: PyTree) -> PyTree:
        return self._inner.gradient(position)

    def init(self, position: PyTree) -> PyTree:
        loss = jax.eval_shape(self.evaluate, position)[0]
        return _Best(self._inner.init(position), position, jnp.full((), jnp.inf, loss.dtype))

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        inner, info = self._inner.step(carry.inner)
        better = (info.loss < carry.loss) | jnp.isinf(carry.loss)
        select = lambda new, old: jnp.where(better, new, old)
        best = jax.tree.map(select, info.params, carry.position)
        carry = _Best(inner, best, select(info.loss, carry.loss))
        aux, grads = self.aux(best), self.gradient(best)
        return carry, info._replace(loss=carry.loss, aux=aux, params=best, grads=grads)

    def position(self, carry: PyTree) -> PyTree:
        return carry.position

    def move(self, carry: PyTree, position: PyTree) -> PyTree:
        return self.init(position)

    def stop_code(self, carry: PyTree) -> Int[Array, ""] | None:
        return self._inner.stop_code(carry.inner)


def _push_twice(function: Any, y: PyTree) -> PyTree:
    # JAX finds out that a custom_vjp has no forward mode when the derivative is used, not before.
    _, push = jax.linearize(lambda y: function(y, None)[0], y)
    return jax.jvp(push, (y,), (y,))
