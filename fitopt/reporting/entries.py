"""The numbers in the Parameters of a fitted state, with all that is known of each."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, PyTree, Shaped

from ..parameter.parameter import Parameter
from ..state import Flat, is_parameter
from ..uncertainty.notes import listed
from ..uncertainty.profile import Interval
from ..uncertainty.result import Uncertainty

FITTED, FIXED, AT_BOUND, UNDETERMINED = "fitted", "fixed", "at a bound", "not determined"


class Entry(NamedTuple):
    """One number of a Parameter.

    - `error`: its standard error: infinite where the data do not determine it, None where there is none,
        as it is fixed, at a bound, or the report is one without errors
    - `start`: where the fit began; None where that is not known, or it is fixed
    - `lower`, `upper`: its bounds, None where it has none
    - `status`: "fitted", "fixed", "at a bound" or "not determined"
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

        >>> Entry("k", -2.0, 0.1, None, None, None, "fitted").relative_error
        0.05
        """
        if self.error is None or not math.isfinite(self.error) or self.value == 0:
            return None
        return self.error / abs(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The entries of one Parameter; of a complex one all real parts, then all imaginary ones."""

    name: str
    shape: tuple[int, ...]
    values: Float[np.ndarray, " n"]
    starts: Float[np.ndarray, " n"] | None
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    errors: Float[np.ndarray, " n"]  # NaN where there is none
    statuses: Shaped[np.ndarray, " n"]
    intervals: Mapping[str, Interval]  # of any entries

    def __len__(self) -> int:
        return self.values.size

    def label(self, i: int) -> str:
        """What an entry is called, as in an `Uncertainty`."""
        size = math.prod(self.shape)
        index = ",".join(str(int(j)) for j in np.unravel_index(i % size, self.shape))
        part = "" if len(self) == size else ".imag" if i >= size else ".real"
        return self.name + (f"[{index}]" if self.shape else "") + part

    def entry(self, i: int) -> Entry:
        label = self.label(i)
        interval = self.intervals.get(label)
        return Entry(
            label,
            float(self.values[i]),
            None if np.isnan(self.errors[i]) else float(self.errors[i]),
            None if self.starts is None or self.statuses[i] == FIXED else float(self.starts[i]),
            float(self.lower[i]) if np.isfinite(self.lower[i]) else None,
            float(self.upper[i]) if np.isfinite(self.upper[i]) else None,
            self.statuses[i],
            None if interval is None else (interval.low, interval.high),
        )


def parameters_of(state: PyTree) -> dict[str, Parameter]:
    """The Parameters of a state by path; those in dicts in the order of these, which JAX would sort."""

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        if type(node) is dict:
            for key, child in node.items():
                yield from walk(child, (*path, jax.tree_util.DictKey(key)))
        else:
            for further, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_parameter):
                yield (*path, *further), leaf

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in walk(state, ())
        if is_parameter(leaf)
    }


def fitted_names(
    parameters: Mapping[str, Parameter], flat: Flat, names: Sequence[str]
) -> dict[str, Sequence[str]]:
    """The names of the fitted entries by the path of their Parameter, from those in a state's order."""
    counts = [int(_fitted(parameters[path]).sum()) for path in flat.layout.paths]
    ends = np.cumsum(counts)
    named = {
        path: names[end - count : end]
        for path, count, end in zip(flat.layout.paths, counts, ends, strict=True)
    }
    return {path: named.get(path, ()) for path in parameters}


def blocks(
    parameters: Mapping[str, Parameter],
    starts: Mapping[str, Parameter] | None,
    titles: Mapping[str, str],
    names: Mapping[str, Sequence[str]],
    uncertainty: Uncertainty | None,
    intervals: Mapping[str, Interval],
) -> tuple[Block, ...]:
    """Parameters, by path, as blocks. `titles` are the names of the free ones, `names` of their entries.

    **Raises:** `ValueError` if uncertainty or intervals are those of another state.
    """
    told = {} if uncertainty is None else _told(uncertainty)
    known = [name for own in names.values() for name in own]
    if not told.keys() <= set(known):
        raise ValueError(
            f"uncertainty must be that of final_state, in which {listed(known)} were fitted; "
            f"this one is about {listed(list(told))}"
        )
    if not intervals.keys() <= set(known):
        raise ValueError(
            f"intervals must be those of the fitted {listed(known)}; got {listed(list(intervals))}"
        )
    given = [parameter.name for parameter in parameters.values()]
    found = []
    for path, parameter in parameters.items():
        is_unique = given.count(parameter.name) == 1
        title = parameter.name if is_unique else f"{parameter.name} ({path})"
        values, fitted = _reals(parameter.value), _fitted(parameter)
        errors, statuses = np.full(values.size, np.nan), np.full(values.size, FIXED, object)
        for i, name in zip(np.flatnonzero(fitted), names[path], strict=True):
            value, errors[i], statuses[i] = told.get(name, (values[i], np.nan, FITTED))
            if value != values[i]:
                raise ValueError(
                    f"uncertainty must be that of final_state, where {name} is {values[i]:.6g}, "
                    f"not {value:.6g}"
                )
        block = Block(
            name=titles.get(path, title),
            shape=parameter.value.shape,
            values=values,
            starts=None if starts is None else _reals(starts[path].value),
            lower=_repeated(parameter, -np.inf if parameter.lower is None else parameter.lower),
            upper=_repeated(parameter, np.inf if parameter.upper is None else parameter.upper),
            errors=errors,
            statuses=statuses,
            intervals=intervals,
        )
        found.append(block)
    return tuple(found)


def _told(uncertainty: Uncertainty) -> dict[str, tuple[float, float, str]]:
    """Value, error and status of each entry that an uncertainty is about."""
    status = dict.fromkeys(uncertainty.at_bound, AT_BOUND)
    status |= dict.fromkeys(uncertainty.undetermined, UNDETERMINED)
    errors = np.sqrt(np.diagonal(uncertainty.covariance))
    return {
        name: (value, error, status.get(name, FITTED))
        for name, value, error in zip(uncertainty.names, uncertainty.values, errors, strict=True)
    }


def _reals(value: ArrayLike) -> Float[np.ndarray, " n"]:
    array = np.asarray(value)
    parts = [np.real(array), np.imag(array)] if np.iscomplexobj(array) else [array]
    return np.concatenate([part.ravel().astype(float) for part in parts])


def _fitted(parameter: Parameter) -> Bool[np.ndarray, " n"]:
    """Which of its real numbers are fitted."""
    mask = True if parameter.mask is None else parameter.mask
    return _repeated(parameter, mask & parameter.free).astype(bool)


def _repeated(parameter: Parameter, array: Any) -> Shaped[np.ndarray, " n"]:
    """What an array says about its entries, for each of its real numbers."""
    parts = 2 if np.iscomplexobj(parameter.value) else 1
    return np.tile(np.broadcast_to(array, parameter.value.shape).ravel(), parts)
