"""Taking states apart and putting them together, whatever containers and leaves they have."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fitopt import Parameter, combine, partition, values
from fitopt.state import flatten, is_array


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    a: Any
    b: Any


class Model(eqx.Module):
    rate: Any
    weight: Any
    name: str = eqx.field(static=True, default="model")


class Unhashable:
    __hash__ = None


FREE = Parameter("free", [1.0, 2.0], lower=0)
FIXED = Parameter("fixed", 3.0, free=False)
OTHERS = (
    jnp.arange(3.0),
    np.arange(3),
    1.5,
    2,
    True,
    1j,
    "text",
    None,
    abs,
    np.float32(0.5),
    np.array(["a", "b"]),
    jax.random.key(0),
    Unhashable(),
)

CONTAINERS = {
    "dict": lambda free, fixed, other: {"b": free, "a": fixed, "c": other},
    "list": lambda free, fixed, other: [free, fixed, other],
    "tuple": lambda free, fixed, other: (other, fixed, free),
    "NamedTuple": lambda free, fixed, other: Pair(free, (fixed, other)),
    "dataclass": lambda free, fixed, other: Registered([free, other], fixed),
    "Equinox module": lambda free, fixed, other: Model(free, {"fixed": fixed, "other": other}),
    "nested": lambda free, fixed, other: {
        "m": [Model(Pair(free, ()), None)],
        "d": Registered(fixed, other),
    },
}
containers = pytest.mark.parametrize("build", CONTAINERS.values(), ids=CONTAINERS)
others = pytest.mark.parametrize("other", OTHERS, ids=lambda x: type(x).__name__)


def identical(one, other):
    """Whether two trees have the same structure and the very same objects for leaves."""
    leaf = lambda x: x is None or isinstance(x, Parameter)
    a, structure = jax.tree.flatten(one, is_leaf=leaf)
    b, same = jax.tree.flatten(other, is_leaf=leaf)
    return structure == same and all(x is y for x, y in zip(a, b, strict=True))


@containers
@others
def test_values_puts_arrays_in_place_of_parameters_and_leaves_the_rest(build, other):
    assert identical(values(build(FREE, FIXED, other)), build(FREE.value, FIXED.value, other))


@containers
@others
def test_partition_splits_free_from_fixed_with_none_for_what_is_missing(build, other):
    free, fixed = partition(build(FREE, FIXED, other))
    assert identical(free, build(FREE, None, None))
    assert identical(fixed, build(None, FIXED, other))


@containers
@others
def test_combine_undoes_partition(build, other):
    state = build(FREE, FIXED, other)
    assert identical(combine(*partition(state)), state)


@containers
@others
def test_layout_puts_together_what_flatten_took_apart(build, other):
    state = build(FREE, FIXED, other)
    free, fixed, layout = flatten(state)
    rebuilt = layout.state(free, fixed)
    assert identical(layout.plain(free, fixed), values(state))
    assert identical(values(rebuilt), values(state))
    before = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Parameter))
    after = jax.tree.leaves(rebuilt, is_leaf=lambda x: isinstance(x, Parameter))
    assert [repr(x) for x in after] == [repr(x) for x in before]
    assert repr(layout.free_state(free)) == repr(partition(state)[0])
    assert repr(layout.fixed_state(fixed)) == repr(partition(state)[1])
    assert identical(layout.free_tree(free), values(partition(state)[0]))
    assert all(x is y for x, y in zip(jax.tree.leaves(layout.free_tree(free)), free, strict=True))


@pytest.mark.parametrize("state", [FREE, FIXED], ids=["free", "fixed"])
def test_a_parameter_alone_is_a_state(state):
    assert values(state) is state.value
    free, fixed = partition(state)
    assert (free is state, fixed is state) == (state is FREE, state is FIXED)
    assert combine(free, fixed) is state


@pytest.mark.parametrize("state", [{}, [], None, (), 1.0, {"a": None}], ids=str)
def test_a_state_without_parameters_is_all_fixed(state):
    free, fixed = partition(state)
    assert jax.tree.leaves(free) == [] and fixed == state
    assert combine(free, fixed) == values(state) == state
    assert flatten(state).free == []


def test_a_network_of_equinox_is_split_at_its_parameters():
    network = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    weight = Parameter("weight", network.layers[0].weight)
    network = eqx.tree_at(lambda m: m.layers[0].weight, network, weight)
    free, fixed = partition(network)
    assert [leaf is weight.value for leaf in jax.tree.leaves(free)] == [True]
    assert fixed.layers[0].weight is None and fixed.layers[1].weight is network.layers[1].weight
    plain = values(combine(free, fixed))
    assert plain(jnp.ones(2)).shape == (1,)
    assert flatten(network).layout.paths == ("layers/0/weight",)


def test_combine_refuses_states_of_other_structures():
    free, fixed = partition({"a": FREE, "b": 1.0})
    with pytest.raises(ValueError):
        combine(free, {"a": fixed["a"]})


def test_values_and_partition_work_under_jit():
    doubled = jax.jit(lambda s: values(s)["a"] * 2)({"a": FREE, "b": FIXED})
    np.testing.assert_array_equal(doubled, [2.0, 4.0])
    free, fixed = jax.jit(partition)({"a": FREE, "b": FIXED})
    assert repr(free) == repr({"a": FREE, "b": None}) and repr(fixed) == repr({"a": None, "b": FIXED})


# What a compiled program is keyed by.


def state_of(**changes):
    return {
        "k": Parameter("k", [1.0, 2.0], lower=[0, -1], mask=[True, False]),
        "x": jnp.ones(3),
        "offset": 0.5,
        "n": 3,
        "kind": "linear",
        "flag": True,
        "function": jnp.tanh,
        **changes,
    }


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"k": Parameter("k", [5.0, 9.0], lower=np.array([0.0, -1.0]), mask=np.array([True, False]))},
        {"x": np.zeros(7)},
        {"offset": 0.75},
        {"offset": np.float32(3)},
        {"offset": jnp.ones(())},
    ],
    ids=lambda change: ",".join(change),
)
def test_states_that_differ_in_numbers_alone_have_the_same_layout(change):
    one, other = flatten(state_of()).layout, flatten(state_of(**change)).layout
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    "change",
    [
        {"k": Parameter("k", [1.0, 2.0], lower=[0, -2], mask=[True, False])},
        {"k": Parameter("k", [1.0, 2.0], False, lower=[0, -1], mask=[True, False])},
        {"k": jnp.ones(2)},
        {"n": 4},
        {"n": 3.0},
        {"n": True},
        {"flag": 1},
        {"kind": "quadratic"},
        {"kind": None},
        {"function": jnp.sin},
        {"function": Unhashable()},
        {"more": 1.0},
    ],
    ids=lambda change: ",".join(change),
)
def test_states_that_differ_in_anything_else_have_other_layouts(change):
    assert flatten(state_of()).layout != flatten(state_of(**change)).layout


def test_a_leaf_without_a_hash_is_the_same_as_itself_alone():
    leaf = Unhashable()
    layout = lambda leaf: flatten({"leaf": leaf}).layout
    assert layout(leaf) == layout(leaf) and hash(layout(leaf)) == hash(layout(leaf))
    assert layout(leaf) != layout(Unhashable())


def test_parameters_are_called_by_their_names_and_by_their_paths_where_names_repeat():
    state = {
        "peaks": [Model(Parameter("height", 1.0), Parameter("width", 1.0)) for _ in range(2)],
        "offset": Parameter("offset", 0.0),
        "fixed": FIXED,
        "n": 3,
    }
    layout = flatten(state).layout
    assert layout.paths == (
        "offset",
        "peaks/0/rate",
        "peaks/0/weight",
        "peaks/1/rate",
        "peaks/1/weight",
    )
    assert layout.names == (
        "offset",
        "height (peaks/0/rate)",
        "width (peaks/0/weight)",
        "height (peaks/1/rate)",
        "width (peaks/1/weight)",
    )
    assert flatten(Parameter("alone", 1.0)).layout.names == ("alone",)


@pytest.mark.parametrize(
    ("leaf", "traced"),
    [
        (1.0, True),
        (1j, True),
        (np.float32(1), True),
        (np.int64(1), True),
        (np.bool_(True), True),
        (np.ones(2), True),
        (np.ones(2, ml_dtypes.bfloat16), True),
        (np.array([True]), True),
        (jnp.ones(2), True),
        (jax.random.key(0), True),
        (1, False),
        (True, False),
        ("text", False),
        (np.array(["text"]), False),
        (np.array([None]), False),
        (np.zeros(1, "datetime64[s]"), False),
        (np.zeros(1, [("a", float)]), False),
        (len, False),
    ],
    ids=repr,
)
def test_arrays_and_floats_are_traced_and_all_else_is_static(leaf, traced):
    assert is_array(leaf) is traced
    assert len(flatten([leaf]).fixed) == traced
