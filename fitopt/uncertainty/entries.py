"""The free Parameters of a state as one vector of real numbers, and back."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..parameter.complex_numbers import to_real
from ..parameter.specification import Spec
from ..state import Flat
from ..transforms.transform import Constant, real_dtype


@dataclasses.dataclass(frozen=True)
class _Block:
    """One Parameter's part of the vectors."""

    spec: Spec
    dtype: np.dtype  # of its value
    shape: tuple[int, ...]  # of its value; its real numbers are all real parts, then all imaginary ones
    fitted: Int[np.ndarray, " entries"]  # which of these real numbers the mask does not fix
    coordinate: jax.ShapeDtypeStruct
    moves: slice  # where it lies among the moves
    values: slice  # where it lies among the entries

    @property
    def linear(self) -> bool:
        """Whether a move goes straight in the value; else in the coordinate."""
        return self.spec.bijection.elementwise and not jnp.issubdtype(self.dtype, jnp.complexfloating)


class Entries:
    """How the fitted real numbers of a state lie in two vectors: its entries, and its moves.

    An entry is a number in the value of a free Parameter, in the user's units; entries that a mask
    fixes are not among them. A move is a displacement from where the state is: one number for each that
    the optimizer may choose. In Parameters whose transform acts entry by entry, a move goes straight in
    the value, in units of the transform's slope, so that curvature means that of the loss over values,
    also next to a bound. In others it goes along the coordinate, of which there may be fewer or more.
    """

    def __init__(self, flat: Flat):
        blocks, moves, values = [], 0, 0
        for spec, value in zip(flat.layout.specs, flat.free, strict=True):
            coordinate = jax.eval_shape(spec.to_position, value)
            mask = np.ones(value.shape, bool) if spec.mask is None else spec.mask.array
            parts = 2 if jnp.iscomplexobj(value) else 1
            fitted = np.flatnonzero(np.concatenate([mask.ravel()] * parts))
            free = fitted.size if spec.bijection.elementwise else _reals(coordinate)
            block = _Block(
                spec,
                value.dtype,
                value.shape,
                fitted,
                coordinate,
                slice(moves, moves + free),
                slice(values, values + fitted.size),
            )
            blocks.append(block)
            moves, values = block.moves.stop, block.values.stop
        self._blocks = blocks
        self.parameters = flat.layout.names
        self.n_moves = moves
        self.dtype = jnp.result_type(*(jnp.finfo(block.dtype).dtype for block in blocks))
        labels = [_labels(name, b) for name, b in zip(self.parameters, blocks, strict=True)]
        self.names = tuple(label for of_one in labels for label in of_one)
        # For each entry the move that moves it alone, or -1.
        self.move_of = np.concatenate(
            [
                np.arange(b.moves.start, b.moves.stop) if b.linear else np.full(b.fitted.size, -1)
                for b in blocks
            ]
        )
        self.lower, self.upper = np.concatenate([_range(b) for b in blocks], axis=1)
        scales = np.concatenate([_constant(b, b.spec.scale, 1.0) for b in blocks])
        # What a change of the value is large against, as far as the Parameter says.
        self.span = np.where(np.isfinite(self.upper - self.lower), self.upper - self.lower, scales)
        self._layout = flat.layout

    def named(self, which: Bool[np.ndarray, " entries"]) -> tuple[str, ...]:
        """The names of some entries."""
        return tuple(self.names[i] for i in np.flatnonzero(which))

    def moves_of(self, which: Bool[np.ndarray, " entries"]) -> Bool[np.ndarray, " moves"]:
        """All moves but those of the other entries."""
        moves = np.ones(self.n_moves, bool)
        moves[self.move_of[(self.move_of >= 0) & ~which]] = False
        return moves

    def nearest(self, values: Float[np.ndarray, " entries"]) -> Float[np.ndarray, " entries"]:
        """For each entry the bound that it is closer to."""
        return np.where(values - self.lower < self.upper - values, self.lower, self.upper)

    @property
    def straight(self) -> bool:
        """Whether each move moves one entry, in the same order."""
        return bool(np.all(self.move_of >= 0))

    def owner(self, row: int) -> str:
        """The name of the Parameter that an entry belongs to."""
        blocks = zip(self.parameters, self._blocks, strict=True)
        return next(name for name, block in blocks if row < block.values.stop)

    def select(self, names: Sequence[str]) -> list[str]:
        """The names of entries; that of a Parameter stands for all of its entries."""
        selected = []
        for name in names:
            if name in self.names:
                selected.append(name)
            elif name in self.parameters:
                selected += self.names[self._blocks[self.parameters.index(name)].values]
            else:
                known = dict.fromkeys([*self.parameters, *self.names])
                raise KeyError(f"no parameter {name!r} is fitted; there are {', '.join(known)}")
        return selected

    def read(self, values: Sequence[Any]) -> Float[Array, " entries"]:
        """The entries of the values of the free Parameters."""
        pairs = zip(self._blocks, values, strict=True)
        parts = [to_real(jnp.asarray(value)).ravel()[block.fitted] for block, value in pairs]
        return jnp.concatenate([part.astype(self.dtype) for part in parts])

    def write(self, values: Sequence[Array], entries: Float[Array, " entries"]) -> list[Array]:
        """The values with other entries."""
        written = []
        for block, value in zip(self._blocks, values, strict=True):
            reals = to_real(value)
            part = entries[block.values].astype(reals.dtype)
            written.append(_join(reals.ravel().at[block.fitted].set(part), block.shape, block.dtype))
        return written

    def arrays(self, entries: Float[np.ndarray, " entries"]) -> list[np.ndarray]:
        """For each Parameter an array of its shape with these entries, NaN where the mask fixes it."""
        arrays = []
        for block in self._blocks:
            is_complex = np.issubdtype(block.dtype, np.complexfloating)
            reals = np.full((1 + is_complex) * math.prod(block.shape), np.nan)
            reals[block.fitted] = entries[block.values]
            parts = reals.reshape(-1, *block.shape)
            arrays.append(joined(*parts) if is_complex else np.asarray(parts[0]))
        return arrays

    def tree(self, arrays: Sequence[Any]) -> Any:
        """One array for each free Parameter in the structure of the state, None elsewhere."""
        return self._layout.free_tree(arrays)

    def units(self, values: Sequence[Array]) -> Float[Array, " moves"]:
        """The change of an entry, or of the coordinate, that a move of one stands for."""
        units = []
        for block, value in zip(self._blocks, values, strict=True):
            count = block.moves.stop - block.moves.start
            if not block.linear:
                units.append(jnp.ones(count, self.dtype))
                continue
            coordinate = block.spec.to_position(value)
            _, slope = jax.jvp(block.spec.bijection.forward, (coordinate,), (jnp.ones_like(coordinate),))
            slope = jnp.abs(slope).ravel()[block.fitted].astype(self.dtype)
            units.append(jnp.where((slope > 0) & jnp.isfinite(slope), slope, 1))
        return jnp.concatenate(units)

    def moved(
        self, values: Sequence[Array], units: Float[Array, " moves"], moves: Float[Array, " moves"]
    ) -> list[Array]:
        """The values after small moves; only derivatives at zero are meant to be taken of it."""
        moved = []
        for block, value in zip(self._blocks, values, strict=True):
            part = (units * moves)[block.moves]
            if block.linear:
                step = jnp.zeros(value.size, value.dtype).at[block.fitted].set(part.astype(value.dtype))
                moved.append(value + step.reshape(value.shape))
            else:
                coordinate = block.spec.to_position(value)
                moved.append(block.spec.to_value(coordinate + self._step(block, part), value))
        return moved

    def from_coordinates(
        self, start: Sequence[Array], coordinates: Sequence[Array], moves: Float[Array, " moves"]
    ) -> list[Array]:
        """The values after moves of any size, from `coordinates`; they keep their bounds."""
        triples = zip(self._blocks, start, coordinates, strict=True)
        return [
            block.spec.to_value(coordinate + self._step(block, moves[block.moves]), value)
            for block, value, coordinate in triples
        ]

    def _step(self, block: _Block, part: Float[Array, " moves"]) -> Array:
        """A step of the coordinate; `part` has one number for each that is free."""
        like = block.coordinate
        reals = jnp.zeros(_reals(like), jnp.finfo(like.dtype).dtype)
        where = block.fitted if block.spec.bijection.elementwise else np.arange(reals.size)
        return _join(reals.at[where].set(part.astype(reals.dtype)), like.shape, like.dtype)


def joined(real: Float[np.ndarray, "*shape"], imag: Float[np.ndarray, "*shape"]) -> np.ndarray:
    """Complex numbers of their parts; by `real + 1j * imag` those with an infinite part would be NaN.

    >>> joined(np.array(1.0), np.array(np.inf))
    array(1.+infj)
    """
    numbers = np.empty(np.shape(real), complex)
    numbers.real, numbers.imag = real, imag
    return numbers


def _reals(x: Any) -> int:
    return math.prod(x.shape) * (2 if jnp.issubdtype(x.dtype, jnp.complexfloating) else 1)


def _join(reals: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    parts = reals.reshape(-1, *shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(parts[0], parts[1])
    return parts[0].astype(dtype)


def _labels(name: str, block: _Block) -> list[str]:
    indices = [f"[{','.join(map(str, index))}]" if index else "" for index in np.ndindex(block.shape)]
    if jnp.issubdtype(block.dtype, jnp.complexfloating):
        indices = [f"{index}.real" for index in indices] + [f"{index}.imag" for index in indices]
    return [name + indices[i] for i in block.fitted]


def _range(block: _Block) -> Float[np.ndarray, "2 entries"]:
    """Between which ends entries lie, by their bounds or by what the transform can give."""
    spec = block.spec
    ends = np.stack([_constant(block, spec.lower, -np.inf), _constant(block, spec.upper, np.inf)])
    if spec.transform is None or not block.linear:
        return ends
    edges = jnp.stack([jnp.full(block.shape, x, block.dtype) for x in (-np.inf, np.inf)])
    edges = np.asarray(jax.vmap(spec.bijection.forward)(edges), float)
    edges = np.sort(edges.reshape(2, -1)[:, block.fitted], axis=0)
    return np.where(np.isnan(edges) | np.isfinite(ends), ends, edges)


def _constant(block: _Block, constant: Constant | None, missing: float) -> Float[np.ndarray, " entries"]:
    if constant is None:
        return np.full(block.fitted.size, missing)
    array = np.broadcast_to(constant.astype(real_dtype(block.dtype)), block.shape).ravel().astype(float)
    return np.concatenate([array] * 2)[block.fitted]


def precision_of(free: Sequence[Array]) -> contextlib.AbstractContextManager:
    """In which to compute with these arrays: 64 bits if one of them has these."""
    wide = any(jnp.finfo(value.dtype).bits == 64 for value in free)
    return jax.enable_x64(True) if wide else contextlib.nullcontext()
