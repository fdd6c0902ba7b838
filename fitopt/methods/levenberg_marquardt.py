"""Levenberg's and Marquardt's method for least squares within bounds, for `optimistix` and this loop.

What goes from step to step is small, however many residuals there are: a triangle that has the same
products of columns as the Jacobian and the residuals.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..state import PyTree
from .derivatives import along_basis
from .trust_region import Expectation, bounded_step, lengths, next_radius, squares, triangle_of

Function = Callable[[PyTree, Any], tuple[PyTree, PyTree]]  # of parameters and args: residuals, and aux

_LEAST_GAIN = 1e-4  # of the predicted reduction: a step with less is taken back
_NO_GAIN = 0.5  # that could be measured: it leaves the radius as it is
_APPROACH = 0.5  # of the way to a bound is how far one step may go
_NEARBY = 1e-5  # of the residuals' norm: where the rest of the way changes less, the bound is reached
_INWARD = 1e-2  # of the width between bounds: how far a start on one of them is moved
_UNCERTAIN = 16.0  # times the rounding: what a change must exceed that no step has made


_UNDERWAY, _ENDED, _STALLED = range(3)  # stages


class LevenbergMarquardtState(eqx.Module):
    """What goes from one step to the next: few arrays, as each one costs a short fit time."""

    y_eval: PyTree  # the point to try
    expected: Float[Array, " 10"]  # there: an `Expectation`
    reduced: Float[Array, "k n+1"]  # Jacobian and residuals at the best point so far: `_reduced`
    aux: PyTree  # there
    scale: Float[Array, " n"]  # of parameters: the largest effect that each has had
    stage: Int[Array, ""]

    @property
    def terminate(self) -> Bool[Array, ""]:
        """Whether it has ended."""
        return self.stage >= _ENDED

    @property
    def stalled(self) -> Bool[Array, ""]:
        """Whether it has ended where no step helps, though the gradient says that one should."""
        return self.stage == _STALLED

    @property
    def f_info(self) -> Any:
        """As other solvers have it, of fewer residuals with the same sum of squares and gradient."""
        jacobian, residual = self.reduced[:, :-1], self.reduced[:, -1]
        push = lambda move: jacobian @ ravel_pytree(move)[0].astype(jacobian.dtype)
        structure = jax.eval_shape(lambda: self.y_eval)
        return optx.FunctionInfo.ResidualJac(residual, lx.FunctionLinearOperator(push, structure))


class LevenbergMarquardt(optx.AbstractLeastSquaresSolver[Any, Any, Any, Any]):
    """Levenberg-Marquardt in a trust region and within bounds, indifferent to units.

    **Arguments:**

    - `rtol`: the tolerance. It has converged when the undamped step of Gauss and Newton, of those
        parameters that no bound holds, changes the residuals by less than this part of their norm
        (this is the relative offset of Bates and Watts, 1981, Technometrics 23, 179-183: it vanishes
        where the residuals are orthogonal to the columns of the Jacobian, and nowhere else), and each
        parameter either by less than this part of itself or, seen by its effect alone, the residuals
        by less than this part of their norm. That a step is short since it is damped counts for nothing.
    - `first_radius`: how long the first step may be, as part of the norm of the residuals and of the
        parameters, each multiplied by its effect on the residuals.

    The damping is what keeps a step within the trust region (Moré, 1978, The Levenberg-Marquardt
    algorithm: implementation and theory, LNM 630, 105-116), in which parameters are scaled by the
    largest effect that they have had, as in MINPACK. Its radius follows the gain ratio smoothly
    (Nielsen, 1999, Damping parameter in Marquardt's method, IMM-REP-1999-05). Changes of the loss that
    may be rounding speak neither for nor against a point (Conn, Gould and Toint, 2000, Trust-Region
    Methods, 17.4.2), so that it converges to the last digits.

    A step that meets a bound goes on along it, by the active-set method (Nocedal and Wright, 2006,
    Numerical Optimization, 16.5); but until the rest of the way hardly changes the residuals it goes
    only half of the way there, in the spirit of interior methods (Coleman and Li, 1996, SIAM J. Optim.
    6, 418-445), lest an early step leave a parameter where others have no effect, as on a height of
    zero. A solution on a bound is there exactly.

    Options: `jac`, `"fwd"` or `"bwd"`, as for `optimistix.LevenbergMarquardt`; `lower` and `upper`,
    bounds in the structure of `y`, infinite where there is none. The start must be within them; one
    that is on a bound is moved a little inside: by a hundredth of the way to the opposite bound, or, if
    there is none, by the root of the machine's precision times the bound, or 1 if that is more. The
    first step then changes such parameters alone.

    When it ends, `stalled` in its state says whether that is because no step helps any more, though the
    gradient says that one should: the derivatives are wrong there, or the residuals rough.

    **Raises:** `TypeError` and `ValueError` unless `rtol` is a number of at least 0 and less than 1, and
    `first_radius` a number above 0.

    >>> solver = LevenbergMarquardt(rtol=1e-5)
    >>> residuals = lambda y, args: jnp.array([10 * (y[1] - y[0] ** 2), 1 - y[0]])
    >>> optx.least_squares(residuals, solver, jnp.array([-1.2, 1.0])).value
    Array([1., 1.], dtype=float32)
    >>> bounds = {"upper": jnp.array([0.5, jnp.inf])}
    >>> optx.least_squares(residuals, solver, jnp.array([-1.2, 1.0]), options=bounds).value[0]
    Array(0.5, dtype=float32)
    """

    rtol: float
    first_radius: float
    atol: float
    norm: Callable[[PyTree], Scalar]

    def __init__(self, rtol: float, first_radius: float = 1.0):
        for name, value in (("rtol", rtol), ("first_radius", first_radius)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"LevenbergMarquardt: {name} must be a number, got {value!r}")
        if not 0 <= rtol < 1:
            raise ValueError(f"LevenbergMarquardt: rtol must be within [0, 1), got {rtol!r}")
        if not 0 < first_radius < float("inf"):
            message = "LevenbergMarquardt: first_radius must be finite and above 0, got"
            raise ValueError(f"{message} {first_radius!r}")
        self.rtol = float(rtol)
        self.first_radius = float(first_radius)
        self.atol = 0.0
        self.norm = optx.max_norm

    def init(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset[object],
    ) -> LevenbergMarquardtState:
        n, m = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (y, f_struct))
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((y, f_struct)))
        function = lambda x: _in_a_row(fn, unravel(x), args, dtype)
        point, unravel = ravel_pytree(y)
        # An error in differentiation should not wait for the first step.
        jax.eval_shape(lambda x: _linearized(function, x, options.get("jac", "fwd"))[1](), point)
        return LevenbergMarquardtState(
            y_eval=unravel(_inside(point, *_bounds(options, point))),
            expected=jnp.zeros(len(Expectation._fields), dtype),
            reduced=jnp.zeros((min(m, n + 1), n + 1), dtype),
            aux=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_struct),
            scale=jnp.zeros(n, dtype),
            stage=jnp.full((), _UNDERWAY, jnp.int32),
        )

    def step(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset[object],
    ) -> tuple[PyTree, LevenbergMarquardtState, PyTree]:
        point, unravel = ravel_pytree(y)
        trial, _ = ravel_pytree(state.y_eval)
        expected, dtype = Expectation(*state.expected), state.scale.dtype
        first = expected.radius == 0
        function = lambda x: _in_a_row(fn, unravel(x), args, dtype)
        residual, jacobian, aux = _linearized(function, trial, options.get("jac", "fwd"))
        loss, before = squares(residual), expected.loss
        gain = (before - loss) / expected.reduction
        visible = expected.reduction > expected.rounding
        promising = jnp.where(visible, gain > _LEAST_GAIN, loss <= before + expected.rounding)
        promising |= first
        reduced = lax.cond(promising, lambda: _reduced(jacobian(), residual), lambda: state.reduced)
        # Where the loss would tell no more than rounding, the gradient should become no larger, or what
        # the parameters could yet remove of the residuals fall by half: less may be rounding for ever.
        bounds = _bounds(options, point)
        gradient = lax.stop_gradient(reduced[:, :-1].T @ reduced[:, -1])
        gradient /= jnp.where(state.scale > 0, state.scale, 1)
        flatter = squares(jnp.where(_held(trial, gradient, bounds), 0, gradient)) <= expected.steepness
        flatter |= squares(reduced[: point.size, -1]) <= squares(state.reduced[: point.size, -1]) / 2
        gain = lax.stop_gradient(jnp.where(visible, gain, jnp.where(flatter, _NO_GAIN, -1)))
        # A step within the tolerance is taken even so: its derivatives may not have converged yet.
        enough = (gain > _LEAST_GAIN) | (expected.small > 0)
        better = first | (promising & enough & jnp.isfinite(squares(gradient)))
        # Next to a bound a parameter may leave others without effect, until it has moved away.
        moved = trial != point
        waiting = first & jnp.any(moved) & ~moved
        point, reduced, aux = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (trial, reduced, aux),
            (point, state.reduced, state.aux),
        )
        known, values = lax.stop_gradient((reduced, point))
        effects, size = lengths(known[:, :-1]), jnp.sqrt(squares(known[:, -1]))
        scale = jnp.maximum(state.scale, effects)
        reach = jnp.where(first, jnp.sqrt(squares(scale * values)), expected.reach)
        radius = next_radius(expected, better, gain, lax.stop_gradient(loss - before))
        radius = jnp.where(first, self.first_radius * (size + reach), radius)
        last = expected._replace(radius=radius, reach=reach)
        trial, proposed, steep = self._propose(point, reduced, effects, scale, last, bounds, waiting)
        # Does no step help any more? Rounding explains it where the gradient promises no more than that.
        rests = jnp.all(trial == point) & ~jnp.any(waiting)
        vain = ~better & (expected.undamped > 0) & ~visible
        stuck = rests | vain | (~better & (radius <= jnp.finfo(dtype).eps * size))
        explained = (rests & proposed.undamped) | ~steep
        small = (expected.small > 0) & jnp.isfinite(loss)
        ended = small | stuck | ~jnp.all(jnp.isfinite(trial))
        stalled = stuck & ~small & ~proposed.small & ~explained
        state = LevenbergMarquardtState(
            y_eval=unravel(trial),
            expected=jnp.stack([x.astype(dtype) for x in proposed]),
            reduced=reduced,
            aux=aux,
            scale=scale,
            stage=jnp.where(stalled, _STALLED, jnp.where(ended, _ENDED, _UNDERWAY)).astype(jnp.int32),
        )
        return unravel(point), state, aux

    def _propose(
        self,
        point: Float[Array, " n"],
        reduced: Float[Array, "k n+1"],
        effects: Float[Array, " n"],
        scale: Float[Array, " n"],
        last: Expectation,
        bounds: tuple[Array | None, Array | None],
        waiting: Bool[Array, " n"],
    ) -> tuple[Float[Array, " n"], Expectation, Bool[Array, ""]]:
        """The next point to try, what should come of it, and whether a parameter alone promises more.

        `last` is what was expected of the last step, with the radius for this one.
        """
        eps, tiny = jnp.finfo(reduced.dtype).eps, jnp.finfo(reduced.dtype).tiny
        units = jnp.where(scale > 0, scale, 1)
        system = reduced / jnp.append(units, 1)
        matrix, residual, values = lax.stop_gradient((system[:, :-1], reduced[:, -1], point))
        # What one unit, and what a parameter as a whole, may explain of the residuals.
        of_one, of_all = effects / units, effects * jnp.abs(values)
        loss = squares(residual)
        size = jnp.sqrt(loss)
        noise = eps * jnp.maximum(size, jnp.max(of_all))
        rounding, enough = 4 * noise * (size + noise), self.rtol * size + noise
        gradient, fixed, limits = matrix.T @ residual, effects == 0, None
        if any(side is not None for side in bounds):
            held = _held(values, gradient, bounds) | waiting
            gradient, fixed = jnp.where(held, 0, gradient), fixed | held
            system = jnp.where(jnp.append(held, False), 0, system)
            below, above = lax.stop_gradient(
                (-units * _room(values, bounds[0]), units * _room(values, bounds[1]))
            )
            # What is less than the tolerances would end the fit just before the bound.
            little = jnp.maximum(jnp.maximum(_NEARBY * size + noise, enough), self.rtol * of_all)
            limits = tuple(
                jnp.where(of_one * jnp.abs(x) <= little, x, _APPROACH * x) for x in (below, above)
            )
        step, newton, damping = bounded_step(system, of_one, last.radius, fixed, limits)
        undamped, known_step = (damping == 0) & ~jnp.any(waiting), lax.stop_gradient(step)
        full = jnp.where(undamped, known_step, lax.stop_gradient(newton))
        alone = jnp.all(of_one * jnp.abs(full) <= jnp.maximum(enough, self.rtol * of_all))
        together = (squares(matrix @ full) <= enough**2) & ~jnp.any(waiting)
        slope, length = 2 * jnp.sum(gradient * known_step), jnp.sqrt(squares(known_step))
        reduction = -slope - squares(matrix @ known_step)
        # Columns that depend on each other, up to rounding, leave steps without effect and without end.
        idle = undamped & (last.undamped > 0) & (length >= last.length)
        # Residuals that have vanished may go on to do so, where the Jacobian vanishes with them.
        vanished = (loss <= jnp.square(eps * last.reach)) & (length <= self.rtol * last.reach)
        vanished &= undamped & (reduction <= loss / 2)
        expected = Expectation(
            radius=last.radius,
            reach=last.reach,
            loss=loss,
            reduction=reduction,
            slope=slope,
            rounding=rounding,
            length=length,
            steepness=squares(gradient),
            undamped=undamped,
            small=(together & (alone | idle)) | vanished | (loss <= tiny / eps),
        )
        steep = jnp.any(jnp.square(gradient) > _UNCERTAIN * rounding * jnp.square(of_one))
        trial = point + (step / units).astype(point.dtype)
        if limits is not None:
            lower, upper = bounds
            if lower is not None:
                trial = jnp.where((known_step <= below) & (below <= 0), lower, jnp.maximum(trial, lower))
            if upper is not None:
                trial = jnp.where((known_step >= above) & (above >= 0), upper, jnp.minimum(trial, upper))
        return trial, expected, steep

    def terminate(
        self,
        fn: Function,
        y: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        finite = jnp.all(jnp.isfinite(ravel_pytree(state.y_eval)[0]))
        result = optx.RESULTS.where(finite, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence)
        return state.terminate, result

    def postprocess(
        self,
        fn: Function,
        y: PyTree,
        aux: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LevenbergMarquardtState,
        tags: frozenset[object],
        result: optx.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        return y, aux, {}


def _bounds(options: dict[str, Any], like: Float[Array, " n"]) -> tuple[Array | None, Array | None]:
    """Lower and upper bounds, each None if there are none."""
    given = (options.get("lower"), options.get("upper"))
    return tuple(x if x is None else ravel_pytree(x)[0].astype(like.dtype) for x in given)  # type: ignore


def _inside(point: Float[Array, " n"], lower: Array | None, upper: Array | None) -> Float[Array, " n"]:
    """A start, moved from its bound: there a parameter may be without effect, or others are."""
    eps = jnp.finfo(point.dtype).eps
    width = _room(jnp.zeros_like(point) if lower is None else lower, upper)
    width = jnp.where(lower is None, jnp.inf, width)

    def inward(bound: Array) -> Array:
        # Without a width there is no unit but the bound's own, and 1; scipy's trf does the same.
        return jnp.where(jnp.isfinite(width), _INWARD * width, eps**0.5 * jnp.maximum(1, jnp.abs(bound)))

    if lower is not None:
        point = jnp.where(point <= lower, lower + inward(lower), point)
    return point if upper is None else jnp.where(point >= upper, upper - inward(upper), point)


def _room(point: Float[Array, " n"], bound: Array | None) -> Float[Array, " n"]:
    """How far a bound is away; infinitely where there is none."""
    return jnp.full_like(point, jnp.inf) if bound is None else jnp.abs(bound - point)


def _held(
    values: Float[Array, " n"], gradient: Float[Array, " n"], bounds: tuple[Array | None, Array | None]
) -> Bool[Array, " n"]:
    """Which parameters are on a bound and would only leave it outwards."""
    lower, upper = bounds
    held = jnp.zeros(values.shape, bool) if lower is None else (values <= lower) & (gradient > 0)
    return held if upper is None else held | ((values >= upper) & (gradient < 0))


def _in_a_row(fn: Function, y: PyTree, args: Any, dtype: Any) -> tuple[Float[Array, " m"], PyTree]:
    """Residuals and aux."""
    output, aux = fn(y, args)
    return ravel_pytree(output)[0].astype(dtype), aux


def _linearized(
    function: Callable[[Array], tuple[Array, PyTree]], point: Float[Array, " n"], mode: str
) -> tuple[Float[Array, " m"], Callable[[], Float[Array, "m n"]], PyTree]:
    """A function's value at a point, what computes its Jacobian there, and aux."""
    if mode == "fwd":
        value, push, aux = jax.linearize(function, point, has_aux=True)
        return value, lambda: along_basis(push, point.size, point.dtype).T, aux
    value, pull, aux = jax.vjp(function, point, has_aux=True)
    return value, lambda: along_basis(lambda row: pull(row)[0], value.size, value.dtype), aux


def _reduced(jacobian: Float[Array, "m n"], residual: Float[Array, " m"]) -> Float[Array, "k n+1"]:
    """Both side by side, rotated such that all but the first n + 1 rows are zero, and without these."""
    return triangle_of(jnp.concatenate([jacobian.astype(residual.dtype), residual[:, None]], axis=1))
