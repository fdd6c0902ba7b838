"""Many states of one structure: what all of them share is held once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..engine.resume import describe_state, differences
from ..engine.validation import nothing_free
from ..methods.method import Constants
from ..state import Flat, Layout, PyTree, flatten, is_array, is_parameter

Column = Any  # an array, or a list of arrays, with a leading axis of states
Numbers = Sequence[int] | Int[np.ndarray, " n"] | slice


class States(Sequence[Any]):
    """States that differ in numbers alone.

    A sequence, whose items are made when they are asked for. `fitopt.starts` and `fitopt.vary` make
    such; any other sequence of states becomes one in `run_many`.
    """

    def __init__(
        self, template: Flat, count: int, free: Sequence[Column], varying: Mapping[int, Column]
    ):
        self._template = template
        self._count = count
        self._free = list(free)
        self._varying = dict(varying)

    @classmethod
    def of(cls, states: Any) -> "States":
        """Those of a sequence, which must be alike.

        **Raises:** `TypeError` for what is no sequence of states; `ValueError` if there is none, or if
        they are not of one structure and of the same shapes.
        """
        if isinstance(states, States):
            return states
        if isinstance(states, Mapping | str) or not isinstance(states, Sequence):
            raise TypeError(
                f"states must be a sequence of states, such as a list, got a {type(states).__name__}"
            )
        if not states:
            raise ValueError("states is empty: there is nothing to fit")
        flats = [flatten(state) for state in states]
        first = flats[0]
        if not first.free:
            raise ValueError(nothing_free(states[0]))
        kinds = [*map(_kind, first.free), *map(_kind, first.fixed)]
        for number, flat in enumerate(flats):
            same = flat.layout is first.layout or flat.layout == first.layout
            if not same or kinds != [*map(_kind, flat.free), *map(_kind, flat.fixed)]:
                raise ValueError(f"states must be alike: {_difference(number, first, flat)}")
        columns = [[flat.fixed[i] for flat in flats] for i in range(len(first.fixed))]
        varying = {i: column for i, column in enumerate(columns) if not _is_shared(column)}
        free = [[flat.free[i] for flat in flats] for i in range(len(first.free))]
        return cls(first, len(flats), free, varying)

    @property
    def layout(self) -> Layout:
        return self._template.layout

    @property
    def template(self) -> Flat:
        """One of them, taken apart."""
        return self._template

    @property
    def varying(self) -> tuple[int, ...]:
        """Which of the fixed arrays are not the same in all states."""
        return tuple(self._varying)

    def starts(self, numbers: Numbers) -> list[Any]:
        """The values of the free Parameters of some states, with a leading axis."""
        return [_take(column, numbers) for column in self._free]

    def fixed(self, numbers: Numbers) -> list[Any]:
        """The fixed arrays that vary, of some states."""
        return [_take(column, numbers) for column in self._varying.values()]

    def with_values(self, number: int, values: Sequence[Any]) -> PyTree:
        """A state with other values of its free Parameters."""
        fixed = list(self._template.fixed)
        for i, column in self._varying.items():
            fixed[i] = column[number]
        return self.layout.state([jnp.asarray(x) for x in values], fixed)

    def select(self, numbers: Numbers) -> "States":
        """Some of them."""
        count = len(range(self._count)[numbers]) if isinstance(numbers, slice) else len(numbers)
        varying = {i: _take(column, numbers) for i, column in self._varying.items()}
        return States(self._template, count, self.starts(numbers), varying)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> PyTree: ...
    @overload
    def __getitem__(self, number: slice) -> "States": ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return self.select(number)
        number = range(self._count)[number]
        return self.with_values(number, [column[number] for column in self._free])

    def __iter__(self) -> Iterator[PyTree]:
        return (self[number] for number in range(self._count))

    def __repr__(self) -> str:
        names = ", ".join(self.layout.names)
        return f"<{self._count} states with the free Parameters {names}>"


def vary(state: PyTree, values: Mapping[str, Any]) -> States:
    """As many states as arrays are long: the same state, with these values one after the other.

    **Arguments:**

    - `state`: any pytree with Parameters.
    - `values`: for paths in the state, such as `"y"` or `"layers/0/weight"`, or for names of Parameters,
        an array with a leading axis of states. It stays where it is; all else is held once.

    **Returns:** a sequence of states for `run_many`.

    **Raises:** `KeyError` for a path that is not there; `ValueError` if leading axes are of different
    length, or values are not of their Parameter's shape.

    >>> import numpy as np
    >>> from fitopt import Parameter, vary
    >>> states = vary({"rate": Parameter("rate", 1.0), "y": np.zeros(3)}, {"y": np.ones((5, 3))})
    >>> len(states)
    5
    >>> states[4]["y"]
    array([1., 1., 1.])
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"values must be a dict of arrays by path, got {values!r}")
    if not values:
        raise ValueError("values is empty: name at least one path of the state that is to vary")
    flat = flatten(state)
    leaves = jax.tree.leaves_with_path(state, is_leaf=is_parameter)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    named = [leaf.name if is_parameter(leaf) else None for _, leaf in leaves]
    columns: dict[int, Any] = {}
    counts: dict[str, int] = {}
    for path, given in values.items():
        place = _place(path, paths, named)
        column = given if isinstance(given, jax.Array) else np.asarray(given)
        leaf = leaves[place][1]
        _check_column(path, leaf, column)
        columns[place], counts[path] = column, len(column)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path!r}: {n}" for path, n in counts.items())
        raise ValueError(f"values must have leading axes of one length, got {listed}")
    count = next(iter(counts.values()))
    if count == 0:
        raise ValueError("values have no entries along their leading axes: there is nothing to fit")
    free, varying, number = [], {}, itertools.count()
    for place, (_, leaf) in enumerate(leaves):
        if is_parameter(leaf) and leaf.free:
            value = np.asarray(leaf.value)
            column = columns.get(place, np.broadcast_to(value, (count, *value.shape)))
            free.append(column if column.dtype == value.dtype else column.astype(value.dtype))
        elif is_parameter(leaf) or is_array(leaf):
            i = next(number)
            if place in columns:
                varying[i] = columns[place]
    return States(flat, count, free, varying)


def _place(path: str, paths: Sequence[str], names: Sequence[str | None]) -> int:
    """Which leaf a path, or the name of a Parameter, means."""
    if path in paths:
        return paths.index(path)
    if names.count(path) == 1:
        return names.index(path)
    raise KeyError(f"there is nothing at {path!r} in the state; there are {', '.join(paths)}")


def _check_column(path: str, leaf: Any, column: Any) -> None:
    if not (is_parameter(leaf) or is_array(leaf)):
        raise TypeError(f"{path!r} is {leaf!r} in the state: only Parameters and arrays can vary")
    if not is_array(column) or column.ndim == 0:
        raise TypeError(f"values at {path!r} must be an array with a leading axis, got {column!r}")
    if is_parameter(leaf) and column.shape[1:] != leaf.shape:
        raise ValueError(
            f"values at {path!r} must have shape (n, {', '.join(map(str, leaf.shape))}) for a Parameter "
            f"of shape {leaf.shape}, got {column.shape}"
        )


def _kind(x: Any) -> Any:
    return (x.shape, x.dtype) if hasattr(x, "dtype") else type(x)


def _is_shared(column: Sequence[Any]) -> bool:
    first = column[0]
    if isinstance(first, float | complex):
        return all(x == first for x in column)
    return all(x is first for x in column)


def _take(column: Column, numbers: Numbers) -> Any:
    if not isinstance(column, list):
        return column[numbers if isinstance(numbers, slice) else np.asarray(numbers)]
    chosen = column[numbers] if isinstance(numbers, slice) else [column[i] for i in numbers]
    if jnp.issubdtype(jnp.result_type(chosen[0]), jax.dtypes.extended):  # random keys
        return jnp.stack(chosen)
    dtype = getattr(chosen[0], "dtype", jnp.result_type(chosen[0]))
    return np.stack([np.asarray(x) for x in chosen]).astype(dtype, copy=False)


def _difference(number: int, first: Flat, other: Flat) -> str:
    """In what a state differs from the first one."""
    here, there = (
        describe_state(flat.layout, Constants(flat.free, flat.fixed)) for flat in (first, other)
    )
    for name, before, after in differences(here, there):
        return f"{name} is {before} in state 0, {after} in state {number}"
    return f"state {number} is of another structure than state 0"
