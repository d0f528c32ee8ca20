"""Describing: the front doors, and the stream behind them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, UInt8

from rmacjax.backbones import Network, forward, map_size
from rmacjax.descriptors import (
    REGIONAL,
    Described,
    Params,
    Settings,
    describe_batch,
    join_scales,
    region_grid,
)
from rmacjax.extraction.buckets import Batch, Failed, Paths, Source, image_buckets

DEFAULTS = Settings()


class Extracted(NamedTuple):
    """One described image.

    Attributes:
        index: position among the sources.
        height_px: height of the original, after EXIF orientation.
        width_px: width of the original.
        descriptor: (d,) float32, unit.
        query: (c,) float32, unit: the plain MAC, of the quantised map, that localization compares
            with.
        levels: (h, w, c) uint8, the quantised activation map.
        regions: (r, d) float32, unit: the vector of each of the map's regions, of the first scale
            where there are several (as `levels` are); the descriptor itself for pools without
            regions; None where nobody asked.
    """

    index: int  # type: ignore[assignment]  # hides a method of tuple that nobody needs
    height_px: int
    width_px: int
    descriptor: Float[np.ndarray, " d"]
    query: Float[np.ndarray, " c"]
    levels: UInt8[np.ndarray, "h w c"]
    regions: Float[np.ndarray, "r d"] | None = None


_describe_batch = jax.jit(describe_batch, static_argnames=("pool", "keep_regions"))
_join_scales = jax.jit(join_scales, static_argnames=("pool", "gem_p", "whitened"))
_forward = jax.jit(forward)


def describe(
    params: Params,
    imgs: Batch | Paths | Sequence[Source],
    *,
    settings: Settings = DEFAULTS,
) -> Float[Array, "n d"]:
    """Describe images: one unit vector each, whitened where the params hold a whitening.

    Args:
        params: from `rmacjax.load`.
        imgs: (n, H, W, 3) RGB, uint8 or float in 0..255; or a list of (H, W, 3) arrays of different
            sizes; or a list of file paths. Images beyond the long side are shrunk.
        settings: long side, pooling, levels, scales; the defaults are the paper's.

    Returns:
        (n, d) float32, unit rows, in the order given.

    Raises:
        ValueError: where an array is not of these shapes, or an image is too small for one cell or
            has NaN or infinite pixels.
        OSError: where a file cannot be read, naming it.
    """
    if _is_traced(params, imgs):
        return _describe_traced(params, jnp.asarray(imgs), settings)
    rows: dict[int, np.ndarray] = {}
    for item in extract(params, imgs, settings=settings):
        if isinstance(item, Failed):
            raise item.error
        rows[item.index] = item.descriptor
    if not rows:
        used = params.whitening if settings.whiten else None
        channels = params.network.channels if used is None else used.projection.shape[0]
        return jnp.zeros((0, channels), jnp.float32)
    return jnp.asarray(np.stack([rows[i] for i in range(len(rows))]))


def activations(
    params: Params,
    imgs: Batch | Paths | Sequence[Source],
    *,
    settings: Settings = DEFAULTS,
) -> Float[Array, "n h w c"] | list[Float[Array, "_ _ c"]]:
    """Activation maps: the network's last feature maps, float32 and non-negative.

    Args:
        params: from `rmacjax.load`.
        imgs: as for `describe`.
        settings: only the long side matters here.

    Returns:
        (n, h, w, c) for an array of images, else a list of (h, w, c).

    Raises:
        ValueError: where an array is not of these shapes, or an image is too small for one cell or
            has NaN or infinite pixels.
        OSError: where a file cannot be read, naming it.
    """
    if _is_traced(params, imgs):
        return forward(params.network, params.weights, jnp.asarray(imgs))[0]
    maps: dict[int, Array] = {}
    for bucket in image_buckets(params.network, imgs, replace(settings, scales=(1.0,))):
        if isinstance(bucket, Failed):
            raise bucket.error
        for owners, batch, sizes in bucket.batches():
            out, cells = _forward(params.network, params.weights, batch, sizes)
            for row, owner in enumerate(owners):
                h, w = (int(n) for n in cells[row])
                maps[owner.index] = out[row, :h, :w]
    ordered = [maps[i] for i in range(len(maps))]
    return jnp.stack(ordered) if getattr(imgs, "ndim", 0) == 4 and ordered else ordered


def extract(
    params: Params,
    sources: Batch | Paths | Iterable[Source],
    *,
    settings: Settings = DEFAULTS,
    keep_regions: bool = False,
) -> Iterator[Extracted | Failed]:
    """Describe a stream of images of any length: decoding threads in front, buckets behind.

    Nothing is held but what waits for a batch. An image that cannot be described comes out as
    `Failed`, and the stream goes on.

    Args:
        params: from `rmacjax.load`.
        sources: file paths or (H, W, 3) RGB arrays, or an array of equally sized images.
        settings: long side, pooling, levels, scales.
        keep_regions: whether the regions' own vectors are wanted too.

    Yields:
        One `Extracted` or `Failed` per source, not in order: `index` is the source's position.
    """
    if not settings.whiten:
        params = params._replace(whitening=None)
    # Where scales are joined before they are whitened, the batches' own vectors are left as found.
    several = len(settings.scales) > 1
    alone = params
    if several and settings.pool not in REGIONAL and not params.network.whitens_scales:
        alone = params._replace(whitening=None)
    begun: dict[int, list[np.ndarray]] = {}
    firsts: dict[int, Extracted] = {}
    for bucket in image_buckets(params.network, sources, settings):
        if isinstance(bucket, Failed):
            yield bucket
            continue
        for owners, batch, sizes in bucket.batches():
            described = _run(alone, batch, sizes, settings, keep_regions)
            for row, owner in enumerate(owners):
                descriptors = begun.setdefault(owner.index, [])
                descriptors.append(np.asarray(described.descriptors[row]))
                height, width = owner.views[0].shape[:2]
                if tuple(sizes[row]) == (height, width):
                    h, w = described.sizes[row]
                    regions = None
                    if described.regions is not None:
                        grid = _regions(params.network, height, width, settings)
                        regions = np.asarray(described.regions[row, grid[:, 2] > grid[:, 0]])
                    firsts[owner.index] = Extracted(
                        owner.index,
                        owner.height_px,
                        owner.width_px,
                        descriptors[-1],
                        np.asarray(described.queries[row]),
                        np.array(described.levels[row, :h, :w]),
                        regions,
                    )
                if len(descriptors) == len(owner.views):
                    first, vectors = firsts.pop(owner.index), begun.pop(owner.index)
                    yield _joined(params, first, vectors, settings) if several else first


def _run(
    params: Params,
    batch: Num[np.ndarray, "n H W 3"],
    sizes: Int[np.ndarray, "n 2"],
    settings: Settings,
    keep_regions: bool,
) -> Described:
    """One batch through the compiled program, back on the host."""
    network = params.network
    regions = np.stack([_regions(network, h, w, settings) for h, w in sizes.tolist()])
    # A network in training gets another scale each time, and shall not be compiled each time.
    described = _describe_batch(
        params._replace(network=replace(network, activation_scale=1.0)),
        batch,
        sizes,
        regions,
        pool=settings.pool,
        keep_regions=keep_regions,
        activation_scale=np.float32(network.activation_scale),
    )
    return jax.tree.map(np.asarray, described)


def _regions(network: Network, height: int, width: int, settings: Settings) -> np.ndarray:
    h, w = map_size(network, height, width)
    if settings.pool in REGIONAL:
        return region_grid(h, w, levels=settings.levels, with_global=settings.with_global)
    return np.asarray([[0, 0, h, w]], np.int32)


def _is_traced(params: Params, imgs: Batch | Paths | Sequence[Source]) -> bool:
    """Whether somebody's jit, vmap or grad is at work on the weights or on an array of images."""
    leaves = jax.tree.leaves((params, imgs if hasattr(imgs, "ndim") else None))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _describe_traced(params: Params, images: Array, settings: Settings) -> Float[Array, "n d"]:
    """`describe` inside somebody's jit or grad: the same pure functions, without host or files."""
    n, height, width = images.shape[:3]
    if max(height, width) > settings.long_side or settings.scales != (1.0,):
        raise ValueError(
            f"under jit, describe takes one scale and images of at most {settings.long_side} "
            f"pixels, not {height} x {width}: resize before"
        )
    params = params if settings.whiten else params._replace(whitening=None)
    regions = jnp.asarray(_regions(params.network, height, width, settings))
    regions = jnp.broadcast_to(regions, (n, *regions.shape))
    return describe_batch(params, images, None, regions, pool=settings.pool).descriptors


def _joined(
    params: Params, first: Extracted, vectors: list[np.ndarray], settings: Settings
) -> Extracted:
    """An image at several scales with the descriptor that they make together."""
    network = params.network
    joined = np.asarray(
        _join_scales(
            np.stack(vectors),
            params.whitening,
            pool=settings.pool,
            gem_p=network.gem_p,
            whitened=network.whitens_scales and params.whitening is not None,
        )
    )
    if first.regions is not None and settings.pool not in REGIONAL:
        return first._replace(descriptor=joined, regions=joined[None])
    return first._replace(descriptor=joined)
