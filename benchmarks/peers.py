"""Other ways to run the first problem: other libraries, and a Python loop by hand.

All make the same updates (adam, the same data and start), as many as fitopt does unless their row says
otherwise. None does all that fitopt does at once: each is compared with the run of fitopt that does the
same or more, and its row says what it returns besides the parameters.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax

from .engine import GUARDED, PLAIN, fit, fit_with
from .problems import OPTIMIZER, Problem, exponential, step_by_hand
from .table import Row
from .timing import Effort, Timings, interleave

_STEPS = 20_000
Fit = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and what to call it with


class Peer(NamedTuple):
    """One way to fit, and how much of it to time."""

    name: str
    package: str | None
    prepare: Callable[[Problem], Fit]
    steps: int = _STEPS
    note: str = ""
    jit: bool = False  # wrap it in the user's own jit
    beside: str = PLAIN  # the run of fitopt to compare with
    times: float | None = 1.0  # by how much that should be faster; None to show the figure alone

    def ready(self, effort: Effort) -> Callable[[], Any]:
        """The whole fit; returns when the result is there."""
        function, arguments = self.prepare(exponential(effort.steps(self.steps)))
        function = jax.jit(function) if self.jit else function
        return lambda: jax.block_until_ready(function(*arguments))

    def title(self) -> str:
        """The name, with the version that ran."""
        library, _, rest = self.name.partition(": ")
        return f"{library} {version(self.package)}: {rest}" if self.package else self.name


def python_loop(problem: Problem) -> Fit:
    """A jitted step, called from Python."""
    step = jax.jit(step_by_hand(problem))

    def run(params: Any, data: Any) -> Any:
        state, losses = OPTIMIZER.init(params), []
        for _ in range(problem.steps):
            params, state, loss = step(params, state, data)
            losses.append(loss)
        return params, losses

    return run, (problem.params, problem.data)


def tvboptim_loop(problem: Problem) -> Fit:
    """Its Python loop; its StopConvergenceCallback cannot be made with NumPy 2, so StopLossCallback."""
    optimizer, state = _tvboptim(problem, _tvboptim_callbacks())
    return lambda state: optimizer.run(state, max_steps=problem.steps), (state,)


def tvboptim_fused(problem: Problem) -> Fit:
    """Its scan over all steps, with one visit to the same callbacks at the end."""
    optimizer, state = _tvboptim(problem, _tvboptim_callbacks())
    steps = problem.steps
    return lambda state: optimizer.run(state, max_steps=steps, chunk_size=steps), (state,)


def tvboptim_fused_alone(problem: Problem) -> Fit:
    """Its scan over all steps, without callbacks: with one it does not run inside a jit."""
    optimizer, state = _tvboptim(problem, None)
    steps = problem.steps
    return lambda state: optimizer.run(state, max_steps=steps, chunk_size=steps), (state,)


def _tvboptim_callbacks() -> Any:
    from tvboptim.optim.callbacks import MultiCallback, SavingLossCallback, StopLossCallback

    return MultiCallback([SavingLossCallback(), StopLossCallback(stop_loss=0.0)])


def _tvboptim(problem: Problem, callback: Any) -> tuple[Any, Any]:
    """Its optimizer, and the state to start from."""
    from tvboptim.optim.optax import OptaxOptimizer
    from tvboptim.types.parameter import Parameter

    params = {name: Parameter(value) for name, value in problem.params.items()}
    return OptaxOptimizer(problem.loss, OPTIMIZER, callback), {**params, **problem.data}


def gpjax_fit(problem: Problem) -> Fit:
    """Its `fit`, which scans; without its progress bar."""
    import equinox as eqx
    import gpjax

    class Model(eqx.Module):
        params: dict[str, Any]

    def objective(model: Any, data: Any) -> Any:
        return problem.loss({**model.params, "t": data.X[:, 0], "y": data.y[:, 0]})

    def run(model: Any, data: Any) -> Any:
        return gpjax.fit(
            model=model,
            objective=objective,
            train_data=data,
            optim=OPTIMIZER,
            num_iters=problem.steps,
            verbose=False,
        )

    t, y = problem.data["t"], problem.data["y"]
    return run, (Model(problem.params), gpjax.Dataset(X=t[:, None], y=y[:, None]))


def optimistix_minimiser(problem: Problem) -> Fit:
    """`OptaxMinimiser` with tolerances that are never met."""
    import optimistix

    objective = _of_two(problem)
    solver = optimistix.OptaxMinimiser(OPTIMIZER, rtol=0.0, atol=0.0)

    def run(params: Any, data: Any) -> Any:
        solution = optimistix.minimise(
            objective, solver, params, args=data, max_steps=problem.steps, throw=False
        )
        return solution.value

    return run, (problem.params, problem.data)


def jaxopt_solver(problem: Problem) -> Fit:
    """`OptaxSolver` with a tolerance that is never met."""
    import jaxopt

    solver = jaxopt.OptaxSolver(_of_two(problem), OPTIMIZER, maxiter=problem.steps, tol=0.0)
    return solver.run, (problem.params, problem.data)


def _of_two(problem: Problem) -> Callable[[Any, Any], Any]:
    return lambda params, data: problem.loss({**params, **data})


_ANEW = ", compiled at each call"
_LOOP = "tvboptim: loop, SavingLossCallback, StopLossCallback"
_TVB = "tvboptim: fused mode, no losses"
_GPJAX = "GPJax: fit, losses"
_OPTX = "optimistix: OptaxMinimiser, no losses"
_JAXOPT = "jaxopt: OptaxSolver, no losses"
_JIT = ", in the user's jit"

SLOW = (
    Peer(_LOOP, "tvboptim", tvboptim_loop, 1_000, _ANEW, beside=GUARDED, times=300.0),
    Peer(_TVB, "tvboptim", tvboptim_fused, note=_ANEW, beside=GUARDED),
    Peer(_GPJAX, "gpjax", gpjax_fit, note=_ANEW, beside=GUARDED),
    Peer("Python loop over a jitted step: losses", None, python_loop, 2_000, beside=GUARDED),
)
FAST = (
    Peer(_OPTX, "optimistix", optimistix_minimiser),
    Peer(_JAXOPT, "jaxopt", jaxopt_solver),
    Peer(_TVB, "tvboptim", tvboptim_fused_alone, note=_JIT, jit=True, times=None),
    Peer(_GPJAX, "gpjax", gpjax_fit, note=_JIT, jit=True, times=None),
    Peer(_OPTX, "optimistix", optimistix_minimiser, note=_JIT, jit=True, times=None),
    Peer(_JAXOPT, "jaxopt", jaxopt_solver, note=_JIT, jit=True, times=None),
)


def compare(effort: Effort) -> list[Row]:
    """Each peer beside fitopt; the ratio says how many times longer its steps take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPJax asks for double precision
        return [*_compare(SLOW, effort), *_compare(FAST, effort)]


def _compare(peers: tuple[Peer, ...], effort: Effort) -> list[Row]:
    problem = exponential(effort.steps(_STEPS))
    ours = {GUARDED: fit(problem), PLAIN: fit_with(problem)}
    theirs, missing = {}, {}
    for peer in peers:
        try:
            theirs[peer.name + peer.note] = peer.ready(effort)
        except ImportError as error:
            missing[peer] = _reason(peer, error)
    timings = interleave({**ours, **theirs}, effort)
    rows = [Row(name, *_measured(name, _STEPS, "", timings, effort)) for name in ours]
    for peer in peers:
        if peer in missing:
            rows.append(Row(peer.name, "", missing[peer]))
        else:
            rows.append(_row(peer, timings, effort))
    return rows


def _row(peer: Peer, timings: Timings, effort: Effort) -> Row:
    name = peer.name + peer.note
    ratio = timings.ratio(name, peer.beside) * effort.steps(_STEPS) / effort.steps(peer.steps)
    measured = _measured(name, peer.steps, peer.note, timings, effort)
    beside = f"fitopt {'with' if peer.beside == GUARDED else 'without'} callbacks"
    if peer.times is None:
        return Row(peer.title(), *measured, ratio, f"none (beside {beside})")
    return Row(peer.title(), *measured, ratio, f"> {peer.times:g}x {beside}", ratio > peer.times)


def _measured(name: str, steps: int, note: str, timings: Timings, effort: Effort) -> tuple[str, str]:
    steps = effort.steps(steps)
    median, least = (of(name) * 1e6 / steps for of in (timings.median, timings.least))
    return f"{steps:,} steps{note}: µs a step (least)", f"{median:.2f} ({least:.2f})"


def _reason(peer: Peer, error: ImportError) -> str:
    try:
        return f"{version(peer.package or '')} cannot be imported: {error}"
    except (PackageNotFoundError, ValueError):
        return "not installed"
