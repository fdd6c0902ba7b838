"""The real numbers in the Parameters of a fitted state, with all that is known of each."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ..parameter import Derived, Parameter, Spec
from ..state import ParameterVector, PyTree, flatten, is_leaf, values
from ..state.block import Block
from ..state.layout import unique_names
from ..uncertainty import Interval, Uncertainty
from ..uncertainty.messages import listed

FITTED, FIXED, DERIVED = "fitted", "fixed", "derived"
AT_BOUND, UNDETERMINED = "at a bound", "not determined"


class Element(NamedTuple):
    """One real number of a Parameter.

    - `error`: its standard error: infinite where the data do not determine it, None where there is none,
        as it is fixed, at a bound, or the report is one without errors
    - `start`: where the fit began; None where that is not known, or it is fixed
    - `lower`, `upper`: its bounds, None where it has none
    - `status`: "fitted", "fixed", "derived", "at a bound" or "not determined"
    - `interval`: the ends of its confidence interval, None where there is none
    """

    name: str
    value: float
    error: float | None
    start: float | None
    lower: float | None
    upper: float | None
    status: str
    interval: tuple[float, float] | None = None

    @property
    def relative_error(self) -> float | None:
        """The error over the size of the value; None where that is no number.

        >>> Element("k", -2.0, 0.1, None, None, None, "fitted").relative_error
        0.05
        """
        if self.error is None or not math.isfinite(self.error) or self.value == 0:
            return None
        return self.error / abs(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Elements:
    """Those of one Parameter, in arrays: there may be millions."""

    block: Block
    values: Float[np.ndarray, " n"]
    starts: Float[np.ndarray, " n"] | None
    errors: Float[np.ndarray, " n"]  # NaN where there is none
    statuses: Shaped[np.ndarray, " n"]
    intervals: Mapping[str, Interval]  # of any elements

    @functools.cached_property
    def _bounds(self) -> list[Float[np.ndarray, " n"]]:
        return [
            self.block.real_constants(x, np.inf) for x in (self.block.spec.lower, self.block.spec.upper)
        ]

    def __len__(self) -> int:
        return self.values.size

    def __getitem__(self, i: int) -> Element:
        if not 0 <= i < len(self):
            raise IndexError(i)
        label = self.block.real_labels[i]
        lower, upper = (float(end[i]) if np.isfinite(end[i]) else None for end in self._bounds)
        interval = self.intervals.get(label)
        return Element(
            label,
            float(self.values[i]),
            None if np.isnan(self.errors[i]) else float(self.errors[i]),
            None if self.starts is None or self.statuses[i] == FIXED else float(self.starts[i]),
            lower,
            upper,
            self.statuses[i],
            None if interval is None else (interval.low, interval.high),
        )


def parameters_of(state: PyTree) -> dict[str, Parameter]:
    """The Parameters of a state by path."""
    return {path: leaf for path, leaf in leaves_of(state).items() if isinstance(leaf, Parameter)}


def leaves_of(state: PyTree) -> dict[str, Any]:
    """The leaves of a state by path; those in dicts in the order of these, which JAX would sort."""

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        if type(node) is dict:
            for key, child in node.items():
                yield from walk(child, (*path, jax.tree_util.DictKey(key)))
        else:
            for further, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
                yield (*path, *further), leaf

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in walk(state, ())
    }


def blocks(parameters: Mapping[str, Parameter], vector: ParameterVector) -> list[Block]:
    """What there is to know of Parameters, by path, besides their values.

    The free ones, which the `vector` is of, are called as in an uncertainty.
    """
    names = unique_names([parameter.name for parameter in parameters.values()], list(parameters))
    free = dict(zip(vector.layout.paths, vector.blocks, strict=True))
    pairs = zip(parameters.items(), names, strict=True)
    return [free.get(path) or Block.of(name, parameter) for (path, parameter), name in pairs]


def elements(
    blocks: list[Block],
    parameters: Mapping[str, Parameter],
    starts: Mapping[str, Parameter] | None,
    uncertainty: Uncertainty | None,
    intervals: Mapping[str, Interval],
) -> tuple[Elements, ...]:
    """The elements of Parameters, given by path.

    **Raises:** `ValueError` if uncertainty or intervals are those of another state.
    """
    known = {} if uncertainty is None else _known(uncertainty)
    fitted = [label for block in blocks for label in block.labels]
    if not known.keys() <= set(fitted):
        raise ValueError(
            f"uncertainty must be that of state, in which {listed(fitted)} were fitted; "
            f"this one is about {listed(list(known))}"
        )
    if not intervals.keys() <= set(fitted):
        raise ValueError(
            f"intervals must be those of the fitted {listed(fitted)}; got {listed(list(intervals))}"
        )
    found = []
    for block, (path, parameter) in zip(blocks, parameters.items(), strict=True):
        values = block.reals(parameter.value)
        errors, statuses = np.full(values.size, np.nan), np.full(values.size, FIXED, object)
        for i, label in zip(block.fitted, block.labels, strict=True):
            value, errors[i], statuses[i] = known.get(label, (values[i], np.nan, FITTED))
            if value != values[i]:
                raise ValueError(
                    f"uncertainty must be that of state, where {label} is {values[i]:.6g}, "
                    f"not {value:.6g}"
                )
        begun = None if starts is None else block.reals(starts[path].value)
        found.append(Elements(block, values, begun, errors, statuses, intervals))
    return tuple(found)


def derived_elements(state: PyTree, uncertainty: Uncertainty | None) -> tuple[Elements, ...]:
    """The elements of each Derived in a state, with errors by propagation."""
    named = {path: leaf for path, leaf in leaves_of(state).items() if is_leaf(leaf)}
    names = dict(
        zip(named, unique_names([leaf.name for leaf in named.values()], list(named)), strict=True)
    )
    paths = [path for path, leaf in named.items() if isinstance(leaf, Derived)]
    if not paths:
        return ()

    def computed(plain: PyTree) -> list[Any]:
        leaves = leaves_of(plain)
        return [jnp.asarray(leaves[path]) * 1.0 for path in paths]

    if uncertainty is None or not uncertainty.is_complete:
        flat = flatten(state)
        with ParameterVector.of(flat.layout, flat.free).precision():
            arrays = jax.device_get(computed(values(state)))
        errors = [np.full(np.shape(x), np.nan) for x in arrays]
    else:
        arrays, errors = uncertainty.propagate(computed, state)
    found = []
    for path, array, error in zip(paths, arrays, errors, strict=True):
        spec = Spec(names[path], False, None, None, None, None, None)
        block = Block(names[path], spec, array.shape, array.dtype)
        numbers = block.reals(error)
        statuses = np.where(np.isinf(numbers), UNDETERMINED, DERIVED)
        found.append(Elements(block, block.reals(array), None, numbers, statuses, {}))
    return tuple(found)


def _known(uncertainty: Uncertainty) -> dict[str, tuple[float, float, str]]:
    """Value, error and status of each element that an uncertainty is about."""
    status = dict.fromkeys(uncertainty.at_bound, AT_BOUND)
    status |= dict.fromkeys(uncertainty.undetermined, UNDETERMINED)
    errors = np.sqrt(np.diagonal(uncertainty.covariance))
    return {
        name: (value, error, status.get(name, FITTED))
        for name, value, error in zip(uncertainty.names, uncertainty.values, errors, strict=True)
    }
