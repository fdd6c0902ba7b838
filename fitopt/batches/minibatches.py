"""`Minibatches`: some rows of the data at each step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

from ..optimizers.arguments import whole
from ..state import PyTree
from .keys import seed_of
from .shuffle import shuffled
from .source import Source


def n_rows(name: str, data: PyTree) -> int:
    """The length of the leading axis, which all arrays share."""
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(data):
        where = name + jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape") or np.dtype(leaf.dtype).kind in "OUS":
            raise TypeError(f"{where} must be an array of numbers with rows, got {leaf!r}")
        if not leaf.shape:
            raise ValueError(f"{where} must have a leading axis of rows, but it is a scalar")
        lengths[where] = leaf.shape[0]
    if not lengths:
        raise ValueError(f"{name} must hold arrays, got {data!r}")
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{where} has {length}" for where, length in lengths.items())
        raise ValueError(f"the number of rows must be the same in all arrays: {counts}")
    rows = next(iter(lengths.values()))
    if not rows:
        raise ValueError(f"{name} must have rows, and has none")
    return rows


class Minibatches(Source):
    """Some rows of the data at each step, drawn inside the compiled loop.

    The batch has the structure of `data`, with `batch_size` rows. Each pass through the data (an
    epoch) takes each row exactly once, in a new order; where `batch_size` does not divide their
    number, the last rows of a pass come together with the first ones of the next, so that no row is
    lost and all batches are full. A pass has an order that depends on `seed` and on its number alone,
    and needs no memory. `history["epoch"]` tells in which pass each step began.

    **Arguments:**

    - `data`: an array, or a pytree of arrays with a leading axis of rows, which is held on the device;
        for data that do not fit there, hand `run` an iterable of batches.
    - `batch_size`: how many rows a batch has; at most as many as there are.
    - `seed`: an integer from which the orders follow.
    - `shuffle`: False to take the rows as they lie.

    **Raises:** `TypeError` and `ValueError` for arguments of another kind, for arrays with different
    numbers of rows, and for a batch that is larger than the data.

    >>> import jax.numpy as jnp, optax
    >>> from fitopt import Minibatches, OptaxOptimizer, Parameter
    >>> x = jnp.linspace(-1.0, 1.0, 1000)
    >>> def loss(state, batch):
    ...     return jnp.mean((state["slope"] * batch["x"] - batch["y"]) ** 2)
    >>> batches = Minibatches({"x": x, "y": 3 * x}, batch_size=50)
    >>> fit = OptaxOptimizer(loss, optax.adam(0.1))
    >>> fitted, history = fit.run({"slope": Parameter("slope", 0.0)}, 400, batches=batches)
    >>> print(f"{fitted['slope']:.2f}", history["epoch"][-1])
    3.00 19
    """

    data: PyTree
    batch_size: int = eqx.field(static=True)
    seed: UInt32[np.ndarray, ""]
    shuffle: bool = eqx.field(static=True)

    def __init__(self, data: PyTree, batch_size: int, *, seed: int = 0, shuffle: bool = True):
        rows = n_rows("Minibatches: data", data)
        self.batch_size = whole("Minibatches: batch_size", batch_size)
        if self.batch_size > rows:
            raise ValueError(
                f"Minibatches: batch_size must be at most {rows}, the number of rows; got {batch_size}"
            )
        if not isinstance(shuffle, bool):
            raise TypeError(f"Minibatches: shuffle must be True or False, got {shuffle!r}")
        self.data = jax.tree.map(jnp.asarray, data)
        self.seed = seed_of("Minibatches", seed)
        self.shuffle = shuffle

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def rows(self, step: Int[Array, ""]) -> Int[Array, " batch"]:
        """The numbers of the rows that a step gets."""
        n = self.n_rows
        with jax.enable_x64(True):  # the rows of all steps so far may be more than 32 bits can count
            begin = lax.convert_element_type(step, np.int64) * np.int64(self.batch_size)
            epoch, place = (x.astype(np.int32) for x in jnp.divmod(begin, np.int64(n)))
        places = place + jnp.arange(self.batch_size, dtype=jnp.int32)
        is_next: Bool[Array, " batch"] = places >= n
        places = jnp.where(is_next, places - n, places)
        if not self.shuffle:
            return places
        return shuffled(places, n, jnp.asarray(self.seed), epoch + is_next)

    def draw(self, step: Int[Array, ""]) -> PyTree:
        rows = self.rows(step)
        return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), self.data)

    def epochs(self, first: int, steps: int) -> Int[np.ndarray, " steps"]:
        return np.arange(first, first + steps, dtype=np.int64) * self.batch_size // self.n_rows
