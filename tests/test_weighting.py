"""Weighted sums against loops in float64 and against torch, and the laws of their weights."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from rmacjax.normalization import l2_normalize
from rmacjax.weighting import crow, spoc_centre

SHAPES = [(1, 1), (1, 8), (2, 6), (7, 9), (12, 37), (13, 5)]
ORACLES = {crow: oracles.crow, spoc_centre: oracles.spoc_centre}
POOLS = pytest.mark.parametrize("pool", ORACLES, ids=lambda pool: pool.__name__)


def activations(rng, h, w, c=6):
    return np.maximum(rng.normal(-10, 40, (h, w, c)), 0).astype(np.float32)


@POOLS
@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_they_equal_the_definitions(rng, pool, h, w):
    pooled = jax.jit(pool)
    a = activations(rng, h, w)
    expected = ORACLES[pool](a)
    np.testing.assert_allclose(pooled(a), expected, rtol=1e-5, atol=1e-6 * expected.max())
    levels = rng.integers(0, 9, (h, w, 4)).astype(np.uint8)
    np.testing.assert_allclose(pooled(levels), ORACLES[pool](levels), rtol=1e-5, atol=1e-5)
    assert pooled(levels).dtype == pooled(a).dtype == jnp.float32


def test_crow_equals_torch(rng):
    torch = pytest.importorskip("torch")
    a = activations(rng, 9, 7, 8)
    x = torch.tensor(a.transpose(2, 0, 1), dtype=torch.float64)
    spatial = torch.sqrt(torch.nn.functional.normalize(x.sum(0).flatten(), dim=0)).view(9, 7)
    shares = (x > 0).flatten(1).double().mean(1)
    channel = torch.log((8e-6 + shares.sum()) / (1e-6 + shares))
    expected = torch.einsum("chw,hw->c", x, spatial) * channel
    np.testing.assert_allclose(crow(a), expected.numpy(), rtol=1e-5)


@POOLS
def test_a_padded_map_with_its_size_is_the_map_alone(rng, pool):
    pooled = jax.jit(lambda a, size: pool(a, size=size))
    for h, w in SHAPES:
        a = activations(rng, h, w)
        for beyond in (1e6, np.nan):
            padded = np.full((14, 40, 6), beyond, np.float32)
            padded[:h, :w] = a
            np.testing.assert_allclose(pooled(padded, np.int32([h, w])), pool(a), rtol=3e-6)
    np.testing.assert_array_equal(pooled(padded, np.int32([0, 0])), 0)
    assert pooled._cache_size() == 1


@POOLS
@pytest.mark.parametrize("flip", [np.flipud, np.fliplr])
def test_a_flipped_map_is_pooled_alike(rng, pool, flip):
    a = activations(rng, 6, 9)
    np.testing.assert_allclose(pool(flip(a)), pool(a), rtol=1e-5)


@POOLS
@pytest.mark.parametrize("scale", [1e-30, 1e35])
def test_loudness_scales_the_result_and_overflows_nowhere(rng, pool, scale):
    a = activations(rng, 4, 5) / 200
    scaled = pool(a * np.float32(scale))
    np.testing.assert_allclose(scaled / np.float32(scale), pool(a), rtol=1e-5)


def test_the_centre_counts_most_and_an_even_map_is_its_own_mean(rng):
    even = np.full((7, 11, 2), 5, np.float32)
    np.testing.assert_allclose(spoc_centre(even), 5, rtol=1e-6)
    # One awake cell: its share of the result is its weight, one standard deviation apart e ** -0.5.
    weights = np.zeros((9, 9))
    for y, x in np.ndindex(9, 9):
        lit = np.zeros((9, 9, 1), np.float32)
        lit[y, x] = 1
        weights[y, x] = spoc_centre(lit)[0]
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert np.unravel_index(weights.argmax(), weights.shape) == (4, 4)
    np.testing.assert_allclose(weights[4, 1] / weights[4, 4], np.exp(-(3**2) / (2 * 1.5**2)), 1e-5)


def test_crow_hears_seldom_channels_and_busy_cells():
    a = np.zeros((4, 4, 3), np.float32)
    a[:, :, 0] = 1  # everywhere
    a[1, 1, 1] = 1  # once
    pooled = np.asarray(crow(a))
    alone = a[:, :, 1].sum() / a[:, :, 0].sum()
    assert pooled[1] / pooled[0] > 3 * alone
    assert pooled[2] == 0  # never
    busy = np.ones((1, 2, 4), np.float32)
    busy[0, 1, 1:] = 0  # cell 0 is awake in four channels, cell 1 in one
    first, second = np.sqrt(np.array([4, 1]) / np.sqrt(17))
    shares = np.array([1, 0.5, 0.5, 0.5])
    weight = np.log((4e-6 + shares.sum()) / (1e-6 + shares))
    np.testing.assert_allclose(
        crow(busy), weight * np.array([first + second, first, first, first]), rtol=1e-5
    )


@POOLS
def test_compiled_and_mapped_it_is_the_same(rng, pool):
    maps = np.stack([activations(rng, 5, 7) for _ in range(3)])
    mapped = jax.jit(jax.vmap(pool))(maps)
    for one, a in zip(mapped, maps, strict=True):
        np.testing.assert_allclose(one, pool(a), rtol=1e-5)


@POOLS
def test_gradients_are_right_and_finite_in_the_dark(rng, pool):
    with jax.enable_x64(True):
        a = rng.uniform(0.5, 2, (4, 5, 3))
        assert pool(a).dtype == jnp.float64
        check_grads(jax.jit(pool), (a,), order=1, atol=1e-5, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda a: l2_normalize(pool(a))[0]))
    dark = jnp.zeros((4, 6, 6))
    for a in (dark, dark.at[:, :, :3].set(1), dark.at[:2].set(1)):
        assert np.isfinite(gradient(a)).all()


def test_a_nan_shows(rng):
    a = activations(rng, 3, 4)
    a[0, 0, 0] = np.nan
    assert np.isnan(crow(a)).all()
    assert np.isnan(spoc_centre(a)[0]) and np.isfinite(spoc_centre(a)[1:]).all()


@POOLS
def test_a_map_without_cells_is_refused(pool):
    with pytest.raises(ValueError, match=r"at least 1 x 1 cells, but got \(0, 2, 1\)"):
        inspect.unwrap(pool)(np.zeros((0, 2, 1), np.float32))
