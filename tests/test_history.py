"""`History`: a dict that knows at which steps its series were recorded."""

import collections
import copy
import pickle
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fitopt import History, OptaxOptimizer, Parameter
from fitopt.callbacks import RecordParameters, StopOnLoss
from fitopt.engine.history_writer import _Series as Series

from .conftest import quadratic

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def history():
    state = {"x": Parameter("x", 3.0), "target": 1.0}
    return OptaxOptimizer(quadratic, SGD, RecordParameters(every=4)).run(state, 10)[1]


def test_it_is_a_dict_of_arrays_and_plain_values(history):
    assert isinstance(history, dict)
    assert isinstance(history["loss"], np.ndarray)
    types = {key: type(history[key]) for key in history if key not in ("loss", "parameters")}
    assert types == {
        "n_steps": int,
        "final_loss": float,
        "best_loss": float,
        "best_step": int,
        "stop_reason": str,
        "converged": bool,
        "elapsed": float,
    }


def test_steps_says_when_a_series_was_recorded(history):
    np.testing.assert_array_equal(history.steps("loss"), np.arange(10))
    np.testing.assert_array_equal(history.steps("parameters"), [0, 4, 8])


@pytest.mark.parametrize("name", ["n_steps", "nothing"])
def test_steps_of_something_else_is_an_error_that_lists_the_series(history, name):
    with pytest.raises(KeyError, match=f"no series '{name}'.*'loss', 'parameters'"):
        history.steps(name)


def test_its_repr_is_short_and_readable(history):
    first, second, third = repr(history).splitlines()
    assert first.startswith("History of 10 steps in ") and first.endswith(" s: reached max_steps=10")
    assert second == f"  final loss {history['final_loss']:.6g}, best {history['loss'][9]:.6g} at step 9"
    assert third == "  recorded: parameters (every 4)"


def test_its_repr_tells_what_is_known_of_a_fit_under_way():
    seen = []
    state = {"x": Parameter("x", 3.0), "target": 1.0}
    OptaxOptimizer(quadratic, SGD, lambda *arguments: seen.append(repr(arguments[3]))).run(state, 2)
    assert seen[1] == "History of a fit under way: 2 steps, the last loss 2.56"
    assert repr(History()) == "History of a fit under way: 0 steps"


def fit_to(target):
    return OptaxOptimizer(quadratic, SGD, [StopOnLoss(0.5), RecordParameters(every=2)]).run(
        {"x": Parameter("x", 3.0), "target": target}, 5
    )[1]


def test_its_repr_inside_a_transformation_and_after_it():
    inside = []
    history = jax.jit(lambda target: inside.append(repr(fit_to(target))) or fit_to(target))(1.0)
    assert inside[0].startswith("History('loss', 'parameters', ")
    assert repr(history).splitlines()[0] == "History of 5 steps"
    many = jax.vmap(fit_to)(jnp.array([1.0, 3.0]))
    assert repr(many).splitlines() == [
        "History of 2 fits, of 1 to 5 steps",
        "  recorded: parameters (every 2)",
    ]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))]
)
def test_a_copy_knows_what_the_history_knows(history, copied):
    other = copied(history)
    assert type(other) is History and repr(other) == repr(history)
    np.testing.assert_array_equal(other.steps("parameters"), [0, 4, 8])


def test_it_is_a_pytree_that_keeps_what_it_knows(history):
    doubled = jax.tree.map(lambda x: x if isinstance(x, str) else 2 * x, history)
    assert isinstance(doubled, History)
    assert doubled["n_steps"] == 20
    np.testing.assert_array_equal(doubled.steps("parameters"), [0, 4, 8])


def test_a_series_grows_by_chunks_and_takes_only_what_counts():
    series = Series(most=1000)
    expected = []
    rng = np.random.default_rng(0)
    for count in (1, 0, 3, 200, 7):
        chunk = {"a": rng.normal(size=(256, 2)), "b": rng.integers(9, size=256)}
        series.extend(chunk, count)
        expected.append(jax.tree.map(lambda x, count=count: x[:count], chunk))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *expected)
    jax.tree.map(np.testing.assert_array_equal, series.view(), whole)


# As a table.


def made_of(every=None, **series):
    """A history of series that were recorded every so many steps."""
    history = History(series)
    history.every = dict(every or {})
    return history


def test_a_data_frame_has_a_row_for_each_step_and_gaps_where_nothing_was_recorded(history):
    frame = history.to_dataframe()
    assert frame.index.name == "step" and list(frame.index) == list(range(10))
    assert list(frame.columns) == ["loss", "parameters/x"]
    np.testing.assert_array_equal(frame["loss"], history["loss"])
    assert frame["loss"].dtype == history["loss"].dtype
    recorded = frame["parameters/x"].dropna()
    assert list(recorded.index) == [0, 4, 8]
    np.testing.assert_array_equal(recorded, history["parameters"]["x"])


def test_a_data_frame_has_the_entries_of_small_arrays_and_parts_of_complex_numbers():
    history = made_of(
        {"parameters": 1, "count": 1},
        loss=np.zeros(2),
        parameters={"w": [np.arange(8.0).reshape(2, 2, 2)], "z": np.array([1 + 2j, 3 + 4j])},
        count=np.array([5, 7]),
        large=np.zeros((2, 9)),
    )
    frame = history.to_dataframe()
    entries = [f"parameters/w/0[{i},{j}]" for i in range(2) for j in range(2)]
    assert list(frame.columns) == ["loss", *entries, "parameters/z.real", "parameters/z.imag", "count"]
    np.testing.assert_array_equal(frame[entries].to_numpy(), np.arange(8.0).reshape(2, 4))
    np.testing.assert_array_equal(frame["parameters/z.imag"], [2, 4])
    assert frame["count"].dtype == int


def test_a_data_frame_of_bfloat16_holds_its_numbers():
    loss = np.array([0.5, 3.0], jnp.bfloat16)
    assert made_of(loss=loss).to_dataframe()["loss"].tolist() == [0.5, 3.0]


def test_the_history_of_many_fits_is_no_table_but_that_of_each_is():
    many = jax.vmap(fit_to)(jnp.array([1.0, 3.0]))
    with pytest.raises(ValueError, match="several fits, from vmap.*jax.tree.map"):
        many.to_dataframe()
    frame = jax.tree.map(lambda x: x[1], many).to_dataframe()
    np.testing.assert_array_equal(frame["loss"], [0, np.nan, np.nan, np.nan, np.nan])


def test_without_pandas_the_error_names_the_command(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "fitopt\[pandas\]"'):
        history.to_dataframe()


# In a file.


class Pair(NamedTuple):
    left: Any
    right: Any


class Layer(eqx.Module):
    weight: Any
    name: str = eqx.field(static=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.npz"


def there_and_back(history, path):
    history.save(path)
    return History.load(path)


def same(one, other):
    """Whether two pytrees are of one structure, with leaves of one type and the same values."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(x) is type(y)
        if hasattr(x, "dtype"):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        else:
            assert x == y
    return True


def test_a_saved_history_is_loaded_as_it_was(history, path):
    loaded = there_and_back(history, path)
    assert type(loaded) is History and same(loaded, history)
    assert repr(loaded) == repr(history) and list(loaded) == list(history)
    np.testing.assert_array_equal(loaded.steps("parameters"), [0, 4, 8])


@pytest.mark.parametrize(
    "item",
    [
        {"a": [np.zeros((2, 3)), (np.arange(3), None)], "b": {7: {}, -1: []}, "": ()},
        {"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "a/b_": np.full(1, 2.0)},
        Pair(np.ones(2), Pair("text, with \u03bb and \n", None)),
        np.array([1.5, -0.0, np.nan, np.inf], jnp.bfloat16),
        np.array(0.25, jnp.float8_e4m3fn),
        np.array(["a", "bc"]),
        np.zeros((0, 3), np.complex64),
        np.asfortranarray(np.arange(6).reshape(2, 3))[:, ::2],
        np.float32(0.1),
        np.bool_(True),
        [True, 1, 10**30, 0.1, float("inf"), 1e-320, 1 + 2j, "", None],
    ],
    ids=lambda item: type(item).__name__,
)
def test_any_pytree_of_arrays_and_plain_values_survives(item, path):
    assert same(there_and_back(made_of(item=item), path)["item"], item)


def test_nan_survives(path):
    assert np.isnan(there_and_back(made_of(final_loss=float("nan")), path)["final_loss"])


def test_jax_arrays_come_back_as_numpy_and_modules_as_dicts(path):
    model = [Layer(jnp.ones(2), "first"), jnp.zeros(3)]
    loaded = there_and_back(made_of(aux=model), path)["aux"]
    assert same(loaded, [{"weight": np.ones(2, np.float32)}, np.zeros(3, np.float32)])


def test_a_named_tuple_whose_class_is_gone_has_the_same_fields(path, monkeypatch):
    made_of(pair=Pair(1, 2)).save(path)
    monkeypatch.setattr(sys.modules[__name__], "Pair", collections.namedtuple("Pair", "other fields"))
    loaded = History.load(path)["pair"]
    assert loaded == (1, 2) and (loaded.left, loaded.right) == (1, 2)


def test_numpy_reads_the_arrays_without_pickle(history, path):
    history.save(path)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["loss"], history["loss"])
        np.testing.assert_array_equal(file["parameters/x"], history["parameters"]["x"])


@pytest.mark.parametrize("item", [object(), np.array([object()]), {1, 2}])
def test_what_cannot_be_saved_is_named_and_the_old_file_stays(item, path):
    made_of(n_steps=3).save(path)
    with pytest.raises(TypeError, match="history: aux/0 .*cannot be saved"):
        made_of(aux=[item]).save(path)
    assert History.load(path)["n_steps"] == 3
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_a_file_is_written_leaves_the_old_one(history, path, monkeypatch):
    made_of(n_steps=3).save(path)

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="no space"):
        history.save(path)
    assert History.load(path)["n_steps"] == 3
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_is_an_error_whatever_the_damage(history, path):
    history.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [0, 1, *rng.integers(0, len(whole), 100), len(whole) - 1]:
        path.write_bytes(whole[:position])
        with pytest.raises(ValueError, match="fit.npz is not a history, or damaged"):
            History.load(path)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            loaded = History.load(path)
        except ValueError as error:
            assert "fit.npz is not a history, or damaged" in str(error)
        else:  # it was a byte that says nothing, such as one of a date
            assert same(loaded, history)


def test_another_file_is_an_error(path):
    np.savez(path, loss=np.zeros(3))
    with pytest.raises(ValueError, match="fit.npz is not a history"):
        History.load(path)
    with pytest.raises(FileNotFoundError):
        History.load(path.parent / "nothing.npz")


def test_a_link_to_a_file_stays_a_link(history, path):
    link = path.parent / "link.npz"
    link.symlink_to(path)
    history.save(link)
    assert link.is_symlink() and same(History.load(path), history)
