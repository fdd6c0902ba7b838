"""The examples of pages that run with one device do so as they stand."""

import pathlib
import re

import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_examples_of_sharded_arrays_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "sharded.md").read_text()
    namespace = {}
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S), start=1):
        exec(compile(code, f"sharded.md, example {number}", "exec"), namespace)
        if number == 2:
            found = namespace["fitted"]
            assert [float(found[name]) for name in ("slope", "offset")] == pytest.approx(
                [3, 1], abs=0.01
            )
    np.testing.assert_allclose(namespace["fitted"]["weights"], np.ones((4, 64)), atol=0.01)
    assert namespace["fitted"]["weights"].value.sharding == namespace["columns"]
