"""Batches from grain, and fits that go on with them."""

import itertools

import grain
import jax
import numpy as np
import optax
import pytest

from fitopt import OptaxOptimizer, Parameter
from fitopt.callbacks import Checkpoint

X = np.linspace(-1.0, 1.0, 40, dtype=np.float32)


class Line(grain.sources.RandomAccessDataSource):
    def __len__(self):
        return X.size

    def __getitem__(self, index):
        return {"x": X[index], "y": 3 * X[index] + 1}

    def __repr__(self):  # by which grain tells whether a state is of these data
        return "Line()"


def data_loader():
    sampler = grain.samplers.IndexSampler(X.size, shuffle=True, seed=3, num_epochs=None)
    batch = grain.transforms.Batch(8)
    return grain.DataLoader(data_source=Line(), sampler=sampler, operations=[batch], worker_count=0)


def dataset():
    return grain.MapDataset.source(Line()).seed(3).shuffle().batch(8).repeat().to_iter_dataset()


def loss(state, batch):
    return ((state["slope"] * batch["x"] + state["offset"] - batch["y"]) ** 2).mean()


@pytest.mark.parametrize("make", [data_loader, dataset])
def test_a_fit_with_grain_is_that_of_a_plain_loop_and_goes_on_bit_for_bit(make, tmp_path):
    line = {"slope": Parameter("slope", 0.0), "offset": Parameter("offset", 0.0)}
    expected, straight = OptaxOptimizer(loss, optax.sgd(0.1)).run(line, 60, batches=make())

    params = {"slope": 0.0, "offset": 0.0}
    gradient = jax.jit(jax.value_and_grad(loss))
    for batch, value in zip(itertools.islice(make(), 12), straight["loss"], strict=False):
        by_hand, grads = gradient(params, batch)
        np.testing.assert_allclose(value, by_hand, rtol=1e-5)
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)

    optimizer = OptaxOptimizer(loss, optax.sgd(0.1), Checkpoint(tmp_path, every=10))
    optimizer.run(line, 33, batches=make())
    fitted, history = optimizer.run(line, 60, batches=make(), resume_from=tmp_path)
    np.testing.assert_array_equal(history["loss"], straight["loss"])
    assert fitted["slope"].value == expected["slope"].value
