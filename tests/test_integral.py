"""Quantisation, the integral table against sums in float64, and exact maxima of any box."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from rmacjax.integral import (
    box_generalized_mean,
    box_maximum,
    integral_image,
    quantize,
    row_max_table,
)

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 6), (7, 9), (12, 37), (24, 32), (33, 8)]

means = jax.jit(jax.vmap(box_generalized_mean, in_axes=(None, 0)))
maxima = jax.jit(jax.vmap(box_maximum, in_axes=(None, 0)))
table_of = jax.jit(integral_image, static_argnames="alpha")
max_table_of = jax.jit(row_max_table)
levels_of = jax.jit(quantize)


def some_boxes(rng, h, w, count=40):
    """Random boxes, empty ones among them, and the whole map."""
    rows, columns = (np.sort(rng.integers(0, side + 1, (count, 2))) for side in (h, w))
    boxes = np.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], axis=1)
    boxes[0], boxes[1] = (0, 0, h, w), (0, 0, 0, 0)
    return boxes.astype(np.int32)


def activations(rng, h, w, c=5):
    """Sparse and uneven, as activations are: bright spots of 100 beside zeros and values near 1."""
    a = np.exp(rng.normal(0, 2, (h, w, c))) * (rng.random((h, w, c)) < 0.4)
    return np.minimum(a, 128).astype(np.float32)


# Quantisation.


def test_levels_begin_where_the_paper_says():
    starts = [0] + [16 * k + 1 for k in range(8)]
    below = np.nextafter(np.float32(starts[1:]), np.float32(0))
    assert quantize(np.float32(starts)).tolist() == list(range(9))
    assert quantize(below).tolist() == list(range(8))


@given(st.floats(width=32), st.sampled_from([1.0, 0.25, 3.0]))
def test_quantisation_equals_exact_arithmetic(x, scale):
    if math.isfinite(x) and abs(x) > 1e37:
        x = math.copysign(1e37, x)
    assert levels_of(np.float32(x), scale) == oracles.quantize(x, scale)


def test_quantisation_of_what_is_no_activation():
    odd = np.float32([np.nan, np.inf, -np.inf, -20, -0.0, 1e-45])
    levels = quantize(odd)
    assert levels.dtype == jnp.uint8
    assert levels.tolist() == [0, 8, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_quantisation_takes_any_type_and_shape(dtype):
    a = np.arange(120).reshape(2, 3, 4, 5).astype(dtype)
    expected = [oracles.quantize(float(value)) for value in a.ravel()]
    assert quantize(a).ravel().tolist() == expected


# Generalized means.


@pytest.mark.parametrize(("h", "w"), SHAPES)
@pytest.mark.parametrize("kind", ["levels", "floats"])
def test_a_box_of_the_table_is_the_sum_of_its_powers(rng, h, w, kind):
    a = activations(rng, h, w)
    a = np.asarray(quantize(a)) if kind == "levels" else a
    boxes = some_boxes(rng, h, w)
    expected = np.stack([oracles.box_generalized_mean(a, box) for box in boxes])
    result = means(table_of(a, alpha=10), boxes)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=2e-6)


def test_where_a_float32_integral_image_loses_levels_the_table_loses_nothing(rng):
    levels = np.zeros((24, 32, 4), np.uint8)
    levels[:16] = rng.integers(6, 9, (16, 32, 4))
    levels[16:] = rng.integers(1, 4, (8, 32, 4))
    boxes = np.int32([(20, 20, 22, 22), (17, 5, 24, 30), (22, 28, 23, 29), (16, 0, 24, 32)])
    exact = np.stack([oracles.box_generalized_mean(levels, box) for box in boxes])
    naive = np.stack([oracles.naive_box_generalized_mean(levels, box) for box in boxes])
    assert np.abs(naive - exact).max() > 1
    assert np.abs(means(table_of(levels, alpha=10), boxes) - exact).max() < 1e-5


def test_a_dark_box_beside_a_bright_spot_is_exact_and_an_empty_one_is_zero():
    a = np.zeros((8, 8, 1), np.float32)
    a[0, 0], a[5, 5] = 1e4, 1e-2
    boxes = np.int32([(1, 1, 8, 8), (1, 1, 5, 5), (0, 0, 8, 8), (3, 4, 3, 6), (4, 4, 2, 6)])
    result = means(table_of(a, alpha=10), boxes)[:, 0]
    np.testing.assert_allclose(result, [1e-2, 0, 1e4, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("alpha", [1, 2, 2.5, 10, 40, 300])
def test_every_exponent_from_the_sum_to_nearly_the_maximum(rng, alpha):
    a = rng.uniform(0.5, 2, (6, 7, 3)).astype(np.float32)
    boxes = some_boxes(rng, 6, 7, 12)
    expected = np.stack([oracles.box_generalized_mean(a, box, alpha) for box in boxes])
    np.testing.assert_allclose(means(table_of(a, alpha=alpha), boxes), expected, rtol=5e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
@pytest.mark.parametrize("alpha", [1, 2, 10])
def test_the_unit_of_the_activations_does_not_matter(rng, scale, alpha):
    a = activations(rng, 7, 9)
    boxes = some_boxes(rng, 7, 9)
    plain, scaled = (means(table_of(x, alpha=alpha), boxes) for x in (a, a * np.float32(scale)))
    np.testing.assert_allclose(scaled, plain * np.float32(scale), rtol=3e-6)


def test_the_mean_lies_between_the_maximum_and_the_maximum_of_so_many_cells(rng):
    a = activations(rng, 7, 9)
    boxes = some_boxes(rng, 7, 9, 12)
    for box, mean in zip(boxes, means(table_of(a, alpha=10), boxes), strict=True):
        maximum = oracles.box_maximum(a, box)
        cells = (box[2] - box[0]) * (box[3] - box[1])
        assert (mean >= maximum * (1 - 1e-6)).all()
        assert (mean <= maximum * max(cells, 1) ** 0.1 * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16])
def test_the_table_takes_any_type(rng, dtype):
    a = rng.integers(0, 9, (5, 6, 3)).astype(dtype)
    box = np.int32([1, 2, 4, 5])
    expected = oracles.box_generalized_mean(a.astype(np.float64), box)
    result = means(table_of(a, alpha=10), box[None])
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result[0], expected, rtol=2e-6)


def test_nan_infinity_and_negative_values_stay_where_they_are():
    a = np.ones((4, 5, 3), np.float32)
    a[0, 0, 0], a[0, 0, 1], a[:, :, 2] = np.nan, np.inf, -1
    boxes = np.int32([(0, 0, 2, 2), (0, 1, 4, 5), (1, 0, 4, 5)])
    result = np.asarray(means(table_of(a, alpha=10), boxes))
    assert np.isnan(result[0, 0]) and np.isposinf(result[0, 1])
    np.testing.assert_allclose(result[1:, :2], [[16**0.1] * 2, [15**0.1] * 2], rtol=1e-6)
    np.testing.assert_array_equal(result[:, 2], 0)


def test_its_gradient_is_right_and_zero_in_the_dark(rng):
    box = np.int32([1, 0, 4, 3])

    @partial(jax.jit, static_argnames="alpha")
    def pool(a, alpha=10):
        return box_generalized_mean(integral_image(a, alpha), box)

    with jax.enable_x64(True):
        a = rng.uniform(0.5, 2, (4, 5, 2))
        for alpha in (1, 10):
            check_grads(partial(pool, alpha=alpha), (a,), order=1, atol=1e-5, rtol=1e-5)
    for dark in (np.zeros((4, 5, 2)), np.pad(np.ones((1, 1, 2)), ((0, 3), (4, 0), (0, 0)))):
        gradient = jax.jit(jax.grad(lambda a: pool(a).sum()))(dark.astype(np.float32))
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("alpha", [1, 2.5, 10, 25])
@pytest.mark.parametrize(("weight", "scale"), [(1, 1), (1e-8, 1), (1, 1e-20), (1, 1e20)])
def test_its_gradient_in_float32_is_that_in_float64(rng, alpha, weight, scale):
    # Powers of large numbers are huge and their gradients tiny: neither may be lost.
    box = np.int32([1, 2, 20, 27])
    a = rng.uniform(1e-3, 3, (24, 32, 8)) ** 3
    a[:, :, ::2] *= 1e4
    a *= scale

    def gradient(x):
        return jax.grad(
            lambda x: weight * box_generalized_mean(integral_image(x, alpha), box).sum()
        )(x)

    single = np.asarray(gradient(a.astype(np.float32)), np.float64)
    inside = a[1:20, 2:27] / scale  # the derivative knows no scale
    mean = (inside**alpha).sum((0, 1)) ** (1 / alpha)
    expected = np.zeros_like(a)
    expected[1:20, 2:27] = weight * (inside / mean) ** (alpha - 1)
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5 * weight)


# Exact maxima.


@pytest.mark.parametrize(("h", "w"), SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_box_of_the_table_of_maxima_is_exact(rng, h, w, dtype):
    a = (activations(rng, h, w) * 2).astype(dtype)
    boxes = some_boxes(rng, h, w)
    result = maxima(max_table_of(a), boxes)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, [oracles.box_maximum(a, box) for box in boxes])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_maxima_may_be_negative(rng, dtype):
    a = (-rng.integers(1, 100, (5, 6, 3))).astype(dtype)
    boxes = some_boxes(rng, 5, 6)
    result = maxima(max_table_of(a), boxes)
    assert result.dtype == dtype
    expected = np.stack([oracles.box_maximum(a, box) for box in boxes])
    np.testing.assert_array_equal(result.astype(jnp.float32), expected.astype(np.float32))


def test_boxes_are_clipped_to_the_map(rng):
    a = activations(rng, 5, 6)
    outside, inside = np.int32([(-3, -2, 3, 99), (7, 0, 9, 3)]), np.int32([(0, 0, 3, 6), (0,) * 4])
    for f, table in ((maxima, max_table_of(a)), (means, table_of(a, alpha=10))):
        np.testing.assert_array_equal(f(table, outside), f(table, inside))


def test_compiled_and_mapped_it_is_the_same(rng):
    maps = np.stack([activations(rng, 5, 6) for _ in range(3)])
    box = np.int32([1, 2, 4, 5])
    both = [(integral_image, box_generalized_mean), (row_max_table, box_maximum)]
    for make, look in both:

        def one(a, make=make, look=look):
            return look(make(a), box)

        alone = np.stack([jax.jit(one)(a) for a in maps])
        np.testing.assert_allclose(one(maps[0]), alone[0], rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.vmap(one))(maps), alone, rtol=1e-6)


def test_bad_arguments_are_refused_with_a_sentence():
    a = np.ones((2, 2, 1), np.float32)
    for alpha in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"alpha is {alpha}, but the exponent"):
            integral_image(a, alpha)
    for function in (integral_image, row_max_table):
        with pytest.raises(ValueError, match=r"at least 1 x 1 cells, but got \(0, 2, 1\)"):
            function(np.ones((0, 2, 1), np.float32))
        with pytest.raises(ValueError, match=r"one activation map \(h, w, c\)"):
            inspect.unwrap(function)(np.ones((2, 2), np.float32))
