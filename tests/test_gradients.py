"""Gradients of the whole chain from a map to a descriptor: finite differences in float64.

The poolings alone are checked beside their other tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rmacjax.losses import info_nce, pair_masks
from rmacjax.normalization import l2_normalize
from rmacjax.pooling import gem, mac, region_gems, region_generalized_means, rgem, rmac, spoc
from rmacjax.regions import rmac_regions
from rmacjax.weighting import crow, spoc_centre
from rmacjax.whitening import Whitening, whiten

POOLS = {
    "mac": mac,
    "spoc": spoc,
    "spoc_centre": spoc_centre,
    "crow": crow,
    "gem": gem,
    "rmac": lambda a: rmac(a, 2),
    "rgem": lambda a: rgem(a, 3, levels=2),
    "regions": lambda a: jnp.sum(
        l2_normalize(region_generalized_means(a, rmac_regions(3, 4, 2))), axis=0
    ),
    "rgem in training": lambda a: regions_gem(a, 10.0),
}


def regions_gem(a, p):
    """R-MAC's regions by GeM, as training pools them."""
    return jnp.sum(l2_normalize(region_gems(a, rmac_regions(3, 4, 2), p)), axis=0)


def right(function, *arrays):
    """Whether the gradients with respect to all arrays are right, in float64."""
    check_grads(jax.jit(function), arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_of_a_loss_through_each_pooling_and_normalization(name, rng):
    masks = pair_masks(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))

    def loss(maps):
        return info_nce(l2_normalize(jax.vmap(POOLS[name])(maps)), *masks, temperature=0.2)

    maps = rng.uniform(0.2, 2, (4, 3, 4, 3))
    with jax.enable_x64(True):
        right(loss, jnp.asarray(maps))
    slope = jax.jit(jax.grad(loss))
    dark, tied = np.zeros((4, 3, 4, 3), np.float32), np.ones((4, 3, 4, 3), np.float32)
    for unlucky in (dark, tied, np.concatenate([dark[:2], tied[2:]])):
        assert np.isfinite(slope(unlucky)).all()


@pytest.mark.parametrize("pool", [gem, regions_gem], ids=["gem", "rgem"])
def test_of_the_exponent_of_gem(pool, rng):
    masks = pair_masks(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    maps = rng.uniform(0.2, 2, (4, 3, 4, 3))

    def loss(maps, p):
        pooled = jax.vmap(pool, in_axes=(0, None))(maps, p)
        return info_nce(l2_normalize(pooled), *masks, temperature=0.2)

    with jax.enable_x64(True):
        right(loss, jnp.asarray(maps), jnp.asarray(2.7))
    for unlucky in (np.zeros_like(maps), np.ones_like(maps)):
        assert np.isfinite(jax.jit(jax.grad(loss, 1))(unlucky.astype(np.float32), 2.7))


@pytest.mark.parametrize("pool", [rmac, rgem], ids=["rmac", "rgem"])
def test_of_whitening_as_a_layer(pool, rng):
    masks = pair_masks(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    maps = rng.uniform(0.2, 2, (4, 3, 4, 3))
    mean, projection = rng.uniform(0.1, 0.5, 3), rng.normal(size=(2, 3))

    def loss(maps, mean, projection):
        whitening = Whitening(mean, projection)
        rows = jax.vmap(lambda a: pool(a, levels=2, whitening=whitening))(maps)
        return info_nce(rows, *masks, temperature=0.2)

    with jax.enable_x64(True):
        right(loss, *map(jnp.asarray, (maps, mean, projection)))
    slope = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    single = [part.astype(np.float32) for part in (mean, projection)]
    for unlucky in (np.zeros_like(maps), np.ones_like(maps)):
        for gradient in slope(unlucky.astype(np.float32), *single):
            assert np.isfinite(gradient).all()


def test_of_whitening_in_double_precision_with_a_whitening_that_was_stored(rng):
    stored = Whitening(*(rng.normal(size=s).astype(np.float32) for s in (3, (2, 3))))
    with jax.enable_x64(True):
        assert whiten(stored, rng.normal(size=(4, 3))).dtype == np.float64
    assert whiten(stored, rng.normal(size=(4, 3))).dtype == np.float32
