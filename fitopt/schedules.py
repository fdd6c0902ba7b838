"""Learning-rate schedules: functions from the step, counted from 0, to the learning rate.

They are optax schedules: give one to any optimizer in the place of its learning rate, as in
`optax.adam(cosine_annealing(0.1, T_max=500))`. Any optax schedule, and any function of your own that
JAX can trace, works in the same place. Arguments have torch's names and defaults, or braintools' where
torch has no such schedule. Learning rates are in the optimizer's units, all lengths in steps. Beyond
its end, a schedule keeps its last value; the first two cosines and `cyclic` go on for ever.

==============================================  ===================================================
torch.optim.lr_scheduler, braintools.optim      fitopt.schedules
==============================================  ===================================================
StepLR, MultiStepLR, ExponentialLR              step, multi_step, exponential
LinearLR, PolynomialLR                          linear, polynomial
ConstantLR(factor, total_iters)                 piecewise_constant(lr * factor, [total_iters], [lr])
CosineAnnealingLR, CosineAnnealingWarmRestarts  cosine_annealing, cosine_warm_restarts
CyclicLR, OneCycleLR                            cyclic, one_cycle
ChainedScheduler, SequentialLR                  chained, sequential
LambdaLR, MultiplicativeLR                      any function of the step
ReduceLROnPlateau                               a callback, since it has to see the loss
ExponentialDecayLR                              exponential_decay
PiecewiseConstantSchedule(lr, steps, values)    piecewise_constant(values[0], steps, values[1:])
WarmupScheduler(lr, warmup_epochs)              warmup(lr, warmup_steps)
WarmupCosineSchedule                            warmup_cosine; its cosine stays down
==============================================  ===================================================

**Raises:** `TypeError` for the kind of an argument, `ValueError` for its value; both name it. Learning
rates may be traced, for a fit inside `vmap` over `lr`; these are not checked.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from optax import Schedule

from .optimizers import arguments
from .plotting.histories import new_axes, tidy, unused_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# fmt: off
__all__ = [
    "chained", "constant", "cosine_annealing", "cosine_warm_restarts", "cyclic", "exponential",
    "exponential_decay", "linear", "multi_step", "one_cycle", "piecewise_constant", "plot", "polynomial",
    "sequential", "step", "warmup", "warmup_cosine",
]
# fmt: on

Rate = ArrayLike  # a learning rate: a number of at least 0, or a traced one

_HEIGHTS: dict[str, Callable[[Any, Any, float], Any]] = {
    "triangular": lambda step, cycle, gamma: 1.0,
    "triangular2": lambda step, cycle, gamma: jnp.power(0.5, cycle),
    "exp_range": lambda step, cycle, gamma: jnp.power(gamma, step),
}
_SHAPES: dict[str, Callable[[Any], Any]] = {
    "cos": lambda fraction: (1 - jnp.cos(jnp.pi * fraction)) / 2,
    "linear": lambda fraction: fraction,
}

_from_zero = partial(arguments.whole, least=0)
_schedule = partial(arguments.function, of="the step")

# What an argument must be goes by its name, which means the same in all schedules.
_checked = arguments.checked(
    {
        "lr base_lr max_lr warmup_start_lr eta_min end_value start_factor end_factor": arguments.number,
        "gamma decay_rate power div_factor final_div_factor": arguments.positive,
        "pct_start": arguments.real,
        "n_steps step_size T_max T_0 T_mult total_iters total_steps decay_steps": arguments.whole,
        "step_size_up step_size_down": arguments.whole,
        "warmup_steps transition_begin": _from_zero,
        "milestones": lambda name, xs: arguments.each(name, xs, _from_zero, "integers"),
        "boundaries": arguments.increasing,
        "values": lambda name, xs: arguments.each(name, xs, arguments.number, "numbers"),
        "mode": lambda name, x: arguments.one_of(name, x, _HEIGHTS),
        "anneal_strategy": lambda name, x: arguments.one_of(name, x, _SHAPES),
        "schedule": _schedule,
        "schedules": lambda name, xs: arguments.each(name, xs, _schedule, "schedules"),
    }
)


def _between(start: Rate, end: Rate, weight: Any) -> Any:
    return start * (1 - weight) + end * weight  # unlike start + (end - start) * weight, exact at the end


def _fraction(step: Any, steps: float) -> Any:
    # XLA divides by a constant as it likes: 49 / 49 may miss 1. An int32 would give a float32 under x64.
    return jnp.where(step < steps, step * 1.0 / (steps or 1), 1.0)


def _ramp(start: Rate, end: Rate, steps: float, shape: str = "linear") -> Schedule:
    """From `start` at step 0 to `end`, which it keeps."""
    return lambda step: _between(start, end, _SHAPES[shape](_fraction(step, steps)))


def _join(schedules: Sequence[Schedule], milestones: Sequence[float]) -> Schedule:
    """As `optax.join_schedules`, which also calls schedules at steps before their 0."""

    def schedule(step: Any) -> Any:
        rate = schedules[0](step)
        for milestone, after in zip(milestones, schedules[1:], strict=True):
            rate = jnp.where(step < milestone, rate, after(jnp.maximum(step - milestone, 0)))
        return rate

    return schedule


@_checked
def constant(lr: Rate) -> Schedule:
    """The learning rate `lr` at every step: `optax.constant_schedule`.

    >>> constant(0.1)(1000)
    0.1
    """
    return optax.constant_schedule(lr)


@_checked
def step(lr: Rate, step_size: int, gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` after every `step_size` steps.

    >>> step(1.0, step_size=10, gamma=0.5)(jnp.array([9, 10, 20])).tolist()
    [1.0, 0.5, 0.25]
    """
    return exponential_decay(lr, step_size, gamma, staircase=True)


@_checked
def multi_step(lr: Rate, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` at each of the steps `milestones`.

    Milestones may come in any order; one that is given twice counts twice.

    >>> multi_step(1.0, milestones=[10, 15], gamma=0.5)(jnp.array([9, 10, 15])).tolist()
    [1.0, 0.5, 0.25]
    """
    scales = {milestone: gamma**times for milestone, times in Counter(milestones).items()}
    return optax.piecewise_constant_schedule(lr, scales)


@_checked
def piecewise_constant(lr: Rate, boundaries: Sequence[int], values: Sequence[Rate]) -> Schedule:
    """`lr` before the first of the steps `boundaries`; from each of them on, its entry of `values`.

    >>> piecewise_constant(1.0, [10, 15], values=[0.5, 0.125])(jnp.array([9, 10, 15])).tolist()
    [1.0, 0.5, 0.125]
    """
    if len(values) != len(boundaries):
        raise ValueError(f"values must be {len(boundaries)}, one a boundary, got {values!r}")
    return _join([optax.constant_schedule(rate) for rate in (lr, *values)], boundaries)


@_checked
def exponential(lr: Rate, gamma: float) -> Schedule:
    """`lr * gamma**step`, without end where `gamma` is above 1.

    >>> exponential(1.0, gamma=0.5)(jnp.array([0, 1, 2])).tolist()
    [1.0, 0.5, 0.25]
    """
    return exponential_decay(lr, 1, gamma)


@_checked
def exponential_decay(
    lr: Rate,
    decay_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Rate | None = None,
) -> Schedule:
    """`lr * decay_rate ** ((step - transition_begin) / decay_steps)`, as `optax.exponential_decay`.

    It is `lr` until step `transition_begin` and never passes `end_value`. With `staircase`, the exponent
    is rounded down.

    >>> exponential_decay(1.0, 10, decay_rate=0.25, end_value=0.125)(jnp.array([5, 10, 30])).tolist()
    [0.5, 0.25, 0.125]
    """
    stop, limit = (jnp.maximum, 0.0) if decay_rate < 1 else (jnp.minimum, math.inf)
    limit = limit if end_value is None else end_value

    def schedule(step: Any) -> Any:
        later = jnp.maximum(step - transition_begin, 0)
        exponent = later // decay_steps if staircase else later * 1.0 / decay_steps
        return stop(lr * jnp.power(decay_rate, exponent), limit)

    return schedule


@_checked
def linear(
    lr: Rate, start_factor: Rate = 1 / 3, end_factor: Rate = 1.0, total_iters: int = 5
) -> Schedule:
    """From `lr * start_factor` straight to `lr * end_factor` in `total_iters` steps.

    >>> linear(1.0, start_factor=1.0, end_factor=0.5, total_iters=10)(jnp.array([0, 5, 10])).tolist()
    [1.0, 0.75, 0.5]
    """
    return _ramp(lr * start_factor, lr * end_factor, total_iters)


@_checked
def polynomial(lr: Rate, total_iters: int = 5, power: float = 1.0) -> Schedule:
    """`lr * (1 - step / total_iters) ** power`, then 0.

    >>> polynomial(1.0, total_iters=10, power=2.0)(jnp.array([0, 5, 10])).tolist()
    [1.0, 0.25, 0.0]
    """
    return lambda step: lr * (1 - _fraction(step, total_iters)) ** power


@_checked
def cosine_annealing(lr: Rate, T_max: int, eta_min: Rate = 0.0) -> Schedule:
    """Half a cosine from `lr` down to `eta_min` in `T_max` steps, then up again, and so on.

    **Source:** Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    >>> cosine_annealing(1.0, T_max=10)(jnp.array([0, 5, 10, 15])).round(4).tolist()
    [1.0, 0.5, 0.0, 0.5]
    """
    cosine = lambda phase: _between(lr, eta_min, _SHAPES["cos"](phase * 1.0 / T_max))
    return lambda step: cosine(jnp.remainder(step, 2 * T_max))


@_checked
def cosine_warm_restarts(lr: Rate, T_0: int, T_mult: int = 1, eta_min: Rate = 0.0) -> Schedule:
    """Half a cosine from `lr` down to `eta_min` in `T_0` steps, then from `lr` again, and so on.

    Each of these cycles is `T_mult` times as long as the one before.

    **Source:** Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    >>> cosine_warm_restarts(1.0, T_0=10, T_mult=2)(jnp.array([5, 10, 20, 30])).round(4).tolist()
    [0.5, 1.0, 0.5, 1.0]
    """
    # All restarts that an int32 can count to: a logarithm would miss some of them by a step.
    restarts = [0]
    while T_mult > 1 and (restart := T_0 + T_mult * restarts[-1]) < 2**31:
        restarts.append(restart)

    def schedule(step: Any) -> Any:
        if T_mult == 1:
            start = jnp.floor_divide(step, T_0) * T_0
        else:
            table = jnp.array(restarts)
            start = table[jnp.searchsorted(table, step, side="right", method="compare_all") - 1]
        length = T_0 + start * (T_mult - 1.0)
        return _between(lr, eta_min, _SHAPES["cos"]((step - start) / length))

    return schedule


@_checked
def warmup(lr: Rate, warmup_steps: int, warmup_start_lr: Rate = 0.0) -> Schedule:
    """From `warmup_start_lr` straight to `lr` in `warmup_steps` steps, then `lr`.

    >>> warmup(1.0, warmup_steps=10)(jnp.array([0, 5, 10, 99])).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    return _ramp(warmup_start_lr, lr, warmup_steps)


@_checked
def warmup_cosine(
    lr: Rate, warmup_steps: int, total_steps: int, warmup_start_lr: Rate = 0.0, eta_min: Rate = 0.0
) -> Schedule:
    """`warmup`, then half a cosine down to `eta_min`, which it reaches at step `total_steps`.

    >>> warmup_cosine(1.0, warmup_steps=10, total_steps=30)(jnp.array([5, 10, 20, 30])).round(4).tolist()
    [0.5, 1.0, 0.5, 0.0]
    """
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps must be above warmup_steps ({warmup_steps}), got {total_steps}")
    rise, fall = warmup(lr, warmup_steps, warmup_start_lr), total_steps - warmup_steps
    return _join([rise, _ramp(lr, eta_min, fall, "cos")], [warmup_steps])


@_checked
def cyclic(
    base_lr: Rate,
    max_lr: Rate,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    """Up from `base_lr` to `max_lr` in `step_size_up` steps, down in `step_size_down`, and so on.

    `step_size_down` is `step_size_up` if not given. The height above `base_lr` stays the same
    (`"triangular"`), halves with every cycle (`"triangular2"`), or is multiplied by `gamma`, at most 1,
    with every step (`"exp_range"`).
    **Source:** Smith 2017, https://arxiv.org/abs/1506.01186

    >>> cyclic(0.0, 1.0, step_size_up=10, mode="triangular2")(jnp.array([5, 10, 20, 30])).tolist()
    [0.5, 1.0, 0.0, 0.5]
    """
    if gamma > 1:
        raise ValueError(f"gamma must be at most 1, got {gamma}")
    up, down = step_size_up, step_size_down or step_size_up

    def schedule(step: Any) -> Any:
        cycle, phase = jnp.divmod(step, up + down)
        triangle = jnp.minimum(_fraction(phase, up), _fraction(up + down - phase, down))
        return _between(base_lr, max_lr, triangle * _HEIGHTS[mode](step, cycle, gamma))

    return schedule


@_checked
def one_cycle(
    max_lr: Rate,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up from `max_lr / div_factor` to `max_lr`, then down to `max_lr / div_factor / final_div_factor`.

    The rise takes the fraction `pct_start` of the `total_steps` steps. With `three_phase`, at most half:
    as many steps lead back to the start, and the others further down.
    **Source:** Smith & Topin 2018, https://arxiv.org/abs/1708.07120

    >>> one_cycle(1.0, total_steps=110, div_factor=4.0)(jnp.array([0, 32, 109])).round(4).tolist()
    [0.25, 1.0, 0.0]
    """
    if pct_start > (most := 0.5 if three_phase else 1):
        phases = " with three_phase" * three_phase
        raise ValueError(f"pct_start must be at most {most}{phases}, got {pct_start}")
    peak, start = pct_start * total_steps - 1, max_lr / div_factor
    turns = [0, peak, *([2 * peak] if three_phase else []), total_steps - 1]
    rates = [start, max_lr, *([start] if three_phase else []), start / final_div_factor]
    legs = zip(rates[:-1], rates[1:], np.diff(turns).tolist(), strict=True)
    ramps = [_ramp(rate, to, steps or 1, anneal_strategy) for rate, to, steps in legs]
    return _join(ramps, turns[1:-1])


@_checked
def chained(lr: Rate, schedules: Sequence[Schedule]) -> Schedule:
    """`lr`, which is not 0, times the factors by which schedules that were all made with `lr` change it.

    That of torch is no product where one of them has an `eta_min`.

    >>> chained(1.0, [linear(1.0, start_factor=0.5), step(1.0, 10)])(jnp.array([0, 5])).tolist()
    [0.5, 1.0]
    """
    arguments.positive("lr", lr)
    if not schedules:
        raise ValueError("schedules must hold at least one")
    return lambda step: lr * math.prod(schedule(step) / lr for schedule in schedules)


@_checked
def sequential(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after the other: at each milestone the next one starts at its own step 0.

    >>> sequential([warmup(1.0, 10), exponential(1.0, 0.5)], [20])(jnp.array([5, 20, 21])).tolist()
    [0.5, 1.0, 0.5]
    """
    if len(arguments.increasing("milestones", milestones)) != len(schedules) - 1:
        expected = f"one step less than schedules, {len(schedules) - 1}"
        raise ValueError(f"milestones must hold {expected}, got {milestones!r}")
    return _join(schedules, milestones)


@_checked
def plot(schedule: Schedule, n_steps: int, ax: "Axes | None" = None) -> "Axes":
    """Draw the learning rates of the first `n_steps` steps, into new axes if none are given.

    The axis is logarithmic where they span more than two decades.

    **Raises:** `ImportError` without matplotlib.

    >>> axes = plot(cosine_annealing(0.1, T_max=50), 200)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('step', 'learning rate')
    """
    axes = new_axes("plot") if ax is None else ax
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(n_steps)))
    axes.plot(rates, drawstyle="steps-post", color=next(unused_colors(axes)))
    axes.set(xlabel="step", ylabel="learning rate")
    if 0 < 100 * rates.min() < rates.max():
        axes.set_yscale("log")
    elif axes.get_yscale() == "linear" and rates.min() >= 0:
        axes.set_ylim(bottom=0)
    tidy(axes)
    return axes
