"""What optax has that needs something besides value and gradient, and how to fit with it all the same.

docs/all_of_optax.md shows the recipes in short.
"""

import jax
import optax


def plain(optimizer):
    """For those that choke on the extra arguments that fitopt offers, `value` and the like."""
    return optax.GradientTransformation(optimizer.init, optimizer.update)


def per_example(optimizer, example_loss, *examples):
    """For those that want the gradient of each example, with examples along the first axis.

    `example_loss(params, *example)` is the loss of one; the fit's own loss is their mean.
    """
    gradients = jax.vmap(jax.grad(example_loss), (None, *(0 for _ in examples)))

    def update(grads, state, params=None):
        return optimizer.update(gradients(params, *examples), state, params)

    return optax.GradientTransformation(optimizer.init, update)


def filled(optimizer):
    """For `monitor`, whose state is complete after an update only, too late for a compiled loop."""

    def init(params):
        _, state = optimizer.update(params, optimizer.init(params), params)
        return optimizer.init(params)._replace(measurements=state.measurements)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


def projected(projection):
    """After an optimizer, keeps the parameters in a set: `projection` maps what is outside into it."""

    def update(updates, params):
        inside = projection(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, inside, params)

    return optax.stateless(update)
