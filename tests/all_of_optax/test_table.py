"""The table knows all of optax, and the documentation shows it."""

import pathlib

import optax

from . import table
from .losses import LOSSES
from .table import TABLE, exported, since, version

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "all_of_optax.md"
INSTALLED = version(optax.__version__)


def test_each_name_that_optax_exports_is_in_the_table():
    assert sorted(exported().keys() - set(TABLE)) == []
    assert sorted(table.submodules() - table.known_submodules()) == []


def test_the_table_has_no_name_twice_and_none_that_no_optax_has():
    assert len(TABLE) == len(set(TABLE))
    missing = set(TABLE) - exported().keys()
    later = {name for name in TABLE if version(since(name)) > INSTALLED}
    assert later <= missing
    dropped = missing - later
    assert not dropped or version(table.NEWEST) < INSTALLED, sorted(dropped)


def test_the_short_name_of_a_loss_is_the_same_function():
    short = [name for name in LOSSES if "." not in name and name in exported()]
    assert "l2_loss" in short
    assert all(getattr(optax, name) is getattr(optax.losses, name) for name in short)


def test_the_documentation_shows_the_table():
    assert table.markdown() in PAGE.read_text()
