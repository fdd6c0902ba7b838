"""Limited-memory BFGS within bounds, made for `optimistix` and this loop."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..state import PyTree
from . import lbfgsb_model, wolfe_search
from .derivatives import value_and_gradient
from .lbfgsb_model import Bounds, Memory
from .wolfe_search import ROUNDING, Search, Trial

Function = Callable[[Array, Any], tuple[Array, PyTree]]  # of parameters and args: loss, and aux

_FADING = 0.9  # by which former sizes lose weight with each step
_CONFIRMED = 0.5  # of the slope may remain after a step that ends the fit...
_LONGEST_LAST = 2  # ...which may be so many times as long as the model proposed
_MOST_IDLE = 8  # steps in a row without a new lowest loss or slope


class Records(NamedTuple):
    """What convergence is measured by."""

    size: Float[Array, " n"]  # of each parameter lately
    gradient: Float[Array, " n"]  # size of its entries lately
    loss: Float[Array, ""]  # the lowest so far
    slope: Float[Array, ""]  # the smallest so far that a search began with
    idle: Int[Array, ""]  # steps in a row without a new record of either

    def after(self, y: Array, loss: Array, gradient: Array, slope: Array, first: Array) -> "Records":
        least = self.loss - jnp.finfo(y.dtype).eps * jnp.abs(loss)
        news = first | (loss < least) | (jnp.abs(slope) < self.slope / 2)
        return Records(
            jnp.maximum(jnp.abs(y), _FADING * self.size),
            jnp.maximum(jnp.abs(gradient), _FADING * self.gradient),
            jnp.minimum(loss, self.loss),
            jnp.where(first, jnp.inf, jnp.minimum(jnp.abs(slope), self.slope)),
            jnp.where(news, 0, self.idle + 1),
        )


class LBFGSBState(eqx.Module):
    """What goes from one step to the next."""

    y_eval: Float[Array, " n"]  # the point to try
    f_info: Any  # loss and gradient at the best point so far
    aux: PyTree  # there
    memory: Memory
    search: Search
    records: Records
    first: Bool[Array, ""]
    terminate: Bool[Array, ""]
    stalled: Bool[Array, ""]  # whether it ends without having converged


class LBFGSB(optx.AbstractMinimiser[Any, Any, Any]):
    """L-BFGS-B: limited-memory BFGS for one vector of parameters, between bounds or without.

    **Arguments:**

    - `rtol`: the tolerance. It has converged after a step that would have changed each parameter by
        less than this part of its size lately, where each entry of the gradient that points inside the
        bounds had fallen below this part either of its size lately, or of the loss for a change of the
        parameter by its size (Dennis and Schnabel, 1983, Numerical Methods for Unconstrained
        Optimization, 7.2), and which has at least halved the slope along it, as the model foresaw.
    - `atol`: changes of a parameter up to there are within the tolerance, too.
    - `memory`: how many of the last steps the model of the curvature is made of.

    The model is that of Byrd, Lu, Nocedal and Zhu (1995, A Limited Memory Algorithm for Bound
    Constrained Optimization); the point to aim at is its generalized Cauchy point, improved over the
    parameters that are not on a bound there and projected (Morales and Nocedal, 2011). A parameter
    with two bounds is measured in widths, so that its unit does not matter. With bounds, the first
    step aims at half of the way to those that lie downhill, or nearer where the loss is steep for its
    size. The line search is for Wolfe's conditions, and, where the loss would tell no more than
    rounding, for the approximate ones of Hager and Zhang (2005). Each step evaluates loss and gradient
    once, at a point within the bounds.

    If rounding, a kink or a wrong gradient stops it before it has converged, `state.stalled` is true.

    Options: `lower` and `upper`, vectors with infinities where nothing is bounded; and, as for
    `optimistix.BFGS`, `autodiff_mode`, `"fwd"` or `"bwd"`.

    **Raises:** `TypeError` and `ValueError` unless `rtol` is a number within [0, 1), `atol` a finite
    number of at least 0 and `memory` an integer of at least 1.

    >>> loss = lambda y, args: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2
    >>> bounds = {"lower": jnp.array([-2.0, -2.0]), "upper": jnp.array([0.5, 2.0])}
    >>> optx.minimise(loss, LBFGSB(rtol=1e-4), jnp.array([-1.2, 1.0]), options=bounds).value
    Array([0.5 , 0.25], dtype=float32)
    """

    rtol: float
    atol: float
    memory: int
    norm: Callable[[PyTree], Scalar]

    def __init__(self, rtol: float, atol: float = 0.0, memory: int = 10):
        for name, number in (("rtol", rtol), ("atol", atol)):
            if isinstance(number, bool) or not isinstance(number, Real):
                raise TypeError(f"LBFGSB: {name} must be a number, got {number!r}")
        if isinstance(memory, bool) or not isinstance(memory, Integral):
            raise TypeError(f"LBFGSB: memory must be an integer, got {memory!r}")
        if not 0 <= rtol < 1:
            raise ValueError(f"LBFGSB: rtol must be within [0, 1), got {rtol!r}")
        if not 0 <= atol < float("inf"):
            raise ValueError(f"LBFGSB: atol must be finite and at least 0, got {atol!r}")
        if memory < 1:
            raise ValueError(f"LBFGSB: memory must be at least 1, got {memory!r}")
        self.rtol, self.atol, self.memory = float(rtol), float(atol), int(memory)
        self.norm = optx.max_norm

    def init(
        self,
        fn: Function,
        y: Float[Array, " n"],
        args: Any,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset[object],
    ) -> LBFGSBState:
        bounds, nil = _bounds(options, y), jnp.zeros_like(y)
        start = y if bounds is None else jnp.clip(y, *bounds)
        # An error in differentiation should not wait for the first step.
        jax.eval_shape(lambda x: _evaluated(fn, x, args, options), start)
        no, none, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32), jnp.zeros((), y.dtype)
        pairs, nowhere = jnp.zeros((self.memory, y.size), y.dtype), Trial(zero, zero, zero)
        return LBFGSBState(
            y_eval=start,
            f_info=optx.FunctionInfo.EvalGrad(zero, nil),
            aux=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_struct),
            memory=Memory(pairs, pairs, none, zero + 1),
            search=Search(start, zero, zero, zero, nowhere, nowhere, none, no),
            records=Records(nil, nil, zero + jnp.inf, zero + jnp.inf, none),
            first=~no,
            terminate=no,
            stalled=no,
        )

    def step(
        self,
        fn: Function,
        y: Float[Array, " n"],
        args: Any,
        options: dict[str, Any],
        state: LBFGSBState,
        tags: frozenset[object],
    ) -> tuple[Float[Array, " n"], LBFGSBState, PyTree]:
        bounds, first, had = _bounds(options, y), state.first, state.search
        (loss, aux), gradient = _evaluated(fn, state.y_eval, args, options)
        trial = Trial(had.step, loss, jnp.sum(gradient * (had.target - y)))
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient))
        accept = first | (finite & wolfe_search.acceptable(had, trial, state.f_info.f))
        small = had.small & accept & ~first & (had.step <= _LONGEST_LAST)
        small &= jnp.abs(trial.slope) <= _CONFIRMED * jnp.abs(had.slope)
        step, change = state.y_eval - y, gradient - state.f_info.grad
        memory = lbfgsb_model.remember(state.memory, step, change, accept & ~first)
        records = state.records.after(state.y_eval, loss, gradient, had.slope, first)
        searched = wolfe_search.after(had, trial, state.f_info.f)
        failed = ~accept & wolfe_search.exhausted(searched, y)
        there = optx.FunctionInfo.EvalGrad(loss, gradient)
        y, info, aux, records = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old),
            (state.y_eval, there, aux, lax.stop_gradient(records)),
            (y, state.f_info, state.aux, state.records),
        )
        # A search that fails may be the model's fault: the next one begins without pairs.
        memory = memory._replace(count=jnp.where(failed, 0, memory.count))
        begun = lambda: lbfgsb_model.begun(memory, y, info.grad, bounds)
        memory = lax.cond(first, begun, lambda: memory)
        propose = lambda: self._search(y, info, memory, records, bounds, first)
        search = lax.cond(accept | failed, propose, lambda: searched)
        spent = (failed & (state.memory.count == 0)) | (records.idle >= _MOST_IDLE)
        fine = (ROUNDING * jnp.finfo(y.dtype).eps) ** 0.5
        precise = (records.slope <= wolfe_search.noise(info.f)) & _is_flat(
            y, info, records, bounds, fine
        )
        state = LBFGSBState(
            y_eval=wolfe_search.along(search, y, bounds),
            f_info=info,
            aux=aux,
            memory=memory,
            search=search,
            records=records,
            first=jnp.zeros((), bool),
            terminate=small | spent | (search.slope == 0),
            stalled=spent & ~small & ~precise & (search.slope != 0),
        )
        return y, state, aux

    def _search(
        self, y: Array, info: Any, memory: Memory, records: Records, bounds: Bounds, first: Array
    ) -> Search:
        """The line search to where the model is least."""
        target = lbfgsb_model.target(y, info.grad, memory, bounds)
        if bounds is not None:
            target = jnp.where(first, lbfgsb_model.first_target(y, info.f, info.grad, bounds), target)
        move = target - y
        small = jnp.all(jnp.abs(move) <= self.atol + self.rtol * records.size)
        small &= _is_flat(y, info, records, bounds, self.rtol)
        zero, slope = jnp.zeros_like(info.f), jnp.sum(move * info.grad)
        longest = zero + jnp.inf
        if bounds is not None:
            room = jnp.where(move > 0, bounds[1] - y, jnp.where(move < 0, y - bounds[0], jnp.inf))
            longest = jnp.maximum(1, jnp.min(room / jnp.where(move != 0, jnp.abs(move), 1)))
        low, high = Trial(zero, info.f, slope), Trial(zero + jnp.inf, zero, zero)
        none = jnp.zeros((), jnp.int32)
        search = lax.stop_gradient(Search(target, slope, longest, zero + 1, low, high, none, small))
        return search._replace(target=target)

    def terminate(
        self,
        fn: Function,
        y: Float[Array, " n"],
        args: Any,
        options: dict[str, Any],
        state: LBFGSBState,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        finite = jnp.isfinite(state.f_info.f) & jnp.all(jnp.isfinite(state.y_eval))
        result = optx.RESULTS.where(finite, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence)
        return state.terminate, result

    def postprocess(
        self,
        fn: Function,
        y: Float[Array, " n"],
        aux: PyTree,
        args: Any,
        options: dict[str, Any],
        state: LBFGSBState,
        tags: frozenset[object],
        result: optx.RESULTS,
    ) -> tuple[Float[Array, " n"], PyTree, dict[str, Any]]:
        return y, aux, {}


def _evaluated(fn: Function, y: Array, args: Any, options: dict[str, Any]) -> tuple[tuple, Array]:
    """Loss and aux, and the gradient."""
    mode = "fwd" if options.get("autodiff_mode", "bwd") == "fwd" else "rev"

    def function(x: Array) -> tuple[Array, PyTree]:
        loss, aux = fn(x, args)
        return loss.astype(y.dtype), aux

    return value_and_gradient(function, mode)(y)


def _bounds(options: dict[str, Any], y: Array) -> Bounds:
    if options.get("lower") is None and options.get("upper") is None:
        return None
    ends = ((options.get("lower"), -jnp.inf), (options.get("upper"), jnp.inf))
    lower, upper = (jnp.full_like(y, x if given is None else given) for given, x in ends)
    return lower, upper


def _is_flat(y: Array, info: Any, records: Records, bounds: Bounds, rtol: Any) -> Bool[Array, ""]:
    size = jnp.where(records.size > 0, records.size, 1)
    small = rtol * jnp.maximum(records.gradient, jnp.abs(info.f) / size)
    return jnp.all(jnp.abs(lbfgsb_model.inward(y, info.grad, bounds)) <= small)
