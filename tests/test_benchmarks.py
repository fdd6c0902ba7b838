"""The benchmarks, in sizes at which they say nothing about speed."""

import importlib.metadata

import jax
import numpy as np
import pytest

import benchmarks.__main__ as program
from benchmarks import engine, peers
from benchmarks.problems import bare_scan, exponential, simulation
from benchmarks.table import Row, markdown
from benchmarks.timing import Effort, Timings, interleave

TINY = Effort(rounds=1, seconds=0.0, shrink=2_000)
PEERS = {peer.prepare.__name__: peer for peer in (*peers.SLOW, *peers.FAST)}


@pytest.mark.parametrize("problem", [exponential(50), simulation(3)], ids=["exponential", "simulation"])
def test_fitopt_makes_all_the_steps_of_the_bare_scan(problem):
    _, losses = bare_scan(problem)()
    _, history = engine.fit(problem)()
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


@pytest.fixture(scope="module")
def by_hand():
    return bare_scan(exponential(20))()[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_peer_ends_at_the_parameters_of_the_bare_scan(peer, by_hand):
    try:
        function, arguments = peer.prepare(exponential(20))
    except ImportError as error:
        pytest.skip(str(error))
    leaves = [x for x in jax.tree.leaves(function(*arguments)) if hasattr(x, "shape") and x.shape == ()]
    for value in by_hand.values():
        assert any(np.isclose(leaf, value, rtol=1e-4) for leaf in leaves)


def test_a_peer_that_is_not_installed_stays_in_the_table(monkeypatch):
    def prepare(problem):
        raise ModuleNotFoundError("No module named 'nowhere'")

    for name in ("fit", "fit_with"):
        monkeypatch.setattr(peers, name, lambda problem: list)
    monkeypatch.setattr(peers, "SLOW", ())
    monkeypatch.setattr(peers, "FAST", (peers.Peer("nowhere: fit", "no-such-distribution", prepare),))
    rows = peers.compare(TINY)
    assert rows[-1] == Row("nowhere: fit", "", "not installed")


def test_a_peer_that_cannot_be_imported_says_why():
    peer = peers.Peer("optax: broken", "optax", lambda problem: (print, ()))
    reason = peers._reason(peer, ImportError("no such symbol"))
    assert reason == f"{importlib.metadata.version('optax')} cannot be imported: no such symbol"


# Too many programs or processes, or not installed.
APART = ("peers", "named", "braintools", "many", "processes")


@pytest.mark.parametrize("name", [name for name in program.GROUPS if name not in APART])
def test_each_group_measures_something(name):
    rows = program.GROUPS[name](TINY)
    assert rows
    for row in rows:
        assert np.isfinite(float(row.figure.partition(" ")[0]))
        assert (row.met is None) == (not row.target)


def test_the_program_runs_the_chosen_groups_and_prints_their_rows_and_the_machine(monkeypatch, capsys):
    groups = {name: lambda effort, name=name: [Row(name, "", str(effort.rounds))] for name in "ABC"}
    monkeypatch.setattr(program, "GROUPS", groups)
    program.main(["--quick", "--only", "A", "C"])
    head, _, first, second, *_, machine = capsys.readouterr().out.splitlines()
    assert head.startswith("| What")
    assert [row.split()[1:4:2] for row in (first, second)] == [["A", "|"], ["C", "|"]]
    assert f"jax {jax.__version__}" in machine


def test_functions_take_turns_and_are_called_before_the_clock_runs():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "AB"}
    timings = interleave(functions, Effort(rounds=2, seconds=60.0), warm=1)
    assert calls == list("AB" * 3)
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]


def test_ratios_are_taken_round_by_round():
    timings = Timings({"A": np.array([1.0, 10.0, 2.0]), "B": np.array([2.0, 20.0, 6.0])})
    assert timings.ratio("B", "A") == 2.0
    assert timings.difference("B", "A") == 4.0


def test_the_table_is_markdown():
    text = markdown([Row("a", "ms", "1.0", 312.4, "≥ 300x", True), Row("b", "MB", "2")])
    first, rule, *rows = (line.strip("|").split("|") for line in text.splitlines())
    assert [cell.strip() for cell in first] == ["What", "Measured", "Figure", "Ratio", "Target", "Met"]
    assert all(set(cell) == {"-"} for cell in rule)
    assert [cell.strip() for cell in rows[0]] == ["a", "ms", "1.0", "312", "≥ 300x", "yes"]
    assert [cell.strip() for cell in rows[1]] == ["b", "MB", "2", "", "", ""]
