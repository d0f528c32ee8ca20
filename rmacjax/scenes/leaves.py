"""Dead leaves: shapes of all sizes that cover each other, as things in a photo do."""

import numpy as np
from jaxtyping import Float, UInt8

from rmacjax.scenes.textures import lettering, random_palette, texture_bank


def _stencil(
    rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Tell what a leaf covers of its own frame (-1..1): its body, and a pattern on it or None."""
    if kind == 0:  # ellipse
        return u * u + v * v < 1, None
    if kind == 1:  # convex polygon
        body = u * u + v * v < 1
        for angle in np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7))):
            body &= np.cos(angle) * u + np.sin(angle) * v < rng.uniform(0.35, 0.8)
        return body, None
    inside = (np.abs(u) < 1) & (np.abs(v) < 1)
    if kind == 2:  # panel, with or without a frame
        frame = rng.uniform(0.7, 0.95)
        within = (np.abs(u) < frame) & (np.abs(v) < frame)
        return inside, within if rng.random() < 0.5 else None
    if kind == 3:  # facade: rows of windows, arched or not
        columns, rows = rng.integers(2, 9), rng.integers(1, 8)
        a, b = ((u + 1) * columns / 2) % 1 - 0.5, ((v + 1) * rows / 2) % 1 - 0.5
        w, h = rng.uniform(0.15, 0.38, 2)
        window = (np.abs(a) < w) & (np.abs(b) < h)
        if rng.random() < 0.5:
            window |= (a / w) ** 2 + ((b + h) / (0.6 * h)) ** 2 < 1
        if rng.random() < 0.4:
            window &= np.abs(a) > 0.03
        return inside, inside & window
    if kind == 4:  # stripes, bars, chequers
        k = rng.uniform(2, 10, 2)
        stripe = (u * k[0]) % 1 < rng.uniform(0.25, 0.6)
        if rng.random() < 0.4:
            stripe ^= (v * k[1]) % 1 < 0.5
        return inside, inside & stripe
    if kind == 5:  # ring, arch
        radius = u * u + v * v
        return radius < 1, (radius < rng.uniform(0.2, 0.7)) & (v > rng.uniform(-1, 0.2))
    if kind == 6:  # discs in a grid
        n = rng.integers(2, 7)
        radius = ((u * n) % 2 - 1) ** 2 + ((v * n) % 2 - 1) ** 2
        return inside, inside & (radius < rng.uniform(0.2, 0.8))
    stencils = lettering()  # a word
    word = stencils[int(rng.integers(len(stencils)))]
    row = ((v * 0.5 + 0.5) * word.shape[0]).astype(np.int32).clip(0, word.shape[0] - 1)
    column = ((u * 0.5 + 0.5) * word.shape[1]).astype(np.int32).clip(0, word.shape[1] - 1)
    written = inside & word[row, column]
    return (inside, written) if rng.random() < 0.5 else (written, None)


def render_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = (192, 192),
    *,
    leaves: int = 40,
    textures: UInt8[np.ndarray, "t s s 3"] | None = None,
    palette: Float[np.ndarray, "k 3"] | None = None,
    smallest: float = 0.03,
    largest: float = 0.45,
    tilt: float = 0.5,
    contrast: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a scene of dead leaves: textured shapes of all sizes, each covering what was there.

    All leaves are first drawn as labels; the colours and textures of all of them are then looked
    up at once.

    Args:
        rng: source of randomness.
        size: (height, width) in pixels.
        leaves: how many shapes.
        textures: periodic textures to dress them with; the bank of seed 0 when None.
        palette: colours to choose from; a random one when None.
        smallest: least half side of a leaf as a part of the short side.
        largest: greatest half side.
        tilt: standard deviation of the shapes' rotation in radians.
        contrast: strength of the textures.

    Returns:
        (H, W, 3) uint8.
    """
    textures = texture_bank() if textures is None else textures
    palette = random_palette(rng) if palette is None else palette
    height, width = size
    short = min(size)
    labels = np.zeros((height, width), np.int32)
    count = 1
    radii = (smallest**-1.5 + rng.random(leaves) * (largest**-1.5 - smallest**-1.5)) ** (
        -1 / 1.5
    ) * short
    kinds = rng.choice(8, leaves, p=[0.12, 0.2, 0.16, 0.18, 0.1, 0.06, 0.06, 0.12])
    order = np.argsort(-radii * rng.uniform(0.4, 1.6, leaves))
    centers = rng.uniform(-0.05, 1.05, (leaves, 2)) * [height, width]
    for i in order:
        kind = int(kinds[i])
        a = float(radii[i])
        b = a * float(np.exp(rng.normal(0, 0.5))) * (0.35 if kind == 7 else 1.0)
        angle = rng.normal(0, tilt)
        reach_y = abs(np.sin(angle)) * a + abs(np.cos(angle)) * b
        reach_x = abs(np.cos(angle)) * a + abs(np.sin(angle)) * b
        y, x = centers[i]
        top, bottom = max(0, int(y - reach_y)), min(height, int(y + reach_y) + 1)
        left, right = max(0, int(x - reach_x)), min(width, int(x + reach_x) + 1)
        if bottom - top < 2 or right - left < 2:
            continue
        d_y = (np.arange(top, bottom, dtype=np.float32) - np.float32(y))[:, None]
        d_x = (np.arange(left, right, dtype=np.float32) - np.float32(x))[None, :]
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = d_x * (cos / np.float32(a)) + d_y * (sin / np.float32(a))
        v = d_y * (cos / np.float32(b)) - d_x * (sin / np.float32(b))
        body, pattern = _stencil(rng, kind, u, v)
        patch = labels[top:bottom, left:right]
        patch[body] = count
        count += 1
        if pattern is not None:
            patch[pattern & body] = count
            count += 1
    return _dress(rng, labels, count, textures, palette, contrast)


def _dress(
    rng: np.random.Generator,
    labels: np.ndarray,
    count: int,
    textures: np.ndarray,
    palette: np.ndarray,
    contrast: float,
) -> np.ndarray:
    """Give labels 0..count-1 their colours and textures: one look-up for the whole image."""
    height, width = labels.shape
    period = textures.shape[1]
    base = palette[rng.integers(len(palette), size=count)] + rng.normal(0, 14, (count, 3))
    base = base.astype(np.float32)
    amplitude = contrast * rng.gamma(2.0, 0.3, count) * rng.choice([0.3, 1.0], count)
    amplitude = amplitude.astype(np.float32)
    zoom = np.exp(rng.normal(0.3, 0.5, count))
    turn = rng.normal(0, 0.5, count)
    cos = (zoom * np.cos(turn)).astype(np.float32)
    sin = (zoom * np.sin(turn)).astype(np.float32)
    offset = rng.uniform(0, period, (2, count)).astype(np.float32)
    which = (rng.integers(len(textures), size=count) * period * period).astype(np.int32)
    flat = labels.ravel()
    y = np.repeat(np.arange(height, dtype=np.float32), width)
    x = np.tile(np.arange(width, dtype=np.float32), height)
    c, s = cos.take(flat), sin.take(flat)
    row = (c * y + s * x + offset[0].take(flat)).astype(np.int32) & (period - 1)
    column = (c * x - s * y + offset[1].take(flat)).astype(np.int32) & (period - 1)
    index = which.take(flat) + row * period + column
    texture = textures.reshape(-1, 3).take(index, axis=0).astype(np.float32)
    pixels = base.take(flat, axis=0) + amplitude.take(flat)[:, None] * (texture - 128.0)
    return np.clip(pixels, 0, 255).astype(np.uint8).reshape(height, width, 3)
