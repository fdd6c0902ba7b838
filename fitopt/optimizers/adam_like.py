"""Optimizers that divide a running mean of gradients by their running size: Adam and its kin."""

import optax

from .arguments import number, two_fractions
from .composition import Betas, Clip, LearningRate, Optimizer, compose, decayed, scale_by_rate


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    method = optax.scale_by_amsgrad if amsgrad else optax.scale_by_adam
    scale = method(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_adam(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, scale, decayed(weight_decay), scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_adamax(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_adam(*two_fractions("betas", betas), number("eps", eps), nesterov=True)
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_radam(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, scale, decayed(weight_decay), scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=500)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_adam(*two_fractions("betas", betas), number("eps", eps))
    ratio = optax.scale_by_trust_ratio()
    return compose(
        lr, grad_clip_norm, grad_clip_value, scale, decayed(weight_decay), ratio, scale_by_rate
    )


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_yogi(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), scale, scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_belief(*two_fractions("betas", betas), number("eps", eps))
    return compose(lr, grad_clip_norm, grad_clip_value, scale, decayed(weight_decay), scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    b1, b2 = two_fractions("betas", betas)
    decay = number("weight_decay", weight_decay)
    scale = optax.scale_by_novograd(b1, b2, number("eps", eps), weight_decay=decay)
    return compose(lr, grad_clip_norm, grad_clip_value, scale, scale_by_rate)
