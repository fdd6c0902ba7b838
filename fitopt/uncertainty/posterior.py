"""From a loss to samplers, and from their draws to ArviZ."""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..engine.validation import check_loss
from ..state import PyTree, flatten, unconstrained, values

if TYPE_CHECKING:
    from arviz import InferenceData


def log_density(
    loss: Callable[[Any], Any], state: PyTree
) -> Callable[[Mapping[str, Any]], Float[Array, ""]]:
    """The logarithm of a posterior's density by unconstrained value: what samplers take.

    **Arguments:**

    - `loss`: the negative logarithm of the posterior's density by value, such as
        `fitopt.with_priors(negative_log_likelihood, {...})`.
    - `state`: a state of the Parameters that are sampled; what is not free stays as it is there.

    **Returns:** a function of a position, as `fitopt.unconstrained(state).position` is one: minus the
    loss, plus the logarithm of the Jacobian's determinant.

    **Raises:** `ValueError` if nothing is free; `TypeError`, when it is called, unless the loss returns
    a real scalar.

    >>> import fitopt
    >>> state = {"rate": fitopt.Parameter("rate", 1.0, lower=0)}
    >>> density = fitopt.log_density(lambda state: state["rate"], state)  # that of an exponential
    >>> print(f"{density({'rate': 0.0}):.4f}")
    -1.3863
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of the state, got {loss!r}")
    _, to_state, log_det_jacobian = unconstrained(state)

    def density(position: Mapping[str, Any]) -> Array:
        value, _ = check_loss(loss(values(to_state(position))), has_aux=False)
        return log_det_jacobian(position) - value

    return density


def to_inference_data(positions: Mapping[str, Any], state: PyTree) -> "InferenceData":
    """What a sampler has drawn, by value, as ArviZ keeps it.

    **Arguments:**

    - `positions`: a dict of arrays as in `fitopt.unconstrained(state).position`, with two axes in front:
        chains and draws.
    - `state`: the state that the positions belong to. What is derived in it is computed for each draw.

    **Returns:** an `arviz.InferenceData` with the group `posterior`, in which Parameters go by name.

    **Raises:** `ImportError` without ArviZ, `ValueError` for other names or shapes.

    >>> import jax.numpy as jnp
    >>> import fitopt
    >>> state = {"rate": fitopt.Parameter("rate", 1.0, lower=0)}
    >>> found = fitopt.to_inference_data({"rate": jnp.zeros((4, 100))}, state)
    >>> dict(found.posterior.sizes)
    {'chain': 4, 'draw': 100}
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about what is to come in ArviZ
            import arviz
    except ImportError as error:
        raise ImportError('to_inference_data needs ArviZ: pip install "fitopt[bayes]"') from error
    position, to_state, _ = unconstrained(state)
    for name, numbers in position.items():
        shape = np.shape(positions.get(name, ()))
        if len(shape) < 2 or shape[2:] != numbers.shape:
            raise ValueError(
                f"positions: {name!r} must have the axes of chains and draws in front of "
                f"{numbers.shape}, got shape {shape}"
            )

    def by_name(position: Mapping[str, Any]) -> dict[str, Array]:
        free, fixed, layout = flatten(to_state(position))
        return layout.named_values(free, fixed)

    drawn = jax.jit(jax.vmap(jax.vmap(by_name)))(
        {name: jnp.asarray(positions[name]) for name in position}
    )
    return arviz.from_dict(posterior=jax.device_get(drawn))
