import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fitopt
from fitopt import Fits, History, OptaxOptimizer, Parameter, starts, vary
from fitopt.callbacks import EarlyStopping


def double_well(state):
    """Two minima: at x = -1 with loss 0.1, and at x = 2 with loss 0."""
    x = state["x"]
    tilt = 0.1 * (2 - x) / 3
    return (x + 1) ** 2 * (x - 2) ** 2 / 5 + tilt * state["on"] + jnp.sum(state["w"] ** 2)


STATE = {
    "x": Parameter("x", 1.0, lower=-3, upper=4),
    "w": Parameter("w", np.ones(2), mask=np.array([True, False])),
    "on": 1.0,
}


@pytest.fixture(scope="module")
def optimizer():
    return OptaxOptimizer(double_well, optax.adam(0.1), EarlyStopping(30, 1e-5))


@pytest.fixture(scope="module")
def states():
    drawn = starts(STATE, 32)
    w, x = map(np.array, drawn.starts(slice(None)))
    x[5] = 7.0  # outside its bounds
    return vary(STATE, {"x": x, "w": w})


@pytest.fixture(scope="module")
def fits(optimizer, states):
    return optimizer.run_many(states, 400, lanes=8, record=True)


def test_fits_are_a_sequence_of_pairs(fits):
    assert len(fits) == 32
    state, history = fits[-1]
    assert isinstance(history, History)
    assert float(state["x"]) == fits.values("x")[31]
    assert history["loss"].shape == (fits.n_steps[31],)
    assert history.start["x"].value == fits.start_values("x")[31]
    assert fits[2:4][1][1]["final_loss"] == fits.final_loss[3]
    assert len(list(fits)) == 32
    with pytest.raises(IndexError):
        fits[32]
    with pytest.raises(KeyError, match="no parameter 'y' is fitted; there are w, x"):
        fits.values("y")


def test_the_best_fit_is_that_of_the_least_loss(fits):
    state, history = fits.best
    assert history["final_loss"] == np.nanmin(fits.final_loss)
    assert abs(float(state["x"]) - 2.0) < 0.1


def test_without_any_loss_there_is_no_best_fit(fits):
    with pytest.raises(ValueError, match="no fit has a finite loss; .* lies outside its bound"):
        fits[5:6].best  # noqa: B018


def test_minima_are_those_of_the_function_with_their_counts(fits):
    first, second, *others = fits.minima(rtol=0.1)
    assert not others
    assert first.count + second.count == 31
    assert abs(first.values["x"] - 2) < 0.1 and abs(second.values["x"] + 1) < 0.1
    assert first.loss < second.loss
    ends = fits.values("x")
    assert set(first.fits.tolist()) == set(np.flatnonzero(ends > 0.5).tolist()) - {5}
    assert first.loss == fits.final_loss[first.fits].min()
    with pytest.raises(ValueError, match="rtol must be a number above 0"):
        fits.minima(rtol=0)


def test_a_table_has_a_row_for_each_fit(fits):
    frame = fits.to_dataframe()
    assert len(frame) == 32
    assert frame["x"][3] == fits.values("x")[3]
    assert frame["start/w[0]"][3] == fits.start_values("w")[3, 0]
    assert "w[1]" not in frame
    assert frame["stop_reason"][5].startswith("could not begin")


def test_a_summary_tells_how_many_ended_how(fits):
    text = repr(fits)
    assert text.startswith("32 fits of w, x, 31 converged")
    assert "31 × EarlyStopping" in text and "1 × could not begin" in text


def test_fits_come_back_from_a_file(fits, states, tmp_path):
    fits.save(tmp_path / "fits.npz")
    again = Fits.load(tmp_path / "fits.npz", states)
    assert again.stop_reason == fits.stop_reason
    for i in (0, 5, 31):
        (state, history), (wanted, expected) = again[i], fits[i]
        assert fitopt.values(state)["x"] == fitopt.values(wanted)["x"]
        assert state["x"].upper == 4 and state["on"] == 1.0
        assert {**history, "loss": None} == {**expected, "loss": None} or np.isnan(history["final_loss"])
        np.testing.assert_array_equal(history.get("loss"), expected.get("loss"))


def test_without_states_a_file_gives_the_free_parameters(fits, tmp_path):
    fits.save(tmp_path / "fits.npz")
    again = Fits.load(tmp_path / "fits.npz")
    np.testing.assert_array_equal(again.values("x"), fits.values("x"))
    np.testing.assert_array_equal(again.start_values("w"), fits.start_values("w"))
    assert again.labels == fits.labels
    assert again[0][0]["x"].lower == -3
    assert [m.count for m in again.minima()] == [m.count for m in fits.minima()]


def test_files_that_are_not_those_of_the_fits_are_errors(fits, states, tmp_path):
    fits[0][1].save(tmp_path / "history.npz")
    with pytest.raises(ValueError, match="holds no fits"):
        Fits.load(tmp_path / "history.npz")
    fits.save(tmp_path / "fits.npz")
    with pytest.raises(ValueError, match="holds 32 fits of w, x; states are 4 of w, x"):
        Fits.load(tmp_path / "fits.npz", states[:4])


def test_a_waterfall_shows_losses_in_order_by_minimum(fits):
    matplotlib = pytest.importorskip("matplotlib")
    axes = fitopt.plot_waterfall(fits, rtol=0.1)
    drawn = axes.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, np.sort(fits.final_loss[np.isfinite(fits.final_loss)]))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [int(label.split()[0]) for label in labels] == [m.count for m in fits.minima(rtol=0.1)]
    matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="no fit has a finite loss"):
        fitopt.plot_waterfall(fits[5:6])


def test_starts_are_drawn_with_where_they_have_led(fits):
    matplotlib = pytest.importorskip("matplotlib")
    axes = fitopt.plot_starts(fits, ["x", "w"])
    assert [one.get_xlabel() for one in axes] == ["x at the start", "w[0] at the start"]
    points = np.concatenate([one.get_offsets() for one in axes[0].collections])
    kept = np.isfinite(fits.final_loss)
    expected = np.stack([fits.start_values("x"), fits.values("x")], axis=1)[kept]
    np.testing.assert_allclose(sorted(points.tolist()), sorted(expected.tolist()))
    matplotlib.pyplot.close("all")
    with pytest.raises(KeyError, match="no parameter 'y'"):
        fitopt.plot_starts(fits, "y")


def test_many_fits_do_not_hold_the_states_of_each(optimizer):
    state = STATE | {"data": jnp.ones(1000)}
    fits = optimizer.run_many(starts(state, 3), 1)
    assert fits[0][0]["data"] is fits[2][0]["data"]
    assert jax.tree.structure(fits[0][0]) == jax.tree.structure(state)
