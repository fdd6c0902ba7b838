"""Transforms against closed forms, and what they promise at the edges of the range of numbers."""

import copy
import dataclasses
import functools
import pickle

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitopt.transforms import (
    Affine,
    Bounded,
    Chain,
    Exp,
    Identity,
    Interval,
    Ordered,
    PositiveDefinite,
    Simplex,
    Transform,
)
from fitopt.transforms.transform import Constant

moderately = settings(max_examples=25, deadline=None, derandomize=True)
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
WIDTH = 3.0

# Each interval has a bound at zero, and its values are `sign * distance`: so distances of 1e-30 exist.
INTERVALS = {
    "lower": (Interval(0.0), 1, np.inf),
    "upper": (Interval(upper=0.0), -1, np.inf),
    "lower, scale": (Interval(0.0, scale=1e3), 1, np.inf),
    "upper, scale": (Interval(upper=0.0, scale=1e-3), -1, np.inf),
    "both, near lower": (Interval(0.0, WIDTH), 1, WIDTH),
    "both, near upper": (Interval(-WIDTH, 0.0), -1, WIDTH),
    "both, scale": (Interval(0.0, WIDTH, scale=1e-2), 1, WIDTH),
    "both, large": (Interval(0.0, 2.0**90), 1, 2.0**90),
}
intervals = pytest.mark.parametrize("kind", INTERVALS)


def use(dtype):
    return jax.enable_x64(dtype == jnp.float64)


def batch(low, high):
    return hnp.arrays(np.float64, 32, elements=st.floats(low, high))


# From 1e-30 above a bound to 1e30 away; in float64, ten times as many orders of magnitude.
magnitudes = batch(-30, 30)


def distances_to(width, magnitudes, scale, dtype):
    stretch = 9.5 if dtype == jnp.float64 else 1.0
    if scale != 1.0:
        stretch *= 0.8  # leaves room for the division by the scale
    distances = 10.0 ** (stretch * magnitudes)
    inner = width / (1 + 1 / distances) if np.isfinite(width) else distances
    return np.minimum(inner, 0.999 * width).astype(dtype).astype(np.float64)


@functools.cache
def compiled(transform, what):
    gradient = jax.grad(lambda c: jnp.sum(transform.forward(c)))
    inverse_gradient = jax.grad(lambda v: jnp.sum(transform.inverse(v)))

    def there_and_back(values):
        c = transform.inverse(values)
        value, tangent = jax.jvp(transform.forward, (c,), (jnp.ones_like(c),))
        slope, curvature = jax.jvp(gradient, (c,), (jnp.ones_like(c),))
        return c, value, tangent, slope, curvature, inverse_gradient(values)

    functions = {
        "forward": transform.forward,
        "inverse": transform.inverse,
        "gradient": gradient,
        "inverse gradient": inverse_gradient,
        "there and back": there_and_back,
    }
    return jax.jit(functions[what])


def case(kind, magnitudes, dtype):
    """The interval, its values and their distances to the bound at zero."""
    interval, sign, width = INTERVALS[kind]
    scale = 1.0 if interval.scale is None else float(interval.scale.array)
    distances = distances_to(width, magnitudes, scale, dtype)
    return interval, jnp.asarray(sign * distances, dtype), distances


def conditioning(kind, distances, dtype):
    """The relative error of a distance that rounding its logarithm, the coordinate, costs."""
    interval, _, width = INTERVALS[kind]
    unit = (
        width if np.isfinite(width) else 1.0 if interval.scale is None else float(interval.scale.array)
    )
    return (4 + 2 * np.abs(np.log(distances / unit))) * float(jnp.finfo(dtype).eps)


@dtypes
@intervals
@given(magnitudes)
@moderately
def test_values_come_back_from_their_coordinates(dtype, kind, magnitudes):
    with use(dtype):
        interval, values, distances = case(kind, magnitudes, dtype)
        coordinates, back, *_ = compiled(interval, "there and back")(values)
        assert coordinates.dtype == back.dtype == dtype
    error = np.abs(np.abs(np.asarray(back, np.float64)) - distances) / distances
    assert np.all(error <= conditioning(kind, distances, dtype))


@dtypes
@intervals
@given(magnitudes)
@moderately
def test_derivatives_agree_with_their_closed_form(dtype, kind, magnitudes):
    with use(dtype):
        interval, values, distances = case(kind, magnitudes, dtype)
        _, _, tangent, gradient, *_ = compiled(interval, "there and back")(values)
    scale = None if interval.scale is None else float(interval.scale.array)
    width = INTERVALS[kind][2]
    if np.isfinite(width):  # of the logistic function s: s (1 - s)
        expected = distances * ((width - distances) / width)
        expected *= 1.0 if scale is None else 4 * scale / width
    else:  # of softplus: 1 - exp(-softplus)
        expected = -(scale or 1.0) * np.expm1(-distances / (scale or 1.0))
    allowed = conditioning(kind, distances, dtype)
    if not np.isfinite(width):  # JAX takes exp(c - softplus(c)): more than a logarithm is rounded
        allowed += float(jnp.finfo(dtype).eps) * np.minimum(distances / (scale or 1.0), 40)
    for derivative in (gradient, tangent):
        assert np.all(np.abs(np.asarray(derivative, np.float64) / expected - 1) <= 2 * allowed)


@dtypes
@intervals
@given(magnitudes)
@moderately
def test_no_derivative_is_zero_or_infinite_or_nan(dtype, kind, magnitudes):
    with use(dtype):
        interval, values, _ = case(kind, magnitudes, dtype)
        *_, gradient, curvature, inverse_gradient = compiled(interval, "there and back")(values)
        assert gradient.dtype == curvature.dtype == dtype
    assert np.all(np.isfinite(gradient) & (np.asarray(gradient) > 0))
    assert np.all(np.isfinite(curvature))
    assert np.all(np.isfinite(inverse_gradient))


@dtypes
@intervals
@given(batch(-1e30, 1e30))
@moderately
def test_no_coordinate_leads_out_of_the_bounds(dtype, kind, coordinates):
    interval, _, _ = INTERVALS[kind]
    with use(dtype):
        for factor in (1.0, 1e-20, 1e-28):
            values = np.asarray(compiled(interval, "forward")(jnp.asarray(factor * coordinates, dtype)))
            assert np.all(values >= interval.lower.astype(dtype))
            assert np.all(values <= interval.upper.astype(dtype))
            assert np.all(np.isfinite(values))


@dtypes
@intervals
@given(batch(-60, 60))
@moderately
def test_values_grow_with_their_coordinates(dtype, kind, coordinates):
    interval, _, _ = INTERVALS[kind]
    with use(dtype):
        ordered = jnp.asarray(np.sort(coordinates), dtype)
        values = np.asarray(compiled(interval, "forward")(ordered), np.float64)
    rounding = 2 * float(jnp.finfo(dtype).eps) * np.abs(values[1:])
    assert np.all(np.diff(values) >= -rounding)


@dtypes
@pytest.mark.parametrize("bound", [5.0, -1e6, 1e-3])
def test_values_keep_their_ulps_next_to_a_bound_that_is_not_zero(dtype, bound):
    with use(dtype):
        eps = float(jnp.finfo(dtype).eps)
        distances = np.abs(bound) * np.logspace(np.log10(4 * eps), 3, 200)
        for interval, sign in ((Interval(bound), 1), (Interval(upper=bound), -1)):
            values = jnp.asarray(bound + sign * distances, dtype)
            back = compiled(interval, "forward")(compiled(interval, "inverse")(values))
            allowed = 3 * np.maximum(np.abs(values), np.abs(bound)) + distances * np.abs(
                np.log(distances)
            )
            assert np.all(np.abs(np.asarray(back - values, np.float64)) <= eps * allowed)


@dtypes
@pytest.mark.parametrize(
    ("interval", "closed_form"),
    [
        (Interval(1.0), lambda c: 1 + np.log1p(np.exp(c))),
        (Interval(upper=1.0), lambda c: 1 - np.log1p(np.exp(-c))),
        (Interval(1.0, scale=5.0), lambda c: 1 + 5 * np.log1p(np.exp(c))),
        (Interval(-1.0, 3.0), lambda c: -1 + 4 / (1 + np.exp(-c))),
        (Interval(-1.0, 3.0, scale=0.5), lambda c: -1 + 4 / (1 + np.exp(-0.5 * c))),
        (Interval(), lambda c: c),
        (Interval(scale=5.0), lambda c: 5 * c),
        (Affine(1.0, -5.0), lambda c: 1 - 5 * c),
        (Exp(), np.exp),
        (Identity(), lambda c: c),
        (Chain(Affine(1.0, 2.0), Exp()), lambda c: 1 + 2 * np.exp(c)),
        (Chain(), lambda c: c),
    ],
    ids=lambda x: repr(x) if isinstance(x, Transform) else "",
)
def test_forward_agrees_with_its_closed_form(dtype, interval, closed_form):
    coordinates = np.linspace(-8.0, 8.0, 81)
    with use(dtype):
        values = compiled(interval, "forward")(jnp.asarray(coordinates, dtype))
        back = compiled(interval, "inverse")(values)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(values, closed_form(coordinates), rtol=20 * eps, atol=20 * eps)
    np.testing.assert_allclose(back, coordinates, rtol=1e4 * eps, atol=1e4 * eps)


@dtypes
def test_an_interval_as_wide_as_the_numbers_does_not_overflow(dtype):
    most = float(jnp.finfo(dtype).max)
    interval = Interval(-most, most)
    coordinates = np.linspace(-5.0, 5.0, 41)
    with use(dtype):
        values = interval.forward(jnp.asarray(coordinates, dtype))
        gradient = compiled(interval, "gradient")(jnp.asarray(coordinates, dtype))
        back = interval.inverse(values)
    np.testing.assert_allclose(
        np.asarray(values) / most, np.tanh(coordinates / 2), atol=1e-6 if dtype == jnp.float32 else 1e-14
    )
    np.testing.assert_allclose(
        np.asarray(gradient) / most, 0.5 / np.cosh(coordinates / 2) ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(back, coordinates, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "interval", [Interval(0.0), Interval(0.0, 8.0), Interval(0.0, scale=4.0)], ids=repr
)
def test_half_precision_keeps_its_dtype_and_its_digits(dtype, interval):
    values = jnp.asarray(np.logspace(-3, 0.8, 50), dtype)
    coordinates = compiled(interval, "inverse")(values)
    back = compiled(interval, "forward")(coordinates)
    assert coordinates.dtype == back.dtype == dtype
    slack = (4 + np.abs(np.log(np.asarray(values, np.float64)))) * float(jnp.finfo(dtype).eps)
    exact = np.asarray(values, np.float64)
    np.testing.assert_array_less(np.abs(np.asarray(back, np.float64) - exact), slack * exact)


@pytest.mark.parametrize(
    "transform",
    [
        Interval(0.1),
        Interval(0.1, 9.0),
        Interval(0.1, 9.0, scale=3.0),
        Interval([0.1, -np.inf, 0.1], [np.inf, 9.0, 9.0]),
        Affine(0.1, 0.3),
        Exp(),
        Chain(Affine(scale=0.1), Exp()),
        Bounded(Exp(), 0.1, 9.0),
        Ordered(),
        Simplex(),
    ],
    ids=repr,
)
def test_float32_stays_float32_where_float64_is_enabled(transform):
    coordinate = jnp.asarray([0.3, 0.2, 0.1], jnp.float32)
    with jax.enable_x64(True):
        value = compiled(transform, "forward")(coordinate)
        gradient = compiled(transform, "gradient")(coordinate)
        back = compiled(transform, "inverse")(value)
        assert (value.dtype, gradient.dtype, back.dtype) == (jnp.float32,) * 3


@dtypes
@pytest.mark.parametrize(
    ("interval", "value", "inside"),
    [
        (Interval(2.0), 2.0, 2.1),
        (Interval(upper=2.0), 2.0, 1.9),
        (Interval(2.0, scale=100.0), 2.0, 12.0),
        (Interval(2.0, 4.0), 2.0, 2 + 2 / 11),
        (Interval(2.0, 4.0), 4.0, 4 - 2 / 11),
        (Interval(2.0, 4.0, scale=100.0), 4.0, 4 - 2 / 11),
    ],
    ids=str,
)
def test_a_value_on_a_bound_gets_the_coordinate_of_one_just_inside(dtype, interval, value, inside):
    with use(dtype):
        coordinate = compiled(interval, "inverse")(jnp.asarray(value, dtype))
        moved = float(compiled(interval, "forward")(coordinate))
        assert float(compiled(interval, "gradient")(coordinate)) > 1e-4
    assert moved == pytest.approx(inside, abs=2e-3 * abs(inside - value) + 1e-6)


@pytest.mark.parametrize("kind", ["lower", "upper", "both, near lower", "both, near upper"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("distance", [1e-30, 1.0, 1e30])
def test_values_far_from_the_scale_have_finite_coordinates(kind, scale, distance):
    interval, sign, width = INTERVALS[kind]
    interval = dataclasses.replace(interval, scale=scale)
    value = jnp.asarray([sign * min(distance, 0.999 * width)], jnp.float32)
    assert np.isfinite(compiled(interval, "inverse")(value)).all()


def test_a_nan_stays_a_nan():
    for interval in (Interval(0.0), Interval(upper=1.0), Interval(0.0, 1.0)):
        assert jnp.isnan(interval.inverse(jnp.array(jnp.nan)))
        assert jnp.isnan(interval.forward(jnp.array(jnp.nan)))


def test_entries_of_array_bounds_are_bounded_each_by_its_own():
    lower = np.array([0.0, -np.inf, -np.inf, 1.0])
    upper = np.array([np.inf, 2.0, np.inf, 5.0])
    coordinates = jnp.array([-1.0, 0.5, 2.0, 0.7])
    values = Interval(lower, upper).forward(coordinates)
    alone = [
        float(Interval(low, high).forward(c))
        for low, high, c in zip(lower, upper, coordinates, strict=True)
    ]
    np.testing.assert_allclose(values, alone, rtol=1e-6)
    np.testing.assert_allclose(Interval(lower, upper).inverse(values), coordinates, rtol=1e-6)


@pytest.mark.parametrize("coordinate", [-1e30, -100.0, 0.0, 100.0, 1e30])
def test_an_entry_does_not_spoil_the_gradient_of_its_neighbours(coordinate):
    interval = Interval([0.0, -np.inf, -np.inf, 1.0], [np.inf, 2.0, np.inf, 5.0])
    gradient = compiled(interval, "gradient")(jnp.full(4, coordinate))
    assert np.isfinite(gradient).all()
    values = np.array(
        [min(max(coordinate, 0.0), 1e20), min(coordinate, 2.0), coordinate, 1.5], np.float32
    )
    gradient = compiled(interval, "inverse gradient")(values)
    assert np.isfinite(gradient).all()


def test_a_scalar_bound_serves_arrays_of_any_shape():
    assert Interval(0.0).forward(jnp.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert Interval(np.zeros(3), 1.0).forward(jnp.zeros((2, 3))).shape == (2, 3)
    batched = jax.vmap(Interval(np.zeros(3), 1.0).inverse)(jnp.full((2, 3), 0.5))
    np.testing.assert_array_equal(batched, np.zeros((2, 3)))


def test_bounds_too_large_for_a_dtype_bound_nothing_in_it():
    interval = Interval(0.0, 1e6)
    value = interval.forward(jnp.asarray(3.0, jnp.float16))
    assert float(value) == pytest.approx(np.log1p(np.exp(3.0)), rel=2e-3)


def test_affine_keeps_complex_numbers():
    transform = Affine(1.0, 2.0)
    value = transform.forward(jnp.array(1 + 2j, jnp.complex64))
    assert value == 3 + 4j and value.dtype == jnp.complex64
    assert transform.inverse(value) == 1 + 2j


# Vectors and matrices.


@dtypes
@given(batch(-8, 8))
@moderately
def test_ordered_vectors_grow_and_come_back(dtype, coordinates):
    with use(dtype):
        coordinates = jnp.asarray(coordinates.reshape(4, 8), dtype)
        values = compiled(Ordered(), "forward")(coordinates)
        back = compiled(Ordered(), "inverse")(values)
        assert values.dtype == back.dtype == dtype
    exact = np.asarray(coordinates, np.float64)
    steps = np.log1p(np.exp(exact[:, 1:]))
    expected = np.cumsum(np.concatenate([exact[:, :1], steps], axis=1), axis=1)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(values, expected, rtol=20 * eps, atol=200 * eps)
    assert np.all(np.diff(values, axis=-1) > 0)
    np.testing.assert_allclose(back, coordinates, atol=1e6 * eps, rtol=1e-3)


@dtypes
@given(batch(-30, 30))
@moderately
def test_simplex_vectors_sum_to_one_and_come_back(dtype, coordinates):
    with use(dtype):
        coordinates = jnp.asarray(coordinates.reshape(4, 8), dtype)
        values = compiled(Simplex(), "forward")(coordinates)
        back = compiled(Simplex(), "inverse")(values)
        assert values.dtype == back.dtype == dtype
    exact = np.exp(np.concatenate([np.asarray(coordinates, np.float64), np.zeros((4, 1))], axis=1))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(values, exact / exact.sum(axis=1, keepdims=True), rtol=100 * eps)
    np.testing.assert_allclose(np.asarray(values).sum(axis=-1), 1, rtol=10 * eps)
    np.testing.assert_allclose(back, coordinates, rtol=100 * eps, atol=200 * eps)


@dtypes
@given(hnp.arrays(np.float64, (3, 10), elements=st.floats(-2, 2)))
@moderately
def test_positive_definite_matrices_are_products_of_their_factors_and_come_back(dtype, coordinates):
    rows, columns = np.tril_indices(4)
    factors = np.zeros((3, 4, 4))
    factors[:, rows, columns] = np.where(rows == columns, np.exp(coordinates), coordinates)
    with use(dtype):
        coordinates = jnp.asarray(coordinates, dtype)
        values = compiled(PositiveDefinite(), "forward")(coordinates)
        back = compiled(PositiveDefinite(), "inverse")(values)
        assert values.dtype == back.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        values, factors @ np.swapaxes(factors, 1, 2), rtol=40 * eps, atol=500 * eps
    )
    np.testing.assert_array_equal(values, np.swapaxes(values, 1, 2))
    condition = np.linalg.cond(factors).max() ** 2
    np.testing.assert_allclose(back, coordinates, atol=100 * condition * eps)


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_positive_definite_matrices_of_any_size_have_as_many_coordinates_as_entries(n):
    identity = jnp.eye(n)
    coordinates = jax.eval_shape(PositiveDefinite().inverse, identity)
    assert coordinates.shape == (n * (n + 1) // 2,)
    assert jax.eval_shape(PositiveDefinite().forward, coordinates).shape == (n, n)


def test_large_covariances_do_not_spoil_the_gradient_of_a_positive_definite_matrix():
    coordinates = jnp.array([0.0, 200.0, 0.0])  # exp(200) overflows, but it is no exponent
    gradient = jax.grad(lambda c: PositiveDefinite().forward(c)[0, 0])(coordinates)
    np.testing.assert_allclose(gradient, [2.0, 0.0, 0.0])


@pytest.mark.parametrize("transform", [Ordered(), Simplex(), PositiveDefinite()], ids=repr)
def test_transforms_of_whole_vectors_say_so(transform):
    assert not transform.elementwise
    assert not Chain(Exp(), transform).elementwise
    assert Chain(Exp(), Affine()).elementwise


def test_a_vector_with_equal_entries_has_no_coordinates_as_an_ordered_one():
    assert jnp.isnan(Ordered().inverse(jnp.array([1.0, 1.0]))[1])
    assert jnp.isnan(Ordered().inverse(jnp.array([1.0, 0.0]))[1])


# Bounds on top of a transform.


def test_a_bounded_transform_keeps_its_bounds_and_its_form_between_them():
    transform = Bounded(Exp(), 0.01, 100.0)
    values = compiled(transform, "forward")(jnp.linspace(-80.0, 80.0, 1001))
    assert bool(jnp.all((values >= 0.01) & (values <= 100.0)))
    low, high = np.log(0.01), np.log(100.0)
    coordinates = np.linspace(-3.0, 3.0, 7)
    expected = np.exp(low + (high - low) / (1 + np.exp(-coordinates)))
    np.testing.assert_allclose(transform.forward(jnp.asarray(coordinates)), expected, rtol=1e-5)
    np.testing.assert_allclose(
        transform.inverse(jnp.asarray(expected)), coordinates, rtol=1e-4, atol=1e-5
    )


def test_a_falling_transform_swaps_its_bounds_entry_by_entry():
    transform = Bounded(Affine(scale=[2.0, -2.0]), [1.0, -np.inf], [np.inf, 4.0])
    values = transform.forward(jnp.array([0.0, 0.0]))
    softplus = np.log(2.0)
    np.testing.assert_allclose(values, [1.0 + 2 * softplus, 4.0 - 2 * softplus], rtol=1e-6)
    outward = transform.forward(jnp.array([-200.0, -200.0]))
    np.testing.assert_allclose(outward, [1.0, 4.0])
    np.testing.assert_allclose(transform.inverse(values), [0.0, 0.0], atol=1e-6)


def test_a_bound_that_a_transform_does_not_reach_bounds_nothing():
    transform = Bounded(Exp(), -3.0, 5.0)
    coordinates = jnp.array([-20.0, 0.0, 1.0])
    expected = np.log(5.0) - np.log1p(np.exp(-np.asarray(coordinates, np.float64)))
    np.testing.assert_allclose(transform.forward(coordinates), np.exp(expected), rtol=1e-5)
    falling = Bounded(Chain(Affine(1.0, -1.0), Exp()), 0.0, 2.0)  # 1 - exp(c): all below 1
    assert float(falling.forward(jnp.array(-30.0))) == pytest.approx(1.0)
    assert falling.forward(jnp.array(30.0)) == 0.0


@dtypes
def test_rounding_at_the_bounds_of_a_transform_takes_neither_value_nor_gradient_away(dtype):
    with use(dtype):
        for upper in (1.1, 2.3, 3.7, 5.1, 9.9):
            transform = Bounded(Exp(), 1.0, upper)
            coordinates = jnp.asarray([-12.0, 12.0, 40.0], dtype)
            values = np.asarray(compiled(transform, "forward")(coordinates))
            gradients = np.asarray(compiled(transform, "gradient")(coordinates))
            assert np.all((values >= 1.0) & (values <= np.asarray(upper, dtype)) & (gradients > 0))


@pytest.mark.parametrize("value", [0.01, 100.0])
def test_a_value_on_a_bound_of_a_transform_gets_the_coordinate_of_one_just_inside(value):
    for transform in (
        Bounded(Exp(), 0.01, 100.0),
        Bounded(Chain(Exp(), Affine(scale=-1.0)), 0.01, 100.0),
    ):
        for run in (transform.inverse, jax.jit(transform.inverse)):
            coordinate = run(jnp.array(value))
            assert 2 < abs(float(coordinate)) < 3
            moved = float(transform.forward(coordinate))  # by an eleventh of the four decades
            assert moved == pytest.approx(
                value * (10 ** (4 / 11) if value < 1 else 10 ** (-4 / 11)), rel=1e-2
            )


def test_rounding_does_not_decide_what_is_on_a_bound_of_a_transform():
    # Compiled as one program, these two round otherwise than one after the other.
    bounds = np.random.default_rng(0).uniform(0.2, 1.5, 500)
    transform = Bounded(Chain(Affine(0.1, 0.3), Affine(0.7, -1.3)), bounds)
    coordinates = compiled(transform, "inverse")(jnp.asarray(bounds, jnp.float32))
    np.testing.assert_allclose(coordinates, -np.log(np.expm1(0.1)), rtol=1e-3)


def test_a_bounded_transform_works_under_transformations():
    transform = Bounded(Affine(scale=[2.0, -2.0]), 1.0, 4.0)
    coordinates = jnp.array([[0.1, 0.2], [0.3, -0.4], [1.0, 2.0]])
    expected = jnp.stack([transform.forward(c) for c in coordinates])
    np.testing.assert_allclose(jax.jit(jax.vmap(transform.forward))(coordinates), expected, rtol=1e-6)


# Content.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Constant(0), Constant(0.0)),
        (Constant(-0.0), Constant(0.0)),
        (Constant(np.float32(0.5)), Constant(0.5)),
        (Constant([1, 2]), Constant(np.array([1.0, 2.0]))),
        (Interval([0, 1], 5), Interval(np.array([0.0, 1.0]), 5.0)),
        (Chain(Affine(scale=2), Exp()), Chain(Affine(scale=2.0), Exp())),
        (Bounded(Exp(), 1, 2), Bounded(Exp(), 1.0, 2.0)),
    ],
    ids=str,
)
def test_equal_content_is_equal_and_hashes_alike(one, other):
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Constant(0), Constant(1)),
        (Constant([1.0]), Constant(1.0)),
        (Constant(1), 1),
        (Interval([0, 1]), Interval([0, 2])),
        (Interval(0), Interval(0, scale=1)),
        (Chain(Exp(), Affine(scale=2)), Chain(Affine(scale=2), Exp())),
    ],
    ids=str,
)
def test_other_content_is_not_equal(one, other):
    assert one != other


def test_a_constant_does_not_follow_the_array_it_was_made_of():
    array = np.zeros(2)
    constant = Constant(array)
    array[0] = 7.0
    assert constant == Constant([0.0, 0.0])
    with pytest.raises(ValueError, match="read-only"):
        constant.array[0] = 7.0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_transform_are_equal_to_it(duplicate):
    transform = Chain(Affine(scale=[2.0, 3.0]), Bounded(Exp(), 0.0, [1.0, np.inf]), Interval(0, 1, 3))
    other = duplicate(transform)
    assert other == transform and hash(other) == hash(transform)
    constant = duplicate(Constant([1.0]))
    assert not constant.array.flags.writeable


def test_a_transform_prints_as_it_was_written():
    assert repr(Interval(0, [1, np.inf])) == "Interval(lower=0.0, upper=[1.0, inf], scale=None)"
    assert dataclasses.replace(Affine(1.0, 2.0), shift=3.0) == Affine(3.0, 2.0)


def test_a_compiled_function_takes_a_transform_as_a_static_argument():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def forward(transform, coordinate):
        traced.append(transform)
        return transform.forward(coordinate)

    forward(Interval(np.zeros(2), 1.0), jnp.zeros(2))
    forward(Interval(np.zeros(2), 1.0), jnp.zeros(2))
    assert len(traced) == 1


# Bad input.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Interval(1.0, 1.0), ValueError, "lower must be less than upper.*1.0.*1.0"),
        (lambda: Interval([0, 2], [1, 1]), ValueError, r"lower must be less.*\[0.0, 2.0\]"),
        (lambda: Interval(np.nan), ValueError, "lower must be less.*nan"),
        (lambda: Interval(0, scale=0), ValueError, "scale must be positive and finite, got 0"),
        (lambda: Interval(0, scale=-1), ValueError, "scale must be positive and finite, got -1"),
        (lambda: Interval(0, scale=np.inf), ValueError, "scale must be positive and finite, got inf"),
        (lambda: Interval("a"), TypeError, "lower must be a real number or array, got 'a'"),
        (lambda: Interval(1j), TypeError, "lower must be a real number or array, got 1j"),
        (lambda: Affine(scale=0.0), ValueError, "scale must be finite and not zero, got 0"),
        (lambda: Affine(shift=np.inf), ValueError, "shift must be finite, got inf"),
        (lambda: Affine(scale=np.nan), ValueError, "scale must be finite and not zero, got nan"),
        (lambda: Chain(Exp), TypeError, "Chain takes transforms, got <class"),
        (lambda: Bounded(Simplex(), 0.0), ValueError, r"Simplex\(\) does not act entry by entry"),
        (lambda: Bounded(Exp(), 2.0, 1.0), ValueError, "lower must be less than upper"),
        (lambda: Transform(), TypeError, "abstract"),
    ],
)
def test_bad_input_is_an_error_that_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()
