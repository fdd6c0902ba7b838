"""What all ways to fit have in common: callbacks, compiled programs, and the run."""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from jax.extend.core import get_opaque_trace_state

from ..batches import sources_in, traced_sources
from ..callback import Callback, HostCallback, StepInfo, label
from ..history import History
from ..methods.method import Method
from ..state import Layout, PyTree, flatten
from . import resume
from .compiled import Loop, Problem
from .implicit import ADJOINTS, scan_implicitly
from .placement import Placement, placement_of
from .programs import Programs
from .run import Start, run
from .scanned import scan
from .validation import MOST_STEPS, check_callbacks, check_max_steps, nothing_free

State = TypeVar("State", bound=PyTree)

with ThreadPoolExecutor(1) as _pool:  # another thread is under no transformation, whatever this one does
    _NO_TRACE = _pool.submit(get_opaque_trace_state).result()


def is_traced() -> bool:
    """Whether this is called inside jit, vmap or grad."""
    return get_opaque_trace_state() != _NO_TRACE


class Fitter:
    """What an `OptaxOptimizer` and a `LeastSquares` share."""

    _sums_squares = False  # whether what is evaluated are residuals, and no loss yet

    def __init__(self, callback: Any, evaluate: Callable[..., tuple[Any, Any]], method: Method):
        self._callbacks = check_callbacks(callback)
        traced = tuple(c for c in self._callbacks if isinstance(c, Callback))
        hosts = [c for c in self._callbacks if isinstance(c, HostCallback)]
        uses = tuple(name for name in StepInfo._fields if any(name in host.uses for host in hosts))
        self._problem = Problem(evaluate, method, traced, uses)
        self._programs: dict[Any, Programs] = {}
        self._many: dict[Any, Any] = {}  # compiled for many fits at once
        self._derivatives: dict[Any, Any] = {}  # compiled for uncertainties

    def _run(
        self,
        state: State,
        max_steps: int,
        mode: str | None,
        resume_from: Any,
        adjoint: str,
        batches: Any = None,
    ) -> tuple[State, History]:
        max_steps = check_max_steps(max_steps)
        if adjoint not in ADJOINTS:
            raise ValueError(f'adjoint must be "unrolled" or "implicit", got {adjoint!r}')
        flat = flatten(state)
        if not flat.free:
            raise ValueError(nothing_free(state))
        if is_traced():
            if resume_from is not None:
                raise TypeError("resume_from does not work inside jit, vmap or grad")
            self._check_all_traced()
            if max_steps == MOST_STEPS:
                raise TypeError("max_steps must be given inside jit, vmap or grad")
            loop = Loop(self._problem, flat.layout, mode)
            constants = self._problem.constants(flat, traced_sources(batches))
            if adjoint == "implicit":
                if batches is not None:
                    raise TypeError('adjoint="implicit" needs one loss for all steps, and no batches')
                given = self._problem, flat.layout, mode, constants, max_steps
                fit = scan_implicitly(*given, self._sums_squares)
            else:
                fit = scan(loop, constants, max_steps)
            return flat.layout.state(fit.values, flat.fixed), fit.history(loop, batches)
        placement = placement_of(flat, (sources_in(batches), self._problem.callbacks))
        programs_for = functools.partial(self._programs_for, mode=mode, placement=placement)
        start = Start(programs_for, self._callbacks, state, flat, max_steps, batches, placement)
        for earlier in itertools.chain(resume.points(resume_from), [None]):
            fitted = run(start, earlier)
            if fitted is not None:
                return fitted
        raise AssertionError("a fit that begins anew either ends or raises")

    def _programs_for(
        self, layout: Layout, mode: str | None, placement: Placement | None = None
    ) -> Programs:
        programs = self._programs.get((layout, mode, placement))
        if programs is None:
            loop = Loop(self._problem, layout, mode, stacks=placement is None)
            programs = Programs(loop, placement)
            programs = self._programs.setdefault((layout, mode, placement), programs)
        return programs

    def _check_all_traced(self) -> None:
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callback {label(callback)} runs in Python, which a fit inside jit, vmap or grad "
                    "cannot visit; use traced callbacks (fitopt.Callback) there"
                )
