"""Parameters: the face of an array, static metadata by content, and the errors of bad arguments."""

import copy
import dataclasses
import math
import operator
import os
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fitopt import Parameter
from fitopt.parameter.specification import check_value
from fitopt.transforms import Affine, Chain, Exp, Interval, Ordered, PositiveDefinite, Simplex, Transform

VECTOR = Parameter("v", [0.25, -0.5, 2.0], lower=-1)
SCALAR = Parameter("s", 1.5)
MATRIX = Parameter("m", np.array([[2.0, 0.5], [0.5, 1.0]]))


def outcome(function, *arguments):
    """What a call gives, or the kind of error that it raises."""
    try:
        return function(*arguments)
    except (TypeError, ValueError, IndexError) as error:
        return type(error)


def primitives(jaxpr):
    """What a jaxpr computes, in order, whichever functions the operations were grouped in."""
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        for one in inner:
            yield from primitives(getattr(one, "jaxpr", one))
        if not inner:
            yield equation.primitive.name, [str(x.aval) for x in equation.outvars]


def program(function, *arguments):
    """What JAX makes of a call, without compiling it: its operations and the types of its results."""
    made = outcome(jax.make_jaxpr(function), *arguments)
    return made if isinstance(made, type) else ([*primitives(made.jaxpr)], made.out_avals)


def same(got, expected):
    """Whether two results have the same structure, kinds, dtypes and numbers."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert type(x) is type(y)
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)
        np.testing.assert_array_equal(x, y)


# An array in every ordinary use: the same results as from the value itself.

OPERATORS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    divmod,
    operator.pow,
    operator.matmul,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
)
OPERANDS = (
    2,
    2.5,
    True,
    1j,
    np.float32(2),
    np.float64(2),
    np.int32(2),
    np.array(2.0),
    np.array([1.0, 2.0, 3.0]),
    np.array([1, 2, 3]),
    jnp.array([1.0, 2.0, 3.0]),
    jnp.arange(3),
    "a",
    None,
    [1, 2, 3],
)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("function", OPERATORS, ids=lambda f: f.__name__)
def test_operators_work_both_ways_as_on_arrays(function, x64):
    def results(*operands):
        parameters = [x for x in operands if isinstance(x, Parameter | jax.Array)]
        fill = lambda given: [
            given.pop(0) if isinstance(x, Parameter | jax.Array) else x for x in operands
        ]
        made = outcome(jax.make_jaxpr(lambda *given: function(*fill([*given]))), *parameters)
        return made if isinstance(made, type) else made.out_avals

    with jax.enable_x64(x64):
        for p in (SCALAR, VECTOR):
            for operand in OPERANDS:
                assert results(p, operand) == results(p.value, operand)
                assert results(operand, p) == results(operand, p.value)
            assert results(p, p) == results(p.value, p.value)


def test_operators_give_the_numbers_they_should():
    array = np.array([1.0, 2.0, 3.0])
    value = np.array([0.25, -0.5, 2.0])
    for got, expected in (
        (1 + VECTOR, 1 + value),
        (array - VECTOR, array - value),
        (VECTOR * jnp.asarray(array), value * array),
        (2**VECTOR, 2**value),
        (VECTOR**2, value**2),
        (np.float64(3) / VECTOR, 3 / value),
        (array @ VECTOR, array @ value),
        (VECTOR @ VECTOR, value @ value),
        (divmod(VECTOR, 2)[1], value % 2),
        (np.float32(1) < VECTOR, value > 1),
        (array == VECTOR, array == value),
        (VECTOR == VECTOR, [True, True, True]),
        (VECTOR != 2.0, [True, True, False]),
    ):
        assert isinstance(got, jax.Array)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [operator.neg, operator.pos, abs, round, lambda x: round(x, 1)])
def test_operators_of_one_operand_work_as_on_arrays(function):
    same(function(VECTOR), function(VECTOR.value))
    same(function(SCALAR), function(SCALAR.value))


UNARY = """
abs amax arccosh arctan argmax argsort array asarray atleast_1d average cbrt ceil conj copy cos cosh
count_nonzero cumprod cumsum deg2rad diag diagflat diff exp exp2 expm1 flip floor gradient i0 imag
isfinite isnan iscomplexobj isrealobj linalg.norm log log10 log1p log2 max mean median min nan_to_num
nanmean nansum ndim negative ones_like positive prod ptp ravel real reciprocal round shape sign signbit
sin sinc sinh size sort sqrt square squeeze std sum tan tanh trace transpose trapezoid tril triu var
zeros_like
"""
BINARY = """
add allclose append arctan2 array_equal convolve copysign correlate divide dot equal fmax fmin greater
heaviside hypot inner isclose kron less logaddexp logical_and matmul maximum minimum mod multiply
nextafter not_equal outer polyval power remainder searchsorted subtract true_divide vdot vecdot
"""
LISTED = "array asarray block column_stack concatenate dstack hstack stack vstack"
OTHERS = {
    "clip": lambda x: jnp.clip(x, 0.0, x),
    "einsum": lambda x: jnp.einsum("i,i->", x, x),
    "expand_dims": lambda x: jnp.expand_dims(x, 0),
    "full_like": lambda x: jnp.full_like(x, x[0]),
    "interp": lambda x: jnp.interp(x, x, x),
    "linspace": lambda x: jnp.linspace(x, 2 * x, 5),
    "meshgrid": lambda x: jnp.meshgrid(x, x),
    "pad": lambda x: jnp.pad(x, 1),
    "piecewise": lambda x: jnp.piecewise(x, [x > 0], [1.0, 2.0]),
    "quantile": lambda x: jnp.quantile(x, 0.5),
    "repeat": lambda x: jnp.repeat(x, 2),
    "reshape": lambda x: jnp.reshape(x, (-1, 1)),
    "roll": lambda x: jnp.roll(x, 1),
    "select": lambda x: jnp.select([x > 0], [x], x),
    "split": lambda x: jnp.split(x, 3),
    "take": lambda x: jnp.take(x, np.array([0, 1])),
    "tensordot": lambda x: jnp.tensordot(x, x, 1),
    "tile": lambda x: jnp.tile(x, 2),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "softmax": jax.nn.softmax,
    "gammaln": jax.scipy.special.gammaln,
    "norm.logpdf": lambda x: jax.scipy.stats.norm.logpdf(x, x, 2.0),
}


@pytest.mark.parametrize("name", UNARY.split())
def test_functions_of_jax_numpy_take_it_for_its_value(name):
    function = operator.attrgetter(name)(jnp)
    for p in (VECTOR, SCALAR, MATRIX):
        assert program(function, p) == program(function, p.value)
    assert isinstance(program(function, MATRIX), tuple)


@pytest.mark.parametrize("name", BINARY.split())
def test_functions_of_jax_numpy_take_it_on_either_side(name):
    function, x = getattr(jnp, name), VECTOR.value
    expected = program(function, x, x)
    assert isinstance(expected, tuple)
    assert program(function, VECTOR, x) == program(function, x, VECTOR) == expected
    assert program(function, VECTOR, VECTOR) == expected


@pytest.mark.parametrize("name", LISTED.split())
def test_functions_of_jax_numpy_take_it_in_lists(name):
    function = lambda x: getattr(jnp, name)([x, x, jnp.ones(3)])
    assert program(function, VECTOR) == program(function, VECTOR.value)
    same(function(VECTOR), function(VECTOR.value))


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_functions_of_jax_take_it_among_their_arguments(function):
    expected = program(function, VECTOR.value)
    assert isinstance(expected, tuple) and program(function, VECTOR) == expected


def test_functions_of_jax_that_look_at_its_entries_take_it_for_its_value():
    same(jnp.nonzero(VECTOR), jnp.nonzero(VECTOR.value))
    same(jnp.unique(VECTOR), jnp.unique(VECTOR.value))
    same(jnp.linalg.inv(MATRIX), jnp.linalg.inv(MATRIX.value))
    same(jnp.from_dlpack(VECTOR), VECTOR.value)
    assert jnp.result_type(VECTOR, 1.0) == np.float32 and jnp.shape(VECTOR) == (3,)


def test_functions_of_numpy_give_arrays_of_jax():
    same(np.sin(VECTOR), jnp.sin(VECTOR.value))
    same(np.maximum(VECTOR, 0.0), jnp.maximum(VECTOR.value, 0.0))
    same(np.add([1.0, 2.0, 3.0], VECTOR), jnp.array([1.25, 1.5, 5.0]))
    traced = jax.jit(lambda p: np.exp(p) + np.array([1.0, 2.0, 3.0]) * p)(VECTOR)
    value = np.asarray(VECTOR.value)
    np.testing.assert_allclose(traced, np.exp(value) + np.array([1.0, 2.0, 3.0]) * value, rtol=1e-6)


def test_what_numpy_has_and_jax_has_not_gives_arrays_of_numpy():
    value = np.asarray(VECTOR.value)
    total = np.ones(3)
    total += VECTOR
    np.testing.assert_array_equal(total, 1 + value)
    assert np.add.reduce(VECTOR) == value.sum()
    np.testing.assert_array_equal(
        np.subtract.outer([1.0, 2.0], VECTOR), np.subtract.outer([1.0, 2.0], value)
    )
    np.testing.assert_array_equal(np.frompyfunc(lambda x: x + 1, 1, 1)(VECTOR), value + 1)
    np.testing.assert_array_equal(np.stack([VECTOR, VECTOR]), [value, value])
    np.testing.assert_array_equal(np.sin(VECTOR, dtype=np.float64), np.sin(value.astype(np.float64)))
    assert np.linalg.norm(VECTOR) == np.linalg.norm(value)
    with pytest.raises(TypeError):
        np.add(value, 1, out=VECTOR)


def test_numpy_arrays_of_it_are_copies_of_the_wanted_dtype():
    array = np.array(VECTOR, np.float64)
    assert array.dtype == np.float64 and array.flags.writeable
    np.testing.assert_array_equal(array, [0.25, -0.5, 2.0])
    assert np.asarray(VECTOR).dtype == np.float32
    np.testing.assert_array_equal(np.asarray([SCALAR, SCALAR]), [1.5, 1.5])
    with pytest.raises(ValueError, match="copy"):
        np.array(VECTOR, np.float64, copy=False)


def test_it_is_indexed_and_iterated_like_an_array():
    assert VECTOR[2] == 2.0 and VECTOR[-1] == 2.0
    same(VECTOR[1:], VECTOR.value[1:])
    same(VECTOR[..., None], VECTOR.value[..., None])
    same(VECTOR[VECTOR > 0], jnp.array([0.25, 2.0]))
    assert [float(x) for x in VECTOR] == [0.25, -0.5, 2.0]
    assert [float(x) for x in reversed(VECTOR)] == [2.0, -0.5, 0.25]
    first, *_ = VECTOR
    assert first == 0.25 and 2.0 in VECTOR and 3.0 not in VECTOR
    assert len(VECTOR) == 3 and sum(VECTOR) == 1.75 and max(VECTOR) == 2.0
    for needs_an_axis in (len, iter, lambda s: s[0]):
        with pytest.raises((TypeError, IndexError)):
            needs_an_axis(SCALAR)


def test_it_has_the_attributes_and_methods_of_its_value():
    assert (VECTOR.shape, VECTOR.dtype, VECTOR.ndim, VECTOR.size) == ((3,), np.float32, 1, 3)
    assert (SCALAR.shape, SCALAR.ndim, SCALAR.size) == ((), 0, 1)
    tall = Parameter("a", np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(tall.T, np.arange(6.0).reshape(2, 3).T)
    assert VECTOR.sum() == 1.75 and VECTOR.item(0) == 0.25 and VECTOR.tolist() == [0.25, -0.5, 2.0]
    same(VECTOR.at[0].set(1.0), jnp.array([1.0, -0.5, 2.0]))
    same(VECTOR.astype(int), VECTOR.value.astype(int))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        VECTOR.nothing_of_the_kind  # noqa: B018


def test_it_turns_into_numbers_of_python():
    assert (float(SCALAR), int(SCALAR), complex(SCALAR), bool(SCALAR)) == (1.5, 1, 1.5 + 0j, True)
    assert not Parameter("zero", 0.0)
    assert math.sqrt(Parameter("x", 2.25)) == 1.5 and math.floor(SCALAR) == 1
    for number in (float, int, complex, bool):
        with pytest.raises((TypeError, ValueError)):
            number(VECTOR)


def test_it_is_formatted_like_its_value():
    assert f"{Parameter('k', 0.123456):.3f}" == "0.123"
    assert f"{Parameter('k', 1234.5):10.2e}|" == "  1.23e+03|"
    assert f"{SCALAR}" == "1.5"
    assert f"{VECTOR:.2f}" == "[0.25, -0.50, 2.00]"


def test_it_is_no_more_hashable_than_an_array():
    with pytest.raises(TypeError, match="unhashable"):
        hash(SCALAR)


def test_a_comparison_with_something_else_is_false():
    assert (SCALAR == "a") is False and (SCALAR != "a") is True
    assert (SCALAR == None) is False  # noqa: E711


# In JAX' transformations.


def test_its_value_is_its_only_leaf():
    assert [leaf is VECTOR.value for leaf in jax.tree.leaves(VECTOR)] == [True]


def test_it_passes_through_jit_and_keeps_what_it_is():
    bounded = Parameter("b", [1.0, 2.0], lower=[0.0, -np.inf], mask=[True, False], scale=3.0)
    doubled = jax.jit(lambda p: p.replace(value=2 * p))(bounded)
    np.testing.assert_array_equal(doubled, [2.0, 4.0])
    assert jax.tree.structure(doubled) == jax.tree.structure(bounded)


def test_equal_parameters_share_a_compiled_program():
    traced = []

    @jax.jit
    def double(p):
        traced.append(p)
        return 2 * p

    for value in (1.0, 2.0):
        for lower in (0, 0.0, np.float32(0)):
            double(Parameter("k", [value, 3.0], lower=[lower, -np.inf], mask=[True, False]))
    assert len(traced) == 1
    double(Parameter("k", [1.0, 3.0], lower=[0.5, -np.inf], mask=[True, False]))
    assert len(traced) == 2


def test_gradients_with_respect_to_it_are_those_with_respect_to_its_value():
    gradient = jax.grad(lambda p: jnp.sum(p**3))(VECTOR)
    assert isinstance(gradient, Parameter)
    np.testing.assert_allclose(gradient, 3 * np.asarray(VECTOR.value) ** 2)


def test_it_is_mapped_over_its_first_axis():
    mapped = jax.vmap(lambda p, x: p.sum() * x, in_axes=(0, None))(MATRIX, 2.0)
    np.testing.assert_array_equal(mapped, [5.0, 3.0])


def test_it_is_the_carry_of_a_scan():
    halved, seen = jax.lax.scan(
        lambda p, _: (p.replace(value=p / 2), p.value),
        Parameter("k", 8.0, lower=0, upper=np.array(9.0)),
        None,
        length=3,
    )
    assert repr(halved) == "Parameter('k', 1.0, lower=0, upper=9.0)"
    np.testing.assert_array_equal(seen, [8.0, 4.0, 2.0])


def test_tree_functions_keep_its_metadata():
    doubled = jax.tree.map(lambda x: 2 * x, {"v": VECTOR})["v"]
    assert repr(doubled) == "Parameter('v', [ 0.5, -1. ,  4. ], lower=-1)"
    number = eqx.tree_at(lambda p: p.value, SCALAR, 3.0)
    assert number + 1 == 4.0 and number.shape == () and f"{number:.2f}" == "3.00"


def test_it_may_be_made_of_traced_values():
    bounded = lambda x: Parameter("k", x, lower=0, upper=10, transform=Exp())
    assert jax.jit(lambda x: bounded(x) + 1)(2.0) == 3.0
    np.testing.assert_array_equal(jax.vmap(lambda x: bounded(x).value)(jnp.ones(3)), np.ones(3))
    stacked = jax.jit(lambda x: Parameter("k", [x, 1.0]).value)(2.0)
    np.testing.assert_array_equal(stacked, [2.0, 1.0])


def test_a_value_that_is_known_is_checked_under_jit_too():
    with pytest.raises(ValueError, match=r"'k': the value -1.0 lies outside its bound lower=0"):
        jax.jit(lambda: Parameter("k", -1.0, lower=0))()


# Content: equality, copies.

METADATA = {
    "name": {"name": "other"},
    "free": {"free": False},
    "lower": {"lower": [0.0, -2.0]},
    "upper": {"upper": 9.0},
    "scale": {"scale": [1.0, 3.0]},
    "mask": {"mask": [False, True]},
}


def described(**changes):
    metadata = {"lower": [0.0, -1.0], "upper": 8.0, "scale": [1.0, 2.0], "mask": [True, False]}
    return Parameter(**{"name": "k", "value": [1.0, 2.0], **metadata, **changes})


def test_tree_structures_of_equal_parameters_are_equal():
    one, other = jax.tree.structure(described()), jax.tree.structure(described(value=[3.0, 4.0]))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize("change", METADATA.values(), ids=METADATA)
def test_tree_structures_of_other_parameters_are_not_equal(change):
    assert jax.tree.structure(described()) != jax.tree.structure(described(**change))


def test_parameters_with_other_transforms_have_other_tree_structures():
    of = lambda transform: jax.tree.structure(Parameter("k", 1.0, transform=transform))
    assert of(Exp()) == of(Exp()) and of(Exp()) != of(Affine()) and of(Exp()) != of(None)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies_are_equal_to_the_original(duplicate):
    original = described()
    hash(original.spec)  # is kept: of another process, it would be wrong
    other = duplicate(original)
    assert jax.tree.structure(other) == jax.tree.structure(original)
    assert repr(other) == repr(original)
    np.testing.assert_array_equal(other, original)


def test_a_pickle_is_equal_to_a_new_parameter_in_another_process():
    original = described()
    hash(original.spec)  # is kept: of another process, it would be wrong
    program = (
        "import pickle, sys, jax\n"
        "from fitopt import Parameter\n"
        "old = pickle.load(sys.stdin.buffer)\n"
        "new = old.replace(name=old.name)\n"
        "assert jax.tree.structure(old) == jax.tree.structure(new)\n"
        "assert hash(old.spec) == hash(new.spec)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(original), env=environment, check=True
    )


# Values.


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3, np.float32),
        (0.5, np.float32),
        (1j, np.complex64),
        (np.float64(0.5), np.float32),
        (np.int8(3), np.float32),
        (np.array(3), np.float32),
        ([1, 2], np.float32),
        ((0.5, 1), np.float32),
        (np.ones((2, 0)), np.float32),
        (np.float16(0.5), np.float16),
        (jnp.ones(2, jnp.bfloat16), jnp.bfloat16),
        (jnp.arange(3), np.float32),
        (Parameter("other", 3), np.float32),
        ([Parameter("other", 3), 1.0], np.float32),
        ([jnp.ones(2), jnp.ones(2)], np.float32),
    ],
    ids=str,
)
def test_a_value_is_an_array_of_floats_of_its_own_precision(value, dtype):
    parameter = Parameter("k", value)
    assert isinstance(parameter.value, jax.Array) and parameter.dtype == dtype
    assert not parameter.value.weak_type
    expected = np.asarray(getattr(value, "value", value), np.complex64)
    np.testing.assert_array_equal(np.asarray(parameter.value, np.complex64), expected)


def test_where_float64_is_enabled_python_numbers_are_float64():
    with jax.enable_x64(True):
        assert Parameter("k", 3).dtype == Parameter("k", 0.1).dtype == np.float64
        assert Parameter("k", np.float32(0.1)).dtype == np.float32
        assert Parameter("k", 1j).dtype == np.complex128
        assert float(Parameter("k", 0.1)) == 0.1


@pytest.mark.parametrize("value", [10**12, np.array(10**12), np.int64(10**12), [10**12]], ids=repr)
def test_large_integers_keep_their_size(value):
    assert float(jnp.sum(Parameter("k", value))) == pytest.approx(1e12)


def test_a_value_shares_no_memory_with_the_array_it_was_made_of():
    array = np.ones(4096, np.float32)
    parameter = Parameter("k", array)
    array[:] = 7.0
    np.testing.assert_array_equal(parameter, np.ones(4096))


# Changed copies.


def test_fix_and_release_change_nothing_else():
    fixed = described().fix()
    assert not fixed.free and fixed.release().free and described().free
    assert jax.tree.structure(fixed.release()) == jax.tree.structure(described())
    assert fixed.value is fixed.release().value


def test_replace_changes_what_it_is_told():
    changed = described().replace(value=[3.0, 2.5], upper=None, name="j")
    assert repr(changed) == (
        "Parameter('j', [3. , 2.5], lower=[ 0., -1.], scale=[1., 2.], mask=[True, False])"
    )
    assert Parameter("k", 2.0, transform=Exp()).replace(transform=None).transform is None


def test_replace_checks_again():
    with pytest.raises(ValueError, match=r"'k'.*-3.0.*lower=0"):
        Parameter("k", 1.0, lower=0).replace(value=-3.0)
    with pytest.raises(ValueError, match=r"'k'.*1.0.*lower=2"):
        Parameter("k", 1.0, lower=0).replace(lower=2)
    with pytest.raises(TypeError, match=r"no argument 'vale'; it has name, value"):
        Parameter("k", 1.0).replace(vale=2.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64, jnp.complex64])
def test_replace_gives_a_python_number_the_dtype_of_the_old_value(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        old = Parameter("k", jnp.ones((), dtype))
        for value in (2, 2.0, jnp.asarray(2.0)):
            assert old.replace(value=value).dtype == dtype
        assert old.replace(value=np.float32(2.0)).dtype == np.float32
        assert jnp.iscomplexobj(old.replace(value=2j).value)


def test_metadata_come_back_as_they_were_given():
    k = Parameter("k", [1.0, 2.0], lower=0, upper=[5.0, 6.0], scale=np.float32(0.5), mask=[True, False])
    assert k.lower == 0 and isinstance(k.lower, int) and k.scale == 0.5
    np.testing.assert_array_equal(k.upper, [5.0, 6.0])
    np.testing.assert_array_equal(k.mask, [True, False])
    assert (k.transform, Parameter("k", 1.0).lower, Parameter("k", 1.0).mask) == (None, None, None)
    with pytest.raises(ValueError, match="read-only"):
        k.upper[0] = 3.0


# What people read.


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (Parameter("rate", 0.52, lower=0), "Parameter('rate', 0.52, lower=0)"),
        (Parameter("n", 3, free=False), "Parameter('n', 3.0, free=False)"),
        (
            Parameter("k", 1, lower=np.float32(0.1), upper=1e6),
            "Parameter('k', 1.0, lower=0.1, upper=1000000.0)",
        ),
        (
            Parameter("w", [[1.0, 2.0], [3.0, 4.0]], mask=np.eye(2, dtype=bool)),
            "Parameter('w', [[1., 2.], [3., 4.]], mask=[[True, False], [False, True]])",
        ),
        (Parameter("w", np.ones((3, 4))), "Parameter('w', <float32[3,4]>)"),
        (Parameter("z", 1 + 2j, scale=5), "Parameter('z', (1+2j), scale=5)"),
        (Parameter("e", []), "Parameter('e', [])"),
        (Parameter("p", 2.0, transform=Exp()), "Parameter('p', 2.0, transform=Exp())"),
        (jax.tree.map(lambda x: None, SCALAR), "Parameter('s', None)"),
        (jax.tree.map(lambda x: "any", SCALAR), "Parameter('s', any)"),
    ],
)
def test_it_prints_as_one_would_write_it(parameter, text):
    assert repr(parameter) == str(parameter) == text


class Model(eqx.Module):
    rate: Parameter


def test_it_prints_the_same_inside_an_equinox_module():
    printed = repr(Model(Parameter("rate", 0.52, lower=0)))
    assert printed == "Model(rate=Parameter('rate', 0.52, lower=0))"


def test_it_prints_while_it_is_traced():
    seen = []
    jax.jit(lambda p: seen.append(repr(p)))(SCALAR)
    assert "Parameter('s', " in seen[0] and "float32[]" in seen[0]


# From value to coordinate and back, as a fit sees it.


def there_and_back(parameter):
    spec = parameter.spec
    coordinate = spec.to_position(parameter.value)
    return coordinate, spec.to_value(coordinate, parameter.value)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, lambda c: c),
        ({"scale": 4.0}, lambda c: 4 * c),
        ({"lower": 1.0}, lambda c: 1 + np.log1p(np.exp(c))),
        ({"upper": 9.0, "scale": 4.0}, lambda c: 9 - 4 * np.log1p(np.exp(-c))),
        ({"lower": 1.0, "upper": 9.0}, lambda c: 1 + 8 / (1 + np.exp(-c))),
        ({"transform": Exp()}, np.exp),
        ({"transform": Exp(), "scale": 4.0}, lambda c: 4 * np.exp(c)),
        ({"transform": Exp(), "lower": 1.0}, lambda c: np.exp(np.log1p(np.exp(c)))),
        (
            {"transform": Exp(), "lower": 1.0, "upper": 9.0, "scale": 4.0},
            lambda c: 4 * np.exp(np.log(0.25) + np.log(9) / (1 + np.exp(-c))),
        ),
        (
            {"transform": Affine(10.0, -1.0), "lower": 1.0, "scale": 0.5},
            lambda c: 0.5 * (10 - (8 - np.log1p(np.exp(-c)))),
        ),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_scale_transform_and_bounds_compose(metadata, expected):
    values = np.array([2.0, 3.0, 4.5])
    parameter = Parameter("k", values, **metadata)
    coordinate, back = jax.jit(there_and_back)(parameter)
    np.testing.assert_allclose(expected(np.asarray(coordinate, np.float64)), values, rtol=2e-6)
    np.testing.assert_allclose(back, values, rtol=1e-6)
    masked = Parameter("k", values, mask=[True, False, True], **metadata)
    other, _ = jax.jit(there_and_back)(masked)
    np.testing.assert_array_equal(other, np.where([True, False, True], coordinate, 0.0))


def test_scales_are_entry_by_entry():
    coordinate, back = there_and_back(Parameter("k", [2.0, 3.0], scale=[2.0, 6.0]))
    np.testing.assert_array_equal(coordinate, [1.0, 0.5])
    np.testing.assert_array_equal(back, [2.0, 3.0])


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"scale": 3.0},
        {"lower": 1.0},
        {"lower": 1.0, "upper": 5.0},
        {"lower": [1.0, 100.0, -np.inf, 0.0], "upper": [np.inf, np.inf, 5.0, 3.0]},
        {"transform": Exp()},
        {"transform": Exp(), "lower": 1.0},
    ],
    ids=str,
)
def test_entries_that_a_mask_fixes_keep_every_bit_and_take_no_part(metadata):
    values = np.array([2.0, -7.3, np.nan, 1.1], np.float32)
    mask = np.array([True, False, False, True])
    parameter = Parameter("k", values, mask=mask, **metadata)
    spec = parameter.spec

    @jax.jit
    def run(value):
        coordinate = spec.to_position(value)
        moved = coordinate + jnp.where(mask, 0.1, 0.0)
        gradient = jax.grad(lambda c: jnp.nansum(spec.to_value(c, value) ** 2))(moved)
        return coordinate, spec.to_value(moved, value), gradient

    coordinate, moved, gradient = run(parameter.value)
    np.testing.assert_array_equal(coordinate[~mask], [0.0, 0.0])
    np.testing.assert_array_equal(gradient[~mask], [0.0, 0.0])
    assert np.asarray(moved)[~mask].tobytes() == values[~mask].tobytes()
    assert np.all(np.isfinite(coordinate)) and np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[mask] != 0)
    assert np.all(np.asarray(moved)[mask] != values[mask])


@pytest.mark.parametrize(
    "metadata", [{"lower": 1.0}, {"lower": 1.0, "upper": 5.0}, {"transform": Exp()}]
)
def test_entries_that_a_mask_fixes_do_not_spoil_the_derivatives_of_coordinates(metadata):
    parameter = Parameter("k", [2.0, 0.0, 1.0], mask=[True, False, False], **metadata)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(p.spec.to_position(p.value))))(parameter)
    assert np.isfinite(gradient).all() and gradient[0] > 0
    np.testing.assert_array_equal(gradient[1:], [0.0, 0.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64])
def test_coordinates_and_values_keep_the_dtype_of_the_value(dtype):
    bounds = {} if dtype == jnp.complex64 else {"lower": 0.1, "upper": [5.0, np.inf]}
    for x64 in (True,) if dtype == jnp.float64 else (False, True):
        with jax.enable_x64(x64):
            value = jnp.asarray([2.0, 3.0], dtype)
            for metadata in (
                bounds,
                {"scale": 0.3},
                {"mask": [True, False], **bounds},
                {"transform": Exp()},
            ):
                coordinate, back = jax.eval_shape(there_and_back, Parameter("k", value, **metadata))
                assert coordinate.dtype == back.dtype == dtype
                assert not coordinate.weak_type and not back.weak_type


@pytest.mark.parametrize(
    ("parameter", "shape"),
    [
        (Parameter("p", [0.2, 0.3, 0.5], transform=Simplex()), (2,)),
        (Parameter("p", [20.0, 30.0, 50.0], transform=Simplex(), scale=100.0), (2,)),
        (Parameter("t", [-1.0, 0.5, 0.75], transform=Ordered()), (3,)),
        (Parameter("c", [[2.0, 0.3], [0.3, 1.0]], transform=PositiveDefinite()), (3,)),
        (Parameter("l", [[0.1, 0.9]] * 3, transform=Simplex()), (3, 1)),
    ],
    ids=str,
)
def test_transforms_of_whole_vectors_are_transforms_of_parameters(parameter, shape):
    coordinate, back = there_and_back(parameter)
    assert coordinate.shape == shape
    np.testing.assert_allclose(back, parameter, rtol=1e-5)


@pytest.mark.parametrize(
    ("metadata", "value", "inside"),
    [
        ({"lower": 0.0}, 0.0, 0.1),
        ({"upper": 5.0, "scale": 10.0}, 5.0, 5.0 - 1.0),
        ({"lower": 0.0, "upper": 5.0}, 5.0, 5.0 - 5.0 / 11),
        ({"lower": 1.0, "transform": Exp()}, 1.0, np.exp(0.1)),
        ({"lower": 1.0, "upper": 100.0, "transform": Exp()}, 100.0, 100.0 ** (10 / 11)),
        ({"lower": 1.0, "transform": Affine(scale=-2.0)}, 1.0, 1.0 + 0.2),
        ({"lower": 1.0, "transform": Exp(), "scale": 10.0}, 1.0, np.exp(0.1)),
    ],
    ids=str,
)
def test_a_fit_that_starts_on_a_bound_starts_just_inside(metadata, value, inside):
    parameter = Parameter("k", value, **metadata)
    spec = parameter.spec
    coordinate, moved = jax.jit(there_and_back)(parameter)
    assert abs(float(moved) - inside) < 0.02 * abs(inside - value)
    gradient = jax.grad(lambda c: spec.to_value(c, parameter.value))(coordinate)
    assert 1e-2 < abs(float(gradient)) < np.inf


@pytest.mark.parametrize(
    ("value", "inside"),
    [
        ([1.0, 2.0], True),
        ([0.0, 2.0], True),
        ([-1e-6, 2.0], False),
        ([1.0, 5.5], False),
        ([1.0, np.nan], False),
        ([np.inf, 2.0], False),
    ],
)
def test_a_value_is_inside_if_all_that_is_fitted_is(value, inside):
    spec = Parameter("k", [1.0, 2.0], lower=0, upper=[np.inf, 5.0]).spec
    assert bool(jax.jit(spec.is_inside)(jnp.array(value))) is inside
    if inside:
        check_value("Parameter 'k'", spec, np.array(value, np.float32))
    else:
        with pytest.raises(ValueError, match="'k'"):
            check_value("Parameter 'k'", spec, np.array(value, np.float32))
    masked = Parameter("k", [1.0, 2.0], lower=0, upper=[np.inf, 5.0], mask=[False, True]).spec
    assert bool(masked.is_inside(jnp.array([-7.0, 5.0])))


def test_a_value_rounded_onto_its_bound_is_inside():
    Parameter("k", 0.1, upper=0.1)
    Parameter("k", jnp.asarray(0.1, jnp.bfloat16), lower=0.1)


# Bad input.


@dataclasses.dataclass
class Unhashable(Transform):
    factor: float = 2.0

    def forward(self, coordinate):
        return coordinate * self.factor

    def inverse(self, value):
        return value / self.factor


BAD = {
    "name": (lambda: Parameter(3, 1.0), TypeError, "name must be a string, got 3"),
    "free": (lambda: Parameter("k", 1.0, 1), TypeError, "'k': free must be True or False, got 1"),
    "string": (lambda: Parameter("k", "fast"), TypeError, "'k': the value must be a number.*'fast'"),
    "strings": (lambda: Parameter("k", ["a", 1]), TypeError, "'k': the value must be a number"),
    "None": (lambda: Parameter("k", None), TypeError, r"'k': the value is missing.*Parameter\(value\)"),
    "another library's word": (
        lambda: Parameter("k", 1.0, min=0),
        TypeError,
        "'k': there is no argument 'min'; use lower; it has name, value, free, lower",
    ),
    "vary": (lambda: Parameter(1.0, vary=False), TypeError, "there is no argument 'vary'; use free"),
    "bool": (lambda: Parameter("k", True), TypeError, "'k': the value must be a number.*True"),
    "bools": (lambda: Parameter("k", [True]), TypeError, "'k': the value must be a number.*True"),
    "dict": (lambda: Parameter("k", {"a": 1}), TypeError, "'k': the value must be a number"),
    "ragged": (lambda: Parameter("k", [[1], [1, 2]]), TypeError, "'k': the value must be a number"),
    "key": (lambda: Parameter("k", jax.random.key(0)), TypeError, "'k': the value must be a number"),
    "NaN": (lambda: Parameter("k", np.nan), ValueError, "'k': the value must be finite.*nan"),
    "infinity": (lambda: Parameter("k", [1, np.inf]), ValueError, r"finite.*inf at index \[1\]"),
    "too large": (lambda: Parameter("k", 1e300), ValueError, "'k': .*finite in float32, got inf"),
    "below": (lambda: Parameter("k", -1, lower=0), ValueError, "'k': the value -1.0 lies.*lower=0"),
    "above": (
        lambda: Parameter("k", [[1, 2], [9, 4]], upper=[3, 8]),
        ValueError,
        r"'k': the value 9.0 at index \[1, 0\] lies outside its bound upper=3",
    ),
    "below, free=False": (lambda: Parameter("k", -1, False, lower=0), ValueError, "'k'.*lower=0"),
    "outside equal bounds": (
        lambda: Parameter("k", 2, lower=1, upper=1),
        ValueError,
        "'k': the value 2.0 lies outside its bound upper=1",
    ),
    "bounds equal in float32": (
        lambda: Parameter("k", 1, lower=1, upper=1 + 1e-9),
        ValueError,
        "'k': lower must be less than upper in float32, or equal to it, got lower=1 and",
    ),
    "bounds swapped in an entry": (
        lambda: Parameter("k", [1, 1], lower=[0, 2], upper=[2, 0]),
        ValueError,
        r"'k': lower must be less than upper.*lower=\[0, 2\] and upper=\[2, 0\]",
    ),
    "infinite lower": (lambda: Parameter("k", 1, lower=np.inf), ValueError, "'k': lower must be less"),
    "NaN bound": (lambda: Parameter("k", 1, upper=np.nan), ValueError, "'k': upper must not be NaN"),
    "string bound": (lambda: Parameter("k", 1, lower="0"), TypeError, "'k': lower must be a real.*'0'"),
    "bool bound": (lambda: Parameter("k", 1, lower=True), TypeError, "'k': lower must be a real.*True"),
    "complex bound": (lambda: Parameter("k", 1, lower=1j), TypeError, "'k': lower must be a real.*1j"),
    "bound's shape": (
        lambda: Parameter("k", 1, lower=[0, 0]),
        ValueError,
        r"'k': lower has shape \(2,\), which does not broadcast to the value's shape \(\)",
    ),
    "traced bound": (
        lambda: jax.jit(lambda x: Parameter("k", 1.0, lower=x).value)(0.0),
        TypeError,
        "'k': lower is static, so it cannot depend on what is being traced",
    ),
    "complex with bounds": (lambda: Parameter("k", 1j, upper=3), ValueError, "'k': a complex value"),
    "scale zero": (lambda: Parameter("k", 1, scale=0), ValueError, "'k': scale must be positive.*0"),
    "scale negative": (lambda: Parameter("k", 1, scale=-2), ValueError, "'k': scale must be pos.*-2"),
    "scale NaN": (lambda: Parameter("k", 1, scale=np.nan), ValueError, "'k': scale must not be NaN"),
    "scale infinite": (lambda: Parameter("k", 1, scale=np.inf), ValueError, "'k': scale must be.*inf"),
    "scale tiny": (lambda: Parameter("k", 1, scale=1e-50), ValueError, "'k': scale.*float32.*1e-50"),
    "scale's entry": (
        lambda: Parameter("k", [1, 1], scale=[1, 0]),
        ValueError,
        r"'k': scale must be positive.*\[1, 0\]",
    ),
    "scale's shape": (lambda: Parameter("k", 1, scale=[1]), ValueError, r"'k': scale has shape \(1,\)"),
    "mask of numbers": (
        lambda: Parameter("k", [1, 2], mask=[1, 0]),
        TypeError,
        "'k': mask must be bool",
    ),
    "mask's shape": (
        lambda: Parameter("k", [1, 2], mask=[True] * 3),
        ValueError,
        r"'k': mask has shape \(3,\).*\(2,\)",
    ),
    "mask of nothing": (
        lambda: Parameter("k", [1, 2], mask=[False, False]),
        ValueError,
        "'k': mask fits no entry; use free=False",
    ),
    "function for a transform": (
        lambda: Parameter("k", 1, transform=jnp.exp),
        TypeError,
        "'k': transform must be an instance of fitopt.transforms.Transform",
    ),
    "class for a transform": (
        lambda: Parameter("k", 1, transform=Exp),
        TypeError,
        "'k': transform must be an instance",
    ),
    "transform without a hash": (
        lambda: Parameter("k", 1, transform=Unhashable()),
        TypeError,
        "'k': transform must be hashable, such as a frozen dataclass",
    ),
    "out of a transform's range": (
        lambda: Parameter("k", -1, transform=Exp()),
        ValueError,
        r"'k': the value -1.0 is not one that transform=Exp\(\) can give",
    ),
    "at the end of a transform's range": (
        lambda: Parameter("k", 0, transform=Exp()),
        ValueError,
        "'k': the value 0.0 is not one",
    ),
    "no simplex": (lambda: Parameter("k", [0.2, 0.3], transform=Simplex()), ValueError, "'k'.*Simplex"),
    "no vector": (lambda: Parameter("k", 0.2, transform=Simplex()), ValueError, "'k': the value 0.2"),
    "not ordered": (lambda: Parameter("k", [2, 1], transform=Ordered()), ValueError, "'k'.*Ordered"),
    "equal entries": (lambda: Parameter("k", [1, 1], transform=Ordered()), ValueError, "'k'.*Ordered"),
    "not positive definite": (
        lambda: Parameter("k", -np.eye(2), transform=PositiveDefinite()),
        ValueError,
        "'k'.*PositiveDefinite",
    ),
    "not symmetric": (
        lambda: Parameter("k", [[1, 0.5], [0.2, 1]], transform=PositiveDefinite()),
        ValueError,
        "'k'.*PositiveDefinite",
    ),
    "transform of another shape": (
        lambda: Parameter("k", 1, transform=Interval([0, 0], 2)),
        ValueError,
        "'k': the value 1.0 is not one that transform=Interval",
    ),
    "bounds on a whole vector": (
        lambda: Parameter("k", [0.2, 0.8], lower=0, transform=Simplex()),
        ValueError,
        r"'k': Simplex\(\) does not act entry by entry",
    ),
    "mask on a whole vector": (
        lambda: Parameter("k", [0.2, 0.8], mask=[True, False], transform=Chain(Simplex())),
        ValueError,
        "'k': Chain.* does not act entry by entry",
    ),
    "bounds out of a transform's range": (
        lambda: Parameter("k", -2, upper=-1, transform=Exp()),
        ValueError,
        r"'k': the value -2.0 is not one that transform=Exp\(\) can give",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_an_error_that_names_the_parameter(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_without_a_name_takes_a_value_alone():
    parameter = Parameter(1.5, lower=0)
    assert (parameter.name, parameter.value, parameter.lower) == (None, 1.5, 0)
    assert repr(parameter) == "Parameter(1.5, lower=0)"
    assert repr(parameter.replace(value=2.0)) == "Parameter(2.0, lower=0)"


@pytest.mark.parametrize("argument", ["value", "lower", "free"])
def test_a_change_in_place_is_refused_with_the_way_to_make_it(argument):
    parameter = Parameter("k", 1.0, lower=0)
    with pytest.raises(AttributeError, match=rf"'k' cannot be changed.*p.replace\({argument}=...\)"):
        setattr(parameter, argument, 3)


def test_entries_between_equal_bounds_are_not_fitted():
    spec = Parameter("k", [1.0, 2.0], lower=[1.0, 0.0], upper=[1.0, 5.0]).spec
    value = jnp.array([1.0, 2.0])
    position = spec.to_position(value)
    assert position[0] == 0
    moved = spec.to_value(position + 1, value)
    assert moved[0] == 1 and 2 < moved[1] < 5
