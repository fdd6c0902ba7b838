"""Batches: rows drawn inside the loop, random keys, streams, and fits that go on with them."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import chisquare

import fitopt
from fitopt import Keys, Minibatches, OptaxOptimizer, Parameter
from fitopt.batches.shuffle import shuffled
from fitopt.callbacks import Checkpoint, EarlyStopping, KeepBest, Record, Validate

X = np.linspace(-1.0, 1.0, 23, dtype=np.float32)
DATA = {"x": X, "y": 3 * X + 1 + 0.1 * np.sin(40 * X)}
SOURCE = Minibatches(DATA, 5, seed=1)


def line_loss(state, batch):
    return jnp.mean((state["slope"] * batch["x"] + state["offset"] - batch["y"]) ** 2)


@pytest.fixture
def line():
    return {"slope": Parameter("slope", 0.0), "offset": Parameter("offset", 0.0)}


LINE = OptaxOptimizer(line_loss, optax.adam(0.1))


def rows_of(source, steps):
    draw = jax.jit(lambda source, step: source.draw(step))
    return np.stack([draw(source, np.int32(step)) for step in range(steps)])


def by_hand(batches, optimizer=optax.adam(0.1), loss=line_loss):  # noqa: B008
    """Losses of a plain loop over batches, and the fitted numbers."""
    params = {"slope": jnp.zeros(()), "offset": jnp.zeros(())}
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for batch in batches:
        params, state, value = step(params, state, batch)
        losses.append(value)
    return params, np.array(losses)


def taken(steps, source=SOURCE):
    draw = jax.jit(lambda source, step: source.draw(step))
    return [draw(source, np.int32(step)) for step in range(steps)]


# Rows.


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 97, 1000, 1001])
def test_each_epoch_takes_each_row_once(n):
    batch_size = max(n // 3, 1)
    epochs = 3
    rows = rows_of(Minibatches(np.arange(n), batch_size, seed=7), -(-epochs * n // batch_size))
    for epoch in rows.ravel()[: epochs * n].reshape(epochs, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_rows_come_in_another_order_in_each_epoch_and_with_each_seed():
    orders = [rows_of(Minibatches(np.arange(50), 50, seed=seed), 3) for seed in (0, 1)]
    assert len({tuple(order) for order in np.concatenate(orders)}) == 6


def test_all_orders_of_few_rows_are_equally_likely():
    orders = jax.jit(jax.vmap(lambda e: shuffled(jnp.arange(5), 5, jnp.uint32(3), jnp.full(5, e))))(
        jnp.arange(30_000)
    )
    _, counts = np.unique(np.asarray(orders) @ 5 ** np.arange(5), return_counts=True)
    assert counts.size == 120
    assert chisquare(counts).pvalue > 1e-3


def test_neighbours_in_an_order_of_many_rows_are_independent():
    orders = np.asarray(
        jax.jit(jax.vmap(lambda e: shuffled(jnp.arange(40, 42), 2000, jnp.uint32(3), jnp.full(2, e))))(
            jnp.arange(20_000)
        )
    )
    apart = (orders[:, 1] - orders[:, 0]) % 2000
    assert chisquare(np.bincount(apart // 100, minlength=20)).pvalue > 1e-3
    assert chisquare(np.bincount(orders[:, 0] // 100, minlength=20)).pvalue > 1e-3


def test_without_shuffling_rows_come_as_they_lie():
    rows = rows_of(Minibatches(np.arange(5), 2, shuffle=False), 5)
    np.testing.assert_array_equal(rows.ravel(), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])


def test_rows_are_right_after_more_steps_than_32_bits_can_count_rows():
    step, source = 2**31 - 2, Minibatches(np.arange(7), 5, shuffle=False)
    rows = jax.jit(lambda step: source.draw(step))(np.int32(step))
    np.testing.assert_array_equal(rows, (step * 5 + np.arange(5)) % 7)


# Fits.


def test_a_fit_is_that_of_a_plain_loop_over_the_same_batches(line):
    params, losses = by_hand(taken(40))
    fitted, history = LINE.run(line, 40, batches=SOURCE)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(fitted["slope"].value, params["slope"], rtol=1e-5)
    np.testing.assert_array_equal(history["epoch"], np.arange(40) * 5 // 23)
    np.testing.assert_allclose(history["final_loss"], line_loss(params, taken(41)[-1]), rtol=1e-5)


def test_a_fit_inside_jit_draws_the_same_batches(line):
    def fit(line, source):
        fitted, history = LINE.run(line, 12, batches=source)
        return fitted["slope"].value, history["loss"], history["epoch"], history["final_loss"]

    slope, losses, epochs, final = jax.jit(fit)(line, SOURCE)
    fitted, history = LINE.run(line, 12, batches=SOURCE)
    np.testing.assert_allclose(losses, history["loss"], rtol=1e-5)
    np.testing.assert_allclose(slope, fitted["slope"].value, rtol=1e-5)
    np.testing.assert_array_equal(epochs, history["epoch"])
    np.testing.assert_allclose(final, history["final_loss"], rtol=1e-5)


def test_other_data_and_another_seed_compile_nothing(line):
    from .conftest import counted_compilations

    LINE.run(line, 40, batches=SOURCE)
    other = Minibatches({"x": 2 * X, "y": X}, 5, seed=9)
    with counted_compilations() as compiled:
        LINE.run(line, 40, batches=other)
    assert not compiled


def test_forward_mode_and_gradients_over_several_batches(line):
    optimizer = optax.MultiSteps(optax.adam(0.1), 4)
    _, losses = by_hand(taken(20), optimizer)
    _, history = OptaxOptimizer(line_loss, optimizer).run(line, 20, mode="fwd", batches=SOURCE)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_a_line_search_has_one_batch_for_all_its_evaluations(line):
    fitted, history = OptaxOptimizer(line_loss, optax.lbfgs()).run(line, 1, batches=SOURCE)
    batch = taken(1)[0]
    found = {name: parameter.value for name, parameter in fitted.items()}
    assert line_loss(found, batch) < 0.5 * history["loss"][0]
    second = OptaxOptimizer(line_loss, optax.lbfgs()).run(line, 2, batches=SOURCE)[1]["loss"][1]
    np.testing.assert_allclose(second, line_loss(found, taken(2)[1]), rtol=1e-5)


def test_keys_are_those_of_fold_in(line):
    def loss(state, key):
        return (state["slope"] - jax.random.normal(key)) ** 2 + state["offset"] ** 2

    _, history = OptaxOptimizer(loss, optax.sgd(0.0)).run(line, 5, batches=Keys(seed=3))
    keys = [jax.random.fold_in(jax.random.key(3), step) for step in range(5)]
    np.testing.assert_allclose(history["loss"], [jax.random.normal(key) ** 2 for key in keys], rtol=1e-6)
    assert "epoch" not in history


def test_a_loss_gets_the_pytree_of_sources_as_one_of_batches(line):
    def loss(state, batch):
        return line_loss(state, batch["rows"]) + 0 * jax.random.normal(batch["key"])

    source = {"rows": SOURCE, "key": Keys(0)}
    _, history = OptaxOptimizer(loss, optax.adam(0.1)).run(line, 40, batches=source)
    np.testing.assert_allclose(history["loss"], LINE.run(line, 40, batches=SOURCE)[1]["loss"], rtol=1e-6)
    np.testing.assert_array_equal(history["epoch"], np.arange(40) * 5 // 23)


def test_a_batch_that_is_not_finite_ends_the_fit_with_the_last_good_state(line):
    y = DATA["y"].copy()
    y[17] = np.nan
    source = Minibatches({"x": X, "y": y}, 5, seed=1)
    bad = next(step for step in range(9) if np.isnan(taken(step + 1, source)[-1]["y"]).any())
    assert bad > 0
    with pytest.warns(RuntimeWarning, match=f"at step {bad} "):
        fitted, history = LINE.run(line, 40, batches=source)
    expected, _ = LINE.run(line, bad - 1, batches=source)
    assert fitted["slope"].value == expected["slope"].value
    assert history["n_steps"] == bad


# Streams.


def generator(steps, source=SOURCE):
    yield from (jax.tree.map(np.asarray, batch) for batch in taken(steps, source))


def test_a_stream_gives_the_fit_of_a_plain_loop_and_ends_it(line):
    _, losses = by_hand(taken(30))
    _, history = LINE.run(line, 1000, batches=generator(30))
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert history["stop_reason"] == "the batches have ended (after step 29)"
    assert not history["converged"]


def test_the_end_of_a_stream_is_evaluated_with_the_next_batch_or_the_last_one(line):
    for steps, batch in ((29, 29), (30, 29)):
        fitted, history = LINE.run(line, steps, batches=generator(30))
        params = {name: parameter.value for name, parameter in fitted.items()}
        np.testing.assert_allclose(history["final_loss"], line_loss(params, taken(30)[batch]), rtol=1e-5)


def test_a_stream_may_stand_beside_sources(line):
    def loss(state, batch):
        rows, key = batch
        return line_loss(state, rows) + 0 * jax.random.normal(key)

    _, history = OptaxOptimizer(loss, optax.adam(0.1)).run(line, 20, batches=(generator(30), Keys(0)))
    np.testing.assert_allclose(history["loss"], by_hand(taken(20))[1], rtol=1e-5)


def test_a_stream_is_read_ahead_only_so_far(line):
    read = []

    def batches():
        while True:
            read.append(len(read))
            yield {"x": np.zeros(2**19), "y": np.zeros(2**19)}  # in single precision 4 MB: two a block

    LINE.run(line, 6, batches=batches())
    assert len(read) < 20


def test_a_plain_function_stops_a_fit_that_reads_a_stream(line):
    def stop(step, *_):
        return step == 4

    _, history = OptaxOptimizer(line_loss, optax.adam(0.1), stop).run(line, 50, batches=generator(30))
    assert history["n_steps"] == 5


def test_an_exception_in_a_stream_keeps_what_was_reached(line):
    def broken():
        yield from generator(7)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        LINE.run(line, 30, batches=broken())
    _, history = caught.value.fit
    assert history["n_steps"] == 7
    np.testing.assert_allclose(history["loss"], by_hand(taken(7))[1], rtol=1e-5)


def test_no_thread_is_left_behind(line):
    LINE.run(line, 3, batches=generator(30))
    for thread in threading.enumerate():
        if thread.name == "fitopt batches":
            thread.join(5)
            assert not thread.is_alive()


def test_a_batch_of_another_shape_is_named(line):
    def ragged():
        yield from generator(3)
        yield {"x": np.zeros(5, np.float32), "y": np.zeros(4, np.float32)}

    with pytest.raises(ValueError, match=r"batches\['y'\] must have shape \(5,\).*in batch 3 .*\(4,\)"):
        LINE.run(line, 30, batches=ragged())


# Going on.


@pytest.mark.parametrize("kind", ["minibatches", "stream"])
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(line, tmp_path, kind):
    source = (lambda: SOURCE) if kind == "minibatches" else (lambda: generator(40))
    optimizer = OptaxOptimizer(line_loss, optax.adam(0.1), Checkpoint(tmp_path, every=10))
    optimizer.run(line, 25, batches=source())
    if kind == "minibatches":
        fitted, history = optimizer.run(line, 40, batches=source(), resume_from=tmp_path)
    else:
        with pytest.warns(RuntimeWarning, match="the first 25 batches"):
            fitted, history = optimizer.run(line, 40, batches=source(), resume_from=tmp_path)
    expected, straight = LINE.run(line, 40, batches=source())
    np.testing.assert_array_equal(history["loss"], straight["loss"])
    assert fitted["slope"].value == expected["slope"].value


class Loader:
    """An iterator that knows its place, as those of grain do."""

    def __init__(self, steps):
        self.place, self.steps, self.read = 0, steps, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == self.steps:
            raise StopIteration
        self.place, self.read = self.place + 1, self.read + 1
        return jax.tree.map(np.asarray, taken(self.place)[-1])

    def get_state(self):
        return str(self.place).encode()

    def set_state(self, state):
        self.place = int(state.decode())


def test_an_iterator_that_knows_its_place_goes_on_there(line, tmp_path):
    optimizer = OptaxOptimizer(line_loss, optax.adam(0.1), Checkpoint(tmp_path, every=5))
    optimizer.run(line, 7, batches=Loader(12))
    second = Loader(12)
    _, history = optimizer.run(line, 12, batches=second, resume_from=tmp_path)
    assert second.read == 5
    np.testing.assert_allclose(history["loss"], by_hand(taken(12))[1], rtol=1e-5)


def test_going_on_with_another_seed_is_refused(line):
    _, history = LINE.run(line, 10, batches=SOURCE)
    with pytest.raises(ValueError, match="seed"):
        LINE.run(line, 20, batches=Minibatches(DATA, 5, seed=2), resume_from=history)


# Bad input.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Minibatches(DATA, 24), ValueError, "at most 23"),
        (lambda: Minibatches(DATA, 0), ValueError, "batch_size must be a positive integer"),
        (lambda: Minibatches(DATA, 5, seed=-1), ValueError, "seed"),
        (lambda: Minibatches(DATA, 5, shuffle=1), TypeError, "shuffle must be True or False"),
        (lambda: Minibatches({"x": X, "y": X[1:]}, 5), ValueError, r"\['x'\] has 23.*\['y'\] has 22"),
        (lambda: Minibatches({"x": "text"}, 5), TypeError, r"data\['x'\] must be an array of numbers"),
        (lambda: Minibatches({"x": np.array(["a"])}, 1), TypeError, r"data\['x'\] must be an array"),
        (lambda: Minibatches(np.zeros((0, 2)), 1), ValueError, "must have rows, and has none"),
        (lambda: Minibatches({}, 5), ValueError, "must hold arrays"),
        (lambda: Keys("seed"), TypeError, "Keys: seed must be an integer"),
    ],
)
def test_bad_sources(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (3, TypeError, "batches must be fitopt.Minibatches"),
        (X, TypeError, "batches must be fitopt.Minibatches"),
        (DATA, TypeError, r"fitopt\.Minibatches\(data, batch_size\); got 'x', 'y'"),
        ((SOURCE, 3), TypeError, r"batches\[1\] must be"),
        ([], ValueError, "not given a single batch"),
        ([{"x": "text"}], TypeError, r"batches\['x'\] must be an array of numbers"),
    ],
)
def test_bad_batches(line, batches, error, message):
    with pytest.raises(error, match=message):
        LINE.run(line, 3, batches=batches)


def test_a_minimiser_refuses_batches(line):
    with pytest.raises(TypeError, match=r"optax\.lbfgs searches within a step"):
        OptaxOptimizer(line_loss, fitopt.LBFGSB(1e-6, 0.0)).run(line, 3, batches=SOURCE)


def test_a_loss_of_batches_wants_them(line):
    with pytest.raises(TypeError, match="batches must be given"):
        LINE.run(line, 3)
    with pytest.raises(TypeError, match="run_many has no batches"):
        LINE.run_many([line], 3)
    with pytest.raises(TypeError, match="with all data"):
        LINE.uncertainty(line)


def test_least_squares_refuses_batches_and_says_why(line):
    with pytest.raises(TypeError, match="compare residuals of the same data"):
        fitopt.LeastSquares(lambda state: state["slope"] - X).run(line, batches=SOURCE)


def test_an_iterable_cannot_be_read_inside_jit(line):
    with pytest.raises(TypeError, match="inside jit"):
        jax.jit(lambda line: LINE.run(line, 3, batches=generator(3)))(line)


def test_callbacks_see_the_losses_of_batches(line):
    callbacks = [EarlyStopping(10), KeepBest(), Record("double", lambda info: 2 * info.loss)]
    _, history = OptaxOptimizer(line_loss, optax.adam(0.1), callbacks).run(line, 100, batches=SOURCE)
    np.testing.assert_array_equal(history["double"], 2 * history["loss"])
    assert history["converged"]
    assert history["final_loss"] == history["best_loss"]


# Validation.

TEST = {"x": np.linspace(-2.0, 2.0, 11, dtype=np.float32)}
TEST["y"] = 3 * TEST["x"] + 1


def test_validation_is_the_loss_of_the_state_of_its_step(line):
    callback = Validate(line_loss, TEST, every=10)
    _, history = OptaxOptimizer(line_loss, optax.adam(0.1), callback).run(line, 31, batches=SOURCE)
    expected = [line_loss(by_hand(taken(step))[0], TEST) for step in (0, 10, 20, 30)]
    np.testing.assert_allclose(history["validation_loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(history.steps("validation_loss"), [0, 10, 20, 30])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 20])
def test_validation_by_parts_is_that_of_the_whole(line, batch_size):
    callbacks = [
        Validate(line_loss, TEST, every=2),
        Validate(line_loss, TEST, every=2, name="by parts", batch_size=batch_size),
    ]
    _, history = OptaxOptimizer(line_loss, optax.adam(0.1), callbacks).run(line, 4, batches=SOURCE)
    np.testing.assert_allclose(history["by parts"], history["validation_loss"], rtol=1e-5)


WORSE_FROM = 20  # steps: as the target of the validation is passed on the way


def passing(*callbacks):
    """A parameter that moves by 0.1 a step, validated every 5 steps against 2."""
    validate = Validate(lambda s, target: (s["x"] - target) ** 2, jnp.array(2.0), every=5)
    optimizer = fitopt.optimizers.sgd(0.1)
    return OptaxOptimizer(lambda s: -s["x"], optimizer, [validate, *callbacks])


def test_patience_is_counted_in_validations():
    stop = EarlyStopping(3, monitor="validation_loss")
    _, history = passing(stop).run({"x": Parameter("x", 0.0)}, 100)
    assert history["n_steps"] == WORSE_FROM + 3 * 5 + 1
    assert (
        history["stop_reason"]
        == "EarlyStopping: validation_loss did not improve in 3 evaluations (at step 35)"
    )


@pytest.mark.parametrize("max_steps", [33, 35, 22])
def test_the_best_validated_state_is_returned(max_steps):
    keep = KeepBest(monitor="validation_loss")
    fitted, history = passing(keep).run({"x": Parameter("x", 0.0)}, max_steps)
    np.testing.assert_allclose(fitted["x"].value, 2.0, rtol=1e-5)
    np.testing.assert_allclose(history["final_loss"], -2.0, rtol=1e-5)


def test_the_learning_rate_is_reduced_by_validations():
    callbacks = [
        fitopt.callbacks.ReduceOnPlateau(0.5, patience=1, monitor="validation_loss"),
        fitopt.callbacks.RecordLearningRate(),
    ]
    _, history = passing(*callbacks).run({"x": Parameter("x", 0.0)}, 40)
    rates = history["learning_rate"]
    assert np.flatnonzero(np.diff(rates))[0] == WORSE_FROM + 2 * 5
    assert rates[-1] == np.float32(0.05)


def test_a_metric_that_nobody_measures_is_named(line):
    callbacks = [EarlyStopping(3, monitor="accuracy"), Validate(line_loss, TEST, every=2)]
    with pytest.raises(ValueError, match="'accuracy'.*before it nothing is measured"):
        OptaxOptimizer(line_loss, optax.adam(0.1), callbacks).run(line, 4, batches=SOURCE)


def test_validation_data_are_no_part_of_the_program(line):
    data = {name: np.tile(x, 100_000) for name, x in TEST.items()}
    optimizer = OptaxOptimizer(line_loss, optax.adam(0.1), Validate(line_loss, data, every=2))
    text = str(jax.make_jaxpr(lambda line: optimizer.run(line, 3, batches=SOURCE)[1]["loss"])(line))
    assert len(text) < 1_000_000
    _, history = optimizer.run(line, 3, batches=SOURCE)
    expected = [line_loss(by_hand(taken(step))[0], TEST) for step in (0, 2)]
    np.testing.assert_allclose(history["validation_loss"], expected, rtol=1e-3)


# Examples and modules.


@pytest.mark.filterwarnings("ignore:.seed. is deprecated:DeprecationWarning")  # by optax, for its own
def test_optimizers_of_single_examples_get_the_gradient_of_each(line):
    def example_loss(state, example):
        return (state["slope"] * example["x"] + state["offset"] - example["y"]) ** 2

    private = optax.contrib.dpsgd(0.1, l2_norm_clip=0.5, noise_multiplier=0.0, seed=0)
    _, history = OptaxOptimizer(line_loss, private, example_loss=example_loss).run(
        line, 10, batches=SOURCE
    )
    params, state = {"slope": jnp.zeros(()), "offset": jnp.zeros(())}, None
    state = private.init(params)
    for batch, loss in zip(taken(10), history["loss"], strict=True):
        np.testing.assert_allclose(loss, line_loss(params, batch), rtol=1e-4)
        grads = jax.vmap(jax.grad(example_loss), (None, 0))(params, batch)
        updates, state = private.update(grads, state, params)
        params = optax.apply_updates(params, updates)


@pytest.mark.filterwarnings("error")
def test_a_fit_of_a_module_can_be_kept_in_checkpoints(tmp_path):
    state = fitopt.trainable(eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0)))  # its activation is no array
    x = jnp.linspace(-1.0, 1.0, 16)[:, None]
    loss = lambda model, batch: jnp.mean((jax.vmap(model)(batch) - batch**2) ** 2)
    optimizer = OptaxOptimizer(loss, optax.adam(0.05), Checkpoint(tmp_path, every=5))
    optimizer.run(state, 7, batches=Minibatches(x, 8))
    _, history = optimizer.run(state, 12, batches=Minibatches(x, 8), resume_from=tmp_path)
    _, straight = OptaxOptimizer(loss, optax.adam(0.05)).run(state, 12, batches=Minibatches(x, 8))
    np.testing.assert_array_equal(history["loss"], straight["loss"])


def test_a_module_becomes_trainable():
    model = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
    state = fitopt.trainable(model)
    x = jnp.linspace(-1.0, 1.0, 16)[:, None]

    def loss(model, batch):
        return jnp.mean((jax.vmap(model)(batch) - batch**2) ** 2)

    fitted, history = OptaxOptimizer(loss, optax.adam(0.05)).run(state, 200, batches=Minibatches(x, 8))
    assert history["loss"][-20:].mean() < 0.2 * history["loss"][0]
    assert fitted.activation is model.activation
    np.testing.assert_allclose(jax.vmap(fitopt.values(fitted))(x).shape, (16, 1))
    names = str(fitopt.report(fitted, history))
    assert "layers/0/weight" in names
