"""Descriptors: from a batch of images to one unit vector per image.

Everything here is a pure function of arrays and pytrees. Padded batches are exact: the backbone
erases what lies beyond an image, and the regions of each map are given as boxes, so one compiled
program serves maps of every size that fits the batch.

References: Tolias et al., ICLR 2016, section 3.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, UInt8

from rmacjax.backbones import Network, Weights, forward
from rmacjax.integral import quantize
from rmacjax.normalization import l2_normalize
from rmacjax.pooling import (
    gem,
    mac,
    pad_regions,
    region_gems,
    region_generalized_means,
    region_maxima,
    region_vectors,
    spoc,
)
from rmacjax.regions import max_regions, rmac_regions
from rmacjax.weighting import crow, spoc_centre
from rmacjax.whitening import Whitening

Pool = Literal["rmac", "mac", "spoc", "spoc_centre", "gem", "crow", "rgem"]
"""How a vector is made of a map, by the name of the function that does it."""

POOLS: tuple[Pool, ...] = get_args(Pool)

REGIONAL: tuple[Pool, ...] = ("rmac", "rgem")
"""The pools that sum over a grid of regions; the others see the whole map at once."""


MOST_LEVELS = 20
"""Of a grid of regions, whose number grows with the cube of the levels."""


class Params(NamedTuple):
    """All that describing needs: a pytree whose static facts ride along without leaves.

    Attributes:
        network: the static facts of the backbone, see `rmacjax.backbones.Network`.
        weights: flat dictionary of the backbone's weights.
        whitening: applied to every region, or None for none.
    """

    network: Network
    weights: Weights
    whitening: Whitening | None = None


@dataclass(frozen=True)
class Settings:
    """How images are described; stored with a collection, so that queries are treated alike.

    Attributes:
        long_side: images are shrunk to at most this many pixels along their long side.
        pool: "rmac" or "rgem", which sum over regions; or one vector per image by "mac", "spoc",
            "spoc_centre", "gem" or "crow". Each is the function of that name; GeM's exponent is the
            network's, `rmacjax.backbones.Network.gem_p`.
        levels: scales of the region grid of "rmac" and "rgem", at most 20 (the paper's are 3).
        with_global: whether these add the whole map as one more region (a PyTorch port's habit; the
            paper does not).
        scales: each image is described at these multiples of its size, and `join_scales` makes one
            descriptor of them. None is above 1, because images are never enlarged (others add the
            square root of 2), and a scale too small for the network is left out.
        whiten: whether the params' whitening is used where there is one.

    Raises:
        ValueError: naming the setting and the values it may have.
    """

    long_side: int = 1024
    pool: Pool = "rmac"
    levels: int = 3
    with_global: bool = False
    scales: tuple[float, ...] = (1.0,)
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.long_side < 1:
            raise ValueError(f"long_side must be at least 1 pixel, not {self.long_side}")
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {self.pool!r}")
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, not {self.levels}")
        if self.levels > MOST_LEVELS:
            raise ValueError(f"levels must be at most {MOST_LEVELS}, not {self.levels}")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(
                f"scales must lie above 0 and at most at 1 (images are never enlarged), not "
                f"{self.scales}"
            )


class Embedded(NamedTuple):
    """What the network and the pooling make of a batch: all of it differentiable.

    Attributes:
        maps: (n, h, w, c) float32 activation maps, zero beyond their valid size.
        cells: (n, 2) int32, valid size of each map.
        regions: (n, r, d) float32, unit rows: the vector of each region, whitened; zero where the
            grid is padding.
        descriptors: (n, d) float32, unit rows: the normalized sum of an image's regions.
    """

    maps: Float[Array, "n h w c"]
    cells: Int[Array, "n 2"]
    regions: Float[Array, "n r d"]
    descriptors: Float[Array, "n d"]


class Described(NamedTuple):
    """What one pass over a batch gives.

    Attributes:
        descriptors: (n, d) float32, unit rows.
        queries: (n, c) float32, the plain l2-normalized MAC that localization compares with. It is
            that of the quantised map, because quantised maps are what it is compared with.
        levels: (n, h, w, c) uint8, the activation maps quantised to 0..8 as they are stored.
        sizes: (n, 2) int32, valid cells of each map.
        regions: (n, r, d) float32, what each descriptor is the normalized sum of, zero where the
            grid is padding; None where nobody asked.
    """

    descriptors: Float[Array, "n d"]
    queries: Float[Array, "n c"]
    levels: UInt8[Array, "n h w c"]
    sizes: Int[Array, "n 2"]
    regions: Float[Array, "n r d"] | None = None


@lru_cache(maxsize=8192)
def region_grid(
    h: int, w: int, *, levels: int = 3, with_global: bool = False
) -> Int[np.ndarray, "r 4"]:
    """R-MAC's regions of one map, padded with empty boxes to the most that any map can have.

    Args:
        h: valid rows of the map, cells.
        w: valid columns of the map, cells.
        levels: scales of the grid.
        with_global: whether the whole map is one more region.

    Returns:
        (r, 4) int32 boxes in cells, `r` depending on the options alone; read-only.
    """
    regions = rmac_regions(h, w, levels)
    if with_global:
        regions = np.concatenate([regions, np.asarray([[0, 0, h, w]], regions.dtype)])
    grid = pad_regions(regions, max_regions(levels) + int(with_global))
    grid.setflags(write=False)
    return grid


def pool_map(
    activation_map: Num[Array, "h w c"],
    regions: Int[Array, "r 4"],
    whitening: Whitening | None = None,
    *,
    pool: Pool = "rmac",
    gem_p: float | Float[Array, ""] = 3.0,
) -> Float[Array, " d"]:
    """Describe one map, or one box of it, given its regions.

    Args:
        activation_map: float activations or quantised levels, zero beyond the valid size.
        regions: boxes in cells; empty ones (`top == bottom`) are padding. For pools without regions
            the first one is the whole of what is described.
        whitening: applied to each region's unit vector.
        pool: how a vector is made of a region.
        gem_p: exponent of "gem" and "rgem". A traced one can be learned; for "rgem" it is slower
            than a plain number, which is read from a table.

    Returns:
        (d,) float32, a unit vector (zero where there is nothing to see).
    """
    vectors = pool_regions(activation_map, regions, whitening, pool=pool, gem_p=gem_p)
    return l2_normalize(jnp.sum(vectors, axis=0))


def pool_regions(
    activation_map: Num[Array, "h w c"],
    regions: Int[Array, "r 4"],
    whitening: Whitening | None = None,
    *,
    pool: Pool = "rmac",
    gem_p: float | Float[Array, ""] = 3.0,
) -> Float[Array, "k d"]:
    """Describe each region of one map by itself: the vectors whose sum `pool_map` normalizes.

    Args:
        activation_map: as for `pool_map`.
        regions: as for `pool_map`.
        whitening: applied to each region's unit vector.
        pool: how a vector is made of a region.
        gem_p: as for `pool_map`.

    Returns:
        (k, d) float32, unit rows; zero where a region is padding or there is nothing to see. k is
        r for pools with regions and 1 for the others.
    """
    if pool in REGIONAL:
        if pool == "rmac":
            vectors = region_maxima(activation_map, regions).astype(jnp.float32)
        elif isinstance(gem_p, jax.Array):
            vectors = region_gems(activation_map, regions, gem_p)
        else:
            vectors = region_generalized_means(activation_map, regions, gem_p)
        return region_vectors(vectors, whitening, mask=regions[:, 2] > regions[:, 0])
    top, left, bottom, right = regions[0]
    values = jnp.roll(activation_map.astype(jnp.float32), -regions[0, :2], axis=(0, 1))
    size = jnp.stack([bottom - top, right - left])
    rows = jnp.arange(values.shape[0])[:, None, None] < size[0]
    columns = jnp.arange(values.shape[1])[None, :, None] < size[1]
    values = jnp.where(rows & columns, values, 0.0)
    if pool == "gem":
        vector = gem(values, gem_p, size=size)
    else:
        whole = {"mac": mac, "spoc": spoc, "spoc_centre": spoc_centre, "crow": crow}
        vector = whole[pool](values, size=size)
    return region_vectors(vector[None, :], whitening)


def embed_batch(
    params: Params,
    images: Num[Array, "n H W 3"],
    sizes: Int[Array, "n 2"] | None,
    regions: Int[Array, "n r 4"],
    *,
    pool: Pool = "rmac",
    gem_p: float | Float[Array, ""] = 3.0,
    recompute: bool = False,
) -> Embedded:
    """Describe a padded batch without quantising: the one forward pass, of serving and of training.

    Args:
        params: the network, its weights and its whitening.
        images: RGB, uint8 or float in 0..255, padded at the bottom and the right.
        sizes: valid height and width of each image in pixels, or None where nothing is padded.
        regions: each map's regions in cells, see `region_grid`; padding rows are empty.
        pool: how a vector is made of a map.
        gem_p: exponent of "gem" and "rgem"; traced where it is learned.
        recompute: spare memory in training, see `rmacjax.backbones.forward`.
    """
    maps, cells = forward(params.network, params.weights, images, sizes, recompute=recompute)
    describe = partial(pool_regions, whitening=params.whitening, pool=pool, gem_p=gem_p)
    vectors = jax.vmap(describe)(maps, regions)
    return Embedded(maps, cells, vectors, l2_normalize(jnp.sum(vectors, axis=1)))


def describe_batch(
    params: Params,
    images: Num[Array, "n H W 3"],
    sizes: Int[Array, "n 2"] | None,
    regions: Int[Array, "n r 4"],
    *,
    pool: Pool = "rmac",
    keep_regions: bool = False,
    activation_scale: Float[Array | np.ndarray, ""] | None = None,
) -> Described:
    """Run the whole chain on a padded batch: network, regions, whitening, sum, and quantisation.

    Args:
        params: the network, its weights and its whitening.
        images: RGB, uint8 or float in 0..255, padded at the bottom and the right.
        sizes: valid height and width of each image in pixels, or None where nothing is padded.
        regions: each map's regions in cells, see `region_grid`; padding rows are empty.
        pool: how a vector is made of a map.
        keep_regions: whether the regions' own vectors are wanted too.
        activation_scale: in place of the network's, which is part of a compiled program while this
            is not; None: the network's.
    """
    maps, cells, vectors, descriptors = embed_batch(
        params, images, sizes, regions, pool=pool, gem_p=params.network.gem_p
    )
    scale = params.network.activation_scale if activation_scale is None else activation_scale
    levels = quantize(maps, scale)
    queries = l2_normalize(jnp.max(levels, axis=(1, 2)).astype(jnp.float32))
    return Described(descriptors, queries, levels, cells, vectors if keep_regions else None)


def join_scales(
    vectors: Float[Array | np.ndarray, "k d"],
    whitening: Whitening | None = None,
    *,
    pool: Pool = "rmac",
    gem_p: float | Float[Array, ""] = 3.0,
    whitened: bool = False,
) -> Float[Array, " _"]:
    """Make one descriptor of those of an image's scales.

    Pools with one vector per image are joined before they are whitened, as published: ``(mean of
    v ** m) ** (1 / m)`` with m = p for GeM and 1 for the others, normalized, whitened, normalized.
    "rmac" and "rgem" whiten each region, so theirs are whitened already, and averaged; so are those
    of a network that whitens within, as a layer, for which the same program takes m = 1.

    Args:
        vectors: unit vectors, one per scale; not whitened where the pool has no regions, unless
            `whitened` says so.
        whitening: for pools without regions, applied to the joined vector.
        pool: how the vectors were made.
        gem_p: exponent of "gem".
        whitened: whether the vectors are whitened already, whatever the pool; then `whitening` is
            left alone.

    Returns:
        (d,) float32, a unit vector (zero where there is nothing to see).

    References:
        Radenović et al. 2018, section 4 (multi-scale); its authors' program.
    """
    x = jnp.asarray(vectors)
    if whitened or pool in REGIONAL:
        return l2_normalize(jnp.sum(x, axis=0))
    joined = gem(x[:, None, :], gem_p) if pool == "gem" else jnp.mean(x, axis=0)
    return region_vectors(joined[None, :], whitening)[0]


def fingerprint(params: Params, settings: Settings) -> str:
    """A name for what decides a descriptor: weights, whitening, network facts and settings.

    Two collections with the same fingerprint can be searched with the same query.
    """
    facts = asdict(params.network)
    # What it is called and what is made of its scores, not what it computes.
    del facts["name"], facts["source"], facts["thresholds"]
    if facts["gem_p"] == 3.0:  # what it was before it could be chosen
        del facts["gem_p"]
    whitened = params.whitening is not None and settings.whiten
    several = len(settings.scales) > 1 and settings.pool not in REGIONAL
    within = facts.pop("whitens_scales") and whitened
    if several and within:
        facts["scales"] = "each whitened before they are joined"
    elif several and (whitened or settings.pool == "gem"):
        facts["scales"] = "joined before whitening"  # it was the mean of whitened vectors before
    digest = hashlib.sha256(json.dumps([facts, asdict(settings)], sort_keys=True).encode())
    arrays = dict(params.weights)
    if params.whitening is not None and whitened:
        arrays |= {f"whitening.{k}": v for k, v in params.whitening._asdict().items()}
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, np.float32).data)
    return digest.hexdigest()[:16]
