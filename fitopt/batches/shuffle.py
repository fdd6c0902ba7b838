"""Random permutations of which each entry is computed by itself, without memory for the others."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, UInt32

_ROUNDS, _MORE, _FEW_ROWS = 12, 32, 1024  # the fewer points, the slower they mix


def shuffled(
    places: Int[Array, " batch"], n: int, seed: UInt32[Array, ""], epochs: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """Which of `n` rows lie at some places of the permutations that belong to a seed and to epochs.

    A Feistel network (Luby and Rackoff 1988) on a rectangle of at least `n` points; a point beyond them
    goes through it again until it is one of them (Black and Rogaway 2002). In each round one number of
    a point is moved by a hash of the other.
    """
    rows, columns = _rectangle(n)
    keys = _mixed(epochs.astype(jnp.uint32) ^ _mixed(seed + jnp.uint32(0x9E3779B9)))

    def permuted(points: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
        x, y = points // columns, points % columns
        for i in range(_MORE if n < _FEW_ROWS else _ROUNDS):
            if i % 2:
                x = (x + _mixed(y ^ _mixed(keys + jnp.uint32(i))) % rows) % rows
            else:
                y = (y + _mixed(x ^ _mixed(keys + jnp.uint32(i))) % columns) % columns
        return x * columns + y

    found = permuted(places.astype(jnp.uint32))
    if rows * columns > n:
        again = lambda points: jnp.where(points < n, points, permuted(points))
        found = lax.while_loop(lambda points: jnp.any(points >= n), again, found)
    return found.astype(jnp.int32)


def _rectangle(n: int) -> tuple[int, int]:
    """The sides of a rectangle, not too long, with few more than `n` points."""
    middle = max(math.isqrt(n), 2)
    sides = range(max(middle // 2, 2), middle + 1)
    rows = min(reversed(sides), key=lambda rows: -n % rows)
    return rows, -(-n // rows)


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits in which each bit depends on all (the end of MurmurHash3, Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
