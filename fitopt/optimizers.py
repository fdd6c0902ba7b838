"""Optimizers by name: each one a few parts of optax in a row.

All of them take

- `lr`: the learning rate η, a number or a schedule: a function of the number of updates made before.
    The state holds its current value: see `learning_rate` and `set_learning_rate`.
- `grad_clip_norm`, `grad_clip_value`: shrink the gradient to this norm, taken over all parameters;
    clip its entries to ± this value, in this order, before anything else looks at it.
- `weight_decay`, where there is one: λ. As **L2** it adds λ x to the gradient, after clipping;
    **decoupled** it adds η λ x to the step, past all that the method does with gradients.

and raise `TypeError` or `ValueError` for an argument out of its range. In the formulas x are the
parameters, g is the gradient, products and roots go entry by entry, and ⟨g⟩ᵦ is the running mean
m ← β m + (1 - β) g. What optimizers see of a `Parameter` is its coordinate: that is what a step of
size η moves, and what weight decay pulls to zero.
"""

import jax.numpy as jnp
import optax

from .composition import (
    Betas,
    Clip,
    LearningRate,
    Optimizer,
    clip,
    compose,
    decayed,
    fraction,
    is_zero,
    line_search,
    number,
    positive,
    relative_step,
    scale_by_rate,
    scale_by_rprop,
    small,
    trace,
    two,
    two_betas,
    whole,
    with_an_axis,
)
from .composition import learning_rate as learning_rate
from .composition import set_learning_rate as set_learning_rate
from .groups import groups as groups
from .lookahead import LookaheadState as LookaheadState
from .lookahead import evaluation_params as evaluation_params
from .lookahead import lookahead as lookahead

__all__ = [
    "LookaheadState",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "evaluation_params",
    "fromage",
    "groups",
    "lamb",
    "lars",
    "lbfgs",
    "learning_rate",
    "lion",
    "lookahead",
    "momentum",
    "momentum_nesterov",
    "nadam",
    "novograd",
    "radam",
    "rmsprop",
    "rprop",
    "set_learning_rate",
    "sgd",
    "sm3",
    "yogi",
]


def sgd(
    lr: LearningRate = 1e-3,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Gradient descent: v ← μ v + g; x ← x - η v, with μ = `momentum`.

    With `nesterov`, x ← x - η (μ v + g). Weight decay: L2.

    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.sgd(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=100)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), trace(momentum, nesterov), scale_by_rate)


def momentum(
    lr: LearningRate = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Gradient descent with heavy-ball momentum: v ← μ v + g; x ← x - η v.

    Weight decay: L2.

    Polyak, Some methods of speeding up the convergence of iteration methods, 1964.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.momentum(0.05))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    return sgd(lr, momentum, weight_decay, False, grad_clip_norm, grad_clip_value)


def momentum_nesterov(
    lr: LearningRate = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Nesterov's accelerated gradient: v ← μ v + g; x ← x - η (μ v + g).

    Weight decay: L2.

    Nesterov, A method for solving the convex programming problem with convergence rate O(1/k²), 1983;
    in the form of Sutskever et al., ICML 2013.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.momentum_nesterov(0.05))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    return sgd(lr, momentum, weight_decay, True, grad_clip_norm, grad_clip_value)


def adam(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Adam: x ← x - η m / (√v + ε), with m = ⟨g⟩ and v = ⟨g²⟩ over `betas`, without start-up bias.

    With `amsgrad`, v is the largest so far. Weight decay: L2; `adamw` decouples it.

    Kingma and Ba, arXiv:1412.6980; Reddi et al., arXiv:1904.09237 (AMSGrad).

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adam(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    method = optax.scale_by_amsgrad if amsgrad else optax.scale_by_adam
    scale = method(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


def adamw(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """AdamW: x ← x - η (m / (√v + ε) + λ x), with m and v as in `adam`.

    Weight decay: decoupled, and on by default.

    Loshchilov and Hutter, arXiv:1711.05101.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adamw(0.1, weight_decay=0.0))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_adam(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, decayed(weight_decay), scale_by_rate)


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
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    start = number("initial_accumulator_value", initial_accumulator_value)
    slower = number("lr_decay", lr_decay)
    fade = optax.scale_by_schedule(lambda t: 1 / (1 + slower * t))
    fade = optax.identity() if is_zero(slower) else fade
    scale = optax.scale_by_rss(start, small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate, fade)


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
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=1000)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_adadelta(fraction("rho", rho), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


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
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    method = optax.scale_by_stddev if centered else optax.scale_by_rms
    scale = method(fraction("alpha", alpha), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate, trace(momentum))


def adamax(
    lr: LearningRate = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Adamax: x ← x - η m / u, with m as in `adam` and u ← max(β₂ u, |g| + ε).

    Weight decay: L2.

    Kingma and Ba, arXiv:1412.6980, section 7.1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adamax(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_adamax(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


def nadam(
    lr: LearningRate = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Nadam: `adam` with Nesterov's momentum, β₁ m + (1 - β₁) g in place of m.

    Weight decay: L2.

    Dozat, Incorporating Nesterov momentum into Adam, ICLR workshop 2016; β₁ does not warm up here.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.nadam(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_adam(*two_betas(betas), small(eps), nesterov=True)
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


def radam(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """RAdam: `adam` whose first steps are plain momentum, until v has seen enough to be divided by.

    Weight decay: decoupled, as in the authors' code.

    Liu et al., On the variance of the adaptive learning rate and beyond, arXiv:1908.03265.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.radam(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_radam(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, decayed(weight_decay), scale_by_rate)


def lamb(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """LAMB: x ← x - η ‖x‖ / ‖r‖ r for each parameter, with r = m / (√v + ε) + λ x as in `adamw`.

    Weight decay: decoupled from the gradient, but inside the ratio of norms.

    You et al., Large batch optimization for deep learning, arXiv:1904.00962.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.lamb(lambda t: 0.1 * 0.99**t))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=500)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_adam(*two_betas(betas), small(eps))
    ratio = optax.scale_by_trust_ratio()
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, decayed(weight_decay), ratio, scale_by_rate)


def lars(
    lr: LearningRate = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """LARS: v ← μ v + η c ‖x‖ / (‖g‖ + ε) g for each parameter, with c = `trust_coefficient`; x ← x - v.

    Weight decay: L2, inside the ratio of norms: g + λ x takes the place of g.

    You et al., Large batch training of convolutional networks, arXiv:1708.03888, whose ratio has
    ‖g‖ + λ ‖x‖ below the line; optax has ‖g + λ x‖.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> optimizer = optimizers.lars(lambda t: 10.0 / (1 + 0.1 * t))
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizer)
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=1000)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    trust = number("trust_coefficient", trust_coefficient)
    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust, eps=small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), ratio, scale_by_rate, trace(momentum))


def yogi(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Yogi: `adam` with v ← v - (1 - β₂) sign(v - g²) g², which grows no faster than gradients do.

    Weight decay: L2.

    Zaheer et al., Adaptive methods for nonconvex optimization, NeurIPS 2018.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.yogi(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_yogi(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


def lbfgs(
    lr: LearningRate = 1.0,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: str | optax.GradientTransformation | None = "zoom",
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """L-BFGS: x ← x - a η H g, where H estimates the inverse Hessian from the last `memory_size` steps.

    `linesearch` finds a, starting from 1: `"zoom"` (strong Wolfe conditions), `"backtracking"` (enough
    decrease; cheaper where gradients are dear), a line search of optax, or None for a = 1. With one, η
    scales the first trial alone: leave it at 1. `scale_init_precond` scales the first guess of H.

    No weight decay. Clipped gradients mislead H, and a line search needs no clipping.

    Nocedal and Wright, Numerical Optimization, 2nd edition, algorithms 7.5 and 3.5.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.lbfgs())
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=5)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    memory_size = whole("memory_size", memory_size)
    direction = optax.scale_by_lbfgs(memory_size, scale_init_precond)
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, direction, scale_by_rate, line_search(linesearch))


def rprop(
    lr: LearningRate = 1e-2,
    etas: Betas = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Rprop: x ← x - s sign(g); s grows while the sign of g stays, and shrinks where it turned.

    s starts at `lr`; `etas` are the factors by which it shrinks and grows, `step_sizes` its bounds. The
    learning rate goes on to scale s. Where the sign turned, one step is skipped. No weight decay.

    Riedmiller and Braun, A direct adaptive method for faster backpropagation learning, 1993.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.rprop(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    minus, plus = two("etas", etas)
    low, high = two("step_sizes", step_sizes)
    if not (0 < number("etas[0]", minus) < 1 < number("etas[1]", plus)):
        raise ValueError(f"etas must be two factors, below and above 1, got {etas!r}")
    if not (0 < number("step_sizes[0]", low) < number("step_sizes[1]", high)):
        raise ValueError(f"step_sizes must be a smallest above 0 and a largest, got {step_sizes!r}")
    relative = lambda rate: scale_by_rprop(
        minus, plus, jnp.where(rate > 0, low / rate, 0.0), jnp.where(rate > 0, high / rate, jnp.inf)
    )
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, relative, scale_by_rate)


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
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    eps1, eps2 = (small(x) for x in two("eps", eps))
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
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, rms, limit, scale_by_rate, size, mean, decay)


def adabelief(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """AdaBelief: `adam` with v = ⟨(g - m)²⟩ + ε: the less a gradient surprises, the longer the step.

    Weight decay: decoupled.

    Zhuang et al., arXiv:2010.07468.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.adabelief(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_belief(*two_betas(betas), small(eps))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, decayed(weight_decay), scale_by_rate)


def lion(
    lr: LearningRate = 1e-4,
    betas: Betas = (0.9, 0.99),
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Lion: x ← x - η (sign(β₁ m + (1 - β₁) g) + λ x); m ← β₂ m + (1 - β₂) g.

    All entries move by η: take a tenth of Adam's. Weight decay: decoupled.

    Chen et al., Symbolic discovery of optimization algorithms, arXiv:2302.06675.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.lion(lambda t: 0.05 * 0.99**t))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=500)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = optax.scale_by_lion(*two_betas(betas))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, decayed(weight_decay), scale_by_rate)


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
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    scale = with_an_axis(optax.scale_by_sm3(fraction("momentum", momentum), eps=small(eps)))
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, decayed(weight_decay), scale, scale_by_rate)


def novograd(
    lr: LearningRate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """NovoGrad: m ← β₁ m + g / (√v + ε) + λ x, with v = ⟨‖g‖²⟩ over β₂ for each parameter; x ← x - η m.

    v starts at the first ‖g‖²; the paper takes betas of (0.95, 0.98). Weight decay: decoupled from the
    gradient, but inside the momentum.

    Ginsburg et al., arXiv:1905.11286.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.novograd(0.1))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    b1, b2 = two_betas(betas)
    decay = number("weight_decay", weight_decay)
    scale = optax.scale_by_novograd(b1, b2, small(eps), weight_decay=decay)
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, scale, scale_by_rate)


def fromage(
    lr: LearningRate = 1e-2,
    min_norm: float = 1e-6,
    grad_clip_norm: Clip = None,
    grad_clip_value: Clip = None,
) -> Optimizer:
    """Fromage: x ← (x - η ‖x‖ / ‖g‖ g) / √(1 + η²) for each parameter.

    Norms count as `min_norm` at least. The division shrinks parameters a little in each step, so the
    learning rate has to fall for a fit to converge. No weight decay.

    Bernstein et al., On the distance between two neural networks and the stability of learning,
    arXiv:2002.03432.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.fromage(lambda t: 0.1 * 0.97**t))
    >>> state, history = fit.run({"x": Parameter("x", 3.0)}, max_steps=300)
    >>> print(f"{state['x']:.2f}")
    1.00
    """
    least = number("min_norm", min_norm)
    clipped = clip(grad_clip_norm, grad_clip_value)
    return compose(lr, clipped, lambda rate: optax.fromage(rate, least))
