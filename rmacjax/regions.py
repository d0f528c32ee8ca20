"""Regions: the boxes of R-MAC's grid, and the one pair of functions between cells and pixels.

Boxes are half-open ``(top, left, bottom, right)``: integer cells on an activation map, pixels
(suffix ``_px``) on an image. Everything here is plain NumPy, because geometry is known before
anything is computed.

References:
    Tolias, Sicre and Jégou, "Particular object retrieval with integral max-pooling of CNN
    activations", ICLR 2016, section 3 and figure 2.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from operator import index

import numpy as np
from jaxtyping import Float, Int, Num

__all__ = [
    "box_iou",
    "boxes_to_px",
    "check_box_px",
    "max_regions",
    "px_to_cells",
    "rmac_regions",
]

OVERLAP = Fraction(2, 5)
"""Overlap of neighbouring regions that the grid comes as close to as it can."""

MOST_STEPS = 7
"""Most regions along the long side at the coarsest scale."""

EDGE_TOLERANCE = 1e-6
"""A pixel edge this close to a cell's edge, in cells, lies on it."""


def rmac_regions(h: int, w: int, levels: int = 3) -> Int[np.ndarray, "r 4"]:
    """Boxes of R-MAC's grid: squares at several scales, spread evenly over the map.

    At scale l = 1, 2, .. the squares' side is ``floor(2 * min(h, w) / (l + 1))``; there are l of
    them along the short side and ``l + m - 1`` along the long one, where m in 2..7 makes the
    overlap of neighbours at scale 1 closest to 0.4 (the first such m) and m = 1 for a square map.
    A scale whose side is below one cell is skipped, so every map has at least one region. Above an
    aspect ratio of about 5.8 the limit of m leaves gaps at scale 1.

    Args:
        h: rows of the map, cells.
        w: columns of the map, cells.
        levels: number of scales.

    Returns:
        (r, 4) int32 boxes, cells, coarse to fine, each scale row by row. Read-only, because it is
        remembered.

    Raises:
        ValueError: a map below 1 x 1 or fewer than one level.

    References:
        Tolias et al. 2016, section 3.2.

    >>> rmac_regions(2, 3, levels=1).tolist()
    [[0, 0, 2, 2], [0, 1, 2, 3]]
    >>> [len(rmac_regions(24, w)) for w in (24, 32, 48, 96)]
    [14, 20, 26, 44]
    """
    h, w, levels = index(h), index(w), index(levels)
    if h < 1 or w < 1:
        raise ValueError(f"An activation map has at least 1 x 1 cells, but this one is {h} x {w}.")
    _check_levels(levels)
    return _rmac_regions(h, w, levels)


def max_regions(levels: int = 3) -> int:
    """Most regions that `rmac_regions` gives for a map of any size.

    Args:
        levels: number of scales.

    Returns:
        The number of boxes of a very long map, 50 for three levels.

    Raises:
        ValueError: fewer than one level.

    >>> max_regions(3)
    50
    """
    _check_levels(index(levels))
    return sum(level * (level + MOST_STEPS - 1) for level in range(1, levels + 1))


def boxes_to_px(
    boxes: Num[np.ndarray, "*b 4"],
    map_size: Sequence[int] | Int[np.ndarray, "2"],
    image_size_px: Sequence[int] | Int[np.ndarray, "2"],
) -> Float[np.ndarray, "*b 4"]:
    """Carry boxes from a map's cells to the pixels of the original image.

    The map's cells cover the image evenly, whatever the image was shrunk to in between: the edge
    before row k lies at pixel ``k * height / h``. What reaches beyond the image is clipped.

    Args:
        boxes: (..., 4), cells.
        map_size: (h, w) of the map, its valid part where it is padded, cells.
        image_size_px: (height, width) of the original image, pixels.

    Returns:
        (..., 4) float64, pixels; not rounded.

    Raises:
        ValueError: a map or an image without cells or pixels.

    >>> import numpy as np
    >>> boxes_to_px(np.asarray([0, 1, 2, 4]), (2, 4), (100, 300)).tolist()
    [0.0, 75.0, 100.0, 300.0]
    """
    cells, px = _sizes(map_size, image_size_px)
    return np.clip(np.asarray(boxes, np.float64) * (px / cells), 0.0, px)


def px_to_cells(
    boxes_px: Num[np.ndarray, "*b 4"],
    map_size: Sequence[int] | Int[np.ndarray, "2"],
    image_size_px: Sequence[int] | Int[np.ndarray, "2"],
) -> Int[np.ndarray, "*b 4"]:
    """Carry boxes from an image's pixels to the cells that they touch.

    The inverse of `boxes_to_px`, rounded outward to whole cells (an edge within a millionth of a
    cell's edge is on it), clipped to the map and never without a cell.

    Args:
        boxes_px: (..., 4), pixels of the original image.
        map_size: (h, w) of the map, its valid part where it is padded, cells.
        image_size_px: (height, width) of the original image, pixels.

    Returns:
        (..., 4) int32, cells.

    Raises:
        ValueError: a map or an image without cells or pixels, or a box with NaN or infinite edges.

    >>> import numpy as np
    >>> px_to_cells(np.asarray([0, 80, 50, 160]), (2, 4), (100, 300)).tolist()
    [0, 1, 1, 3]
    """
    cells, px = _sizes(map_size, image_size_px)
    edges = np.asarray(boxes_px, np.float64) * (cells / px)
    if not np.isfinite(edges).all():
        raise ValueError("A box has NaN or infinite edges; give its four edges in pixels.")
    size = cells[:2]
    first = np.clip(np.floor(edges[..., :2] + EDGE_TOLERANCE), 0, size - 1)
    last = np.clip(np.ceil(edges[..., 2:] - EDGE_TOLERANCE), first + 1, size)
    return np.concatenate([first, last], axis=-1).astype(np.int32)


def box_iou(a: Num[np.ndarray, "*a 4"], b: Num[np.ndarray, "*b 4"]) -> Float[np.ndarray, "..."]:
    """Intersection over union of boxes, in whatever unit both share.

    Args:
        a: (..., 4).
        b: (..., 4); the leading axes broadcast.

    Returns:
        (...) float64 in 0..1; 0 where a box is empty.

    >>> import numpy as np
    >>> float(box_iou(np.asarray([0, 0, 2, 2]), np.asarray([0, 1, 2, 3])))
    0.3333333333333333
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first = np.maximum(a[..., :2], b[..., :2])
    last = np.minimum(a[..., 2:], b[..., 2:])
    shared = _area(first, last)
    joined = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    return np.asarray(shared / np.where(joined > 0, joined, 1.0))


def check_box_px(
    box_px: Sequence[float | int] | Num[np.ndarray, "4"], image_size_px: Sequence[int]
) -> tuple[int, int, int, int]:
    """Refuse a box that is not on its image; round a good one outward to whole pixels.

    Args:
        box_px: (top, left, bottom, right), pixels.
        image_size_px: (height, width) of the image, pixels.

    Returns:
        The box as four Python ints.

    Raises:
        ValueError: not four finite numbers, upside down, empty, or reaching outside the image.

    >>> check_box_px((0, 10.5, 20, 30), (100, 200))
    (0, 10, 20, 30)
    """
    height, width = (index(side) for side in image_size_px)
    edges = [float(edge) for edge in box_px]
    if len(edges) != 4 or not all(math.isfinite(edge) for edge in edges):
        raise ValueError(
            f"A box is four numbers, top, left, bottom and right, in pixels; this one is {edges}."
        )
    top, left = (math.floor(edge) for edge in edges[:2])
    bottom, right = (math.ceil(edge) for edge in edges[2:])
    told = f"The box with top {top}, left {left}, bottom {bottom} and right {right}"
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise ValueError(
            f"{told} is empty or upside down; its top must lie above its bottom and its left "
            "before its right."
        )
    if top < 0 or left < 0 or bottom > height or right > width:
        raise ValueError(
            f"{told} reaches outside the image, which is {height} pixels high and {width} wide; "
            "give a box inside it."
        )
    return top, left, bottom, right


@lru_cache(maxsize=4096)
def _rmac_regions(h: int, w: int, levels: int) -> np.ndarray:
    short = min(h, w)
    steps = _long_side_steps(short, max(h, w))
    rows, columns = (steps if side > short else 1 for side in (h, w))
    boxes = [
        (top, left, top + side, left + side)
        for level in range(1, levels + 1)
        if (side := 2 * short // (level + 1)) > 0
        for top in _starts(h, side, level + rows - 1)
        for left in _starts(w, side, level + columns - 1)
    ]
    regions = np.asarray(boxes, np.int32)
    regions.setflags(write=False)
    return regions


def _long_side_steps(short: int, long: int) -> int:
    """Regions along the long side at scale 1, by exact fractions: no rounding breaks a tie."""
    if long == short:
        return 1

    def distance(m: int) -> Fraction:
        overlap = 1 - Fraction(long - short, (m - 1) * short)
        return abs(overlap - OVERLAP)

    return min(range(2, MOST_STEPS + 1), key=distance)


def _starts(length: int, side: int, count: int) -> list[int]:
    """``floor(k * (length - side) / (count - 1))`` in integers, so that the last one ends flush."""
    if count == 1:
        return [0]
    return [k * (length - side) // (count - 1) for k in range(count)]


def _check_levels(levels: int) -> None:
    if levels < 1:
        raise ValueError(f"R-MAC has at least one level, but levels is {levels}.")


def _sizes(
    map_size: Sequence[int] | np.ndarray, image_size_px: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both sizes as (4,) float64, one entry for each edge of a box."""
    cells, px = (np.asarray(size, np.float64) for size in (map_size, image_size_px))
    if cells.shape != (2,) or px.shape != (2,) or cells.min() < 1 or px.min() < 1:
        raise ValueError(
            f"A map of {tuple(cells.tolist())} cells and an image of {tuple(px.tolist())} pixels "
            "were given; both are (height, width) and at least 1 x 1."
        )
    return np.tile(cells, 2), np.tile(px, 2)


def _area(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.asarray(np.prod(np.maximum(last - first, 0.0), axis=-1))
