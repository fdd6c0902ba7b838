"""Any optax optimizer as a method."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..callback import StepInfo
from ..optimizers.composition import has_rate, learning_rate, set_learning_rate
from ..optimizers.groups import by_name
from ..optimizers.line_search import forget, last_search, line_searches
from ..optimizers.lookahead import evaluation_params
from ..parameter.complex_numbers import from_real, to_real
from .derivatives import value_and_gradient
from .method import Objective, Stepper


class OptaxStepper(Stepper):
    """Any optax optimizer.

    Optimizers that take extra arguments are handed `value`, `grad` and `value_fn`. A line search
    leaves value and gradient of its last trial in its state; they are not computed again. `names` are
    those of the Parameters, in the structure of the coordinates: parameter groups go by them.
    """

    def __init__(
        self, objective: Objective, optimizer: optax.GradientTransformation, mode: str, names: PyTree
    ):
        self._objective = objective
        self._optimizer = by_name(optimizer, names)
        self._value_and_gradient = value_and_gradient(objective, mode)
        parameters = inspect.signature(optax.with_extra_args_support(optimizer).update).parameters
        takes_all = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
        self._taken = lambda extra: {k: x for k, x in extra.items() if takes_all or k in parameters}

    def evaluate(self, coordinates: PyTree) -> tuple[Array, Any]:
        return self._objective(coordinates)

    def init(self, coordinates: PyTree) -> PyTree:
        state = self._optimizer.init(coordinates)
        if line_searches(state):
            state = self._optimizer.init(to_real(coordinates))
        return coordinates, state

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        coordinates, state = carry
        searches = line_searches(state)
        (loss, aux), grads = self._evaluate(coordinates, last_search(state))
        params, uphill = coordinates, grads
        if searches:
            params, uphill = to_real(coordinates), to_real(grads)
            value_fn = lambda params: self._objective(from_real(params, coordinates))[0]
            extra = {}  # line searches refuse what they do not know
        else:
            value_fn = lambda params: self._objective(params)[0]
            grad_fn = lambda params, *_: self._value_and_gradient(params)[1]
            extra = {"obj_fn": value_fn, "grad_fn": grad_fn}
        extra = self._taken(extra | {"value": loss, "grad": uphill, "value_fn": value_fn})
        updates, state = self._optimizer.update(uphill, state, params, **extra)
        new = optax.apply_updates(params, updates)
        new = from_real(new, coordinates) if searches else new
        return (new, state), StepInfo(jnp.zeros((), jnp.int32), loss, aux, coordinates, grads)

    def coordinates(self, carry: PyTree) -> PyTree:
        return carry[0]

    def learning_rate(self, carry: PyTree) -> PyTree:
        return learning_rate(carry[1]) if has_rate(carry[1]) else None

    def set_learning_rate(self, carry: PyTree, rate: PyTree) -> PyTree:
        return carry[0], set_learning_rate(carry[1], rate)

    def result(self, carry: PyTree) -> PyTree | None:
        coordinates, state = carry
        searches = line_searches(state)
        shown = to_real(coordinates) if searches else coordinates
        result = evaluation_params(state, shown)
        if result is shown:
            return None
        return from_real(result, coordinates) if searches else result

    def move(self, carry: PyTree, coordinates: PyTree) -> PyTree:
        return coordinates, forget(carry[1])

    def _evaluate(self, coordinates: PyTree, search: Any) -> tuple[tuple[Array, Any], PyTree]:
        if search is None or jax.tree.structure(search.grad) != jax.tree.structure(coordinates):
            return self._value_and_gradient(coordinates)
        dtype = jax.eval_shape(self._objective, coordinates)[0].dtype

        def compute() -> tuple[Array, PyTree]:
            (loss, _), grads = self._value_and_gradient(coordinates)
            return loss, grads

        def reuse() -> tuple[Array, PyTree]:
            return search.value.astype(dtype), from_real(search.grad, coordinates)

        loss, grads = jax.lax.cond(jnp.isfinite(search.value), reuse, compute)
        return (loss, self._objective(coordinates)[1]), grads
