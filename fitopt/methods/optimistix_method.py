"""optimistix' solvers behind the seam: least squares and minimisation, one step at a time."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..callback import StepInfo
from ..parameter.complex_numbers import from_real, to_real
from .derivatives import value_and_gradient
from .levenberg_marquardt import LevenbergMarquardt
from .method import Objective, Stepper, Values

CONVERGED, AT_REST, FAILED = 1, 2, 3

_SEARCHES = (
    LevenbergMarquardt,
    optx.AbstractGaussNewton,
    optx.AbstractQuasiNewton,
    optx.AbstractGradientDescent,
)
_BEST_SO_FAR = (optx.BestSoFarLeastSquares, optx.BestSoFarMinimiser)


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


def _chosen(solver: Any, coordinates: PyTree) -> Any:
    """The solver itself, or the default in the precision of the coordinates."""
    if solver is not None:
        return solver
    return _default(any(jnp.finfo(x.dtype).bits >= 64 for x in jax.tree.leaves(coordinates)))


@functools.cache  # making one takes as long as some steps of a small fit
def _default(double: bool) -> Any:
    return LevenbergMarquardt(rtol=1e-8 if double else 1e-5)


def endings(solver: Any, values: Sequence[Array]) -> tuple[str, ...]:
    """What `stop_reason` says when a solver has come to its end, in the order of the codes."""
    solver = _chosen(solver, values)
    name = type(solver).__name__
    tolerances = f"rtol={solver.rtol:g}" + (f" and atol={solver.atol:g}" if solver.atol else "")
    return (
        f"{name} converged: the last step changed parameters and loss by less than its tolerances, "
        f"{tolerances}",
        f"{name} converged: in the precision of the parameters its next step would not change them",
        f"{name} could not go on: its next step is not finite; either the derivatives are not, "
        "or a parameter has no effect",
    )


class _TracedOnce:
    """A function whose Python code runs once, however often it is called with the same shapes."""

    def __init__(self, function: Objective):
        self._function = function
        self._traced: Any = None

    def _trace(self, coordinates: PyTree) -> Any:
        if self._traced is None:
            jaxpr, shapes = jax.make_jaxpr(self._function, return_shape=True)(coordinates)
            self._traced = jaxpr_as_fun(jaxpr), shapes
        return self._traced

    def __call__(self, coordinates: PyTree) -> tuple[Any, Any]:
        function, shapes = self._trace(coordinates)
        outputs = function(*jax.tree.leaves(coordinates))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    def shapes(self, coordinates: PyTree) -> tuple[Any, Any]:
        """The shapes and dtypes of what it returns."""
        return self._trace(coordinates)[1]


def make(
    solver: Any, objective: Objective, mode: str | None, names: PyTree, values: Values
) -> "SolverStepper | BestSoFar":
    """What a Problem needs of a solver."""
    return _stepper(solver, _TracedOnce(objective), mode, values)


def _stepper(
    solver: Any, function: _TracedOnce, mode: str | None, values: Values
) -> "SolverStepper | BestSoFar":
    if isinstance(solver, optx.GoldenSearch):
        raise ValueError("GoldenSearch needs an interval to search, which a state does not have")
    if isinstance(solver, _BEST_SO_FAR):
        return BestSoFar(_stepper(solver.solver, function, mode, values))
    searches = solver is None or isinstance(solver, _SEARCHES)
    return (SearchStepper if searches else SolverStepper)(function, solver, mode, values)


def _by_default(x: Array) -> Array:
    return x.astype(jnp.result_type(float))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["vector"], meta_fields=["structure", "leaves"]
)
@dataclasses.dataclass(frozen=True)
class _Shown:
    """Coordinates as solvers see them: one vector, since each of their operations is a kernel a leaf."""

    vector: Float[Array, " n"]
    structure: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]  # shapes and dtypes of the coordinates

    @classmethod
    def of(cls, coordinates: PyTree) -> "_Shown":
        leaves, structure = jax.tree.flatten(coordinates)
        vector = jnp.concatenate([_by_default(to_real(x)).reshape(-1) for x in leaves])
        return cls(vector, structure, tuple((x.shape, x.dtype) for x in leaves))

    def tree(self, vector: Float[Array, " n"] | None = None) -> PyTree:
        """The coordinates; or another vector in their structure, shapes and dtypes."""
        vector = self.vector if vector is None else vector
        parts, used = [], 0
        for shape, dtype in self.leaves:
            shape = (2, *shape) if jnp.issubdtype(dtype, jnp.complexfloating) else shape
            first, used = used, used + math.prod(shape)
            parts.append(vector[first:used].reshape(shape))
        like = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.leaves]
        whole = from_real(parts, like)
        return jax.tree.unflatten(
            self.structure, [x.astype(y.dtype) for x, y in zip(whole, like, strict=True)]
        )

    def at(self, vector: Float[Array, " n"]) -> "_Shown":
        """At another vector, rounded to what the coordinates can be."""
        if all(jnp.finfo(dtype).dtype == vector.dtype for _, dtype in self.leaves):
            return dataclasses.replace(self, vector=vector)
        return _Shown.of(self.tree(vector))


def _vector(seen: PyTree) -> Float[Array, " n"]:
    return jnp.stack(seen) if isinstance(seen, list) else seen


class _Carry(NamedTuple):
    shown: _Shown
    solver: dict[str, Array]  # the arrays in the solver's state
    begun: Bool[Array, ""] | None  # False before a first step that does not call the solver
    ending: Int[Array, ""]


class SolverStepper(Stepper):
    """Any solver of optimistix, either for least squares or a minimiser; None for the default.

    The first step evaluates where the fit starts; each later one is a step of the solver. Its loss is
    that of the coordinates after it. `function` gives residuals, or the loss, at some coordinates.

    Solvers know real numbers of the default precision alone: what they see is converted.
    """

    def __init__(self, function: _TracedOnce, solver: Any, mode: str | None, values: Values):
        self._function = function
        self._given = solver
        self._mode = mode
        self._values = values
        self._sums_squares = solver is None or isinstance(solver, optx.AbstractLeastSquaresSolver)

    def evaluate(self, coordinates: PyTree) -> tuple[Array, Any]:
        output, aux = self._function(coordinates)
        return self._loss(jax.tree.map(_by_default, output)), aux

    def aux(self, coordinates: PyTree) -> Any:
        """What the function returns besides."""
        none = self._function.shapes(coordinates)[1]
        return self._function(coordinates)[1] if jax.tree.leaves(none) else none

    def gradient(self, coordinates: PyTree) -> PyTree:
        """The gradient of the loss; NaN where it has none in this mode, which not all solvers need."""
        try:
            return value_and_gradient(self.evaluate, self._mode or "rev")(coordinates)[1]
        except (TypeError, ValueError, NotImplementedError):
            return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), coordinates)

    def init(self, coordinates: PyTree) -> PyTree:
        with self._advice():
            _, state = self._begin(_Shown.of(coordinates))
        shown, ending = _Shown.of(coordinates), jnp.zeros((), jnp.int32)
        return _Carry(shown, _arrays(state), jnp.array(False), ending)

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        look = lambda carry: carry._replace(begun=jnp.array(True))
        with self._advice():
            carry = jax.lax.cond(carry.begun, self._go_on, look, carry)
        coordinates = self.coordinates(carry)
        (loss, aux), grads = self.evaluate(coordinates), self.gradient(coordinates)
        return carry, StepInfo(jnp.zeros((), jnp.int32), loss, aux, coordinates, grads)

    def _go_on(self, carry: _Carry) -> _Carry:
        carry, _, ok = self._solver_step(carry)
        ok &= _finite(carry.shown)
        return carry._replace(ending=jnp.where(ok, carry.ending, FAILED))

    def _solver_step(self, carry: _Carry) -> tuple[_Carry, Any, Array]:
        """The carry after a step of the solver, the solver's state, and whether all went well."""
        shown, y = carry.shown, self._seen(carry.shown)
        solver, function = _chosen(self._given, shown.tree()), self._shown_function(shown)
        mode, template = eqx.filter_eval_shape(self._begin, shown)
        state, options = _with_arrays(template, carry.solver), self._options(mode)
        new, state, _ = solver.step(function, y, None, options, state, frozenset())
        done, result = solver.terminate(function, y, None, options, state, frozenset())
        ending = jnp.where(done, CONVERGED, 0).astype(jnp.int32)
        arrays = _arrays(state, like=carry.solver)
        carry = _Carry(shown.at(_vector(new)), arrays, carry.begun, ending)
        return carry, state, result == optx.RESULTS.successful

    def coordinates(self, carry: PyTree) -> PyTree:
        return carry.shown.tree()

    def move(self, carry: PyTree, coordinates: PyTree) -> PyTree:
        return self.init(coordinates)

    def ended(self, carry: PyTree) -> Int[Array, ""]:
        return carry.ending

    def _loss(self, output: PyTree) -> Array:
        if not self._sums_squares:
            return output
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(output))  # type: ignore

    def _seen(self, shown: _Shown) -> PyTree:
        # optimistix makes no proper simplex of an array.
        return [*shown.vector] if isinstance(self._given, optx.NelderMead) else shown.vector

    def _shown_function(self, shown: _Shown) -> Any:
        """What the solver is to evaluate."""

        def function(y: PyTree, args: Any) -> tuple[Any, Any]:
            output = jax.tree.map(_by_default, self._function(shown.tree(_vector(y)))[0])
            if isinstance(self._given, optx.NelderMead):  # which takes NaN for the least
                output = jnp.where(jnp.isnan(output), jnp.inf, output)
            return output, None

        return function

    def _begin(self, shown: _Shown) -> tuple[str | None, Any]:
        """The mode of differentiation, and the solver's state before its first step."""
        y, function, coordinates = self._seen(shown), self._shown_function(shown), shown.tree()
        solver = _chosen(self._given, coordinates)
        default = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.result_type(float))
        shapes = jax.tree.map(default, self._function.shapes(coordinates)[0])

        def begin(mode: str | None) -> tuple[str | None, Any]:
            options = self._options(mode)
            return mode, solver.init(function, y, None, options, shapes, None, frozenset())

        if self._mode is not None or not self._sums_squares:
            return begin(self._mode)
        if _size(y) > _size(shapes):
            with contextlib.suppress(ValueError):  # there is a while_loop
                return begin("rev")
        with contextlib.suppress(TypeError, NotImplementedError):  # there is a custom_vjp
            jax.eval_shape(functools.partial(_push_twice, function), y)
            return begin("fwd")
        return begin("rev")

    def _options(self, mode: str | None) -> dict[str, str]:
        name = "jac" if self._sums_squares else "autodiff_mode"
        return {name: "fwd" if mode == "fwd" else "bwd"}

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

    def init(self, coordinates: PyTree) -> PyTree:
        return super().init(coordinates)._replace(begun=None)

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        last = carry
        with self._advice():
            carry, state, ok = self._solver_step(carry)
        shown, ending = carry.shown, carry.ending
        ours = self._given is None or isinstance(self._given, LevenbergMarquardt)
        if self._values is not None and not ours:
            ending = jnp.where(self._settled(last, carry), CONVERGED, ending)
        if hasattr(state, "num_steps_since_acceptance"):  # one of optimistix' own for least squares
            # By rounding it may reject for ever a trial point that is no other than the last.
            rests = _equal(shown.at(state.y_eval), shown)
            rests &= (state.num_steps_since_acceptance > 0) & (ending == 0)
            ending = jnp.where(rests, AT_REST, ending)
        if not self._sums_squares:
            # A trial point that is not finite is rejected, and the next one nearer; unless what all
            # of them come from is not finite. For least squares a linear solver has noticed that.
            ok &= _finite(state.y_eval) | _finite(state.descent_state)
        carry = carry._replace(ending=jnp.where(ok, ending, FAILED))
        loss = self._loss(state.f_info.residual) if self._sums_squares else state.f_info.f
        coordinates = self.coordinates(carry)
        aux, grads = self.aux(coordinates), shown.tree(self._known_gradient(state))
        return carry, StepInfo(jnp.zeros((), jnp.int32), loss, aux, coordinates, grads)

    def _settled(self, last: _Carry, carry: _Carry) -> Array:
        """Whether an accepted step has passed the solver's own test of convergence in values.

        Solvers make it in coordinates, which on the way to a bound have no end.
        """
        assert self._values is not None
        values, solver = self._values, _chosen(self._given, self.coordinates(carry))
        output = ".f_info.residual" if self._sums_squares else ".f_info.f"

        def small(new: PyTree, old: PyTree) -> Array:
            ratio = lambda x, y: jnp.abs(x - y) / (solver.atol + solver.rtol * jnp.abs(x))
            return solver.norm(jax.tree.map(ratio, new, old)) < 1

        def both(of: Callable[[_Carry], PyTree]) -> Array:
            return small(of(carry), of(last))

        settled = both(lambda carry: _Shown.of(values(self.coordinates(carry))).vector)
        settled &= both(lambda carry: {k: x for k, x in carry.solver.items() if k.startswith(output)})
        return settled & ~_equal(carry.shown, last.shown)

    def _known_gradient(self, state: Any) -> PyTree:
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
        return jax.tree.map(lambda g: 2 * g, gradient)


class _Best(NamedTuple):
    inner: _Carry
    coordinates: PyTree
    loss: Array


class BestSoFar(Stepper):
    """Another stepper, whose best coordinates so far are taken for those after each step."""

    def __init__(self, inner: "SolverStepper | BestSoFar"):
        self._inner = inner

    def evaluate(self, coordinates: PyTree) -> tuple[Array, Any]:
        return self._inner.evaluate(coordinates)

    def aux(self, coordinates: PyTree) -> Any:
        return self._inner.aux(coordinates)

    def gradient(self, coordinates: PyTree) -> PyTree:
        return self._inner.gradient(coordinates)

    def init(self, coordinates: PyTree) -> PyTree:
        loss = jax.eval_shape(self.evaluate, coordinates)[0]
        return _Best(self._inner.init(coordinates), coordinates, jnp.full((), jnp.inf, loss.dtype))

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        inner, info = self._inner.step(carry.inner)
        better = (info.loss < carry.loss) | jnp.isinf(carry.loss)
        select = lambda new, old: jnp.where(better, new, old)
        best = jax.tree.map(select, info.params, carry.coordinates)
        carry = _Best(inner, best, select(info.loss, carry.loss))
        aux, grads = self.aux(best), self.gradient(best)
        return carry, info._replace(loss=carry.loss, aux=aux, params=best, grads=grads)

    def coordinates(self, carry: PyTree) -> PyTree:
        return carry.coordinates

    def move(self, carry: PyTree, coordinates: PyTree) -> PyTree:
        return self.init(coordinates)

    def ended(self, carry: PyTree) -> Int[Array, ""] | int:
        return self._inner.ended(carry.inner)


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
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return functools.reduce(jnp.logical_and, finite, jnp.array(True))


def _equal(tree: PyTree, other: PyTree) -> Array:
    equal = jax.tree.map(lambda x, y: jnp.all(x == y), tree, other)
    return functools.reduce(jnp.logical_and, jax.tree.leaves(equal))


def _push_twice(function: Any, y: PyTree) -> PyTree:
    # JAX finds out that a custom_vjp has no forward mode when the derivative is used, not before.
    _, push = jax.linearize(lambda y: function(y, None)[0], y)
    return jax.jvp(push, (y,), (y,))


def _size(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
