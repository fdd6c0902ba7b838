"""The pages of docs/: their code runs, and the reference has each public name once."""

import collections
import doctest
import importlib
import inspect
import pathlib
import re

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import fitopt
from fitopt import callbacks
from fitopt.engine import stop_reasons
from fitopt.methods.method import StopReason
from fitopt.methods.optimistix_method import OptimistixMethod

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "api", "notebooks"} & set(path.relative_to(DOCS).parts)
)
# What other libraries want is in a {code-block}, which is shown and not run; what a fragment needs
# and a reader knows is in a comment.
CODE = re.compile(
    r"^(?:```(?:python|\{code-cell\}[^\n]*)|<!-- python)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL
)
MODULES = ("fitopt", "fitopt.callbacks", "fitopt.optimizers", "fitopt.schedules", "fitopt.transforms")
MODULES += ("fitopt.many", "fitopt.reporting", "fitopt.uncertainty")


@pytest.fixture
def settings_stay(tmp_path, monkeypatch):
    """Pages run in a directory of their own, draw nothing on a screen, and may switch to float64."""
    monkeypatch.chdir(tmp_path)
    backend, is_double = matplotlib.get_backend(), jax.config.jax_enable_x64
    matplotlib.use("agg")
    yield
    jax.config.update("jax_enable_x64", is_double)
    plt.close("all")
    matplotlib.use(backend)


def run_examples(path):
    """The code of a page, in order and in one namespace; output is compared where prompts are."""
    text = path.read_text()
    namespace = {"__name__": "__main__"}
    for found in CODE.finditer(text):
        code, line = found[1], text.count("\n", 0, found.start(1))
        code = re.sub(r"\A(?::[\w-]+:.*\n|---\n(?:.*\n)*?---\n)+", "", code)  # options of a cell
        if code.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, {}, path.name, str(path), line)
            test.globs, said = namespace, []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                test, out=said.append, clear_globs=False
            )
            assert not said, "".join(said)
        else:
            exec(compile("\n" * line + code, str(path), "exec"), namespace)


@pytest.mark.usefixtures("settings_stay")
@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(DOCS)) for path in PAGES])
def test_the_code_of_a_page_runs(path):
    run_examples(path)


def test_the_reference_has_each_public_name_once():
    entries = collections.Counter(
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(
            r"^\.\. auto(?:class|function):: ([\w.]+)", page.read_text(), re.MULTILINE
        )
    )
    described = collections.Counter()
    for name, count in entries.items():
        module, _, attribute = name.rpartition(".")
        described[getattr(importlib.import_module(module), attribute)] += count
    public = {
        getattr(module, name)
        for module in map(importlib.import_module, MODULES)
        for name in module.__all__
    }
    public = {one for one in public if not inspect.ismodule(one)}
    assert {one.__name__ for one in public - set(described)} == set()
    assert {one.__name__ for one, count in described.items() if count > 1} == set()


STOPPERS = [
    callbacks.EarlyStopping(10),
    callbacks.StopOnLoss(0.1),
    callbacks.StopOnGradient(0.1),
    callbacks.StopOnStep(0.1, 0.1),
    callbacks.StopAfter(10.0),
]
SENTENCES = [
    *(one.stop_reason() for one in STOPPERS),
    *(
        reason.sentence
        for reason in OptimistixMethod(fitopt.LBFGSB(rtol=0.1)).stop_reasons([np.ones(1)])
    ),
    stop_reasons.reached(10).sentence,
    stop_reasons.out_of_batches(10).sentence,
    stop_reasons.not_finite(["rate"], 10, np.nan, [False]),
    stop_reasons.not_finite(["rate"], 10, 1.0, [True]),
    stop_reasons.stalled(StopReason("so it was"), ["rate"]).sentence,
]


@pytest.mark.parametrize("sentence", SENTENCES, ids=[sentence[:20] for sentence in SENTENCES])
def test_the_page_on_convergence_knows_each_reason_to_stop(sentence):
    page = (DOCS / "how_to/convergence.md").read_text()
    beginnings = re.findall("`([^`]+)`", "".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE)))
    of_a_solver = sentence.removeprefix("LBFGSB ")
    known = [text.removeprefix("LevenbergMarquardt ") for text in beginnings]
    assert any(of_a_solver.startswith(text) for text in known)
