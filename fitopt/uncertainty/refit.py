"""Fit again with some entries held at given values: what profile likelihoods are made of."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ..state import Layout
from . import covariance, notes
from .entries import Entries, precision_of
from .likelihood import Likelihood

_MOST_STEPS = 500
_BETTER = 1e-2  # of the unit: what is less than the best by more is another minimum


class Found(NamedTuple):
    """Where a fit has ended."""

    loss: Any
    values: Any  # of the entries
    converged: Any


def refit_program(
    evaluate: Callable[[Any], tuple[Any, Any]],
    squares: bool,
    entries: Entries,
    layout: Layout,
    mode: str | None,
) -> Callable[..., Found]:
    """Compile a fit that starts at the entries `base`, with steps in units of the columns of `axes`.

    `held` says which entries stay at `targets`; it is traced, so one program does for all of them.
    `unit` is the rise of the loss that counts as one, and `best` about its least value.
    """
    import optimistix as optx  # takes as long to import as jax

    @jax.jit
    def program(
        free: Sequence[Array],
        fixed: Sequence[Any],
        base: Float[Array, " entries"],
        axes: Float[Array, "moves moves"],
        held: Bool[Array, " entries"],
        targets: Float[Array, " entries"],
        unit: Float[Array, ""],
        best: Float[Array, ""],
    ) -> Found:
        free = entries.write(free, base)
        pairs = zip(layout.specs, free, strict=True)
        coordinates = [spec.to_position(value) for spec, value in pairs]
        directions = axes / entries.units(free)[:, None]

        def values(steps: Array) -> list[Array]:
            values = entries.from_coordinates(free, coordinates, directions @ steps)
            return entries.write(values, jnp.where(held, targets, entries.read(values)))

        def output(steps: Array) -> Array:
            output = evaluate(layout.plain(values(steps), fixed))[0]
            return ravel_pytree(output)[0] if squares else output

        start = jnp.zeros(axes.shape[1], axes.dtype)
        precision = float(jnp.finfo(base.dtype).eps)
        tolerances = {"rtol": precision**0.5, "atol": precision**0.4}
        forward = mode == "fwd"
        if squares:
            idle = jnp.all(axes == 0, axis=0)  # the Jacobian must stay regular
            scaled = lambda steps, _: (output(steps) / jnp.sqrt(unit), jnp.where(idle, steps, 0))
            height = lambda steps: sum(jnp.sum(x**2) for x in scaled(steps, None)) / 2
            if mode is None:
                forward = start.size <= jax.eval_shape(output, start).size
            options = {"jac": "fwd" if forward else "bwd"}
            solver: Any = optx.LevenbergMarquardt(**tolerances)
            solve: Any = optx.least_squares
        else:
            scaled = lambda steps, _: (output(steps) - best) / (2 * unit)
            height = lambda steps: scaled(steps, None)
            options = {"autodiff_mode": "fwd" if forward else "bwd"}
            solver, solve = optx.BFGS(**tolerances), optx.minimise
        solution = solve(scaled, solver, start, options=options, max_steps=_MOST_STEPS, throw=False)
        last = output(solution.value)
        # Coordinates of entries on a bound go on for ever, and nothing changes by that.
        slope = (jax.jacfwd if forward else jax.grad)(height)(solution.value)
        flat = jnp.max(jnp.abs(slope)) < precision**0.2
        return Found(
            jnp.sum(jnp.square(last)) if squares else last,
            entries.read(values(solution.value)),
            (solution.result == optx.RESULTS.successful) | flat,
        )

    return program


class Walk:
    """Fits with the same entries held, each of them begun from what the nearest has found."""

    def __init__(self, likelihood: Likelihood, rows: Sequence[int]):
        self._likelihood, self._rows = likelihood, list(rows)
        entries = likelihood.entries
        self._held = np.zeros(len(entries.names), bool)
        self._held[self._rows] = True
        off_bound, others = entries.moves_of(~likelihood.held), entries.moves_of(~self._held)
        inverse = likelihood.information.inverse(off_bound & others, likelihood.tolerance)
        axes = likelihood.spread * np.concatenate([inverse.factor, inverse.open], axis=1)
        sizes = np.zeros(entries.n_moves)
        sizes[entries.move_of[entries.move_of >= 0]] = likelihood.margin[entries.move_of >= 0]
        axes = np.concatenate([axes, np.diag(sizes)[:, ~off_bound & others]], axis=1)
        self._axes = np.pad(axes, ((0, 0), (0, entries.n_moves - axes.shape[1])))
        self._follow = self._following(off_bound) if rows else np.zeros((len(entries.names), 0))
        best = likelihood.best if rows else None
        start = likelihood.values if best is None else best.values
        self._known = [(start[self._rows], start)]
        self._fits, self._failures = 0, 0
        self._lowest: tuple[float, tuple[float, ...]] = (0.0, ())

    def _following(self, off_bound: Bool[np.ndarray, " moves"]) -> Float[np.ndarray, "entries rows"]:
        """How the others follow those held, to first order."""
        likelihood, move = self._likelihood, self._likelihood.entries.move_of
        inverse = likelihood.information.inverse(off_bound, likelihood.tolerance)
        determined = ~covariance.is_open(inverse, likelihood.tolerance)[:, None]
        own = np.where(determined, inverse.factor, 0.0)[move[self._rows]]
        return np.where(move[:, None] >= 0, (inverse.factor @ np.linalg.pinv(own))[move], 0.0)

    def __call__(self, held_at: Float[np.ndarray, " rows"]) -> Found:
        """The least loss with the entries held there."""
        likelihood, entries = self._likelihood, self._likelihood.entries
        sizes = [likelihood.size(row) for row in self._rows]
        apart = [np.linalg.norm((held_at - where) / sizes) for where, _ in self._known]
        where, values = self._known[int(np.argmin(apart))]
        base = values + self._follow @ (held_at - where)
        # Close to a bound coordinates hardly move values: no fit would ever leave it.
        inner = entries.lower + likelihood.margin, entries.upper - likelihood.margin
        base = np.where(entries.move_of >= 0, np.clip(base, *inner), values)
        targets = np.zeros(self._held.size)
        targets[self._rows] = held_at
        targets = np.clip(targets, entries.lower, entries.upper)  # rounding may have led beyond
        flat, dtype = likelihood.flat, entries.dtype
        numbers = [np.asarray(x, dtype) for x in (targets, likelihood.unit, likelihood.loss)]
        with precision_of(flat.free):
            found = jax.device_get(
                likelihood.program()(
                    flat.free,
                    flat.fixed,
                    base.astype(dtype),
                    self._axes.astype(dtype),
                    self._held,
                    *numbers,
                )
            )
        found = Found(float(found.loss), found.values.astype(float), bool(found.converged))
        self._fits += 1
        self._failures += not found.converged
        if np.isfinite(found.loss):
            self._known.append((held_at, found.values))
        return found

    def height(self, held_at: Float[np.ndarray, " rows"]) -> float:
        """The rise of the loss as a number of standard errors."""
        rise = (self(held_at).loss - self._likelihood.best.loss) / self._likelihood.unit
        if not np.isfinite(rise):
            return np.inf
        self._lowest = min(self._lowest, (float(rise), tuple(held_at.tolist())))
        return float(max(rise, 0.0)) ** 0.5

    def messages(self, what: str, stacklevel: int) -> tuple[str, ...]:
        """What went wrong on the way; another minimum is warned of as well."""
        said = []
        likelihood = self._likelihood
        if likelihood.best.loss < likelihood.loss - _BETTER * likelihood.unit:
            said.append(
                f"{what}: it is around a minimum whose loss is "
                f"{likelihood.loss - likelihood.best.loss:.3g} less than that of the state; fit on first"
            )
        if self._failures:
            said.append(f"{what}: {self._failures} of {self._fits} refits did not converge")
        rise, held_at = self._lowest
        if rise < -_BETTER:
            names = [likelihood.entries.names[row] for row in self._rows]
            where = notes.listed([f"{n} = {x:.6g}" for n, x in zip(names, held_at, strict=True)])
            said.append(
                f"{what}: there is a better minimum, the loss with {where} is "
                f"{-rise * likelihood.unit:.3g} less; fit again from there"
            )
            warnings.warn(said[-1], RuntimeWarning, stacklevel=stacklevel)
        return tuple(said)
