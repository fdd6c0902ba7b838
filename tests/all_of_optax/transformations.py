"""How to make each optimizer, transformation and wrapper that runs through fitopt as it is.

What does not descend by itself is chained with gradient descent.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from optax import contrib


def _with_sgd(*parts):
    return optax.chain(*parts, optax.sgd(0.1))


def _descending(*parts):
    return optax.chain(*parts, optax.scale(-0.1))


def _key():
    return jax.random.key(7)


def _even(step, **_):
    return step % 2 == 0


def _rows(params):
    return jax.tree.map(lambda x: contrib.MuonDimensionNumbers(), params)


def _skipping(should_skip, *before):
    accumulating = optax.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=should_skip)
    return optax.chain(*before, accumulating.gradient_transformation())


_WITH_A_LEARNING_RATE = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion
    nadam nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop sgd sign_sgd signum sm3 yogi
    contrib.acprop contrib.ademamix contrib.adopt contrib.cocob contrib.madgrad contrib.momo
    contrib.momo_adam contrib.muon contrib.simplified_ademamix
"""

# To be multiplied by a negative learning rate.
_DIRECTIONS = """
    scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief
    scale_by_lbfgs scale_by_lion scale_by_novograd scale_by_optimistic_gradient
    scale_by_param_block_norm scale_by_param_block_rms scale_by_radam scale_by_rms scale_by_rss
    scale_by_sign scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi
    identity centralize normalize_by_update_norm zero_nans
    contrib.normalize contrib.scale_by_acprop contrib.scale_by_ademamix contrib.scale_by_adopt
    contrib.scale_by_simplified_ademamix
"""


def _find(name):
    return functools.reduce(getattr, name.split("."), optax)


TRANSFORMATIONS = {
    **{name: lambda name=name: _find(name)(0.1) for name in _WITH_A_LEARNING_RATE.split()},
    **{name: lambda name=name: _descending(_find(name)()) for name in _DIRECTIONS.split()},
    # optimizers with arguments of their own
    "lbfgs": lambda: optax.lbfgs(),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, eta=1e-3, key=_key()),
    "contrib.dadapt_adamw": lambda: contrib.dadapt_adamw(estim_lr0=0.01),
    "contrib.dog": lambda: contrib.dog(init_step=("heuristic", 0.1)),
    "contrib.dowg": lambda: contrib.dowg(init_estim_sq_dist=0.1),
    "contrib.galore": lambda: contrib.galore(0.1, rank=2),
    "contrib.prodigy": lambda: contrib.prodigy(estim_lr0=0.01),
    # parts of optimizers
    "add_decayed_weights": lambda: _with_sgd(optax.add_decayed_weights(0.01)),
    "add_noise": lambda: _with_sgd(optax.add_noise(1e-3, 0.55, key=_key())),
    "apply_every": lambda: optax.chain(optax.sgd(0.1), optax.apply_every(2)),
    "ema": lambda: _with_sgd(optax.ema(0.9)),
    "keep_params_nonnegative": lambda: optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
    "scale": lambda: optax.scale(-0.1),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True)
    ),
    "scale_by_distance_over_gradients": lambda: _descending(optax.scale_by_distance_over_gradients(0.1)),
    "scale_by_factored_rms": lambda: _descending(optax.scale_by_factored_rms(min_dim_size_to_factor=2)),
    "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
    "scale_by_polyak": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_polyak(max_learning_rate=0.5)),
    "scale_by_rprop": lambda: optax.chain(optax.scale_by_rprop(0.01), optax.scale(-1.0)),
    "scale_by_schedule": lambda: optax.scale_by_schedule(lambda count: -0.1 / (1 + count)),
    "scale_by_zoom_linesearch": lambda: optax.chain(
        optax.scale(-1.0), optax.scale_by_zoom_linesearch(10)
    ),
    "set_to_zero": lambda: optax.set_to_zero(),
    "trace": lambda: _with_sgd(optax.trace(0.9)),
    "contrib.reduce_on_plateau": lambda: _with_sgd(contrib.reduce_on_plateau(0.5, 2, rtol=0.2)),
    "contrib.scale_by_cocob": lambda: contrib.scale_by_cocob(),
    "contrib.scale_by_galore": lambda: _descending(contrib.scale_by_galore(rank=2)),
    "contrib.scale_by_muon": lambda: _with_sgd(
        optax.masked(contrib.scale_by_muon(weight_dimension_numbers=_rows), {"v": False, "W": True})
    ),
    "contrib.scale_by_madgrad": lambda: contrib.scale_by_madgrad(0.1),
    # clipping
    "adaptive_grad_clip": lambda: _with_sgd(optax.adaptive_grad_clip(0.05)),
    "clip": lambda: _with_sgd(optax.clip(0.05)),
    "clip_by_block_rms": lambda: _with_sgd(optax.clip_by_block_rms(0.05)),
    "clip_by_global_norm": lambda: _with_sgd(optax.clip_by_global_norm(0.1)),
    # wrappers, and what puts transformations together
    "GradientTransformation": lambda: optax.GradientTransformation(*optax.adam(0.1)),
    "GradientTransformationExtraArgs": lambda: optax.GradientTransformationExtraArgs(
        *optax.polyak_sgd()
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 3),
    "WrappedSchedule": lambda: optax.inject_hyperparams(optax.sgd)(
        optax.WrappedSchedule(optax.linear_schedule(0.1, 0.01, 10))
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 100),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "conditionally_mask": lambda: optax.conditionally_mask(
        optax.sgd(0.1), lambda step, value, **_: value > 0.2, forward_extra_args=True
    ),
    "conditionally_transform": lambda: _with_sgd(optax.conditionally_transform(optax.clip(0.05), _even)),
    "flatten": lambda: optax.flatten(optax.lamb(0.1)),
    "freeze": lambda: optax.chain(optax.sgd(0.1), optax.freeze({"v": True, "W": False})),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.linear_schedule(0.1, 0.01, 10)
    ),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(0.1),
    "masked": lambda: _with_sgd(optax.masked(optax.clip(0.05), {"v": True, "W": False})),
    "multi_transform": lambda: optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.1)}, {"v": "fast", "W": "slow"}
    ),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(0.05)), ("sgd", optax.sgd(0.1))),
    "partition": lambda: optax.partition(
        {"slow": optax.sgd(0.01), "fast": optax.adam(0.1)}, {"v": "fast", "W": "slow"}
    ),
    "selective_transform": lambda: optax.selective_transform(
        optax.sgd(0.1), freeze_mask={"v": True, "W": False}
    ),
    "skip_large_updates": lambda: _skipping(
        functools.partial(optax.skip_large_updates, max_squared_norm=4.0),
        optax.add_noise(0.05, 0.55, key=_key()),
    ),
    "skip_not_finite": lambda: _skipping(optax.skip_not_finite),
    "snapshot": lambda: optax.chain(optax.snapshot("norm", optax.tree.norm), optax.sgd(0.1)),
    "stateless": lambda: optax.stateless(lambda g, p: jax.tree.map(lambda x: -0.1 * x, g)),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda g, p: -0.1 * jnp.sign(g)),
    "with_extra_args_support": lambda: optax.with_extra_args_support(optax.sgd(0.1)),
    "contrib.mechanize": lambda: contrib.mechanize(optax.sgd(0.1), s_init=0.1),
    "contrib.split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.1)),
}

ROUGH = ("apply_if_finite", "skip_not_finite", "zero_nans")  # made for gradients that are not finite

# They evaluate loss or gradient at points of their own, with the `obj_fn` or `grad_fn` that `run`
# offers; the loops by hand are in test_options.py.
SECOND_LOOK = ("contrib.sam", "contrib.sophia", "contrib.hutchinson_estimator_diag_hessian")
