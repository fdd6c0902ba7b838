"""The command `fitopt demo --starts N`, and the example of many starts in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fitopt import Fits, demo


@pytest.fixture(scope="module")
def fits():
    return demo.fit_many(4)


def test_many_starts_find_the_maximum_likelihood(fits):
    assert fits.best[1]["final_loss"] == pytest.approx(-42.7406, abs=1e-3)
    assert demo.tell_starts(fits).startswith(f"{fits.minima()[0].count} of 4 starts found the best")


def test_the_command_tells_how_many_found_the_best_minimum_and_draws_them(
    fits, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(demo, "fit_many", lambda n: fits[:n])
    assert demo.main(["demo", "--starts", "4", "--output", str(tmp_path)]) == 0
    assert "of 4 starts found the best minimum, a loss of -42.74" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["lynx_hare_starts.png"]


def test_less_than_one_start_is_an_error(capsys):
    with pytest.raises(SystemExit):
        demo.main(["demo", "--starts", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_the_example_runs_and_goes_on(tmp_path):
    example = Path(__file__).parents[1] / "docs/examples/many_starts.py"
    command = [sys.executable, str(example), "--processes", "1", "--starts", "3", "--steps", "50"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "of 3 starts found the best minimum" in done.stdout
    assert np.isfinite(Fits.load(tmp_path / "starts.npz").best[1]["final_loss"])
