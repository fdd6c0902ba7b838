"""Uncertainties of many fits, whose derivatives are computed in one program."""

import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Array, Float

from ..many.fits import Fits
from ..state import ParameterVector, PyTree
from .estimation import Programs
from .prediction import Prediction
from .result import Uncertainty
from .sampling import Samples

_AT_ONCE = 64  # fits side by side: enough to keep the processor busy, few enough to bound the memory

One = Callable[[Any, Any], Uncertainty]  # of a state, and of its derivatives where they are known


class Uncertainties(Sequence["Uncertainty | None"]):
    """How well the data determine the free Parameters of many fits.

    `optimizer.uncertainty(fits)` makes one. Its items are what `uncertainty` says of each fitted state;
    None where it raises, as derivatives are not finite, and for fits without a loss.

    - `names`: of the elements, a tuple of strings
    - `errors`: shape `(fits, elements)`
    - `correlation`: shape `(fits, elements, elements)`
    - `messages`: for each fit a tuple of sentences
    """

    def __init__(self, vector: ParameterVector, found: Sequence[Uncertainty | None]):
        self._vector = vector
        self._found = list(found)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the elements."""
        return self._vector.labels

    @property
    def errors(self) -> Float[np.ndarray, "fits elements"]:
        """The standard errors of all elements; NaN where there are none."""
        nothing = np.full(len(self.names), np.nan)
        errors = [nothing if x is None else np.sqrt(np.diagonal(x.covariance)) for x in self._found]
        return np.stack(errors)

    @property
    def correlation(self) -> Float[np.ndarray, "fits elements elements"]:
        """The correlations; NaN where there are none."""
        nothing = np.full((len(self.names), len(self.names)), np.nan)
        return np.stack([nothing if x is None else x.correlation for x in self._found])

    @property
    def messages(self) -> tuple[tuple[str, ...], ...]:
        """What to know of each fit before its numbers are used."""
        missing = ("there are no errors, as the loss or its derivatives are not finite",)
        return tuple(missing if x is None else x.messages for x in self._found)

    def standard_errors(self, name: str) -> np.ndarray:
        """Those of a free Parameter, with a leading axis of fits; NaN where there are none.

        **Raises:** `KeyError` if there is none of that name.
        """
        if name not in self._vector.names:
            known = ", ".join(self._vector.names)
            raise KeyError(f"no parameter {name!r} is fitted; there are {known}")
        shape = self._vector.blocks[self._vector.names.index(name)].shape
        nothing = np.full(shape, np.nan)
        return np.stack([nothing if x is None else x.standard_errors[name] for x in self._found])

    def propagate(
        self, fn: Callable[[Any], PyTree], *, mode: str | None = None
    ) -> tuple[PyTree, PyTree]:
        """Value and standard error of a function of each fitted state, with a leading axis of fits.

        As `uncertainty.propagate` does; NaN where there are no errors.
        """
        return self._stacked([x and x.propagate(fn, mode=mode) for x in self._found])

    def predict(
        self, fn: Callable[[Any], PyTree], *, sigma: PyTree = None, mode: str | None = None
    ) -> Prediction:
        """Predictions of each fitted state, with a leading axis of fits: see `uncertainty.predict`."""
        return self._stacked([x and x.predict(fn, sigma=sigma, mode=mode) for x in self._found])

    def sample(self, key: Array, n: int) -> list[Samples | None]:
        """For each fit states as `uncertainty.sample` draws them, None where there are no errors.

        **Raises:** `ValueError` if the data of one do not determine something.
        """
        keys = jax.random.split(key, len(self))
        return [x and x.sample(one, n) for x, one in zip(self._found, keys, strict=True)]

    def _stacked(self, each: Sequence[Any]) -> Any:
        known = next((one for one in each if one is not None), None)
        if known is None:
            raise ValueError("none of the fits has errors: the loss or its derivatives are not finite")
        nothing = jax.tree.map(lambda x: np.full(np.shape(x), np.nan), known)
        return jax.tree.map(lambda *x: np.stack(x), *(nothing if x is None else x for x in each))

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, number: int) -> Uncertainty | None: ...
    @overload
    def __getitem__(self, number: slice) -> "Uncertainties": ...
    def __getitem__(self, number: int | slice) -> Any:
        found = self._found[number]
        return Uncertainties(self._vector, found) if isinstance(number, slice) else found  # type: ignore

    def __iter__(self) -> Iterator[Uncertainty | None]:
        return iter(self._found)

    def __repr__(self) -> str:
        some = sum(x is not None for x in self._found)
        return f"Uncertainties of {some} of {len(self)} fits of {', '.join(self.names)}"


def of_fits(cache: MutableMapping[Any, Any], one: One, mode: str | None, fits: Fits) -> Uncertainties:
    """The uncertainties of fits; `cache` keeps what `one` compiles."""
    template = fits.states.template
    vector = ParameterVector.of(template.layout, template.free)
    numbers = np.flatnonzero(np.isfinite(fits.final_loss))
    found: list[Uncertainty | None] = [None] * len(fits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what they say is in the messages
        for i, number in enumerate(numbers.tolist()):
            if i == 1:  # the first one has compiled what all others need
                with vector.precision():
                    known = _derivatives(cache[vector, mode], cache, fits, numbers)
            derivatives = None if i == 0 else jax.tree.map(lambda x, i=i: x[i], known)
            try:
                found[number] = one(fits[number][0], derivatives)
            except ValueError:  # derivatives are not finite there
                if (vector, mode) not in cache:
                    raise
    return Uncertainties(vector, found)


def _derivatives(
    programs: Programs, cache: MutableMapping[Any, Any], fits: Fits, numbers: np.ndarray
) -> Any:
    """What the program of one fit gives, with a leading axis of fits."""
    states = fits.states
    key = (programs.information, states.varying)
    if key not in cache:

        @jax.jit
        def program(free: list[Any], varying: list[Any], shared: list[Any]) -> Any:
            def at(one: Any) -> Any:
                fixed = list(shared)
                for i, x in zip(states.varying, one[1], strict=True):
                    fixed[i] = x
                return programs.information(one[0], fixed)

            return jax.lax.map(at, (free, varying), batch_size=_AT_ONCE)

        cache[key] = program
    shared = [None if i in states.varying else x for i, x in enumerate(states.template.fixed)]
    free = [x[numbers] for x in fits.table.values]
    return jax.device_get(cache[key](free, states.fixed(numbers), shared))
