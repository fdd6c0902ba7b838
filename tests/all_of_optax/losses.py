"""A loss made with each function of optax that serves in one; z is a matrix of 4 rows and 3 columns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import losses

LOGITS = {"z": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}
_CLASSES = jnp.array([0, 1, 2, 1])
_ONE_HOT = jax.nn.one_hot(_CLASSES, 3)
_SIGNS = 2 * _ONE_HOT - 1
_PROBABILITIES = optax.smooth_labels(_ONE_HOT, 0.3)
_TARGETS = jnp.linspace(0.5, 2.0, 12, dtype=jnp.float32).reshape(4, 3)
_PADDINGS, _LABELS = (jnp.zeros((1, 4)), jnp.zeros((1, 2))), jnp.array([[1, 2]])


def _perturbed(noise):
    """The expected cost of the best of three choices, made with noisy scores."""

    def best(scores):
        return jax.nn.one_hot(jnp.argmax(scores), 3)

    choose = optax.perturbations.make_perturbed_fun(best, 50, 1.0, noise)
    return lambda z: jnp.sum(choose(jax.random.key(0), z[0]) * jnp.array([1.0, 2.0, 3.0]))


def _error(z, targets):
    return jnp.sum((z - targets) ** 2)


# In fact functions of the module `losses`; most go by their short names.
LOSSES = {
    "convex_kl_divergence": lambda z: losses.convex_kl_divergence(jax.nn.log_softmax(z), _PROBABILITIES),
    "cosine_distance": lambda z: losses.cosine_distance(z, _TARGETS),
    "cosine_similarity": lambda z: -losses.cosine_similarity(z, _TARGETS),
    "ctc_loss": lambda z: losses.ctc_loss(z[None], _PADDINGS[0], _LABELS, _PADDINGS[1]),
    "ctc_loss_with_forward_probs": lambda z: losses.ctc_loss_with_forward_probs(
        z[None], _PADDINGS[0], _LABELS, _PADDINGS[1]
    )[0],
    "generalized_kl_divergence": lambda z: losses.generalized_kl_divergence(z, _TARGETS),
    "hinge_loss": lambda z: losses.hinge_loss(z, _SIGNS),
    "huber_loss": lambda z: losses.huber_loss(z, _TARGETS, delta=0.5),
    "kl_divergence": lambda z: losses.kl_divergence(jax.nn.log_softmax(z), _PROBABILITIES),
    "l2_loss": lambda z: losses.l2_loss(z, _TARGETS),
    "log_cosh": lambda z: losses.log_cosh(z, _TARGETS),
    "ntxent": lambda z: losses.ntxent(z, jnp.array([0, 0, 1, 1]), temperature=1.0),
    "safe_softmax_cross_entropy": lambda z: losses.safe_softmax_cross_entropy(z, _ONE_HOT),
    "sigmoid_binary_cross_entropy": lambda z: losses.sigmoid_binary_cross_entropy(z, _ONE_HOT),
    "sigmoid_focal_loss": lambda z: losses.sigmoid_focal_loss(z, _ONE_HOT),
    "smooth_labels": lambda z: losses.softmax_cross_entropy(z, losses.smooth_labels(_ONE_HOT, 0.1)),
    "softmax_cross_entropy": lambda z: losses.softmax_cross_entropy(z, _PROBABILITIES),
    "softmax_cross_entropy_with_integer_labels": lambda z: (
        losses.softmax_cross_entropy_with_integer_labels(z, _CLASSES)
    ),
    "squared_error": lambda z: losses.squared_error(z, _TARGETS),
    "losses.binary_dice_loss": lambda z: losses.binary_dice_loss(z, _ONE_HOT),
    "losses.dice_loss": lambda z: losses.dice_loss(z, _ONE_HOT),
    "losses.kl_divergence_with_log_targets": lambda z: losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(z), jnp.log(_PROBABILITIES)
    ),
    "losses.make_fenchel_young_loss": lambda z: losses.make_fenchel_young_loss(
        lambda scores: jax.nn.logsumexp(scores)
    )(z[0], _ONE_HOT[0]),
    "losses.multiclass_generalized_dice_loss": lambda z: losses.multiclass_generalized_dice_loss(
        z, _ONE_HOT
    ),
    "losses.multiclass_hinge_loss": lambda z: losses.multiclass_hinge_loss(z, _CLASSES),
    "losses.multiclass_perceptron_loss": lambda z: losses.multiclass_perceptron_loss(z, _CLASSES),
    "losses.multiclass_sparsemax_loss": lambda z: losses.multiclass_sparsemax_loss(z, _CLASSES),
    "losses.perceptron_loss": lambda z: losses.perceptron_loss(z, _SIGNS),
    "losses.poly_loss_cross_entropy": lambda z: losses.poly_loss_cross_entropy(z, _ONE_HOT),
    "losses.ranking_softmax_loss": lambda z: losses.ranking_softmax_loss(z, _TARGETS),
    "losses.sparsemax_loss": lambda z: losses.sparsemax_loss(z, _ONE_HOT),
    "losses.triplet_margin_loss": lambda z: losses.triplet_margin_loss(z, _TARGETS, -_TARGETS),
}

# Not losses, but made for use inside of one.
INSIDE = {
    "global_norm": lambda z: optax.global_norm({"z": z}),
    "microbatch": lambda z: optax.microbatch(_error, (0, 1), 2)(z, _TARGETS),
    "multi_normal": lambda z: -optax.multi_normal(z, jnp.zeros((4, 3))).log_prob(_TARGETS),
    "safe_norm": lambda z: optax.safe_norm(z - _TARGETS, 1e-3),
    "safe_root_mean_squares": lambda z: optax.safe_root_mean_squares(z - _TARGETS, 1e-3),
    "scale_gradient": lambda z: (optax.scale_gradient(z, 0.5) - _TARGETS) ** 2,
    "perturbations.Gumbel": _perturbed(optax.perturbations.Gumbel()),
    "perturbations.Normal": _perturbed(optax.perturbations.Normal()),
    "perturbations.make_perturbed_fun": _perturbed(optax.perturbations.Gumbel()),
}


def loss_with(function):
    """The mean of what the function gives."""
    return lambda params: jnp.mean(function(params["z"]))
