"""`OptaxOptimizer`: fit the Parameters of a state with any optax optimizer."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import optax
import optimistix
from jaxtyping import Array

from .engine.fitter import Fitter
from .engine.validation import MOST_STEPS, check_loss, numpy_advice
from .history import History
from .many.fits import Fits
from .many.run import Means, Options, run_many
from .methods.derivatives import MODES
from .methods.optax_method import OptaxMethod
from .methods.optimistix_method import OptimistixMethod, is_minimiser
from .methods.priors import explained_by_priors
from .state import PyTree

if TYPE_CHECKING:
    from .uncertainty.many import Uncertainties
    from .uncertainty.result import Uncertainty

State = TypeVar("State", bound=PyTree)


class OptaxOptimizer(Fitter):
    """Fit the free Parameters of a state with any optax optimizer, or a minimiser of optimistix.

    **Arguments:**

    - `loss`: a function of the state that returns a real scalar, or `(scalar, aux)` with
        `has_aux=True`. It gets the state with plain arrays in place of Parameters, and, where `run` is
        handed `batches`, the batch of the step as its second argument.
    - `optimizer`: any `optax.GradientTransformation`; line searches get what they need. Or a minimiser
        of optimistix, such as `optimistix.BFGS(rtol, atol)`, whose convergence ends the fit.
    - `callback`: one callback or a list of them, run in that order: traced ones (`fitopt.Callback`)
        and plain Python functions `callback(step, diff_state, static_state, fitting_data, aux_data,
        loss_value, grads)` that return None, whether to stop, or `(stop, diff_state, static_state)`.
    - `has_aux`: whether the loss returns auxiliary data besides.
    - `example_loss`: a function of the state and of one example, a row of the batch, for optimizers
        that want the gradient of each, such as `optax.contrib.dpsgd`. They get these with a leading axis
        of examples; `loss` of the whole batch is recorded all the same.

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
        loss: Callable[..., Any],
        optimizer: optax.GradientTransformation | optimistix.AbstractMinimiser[Any, Any, Any],
        callback: Any = None,
        has_aux: bool = False,
        *,
        example_loss: Callable[..., Any] | None = None,
    ):
        if not callable(loss):
            raise TypeError(f"loss must be a function of the state, got {loss!r}")
        if not isinstance(has_aux, bool):
            raise TypeError(f"has_aux must be True or False, got {has_aux!r}")
        self._loss = loss
        self._ends_by_itself = is_minimiser(optimizer)
        if example_loss is not None and (self._ends_by_itself or not callable(example_loss)):
            raise TypeError(
                "example_loss must be a function of the state and an example, for an optax optimizer; "
                f"got {example_loss!r}"
            )
        of_example = example_loss and functools.partial(_evaluate, example_loss, False)
        if self._ends_by_itself:
            method = OptimistixMethod(optimizer)
        else:
            method = OptaxMethod(optimizer, of_example)
        self._needs_batches = example_loss is not None or _takes_two(loss)
        super().__init__(callback, functools.partial(_evaluate, loss, has_aux), method)

    def run(
        self,
        state: State,
        max_steps: int | None = None,
        mode: str = "rev",
        *,
        batches: Any = None,
        resume_from: str | os.PathLike[str] | History | None = None,
        adjoint: str = "unrolled",
    ) -> tuple[State, History]:
        """Make up to `max_steps` steps from `state`.

        **Arguments:**

        - `state`: any pytree with at least one free Parameter. Arrays and floats in it are traced;
            Python ints, bools and strings stay what they are.
        - `max_steps`: how many steps at most; with 0 the state is evaluated alone. By default a
            minimiser makes as many as it takes, and any other optimizer one.
        - `mode`: `"rev"`, or `"fwd"` for forward-mode differentiation: for few parameters, and for
            losses that contain a `lax.while_loop`.
        - `batches`: what the loss gets besides the state, anew at each step, as `loss(state, batch)`: a
            `fitopt.Minibatches` or `fitopt.Keys`, an iterable of pytrees of arrays (read ahead in a
            thread; one that ends, ends the fit), or a pytree of such, for which the loss gets the same
            pytree of batches. `history["final_loss"]` is then that of the next batch.
        - `resume_from`: a directory into which `fitopt.callbacks.Checkpoint` has written, or the history
            of an earlier run: go on with that fit, bit for bit, until `max_steps` are made in all. A
            directory without a checkpoint is that of a fit that has yet to begin.
        - `adjoint`: what `grad` and `jvp` around the fit differentiate: `"unrolled"`, all of the steps;
            or `"implicit"`, the minimum itself, which takes one linear solve and no memory for steps.
            The fit must have converged, else its derivatives mean nothing. What a bound holds does not
            change, and of what the data do not determine as little as can be. The history has zero
            derivatives, but for `final_loss`.

        **Returns:** the fitted state, in the structure of `state`, and the `History`.

        **Raises:** `TypeError` and `ValueError` for arguments and losses that cannot be fitted;
        `ValueError` if the loss is not finite at the start. Once a step was good, a loss or an update
        that is not finite ends the fit with a `RuntimeWarning` and the last good state.

        Inside `jit`, `vmap` or `grad` it becomes one `lax.scan` of `max_steps` steps.
        """
        if mode not in MODES:
            raise ValueError(f'mode must be "rev" or "fwd", got {mode!r}')
        if max_steps is None:
            max_steps = MOST_STEPS if self._ends_by_itself else 1
        if batches is not None and self._ends_by_itself:
            raise TypeError(
                "batches: minimisers of optimistix compare losses of different steps, which must be of "
                "the same data; take an optax optimizer (optax.lbfgs searches within a step)"
            )
        if batches is None and self._needs_batches:
            raise TypeError("batches must be given, as the loss takes one besides the state")
        with explained_by_priors(self._loss, state):
            return self._run(state, max_steps, mode, resume_from, adjoint, batches)

    def run_many(
        self,
        states: Sequence[State],
        max_steps: int | None = None,
        mode: str = "rev",
        *,
        lanes: int | None = None,
        devices: Sequence[Any] | None = None,
        record: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> Fits:
        """Fit many states at once, each as `run` does.

        A number of lanes advances side by side in one program; a fit that has ended makes room for the
        next, so the work is the sum of all steps, and memory does not grow with the number of states.

        **Arguments:**

        - `states`: a sequence of states of one structure and shapes, as `fitopt.starts` and
            `fitopt.vary` make them. Arrays that are the same object in all of them are held once.
        - `max_steps`, `mode`: of each fit, as for `run`.
        - `lanes`: how many advance side by side; by default as many as suit the devices.
        - `devices`: over which lanes are spread; by default all that this process has.
        - `record`: whether histories keep the loss of each step, and what callbacks record.
        - `resume_from`: a directory into which `fitopt.callbacks.Checkpoint` has written: fits that have
            ended are not made again, and with as many lanes those under way go on, bit for bit.

        **Returns:** `fitopt.Fits`. A fit that cannot begin, since its loss is not finite or a value
        outside its bounds, is one of them, with a loss that is NaN and its reason. Ctrl-C returns what
        was reached.

        **Raises:** `TypeError` and `ValueError` for arguments and losses that cannot be fitted, and
        states that are not alike.
        """
        if mode not in MODES:
            raise ValueError(f'mode must be "rev" or "fwd", got {mode!r}')
        if max_steps is None:
            max_steps = MOST_STEPS if self._ends_by_itself else 1
        if self._needs_batches:
            raise TypeError("run_many has no batches, and the loss takes one besides the state; use run")
        means = Means(self._problem, self._callbacks, self._many)
        options = Options(max_steps, mode, lanes, devices, record, resume_from)
        return run_many(means, states, options)

    @overload
    def uncertainty(
        self, state: Fits, *, errordef: float = 0.5, parameters: None = None, mode: str | None = None
    ) -> "Uncertainties": ...
    @overload
    def uncertainty(
        self,
        state: PyTree,
        *,
        errordef: float = 0.5,
        parameters: Sequence[str] | None = None,
        mode: str | None = None,
    ) -> "Uncertainty": ...
    def uncertainty(
        self,
        state: PyTree,
        *,
        errordef: float = 0.5,
        parameters: Sequence[str] | None = None,
        mode: str | None = None,
    ) -> "Uncertainty | Uncertainties":
        """Standard errors and correlations of a fitted state, from the Hessian of the loss.

        **Arguments:**

        - `state`: what `run` has returned. The loss must be at its minimum there. Or all that `run_many`
            has returned, whose derivatives are computed in one program.
        - `errordef`: by how much the loss rises at one standard error: 0.5 for a negative
            log-likelihood, 1 for a sum of squares in units of the variance, as in iminuit.
        - `parameters`: names of Parameters, or of their entries: compute the errors of these alone, and
            without the Hessian, for which thousands of parameters may be too many. Correlations are
            theirs; there are no profiles then.
        - `mode`: `"rev"` or `"fwd"`: how the gradient is computed, as for `run`; by default in a mode
            that works. Where the loss cannot be differentiated twice, the Hessian is of differences of
            gradients, and `messages` say so.

        The covariance is `2 * errordef` times the inverse of the Hessian, brought to the user's units.
        It takes one product of the Hessian with a vector for each fitted number; with `parameters` the
        method of conjugate gradients takes as many as it needs for each number in them.

        A state that is not at a minimum gets a `RuntimeWarning` with the estimated distance to it.

        **Raises:** `ValueError` if derivatives are not finite; `TypeError` inside `jit`, `vmap`, `grad`;
        `KeyError` for unknown `parameters`.
        """
        if self._needs_batches:
            raise TypeError(
                "the loss takes a batch besides the state, of which errors say nothing; take those of "
                "OptaxOptimizer(lambda state: loss(state, data), optimizer), with all data"
            )
        from .uncertainty import estimation, many

        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "rev", "fwd" or None, got {mode!r}')
        if not (np.ndim(errordef) == 0 and 0 < errordef < np.inf):
            raise ValueError(f"errordef must be a positive number, got {errordef!r}")
        given = self._derivatives, self._problem.evaluate, float(errordef)
        if parameters is not None and isinstance(state, Fits):
            raise TypeError("parameters cannot be chosen for many fits at once")
        if parameters is not None:
            from .uncertainty import matrix_free

            return matrix_free.of_some(*given, state, mode, parameters)
        one = functools.partial(estimation.of_loss, *given, mode)
        return (
            many.of_fits(self._derivatives, one, mode, state) if isinstance(state, Fits) else one(state)
        )


def _takes_two(loss: Callable[..., Any]) -> bool:
    """Whether a function needs a second argument, as far as that can be known."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [x for x in parameters if x.default is x.empty and x.kind <= x.POSITIONAL_OR_KEYWORD]
    return len(needed) > 1


def _evaluate(loss: Callable[..., Any], has_aux: bool, state: Any, *batch: Any) -> tuple[Array, Any]:
    with numpy_advice("loss"):
        result = loss(state, *batch)
    return check_loss(result, has_aux)
