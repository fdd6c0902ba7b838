"""What depends on what in a jaxpr, and the parts of it that concern one leaf alone."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

SHARED, MIXED = -1, -2  # in place of the leaf that something depends on: there is none, or several
_MOST_COMPARED = 32  # entries of constants that count as the same if they are equal


class _Operation(NamedTuple):
    """An equation of a jaxpr; values are numbered."""

    alone: ClosedJaxpr
    inputs: tuple[int, ...]  # the constants in the jaxpr among them
    outputs: tuple[int, ...]
    key: Hashable  # of the primitive and its params: equal only if these are

    def compute(self, values: dict[int, Any]) -> list[Any]:
        """Its outputs, from known values."""
        pairs = zip(self.alone.jaxpr.eqns[0].invars, self.inputs, strict=True)
        known = {variable: values[x] for variable, x in pairs if not isinstance(variable, Literal)}
        return jaxpr_as_fun(self.alone)(*(known[variable] for variable in self.alone.jaxpr.invars))


class Graph:
    """A jaxpr as operations in order, each only once; jitted functions are replaced by their bodies."""

    def __init__(self, closed: ClosedJaxpr):
        self.operations: list[_Operation] = []
        self.constants: dict[int, Any] = {}
        self._numbers: dict[Hashable, Any] = {}
        self._n_values = len(closed.jaxpr.invars)
        self.inputs = [*range(self._n_values)]
        self.outputs = self._add(closed, self.inputs)
        self._producers = {x: operation for operation in self.operations for x in operation.outputs}

    @property
    def is_bound_to_a_trace(self) -> bool:
        """Whether its constants belong to a program that is being traced, and are none for others."""
        return any(isinstance(x, Tracer) for x in self.constants.values())

    def _new(self, count: int) -> tuple[int, ...]:
        self._n_values += count
        return tuple(range(self._n_values - count, self._n_values))

    def _add(self, closed: ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= zip(jaxpr.constvars, map(self._constant, closed.consts), strict=True)
        read = lambda x: self._constant(x.val) if isinstance(x, Literal) else env[x]
        for eqn in jaxpr.eqns:
            values = tuple(map(read, eqn.invars))
            if eqn.primitive.name in ("jit", "pjit"):
                outputs = self._add(eqn.params["jaxpr"], values)
            else:
                outputs = self._operation(jaxpr, eqn, values)
            env |= zip(eqn.outvars, outputs, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _operation(self, jaxpr: Jaxpr, eqn: Any, inputs: tuple[int, ...]) -> tuple[int, ...]:
        key = eqn.primitive, tuple((name, _key(x)) for name, x in sorted(eqn.params.items()))
        if (key, inputs) not in self._numbers:
            outputs = self._numbers[key, inputs] = self._new(len(eqn.outvars))
            variables = [*dict.fromkeys(x for x in eqn.invars if not isinstance(x, Literal))]
            alone = jaxpr.replace(constvars=[], invars=variables, outvars=eqn.outvars, eqns=[eqn])
            self.operations.append(_Operation(ClosedJaxpr(alone, ()), inputs, outputs, key))
        return self._numbers[key, inputs]

    def _constant(self, x: Any) -> int:
        if _key(x) not in self._numbers:
            (number,) = self._numbers[_key(x)] = self._new(1)
            self.constants[number] = x
        return self._numbers[_key(x)][0]

    def owners(self, of_inputs: Iterable[int]) -> dict[int, int]:
        """The leaf that each value depends on, if the inputs depend on these."""
        owners = dict.fromkeys(self.constants, SHARED) | dict(zip(self.inputs, of_inputs, strict=True))
        for operation in self.operations:
            found = {owners[x] for x in operation.inputs} - {SHARED}
            owner = MIXED if len(found) > 1 else found.pop() if found else SHARED
            owners |= dict.fromkeys(operation.outputs, owner)
        return owners

    def _needed(self, outputs: Sequence[int], owners: dict[int, int], owner: int) -> list[_Operation]:
        """The operations of an owner that some values take, in order."""
        found, waiting = {}, [*outputs]
        while waiting:
            operation = self._producers.get(waiting.pop())
            if operation and owners[operation.outputs[0]] == owner and operation.outputs not in found:
                found[operation.outputs] = operation
                waiting += operation.inputs
        return [found[outputs] for outputs in sorted(found)]

    def signature(
        self, taken: Sequence[int], given: Sequence[int], owners: dict[int, int], owner: int
    ) -> Hashable:
        """The function of a leaf, in words that do not say which leaf it is."""
        outputs = [self.outputs[i] for i in given]
        names: dict[int, Hashable] = {self.inputs[i]: ("own", role) for role, i in enumerate(taken)}
        text: list[Hashable] = []
        for operation in self._needed(outputs, owners, owner):
            text.append((operation.key, tuple(names.get(x, x) for x in operation.inputs)))
            names |= {x: (len(text), i) for i, x in enumerate(operation.outputs)}
        return tuple(text), tuple(names.get(x, x) for x in outputs)

    def function(
        self,
        taken: Sequence[int],
        given: Sequence[int],
        owners: dict[int, int],
        owner: int,
        known: dict[int, Any],
    ) -> Callable[..., list[Any]]:
        """The function of a leaf; `known` are the values that belong to no leaf."""
        outputs = [self.outputs[i] for i in given]
        operations = self._needed(outputs, owners, owner)

        def function(*arrays: Any) -> list[Any]:
            values = known | {self.inputs[i]: x for i, x in zip(taken, arrays, strict=True)}
            values = _compute(operations, values)
            return [jnp.asarray(values[x]) for x in outputs]

        return function

    def shared(self, owners: dict[int, int], inputs: dict[int, Any]) -> dict[int, Any]:
        """All values that belong to no leaf, from the inputs that belong to none."""
        operations = [x for x in self.operations if owners[x.outputs[0]] == SHARED]
        return _compute(operations, self.constants | {self.inputs[i]: x for i, x in inputs.items()})


def _compute(operations: Sequence[_Operation], known: dict[int, Any]) -> dict[int, Any]:
    values = dict(known)
    for operation in operations:
        values |= zip(operation.outputs, operation.compute(values), strict=True)
    return values


def _key(x: Any) -> Hashable:
    """What is hashed and compared in place of a constant or a param."""
    if (
        isinstance(x, np.ndarray | np.generic | bool | int | float | complex)
        and np.size(x) <= _MOST_COMPARED
    ):
        return type(x), np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()
    try:
        hash(x)
    except TypeError:
        return type(x), id(x)
    return type(x), x
