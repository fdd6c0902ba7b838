"""`Optimizer`: an optax optimizer that holds its own state, for those who write their own loop."""

import contextlib
import dataclasses
import functools
import operator
import re
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree

from .composition import InjectLearningRateState, learning_rate, set_learning_rate
from .engine import check_optimizer
from .groups import Groups
from .line_search import from_real, line_searches, to_real
from .parameter import with_value
from .partition import is_parameter
from .spec import Spec, check_value
from .transforms import Identity

Leaves = dict[tuple, Any]  # the leaves of a tree by their paths

# For each leaf where they differ: the last coordinate, and the value that belongs to it. Without them
# each step would make a round trip from value to coordinate.
Kept = tuple[tuple[Array, Array], ...]


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What `init` saw of a leaf that the optimizer moves."""

    path: tuple
    shape: tuple[int, ...]
    dtype: np.dtype
    spec: Spec | None  # of a Parameter

    @property
    def has_coordinate(self) -> bool:
        """Whether the optimizer moves another number than the value."""
        return self.spec is not None and not isinstance(self.spec.bijection, Identity)

    def check(self, x: Any, tree: str) -> Array:
        """The array of a value or a gradient, if it is as at `init`."""
        where = f"{tree}: {_name(self.path)}"
        try:
            array = jnp.asarray(_plain(x))
        except TypeError:
            raise TypeError(f"{where} must be an array, got {x!r}") from None
        if array.shape != self.shape:
            raise ValueError(f"{where} has shape {array.shape}, the parameter at init had {self.shape}")
        weak = getattr(array, "weak_type", False)
        if array.dtype != self.dtype and not (weak and jnp.result_type(array, self.dtype) == self.dtype):
            raise TypeError(f"{where} has dtype {array.dtype}, the parameter at init had {self.dtype}")
        return array.astype(self.dtype) if weak else array

    def check_value(self, x: Any) -> Array:
        """The array of a value, if its Parameter is what it was, and within its bounds."""
        spec = x._spec if is_parameter(x) else None
        if spec != self.spec:
            raise ValueError(
                f"params: {_name(self.path)} was {_kind(self.spec)} at init, and is {_kind(spec)} now; "
                "call init again"
            )
        value = self.check(x, "params")
        if spec is not None and not isinstance(value, Tracer):
            check_value(spec, value)
        return value

    def coordinate(self, value: Array, known: tuple[Array, Array] | None = None) -> Array:
        """The coordinate of a value: the known one where the value is what it was, to the bit."""
        if self.spec is None:
            return value
        coordinate = self.spec.to_coordinate(value)
        if known is None:
            return coordinate
        same = value == known[1]
        return jnp.where(
            same if self.spec.bijection.elementwise else jnp.all(same), known[0], coordinate
        )

    def value(self, coordinate: Array, start: Array) -> Array:
        """The value at a coordinate; `start` gives the entries that a mask fixes."""
        return coordinate if self.spec is None else self.spec.to_value(coordinate, start)

    def gradient(self, grad: Array, coordinate: Array, start: Array) -> Array:
        """The gradient by the coordinate, uphill: that of a complex number is conjugated."""
        if self.spec is not None:
            _, pullback = jax.vjp(lambda coordinate: self.value(coordinate, start), coordinate)
            (grad,) = pullback(grad)
        return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad

    def difference(self, update: Array, new: Array, old: Array) -> Array:
        """What to add to the old value: exactly zero where a mask fixes it."""
        difference = new - old if self.has_coordinate else update
        if self.spec is None or self.spec.mask is None:
            return difference
        return jnp.where(self.spec.mask.array, difference, 0)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Parameters with an optax optimizer of their own: all of it that is static."""

    transformation: Any
    treedef: Any
    paths: tuple[tuple, ...]
    leaves: tuple[_Leaf | None, ...]  # None for what stays as it is
    as_real: bool = False  # whether complex leaves are shown as real ones

    @functools.cached_property
    def moved(self) -> tuple[_Leaf, ...]:
        return tuple(leaf for leaf in self.leaves if leaf is not None)

    @classmethod
    def start(cls, transformation: Any, params: PyTree) -> tuple["_Group", Kept, PyTree]:
        """The group of these parameters, before its first step."""
        flat, treedef = jax.tree.flatten_with_path(params, is_leaf=is_parameter)
        leaves = tuple(_leaf(path, x) for path, x in flat)
        group = cls(transformation, treedef, tuple(path for path, _ in flat), leaves)
        if not group.moved:
            raise ValueError("params hold nothing to optimise: no array of floats, no free Parameter")
        values = [leaf.check_value(x) for leaf, (_, x) in zip(leaves, flat, strict=True) if leaf]
        coordinates = [leaf.coordinate(x) for leaf, x in zip(group.moved, values, strict=True)]
        if isinstance(transformation, Groups):
            names = (leaf.spec.name if leaf.spec else _text(leaf.path) for leaf in group.moved)
            transformation = transformation.named(group.tree(names))
            group = dataclasses.replace(group, transformation=transformation)
        tree = group.tree(map(jnp.copy, coordinates))
        opt_state = transformation.init(tree)
        if line_searches(opt_state):
            group, opt_state = (
                dataclasses.replace(group, as_real=True),
                transformation.init(to_real(tree)),
            )
        return group, group.keep(coordinates, values), opt_state

    def tree(self, leaves: Iterable[Any]) -> PyTree:
        """One thing for each moved leaf, in the structure of the parameters; None elsewhere."""
        arrays = iter(leaves)
        return jax.tree.unflatten(self.treedef, [leaf and next(arrays) for leaf in self.leaves])

    def keep(self, coordinates: list[Array], values: list[Array]) -> Kept:
        """Both, in memory of their own: parameters and optimizer may be donated together."""
        triples = zip(self.moved, coordinates, values, strict=True)
        return tuple((jnp.copy(x), jnp.copy(v)) for leaf, x, v in triples if leaf.has_coordinate)

    def step(
        self,
        kept: Kept,
        opt_state: PyTree,
        grads: Leaves,
        params: Leaves | None,
        extra: dict[str, Any],
        apply_updates: bool,
    ) -> tuple[list[Array], Kept, PyTree]:
        """One step: the new values, or what to add to the old ones, and what they are kept with."""
        # Without parameters there are no coordinates, and the gradients stand in for their shapes.
        start = [(grads if params is None else params)[leaf.path] for leaf in self.moved]
        known = iter(kept)
        coordinates = [
            leaf.coordinate(value, next(known) if leaf.has_coordinate else None)
            for leaf, value in zip(self.moved, start, strict=True)
        ]
        plain = self.tree(coordinates)
        show = to_real if self.as_real else lambda tree: tree
        hide = lambda shown: jax.tree.leaves(from_real(shown, plain) if self.as_real else shown)

        def gradients(grads: Leaves) -> PyTree:
            triples = zip(self.moved, coordinates, start, strict=True)
            return show(self.tree(leaf.gradient(grads[leaf.path], x, v) for leaf, x, v in triples))

        def values(coordinates: list[Array]) -> list[Array]:
            triples = zip(self.moved, coordinates, start, strict=True)
            return [leaf.value(x, v) for leaf, x, v in triples]

        uphill = gradients(grads)
        if "grad" in extra:
            extra = extra | {"grad": uphill if extra["grad"] is grads else gradients(extra["grad"])}
        if "value_fn" in extra:
            of_leaves, paths = extra["value_fn"], [leaf.path for leaf in self.moved]
            value_fn = lambda shown: of_leaves(dict(zip(paths, values(hide(shown)), strict=True)))
            extra = extra | {"value_fn": value_fn}
        shown = show(plain)
        updates, opt_state = self.transformation.update(
            uphill, opt_state, None if params is None else shown, **extra
        )
        reached = hide(optax.apply_updates(shown, updates))
        result = new = values(reached)
        if not apply_updates:
            quads = zip(self.moved, hide(updates), new, start, strict=True)
            result = [leaf.difference(update, x, v) for leaf, update, x, v in quads]
            new = [v + x for v, x in zip(start, result, strict=True)]  # as the caller will add them up
        return result, self.keep(reached, new), opt_state


class _Static:
    """All of an optimizer that is static. Equal ones are one object: that is fast to compare."""

    _all: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()

    def __init__(
        self,
        transformation: Any,
        groups: tuple[_Group, ...] = (),
        counter: tuple[int, ...] | None = None,
    ):
        self.transformation = transformation
        self.groups = groups
        self.counter = counter  # where in the first group's optax state the steps are counted

    @classmethod
    def of(cls, *content: Any) -> "_Static":
        try:
            return cls._all.setdefault(content, cls(*content))
        except TypeError:  # static fields in the parameters' structure that have no hash
            return cls(*content)

    def __deepcopy__(self, memo: dict) -> "_Static":
        return self


# States whose count grows by one with every update: another one, handed to a compiled function and back,
# would cost a microsecond.
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
    moved; fixed ones, integers, strings and None stay what they are. The optimizer moves a Parameter's
    coordinate, so that bounds are kept; entries that a mask fixes stay the same to the bit.

    **Arguments:**

    - `optimizer`: any `optax.GradientTransformation`.

    **Raises:** `TypeError` for what is no optimizer; `RuntimeError` for any use before `init`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from fitopt.stateful import Optimizer
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> optimizer = Optimizer(optax.sgd(0.25)).init(params)
    >>> @jax.jit
    ... def train_step(params, optimizer):
    ...     grads = jax.grad(lambda params: jnp.sum(params["w"] ** 2))(params)
    ...     params = optimizer.update(grads, params)
    ...     return params, optimizer
    >>> for _ in range(3):
    ...     params, optimizer = train_step(params, optimizer)
    >>> params["w"].tolist(), int(optimizer.step_count)
    ([0.125, -0.25], 3)
    """

    def __init__(self, optimizer: optax.GradientTransformation):
        self._static = _Static(optax.with_extra_args_support(check_optimizer(optimizer)))
        self._state: Any = (None, ())  # the count unless optax counts, what groups keep, optax states

    def init(self, params: PyTree) -> "Optimizer":
        """A new optimizer before its first step; this one is unchanged.

        **Arguments:**

        - `params`: the parameters to optimise.

        **Raises:** `ValueError` where there is nothing to optimise, or a value outside its bounds.
        """
        transformation = self._static.transformation
        group, kept, opt_state = _Group.start(transformation, params)
        counter = _counter(opt_state)
        count = jnp.zeros((), jnp.int32) if counter is None else None
        return _unflatten(_Static.of(transformation, (group,), counter), (count, (kept,), opt_state))

    def update(
        self, grads: PyTree, params: PyTree = None, apply_updates: bool = True, **extra_args: Any
    ) -> PyTree:
        """Make one step: change the state in place, and return the new parameters.

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
        >>> from fitopt.stateful import Optimizer
        >>> params = {"k": Parameter("k", 0.5, lower=0)}
        >>> optimizer = Optimizer(optax.sgd(1.0)).init(params)
        >>> bool(optimizer.update({"k": jnp.array(3.0)}, params)["k"] > 0)
        True
        """
        count, kept, *opt_states = self._initialised()
        values = self._check_params(params, apply_updates)
        slopes = self._check_grads(grads, "grads")
        extra = dict(extra_args)
        if extra:
            grad = extra.get("grad", grads)
            extra["grad"] = slopes if grad is grads else self._check_grads(grad, "grad")
        if callable(extra.get("value_fn")) and params is not None:
            extra["value_fn"] = lambda leaves: extra_args["value_fn"](_replaced(params, leaves))
        results, after = {}, []
        for group, own, opt_state in zip(self._static.groups, kept, opt_states, strict=True):
            arrays, own, opt_state = group.step(own, opt_state, slopes, values, extra, apply_updates)
            results |= {leaf.path: x for leaf, x in zip(group.moved, arrays, strict=True)}
            after.append((own, opt_state))
        count = None if count is None else optax.safe_increment(count)
        kept, opt_states = zip(*after, strict=True)
        self._state = (count, kept, *opt_states)
        return _replaced(params, results) if apply_updates else _replaced(grads, results, _zeros_like)

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
        >>> from fitopt.stateful import Optimizer
        >>> params, special = {"w": jnp.ones(2)}, {"special": jnp.ones(())}
        >>> optimizer = Optimizer(optax.adam(0.1)).init(params)
        >>> optimizer = optimizer.add_group(special, optax.sgd(0.5))
        >>> params = params | special
        >>> optimizer.update(params, params)["special"].item()
        0.5
        """
        count, kept, *opt_states = self._initialised()
        transformation = optax.with_extra_args_support(check_optimizer(optimizer))
        groups = self._static.groups
        keys = {path[:1] for group in groups for path in group.paths}
        if not isinstance(params, Mapping) or any(
            not key or not isinstance(key[0], jax.tree_util.DictKey) for key in keys
        ):
            raise TypeError("add_group: the parameters of init and of every group must be dicts")
        for key in params:
            if (jax.tree_util.DictKey(key),) in keys:
                raise ValueError(f"add_group: the key {key!r} belongs to another group")
        group, own, opt_state = _Group.start(transformation, params)
        static = self._static
        self._static = _Static.of(static.transformation, (*groups, group), static.counter)
        self._state = (count, (*kept, own), *opt_states, opt_state)
        return self

    @property
    def initialized(self) -> bool:
        """Whether this comes from `init`."""
        return bool(self._static.groups)

    @property
    def step_count(self) -> Int[Array, ""]:
        """The number of updates since `init`."""
        count, _, opt_state, *_ = self._initialised()
        if count is None:
            inner = functools.reduce(operator.getitem, self._static.counter or (), opt_state)
            count = inner.count
        return count

    @property
    def opt_state(self) -> PyTree:
        """The optax state; with groups, a tuple of them."""
        _, _, *states = self._initialised()
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
        >>> from fitopt.stateful import Optimizer
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
        current, states = self._learning_rates(), list(self._state)
        rates = rate if isinstance(rate, tuple | list) else [rate] * len(current)
        if len(rates) != len(current):
            raise ValueError(f"there are {len(current)} learning rates, got {len(rates)}")
        for i, new in zip(current, rates, strict=True):
            states[i] = jax.tree.map(_like, set_learning_rate(states[i], new), states[i])
        self._state = tuple(states)

    def state_dict(self) -> dict[str, Any]:
        """The state as nested dicts of NumPy arrays, for `np.savez`, msgpack and orbax.

        `description` says in UTF-8 what kind of optimizer it belongs to. Typed random keys are saved
        as their data.

        >>> import jax.numpy as jnp, optax
        >>> from fitopt.stateful import Optimizer
        >>> optimizer = Optimizer(optax.sgd(0.1, momentum=0.9)).init({"w": jnp.zeros(2)})
        >>> saved = optimizer.state_dict()
        >>> saved["groups"]["0"]["opt_state"]["0"]["trace"]["w"]
        array([0., 0.], dtype=float32)
        >>> optimizer = Optimizer(optax.sgd(0.1, momentum=0.9)).init({"w": jnp.zeros(2)})
        >>> optimizer = optimizer.load_state_dict(saved)
        """
        nested = {"description": np.frombuffer(self._description().encode(), np.uint8).copy()}
        for path, leaf in (self._named() | {("step_count",): self.step_count}).items():
            *parents, last = path
            inner: Any = nested
            for key in parents:
                inner = inner.setdefault(key, {})
            inner[last] = np.array(_data(leaf))
        return nested

    def load_state_dict(self, state: Mapping[str, Any]) -> "Optimizer":
        """Take the state from `state_dict` of an optimizer of the same kind, with the same parameters.

        **Arguments:**

        - `state`: what `state_dict` gave, with NumPy or JAX arrays or lists of numbers, nested, or flat
            with `/` between the keys.

        **Returns:** this optimizer, which is changed in place.

        **Raises:** `ValueError` that names what differs, if it is that of another optimizer.
        """
        named = {"/".join(path): leaf for path, leaf in self._named().items()}
        given = _joined(state)
        if self._state[0] is None:  # optax counts, too
            given.pop("step_count", None)
        try:
            description = np.asarray(given.pop("description"), np.uint8).tobytes().decode()
        except (KeyError, ValueError, TypeError):
            raise ValueError("this is no state_dict of a fitopt.Optimizer: no description") from None
        theirs, ours = description.splitlines(), self._description().splitlines()
        differing = [f"it has {x!r}, this optimizer lacks it" for x in theirs if x not in ours]
        differing += [f"it lacks {x!r}" for x in ours if x not in theirs]
        if not differing:
            differing = [f"it lacks {name}" for name in named if name not in given]
            differing += [f"this optimizer has no {name}" for name in given if name not in named]
            both = [name for name in named if name in given]
            differing += filter(None, (_mismatch(name, given[name], named[name]) for name in both))
        if differing:
            raise ValueError(f"the state_dict is that of another optimizer: {'; '.join(differing[:5])}")
        leaves = [_restored(given[name], leaf) for name, leaf in named.items()]
        self._state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        return self

    def __repr__(self) -> str:
        if not self.initialized:
            return "Optimizer(before init)"
        counts = ", ".join(str(len(group.moved)) for group in self._static.groups)
        return f"Optimizer(step_count={self.step_count}, leaves={counts})"

    def _initialised(self) -> tuple:
        if not self._static.groups:
            raise RuntimeError("the optimizer has no state yet: call optimizer = optimizer.init(params)")
        return self._state

    def _moved(self) -> list[_Leaf]:
        return [leaf for group in self._static.groups for leaf in group.moved]

    def _check_params(self, params: PyTree, apply_updates: bool) -> Leaves | None:
        """The arrays of all values to move."""
        moved = self._moved()
        if params is None:
            if apply_updates or any(leaf.spec is not None for leaf in moved):
                raise ValueError(
                    "update needs params, unless apply_updates=False and there are no Parameters"
                )
            return None
        given, known = _leaves(params), {leaf.path for leaf in moved}
        for path, x in given.items():
            if path not in known and _is_moved(x):
                raise ValueError(
                    f"params: {_name(path)} was not there, or fixed, at init; see add_group"
                )
        for leaf in moved:
            if leaf.path not in given:
                raise ValueError(f"params: {_name(leaf.path)} is missing")
        return {leaf.path: leaf.check_value(given[leaf.path]) for leaf in moved}

    def _check_grads(self, grads: PyTree, tree: str) -> Leaves:
        """The arrays of the gradients of all that moves."""
        given, moved = _leaves(grads), self._moved()
        known = {path for group in self._static.groups for path in group.paths}
        for leaf in moved:
            if leaf.path not in given:
                raise ValueError(
                    f"{tree}: {_name(leaf.path)} is missing; "
                    f"got {len(given)} gradients for {len(moved)} leaves of the parameters"
                )
        for path in given:
            if path not in known:
                raise ValueError(f"{tree}: {_name(path)} is not in the parameters of init")
        return {leaf.path: leaf.check(given[leaf.path], tree) for leaf in moved}

    def _learning_rates(self) -> dict[int, Any]:
        """By the place of the optax state that holds them."""
        rates = {}
        for i, opt_state in enumerate(self._initialised()[2:], 2):
            with contextlib.suppress(ValueError):  # there is none
                rates[i] = learning_rate(opt_state)
        rates = {i: rate for i, rate in rates.items() if not isinstance(rate, dict) or rate}
        if not rates:
            raise AttributeError(
                "the optimizer's state holds no learning rate; make the optimizer with "
                "fitopt.optimizers.adam(0.1) or optax.inject_hyperparams(optax.adam)(learning_rate=0.1)"
            )
        return rates

    def _named(self) -> dict[tuple[str, ...], Any]:
        """All arrays of the state, in the order of the leaves, by the keys of `state_dict`."""
        count, kept, *opt_states = self._initialised()
        named: dict[tuple[str, ...], Any] = {} if count is None else {("step_count",): count}
        for i, (group, pairs) in enumerate(zip(self._static.groups, kept, strict=True)):
            stored = [_keys(leaf.path) for leaf in group.moved if leaf.has_coordinate]
            for path, pair in zip(stored, pairs, strict=True):
                for part, x in zip(("coordinates", "values"), pair, strict=True):
                    named["groups", str(i), part, *path] = x
        for i, opt_state in enumerate(opt_states):
            for path, x in jax.tree.flatten_with_path(opt_state)[0]:
                named["groups", str(i), "opt_state", *_keys(path)] = x
        if len({"/".join(path) for path in named}) != len(jax.tree.leaves(self._state)):
            raise ValueError("two leaves of the state have the same path, so it has no state_dict")
        return named

    def _description(self) -> str:
        """What kind of optimizer this is, and how Parameters come to their coordinates."""
        lines = []
        for i, (group, opt_state) in enumerate(zip(self._static.groups, self._state[2:], strict=True)):
            lines.append(f"group {i}: {_names(opt_state)}")
            bounded = (leaf for leaf in group.moved if leaf.spec is not None)
            lines += [f"group {i}, {_name(leaf.path)}: {_kind(leaf.spec)}" for leaf in bounded]
        return "\n".join(lines)


def _flatten(optimizer: Optimizer) -> tuple[Any, Any]:
    return optimizer._state, optimizer._static


def _flatten_with_keys(optimizer: Optimizer) -> tuple[Any, Any]:
    children = enumerate(optimizer._state)
    return tuple((jax.tree_util.SequenceKey(i), x) for i, x in children), optimizer._static


def _unflatten(static: Any, state: Any) -> Optimizer:
    optimizer = object.__new__(Optimizer)
    optimizer._static, optimizer._state = static, state
    return optimizer


jax.tree_util.register_pytree_with_keys(Optimizer, _flatten_with_keys, _unflatten, _flatten)


_NUMBERS = (jax.Array, np.ndarray, np.generic, float, complex)


def _plain(x: Any) -> Any:
    return x.value if is_parameter(x) else x


def _is_moved(x: Any) -> bool:
    if is_parameter(x) and not x.free:
        return False
    x = _plain(x)
    return isinstance(x, _NUMBERS) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _leaf(path: tuple, x: Any) -> _Leaf | None:
    if not _is_moved(x):
        return None
    array = jnp.asarray(_plain(x))
    return _Leaf(path, array.shape, array.dtype, x._spec if is_parameter(x) else None)


def _leaves(tree: PyTree) -> Leaves:
    """The leaves by their paths; a Parameter is one leaf, and none if it has lost its value."""
    flat, _ = jax.tree.flatten_with_path(tree, is_leaf=is_parameter)
    return {path: x for path, x in flat if _plain(x) is not None}


def _replaced(tree: PyTree, leaves: Leaves, others: Callable[[Any], Any] = lambda x: x) -> PyTree:
    """The tree with other arrays in the places of `leaves`."""

    def replace(path: tuple, x: Any) -> Any:
        if path not in leaves:
            return others(x)
        return with_value(x._spec, leaves[path]) if is_parameter(x) else leaves[path]

    return jax.tree.map_with_path(replace, tree, is_leaf=is_parameter)


def _zeros_like(x: Any) -> Any:
    def zeros(x: Any) -> Any:
        if not isinstance(x, _NUMBERS):
            return x
        dtype = jnp.result_type(x)  # of integers, JAX' gradients have one that cannot be added
        return jnp.zeros(np.shape(x), bool if dtype == jax.dtypes.float0 else dtype)

    return jax.tree.map(zeros, x)


def _text(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(_text((key,)) for key in path)


def _name(path: tuple) -> str:
    return f"leaf {_text(path)!r}" if path else "the one leaf"


def _kind(spec: Spec | None) -> str:
    """What an optimizer has to know of a Parameter; arrays are told apart by a checksum."""
    if spec is None:
        return "a plain array"
    words = [] if spec.free else ["free=False"]
    for label in ("lower", "upper", "scale", "mask"):
        constant = getattr(spec, label)
        if constant is not None:
            array = constant.array.astype(np.float64)
            text = repr(array.item()) if array.ndim == 0 else f"array {zlib.crc32(array.tobytes()):08x}"
            words.append(f"{label}={text}")
    if spec.transform is not None:
        words.append(f"transform={re.sub(' at 0x[0-9a-f]+', '', repr(spec.transform))}")
    return f"Parameter({', '.join([repr(spec.name), *words])})"


def _names(state: PyTree) -> str:
    """The names of the states that optax has nested in one another."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(state)) or state is None:
        return ""
    if isinstance(state, dict):
        inner = [state[key] for key in sorted(state)]
    else:
        inner = state if isinstance(state, tuple | list) else ()
    inside = ", ".join(filter(None, map(_names, inner)))
    if type(state) in (dict, tuple, list):
        return inside
    return type(state).__name__ + (f"({inside})" if inside else "")


def _joined(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, x in nested.items():
        inner = _joined(x) if isinstance(x, Mapping) else {"": x}
        flat |= {f"{key}/{rest}" if rest else str(key): leaf for rest, leaf in inner.items()}
    return flat


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _mismatch(name: str, given: Any, wanted: Any) -> str:
    array, expected = np.asarray(_data(given)), np.asarray(_data(wanted))
    if array.shape != expected.shape:
        return f"{name} has shape {array.shape}, not {expected.shape}"
    # Lists have lost their dtype, and NumPy's files that of the floats that only JAX has.
    exact = not jnp.issubdtype(expected.dtype, jnp.inexact)
    numbers = "biu" if exact else "biuf" if not np.iscomplexobj(expected) else "biufc"
    lost = not hasattr(given, "dtype") and array.dtype.kind in numbers
    lost |= array.dtype.type is np.void and array.dtype.itemsize == expected.dtype.itemsize
    same = lost or array.dtype == expected.dtype
    return "" if same else f"{name} has dtype {array.dtype}, not {expected.dtype}"


def _restored(given: Any, old: Any) -> Array:
    array, dtype = np.asarray(_data(given)), np.asarray(_data(old)).dtype
    array = jnp.array(array.view(dtype) if array.dtype.type is np.void else array.astype(dtype))
    if _is_key(old):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(old))
    return _like(array, old)


def _like(new: Array, old: Any) -> Array:
    """The new array where the old one is, so that nothing is compiled for another place."""
    return jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new
