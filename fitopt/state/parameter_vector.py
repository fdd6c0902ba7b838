"""`ParameterVector`: the free Parameters of a state as vectors of real numbers, and back."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..parameter.complex_numbers import joined, to_real
from ..transforms.transform import real_dtype
from .block import Block, reals_in, shaped
from .layout import Layout


@dataclasses.dataclass(frozen=True)
class ParameterVector:
    """How the free Parameters of a state lie in vectors of real numbers.

    An *element* is a real number in the value of a free Parameter, in the user's units, if no mask fixes
    it. The *position* of a Parameter is the array that a method moves: its unconstrained value, or, for
    a method that keeps bounds itself, its value in units of its scale. A *displacement* is a step from
    where the state is, with one number for each that a method may choose: of Parameters whose transform
    acts entry by entry it goes straight in the value, of others along the position, which may have
    fewer numbers or more.

    Values and positions are lists with an array for each Parameter, in the order of the layout.
    """

    layout: Layout
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, layout: Layout, values: Sequence[Any], keeps_bounds: bool = False) -> "ParameterVector":
        """That of a state with this layout and values of these shapes and dtypes."""
        triples = zip(layout.names, layout.specs, values, strict=True)
        return cls(
            layout, tuple(Block(name, s, x.shape, x.dtype, keeps_bounds) for name, s, x in triples)
        )

    # Values and positions.

    def to_position(self, values: Sequence[Array]) -> list[Array]:
        """The numbers that a method moves; zero where a mask fixes an entry."""
        return [block.to_position(value) for block, value in zip(self.blocks, values, strict=True)]

    def to_values(self, position: Sequence[Array], start: Sequence[Array]) -> list[Array]:
        """The values at a position; `start` gives the entries that masks fix."""
        triples = zip(self.blocks, position, start, strict=True)
        return [block.to_value(x, value) for block, x, value in triples]

    def edited_position(
        self, position: Sequence[Array], before: Sequence[Array], after: Sequence[Array]
    ) -> list[Array]:
        """The position after values were edited; what was not edited keeps it to the last bit."""
        quads = zip(self.blocks, position, before, after, strict=True)
        return [block.edited_position(x, old, new) for block, x, old, new in quads]

    @property
    def is_affine(self) -> bool:
        """Whether values differ from the position by scales alone."""
        specs = [block.spec for block in self.blocks]
        return not any(spec.is_bounded or spec.transform is not None for spec in specs)

    # A position as one vector, as solvers want it.

    def ravel(self, position: Sequence[Array]) -> Float[Array, " displacements"]:
        """A position as one vector of the numbers that may be moved, in the default precision."""
        pairs = zip(self.blocks, position, strict=True)
        parts = [to_real(x).ravel()[_all_or(block.moved, x)] for block, x in pairs]
        return jnp.concatenate([part.astype(jnp.result_type(float)) for part in parts])

    def unravel(self, vector: Float[Array, " displacements"]) -> list[Array]:
        """The inverse of `ravel`, in the dtypes of the position."""
        return [block.step(vector[part]) for block, part in zip(self.blocks, self._moved, strict=True)]

    def bounds(self) -> tuple[Float[np.ndarray, " displacements"], ...] | None:
        """Lower and upper bounds of the position as vectors, or None where there are none."""
        if not any(block.keeps_bounds and block.spec.is_bounded for block in self.blocks):
            return None
        lower, upper = np.concatenate([block.ends() for block in self.blocks], axis=1)
        return lower, upper

    # Elements.

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """That of elements and displacements: the most precise of the Parameters'."""
        return functools.reduce(jnp.promote_types, (real_dtype(block.dtype) for block in self.blocks))

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """In which to compute with the values: 64 bits where one of them has these."""
        return jax.enable_x64(True) if self.dtype == np.float64 else contextlib.nullcontext()

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the Parameters."""
        return tuple(block.name for block in self.blocks)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the elements."""
        return tuple(label for block in self.blocks for label in block.labels)

    @functools.cached_property
    def _elements(self) -> tuple[slice, ...]:
        return _slices([block.fitted.size for block in self.blocks])

    @functools.cached_property
    def _moved(self) -> tuple[slice, ...]:
        return _slices([block.moved.size for block in self.blocks])

    @property
    def n_displacements(self) -> int:
        return sum(block.moved.size for block in self.blocks)

    @functools.cached_property
    def displacement_of(self) -> Int[np.ndarray, " elements"]:
        """For each element the displacement that moves it alone, or -1."""
        alone = [
            np.arange(part.start, part.stop) if block.is_elementwise else np.full(block.fitted.size, -1)
            for block, part in zip(self.blocks, self._moved, strict=True)
        ]
        return np.concatenate(alone)

    @property
    def is_elementwise(self) -> bool:
        """Whether each displacement moves one element, in the same order."""
        return bool(np.all(self.displacement_of >= 0))

    @functools.cached_property
    def _range(self) -> Float[np.ndarray, "2 elements"]:
        return np.concatenate([block.range() for block in self.blocks], axis=1)

    @property
    def lower(self) -> Float[np.ndarray, " elements"]:
        """The least that elements can be."""
        return self._range[0]

    @property
    def upper(self) -> Float[np.ndarray, " elements"]:
        """The most that elements can be."""
        return self._range[1]

    @functools.cached_property
    def span(self) -> Float[np.ndarray, " elements"]:
        """What a change of an element is large against, as far as its Parameter says."""
        scales = np.concatenate([block.constant(block.spec.scale, 1.0) for block in self.blocks])
        width = self.upper - self.lower
        return np.where(np.isfinite(width), width, scales)

    def nearest_bound(self, elements: Float[np.ndarray, " elements"]) -> Float[np.ndarray, " elements"]:
        """For each element the bound that it is closer to."""
        return np.where(elements - self.lower < self.upper - elements, self.lower, self.upper)

    @functools.cached_property
    def can_be_flat(self) -> Bool[np.ndarray, " elements"]:
        """Which elements have a bound, next to which the transform is flat."""
        bounds = np.stack(
            [
                np.concatenate([block.constant(bound(block.spec), np.nan) for block in self.blocks])
                for bound in (lambda spec: spec.lower, lambda spec: spec.upper)
            ]
        )
        return np.isfinite(bounds).any(axis=0) & (self.displacement_of >= 0)

    def inside_by(
        self, elements: Float[Array, " elements"], fraction: float | Array
    ) -> tuple[Float[Array, " elements"], Bool[Array, " elements"]]:
        """The elements, but those close to a bound further inside; and where that is upwards.

        `fraction` is a part of the width between bounds, or of the size of an element with one bound.
        """
        upwards = elements - self.lower < self.upper - elements
        bound = jnp.where(upwards, self.lower, self.upper)
        bound = jnp.where(jnp.isfinite(bound), bound, elements)
        width = self.upper - self.lower
        size = jnp.maximum(self.span, jnp.abs(elements))
        step = fraction * jnp.where(np.isfinite(width), width, size)
        further = jnp.maximum(elements, bound + step), jnp.minimum(elements, bound - step)
        return jnp.where(upwards, *further), upwards

    def labelled(self, which: Bool[np.ndarray, " elements"]) -> tuple[str, ...]:
        """The names of some elements."""
        return tuple(self.labels[i] for i in np.flatnonzero(which))

    def displacements_of(
        self, which: Bool[np.ndarray, " elements"]
    ) -> Bool[np.ndarray, " displacements"]:
        """All displacements but those of the other elements."""
        kept = np.ones(self.n_displacements, bool)
        kept[self.displacement_of[(self.displacement_of >= 0) & ~which]] = False
        return kept

    def owner(self, row: int) -> str:
        """The name of the Parameter that an element belongs to."""
        pairs = zip(self.blocks, self._elements, strict=True)
        return next(block.name for block, part in pairs if row < part.stop)

    def select(self, names: Sequence[str]) -> list[str]:
        """The labels of elements; the name of a Parameter stands for all of its elements.

        **Raises:** `KeyError` for a name that is unknown.
        """
        selected = []
        for name in names:
            if name in self.labels:
                selected.append(name)
            elif name in self.names:
                selected += self.blocks[self.names.index(name)].labels
            else:
                known = dict.fromkeys([*self.names, *self.labels])
                raise KeyError(f"no parameter {name!r} is fitted; there are {', '.join(known)}")
        return selected

    def elements(self, values: Sequence[Any]) -> Float[Array, " elements"]:
        """The elements of some values."""
        pairs = zip(self.blocks, values, strict=True)
        parts = [to_real(jnp.asarray(value)).ravel()[block.fitted] for block, value in pairs]
        return jnp.concatenate([part.astype(self.dtype) for part in parts])

    def with_elements(self, values: Sequence[Array], elements: Float[Array, " elements"]) -> list[Array]:
        """The values with other elements."""
        written = []
        for block, value, part in zip(self.blocks, values, self._elements, strict=True):
            reals = to_real(value)
            reals = reals.ravel().at[block.fitted].set(elements[part].astype(reals.dtype))
            written.append(shaped(reals, value))
        return written

    def arrays(self, elements: Float[np.ndarray, " elements"]) -> list[np.ndarray]:
        """For each Parameter an array of its shape with these elements, NaN where a mask fixes it."""
        arrays = []
        for block, part in zip(self.blocks, self._elements, strict=True):
            reals = np.full((1 + block.is_complex) * math.prod(block.shape), np.nan)
            reals[block.fitted] = elements[part]
            parts = reals.reshape(1 + block.is_complex, *block.shape)
            arrays.append(joined(*parts) if block.is_complex else np.asarray(parts[0]))
        return arrays

    # Displacements.

    def units(self, values: Sequence[Array]) -> Float[Array, " displacements"]:
        """The change of an element, or of the position, that a displacement of one stands for."""
        return jnp.abs(self.slopes(values))

    def slopes(self, values: Sequence[Array]) -> Float[Array, " displacements"]:
        """By how much what a displacement goes along changes with the position."""
        slopes = []
        for block, value in zip(self.blocks, values, strict=True):
            if not block.is_elementwise:
                slopes.append(jnp.ones(block.moved.size, self.dtype))
                continue
            x = block.to_position(value)
            _, slope = jax.jvp(block.transform.forward, (x,), (jnp.ones_like(x),))
            slope = slope.ravel()[block.fitted].astype(self.dtype)
            slopes.append(jnp.where((slope != 0) & jnp.isfinite(slope), slope, 1))
        return jnp.concatenate(slopes)

    def displaced(
        self,
        values: Sequence[Array],
        units: Float[Array, " displacements"],
        displacements: Float[Array, " displacements"],
    ) -> list[Array]:
        """The values after small displacements; only derivatives at zero are meant to be taken of it."""
        displaced = []
        for block, value, part in zip(self.blocks, values, self._moved, strict=True):
            step = (units * displacements)[part]
            if block.is_elementwise:
                zeros = jnp.zeros(value.size, value.dtype)
                straight = zeros.at[block.fitted].set(step.astype(value.dtype))
                displaced.append(value + straight.reshape(value.shape))
            else:
                displaced.append(block.to_value(block.to_position(value) + block.step(step), value))
        return displaced

    def from_position(
        self,
        start: Sequence[Array],
        position: Sequence[Array],
        displacements: Float[Array, " displacements"],
    ) -> list[Array]:
        """The values after displacements of the position of any size; they keep their bounds."""
        steps = self.unravel(displacements)
        return self.to_values([x + step for x, step in zip(position, steps, strict=True)], start)


def _slices(sizes: Sequence[int]) -> tuple[slice, ...]:
    ends = np.cumsum([0, *sizes]).tolist()
    return tuple(slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True))


def _all_or(which: Int[np.ndarray, " n"], x: Array) -> Any:
    """An index that costs no operation where all are meant."""
    return slice(None) if which.size == reals_in(x) else which
