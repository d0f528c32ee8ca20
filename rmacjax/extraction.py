"""Extraction: the front doors `describe` and `activations`, and the stream behind `index`.

Photos come as paths or arrays in every size; devices want few shapes. Decoding threads shrink each
image to the long side, images that fit the same padded *bucket* wait for each other, and each full
bucket goes through one compiled program. Buckets lie on a fixed ladder of sides, so that the number
of programs is bounded however many different sizes a folder holds; results do not depend on what an
image was batched with (see `rmacjax.backbones`).
"""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped, UInt8

from rmacjax.backbones import Network, forward, map_size, minimum_size
from rmacjax.descriptors import (
    REGIONAL,
    Described,
    Params,
    Settings,
    describe_batch,
    join_scales,
    region_grid,
)
from rmacjax.preprocessing import load_image, resize

Image = Num[np.ndarray, "_ _ 3"]
Source = str | os.PathLike | Image
Batch = Num[Array | np.ndarray, "n H W 3"]
Paths = Shaped[np.ndarray, " n"]

SIDES = (64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
"""Sides of padded batches in pixels, up to a long side of 1024; beyond it, multiples of 256."""

BATCH_PIXELS = {"cpu": 2**20, "gpu": 2**24, "tpu": 2**24}
"""How many pixels a batch holds at most (one image at least), by kind of device."""

LARGEST_BATCH = 64

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


class Failed(NamedTuple):
    """An image that could not be described, and the error whose sentence says why."""

    index: int  # type: ignore[assignment]
    error: OSError | ValueError


def bucket_side(side: int) -> int:
    """The padded side, in pixels, for a side of this many pixels."""
    for step in SIDES:
        if side <= step:
            return step
    return -(-side // 256) * 256


def batch_size(height: int, width: int) -> int:
    """How many images of a padded size make a batch on the default device: a power of two."""
    room = BATCH_PIXELS.get(jax.default_backend(), BATCH_PIXELS["cpu"]) // (height * width)
    return min(LARGEST_BATCH, 2 ** max(0, room.bit_length() - 1))


@dataclass
class _Prepared:
    """One image as the network will see it, once per scale."""

    index: int
    height_px: int
    width_px: int
    views: list[Image]


@dataclass
class _Bucket:
    """Images waiting for a full batch of their padded size."""

    shape: tuple[int, int]
    owners: list[_Prepared] = field(default_factory=list)
    views: list[Image] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[_Prepared], np.ndarray, np.ndarray]]:
        """The waiting images as padded batches of one of two lengths: full, or a single image.

        Yields:
            The owners of the rows, (n, H, W, 3) pixels, (n, 2) valid sizes. Rows beyond the owners
            are black images.
        """
        full = batch_size(*self.shape)
        length = full if len(self.views) > full // 2 else 1
        for start in range(0, len(self.views), length):
            views = self.views[start : start + length]
            batch = np.zeros((length, *self.shape, 3), np.result_type(*views))
            sizes = np.full((length, 2), self.shape, np.int32)
            for row, view in enumerate(views):
                batch[row, : view.shape[0], : view.shape[1]] = view
                sizes[row] = view.shape[:2]
            yield self.owners[start : start + length], batch, sizes


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
    for bucket in _buckets(params.network, imgs, replace(settings, scales=(1.0,))):
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
    for bucket in _buckets(params.network, sources, settings):
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
    regions = np.stack([_regions(params.network, h, w, settings) for h, w in sizes.tolist()])
    described = _describe_batch(
        params, batch, sizes, regions, pool=settings.pool, keep_regions=keep_regions
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


def _buckets(
    network: Network,
    sources: Batch | Paths | Iterable[Source],
    settings: Settings,
) -> Iterator[_Bucket | Failed]:
    """Prepared images gathered by padded size; a bucket comes out when full, or at the end."""
    sources = _checked(sources)
    uniform = hasattr(sources, "ndim")
    waiting: dict[tuple[int, int], _Bucket] = {}
    for item in _prepared(network, sources, settings):
        if isinstance(item, Failed):
            yield item
            continue
        for view in item.views:
            size = view.shape[:2]
            shape = size if uniform else (bucket_side(size[0]), bucket_side(size[1]))
            bucket = waiting.setdefault(shape, _Bucket(shape))
            bucket.owners.append(item)
            bucket.views.append(view)
            if len(bucket.views) == batch_size(*shape):
                yield waiting.pop(shape)
    yield from waiting.values()


def _checked(sources: Batch | Paths | Iterable[Source]) -> Iterable[Source]:
    if isinstance(sources, str | os.PathLike):
        raise ValueError(f"images are a list of paths, not one path: pass [{os.fspath(sources)!r}]")
    if isinstance(sources, np.ndarray) and sources.ndim == 1 and sources.dtype.kind in "OU":
        return sources.tolist()
    shape = getattr(sources, "shape", None)
    if shape is not None and (len(shape) != 4 or shape[-1] != 3):
        raise ValueError(
            f"an array of images has shape (n, height, width, 3), not {tuple(shape)}; "
            "a single image is image[None]"
        )
    return sources if shape is None else np.asarray(sources)


def _prepared(
    network: Network, sources: Iterable[Source], settings: Settings
) -> Iterator[_Prepared | Failed]:
    """Decode and shrink in threads, a bounded number ahead, in order."""
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[_Prepared | Failed]] = deque()
    try:
        for index, source in enumerate(sources):
            ahead.append(pool.submit(_prepare, network, index, source, settings))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(
    network: Network, index: int, source: Source, settings: Settings
) -> _Prepared | Failed:
    """One source at every scale that the network can see."""
    was = ""
    try:
        if isinstance(source, str | os.PathLike):
            image = load_image(source, settings.long_side)
            height, width, pixels = image.height_px, image.width_px, image.pixels
        else:
            pixels = _checked_pixels(source)
            height, width = pixels.shape[:2]
            pixels = _shrink(pixels, settings.long_side)
        if pixels.shape[:2] != (height, width):
            was = f" (it had {height} x {width} pixels before it was shrunk)"
        views: list[Image] = []
        for scale in sorted(settings.scales, reverse=True):
            side = round(max(pixels.shape[:2]) * scale)
            view = pixels if scale == 1.0 else _shrink(pixels, side)
            if not views or min(view.shape[:2]) >= minimum_size(network):
                map_size(network, *view.shape[:2])
                views.append(view)
    except OSError as error:
        return Failed(index, error)
    except ValueError as error:
        return Failed(index, ValueError(f"{error}{was}"))
    return _Prepared(index, height, width, views)


def _shrink(pixels: Image, long_side: int) -> Image:
    if max(pixels.shape[:2]) <= long_side:
        return pixels
    return resize(np.clip(np.round(pixels), 0, 255).astype(np.uint8), long_side)


def _checked_pixels(source: Image) -> Image:
    pixels = np.asarray(source)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"an image has shape (height, width, 3), not {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"an image is uint8, or float in 0..255, not {pixels.dtype}")
    if not np.isfinite(pixels).all():
        raise ValueError("an image has NaN or infinite pixels: they have no descriptor")
    if 0 < pixels.max(initial=0) <= 1:
        warnings.warn(
            "an image of floats has no pixel above 1, so it is all but black: pixels are 0..255, "
            "multiply images in 0..1 by 255",
            stacklevel=2,
        )
    return pixels.astype(np.float32)
