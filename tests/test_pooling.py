"""Pooling against loops in float64, and the laws that hold between the poolings."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from rmacjax.normalization import l2_normalize
from rmacjax.pooling import (
    aggregate_regions,
    gem,
    mac,
    pad_regions,
    region_generalized_means,
    region_maxima,
    region_vectors,
    rgem,
    rmac,
    spoc,
)
from rmacjax.regions import max_regions, rmac_regions
from rmacjax.whitening import Whitening, fit_pca_whitening

SHAPES = [(1, 1), (1, 8), (2, 6), (7, 9), (12, 37), (13, 5)]
FLIPS = {"left-right": (1, [0, 3, 2, 1]), "upside down": (0, [2, 1, 0, 3])}

maxima = jax.jit(region_maxima)
means = jax.jit(region_generalized_means)
describe = jax.jit(rmac, static_argnames=("levels", "with_global"))
regional = jax.jit(rgem, static_argnames=("p", "levels", "with_global"))


def activations(rng, h, w, c=6):
    return np.maximum(rng.normal(-10, 40, (h, w, c)), 0).astype(np.float32)


def some_whitening(rng, c=6, d=4):
    return fit_pca_whitening(rng.random((50, c)), d)


def unit(vector):
    return np.asarray(vector) / np.linalg.norm(vector)


# Whole maps.


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_whole_maps_equal_the_definitions(rng, h, w):
    a = activations(rng, h, w)
    np.testing.assert_array_equal(mac(a), oracles.box_maximum(a, (0, 0, h, w)))
    np.testing.assert_allclose(spoc(a), a.astype(np.float64).mean((0, 1)), rtol=1e-6)
    for p in (1, 3, 2.5, np.float32(7)):
        np.testing.assert_allclose(gem(a, np.asarray(p)), oracles.gem(a, p), rtol=3e-6)
    np.testing.assert_allclose(gem(a), oracles.gem(a), rtol=2e-6)


def test_the_generalized_mean_leads_from_the_mean_to_the_maximum(rng):
    a = activations(rng, 7, 9)
    np.testing.assert_allclose(gem(a, 1), spoc(a), rtol=1e-6)
    np.testing.assert_allclose(gem(a, 2000), mac(a), rtol=4e-3)
    powers = np.stack([gem(a, p) for p in (1, 2, 3, 5, 10, 100)])
    assert (np.diff(powers, axis=0) >= 0).all()


@pytest.mark.parametrize("scale", [1e-35, 1e35])
def test_no_exponent_overflows_or_underflows(rng, scale):
    a = activations(rng, 4, 5)
    scaled = gem(a / a.max() * np.float32(scale), 30)
    np.testing.assert_allclose(scaled / np.float32(scale), gem(a / a.max(), 30), rtol=1e-5)


@pytest.mark.parametrize("pool", [mac, spoc, gem])
def test_a_padded_map_with_its_size_is_the_map_alone(rng, pool):
    pooled = jax.jit(lambda a, size: pool(a, size=size))
    for h, w in SHAPES:
        a = activations(rng, h, w)
        padded = np.full((14, 40, 6), 1e6, np.float32)
        padded[:h, :w] = a
        np.testing.assert_allclose(pooled(padded, np.int32([h, w])), pool(a), rtol=2e-6)
    np.testing.assert_array_equal(pooled(padded, np.int32([0, 0])), 0)
    assert pooled._cache_size() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_maxima_keep_their_type_and_means_are_float32(rng, dtype):
    a = rng.integers(0, 9, (3, 4, 5)).astype(dtype)
    size = np.int32([2, 3])
    assert mac(a).dtype == mac(a, size=size).dtype == maxima(a, np.int32([[0] * 4])).dtype
    assert mac(a).dtype == dtype
    np.testing.assert_array_equal(mac(a, size=size), a[:2, :3].max((0, 1)))
    for pool in (spoc, gem):
        assert pool(a).dtype == pool(a, size=size).dtype == jnp.float32
    assert describe(a).dtype == jnp.float32


def test_maxima_of_negative_maps_do_not_see_the_padding(rng):
    a = -1 - rng.random((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(mac(a, size=np.int32([2, 3])), a[:2, :3].max((0, 1)))


def test_nan_spreads_no_further_than_its_channel(rng):
    a = activations(rng, 3, 4)
    a[0, 0, 0] = np.nan
    for pool in (mac, spoc, gem):
        assert np.isnan(pool(a)[0]) and np.isfinite(pool(a)[1:]).all()
        assert np.isfinite(pool(np.roll(a, -1, axis=0), size=np.int32([2, 4]))).all()


# Regions.


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_regions_equal_the_definitions(rng, h, w):
    a = activations(rng, h, w)
    boxes = pad_regions(rmac_regions(h, w), max_regions(3))
    expected = np.stack([oracles.box_maximum(a, box) for box in boxes])
    np.testing.assert_array_equal(maxima(a, boxes), expected)
    expected = np.stack([oracles.box_generalized_mean(a, box) for box in boxes])
    np.testing.assert_allclose(means(a, boxes), expected, rtol=2e-6)


def test_regions_stay_within_the_valid_size(rng):
    a = activations(rng, 6, 8)
    boxes = np.int32([(0, 0, 6, 8), (3, 3, 6, 6), (5, 0, 6, 8)])
    clipped = np.int32([(0, 0, 4, 5), (3, 3, 4, 5), (0, 0, 0, 0)])
    size = np.int32([4, 5])
    np.testing.assert_array_equal(maxima(a, boxes, size=size), maxima(a, clipped))
    result = means(a, boxes, size=size)
    np.testing.assert_allclose(result, means(a, clipped), rtol=1e-6)


@pytest.mark.parametrize(("axis", "edges"), FLIPS.values(), ids=FLIPS)
def test_flipped_regions_of_a_flipped_map_are_the_same(rng, axis, edges):
    a = activations(rng, 7, 9)
    boxes = rmac_regions(7, 9)
    length = a.shape[axis]
    turned = boxes[:, edges].copy()
    turned[:, axis::2] = length - turned[:, axis::2]
    np.testing.assert_array_equal(maxima(np.flip(a, axis), turned), maxima(a, boxes))


def test_a_moved_object_has_the_same_maxima_in_the_moved_box(rng):
    a = np.zeros((9, 9, 4), np.float32)
    a[1:4, 2:5] = activations(rng, 3, 3, 4)
    box = np.int32([[1, 2, 4, 5]])
    moved = np.roll(a, (3, 2), axis=(0, 1))
    np.testing.assert_array_equal(maxima(moved, box + np.int32([[3, 2, 3, 2]])), maxima(a, box))


# R-MAC.


@pytest.mark.parametrize(("h", "w"), SHAPES)
@pytest.mark.parametrize("with_global", [False, True])
def test_rmac_equals_the_definition(rng, h, w, with_global):
    a = activations(rng, h, w)
    w_ = some_whitening(rng)
    for levels, whitening in [(3, None), (3, w_), (1, w_)]:
        expected = oracles.rmac(a, levels, whitening, with_global)
        result = describe(a, levels, whitening, with_global)
        np.testing.assert_allclose(result, expected, atol=2e-6)
        assert np.linalg.norm(result) == pytest.approx(1, abs=1e-6)


def test_one_level_of_a_square_map_is_the_normalized_mac(rng):
    a = activations(rng, 7, 7)
    np.testing.assert_allclose(describe(a, 1), unit(mac(a)), atol=1e-6)
    np.testing.assert_allclose(describe(a, 1, None, True), unit(mac(a)), atol=1e-6)


def test_rmac_of_levels_is_that_of_floats(rng):
    levels = rng.integers(0, 9, (6, 8, 5)).astype(np.uint8)
    np.testing.assert_allclose(describe(levels), describe(levels.astype(np.float32)), atol=1e-6)


def test_loud_and_quiet_maps_have_the_same_descriptor(rng):
    a = activations(rng, 6, 8)
    np.testing.assert_allclose(describe(a * 1000), describe(a), atol=1e-6)


def test_a_flipped_map_has_the_same_descriptor_where_the_grid_is_symmetric(rng):
    a = activations(rng, 12, 12)
    boxes = {tuple(box) for box in rmac_regions(12, 12).tolist()}
    assert boxes == {(top, 12 - right, bottom, 12 - left) for top, left, bottom, right in boxes}
    np.testing.assert_allclose(describe(a[:, ::-1]), describe(a), atol=1e-6)


def test_padding_rows_and_masked_rows_add_nothing(rng):
    vectors = activations(rng, 1, 5)[0]
    whitening = some_whitening(rng)
    expected = aggregate_regions(vectors, whitening)
    np.testing.assert_allclose(expected, oracles.aggregate_regions(vectors, whitening), atol=2e-6)
    padded = np.concatenate([vectors, np.zeros((3, 6), np.float32)])
    np.testing.assert_allclose(aggregate_regions(padded, whitening), expected, atol=1e-6)
    padded[5:] = 1
    mask = np.arange(8) < 5
    np.testing.assert_allclose(aggregate_regions(padded, whitening, mask), expected, atol=1e-6)


def test_region_vectors_are_the_summands(rng):
    vectors = activations(rng, 1, 5)[0]
    vectors[3] = 0
    for whitening in (None, some_whitening(rng)):
        rows = region_vectors(vectors, whitening)
        assert rows.dtype == np.float32
        for row, vector in zip(rows, vectors, strict=True):
            expected = oracles.aggregate_regions([vector], whitening)
            np.testing.assert_allclose(row, expected, atol=2e-6)
        np.testing.assert_array_equal(rows[3], 0)
        np.testing.assert_allclose(
            unit(np.sum(rows, axis=0)), aggregate_regions(vectors, whitening), atol=1e-6
        )
        kept = region_vectors(vectors, whitening, np.arange(5) != 1)
        np.testing.assert_array_equal(kept[1], 0)
        np.testing.assert_array_equal(kept[2:], rows[2:])


def test_nothing_to_see_is_a_zero_descriptor(rng):
    dark = np.zeros((5, 6, 6), np.float32)
    for whitening in (None, some_whitening(rng)):
        np.testing.assert_array_equal(describe(dark, 3, whitening), 0)
    empty = np.zeros((2, 6), np.float32)
    np.testing.assert_array_equal(aggregate_regions(empty, None, np.zeros(2, bool)), 0)


def test_pad_regions_appends_empty_boxes():
    padded = pad_regions(rmac_regions(2, 3, 1), 5)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[0, 0, 2, 2], [0, 1, 2, 3]] + [[0, 0, 0, 0]] * 3


# Regional GeM.


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 8), (12, 37), (13, 5)])
def test_regional_gem_equals_the_definition(rng, h, w):
    a = activations(rng, h, w)
    whitening = some_whitening(rng)
    for p, levels, used, with_global in [(3, 3, None, False), (2.2, 2, whitening, True)]:
        expected = oracles.rgem(a, p, levels, used, with_global)
        result = regional(a, p, levels=levels, whitening=used, with_global=with_global)
        np.testing.assert_allclose(result, expected, atol=3e-6)
        assert np.linalg.norm(result) == pytest.approx(1, abs=1e-6)


def test_regional_gem_leads_from_means_to_rmac(rng):
    a = activations(rng, 6, 8)
    np.testing.assert_allclose(regional(a, 40), describe(a), atol=0.02)
    square = activations(rng, 7, 7)
    np.testing.assert_allclose(regional(square, 2.5, levels=1), unit(gem(square, 2.5)), atol=1e-6)


def test_regional_gem_equals_torch(rng):
    torch = pytest.importorskip("torch")
    a = activations(rng, 7, 10)
    x = torch.tensor(a.transpose(2, 0, 1), dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    for top, left, bottom, right in oracles.rmac_regions(7, 10).tolist():
        powers = x[:, top:bottom, left:right] ** 2.9
        pooled = torch.nn.functional.adaptive_avg_pool2d(powers, 1).flatten() ** (1 / 2.9)
        total += torch.nn.functional.normalize(pooled, dim=0)
    expected = torch.nn.functional.normalize(total, dim=0).numpy()
    np.testing.assert_allclose(regional(a, 2.9), expected, atol=2e-6)


def test_regional_gem_in_the_dark(rng):
    dark = jnp.zeros((4, 6, 6))
    np.testing.assert_array_equal(regional(dark), 0)
    gradient = jax.jit(jax.grad(lambda a: rgem(a, 2.5)[0]))
    for a in (dark, dark.at[:, :, :3].set(1)):
        assert np.isfinite(gradient(a)).all()
    with pytest.raises(ValueError, match=r"alpha is 0\.5"):
        rgem(dark, 0.5)
    with jax.enable_x64(True):
        lit = rng.uniform(0.5, 2, (3, 4, 2))
        check_grads(jax.jit(lambda a: rgem(a, 2.5, levels=2)), (lit,), order=1, atol=1e-5)


# Transformations.


def test_compiled_and_mapped_it_is_the_same(rng):
    maps = np.stack([activations(rng, 5, 7) for _ in range(3)])
    boxes = rmac_regions(5, 7)
    whitening = some_whitening(rng)

    def everything(a):
        descriptor = rmac(a, 3, whitening)
        return mac(a), spoc(a), gem(a), region_maxima(a, boxes), descriptor

    one = jax.jit(everything)
    alone = [one(a) for a in maps]
    for eager, compiled in zip(everything(maps[0]), alone[0], strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=1e-5, atol=1e-6)
    mapped = jax.jit(jax.vmap(everything))(maps)
    for index, part in enumerate(mapped):
        expected = np.stack([each[index] for each in alone])
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)
    assert one._cache_size() == 1


def test_gradients_are_right(rng):
    with jax.enable_x64(True):
        a = rng.uniform(0.5, 2, (4, 5, 3))
        check_grads(jax.jit(gem), (a, 3.0), order=1, atol=1e-4, rtol=1e-4)
        check_grads(jax.jit(spoc), (a,), order=1, atol=1e-6, rtol=1e-6)
        check_grads(jax.jit(lambda a: rmac(a, 2)), (a,), order=1, atol=1e-5, rtol=1e-5)


def test_gradients_in_the_dark_are_finite(rng):
    whitening = some_whitening(rng)

    def losses(a, p):
        pooled = [mac(a), spoc(a), gem(a, p), rmac(a), rmac(a, 3, whitening)]
        return sum(l2_normalize(vector)[0] for vector in pooled)

    gradients = jax.jit(jax.grad(losses, argnums=(0, 1)))
    dark = jnp.zeros((4, 6, 6))
    half = dark.at[:, :, :3].set(1)
    for a in (dark, half):
        for gradient in gradients(a, jnp.asarray(3.0)):
            assert np.isfinite(gradient).all()


def test_the_gradient_of_a_maximum_goes_to_the_maximum(rng):
    a = rng.permutation(4 * 6 * 2).reshape(4, 6, 2).astype(np.float32)
    box = np.int32([[1, 2, 4, 6]])
    gradient = jax.jit(jax.grad(lambda a: region_maxima(a, box).sum()))(a)
    expected = (a == oracles.box_maximum(a, box[0])) * (np.arange(6)[None, :, None] >= 2)
    np.testing.assert_allclose(gradient, expected)
    tied = jax.jit(jax.grad(lambda a: region_maxima(a, box).sum()))(np.ones_like(a))
    assert tied.sum() == pytest.approx(2)
    assert tied[1:4, 2:].sum() == pytest.approx(2)


# Errors.


def test_bad_arguments_are_refused_with_a_sentence(rng):
    a = np.ones((2, 2, 1), np.float32)
    with pytest.raises(ValueError, match="p is 0, but the exponent of a generalized mean lies"):
        gem(a, 0)
    with pytest.raises(ValueError, match="alpha is 0"):
        region_generalized_means(a, np.int32([[0, 0, 1, 1]]), 0)
    with pytest.raises(ValueError, match="at least one level"):
        rmac(a, 0)
    with pytest.raises(ValueError, match="2 regions do not fit in 1 rows; ask for at least 2"):
        pad_regions(np.zeros((2, 4), np.int32), 1)
    wide = Whitening(jnp.zeros(3), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 channels"):
        rmac(a, 3, wide)
    for pool in (mac, spoc, gem, region_maxima):
        arguments = [np.zeros((0, 2, 1), np.float32)]
        if pool is region_maxima:
            arguments.append(np.zeros((1, 4), np.int32))
        with pytest.raises(ValueError, match=r"at least 1 x 1 cells, but got \(0, 2, 1\)"):
            inspect.unwrap(pool)(*arguments)
