"""What all ways to fit have in common."""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import PyTree

from ..callback import Callback, HostCallback, StepInfo, label
from ..history import History
from ..methods.method import MakeStepper
from ..state import Flat, Layout, flatten
from ..storage.checkpoint import points
from .compiled import Endings, Loop, Problem, Programs
from .resume import BadPoint
from .run import Run
from .validation import (
    check_callbacks,
    check_max_steps,
    nothing_free,
)

if TYPE_CHECKING:
    pass

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
