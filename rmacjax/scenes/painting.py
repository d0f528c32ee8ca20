"""Painting: polygons, surfaces, lettering and flat things in perspective, laid over a picture."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rmacjax import preprocessing
from rmacjax.scenes.textures import TEXTURE_SIZE, power_noise, texture_bank

Length = float | int
"""Pixels, whole or not."""

Paint = np.ndarray | Callable[[int, int], np.ndarray]
"""A colour, or a function that makes an image (height, width, 3) to paint with."""

_CLOUD_SIZE = 512


def mix(
    below: UInt8[np.ndarray, "H W 3"], above: np.ndarray, alpha: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay a colour or an image over another; alpha 0..255."""
    mixed = above.astype(np.float32) - below
    mixed *= alpha[..., None] * np.float32(1 / 255)
    mixed += below
    mixed += np.float32(0.5)
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def place(
    background: UInt8[np.ndarray, "H W 3"],
    front: UInt8[np.ndarray, "h w 3"],
    quad_px: Float[np.ndarray, "4 2"],
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Put a flat thing into a photo under perspective.

    Args:
        background: (H, W, 3) uint8.
        front: the thing seen from the front, (h, w, 3) uint8.
        quad_px: where its upper left, upper right, lower right and lower left corner come to lie,
            as (y, x) in pixels of the photo.

    Returns:
        The photo, (H, W, 3) uint8, and how much of each pixel the thing covers, (H, W) uint8.
    """
    height, width = background.shape[:2]
    warped, alpha = preprocessing.warp_perspective(front, quad_px, (height, width))
    return mix(background, warped, alpha), alpha


def mask_box(mask: UInt8[np.ndarray, "H W"]) -> tuple[int, int, int, int] | None:
    """Find the box of what a mask covers by half or more.

    Args:
        mask: (H, W) uint8.

    Returns:
        (top, left, bottom, right) in pixels, half-open; None if nothing is covered.
    """
    covered = mask >= 128
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def fill(canvas: UInt8[np.ndarray, "H W 3"], points: np.ndarray, paint: Paint) -> None:
    """Paint a polygon of (y, x) points, in place."""
    low = np.maximum(np.floor(points.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int), canvas.shape[:2])
    if (high <= low).any():
        return
    there = canvas[low[0] : high[0], low[1] : high[1]]
    mask = preprocessing.polygon_mask((there.shape[0], there.shape[1]), points - low)
    above = paint(there.shape[0], there.shape[1]) if callable(paint) else paint
    there[:] = mix(there, above, mask)


def rectangle(top: Length, left: Length, bottom: Length, right: Length) -> Float[np.ndarray, "4 2"]:
    """Corners (y, x) of an upright rectangle, clockwise from the upper left."""
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)], np.float64)


def disc(
    y: Length, x: Length, radius: Length, corners: int = 40, *, flat: float = 1.0
) -> Float[np.ndarray, "corners 2"]:
    """Points (y, x) of a regular polygon; many corners make a disc, `flat` squeezes it."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([y + flat * radius * np.sin(angle), x + radius * np.cos(angle)], -1)


def write(
    canvas: UInt8[np.ndarray, "H W 3"],
    word: str,
    box: tuple[Length, Length, Length, Length],
    color: np.ndarray,
) -> None:
    """Write a word into the middle of a box (top, left, bottom, right), as large as it allows."""
    top, left, bottom, right = box
    size = bottom - top
    for _ in range(2):
        height, width = preprocessing.text_size(word, size)
        size = max(6.0, size * min(1.0, (right - left) / width, (bottom - top) / height))
    height, width = preprocessing.text_size(word, size)
    corner = (top + (bottom - top - height) / 2, left + (right - left - width) / 2)
    red, green, blue = (int(channel) for channel in color)
    canvas[:] = preprocessing.draw_text(canvas, word, corner, size, (red, green, blue))


@lru_cache(maxsize=1)
def _clouds(count: int = 6) -> Float32[np.ndarray, "t s s"]:
    """Smooth unevenness for walls, drawn once."""
    rngs = [np.random.default_rng([78, i]) for i in range(count)]
    return np.stack([power_noise(rng, _CLOUD_SIZE, 1.7) for rng in rngs])


def surface(
    rng: np.random.Generator, color: np.ndarray, *, strength: float = 0.35, zoom: float = 1.0
) -> Callable[[int, int], np.ndarray]:
    """Choose how a wall, a floor or a box looks: one colour, one texture, uneven.

    Returns:
        A function of height and width that gives (height, width, 3) float32 in 0..255.
    """
    bank, clouds = texture_bank(), _clouds()
    texture = bank[rng.integers(len(bank))]
    cloud = clouds[rng.integers(len(clouds))]
    start = rng.integers(0, TEXTURE_SIZE, 2)

    def paint(height: int, width: int) -> np.ndarray:
        y, x = np.arange(height), np.arange(width)
        rows = (y * zoom + start[0]).astype(int) % TEXTURE_SIZE
        columns = (x * zoom + start[1]).astype(int) % TEXTURE_SIZE
        grain = texture.take(rows, axis=0).take(columns, axis=1) - np.float32(128)
        rows, columns = (y + start[0]) % _CLOUD_SIZE, (x + start[1]) % _CLOUD_SIZE
        uneven = cloud.take(rows, axis=0).take(columns, axis=1)[..., None]
        image = np.float32(strength) * grain + np.float32(9) * uneven
        return np.clip(image + color.astype(np.float32), 0, 255)

    return paint


def dull(color: Float[np.ndarray, "3"], share: float = 0.5) -> Float[np.ndarray, "3"]:
    """Take a share of a colour's saturation out of it."""
    return color * (1 - share) + share * color.mean()
