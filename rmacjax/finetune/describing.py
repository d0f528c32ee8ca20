"""Describing the photos of a source with the network as it is, by the front door's own stream."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from rmacjax.backbones import minimum_size
from rmacjax.descriptors import Params, Settings
from rmacjax.extraction import Failed, extract
from rmacjax.finetune.making import read_photo
from rmacjax.finetune.sources.protocols import Photos

__all__ = ["LabelledPhotos", "describe_images", "on_one_device"]

READ_AHEAD = 64
"""Photos that are read together."""


@runtime_checkable
class LabelledPhotos(Photos, Protocol):
    """Photos of which it is known which show the same thing.

    Attributes:
        labels: (m,), equal for photos of the same thing; negative where it is not known.
    """

    @property
    def labels(self) -> Int[np.ndarray, " m"]:
        """Equal for photos of the same thing; negative where it is not known."""


def describe_images(
    params: Params, source: Photos, indices: list[int], *, settings: Settings
) -> tuple[dict[int, Float[np.ndarray, " d"]], dict[int, str]]:
    """Describe photos of a source.

    Args:
        params: the network.
        source: photos.
        indices: which of them.
        settings: how photos are described.

    Returns:
        The descriptors, by the photos' numbers, and a sentence for each that could not be used.
    """
    skipped: dict[int, str] = {}
    read: list[int] = []
    vectors: dict[int, np.ndarray] = {}
    photos = _read(source, indices, minimum_size(params.network), read, skipped)
    for item in extract(on_one_device(params), photos, settings=settings):
        if isinstance(item, Failed):
            name, sentence = source.name_of(read[item.index]), str(item.error)
            skipped[read[item.index]] = sentence if name in sentence else f"{name}: {sentence}"
        else:
            vectors[read[item.index]] = item.descriptor
    return vectors, skipped


def on_one_device(params: Params) -> Params:
    """Params that may lie on many devices, where single batches are described."""
    on_one: Params = jax.device_put(params, jax.local_devices()[0])
    return on_one


def _read(
    source: Photos, indices: list[int], least: int, read: list[int], skipped: dict[int, str]
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """The photos that can be read, noting which they are, and why the others cannot."""

    def attempt(index: int) -> np.ndarray | str:
        try:
            return read_photo(source, index, least)
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="read") as pool:
        for start in range(0, len(indices), READ_AHEAD):
            part = indices[start : start + READ_AHEAD]
            for index, image in zip(part, pool.map(attempt, part), strict=True):
                if isinstance(image, str):
                    skipped[index] = image
                else:
                    read.append(index)
                    yield image
