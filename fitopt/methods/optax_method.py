"""Any optax optimizer as a method."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..callback import StepInfo
from ..optimizers.composition import has_rate, learning_rate, set_learning_rate
from ..optimizers.groups import by_name
from ..optimizers.line_search import forget, last_search, line_searches
from ..optimizers.lookahead import evaluation_params
from ..parameter.complex_numbers import from_real, to_real
from ..state import PyTree
from .derivatives import value_and_gradient
from .leafwise import Leafwise
from .method import Method, Objective, Stepper
from .stacked_stepper import StackedStepper


class OptaxMethod(Method):
    """Any optax optimizer; one that wants the gradient of each example needs the loss of one."""

    def __init__(self, optimizer: Any, evaluate_example: Callable[..., tuple[Any, Any]] | None = None):
        self.optimizer: Any = check_optimizer(optimizer)
        self._evaluate_example = evaluate_example
        self._leafwise: dict[Any, Leafwise | None] = {}

    def bind(self, objective: Objective) -> "OptaxStepper":
        return OptaxStepper(self.optimizer, objective, self._evaluate_example)

    def bind_stacked(self, objective: Objective) -> Stepper:
        stepper, start = self.bind(objective), objective.constants.start
        kind = objective.vector.layout, tuple((x.shape, x.dtype) for x in start)
        if kind not in self._leafwise:
            self._leafwise[kind] = stepper.leafwise(start)
        leafwise = self._leafwise[kind]
        if leafwise is None:
            return stepper
        places = objective.constants.places
        return StackedStepper(stepper, stepper.value_and_gradient, leafwise, places)


def check_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """An optax optimizer, or a TypeError that says what to hand over instead."""
    if isinstance(optimizer, optax.MultiSteps):
        update: Any = optimizer.update
        return optax.GradientTransformationExtraArgs(optimizer.init, update)
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation or a minimiser of optimistix, "
            f"got the class {optimizer.__name__}; call it"
        )
    if callable(optimizer) and not hasattr(optimizer, "init"):
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got the function {name}; "
            f"call it: {name}(learning_rate)"
        )
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")
    transformation: Any = optimizer
    return transformation


class OptaxStepper(Stepper):
    """An optax optimizer at work.

    Optimizers that take extra arguments are handed `value`, `grad` and `value_fn`. A line search
    leaves value and gradient of its last trial in its state; they are not computed again.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        objective: Objective,
        evaluate_example: Callable[..., tuple[Any, Any]] | None,
    ):
        self._objective = objective
        self._evaluate_example = evaluate_example
        self._optimizer = by_name(optimizer, objective.names)
        self.value_and_gradient = value_and_gradient(objective, objective.mode or "rev")
        parameters = inspect.signature(optax.with_extra_args_support(optimizer).update).parameters
        takes_all = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
        self._taken = lambda extra: {k: x for k, x in extra.items() if takes_all or k in parameters}

    def evaluate(self, position: PyTree) -> tuple[Array, Any]:
        return self._objective(position)

    def init(self, position: PyTree) -> PyTree:
        state = self._optimizer.init(position)
        if line_searches(state):
            state = self._optimizer.init(to_real(position))
        return position, state

    def step(self, carry: PyTree) -> tuple[PyTree, StepInfo]:
        position, state = carry
        searches = line_searches(state)
        # What a line search has left is that of another batch.
        search = None if self._objective.batch else last_search(state)
        (loss, aux), grads = self._evaluate(position, search)
        params, uphill = position, grads
        if self._evaluate_example is not None:
            uphill = self._gradients_of_examples(position)
            grads = jax.tree.map(lambda x: jnp.mean(x, axis=0), uphill)
        if searches:
            params, uphill = to_real(position), to_real(grads)
            value_fn = lambda params: self._objective(from_real(params, position))[0]
            extra = {}  # line searches refuse what they do not know
        else:
            value_fn = lambda params: self._objective(params)[0]
            grad_fn = lambda params, *_: self.value_and_gradient(params)[1]
            extra = {"obj_fn": value_fn, "grad_fn": grad_fn}
        extra = self._taken(extra | {"value": loss, "grad": uphill, "value_fn": value_fn})
        updates, state = self._optimizer.update(uphill, state, params, **extra)
        new = optax.apply_updates(params, updates)
        new = from_real(new, position) if searches else new
        return (new, state), StepInfo(jnp.zeros((), jnp.int32), loss, aux, position, grads)

    def position(self, carry: PyTree) -> PyTree:
        return carry[0]

    def learning_rate(self, carry: PyTree) -> PyTree:
        return learning_rate(carry[1]) if has_rate(carry[1]) else None

    def set_learning_rate(self, carry: PyTree, rate: PyTree) -> PyTree:
        return carry[0], set_learning_rate(carry[1], rate)

    def result(self, carry: PyTree) -> PyTree | None:
        position, state = carry
        searches = line_searches(state)
        shown = to_real(position) if searches else position
        result = evaluation_params(state, shown)
        if result is shown:
            return None
        return from_real(result, position) if searches else result

    def move(self, carry: PyTree, position: PyTree) -> PyTree:
        return position, forget(carry[1])

    def leafwise(self, start: Sequence[Array]) -> Leafwise | None:
        """How the optimizer's update falls apart by leaves, if it does; `start` are values."""
        position, state = jax.eval_shape(lambda: self.init(self._objective.position(start)))
        if self._evaluate_example is not None or line_searches(state):
            return None

        calls: list[Any] = []

        def loss(params: PyTree) -> Array:  # in place of the real one: it mixes leaves, as that does
            first, *_, last = jax.tree.leaves(params)
            return jnp.sum(jnp.abs(first)) * jnp.sum(jnp.abs(last))

        def called(params: PyTree, *_: Any) -> Array:
            calls.append(params)
            return loss(params)

        def update(grads: PyTree, state: PyTree, params: PyTree) -> Any:
            functions = {"value_fn": called, "obj_fn": called, "grad_fn": jax.grad(called)}
            extra = self._taken(functions | {"value": loss(params), "grad": grads})
            return self._optimizer.update(grads, state, params, **extra)

        strong = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # as what goes from step to step is
        found = Leafwise.of(update, jax.tree.map(strong, position), jax.tree.map(strong, state))
        return None if calls else found

    def _gradients_of_examples(self, position: PyTree) -> PyTree:
        """The gradient of each example in the batch, with a leading axis of examples."""

        def gradient(example: PyTree) -> PyTree:
            of_example = dataclasses.replace(
                self._objective, evaluate=self._evaluate_example, batch=(example,)
            )
            return value_and_gradient(of_example, self._objective.mode or "rev")(position)[1]

        return jax.vmap(gradient)(self._objective.batch[0])

    def _evaluate(self, position: PyTree, search: Any) -> tuple[tuple[Array, Any], PyTree]:
        if search is None or jax.tree.structure(search.grad) != jax.tree.structure(position):
            return self.value_and_gradient(position)
        dtype = jax.eval_shape(self._objective, position)[0].dtype

        def compute() -> tuple[Array, PyTree]:
            (loss, _), grads = self.value_and_gradient(position)
            return loss, grads

        def reuse() -> tuple[Array, PyTree]:
            return search.value.astype(dtype), from_real(search.grad, position)

        loss, grads = jax.lax.cond(jnp.isfinite(search.value), reuse, compute)
        return (loss, self._objective(position)[1]), grads
