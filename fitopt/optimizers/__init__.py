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
m ← β m + (1 - β) g. What optimizers see of a `Parameter` is its unconstrained value: that is what a step
of size η moves, and what weight decay pulls to zero.

Names, arguments and defaults are those of the classes of braintools.optim, with these differences,
where the classes did something else than they say (most of them until release 0.3):

========================  ===========================================================================
sgd, momentum, adam, ...  weight decay joins the gradient, before momentum and scaling, as L2 does
adam, nadam               no `beta1` and `beta2` beside `betas`; no `momentum_decay`
adagrad                   sums squares, and does not average them; `lr_decay` counts
rmsprop                   `centered` counts
adafactor                 all arguments count; `decay_rate` is 0.8 and not -0.8
lamb                      the ratio of norms is that of Adam's step, not of the gradient
novograd                  weight decay is inside the momentum
sm3                       the momentum counts once
rprop                     the learning rate counts once, and each step is made at once
fromage                   that of the paper, and not plain momentum
lbfgs                     has a line search, unless told otherwise
lookahead                 makes each step once; the learning rate is that of `base_optimizer` alone
========================  ===========================================================================
"""

from .adagrad_like import adadelta, adafactor, adagrad, rmsprop, sm3
from .adam_like import adabelief, adam, adamax, adamw, lamb, nadam, novograd, radam, yogi
from .composition import learning_rate, set_learning_rate
from .descent import fromage, lars, lbfgs, lion, momentum, momentum_nesterov, rprop, sgd
from .groups import groups
from .lookahead import LookaheadState, evaluation_params, lookahead

# fmt: off
__all__ = [
    "LookaheadState", "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw",
    "evaluation_params", "fromage", "groups", "lamb", "lars", "lbfgs", "learning_rate", "lion",
    "lookahead", "momentum", "momentum_nesterov", "nadam", "novograd", "radam", "rmsprop", "rprop",
    "set_learning_rate", "sgd", "sm3", "yogi",
]
# fmt: on
