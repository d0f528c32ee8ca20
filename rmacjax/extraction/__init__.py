"""Extraction: the front doors `describe` and `activations`, and the stream behind `index`.

Photos come as paths or arrays in every size; devices want few shapes. Decoding threads shrink each
image to the long side, images that fit the same padded *bucket* wait for each other, and each full
bucket goes through one compiled program. Buckets lie on a fixed ladder of sides, so that the number
of programs is bounded however many different sizes a folder holds; results do not depend on what an
image was batched with (see `rmacjax.backbones`).
"""

from rmacjax.extraction.buckets import (
    BATCH_PIXELS,
    LARGEST_BATCH,
    Batch,
    Failed,
    Image,
    Paths,
    Source,
    batch_size,
)
from rmacjax.extraction.describing import DEFAULTS, Extracted, activations, describe, extract

__all__ = [
    "BATCH_PIXELS",
    "DEFAULTS",
    "LARGEST_BATCH",
    "Batch",
    "Extracted",
    "Failed",
    "Image",
    "Paths",
    "Source",
    "activations",
    "batch_size",
    "describe",
    "extract",
]
