"""Each loss of optax serves as a loss."""

import jax
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, values

from .losses import INSIDE, LOGITS, LOSSES, loss_with
from .problem import parameters
from .table import exported


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in LOSSES | INSIDE if name in exported()])
def test_a_fit_with_it_begins_at_its_value_and_descends(name):
    loss = loss_with((LOSSES | INSIDE)[name])
    fitted, history = OptaxOptimizer(loss, optax.sgd(0.02)).run(parameters(LOGITS), 20)
    directly = jax.jit(loss)
    np.testing.assert_allclose(history["loss"][0], directly(LOGITS), rtol=1e-6)
    np.testing.assert_allclose(history["final_loss"], directly(values(fitted)), rtol=1e-6)
    assert history["final_loss"] < history["loss"][0]
