"""Padded sizes: a fixed ladder of sides, so that images of all sizes need few programs."""

import numpy as np
from jaxtyping import Num

__all__ = ["SIDES", "bucket_side", "padded"]

SIDES = (64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
"""Sides of padded batches in pixels, up to a long side of 1024; beyond it, multiples of 256."""


def bucket_side(side: int) -> int:
    """The padded side, in pixels, for a side of this many pixels.

    Args:
        side: in pixels.

    Example:
        >>> [bucket_side(side) for side in (1, 64, 65, 1025)]
        [64, 64, 128, 1280]
    """
    for step in SIDES:
        if side <= step:
            return step
    return -(-side // 256) * 256


def padded(
    images: list[Num[np.ndarray, "_ _ 3"]],
) -> tuple[Num[np.ndarray, "n H W 3"], Num[np.ndarray, "n 2"]]:
    """Put images of many sizes into one array, zeros at the bottom and on the right.

    Args:
        images: one at least, of one type.

    Returns:
        (n, H, W, 3), the sides those of the ladder that hold the largest; (n, 2) int32, the height
        and width of each image.
    """
    sizes = np.asarray([image.shape[:2] for image in images], np.int32)
    height, width = (bucket_side(int(side)) for side in sizes.max(0))
    batch = np.zeros((len(images), height, width, 3), np.result_type(*images))
    for row, image in enumerate(images):
        batch[row, : image.shape[0], : image.shape[1]] = image
    return batch, sizes
