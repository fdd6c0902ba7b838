"""Optimizers that divide the gradient by the size of all before it: Adagrad and its kin."""

import optax

from .arguments import fraction, is_zero, number, positive, two
from .composition import (
    Clip,
    LearningRate,
    Optimizer,
    compose,
    decayed,
    relative_step,
    scale_by_rate,
    trace,
    with_an_axis,
)


def adagrad(
    lr: LearningRate = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Adagrad: s ← s + g²; x ← x - η g / √(s + ε).

    s starts at `initial_accumulator_value`; after t updates η is divided by 1 + t `lr_decay`.
    Weight decay: L2.

    Duchi et al., Adaptive subgradient methods for online learning and stochastic optimization, 2011.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adagrad(1.0))
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    start = number("initial_accumulator_value", initial_accumulator_value)
    slower = number("lr_decay", lr_decay)
    fade = optax.scale_by_schedule(lambda t: 1 / (1 + slower * t))
    fade = optax.identity() if is_zero(slower) else fade
    scale = optax.scale_by_rss(start, number("eps", eps))
    return compose(
        lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate, fade
    )


def adadelta(
    lr: LearningRate = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Adadelta: Δ = g √(u + ε) / √(v + ε), with v = ⟨g²⟩ and u = ⟨Δ²⟩ over `rho`; x ← x - η Δ.

    Weight decay: L2.

    Zeiler, arXiv:1212.5701.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adadelta(10.0))
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=1000)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_adadelta(fraction("rho", rho), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)


def rmsprop(
    lr: LearningRate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """RMSprop: x ← x - η g / √(v + ε), with v = ⟨g²⟩ over `alpha`, and momentum over such steps.

    With `centered`, v is the variance ⟨g²⟩ - ⟨g⟩². Weight decay: L2.

    Tieleman and Hinton, Coursera lecture 6.5, 2012; Graves, arXiv:1308.0850 (centered).

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> optimizer = optimizers.rmsprop(lambda t: 0.1 / (1 + 0.1 * t))
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizer)
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    method = optax.scale_by_stddev if centered else optax.scale_by_rms
    scale = method(fraction("alpha", alpha), number("eps", eps))
    return compose(
        lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate, trace(momentum)
    )


def adafactor(
    lr: LearningRate | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float | None = 1.0,
    decay_rate: float = 0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    factored: bool = True,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Adafactor: x ← x - η max(ε₂, rms(x)) u, with u = g / √v, scaled so that rms(u) ≤ `clip_threshold`.

    v = ⟨g² + ε₁⟩ over β = 1 - t^-`decay_rate`; of matrices with at least 128 rows and columns `factored`
    keeps means of rows and columns alone. With `lr=None` η is min(0.01, 1 / √t) in update t. `beta1`
    averages the steps. `eps` is (ε₁, ε₂). Weight decay: decoupled.

    Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory cost, arXiv:1804.04235.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adafactor(0.1))
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    eps1, eps2 = (number("eps", x) for x in two("eps", eps))
    rms = optax.scale_by_factored_rms(factored, number("decay_rate", decay_rate), epsilon=eps1)
    limit = mean = optax.identity()
    if clip_threshold is not None:
        limit = optax.clip_by_block_rms(positive("clip_threshold", clip_threshold))
    if beta1 is not None:
        mean = optax.ema(fraction("beta1", beta1), debias=False)
    size = optax.scale_by_param_block_rms(eps2)
    wd = number("weight_decay", weight_decay)
    decay = optax.identity() if is_zero(wd) else lambda rate: optax.add_decayed_weights(-rate * wd)
    lr = relative_step if lr is None else lr
    return compose(lr, grad_clip_norm, grad_clip_value, rms, limit, scale_by_rate, size, mean, decay)


def sm3(
    lr: LearningRate = 1.0,
    momentum: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """SM3: `adagrad` that keeps of a matrix one number for each row and column; m = ⟨step⟩ over μ.

    Weight decay: L2.

    Anil et al., Memory-efficient adaptive optimization, arXiv:1901.11150.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.sm3())
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = with_an_axis(optax.scale_by_sm3(fraction("momentum", momentum), eps=number("eps", eps)))
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)
