"""Descriptors of boxes by every pool, several scales as published, and lasting fingerprints."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rmacjax.backbones import TORCHVISION_CONVENTION, Network, weight_shapes
from rmacjax.descriptors import (
    POOLS,
    REGIONAL,
    Params,
    Settings,
    fingerprint,
    join_scales,
    pool_map,
    region_grid,
)
from rmacjax.reranking import box_regions, describe_boxes
from rmacjax.whitening import Whitening, fit_pca_whitening

EVERY_POOL = pytest.mark.parametrize("pool", POOLS)


def slow(a, pool, p, whitening=None):
    """The descriptor of a whole map, by the definitions."""
    if pool == "rmac":
        return oracles.rmac(a, 3, whitening)
    if pool == "rgem":
        return oracles.rgem(a, p, 3, whitening)
    vector = {
        "mac": lambda: oracles.box_maximum(a, (0, 0, *a.shape[:2])),
        "spoc": lambda: a.astype(np.float64).mean((0, 1)),
        "spoc_centre": lambda: oracles.spoc_centre(a),
        "gem": lambda: oracles.gem(a, p),
        "crow": lambda: oracles.crow(a),
    }[pool]()
    return oracles.aggregate_regions([vector], whitening)


@EVERY_POOL
def test_a_box_of_a_quantised_map_is_described_as_if_cut_out(rng, pool):
    maps = rng.integers(0, 9, (3, 12, 16, 6)).astype(np.uint8)
    maps[2] = 0
    boxes = np.int32([[0, 0, 12, 16], [3, 5, 10, 9], [2, 2, 4, 4]])
    regions = box_regions(boxes) if pool in REGIONAL else boxes[:, None]
    whitening = fit_pca_whitening(rng.random((50, 6)), 4)
    for p, used in ((3.0, None), (2.2, whitening)):
        found = describe_boxes(jnp.asarray(maps), jnp.asarray(regions), used, pool=pool, gem_p=p)
        for a, (top, left, bottom, right), vector in zip(maps, boxes, found, strict=True):
            part = a[top:bottom, left:right]
            expected = slow(part, pool, p, used) if part.any() else np.zeros(len(vector))
            np.testing.assert_allclose(vector, expected, atol=3e-6)


def test_the_exponent_decides_and_may_be_traced(rng):
    a = rng.integers(0, 9, (6, 8, 5)).astype(np.float32)
    whole = jnp.int32([[0, 0, 6, 8]])
    compiled = jax.jit(lambda a, p: pool_map(a, whole, pool="gem", gem_p=p))
    for p in (1.0, 3.0, 6.5):
        np.testing.assert_allclose(compiled(a, p), slow(a, "gem", p), atol=2e-6)
    assert compiled._cache_size() == 1
    grid = jnp.asarray(region_grid(6, 8))
    one, other = (pool_map(jnp.asarray(a), grid, pool="rgem", gem_p=p) for p in (1.5, 6.0))
    assert float(np.abs(np.asarray(one) - np.asarray(other)).max()) > 1e-3


@EVERY_POOL
def test_scales_are_joined_as_published(rng, pool):
    vectors = rng.random((3, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whitening = fit_pca_whitening(rng.random((60, 8)), 5)
    joined = join_scales(vectors, whitening, pool=pool, gem_p=2.5)
    if pool in REGIONAL:
        np.testing.assert_allclose(joined, oracles.unit(vectors.sum(0)), atol=1e-6)
        return
    expected = oracles.join_scales(vectors, 2.5 if pool == "gem" else 1, whitening)
    np.testing.assert_allclose(joined, expected, atol=2e-6)
    np.testing.assert_array_equal(join_scales(np.zeros_like(vectors), whitening, pool=pool), 0)
    within = join_scales(-vectors, whitening, pool=pool, gem_p=2.5, whitened=True)
    np.testing.assert_allclose(within, -oracles.unit(vectors.sum(0)), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "plain", "whitened"),
    [
        (Settings(), "e27d243e64a37e1f", "7d8b6f5d387476ba"),
        (Settings(256, "gem"), "2a6c4a142ab4a1e0", "54cd495b58f4c564"),
        (Settings(scales=(1.0, 0.5)), "ac5c4a3a27e54883", "cdc8e660be4cdf41"),
        (Settings(512, "spoc", scales=(1.0, 0.5), whiten=False), *["114edee338b19773"] * 2),
    ],
)
def test_what_was_described_before_keeps_its_fingerprint(settings, plain, whitened):
    """Values of collections that were made before pools and exponents could be chosen."""
    zeros = {k: np.zeros(shape, np.float32) for k, shape in weight_shapes("alexnet").items()}
    params = Params(Network("alexnet", False, TORCHVISION_CONVENTION), zeros)
    assert fingerprint(params, settings) == plain
    identity = Whitening(np.zeros(256, np.float32), np.eye(256, dtype=np.float32))
    assert fingerprint(params._replace(whitening=identity), settings) == whitened


def test_scales_that_are_joined_another_way_have_another_fingerprint():
    zeros = {k: np.zeros(shape, np.float32) for k, shape in weight_shapes("alexnet").items()}
    identity = Whitening(np.zeros(256, np.float32), np.eye(256, dtype=np.float32))
    params = Params(Network("alexnet", False, TORCHVISION_CONVENTION), zeros, identity)
    # What it was while whitened vectors were averaged.
    assert fingerprint(params, Settings(512, "mac", scales=(1.0, 0.5))) != "2140c00e22806cb2"
    several, alone = Settings(512, "gem", scales=(1.0, 0.5)), Settings(512, "gem")
    within = params._replace(network=replace(params.network, whitens_scales=True))
    assert fingerprint(within, several) != fingerprint(params, several)
    assert fingerprint(within, alone) == fingerprint(params, alone)
    for which in (Settings(512, "gem", scales=(1.0, 0.5), whiten=False), Settings(scales=(1, 0.5))):
        assert fingerprint(within, which) == fingerprint(params, which)
    names = {fingerprint(params, Settings(pool=pool)) for pool in POOLS}
    assert len(names) == len(POOLS)
