"""What goes wrong in hurried photos: shaken, coarse, hazy, with glare or dark corners."""

import numpy as np
from jaxtyping import Float32

from rmacjax.scenes.camera import sample

__all__ = ["spoil"]


def spoil(
    rng: np.random.Generator, image: Float32[np.ndarray, "H W 3"], strength: float
) -> Float32[np.ndarray, "H W 3"]:
    """Take a photo in a hurry; each mishap comes by chance, and several may come together.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32, 0..255.
        strength: 0 spoils nothing; at 1 every mishap happens to a fourth of the photos or more.

    Returns:
        (H, W, 3) float32.
    """
    chances = rng.random(5)
    if chances[0] < 0.25 * strength:
        image = _coarse(image, float(rng.uniform(1.5, 3.0)))
    if chances[1] < 0.25 * strength:
        image = _shaken(image, int(rng.integers(2, 6)), float(rng.uniform(0, np.pi)))
    height, width = image.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    if chances[2] < 0.4 * strength:  # dark corners
        depth = np.float32(rng.uniform(0.1, 0.35))
        image = image * (1 - depth * (y * y + x * x))[..., None]
    if chances[3] < 0.25 * strength:  # haze, or a window's reflection over all
        share, light = np.float32(rng.uniform(0.1, 0.4)), np.float32(rng.uniform(120, 230))
        image = image + share * (light - image)
    if chances[4] < 0.25 * strength:  # the light of a lamp or a flash on something smooth
        at, reach = rng.uniform(-1, 1, 2).astype(np.float32), rng.uniform(0.1, 0.5, 2)
        squared = ((y - at[0]) / np.float32(reach[0])) ** 2
        squared = squared + ((x - at[1]) / np.float32(reach[1])) ** 2
        image = image + (np.float32(rng.uniform(60, 200)) * np.exp(-squared))[..., None]
    return image


def _coarse(image: Float32[np.ndarray, "H W 3"], factor: float) -> Float32[np.ndarray, "H W 3"]:
    """Details below `factor` pixels are lost, as in a part of a small photo that was enlarged."""
    height, width = image.shape[:2]
    small = (max(2, round(height / factor)), max(2, round(width / factor)))
    scale = np.diag([width / small[1], height / small[0], 1.0])
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    # Whole pixels are left out on the way down: phones' zoom does no better.
    fewer, _ = sample(pixels, scale, small)
    enlarged, _ = sample(fewer.astype(np.uint8), np.linalg.inv(scale), (height, width))
    return enlarged


def _shaken(
    image: Float32[np.ndarray, "H W 3"], steps: int, angle: float
) -> Float32[np.ndarray, "H W 3"]:
    """The mean of the image moved along a line by 0, 1, ... `steps` pixels."""
    height, width = image.shape[:2]
    moves = np.arange(steps + 1)[:, None] * [np.sin(angle), np.cos(angle)]
    moves = np.round(moves - moves.min(0)).astype(int)
    down, right = moves.max(0)
    wide = np.pad(image, ((0, down), (0, right), (0, 0)), mode="edge")
    total = sum(wide[y : y + height, x : x + width] for y, x in moves.tolist())
    return np.asarray(total, np.float32) / np.float32(len(moves))
