"""Fit again with some entries held at given values: what profile likelihoods are made of."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from . import covariance, notes
from .entries import Entries, precision_of
from .likelihood import Likelihood
from .partition import Layout

_MOST_STEPS = 100
_BETTER = 1e-2  # of the unit: what is less than the best by more is another minimum


class Found(NamedTuple):
    """Where a fit has ended."""

    loss: Any
    moves: Any  # of the coordinates, from where the state is
    values: Any  # of the entries
    converged: Any


def refit_program(
    evaluate: Callable[[Any], tuple[Any, Any]],
    squares: bool,
    entries: Entries,
    layout: Layout,
    mode: str | None,
) -> Callable[..., Found]:
    """Compile a fit from `base`, with steps in units of the columns of `axes`.

    `held` says which entries stay at `targets`; it is traced, so one program does for all of them.
    `unit` is the rise of the loss that counts as one, and `best` about its least value.
    """
    import optimistix as optx  # takes as long to import as jax

    @jax.jit
    def program(
        free: Sequence[Array],
        fixed: Sequence[Any],
        base: Float[Array, " moves"],
        axes: Float[Array, "moves moves"],
        held: Bool[Array, " entries"],
        targets: Float[Array, " entries"],
        unit: Float[Array, ""],
        best: Float[Array, ""],
    ) -> Found:
        pairs = zip(layout.specs, free, strict=True)
        coordinates = [spec.to_coordinate(value) for spec, value in pairs]

        def values(steps: Array) -> list[Array]:
            values = entries.from_coordinates(free, coordinates, base + axes @ steps)
            return entries.write(values, jnp.where(held, targets, entries.read(values)))

        def output(steps: Array) -> Array:
            output = evaluate(layout.plain(values(steps), fixed))[0]
            return ravel_pytree(output)[0] if squares else output

        start = jnp.zeros_like(base)
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
            base + axes @ solution.value,
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
        inside, others = entries.moves_of(~likelihood.held), entries.moves_of(~self._held)
        per_unit = 1 / likelihood.slopes[:, None]
        inverse = likelihood.information.inverse(inside & others, likelihood.tolerance)
        axes = likelihood.spread * np.concatenate([inverse.factor, inverse.open], axis=1) * per_unit
        axes = np.concatenate([axes, np.eye(entries.n_moves)[:, ~inside & others]], axis=1)
        self._axes = np.pad(axes, ((0, 0), (0, entries.n_moves - axes.shape[1])))
        # How the others follow those held, to first order.
        inverse = likelihood.information.inverse(inside, likelihood.tolerance)
        determined = ~covariance.is_open(inverse, likelihood.tolerance)[:, None]
        own = np.where(determined, inverse.factor, 0.0)[entries.move_of[self._rows]]
        self._follow = inverse.factor @ np.linalg.pinv(own) * per_unit
        self._known: list[tuple[np.ndarray, np.ndarray]] = []
        if rows:
            self._known.append((likelihood.best.values[self._rows], likelihood.best.moves))
        self._fits, self._failures = 0, 0
        self._lowest: tuple[float, tuple[float, ...]] = (0.0, ())

    def __call__(self, held_at: Float[np.ndarray, " rows"]) -> Found:
        """The least loss with the entries held there."""
        likelihood = self._likelihood
        base = np.zeros(likelihood.entries.n_moves)
        if self._known:
            sizes = [likelihood.size(row) for row in self._rows]
            apart = [np.linalg.norm((held_at - where) / sizes) for where, _ in self._known]
            where, moves = self._known[int(np.argmin(apart))]
            base = moves + self._follow @ (held_at - where)
        targets = np.zeros(self._held.size)
        targets[self._rows] = held_at
        given = base, self._axes, self._held, targets, likelihood.unit, likelihood.loss
        dtype, flat = likelihood.entries.dtype, likelihood.flat
        given = [x if x is self._held else np.asarray(x, dtype) for x in given]
        with precision_of(flat.free):
            found = jax.device_get(likelihood.program()(likelihood.start, flat.fixed, *given))
        found = Found(
            float(found.loss),
            found.moves.astype(float),
            found.values.astype(float),
            bool(found.converged),
        )
        self._fits += 1
        self._failures += not found.converged
        if np.isfinite(found.loss):
            self._known.append((held_at, found.moves))
        return found

    def height(self, held_at: Float[np.ndarray, " rows"]) -> float:
        """The rise of the loss as a number of standard errors."""
        rise = (self(held_at).loss - self._likelihood.best.loss) / self._likelihood.unit
        if not np.isfinite(rise):
            return np.inf
        self._lowest = min(self._lowest, (float(rise), tuple(held_at.tolist())))
        return float(max(rise, 0.0)) ** 0.5

    def messages(self, what: str) -> tuple[str, ...]:
        """What went wrong on the way; another minimum is warned of as well."""
        said = []
        if self._failures:
            said.append(f"{what}: {self._failures} of {self._fits} refits did not converge")
        rise, held_at = self._lowest
        if rise < -_BETTER:
            names = [self._likelihood.entries.names[row] for row in self._rows]
            where = notes.listed([f"{n} = {x:.6g}" for n, x in zip(names, held_at, strict=True)])
            said.append(
                f"{what}: there is a better minimum, the loss with {where} is "
                f"{-rise * self._likelihood.unit:.3g} less; fit again from there"
            )
            warnings.warn(said[-1], RuntimeWarning, stacklevel=5)
        return tuple(said)
