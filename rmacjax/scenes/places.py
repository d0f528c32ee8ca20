"""Places for things to be in: rooms, street fronts, shelves, heaps of things."""

import numpy as np
from jaxtyping import UInt8

from rmacjax.scenes.leaves import render_scene
from rmacjax.scenes.painting import disc, dull, fill, place, rectangle, surface
from rmacjax.scenes.textures import random_palette


def _street(
    rng: np.random.Generator,
    image: np.ndarray,
    horizon: float,
    wall: np.ndarray,
    palette: np.ndarray,
) -> None:
    """Rows of windows, arched or not, under a strip of sky."""
    height, width = image.shape[:2]
    eaves = rng.uniform(-0.05, 0.2) * height
    columns, rows = int(rng.integers(3, 8)), int(rng.integers(2, 5))
    glass, frame = palette[1] * 0.35 + 20, palette[2] * 0.4 + 140
    s_x, s_y = width / columns, (horizon - eaves) / rows
    w, h, arched = rng.uniform(0.2, 0.34) * s_x, rng.uniform(0.26, 0.38) * s_y, rng.random() < 0.5
    for i in range(rows):
        for j in range(columns):
            y, x = eaves + (i + 0.5) * s_y, (j + 0.5) * s_x
            fill(image, rectangle(y - h * 1.15, x - w * 1.2, y + h * 1.2, x + w * 1.2), frame)
            if arched:
                fill(image, disc(y - h, x, w * 1.2, 24, flat=0.6), frame)
                fill(image, disc(y - h, x, w, 24, flat=0.6), glass)
            fill(image, rectangle(y - h, x - w, y + h, x + w), glass + rng.normal(0, 12))
            fill(image, rectangle(y - 0.03 * h, x - w, y + 0.03 * h, x + w), frame)
            fill(image, rectangle(y - h, x - 0.05 * w, y + h, x + 0.05 * w), frame)
        ledge = eaves + i * s_y
        fill(image, rectangle(ledge - 3, 0, ledge + 2, width), wall * 0.7)
    if eaves > 4:
        sky = np.array([150, 180, 215]) + rng.normal(0, 15, 3)
        fill(image, rectangle(0, 0, eaves, width), np.clip(sky, 0, 255))


def _room(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> None:
    """Pictures on the wall."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        y, x = rng.uniform(0.05, 0.5) * height, rng.uniform(0, 0.9) * width
        h, w = rng.uniform(0.12, 0.35) * height, rng.uniform(0.1, 0.3) * width
        fill(image, rectangle(y - 5, x - 5, y + h + 5, x + w + 5), palette[rng.integers(7)] * 0.6)
        inside = surface(rng, palette[rng.integers(7)], strength=0.6)
        fill(image, rectangle(y, x, y + h, x + w), inside)


def _shelf(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> None:
    """Boards with upright things."""
    height, width = image.shape[:2]
    boards = int(rng.integers(2, 4))
    for i in range(boards):
        base = (i + 1) * height / boards - 4
        x = rng.uniform(-20, 30)
        while x < width:
            w, h = rng.uniform(0.03, 0.13) * width, rng.uniform(0.4, 0.9) * height / boards
            color = np.clip(palette[rng.integers(7)] + rng.normal(0, 15, 3), 0, 255)
            thing = surface(rng, color, strength=rng.uniform(0.1, 0.7))
            if rng.random() < 0.8:
                fill(image, rectangle(base - h, x, base, x + w), thing)
                band = base - h * rng.uniform(0.4, 0.9)
                fill(image, rectangle(band, x, band + 0.12 * h, x + w), palette[rng.integers(7)])
            x += w + rng.gamma(1.0, 6.0)
        board = np.clip(palette[3] * 0.5 + 40, 0, 255)
        fill(image, rectangle(base, 0, base + 12, width), board)


def _boxes(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> None:
    """Boxes and furniture that stand about."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 5))):
        y, x = rng.uniform(0.75, 1.0) * height, rng.uniform(0, 1) * width
        h, w = rng.uniform(0.1, 0.4) * height, rng.uniform(0.05, 0.16) * width
        body = surface(rng, palette[rng.integers(7)], strength=0.5)
        lean, depth = rng.normal(0, 0.1) * w, rng.uniform(0.1, 0.4) * w
        upper, lower = np.array([y - h, x + w + lean]), np.array([y, x + w])
        fill(image, np.array([(y - h, x - w + lean), upper, lower, (y, x - w)]), body)
        away = np.array([-depth, depth])
        side = np.stack([upper, upper + away, lower + away, lower])
        fill(image, side, np.clip(palette[rng.integers(7)] * 0.4, 0, 255))


def render_place(
    rng: np.random.Generator, size: tuple[int, int] = (384, 512)
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a place for things to be in: a room, a street front, a shelf or a heap of things.

    Args:
        rng: source of randomness.
        size: (height, width) in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = size
    palette = random_palette(rng)
    kind = rng.choice(4, p=[0.45, 0.27, 0.2, 0.08])
    if kind == 3:
        leaves = int(rng.integers(60, 160))
        return render_scene(rng, size, leaves=leaves, palette=palette, tilt=0.6, largest=0.35)
    wall = dull(palette[0]) * 0.5 + rng.uniform(60, 120)
    look = surface(rng, wall, strength=rng.uniform(0.05, 0.3), zoom=rng.uniform(0.5, 1.5))
    image = look(height, width).astype(np.uint8)
    horizon = rng.uniform(0.62, 0.85) * height
    if kind == 0:
        _room(rng, image, palette)
    elif kind == 1:
        _street(rng, image, horizon, wall, palette)
    else:
        _shelf(rng, image, palette)
    if kind != 2:  # the floor runs towards the camera
        floor = surface(rng, dull(palette[4]) * 0.6 + 40, strength=0.5)(512, 512).astype(np.uint8)
        near, far = (
            (1.05 * height, width * np.array([2.2, -1.2])),
            (horizon, width * np.array([-0.1, 1.1])),
        )
        quad = np.array([(y, x) for y, both in (far, near) for x in both])
        image, _ = place(image, floor, quad)
        fill(image, rectangle(horizon - 5, 0, horizon, width), np.clip(wall * 0.6, 0, 255))
    _boxes(rng, image, palette)
    return image
