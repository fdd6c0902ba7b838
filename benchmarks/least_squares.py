"""Least squares beside scipy, lmfit and optimistix, on NIST's regressions."""

from collections.abc import Callable, Sequence

from .subprocesses import measure
from .table import Row
from .timing import Effort

# Times as long as theirs that fitopt may take; None for what is its limit.
_TARGETS = {"trf": 1 / 2, "lm": 1.0, "lmfit": 1 / 3, "optimistix": None}
_TITLES = {
    "fitopt": "fitopt: LeastSquares.run, rtol=1e-8",
    "trf": "scipy: least_squares(method='trf'), jitted exact Jacobian, ftol=xtol=gtol=1e-8",
    "lm": "scipy: least_squares(method='lm'), jitted exact Jacobian, ftol=xtol=gtol=1e-8",
    "lmfit": "lmfit: minimize, jitted residuals, finite differences, ftol=xtol=1.5e-8",
    "lmfit, NumPy": "lmfit: minimize, residuals in NumPy, finite differences, ftol=xtol=1.5e-8",
    "optimistix": "optimistix: least_squares, its LevenbergMarquardt(rtol=1e-8, atol=1e-12), under jit",
}


def nist(effort: Effort) -> list[Row]:
    """All problems, both starts: the median over starts of the time of a fit, warm."""
    names = [] if effort.rounds > 5 else ["Misra1a", "Hahn1", "Thurber", "Rat43"]
    found = measure("benchmarks.regressions", str(max(1, min(7, effort.rounds // 3))), *names)
    ours, _ = found["fitopt"]
    starts = 2 * len(names) if names else 54
    measured = f"NIST's regressions, float64, {starts} starts: median ms of a fit"
    rows = []
    for name, (seconds, solved) in found.items():
        figure = f"{seconds * 1e3:.3f} ({solved} solved to 6 digits)"
        limit = _TARGETS.get(name)
        target = "" if limit is None else f"fitopt takes ≤ {limit:.2g}x as long"
        met = None if limit is None else ours / seconds <= limit
        rows.append(Row(_TITLES[name], measured, figure, seconds / ours, target, met))
    return rows


GROUPS: dict[str, Callable[[Effort], Sequence[Row]]] = {"nist": nist}
