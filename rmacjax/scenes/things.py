"""Things to search for: posters, packages, books' covers, paintings in their frames."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from rmacjax.scenes.leaves import render_scene
from rmacjax.scenes.painting import disc, fill, rectangle, write
from rmacjax.scenes.textures import TEXTURE_SIZE, WORDS, texture_bank

Colors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _hue(angle: float) -> Float[np.ndarray, "3"]:
    """Direction of a hue in RGB, around grey."""
    return np.array([np.cos(angle), np.cos(angle - 2.09), np.cos(angle + 2.09)])


def _print_colors(rng: np.random.Generator) -> Colors:
    """Paper, ink and two accents of a printed thing, light against dark."""
    hue = rng.uniform(0, 2 * np.pi)
    paper = rng.uniform(190, 235) + rng.uniform(5, 30) * _hue(hue)
    ink = rng.uniform(25, 70) + rng.uniform(5, 30) * _hue(hue + rng.normal(3, 0.6))
    if rng.random() < 0.4:
        paper, ink = ink + 20, paper
    first = rng.uniform(90, 170) + rng.uniform(50, 100) * _hue(hue + 1.2 + rng.normal(0, 0.4))
    second = rng.uniform(90, 170) + rng.uniform(50, 100) * _hue(hue + 3.4 + rng.normal(0, 0.4))
    paper, ink, first, second = (np.clip(c, 5, 250) for c in (paper, ink, first, second))
    return paper, ink, first, second


def _landscape(rng: np.random.Generator, picture: np.ndarray, colors: Colors) -> None:
    """Sky, sun, ridges of hills and some trees."""
    paper, ink, accent, other = colors
    h, w = picture.shape[:2]
    sky = np.linspace(0, 1, h)[:, None, None]
    picture[:] = (accent * (1 - sky) + paper * sky).astype(np.uint8)
    sun = disc(rng.uniform(0.15, 0.5) * h, rng.uniform(0.2, 0.8) * w, rng.uniform(0.08, 0.2) * h)
    fill(picture, sun, other)
    x = np.linspace(0, 1, 40)
    for layer in range(4):
        ridge = np.full(40, 0.4 + 0.14 * layer)
        for k in (1, 2, 3, 5, 9):
            ridge += rng.normal(0, 0.05) * np.sin(2 * np.pi * (k * x + rng.random()))
        shade = ink * (0.35 + 0.22 * layer) + accent * (0.6 - 0.18 * layer)
        hill = np.concatenate([np.stack([ridge * h, x * w], -1), [(h, w), (h, 0)]])
        fill(picture, hill, np.clip(shade, 0, 255))
    for _ in range(int(rng.integers(3, 12))):
        y, at, s = rng.uniform(0.6, 0.95) * h, rng.uniform(0, 1) * w, rng.uniform(0.03, 0.1) * h
        fill(picture, np.array([(y, at - s / 3), (y - s * 1.6, at), (y, at + s / 3)]), ink)


def _rays(rng: np.random.Generator, canvas: np.ndarray, colors: Colors) -> None:
    """Rays and rings, as on a tin."""
    paper, ink, accent, other = colors
    height, width = canvas.shape[:2]
    y, x, n = 0.51 * height, 0.5 * width, int(rng.integers(7, 16))
    for i in range(n):
        angles = 2 * np.pi * (i + np.array([0.0, 0.5])) / n
        far = 2 * max(height, width) * np.stack([np.sin(angles), np.cos(angles)], -1)
        fill(canvas, np.concatenate([[(y, x)], far + np.array([y, x])]), accent)
    for radius, color in zip((0.42, 0.36, 0.26, 0.12), (ink, paper, other, ink), strict=True):
        fill(canvas, disc(y, x, radius * width), color)
    for i in range(int(rng.integers(5, 11))):
        a = 2 * np.pi * i / 10 + 0.2
        at = (y + 0.31 * width * np.sin(a), x + 0.31 * width * np.cos(a))
        fill(canvas, disc(*at, 0.03 * width), accent)


def _bands(rng: np.random.Generator, canvas: np.ndarray, colors: Colors) -> None:
    """Bands with a row of signs in each, as on a package."""
    paper, ink, accent, other = colors
    height, width = canvas.shape[:2]
    inner = np.sort(rng.uniform(0.3, 0.82, int(rng.integers(2, 5))))
    edges = np.concatenate([[0.2], inner, [0.92]]) * height
    for i, (a, b) in enumerate(pairwise(edges)):
        fill(canvas, rectangle(a, 0, b, width), (accent, other, ink, paper)[i % 4])
        n = int(rng.integers(3, 9))
        radius = min(0.42 * (b - a), 0.4 * width / n)
        for k in range(n):
            corners = int(rng.choice([3, 4, 6, 40]))
            sign = disc((a + b) / 2, (k + 0.5) * width / n, radius, corners)
            fill(canvas, sign, (paper, paper, accent, other)[i % 4])


def _tiles(rng: np.random.Generator, picture: np.ndarray, colors: Colors) -> None:
    """Tiles with a sign in each, as on a board game or a quilt."""
    paper, ink, accent, other = colors
    choice = np.stack([ink, accent, other, 0.6 * ink + 0.4 * other, paper])
    n = int(rng.integers(3, 7))
    s_y, s_x = picture.shape[0] / n, picture.shape[1] / n
    for y, x in ((i * s_y, j * s_x) for i in range(n) for j in range(n)):
        fill(picture, rectangle(y, x, y + s_y, x + s_x), choice[rng.integers(5)])
        corners = int(rng.choice([3, 4, 5, 40]))
        radius = rng.uniform(0.2, 0.45) * min(s_y, s_x)
        fill(picture, disc(y + s_y / 2, x + s_x / 2, radius, corners), choice[rng.integers(5)])


def render_object(
    rng: np.random.Generator, size: tuple[int, int] = (400, 300)
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a printed thing from the front: a poster, a tin, a package, a painting, a board game.

    Args:
        rng: source of randomness; each draw is a different thing.
        size: (height, width) in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = size
    colors = paper, ink, accent, other = _print_colors(rng)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = paper.astype(np.uint8)
    top, bottom = int(0.2 * height), int(0.82 * height)
    left, right = int(0.08 * width), int(0.92 * width)
    picture = canvas[top:bottom, left:right]
    words = rng.permutation(WORDS)
    kind = int(rng.integers(5))
    if kind == 0:
        _landscape(rng, picture, colors)
    elif kind == 1:
        _rays(rng, canvas, colors)
    elif kind == 2:
        _bands(rng, canvas, colors)
    elif kind == 3:
        mixed = (paper, ink, accent, other, 0.5 * (accent + other), 0.5 * (paper + accent))
        picture[:] = render_scene(
            rng,
            (bottom - top, right - left),
            leaves=int(rng.integers(25, 70)),
            palette=np.stack(mixed),
            tilt=float(rng.choice([0.05, 0.8])),
            largest=0.4,
        )
    else:
        _tiles(rng, picture, colors)
    if rng.random() < 0.5:  # a frame
        t = int(rng.uniform(0.015, 0.05) * width)
        color = ink.astype(np.uint8)
        canvas[:t] = canvas[height - t :] = color
        canvas[:, :t] = canvas[:, width - t :] = color
    title = (0.05 * height, 0.1 * width, 0.165 * height, 0.9 * width)
    if kind in (1, 2):
        fill(canvas, rectangle(0.045 * height, 0.07 * width, 0.17 * height, 0.93 * width), ink)
    write(canvas, str(words[0]), title, paper if kind in (1, 2) else ink)
    if kind != 2:
        below = rectangle(0.85 * height, 0.1 * width, 0.95 * height, 0.9 * width)
        fill(canvas, below, (paper, ink)[kind % 2])
        box = (0.86 * height, 0.12 * width, 0.94 * height, 0.88 * width)
        write(canvas, f"{words[1]} {words[2]}", box, (ink, paper)[kind % 2])
    bank = texture_bank()
    grain = bank[rng.integers(len(bank))]
    repeats = (-(-height // TEXTURE_SIZE), -(-width // TEXTURE_SIZE), 1)
    grain = np.tile(grain, repeats)[:height, :width].astype(np.float32) - 128
    return np.clip(canvas + 0.06 * grain, 0, 255).astype(np.uint8)
