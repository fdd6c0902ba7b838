"""What holds for all callbacks that come with fitopt."""

import jax
import numpy as np

from fitopt import OptaxOptimizer, Parameter, optimizers
from fitopt.callbacks import EarlyStopping, KeepBest, StopOnGradient, StopOnStep

from .conftest import quadratic
from .walk import run_walk


def test_the_walk_of_these_tests_visits_each_loss_in_turn():
    fitted, history = run_walk([5.0, 3.0, 4.0, 1.0], None)
    np.testing.assert_array_equal(history["loss"], [5.0, 3.0, 4.0])
    assert float(fitted["x"]) == 3.0 and history["final_loss"] == 1.0


def test_inside_vmap_each_lane_is_stopped_by_the_callback_that_would_stop_it_alone():
    callbacks = [EarlyStopping(2), StopOnGradient(1e-2), StopOnStep(0.0, 1e-2), KeepBest()]
    fit = OptaxOptimizer(quadratic, optimizers.adam(0.3), callbacks)
    run = lambda target: fit.run({"x": Parameter("x", 3.0), "target": target}, 60)
    targets = np.array([3.0, 2.7, 1.0, -4.0], np.float32)
    fitted, histories = jax.vmap(run)(targets)
    for lane, target in enumerate(targets):
        alone, history = run(target)
        n = history["n_steps"]
        assert int(histories["n_steps"][lane]) == n
        np.testing.assert_allclose(histories["loss"][lane][:n], history["loss"], rtol=1e-4, atol=1e-9)
        assert np.isnan(histories["loss"][lane][n:]).all()
        np.testing.assert_allclose(fitted["x"].value[lane], alone["x"].value, rtol=1e-5)
    assert len(set(histories["n_steps"].tolist())) > 2
