"""Optimizers that follow the gradient, its sign, or with L-BFGS the curvature too: see `optimizers`."""

import jax.numpy as jnp
import optax

from .arguments import number, two, two_fractions, whole
from .composition import (
    Betas,
    Clip,
    LearningRate,
    Optimizer,
    compose,
    decayed,
    line_search,
    scale_by_rate,
    scale_by_rprop,
    trace,
)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=100)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    return compose(
        lr,
        grad_clip_norm,
        grad_clip_value,
        decayed(weight_decay),
        trace(momentum, nesterov),
        scale_by_rate,
    )


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    return sgd(lr, momentum, weight_decay, True, grad_clip_norm, grad_clip_value)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=1000)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    trust = number("trust_coefficient", trust_coefficient)
    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust, eps=number("eps", eps))
    return compose(
        lr, grad_clip_norm, grad_clip_value, decayed(weight_decay), ratio, scale_by_rate, trace(momentum)
    )


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    least = number("min_norm", min_norm)
    return compose(lr, grad_clip_norm, grad_clip_value, lambda rate: optax.fromage(rate, least))


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=500)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    scale = optax.scale_by_lion(*two_fractions("betas", betas))
    return compose(lr, grad_clip_norm, grad_clip_value, scale, decayed(weight_decay), scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=300)[0]["x"].value.round(2)
    Array(1., dtype=float32)
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
    return compose(lr, grad_clip_norm, grad_clip_value, relative, scale_by_rate)


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
    >>> fit.run({"x": Parameter("x", 3.0)}, max_steps=5)[0]["x"].value.round(2)
    Array(1., dtype=float32)
    """
    memory_size = whole("memory_size", memory_size)
    direction = optax.scale_by_lbfgs(memory_size, scale_init_precond)
    return compose(
        lr, grad_clip_norm, grad_clip_value, direction, scale_by_rate, line_search(linesearch)
    )
