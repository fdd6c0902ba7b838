"""Series in files that grow with them."""

import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest

from fitopt.storage.series_files import SeriesFiles, read


def series(records):
    """Some that are numbers, and one of everything else, with the first records."""
    numbers = np.arange(records)
    return {
        "loss": 1.0 / (1.0 + numbers),
        "odd": {
            "complex": np.exp(1j * numbers).astype(np.complex64),
            "bool": numbers % 3 == 0,
            "bfloat16": (numbers / 7).astype(ml_dtypes.bfloat16),
            "float8": (numbers / 7).astype(ml_dtypes.float8_e4m3fn),
            "many": [np.tile(numbers[:, None, None], (1, 2, 3)), (np.float16(numbers),)],
            "none of it": np.zeros((records, 0)),
        },
    }


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_series_come_back_as_they_were_at_each_time(tmp_path):
    files = SeriesFiles(tmp_path)
    entries = {n: json.loads(json.dumps(files.write(series(n)))) for n in (1, 5, 5, 12)}
    for records, entry in entries.items():
        assert_equal(read(tmp_path, entry), series(records))


def test_only_new_records_are_written(tmp_path):
    files = SeriesFiles(tmp_path)
    files.write({"loss": np.zeros(5)})
    entries = files.write({"loss": np.array([*[9.0] * 5, 1.0])})
    assert np.fromfile(tmp_path / entries["loss"]["file"]).tolist() == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 17)])
def test_a_file_that_was_lost_is_written_again(harm, tmp_path):
    files = SeriesFiles(tmp_path)
    before = files.write(series(8))
    harm(tmp_path / before["odd"]["file"])
    with pytest.raises((OSError, ValueError)):
        read(tmp_path, before)
    entries = files.write(series(9))
    assert_equal(read(tmp_path, entries), series(9))
    assert_equal(read(tmp_path, before), series(8))


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros(8, np.float32), np.zeros((8, 2))])
def test_another_series_of_that_name_is_written_from_its_beginning(other, tmp_path):
    files = SeriesFiles(tmp_path)
    files.write({"loss": np.arange(8.0)})
    assert_equal(read(tmp_path, files.write({"loss": other})), {"loss": other})


def test_a_series_that_begins_later_has_a_file_of_its_own(tmp_path):
    files = SeriesFiles(tmp_path)
    first = files.write({"b": np.arange(3)})
    both = {"a": np.arange(5.0), "b": np.arange(4)}
    assert_equal(read(tmp_path, files.write(both)), both)
    assert_equal(read(tmp_path, first), {"b": np.arange(3)})
