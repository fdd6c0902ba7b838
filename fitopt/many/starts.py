"""`starts`: where many fits of one state begin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..engine.validation import nothing_free
from ..optimizers.arguments import one_of, whole
from ..state import ParameterVector, PyTree, flatten
from .states import States

_METHODS = {"sobol": "Sobol", "halton": "Halton", "latin_hypercube": "LatinHypercube"}
_MOST_OF_SOBOL = 21201  # dimensions for which scipy has direction numbers


def starts(state: PyTree, n: int, *, seed: int = 0, method: str = "sobol") -> States:
    """Many states with other values of the free Parameters, for `run_many`; the first one is `state`.

    A value with two bounds is drawn evenly between them. One without bounds is normally distributed
    round that of the state, with the Parameter's `scale` as standard deviation (1 where there is none);
    where there is one bound, what would lie beyond is reflected. With a `transform` all this is so on
    the transform's scale: even in the logarithm for `fitopt.transforms.Exp`. What a mask fixes stays.

    **Arguments:**

    - `state`: any pytree with at least one free Parameter.
    - `n`: how many.
    - `seed`: the same seed gives the same starts.
    - `method`: of `scipy.stats.qmc`, whose points fill the space more evenly than random ones:
        `"sobol"`, `"halton"` or `"latin_hypercube"`.

    **Returns:** a sequence of `n` states.

    **Raises:** `TypeError` and `ValueError` for arguments that cannot be meant, such as `"sobol"` for
    more than 21,201 fitted numbers.

    >>> from fitopt import Parameter, starts, transforms
    >>> rate = Parameter("rate", 1.0, lower=0.01, upper=100.0, transform=transforms.Exp())
    >>> states = starts({"rate": rate}, 64)
    >>> states[0]["rate"]
    Parameter('rate', 1.0, lower=0.01, upper=100.0, transform=Exp())
    >>> sum(float(state["rate"]) < 1 for state in states)
    31
    """
    count, seed, method = whole("n", n), whole("seed", seed, 0), one_of("method", method, _METHODS)
    flat = flatten(state)
    if not flat.free:
        raise ValueError(nothing_free(state))
    vector = ParameterVector.of(flat.layout, flat.free, keeps_bounds=True)
    if method == "sobol" and vector.n_displacements > _MOST_OF_SOBOL:
        raise ValueError(
            f"Sobol's sequence has at most {_MOST_OF_SOBOL} dimensions, and {vector.n_displacements} "
            'numbers are fitted; take method="halton" or "latin_hypercube"'
        )
    points = _points(vector.n_displacements, count - 1, seed, method)
    lower, upper = np.concatenate([block.ends() for block in vector.blocks], axis=1)

    @jax.jit
    def values_at(points: Float[np.ndarray, "n displacements"]) -> list[Any]:
        centre = vector.ravel(vector.to_position(flat.free))
        positions = _placed(points, centre, lower, upper).astype(centre.dtype)
        make = lambda position: vector.to_values(vector.unravel(position), flat.free)
        return jax.vmap(make)(positions)

    drawn = jax.device_get(values_at(jnp.asarray(points)))
    pairs = zip(flat.free, drawn, strict=True)
    return States(flat, count, [np.concatenate([np.asarray(x)[None], new]) for x, new in pairs], {})


def _points(dimensions: int, count: int, seed: int, method: str) -> Float[np.ndarray, "n d"]:
    """Points in the unit cube."""
    from scipy.stats import qmc  # slow to import

    engine = getattr(qmc, _METHODS[method])(dimensions, seed=np.random.default_rng(seed))
    if count == 0:
        return np.zeros((0, dimensions))
    if method == "sobol":  # its points are balanced in powers of two
        return engine.random_base2((count - 1).bit_length())[:count]
    return engine.random(count)


def _placed(points: Any, centre: Any, lower: np.ndarray, upper: np.ndarray) -> Any:
    """The positions that belong to points in the unit cube."""
    eps = 2.0**-24
    normal = centre + jax.scipy.special.ndtri(jnp.clip(points, eps, 1 - eps))
    normal = jnp.where(np.isfinite(lower), lower + jnp.abs(normal - lower), normal)
    normal = jnp.where(np.isfinite(upper), upper - jnp.abs(normal - upper), normal)
    even = lower + points * (upper - lower)
    return jnp.where(np.isfinite(lower) & np.isfinite(upper), even, normal)
