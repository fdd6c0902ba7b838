"""What optax has that needs something besides value and gradient, and how to fit with it all the same.

The README shows the recipes in short.
"""

import jax
import optax


def plain(optimizer):
    """For those that choke on the `value`, `grad` and `value_fn` that fitopt offers."""
    return optax.GradientTransformation(optimizer.init, optimizer.update)


def with_grad_fn(optimizer):
    """For SAM in its opaque mode, which takes gradients at points of its own."""

    def update(grads, state, params, *, value_fn, **_):
        return optimizer.update(grads, state, params, grad_fn=lambda x, _: jax.grad(value_fn)(x))

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def with_obj_fn(optimizer):
    """For Sophia and its estimate of the Hessian, which differentiates the loss twice."""

    def update(grads, state, params, *, value_fn, **_):
        return optimizer.update(grads, state, params, obj_fn=value_fn)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


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
