"""A line search for Wolfe's conditions whose trials are evaluated elsewhere, one at a time.

Where the loss would tell no more than rounding it is for the approximate conditions of Hager and Zhang
(2005, A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .lbfgsb_model import Bounds

ROUNDING = 64  # times the precision of the loss: a change up to there may be rounding

_DECREASE = 1e-4  # of what the slope promises: Armijo's condition
_CURVATURE = 0.9  # of the slope may remain: Wolfe's condition
_PATIENCE = 10  # trials of a search before Armijo's condition is enough
_MOST_TRIALS = 25  # of a search


class Trial(NamedTuple):
    """A point of a line search."""

    step: Float[Array, ""]
    loss: Float[Array, ""]
    slope: Float[Array, ""]


class Search(NamedTuple):
    """A line search from the best point to a target, between two of its trials."""

    target: Float[Array, " n"]  # where a step of one leads
    slope: Float[Array, ""]  # at the best point
    longest: Float[Array, ""]  # step that keeps the bounds
    step: Float[Array, ""]  # of the next trial
    low: Trial  # low enough, and the loss falls from there
    high: Trial  # too high, or the loss rises from there; at infinity while there is none
    trials: Int[Array, ""]
    small: Bool[Array, ""]  # whether a step of one is within the tolerance


def noise(loss: Array) -> Array:
    return ROUNDING * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


def along(search: Search, y: Array, bounds: Bounds) -> Array:
    """The next trial point; with a step of one exactly the target, in spite of rounding."""
    point = y + search.step * (search.target - y)
    point = point if bounds is None else jnp.clip(point, *bounds)
    return jnp.where(search.step == 1, search.target, point)


def _is_low(search: Search, trial: Trial, before: Array) -> Bool[Array, ""]:
    return trial.loss <= before + _DECREASE * trial.step * search.slope


def acceptable(search: Search, trial: Trial, before: Array) -> Bool[Array, ""]:
    enough = (trial.slope >= _CURVATURE * search.slope) | (trial.step >= search.longest)
    enough |= search.trials >= _PATIENCE
    level = trial.loss <= before + noise(before)
    approximate = level & (jnp.abs(trial.slope) <= -_CURVATURE * search.slope)
    return (_is_low(search, trial, before) & enough) | approximate


def after(search: Search, trial: Trial, before: Array) -> Search:
    """The search after a trial, with the step of the next."""
    falls = trial.slope < 0
    # Where losses differ by rounding, slopes still tell on which side the minimum is.
    even = jnp.abs(trial.loss - before) <= noise(before)
    before_minimum = jnp.isfinite(trial.loss) & falls & (even | _is_low(search, trial, before))
    pick = lambda where, x, y: jax.tree.map(lambda a, b: jnp.where(where, a, b), x, y)
    low = pick(before_minimum, trial, search.low)
    high = pick(before_minimum, search.high, trial)
    further = jnp.minimum(_extrapolated(search.low, trial), search.longest)
    step = jnp.where(jnp.isfinite(high.step), _interpolated(low, high), further)
    trials = search.trials + 1
    step = jnp.where((trials >= _PATIENCE) & (low.step > 0), low.step, step)
    narrowed = search._replace(step=step, low=low, high=high, trials=trials)
    return lax.stop_gradient(narrowed)._replace(target=search.target)


def _extrapolated(low: Trial, trial: Trial) -> Float[Array, ""]:
    """By the secant of the slopes, up to ten times as far."""
    bend = trial.slope - low.slope
    ahead = (low.step - trial.step) * trial.slope / jnp.where(bend > 0, bend, 1)
    secant = jnp.where(bend > 0, trial.step + ahead, jnp.inf)
    return jnp.clip(secant, 2 * trial.step, 10 * trial.step)


def _interpolated(low: Trial, high: Trial) -> Float[Array, ""]:
    """By a cubic, or the secant of the slopes where losses differ by rounding; nearer if not finite."""
    width = jnp.where(jnp.isfinite(high.step), high.step - low.step, 1)
    rise = (high.loss - low.loss) / width
    a = low.slope + high.slope - 3 * rise
    root = jnp.sqrt(jnp.maximum(a**2 - low.slope * high.slope, 0))
    cubic = 1 - (high.slope + root - a) / (high.slope - low.slope + 2 * root)
    secant = -low.slope / (high.slope - low.slope)
    even = jnp.abs(high.loss - low.loss) <= noise(low.loss)
    part = jnp.where(even & (high.slope > 0), secant, cubic)
    return low.step + width * jnp.where(jnp.isfinite(part), jnp.clip(part, 0.1, 0.9), 0.25)


def exhausted(search: Search, y: Array) -> Bool[Array, ""]:
    move = search.step * (search.target - y)
    return jnp.all(y + move == y) | (search.trials >= _MOST_TRIALS)
