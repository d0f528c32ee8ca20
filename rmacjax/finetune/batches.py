"""What one training step sees: images of a few padded sizes, and which of them belong together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

__all__ = ["Batch", "Block"]


class Block(NamedTuple):
    """Images of one padded size.

    Attributes:
        images: (n, H, W, 3) uint8, RGB, padded with zeros at the bottom and the right.
        sizes: (n, 2) int32, valid height and width in pixels.
        regions: (n, r, 4) int32, the region grid of each map in cells, padded with empty boxes; see
            `rmacjax.descriptors.region_grid`.
    """

    images: UInt8[Array | np.ndarray, "n H W 3"]
    sizes: Int[Array | np.ndarray, "n 2"]
    regions: Int[Array | np.ndarray, "n r 4"]


class Batch(NamedTuple):
    """Blocks of images, and what is known of them, in the order of the blocks joined.

    Attributes:
        blocks: one block; or two, where outlined things are looked for in photos.
        labels: (m,) int32; images with the same label are positives of each other. -1 takes no
            part, as an image that could not be read does.
        clusters: (m,) int32; images of different clusters are negatives of each other. Equal to the
            labels, but where photos of one cluster need not show the same.
        boxes: (n, k, 4) float32 candidate boxes (top, left, bottom, right) in cells of the last
            block's maps; None where the source knows none.
        overlaps: (n, k) float32, how much each overlaps what the same row of the first block shows
            (intersection over union).
    """

    blocks: tuple[Block, ...]
    labels: Int[Array | np.ndarray, " m"]
    clusters: Int[Array | np.ndarray, " m"]
    boxes: Float[Array | np.ndarray, "n k 4"] | None = None
    overlaps: Float[Array | np.ndarray, "n k"] | None = None
