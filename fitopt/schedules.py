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

**Raises:** all of them a `ValueError` that names the argument which is out of its range. Learning rates
may be traced, for a fit inside `vmap` over `lr`; these are not checked.
"""

import functools
import inspect
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array
from optax import Schedule

from .plotting.histories import new_axes, tidy, unused_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
T = TypeVar("T")


def _is_rate(given: Any) -> bool:
    return isinstance(given, Tracer) or 0 <= given < math.inf


def _increase(steps: Iterable[int]) -> bool:
    steps = list(map(operator.index, steps))
    return steps == sorted(set(steps)) and min(steps, default=0) >= 0


_HEIGHTS: dict[str, Callable[[Any, Any, float], Any]] = {
    "triangular": lambda step, cycle, gamma: 1.0,
    "triangular2": lambda step, cycle, gamma: jnp.power(0.5, cycle),
    "exp_range": lambda step, cycle, gamma: jnp.power(gamma, step),
}
_SHAPES: dict[str, Callable[[Any], Any]] = {
    "cos": lambda fraction: (1 - jnp.cos(jnp.pi * fraction)) / 2,
    "linear": lambda fraction: fraction,
}
_RULES: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("lr base_lr max_lr warmup_start_lr", "a finite number of at least 0", _is_rate),
    ("eta_min end_value start_factor end_factor", "a finite number of at least 0", _is_rate),
    ("gamma decay_rate power", "a finite number above 0", lambda x: 0 < x < math.inf),
    ("div_factor final_div_factor", "a finite number above 0", lambda x: 0 < x < math.inf),
    ("pct_start", "a number from 0 to 1", lambda x: 0 <= x <= 1),
    ("n step_size T_max T_0 T_mult", "an integer of at least 1", lambda x: operator.index(x) >= 1),
    (
        "total_iters total_steps decay_steps",
        "an integer of at least 1",
        lambda x: operator.index(x) >= 1,
    ),
    ("step_size_up step_size_down", "an integer of at least 1", lambda x: operator.index(x) >= 1),
    ("warmup_steps transition_begin", "an integer of at least 0", lambda x: operator.index(x) >= 0),
    ("milestones", "a list of integers of at least 0", lambda xs: all(_increase([x]) for x in xs)),
    ("boundaries", "a list of increasing integers of at least 0", _increase),
    ("values", "a list of finite numbers of at least 0", lambda xs: all(map(_is_rate, xs))),
    ("mode", f"one of {', '.join(map(repr, _HEIGHTS))}", _HEIGHTS.__contains__),
    ("anneal_strategy", f"one of {', '.join(map(repr, _SHAPES))}", _SHAPES.__contains__),
    ("schedule", "a function from step to learning rate", callable),
    (
        "schedules",
        "a list of schedules, at least one",
        lambda xs: len(xs) > 0 and all(map(callable, xs)),
    ),
]
_RULE_OF = {name: (text, holds) for names, text, holds in _RULES for name in names.split()}


def _checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments that are given by the rules for their names."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name not in _RULE_OF or value is signature.parameters[name].default:
                continue
            expected, holds = _RULE_OF[name]
            try:
                fits = bool(holds(value))
            except (TypeError, ValueError):
                fits = False
            if not fits:
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        return function(*args, **kwargs)

    return wrapper


def _between(start: ArrayLike, end: ArrayLike, weight: Any) -> Any:
    return start * (1 - weight) + end * weight  # unlike start + (end - start) * weight, exact at the end


def _fraction(step: Any, steps: float) -> Any:
    # XLA divides by a constant as it likes: 49 / 49 may miss 1. An int32 would give a float32 under x64.
    return jnp.where(step < steps, step * 1.0 / steps, 1.0)


def _ramp(start: ArrayLike, end: ArrayLike, steps: float, shape: str = "linear") -> Schedule:
    """From `start` at step 0 to `end`, which it keeps."""
    return lambda step: _between(start, end, _SHAPES[shape](_fraction(step, steps or 1)))


def _join(schedules: Sequence[Schedule], milestones: Sequence[float]) -> Schedule:
    """As `optax.join_schedules`, which also calls schedules at steps before their 0."""

    def schedule(step: Any) -> ArrayLike:
        rate = schedules[0](step)
        for milestone, after in zip(milestones, schedules[1:], strict=True):
            rate = jnp.where(step < milestone, rate, after(jnp.maximum(step - milestone, 0)))
        return rate

    return schedule


@_checked
def constant(lr: ArrayLike) -> Schedule:
    """The learning rate `lr` at every step: `optax.constant_schedule`.

    >>> constant(0.1)(1000)
    0.1
    """
    return optax.constant_schedule(lr)


@_checked
def step(lr: ArrayLike, step_size: int, gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` after every `step_size` steps. **Source:** torch's StepLR.

    >>> rate = step(0.1, step_size=10, gamma=0.5)
    >>> print(f"{rate(9):.3f} {rate(10):.3f} {rate(20):.3f}")
    0.100 0.050 0.025
    """
    return exponential_decay(lr, step_size, gamma, staircase=True)


@_checked
def multi_step(lr: ArrayLike, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` at each of the steps `milestones`. **Source:** torch's MultiStepLR.

    Milestones may come in any order; one that is given twice counts twice.

    >>> rate = multi_step(0.1, milestones=[10, 15], gamma=0.5)
    >>> print(f"{rate(9):.3f} {rate(10):.3f} {rate(15):.3f}")
    0.100 0.050 0.025
    """
    scales = {milestone: gamma**times for milestone, times in Counter(milestones).items()}
    return optax.piecewise_constant_schedule(lr, scales)


@_checked
def piecewise_constant(
    lr: ArrayLike, boundaries: Sequence[int], values: Sequence[ArrayLike]
) -> Schedule:
    """`lr` before the first of the steps `boundaries`; from each of them on, its entry of `values`.

    >>> rate = piecewise_constant(0.1, boundaries=[10, 15], values=[0.02, 0.003])
    >>> print(f"{rate(9):.3f} {rate(10):.3f} {rate(15):.3f}")
    0.100 0.020 0.003
    """
    if len(values) != len(boundaries):
        raise ValueError(f"values must be {len(boundaries)}, one a boundary, got {values!r}")
    return sequential([optax.constant_schedule(rate) for rate in (lr, *values)], boundaries)


@_checked
def exponential(lr: ArrayLike, gamma: float) -> Schedule:
    """`lr * gamma**step`, without end where `gamma` is above 1. **Source:** torch's ExponentialLR.

    >>> rate = exponential(0.1, gamma=0.9)
    >>> print(f"{rate(0):.3f} {rate(1):.3f} {rate(2):.3f}")
    0.100 0.090 0.081
    """
    return exponential_decay(lr, 1, gamma)


@_checked
def exponential_decay(
    lr: ArrayLike,
    decay_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: ArrayLike | None = None,
) -> Schedule:
    """`lr * decay_rate ** ((step - transition_begin) / decay_steps)`, as `optax.exponential_decay`.

    It is `lr` until step `transition_begin` and never passes `end_value`. With `staircase`, the exponent
    is rounded down.

    >>> rate = exponential_decay(0.1, decay_steps=10, decay_rate=0.5, end_value=0.02)
    >>> print(f"{rate(5):.4f} {rate(10):.4f} {rate(30):.4f}")
    0.0707 0.0500 0.0200
    """
    if end_value is None:
        end_value = 0.0 if decay_rate < 1 else math.inf
    stop = jnp.maximum if decay_rate < 1 else jnp.minimum

    def schedule(step: Any) -> Array:
        elapsed = jnp.maximum(step - transition_begin, 0)
        exponent = elapsed // decay_steps if staircase else elapsed * 1.0 / decay_steps
        return stop(lr * jnp.power(decay_rate, exponent), end_value)

    return schedule


@_checked
def linear(
    lr: ArrayLike, start_factor: ArrayLike = 1 / 3, end_factor: ArrayLike = 1.0, total_iters: int = 5
) -> Schedule:
    """From `lr * start_factor` straight to `lr * end_factor` in `total_iters` steps.

    **Source:** torch's LinearLR.

    >>> rate = linear(0.1, start_factor=1.0, end_factor=0.2, total_iters=10)
    >>> print(f"{rate(0):.2f} {rate(5):.2f} {rate(10):.2f}")
    0.10 0.06 0.02
    """
    return _ramp(lr * start_factor, lr * end_factor, total_iters)


@_checked
def polynomial(lr: ArrayLike, total_iters: int = 5, power: float = 1.0) -> Schedule:
    """`lr * (1 - step / total_iters) ** power`, then 0. **Source:** torch's PolynomialLR.

    >>> rate = polynomial(0.1, total_iters=10, power=2.0)
    >>> print(f"{rate(0):.3f} {rate(5):.3f} {rate(10):.3f}")
    0.100 0.025 0.000
    """
    return lambda step: lr * (1 - _fraction(step, total_iters)) ** power


@_checked
def cosine_annealing(lr: ArrayLike, T_max: int, eta_min: ArrayLike = 0.0) -> Schedule:
    """Half a cosine from `lr` down to `eta_min` in `T_max` steps, then up again, and so on.

    **Source:** torch's CosineAnnealingLR; Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    >>> rate = cosine_annealing(0.1, T_max=10)
    >>> print(f"{rate(0):.2f} {rate(5):.2f} {rate(10):.2f} {rate(15):.2f}")
    0.10 0.05 0.00 0.05
    """
    cosine = lambda phase: _between(lr, eta_min, _SHAPES["cos"](phase * 1.0 / T_max))
    return lambda step: cosine(jnp.remainder(step, 2 * T_max))


@_checked
def cosine_warm_restarts(lr: ArrayLike, T_0: int, T_mult: int = 1, eta_min: ArrayLike = 0.0) -> Schedule:
    """Half a cosine from `lr` down to `eta_min` in `T_0` steps, then from `lr` again, and so on.

    Each of these cycles is `T_mult` times as long as the one before.

    **Source:** torch's CosineAnnealingWarmRestarts; Loshchilov & Hutter 2017,
    https://arxiv.org/abs/1608.03983

    >>> rate = cosine_warm_restarts(0.1, T_0=10, T_mult=2)
    >>> print(f"{rate(5):.2f} {rate(10):.2f} {rate(20):.2f} {rate(30):.2f}")
    0.05 0.10 0.05 0.10
    """
    # All restarts that an int32 can count to: a logarithm would miss some of them by a step.
    restarts = [0]
    while T_mult > 1 and (restart := T_0 + T_mult * restarts[-1]) < 2**31:
        restarts.append(restart)

    def schedule(step: ArrayLike) -> Any:
        if T_mult == 1:
            start = jnp.floor_divide(step, T_0) * T_0
        else:
            table = jnp.array(restarts)
            start = table[jnp.searchsorted(table, step, side="right", method="compare_all") - 1]
        length = T_0 + start * (T_mult - 1.0)
        return _between(lr, eta_min, _SHAPES["cos"]((step - start) / length))

    return schedule


@_checked
def warmup(lr: ArrayLike, warmup_steps: int, warmup_start_lr: ArrayLike = 0.0) -> Schedule:
    """From `warmup_start_lr` straight to `lr` in `warmup_steps` steps, then `lr`.

    >>> rate = warmup(0.1, warmup_steps=10)
    >>> print(f"{rate(0):.2f} {rate(5):.2f} {rate(10):.2f} {rate(99):.2f}")
    0.00 0.05 0.10 0.10
    """
    rise = _ramp(warmup_start_lr, lr, warmup_steps)
    return sequential([rise, optax.constant_schedule(lr)], [warmup_steps])


@_checked
def warmup_cosine(
    lr: ArrayLike,
    warmup_steps: int,
    total_steps: int,
    warmup_start_lr: ArrayLike = 0.0,
    eta_min: ArrayLike = 0.0,
) -> Schedule:
    """`warmup`, then half a cosine down to `eta_min`, which it reaches at step `total_steps`.

    >>> rate = warmup_cosine(0.1, warmup_steps=10, total_steps=30)
    >>> print(f"{rate(0):.2f} {rate(5):.2f} {rate(10):.2f} {rate(20):.2f} {rate(30):.2f}")
    0.00 0.05 0.10 0.05 0.00
    """
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps must be above warmup_steps ({warmup_steps}), got {total_steps}")
    rise = _ramp(warmup_start_lr, lr, warmup_steps)
    return sequential([rise, _ramp(lr, eta_min, total_steps - warmup_steps, "cos")], [warmup_steps])


@_checked
def cyclic(
    base_lr: ArrayLike,
    max_lr: ArrayLike,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
) -> Schedule:
    """Up from `base_lr` to `max_lr` in `step_size_up` steps, down in `step_size_down`, and so on.

    `step_size_down` is `step_size_up` if not given. The height above `base_lr` stays the same
    (`"triangular"`), halves with every cycle (`"triangular2"`), or is multiplied by `gamma`, at most 1,
    with every step (`"exp_range"`).

    **Source:** torch's CyclicLR; Smith 2017, https://arxiv.org/abs/1506.01186

    >>> rate = cyclic(0.0, 0.1, step_size_up=10, mode="triangular2")
    >>> print(f"{rate(5):.3f} {rate(10):.3f} {rate(20):.3f} {rate(30):.3f}")
    0.050 0.100 0.000 0.050
    """
    if gamma > 1:
        raise ValueError(f"gamma must be at most 1, got {gamma}")
    up, down = step_size_up, step_size_down or step_size_up

    def schedule(step: ArrayLike) -> Any:
        cycle, phase = jnp.divmod(step, up + down)
        triangle = jnp.minimum(_fraction(phase, up), _fraction(up + down - phase, down))
        return _between(base_lr, max_lr, triangle * _HEIGHTS[mode](step, cycle, gamma))

    return schedule


@_checked
def one_cycle(
    max_lr: ArrayLike,
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

    **Source:** torch's OneCycleLR; Smith & Topin 2018, https://arxiv.org/abs/1708.07120

    >>> rate = one_cycle(0.1, total_steps=110)
    >>> print(f"{rate(0):.3f} {rate(32):.3f} {rate(109):.7f}")
    0.004 0.100 0.0000004
    """
    if three_phase and pct_start > 0.5:
        raise ValueError(f"pct_start must be at most 0.5 with three_phase, got {pct_start}")
    peak, start = pct_start * total_steps - 1, max_lr / div_factor
    turns = [0, peak, *([2 * peak] if three_phase else []), total_steps - 1]
    rates = [start, max_lr, *([start] if three_phase else []), start / final_div_factor]
    legs = zip(rates[:-1], rates[1:], np.diff(turns).tolist(), strict=True)
    return _join([_ramp(*leg, anneal_strategy) for leg in legs], turns[1:-1])


@_checked
def chained(lr: ArrayLike, schedules: Sequence[Schedule]) -> Schedule:
    """`lr`, which is not 0, times the factors by which schedules that were all made with `lr` change it.

    **Source:** torch's ChainedScheduler, which is no product where one of them has an `eta_min`.

    >>> rate = chained(0.1, [linear(0.1, start_factor=0.5), step(0.1, step_size=10)])
    >>> print(f"{rate(0):.3f} {rate(5):.3f} {rate(10):.3f}")
    0.050 0.100 0.010
    """
    if not isinstance(lr, Tracer) and lr == 0:
        raise ValueError("lr must be above 0: the schedules are taken relative to it")
    return lambda step: lr * math.prod(schedule(step) / lr for schedule in schedules)


@_checked
def sequential(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after the other: at each milestone the next one starts at its own step 0.

    **Source:** torch's SequentialLR.

    >>> rate = sequential([warmup(0.1, 10), exponential(0.1, 0.5)], milestones=[20])
    >>> print(f"{rate(5):.3f} {rate(20):.3f} {rate(21):.3f}")
    0.050 0.100 0.050
    """
    if len(milestones) != len(schedules) - 1 or not _increase(milestones):
        expected = f"{len(schedules) - 1} increasing integers, one less than schedules"
        raise ValueError(f"milestones must be {expected}, got {milestones!r}")
    return _join(schedules, milestones)


@_checked
def plot(schedule: Schedule, n: int, ax: "Axes | None" = None) -> "Axes":
    """Draw the learning rates of the first `n` steps, into new axes if none are given.

    The axis is logarithmic where they span more than two decades.

    **Raises:** `ImportError` without matplotlib.

    >>> axes = plot(cosine_annealing(0.1, T_max=50), 200)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('step', 'learning rate')
    """
    axes = new_axes("plot") if ax is None else ax
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(n)))
    axes.plot(rates, drawstyle="steps-post", color=next(unused_colors(axes)))
    axes.set(xlabel="step", ylabel="learning rate")
    if 0 < 100 * rates.min() < rates.max():
        axes.set_yscale("log")
    elif axes.get_yscale() == "linear" and rates.min() >= 0:
        axes.set_ylim(bottom=0)
    tidy(axes)
    return axes
