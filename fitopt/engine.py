"""`OptaxOptimizer`: fit the Parameters of a state with any optax optimizer."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, PyTree

from .callback import Callback, HostCallback, StepInfo, label
from .checkpoint import points
from .checks import (
    check_callbacks,
    check_loss,
    check_max_steps,
    check_optimizer,
    is_minimiser,
    nothing_free,
)
from .differentiation import MODES
from .driver import Run
from .history import History
from .loop import Endings, Loop, Problem, Programs
from .partition import Flat, Layout, flatten
from .resume import BadPoint
from .stepper import MakeStepper, Objective, OptaxStepper, Values

if TYPE_CHECKING:
    from .uncertainty.result import Uncertainty

State = TypeVar("State", bound=PyTree)

with ThreadPoolExecutor(1) as _pool:  # another thread is under no transformation, whatever this one does
    _NO_TRACE = _pool.submit(get_opaque_trace_state).result()


class Fitter:
    """What all ways to fit have in common: callbacks, compiled programs, and the run."""

    def __init__(
        self,
        callback: Any,
        evaluate: Callable[[Any], tuple[Any, Any]],
        make_stepper: MakeStepper,
        endings: Endings | None = None,
        follows: bool = False,
    ):
        self._callbacks = check_callbacks(callback)
        traced = tuple(c for c in self._callbacks if isinstance(c, Callback))
        hosts = [c for c in self._callbacks if not isinstance(c, Callback)]
        looked_at = [c.uses if isinstance(c, HostCallback) else HostCallback.uses for c in hosts]
        uses = tuple(name for name in StepInfo._fields if any(name in used for used in looked_at))
        self._problem = Problem(evaluate, make_stepper, traced, uses, endings, follows)
        self._programs: dict[tuple[Layout, str | None], Programs] = {}
        self._derivatives: dict[Any, Any] = {}  # compiled for uncertainties

    def _run(
        self, state: State, max_steps: int, mode: str | None, resume_from: Any
    ) -> tuple[State, History]:
        max_steps = check_max_steps(max_steps)
        flat = flatten(state)
        if not flat.free:
            raise ValueError(nothing_free(state))
        if get_opaque_trace_state() != _NO_TRACE:
            if resume_from is not None:
                raise TypeError("resume_from does not work inside jit, vmap or grad")
            return self._run_traced(flat, max_steps, mode)
        programs_for = functools.partial(self._programs_for, mode=mode)
        new = functools.partial(Run, programs_for, self._callbacks, state, flat, max_steps)
        for earlier in points(resume_from):
            with contextlib.suppress(BadPoint):
                return new(earlier)()
        return new()()

    def _programs_for(self, layout: Layout, mode: str | None) -> Programs:
        programs = self._programs.get((layout, mode))
        if programs is None:
            programs = Programs(Loop(self._problem, layout, mode))
            programs = self._programs.setdefault((layout, mode), programs)
        return programs

    def _run_traced(self, flat: Flat, max_steps: int, mode: str | None) -> tuple[Any, History]:
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callback {label(callback)} runs in Python, which a fit inside jit, vmap or grad "
                    "cannot visit; use traced callbacks (fitopt.Callback) there"
                )
        fit = Loop(self._problem, flat.layout, mode).scan(flat.free, flat.fixed, max_steps)
        history = History(loss=fit.losses)
        for callback, records in zip(self._problem.callbacks, fit.records, strict=True):
            for name, record in (records or {}).items():
                every = callback.every
                history[name] = jax.tree.map(lambda x, every=every: x[::every], record)
                history._every[name] = every
        comparable = jnp.where(jnp.isnan(fit.losses), jnp.inf, fit.losses)
        best = jnp.argmin(comparable) if max_steps else jnp.zeros((), int)
        history.update(
            n_steps=fit.n_steps,
            final_loss=fit.final_loss,
            best_loss=fit.losses[best] if max_steps else fit.final_loss,
            best_step=best,
        )
        return flat.layout.state(fit.values, flat.fixed), history


class OptaxOptimizer(Fitter):
    """Fit the free Parameters of a state with any optax optimizer, or a minimiser of optimistix.

    **Arguments:**

    - `loss`: a function of the state that returns a real scalar, or `(scalar, aux)` with
        `has_aux=True`. It gets the state with plain arrays in place of Parameters.
    - `optimizer`: any `optax.GradientTransformation`; line searches get what they need. Or a minimiser
        of optimistix, such as `optimistix.BFGS(rtol, atol)`, whose convergence ends the fit.
    - `callback`: one callback or a list of them, run in that order: traced ones (`fitopt.Callback`)
        and plain Python functions `callback(step, diff_state, static_state, fitting_data, aux_data,
        loss_value, grads)` that return None, whether to stop, or `(stop, diff_state, static_state)`.
    - `has_aux`: whether the loss returns auxiliary data besides.

    The compiled programs belong to the instance: another `run` on a state of the same structure and
    shapes compiles nothing.

    **Raises:** `TypeError` for arguments of the wrong kind.

    >>> import jax.numpy as jnp, optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> x = jnp.linspace(0.0, 1.0, 20)
    >>> y = 3.0 * x + 1.0
    >>> def loss(state):
    ...     return jnp.mean((state["slope"] * x + state["offset"] - y) ** 2)
    >>> state = {"slope": Parameter("slope", 0.0), "offset": Parameter("offset", 0.0)}
    >>> fitted, history = OptaxOptimizer(loss, optax.adam(0.1)).run(state, max_steps=500)
    >>> print(f"{fitted['slope']:.3f} {fitted['offset']:.3f}")
    3.000 1.000
    """

    def __init__(
        self,
        loss: Callable[[Any], Any],
        optimizer: optax.GradientTransformation,
        callback: Any = None,
        has_aux: bool = False,
    ):
        if not callable(loss):
            raise TypeError(f"loss must be a function of the state, got {loss!r}")
        if not isinstance(has_aux, bool):
            raise TypeError(f"has_aux must be True or False, got {has_aux!r}")
        evaluate = functools.partial(_evaluate, loss, has_aux)
        if is_minimiser(optimizer):
            from . import solver_stepper  # brings optimistix with it

            make_stepper = functools.partial(solver_stepper.make, optimizer)
            super().__init__(
                callback,
                evaluate,
                make_stepper,
                functools.partial(solver_stepper.endings, optimizer),
                True,
            )
        else:
            make_stepper = functools.partial(_optax_stepper, check_optimizer(optimizer))
            super().__init__(callback, evaluate, make_stepper)

    def run(
        self,
        state: State,
        max_steps: int = 1,
        mode: str = "rev",
        *,
        resume_from: str | os.PathLike[str] | History | None = None,
    ) -> tuple[State, History]:
        """Make up to `max_steps` steps from `state`.

        **Arguments:**

        - `state`: any pytree with at least one free Parameter. Arrays and floats in it are traced;
            Python ints, bools and strings stay what they are.
        - `max_steps`: how many steps at most; with 0 the state is evaluated alone.
        - `mode`: `"rev"`, or `"fwd"` for forward-mode differentiation: for few parameters, and for
            losses that contain a `lax.while_loop`.
        - `resume_from`: a directory into which `fitopt.callbacks.Checkpoint` has written, or the history
            of an earlier run: go on with that fit, bit for bit, until `max_steps` are made in all. A
            directory without a checkpoint is that of a fit that has yet to begin.

        **Returns:** the fitted state, in the structure of `state`, and the `History`.

        **Raises:** `TypeError` and `ValueError` for arguments and losses that cannot be fitted;
        `ValueError` if the loss is not finite at the start. Once a step was good, a loss or an update
        that is not finite ends the fit with a `RuntimeWarning` and the last good state.

        Inside `jit`, `vmap` or `grad` it becomes one `lax.scan` of `max_steps` steps.
        """
        if mode not in MODES:
            raise ValueError(f'mode must be "rev" or "fwd", got {mode!r}')
        return self._run(state, max_steps, mode, resume_from)

    def uncertainty(
        self,
        final_state: PyTree,
        *,
        errordef: float = 0.5,
        parameters: Sequence[str] | None = None,
        mode: str = "rev",
    ) -> "Uncertainty":
        """Standard errors and correlations of a fitted state, from the Hessian of the loss.

        **Arguments:**

        - `final_state`: what `run` has returned. The loss must be at its minimum there.
        - `errordef`: by how much the loss rises at one standard error: 0.5 for a negative
            log-likelihood, 1 for a sum of squares in units of the variance, as in iminuit.
        - `parameters`: names of Parameters, or of their entries: compute the errors of these alone, and
            without the Hessian, for which thousands of parameters may be too many. Correlations are
            theirs; there are no profiles then.
        - `mode`: `"rev"` or `"fwd"`: how the loss is differentiated, as for `run`.

        The covariance is `2 * errordef` times the inverse of the Hessian, brought to the user's units.
        It takes one product of the Hessian with a vector for each fitted number; with `parameters` the
        method of conjugate gradients takes as many as it needs for each number in them.

        **Raises:** `ValueError` if derivatives are not finite; `TypeError` inside `jit`, `vmap`, `grad`;
        `KeyError` for unknown `parameters`.
        """
        from .uncertainty import estimation

        if mode not in MODES:
            raise ValueError(f'mode must be "rev" or "fwd", got {mode!r}')
        if not (np.ndim(errordef) == 0 and 0 < errordef < np.inf):
            raise ValueError(f"errordef must be a positive number, got {errordef!r}")
        given = self._derivatives, self._problem.evaluate, float(errordef), final_state, mode
        if parameters is None:
            return estimation.of_loss(*given)
        from .uncertainty import matrix_free

        return matrix_free.of_some(*given, parameters)


def _evaluate(loss: Callable[[Any], Any], has_aux: bool, state: Any) -> tuple[Array, Any]:
    return check_loss(loss(state), has_aux)


def _optax_stepper(
    optimizer: optax.GradientTransformation,
    objective: Objective,
    mode: str | None,
    names: PyTree,
    values: Values,
) -> OptaxStepper:
    return OptaxStepper(objective, optimizer, mode or "rev", names)
