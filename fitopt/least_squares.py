"""`LeastSquares`: fit the Parameters of a state by their residuals."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.core import Tracer
from jaxtyping import Array

from .engine.fitter import Fitter
from .engine.validation import describe, numpy_advice
from .history import History
from .many.fits import Fits
from .many.run import Means, Options, run_many
from .methods.derivatives import MODES
from .methods.optimistix_method import OptimistixMethod, check_solver
from .methods.priors import WithPriors, explained_by_priors
from .methods.robust import LOSSES, RobustLoss
from .parameter.complex_numbers import to_real
from .state import PyTree, flatten

if TYPE_CHECKING:
    from .uncertainty.many import Uncertainties
    from .uncertainty.result import Uncertainty

State = TypeVar("State", bound=PyTree)


class LeastSquares(Fitter):
    """Fit the free Parameters of a state so that the sum of squared residuals is least.

    **Arguments:**

    - `residuals`: a function of the state that returns what should be small: an array or a pytree of
        arrays, such as model - data; or `(residuals, aux)` with `has_aux=True`. It gets the state with
        plain arrays in place of Parameters. `fitopt.with_priors(residuals, {...})` adds normal priors:
        one more residual for each number that has one.
    - `solver`: a least-squares solver of optimistix; by default `fitopt.LevenbergMarquardt` with
        rtol=1e-8 in double precision and 1e-5 in single.
    - `callback`: one callback or a list of them, as for `fitopt.OptaxOptimizer`.
    - `has_aux`: whether `residuals` returns auxiliary data besides.
    - `sigma`: the standard deviation of each datum, by which its residual is divided: a number, an
        array or a pytree in the structure of the residuals, broadcast to their shapes.
    - `absolute_sigma`: whether `sigma` has the unit of the residuals, so that standard errors follow
        from it alone; else only its proportions count, and the scatter of the residuals sets the size
        of the errors, as in `scipy.optimize.curve_fit`.
    - `loss`: `"linear"`, or one that large residuals count less in: `"soft_l1"`, `"huber"`, `"cauchy"`,
        `"arctan"`, as defined by `scipy.optimize.least_squares`.
    - `f_scale`: from which size on a (weighted) residual counts as large.

    `history["loss"]` is the sum of squares of the residuals, weighted where there is a `sigma`; with a
    robust loss the sum of f_scale² ρ((residual / f_scale)²): always twice scipy's cost. A complex
    residual counts as two, its real and its imaginary part. The first step evaluates the start; each
    later one tries one point, and its loss is that of the last point that was accepted.

    **Raises:** `TypeError` and `ValueError` for arguments of the wrong kind.

    >>> import jax.numpy as jnp
    >>> from fitopt import LeastSquares, Parameter
    >>> x = jnp.linspace(0.0, 1.0, 20)
    >>> y = 3.0 * jnp.exp(-2.0 * x)
    >>> def residuals(state):
    ...     return state["height"] * jnp.exp(-state["rate"] * x) - y
    >>> state = {"height": Parameter("height", 1.0), "rate": Parameter("rate", 1.0, lower=0)}
    >>> fitted, history = LeastSquares(residuals).run(state)
    >>> print(f"{fitted['height']:.3f} {fitted['rate']:.3f}")
    3.000 2.000
    """

    _sums_squares = True

    def __init__(
        self,
        residuals: Callable[[Any], Any],
        solver: optimistix.AbstractLeastSquaresSolver[Any, Any, Any, Any] | None = None,
        callback: Any = None,
        has_aux: bool = False,
        *,
        sigma: PyTree = None,
        absolute_sigma: bool = False,
        loss: str = "linear",
        f_scale: float = 1.0,
    ):
        if not callable(residuals):
            raise TypeError(f"residuals must be a function of the state, got {residuals!r}")
        for name, flag in (("has_aux", has_aux), ("absolute_sigma", absolute_sigma)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, got {flag!r}")
        if absolute_sigma and sigma is None:
            raise ValueError("absolute_sigma=True needs a sigma")
        _check_sigma(sigma)
        if not isinstance(loss, str) or loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
        f_scale = _check_f_scale(f_scale)
        if isinstance(residuals, WithPriors):
            _check_priors(absolute_sigma, loss)
        self._residuals = residuals
        self._sigma, self._absolute_sigma = sigma, absolute_sigma
        self._weighted = functools.partial(_evaluate, residuals, has_aux, sigma, None, 1.0)
        self._robust = LOSSES[loss], f_scale
        self._loss, self._solver = loss, solver
        self._changed: dict[Any, LeastSquares] = {}  # by what changes the residuals
        evaluate = functools.partial(_evaluate, residuals, has_aux, sigma, LOSSES[loss], f_scale)
        super().__init__(callback, evaluate, OptimistixMethod(check_solver(solver)))

    def run(
        self,
        state: State,
        max_steps: int = 10_000,
        mode: str | None = None,
        *,
        batches: None = None,
        resume_from: str | os.PathLike[str] | History | None = None,
        adjoint: str = "unrolled",
    ) -> tuple[State, History]:
        """Make steps from `state` until the solver has converged, at most `max_steps`.

        **Arguments:**

        - `state`: any pytree with at least one free Parameter, as for `fitopt.OptaxOptimizer`.
        - `max_steps`: how many steps at most; with 0 the state is evaluated alone.
        - `mode`: `"fwd"` or `"rev"`: how the Jacobian is computed. By default in forward mode, unless
            there are more Parameters than residuals; where one of the two does not work in the other.
            Residuals with a `lax.while_loop` need forward mode, and a solver that does without
            transposes, as `LevenbergMarquardt` and `GaussNewton` do; those with a `jax.custom_vjp` need
            reverse mode.
        - `batches`: refused, as the steps compare residuals of the same data.
        - `resume_from`: a directory of checkpoints, or a history, as for `fitopt.OptaxOptimizer`.
        - `adjoint`: what `grad` and `jvp` around the fit differentiate: `"unrolled"`, all of the steps;
            or `"implicit"`, the minimum itself, which takes one linear solve and no memory for steps.
            The fit must have converged, else its derivatives mean nothing. What a bound holds does not
            change, and of what the data do not determine as little as can be. The history has zero
            derivatives, but for `final_loss`.

        **Returns:** the fitted state, in the structure of `state`, and the `History`.

        **Raises:** `TypeError` and `ValueError` for arguments and residuals that cannot be fitted;
        `ValueError` if the residuals are not finite at the start.

        Inside `jit`, `vmap` or `grad` it becomes one `lax.scan` of `max_steps` steps, so give a number
        near that of the steps that are needed. It can be differentiated in forward and in reverse mode,
        through the steps or, with `adjoint="implicit"`, at the minimum with the full Hessian.
        """
        if batches is not None:
            raise TypeError(
                "batches: the steps of least squares compare residuals of the same data; minimise a "
                "loss of batches with fitopt.OptaxOptimizer(loss, optimizer)"
            )
        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "rev", "fwd" or None, got {mode!r}')
        with explained_by_priors(self._residuals, state):
            return self._run(state, max_steps, mode, resume_from, adjoint)

    def run_many(
        self,
        states: Sequence[State],
        max_steps: int = 10_000,
        mode: str | None = None,
        *,
        lanes: int | None = None,
        devices: Sequence[Any] | None = None,
        record: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> Fits:
        """Fit many states at once, each as `run` does; see `fitopt.OptaxOptimizer.run_many`.

        **Arguments:**

        - `states`: a sequence of states of one structure and shapes.
        - `max_steps`, `mode`: of each fit, as for `run`.
        - `lanes`, `devices`, `record`, `resume_from`: as for `OptaxOptimizer.run_many`.

        **Returns:** `fitopt.Fits`.

        **Raises:** `TypeError` and `ValueError` for arguments and residuals that cannot be fitted, and
        states that are not alike.
        """
        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "rev", "fwd" or None, got {mode!r}')
        means = Means(self._problem, self._callbacks, self._many)
        options = Options(max_steps, mode, lanes, devices, record, resume_from)
        return run_many(means, states, options)

    def weighted_residuals(self, state: PyTree) -> PyTree:
        """The residuals at a state, divided by `sigma` where there is one; complex ones as two real."""
        flat = flatten(state)
        plain = flat.layout.plain(flat.free, flat.fixed)
        return self._weighted(plain)[0]

    def with_residuals(self, change: Callable[[PyTree, Any], PyTree]) -> "LeastSquares":
        """The same fit for states `(state, extra)`, of the residuals that `change` makes of these.

        `change` gets the weighted residuals at `state`, and `extra`. The same function gives the same
        `LeastSquares`, whose programs are compiled once.
        """
        if change not in self._changed:

            def residuals(pair: Any) -> PyTree:
                return change(self._weighted(pair[0])[0], pair[1])

            solver, (_, f_scale) = self._solver, self._robust
            changed = LeastSquares(residuals, solver, loss=self._loss, f_scale=f_scale)
            self._changed[change] = changed
        return self._changed[change]

    @overload
    def uncertainty(self, state: Fits, *, mode: str | None = None) -> "Uncertainties": ...
    @overload
    def uncertainty(self, state: PyTree, *, mode: str | None = None) -> "Uncertainty": ...
    def uncertainty(self, state: PyTree, *, mode: str | None = None) -> "Uncertainty | Uncertainties":
        """Standard errors and correlations of a fitted state, from the Jacobian of the residuals.

        **Arguments:**

        - `state`: what `run` has returned. The sum of squares must be at its minimum there. Or all that
            `run_many` has returned, whose derivatives are computed in one program.
        - `mode`: how the Jacobian is computed, as for `run`.

        The covariance is (JᵀJ)⁻¹, brought to the user's units; unless `absolute_sigma`, it is multiplied
        with the variance of the residuals: their sum of squares over the degrees of freedom. With a
        robust loss J and the sum of squares are what `scipy.optimize.curve_fit` takes: slopes count as
        much as the loss is curved at their residual.

        A state that is not at a minimum gets a `RuntimeWarning` with the estimated distance to it.

        **Raises:** `ValueError` if derivatives are not finite; `TypeError` inside `jit`, `vmap`, `grad`.
        """
        from .uncertainty import estimation, many

        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "rev", "fwd" or None, got {mode!r}')
        one = functools.partial(
            estimation.of_residuals,
            self._derivatives,
            self._problem.evaluate,
            self._weighted,
            *self._robust,
            self._sigma,
            self._absolute_sigma,
            mode,
        )
        return (
            many.of_fits(self._derivatives, one, mode, state) if isinstance(state, Fits) else one(state)
        )


def _check_priors(absolute_sigma: bool, loss: str) -> None:
    if not absolute_sigma:
        raise ValueError(
            "priors need absolute_sigma=True and a sigma, such as 1.0 where residuals are in units of "
            "their standard deviation: else nothing tells how much they count beside the data"
        )
    if loss != "linear":
        raise ValueError(f'priors go with loss="linear", got {loss!r}')


def _check_f_scale(f_scale: Any) -> float:
    if isinstance(f_scale, Tracer) or np.ndim(f_scale) or np.asarray(f_scale).dtype.kind not in "fiu":
        raise TypeError(f"f_scale must be a number, got {f_scale!r}")
    if not (f_scale > 0 and math.isfinite(f_scale)):
        raise ValueError(f"f_scale must be positive and finite, got {f_scale!r}")
    return float(f_scale)


def _check_sigma(sigma: PyTree) -> None:
    for leaf in jax.tree.leaves(sigma):
        if isinstance(leaf, Tracer):
            continue
        array = np.asarray(leaf)
        if array.dtype.kind not in "fiu" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"sigma must hold numbers, got {leaf!r}")
        if not np.all((array > 0) & np.isfinite(array)):
            raise ValueError(f"sigma must be positive and finite everywhere, got {leaf!r}")


def _evaluate(
    residuals: Callable[[Any], Any],
    has_aux: bool,
    sigma: PyTree,
    robust: RobustLoss,
    f_scale: float,
    state: Any,
) -> tuple[PyTree, Any]:
    """Residuals as they are squared and summed: weighted, and bent by the robust loss."""
    with numpy_advice("function of the residuals"):
        output = residuals.function(state) if isinstance(residuals, WithPriors) else residuals(state)
    aux = None
    if has_aux:
        if not (isinstance(output, tuple) and len(output) == 2):
            raise TypeError(
                "has_aux=True: the residuals must be a pair (residuals, aux), "
                f"but the function returned {describe(output)}"
            )
        output, aux = output
    output = jax.tree.map(_as_residuals, output)
    if not jax.tree.leaves(output):
        raise TypeError(f"residuals must return arrays, but it returned {output!r}")
    if sigma is not None:
        output = _weighted(output, sigma)
    output = to_real(output)
    if robust is not None:
        output = jax.tree.map(lambda r: f_scale * robust(r / f_scale), output)
    if isinstance(residuals, WithPriors):
        output = output, residuals.residuals(state)
    return output, jax.tree.map(jnp.asarray, aux)


def _as_residuals(x: Any) -> Array:
    if not isinstance(x, float | complex | np.ndarray | np.generic | jax.Array):
        raise TypeError(f"residuals must return arrays, but it returned {describe(x)}")
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(f"residuals must be real or complex numbers, not of dtype {array.dtype}")
    return array


def _weighted(residuals: PyTree, sigma: PyTree) -> PyTree:
    structure = jax.tree.structure(residuals)
    if jax.tree.structure(sigma) == jax.tree.structure(0):
        sigma = jax.tree.unflatten(structure, [sigma] * structure.num_leaves)
    elif jax.tree.structure(sigma) != structure:
        raise ValueError(
            f"sigma must be one array or have the structure of the residuals, {structure}; "
            f"got {jax.tree.structure(sigma)}"
        )

    def divide(r: Array, s: Any) -> Array:
        try:
            fits = np.broadcast_shapes(np.shape(s), r.shape) == r.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"sigma of shape {np.shape(s)} does not fit residuals of shape {r.shape}")
        return r / jnp.asarray(s, r.real.dtype)

    return jax.tree.map(divide, residuals, sigma)
