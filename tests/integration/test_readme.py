"""The README's examples run as they stand."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_run_in_order_and_find_what_they_say(capsys):
    namespace = {}
    for number, code in enumerate(blocks("python"), start=1):
        exec(compile(code, f"README.md, example {number}", "exec"), namespace)
    assert float(namespace["fitted"]["rate"]) == pytest.approx(1.3, abs=0.01)
    assert "1.300" in capsys.readouterr().out


def test_its_first_two_commands_are_for_demo_and_tests():
    demo, tests = blocks("sh")[:2]
    assert "fitopt demo" in demo and "pytest" in tests
    assert all("venv" in command and "pip install" in command for command in (demo, tests))
