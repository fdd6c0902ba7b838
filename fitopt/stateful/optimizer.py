"""`Optimizer`: an optax optimizer that holds its own state, for those who write their own loop."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Int

from ..methods.optax_method import check_optimizer
from ..optimizers.composition import InjectLearningRateState, learning_rate, set_learning_rate
from ..state import PyTree
from .leaves import NUMBERS, replaced, zeros_like
from .parameter_group import Kept, ParameterGroup, Plan, State
from .state_dict import as_dict, from_dict, placed

# States whose count grows by one with every update: another one, handed to a compiled function and back,
# would cost a microsecond or two.
_COUNTING = (
    optax.ScaleByAdamState,
    optax.ScaleByBeliefState,
    optax.ScaleByScheduleState,
    optax.schedules.InjectStatefulHyperparamsState,
)


def _counter(opt_state: PyTree, indices: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """Where in a chain of optax states the steps are counted."""
    if isinstance(opt_state, _COUNTING):
        return indices
    found = None
    chain = type(opt_state) is tuple or isinstance(opt_state, InjectLearningRateState)
    for i, inner in enumerate(opt_state if chain else ()):
        found = _counter(inner, (*indices, i)) if found is None else found
    return found


class Optimizer:
    """An optax optimizer that holds its own state, for those who write their own loop.

    It is a pytree, and goes through `jit`, `vmap` and the carry of `lax.scan` as one. `update` changes
    it in place; inside a transformed function that is a copy, so **return the optimizer** from there.

    Parameters may be any pytree. Arrays of floats or complex numbers and free `fitopt.Parameter`s are
    moved; fixed ones, integers, Python numbers, strings and None stay what they are. The optimizer moves
    a Parameter's unconstrained value, so that bounds are kept; entries that a mask fixes stay the same
    to the bit.

    **Arguments:**

    - `optimizer`: any `optax.GradientTransformation`.

    **Raises:** `TypeError` for what is no optimizer; `RuntimeError` for any use before `init`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from fitopt import Optimizer
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> optimizer = Optimizer(optax.sgd(0.25)).init(params)
    >>> @jax.jit
    ... def train_step(params, optimizer):
    ...     grads = jax.grad(lambda params: jnp.sum(params["w"] ** 2))(params)
    ...     params = optimizer.update(grads, params)
    ...     return params, optimizer
    >>> for _ in range(3):
    ...     params, optimizer = train_step(params, optimizer)
    >>> params["w"].tolist(), int(optimizer.n_steps)
    ([0.125, -0.25], 3)
    """

    def __init__(self, optimizer: optax.GradientTransformation):
        self._plan = Plan(optax.with_extra_args_support(check_optimizer(optimizer)))
        self._state: State = ()

    def init(self, params: PyTree) -> "Optimizer":
        """A new optimizer before its first step; this one is unchanged.

        **Arguments:**

        - `params`: the parameters to optimise.

        **Raises:** `ValueError` where there is nothing to optimise, or a value outside its bounds.
        """
        transformation = self._plan.transformation
        group, kept, opt_state = ParameterGroup.start(transformation, params)
        counter = _counter(opt_state)
        count = jnp.zeros((), jnp.int32) if counter is None else None
        plan = Plan.of(transformation, (group,), counter)
        return _unflatten(plan, plan.pack(count, [kept], [opt_state]))

    def update(
        self, grads: PyTree, params: PyTree = None, apply_updates: bool = True, **extra_args: Any
    ) -> PyTree:
        """Make one step: change the state in place, and return the new parameters.

        Outside of `jit` the step is a compiled program by itself, unless a function is among the extra
        arguments.

        **Arguments:**

        - `grads`: the gradients as `jax.grad` gives them, of Parameters by their values, of complex
            numbers without conjugation. A Parameter's may be an array or a Parameter; what is not moved
            needs none.
        - `params`: the parameters, in the structure, shapes and dtypes of `init`.
        - `apply_updates`: `False` returns what to add to the parameters, in the structure of `grads`.
            Only then, and without Parameters among them, `params` may be left out.
        - `extra_args`: `value`, `grad`, `value_fn` and what else the optimizer takes. `value_fn` is
            called with trees like `params`; `grad` is `grads` if it is not given.

        **Raises:** `ValueError` or `TypeError`, with the path of the leaf, for gradients or parameters
        that are missing, unknown, or not in the shape and dtype of `init`.

        >>> import jax.numpy as jnp, optax
        >>> from fitopt import Parameter
        >>> from fitopt import Optimizer
        >>> params = {"k": Parameter("k", 0.5, lower=0)}
        >>> optimizer = Optimizer(optax.sgd(1.0)).init(params)
        >>> bool(optimizer.update({"k": jnp.array(3.0)}, params)["k"] > 0)
        True
        """
        state, plan = self._initialised(), self._plan
        if params is None and (apply_updates or any(leaf.is_parameter for leaf in plan.moved)):
            raise ValueError(
                "update needs params, unless apply_updates=False and there are no Parameters"
            )
        values = None if params is None else plan.check_params(params)
        slopes = plan.check_grads(grads, "grads")
        extra = dict(extra_args)
        if extra:
            grad = extra.get("grad", grads)
            extra["grad"] = slopes if grad is grads else plan.check_grads(grad, "grad")
        if callable(extra.get("value_fn")) and params is not None:
            extra["value_fn"] = lambda arrays: extra_args["value_fn"](replaced(params, arrays))
        known = _are_known((state, slopes, values, extra))
        advance = plan.compiled if known else plan.advance
        results, self._state = advance(state, slopes, values, extra, apply_updates)
        arrays = dict(zip(plan.paths, results, strict=True))
        return replaced(params, arrays) if apply_updates else replaced(grads, arrays, zeros_like)

    def add_group(self, params: PyTree, optimizer: optax.GradientTransformation) -> "Optimizer":
        """Add parameters with an optimizer and a state of their own; the others' states stay unchanged.

        All groups are dicts with keys of their own; from here on, `update` takes and returns dicts with
        the keys of all of them.

        **Arguments:**

        - `params`: a dict of the parameters to add.
        - `optimizer`: any `optax.GradientTransformation`.

        **Returns:** this optimizer, which is changed in place.

        **Raises:** `TypeError` unless all parameters are in dicts, `ValueError` for a key that is taken,
        and what `init` raises.

        >>> import jax.numpy as jnp, optax
        >>> from fitopt import Optimizer
        >>> params, special = {"w": jnp.ones(2)}, {"special": jnp.ones(())}
        >>> optimizer = Optimizer(optax.adam(0.1)).init(params)
        >>> optimizer = optimizer.add_group(special, optax.sgd(0.5))
        >>> params = params | special
        >>> optimizer.update(params, params)["special"].item()
        0.5
        """
        plan, (count, kept, opt_states) = self._plan, self._parts()
        transformation = optax.with_extra_args_support(check_optimizer(optimizer))
        keys = {path[:1] for path in plan.known}
        if not isinstance(params, Mapping) or any(
            not key or not isinstance(key[0], jax.tree_util.DictKey) for key in keys
        ):
            raise TypeError("add_group: the parameters of init and of every group must be dicts")
        for key in params:
            if (jax.tree_util.DictKey(key),) in keys:
                raise ValueError(f"add_group: the key {key!r} belongs to another group")
        group, own, opt_state = ParameterGroup.start(transformation, params)
        self._plan = Plan.of(plan.transformation, (*plan.groups, group), plan.counter)
        self._state = self._plan.pack(count, [*kept, own], [*opt_states, opt_state])
        return self

    @property
    def initialized(self) -> bool:
        """Whether this comes from `init`."""
        return bool(self._plan.groups)

    @property
    def n_steps(self) -> Int[Array, ""]:
        """The number of updates since `init`."""
        count, _, opt_states = self._parts()
        if count is None:
            counter = self._plan.counter or ()
            count = functools.reduce(operator.getitem, counter, opt_states[0]).count
        return count

    @property
    def opt_state(self) -> PyTree:
        """The optax state; with groups, a tuple of them."""
        _, _, states = self._parts()
        return states[0] if len(states) == 1 else tuple(states)

    @property
    def learning_rate(self) -> Any:
        """The learning rate, if the optimizer's state holds it.

        Those of `fitopt.optimizers` do, and all that `optax.inject_hyperparams` makes. Set it to change
        it in place; nothing is compiled again. It is a dict by pattern with `fitopt.optimizers.groups`;
        with groups of `add_group` a tuple, or a number to set all.

        **Raises:** `AttributeError` if there is none; `ValueError` to set one that follows a schedule;
        `TypeError` and `ValueError` for what is no learning rate.

        >>> import jax.numpy as jnp, optax
        >>> from fitopt import Optimizer
        >>> adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.5)
        >>> optimizer = Optimizer(adam).init(jnp.ones(3))
        >>> optimizer.learning_rate *= 0.5
        >>> optimizer.learning_rate.item()
        0.25
        """
        rates = tuple(self._learning_rates().values())
        return rates[0] if len(rates) == 1 else rates

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        current, (count, kept, states) = self._learning_rates(), self._parts()
        rates = rate if isinstance(rate, tuple | list) else [rate] * len(current)
        if len(rates) != len(current):
            raise ValueError(f"there are {len(current)} learning rates, got {len(rates)}")
        for i, new in zip(current, rates, strict=True):
            states[i] = jax.tree.map(placed, set_learning_rate(states[i], new), states[i])
        self._state = self._plan.pack(count, kept, states)

    def state_dict(self) -> dict[str, Any]:
        """The state as nested dicts of NumPy arrays, for `np.savez`, msgpack and orbax.

        `description` says in UTF-8 what kind of optimizer it belongs to. Typed random keys are saved
        as their data.

        >>> import jax.numpy as jnp, optax
        >>> from fitopt import Optimizer
        >>> optimizer = Optimizer(optax.sgd(0.1, momentum=0.9)).init({"w": jnp.zeros(2)})
        >>> saved = optimizer.state_dict()
        >>> saved["groups"]["0"]["opt_state"]["0"]["trace"]["w"]
        array([0., 0.], dtype=float32)
        >>> optimizer = Optimizer(optax.sgd(0.1, momentum=0.9)).init({"w": jnp.zeros(2)})
        >>> optimizer = optimizer.load_state_dict(saved)
        """
        return as_dict(self._plan, self._initialised(), self.n_steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> "Optimizer":
        """Take the state from `state_dict` of an optimizer of the same kind, with the same parameters.

        **Arguments:**

        - `state`: what `state_dict` gave, with NumPy or JAX arrays or lists of numbers, nested, or flat
            with `/` between the keys.

        **Returns:** this optimizer, which is changed in place.

        **Raises:** `TypeError` for what is no mapping; `ValueError` that names what differs, if the
        state is that of another optimizer.
        """
        self._state = from_dict(self._plan, self._initialised(), state)
        return self

    def __repr__(self) -> str:
        if not self.initialized:
            return "Optimizer(before init)"
        counts = ", ".join(str(len(group.moved)) for group in self._plan.groups)
        return f"Optimizer(n_steps={self.n_steps}, leaves={counts})"

    def _parts(self) -> tuple[Array | None, tuple[Kept, ...], list[PyTree]]:
        """The number of steps unless optax counts them, what groups keep, and the optax states."""
        return self._plan.unpack(self._initialised())

    def _initialised(self) -> State:
        if not self._plan.groups:
            raise RuntimeError("the optimizer has no state yet: call optimizer = optimizer.init(params)")
        return self._state

    def _learning_rates(self) -> dict[int, Any]:
        """By the place of the optax state that holds them."""
        rates, reason = {}, ""
        for i, opt_state in enumerate(self._parts()[2]):
            try:
                rates[i] = learning_rate(opt_state)
            except ValueError as error:
                reason = str(error)
        rates = {i: rate for i, rate in rates.items() if not isinstance(rate, dict) or rate}
        if not rates:
            raise AttributeError(reason)
        return rates


def _are_known(tree: PyTree) -> bool:
    """Whether all are numbers and nothing is traced."""
    return all(isinstance(x, NUMBERS) and not isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def _flatten(optimizer: Optimizer) -> tuple[Any, Any]:
    return optimizer._state, optimizer._plan


def _flatten_with_keys(optimizer: Optimizer) -> tuple[Any, Any]:
    children = enumerate(optimizer._state)
    return tuple((jax.tree_util.SequenceKey(i), x) for i, x in children), optimizer._plan


def _unflatten(plan: Plan, state: Any) -> Optimizer:
    optimizer = object.__new__(Optimizer)
    optimizer._plan, optimizer._state = plan, state
    return optimizer


jax.tree_util.register_pytree_with_keys(Optimizer, _flatten_with_keys, _unflatten, _flatten)
