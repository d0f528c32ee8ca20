"""Buckets: images of any sizes, decoded in threads and gathered by padded size."""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Num, Shaped

from rmacjax.backbones import Network, map_size, minimum_size
from rmacjax.descriptors import (
    Settings,
)
from rmacjax.preprocessing import bucket_side, load_image, resize

Image = Num[np.ndarray, "_ _ 3"]
Source = str | os.PathLike | Image
Batch = Num[Array | np.ndarray, "n H W 3"]
Paths = Shaped[np.ndarray, " n"]

BATCH_PIXELS = {"cpu": 2**20, "gpu": 2**24, "tpu": 2**24}
"""How many pixels a batch holds at most (one image at least), by kind of device."""

LARGEST_BATCH = 64


class Failed(NamedTuple):
    """An image that could not be described, and the error whose sentence says why."""

    index: int  # type: ignore[assignment]
    error: OSError | ValueError


def batch_size(height: int, width: int) -> int:
    """How many images of a padded size make a batch on the default device: a power of two."""
    room = BATCH_PIXELS.get(jax.default_backend(), BATCH_PIXELS["cpu"]) // (height * width)
    return min(LARGEST_BATCH, 2 ** max(0, room.bit_length() - 1))


@dataclass
class Prepared:
    """One image as the network will see it, once per scale."""

    index: int
    height_px: int
    width_px: int
    views: list[Image]


@dataclass
class Bucket:
    """Images waiting for a full batch of their padded size."""

    shape: tuple[int, int]
    owners: list[Prepared] = field(default_factory=list)
    views: list[Image] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[Prepared], np.ndarray, np.ndarray]]:
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


def image_buckets(
    network: Network,
    sources: Batch | Paths | Iterable[Source],
    settings: Settings,
) -> Iterator[Bucket | Failed]:
    """Prepared images gathered by padded size; a bucket comes out when full, or at the end."""
    sources = _checked(sources)
    uniform = hasattr(sources, "ndim")
    waiting: dict[tuple[int, int], Bucket] = {}
    for item in _prepared(network, sources, settings):
        if isinstance(item, Failed):
            yield item
            continue
        for view in item.views:
            size = view.shape[:2]
            shape = size if uniform else (bucket_side(size[0]), bucket_side(size[1]))
            bucket = waiting.setdefault(shape, Bucket(shape))
            bucket.owners.append(item)
            bucket.views.append(view)
            if len(bucket.views) == batch_size(*shape):
                yield waiting.pop(shape)
    yield from waiting.values()


def _checked(sources: Batch | Paths | Iterable[Source]) -> Iterable[Source]:
    if isinstance(sources, str | os.PathLike):
        raise ValueError(f"images are a list of paths, not one path: pass [{os.fspath(sources)!r}]")
    if isinstance(sources, jax.Array):
        sources = np.asarray(sources)
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
) -> Iterator[Prepared | Failed]:
    """Decode and shrink in threads, a bounded number ahead, in order."""
    workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[Prepared | Failed]] = deque()
    try:
        for index, source in enumerate(sources):
            ahead.append(pool.submit(_prepare, network, index, source, settings))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(network: Network, index: int, source: Source, settings: Settings) -> Prepared | Failed:
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
    return Prepared(index, height, width, views)


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
