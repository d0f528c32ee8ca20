"""Surfaces: periodic textures with a photo's statistics, lettering and palettes."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rmacjax import preprocessing

TEXTURE_SIZE = 256
"""Side of every texture in pixels: a power of two, so that coordinates wrap by a bit mask."""

# fmt: off
WORDS = (
    "rose", "north", "1874", "salt", "harbour", "LUX", "grand", "museum", "tea", "No.5", "opera",
    "ginger", "atlas", "MARE", "cinema", "fig", "sonata", "polar", "27", "orchard", "vivo", "BRICK",
    "lumen", "quartz", "expo", "sable", "1931", "mint", "river", "OTTO", "garden", "kilo", "nova",
    "ember",
)
# fmt: on


def power_noise(
    rng: np.random.Generator,
    size: int,
    exponent: float,
    *,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Float32[np.ndarray, "s s"]:
    """Periodic noise whose amplitude spectrum falls as ``1 / f ** exponent``.

    Args:
        rng: source of randomness.
        size: side in pixels.
        exponent: 1 looks like a photo's clutter, 2 like clouds.
        stretch: how many times longer the noise's features are along one direction.
        angle: that direction, in radians.

    Returns:
        (size, size) float32 with mean 0 and standard deviation 1.
    """
    f_y = np.fft.fftfreq(size)[:, None] * size
    f_x = np.fft.rfftfreq(size)[None, :] * size
    along = np.cos(angle) * f_x + np.sin(angle) * f_y
    across = -np.sin(angle) * f_x + np.cos(angle) * f_y
    frequency = np.hypot(along * stretch, across)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency**exponent
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return (noise / max(float(noise.std()), 1e-12)).astype(np.float32)


def _texture(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """One periodic texture around mid grey, whose deviations are added to a leaf's own colour."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    rough = power_noise(
        rng,
        size,
        rng.uniform(0.8, 2.2),
        stretch=float(rng.choice([1.0, 1.0, 4.0])),
        angle=rng.uniform(0, 3.14),
    )
    kind = rng.integers(8)
    if kind <= 1:  # plain power-law noise
        value = rough
    elif kind == 2:  # marble, wood
        k = rng.integers(-6, 7, 2)
        depth = rng.uniform(1, 5)
        value = np.sin(2 * np.pi * (k[0] * x + k[1] * y) + depth * power_noise(rng, size, 1.8))
    elif kind == 3:  # grating or plaid
        k = rng.integers(3, 24, 2) * rng.choice([0, 1, 1], 2)
        value = np.sign(np.sin(2 * np.pi * k[0] * x) + 0.1) + np.sin(2 * np.pi * k[1] * y)
    elif kind == 4:  # flakes
        value = np.floor(power_noise(rng, size, rng.uniform(0.9, 1.6)) * rng.uniform(1.0, 2.5))
    elif kind == 5:  # cells
        points = rng.uniform(0, 1, (rng.integers(12, 60), 2)).astype(np.float32)
        d_y = np.abs(y[..., None] - points[:, 0])
        d_x = np.abs(x[..., None] - points[:, 1])
        squared = np.minimum(d_y, 1 - d_y) ** 2 + np.minimum(d_x, 1 - d_x) ** 2
        nearest = squared.argmin(-1)
        value = rng.standard_normal(len(points))[nearest] + 0.8 * (
            np.sqrt(squared.min(-1)) * 12 - 1
        )
    elif kind == 6:  # masonry
        rows = int(rng.integers(4, 20))
        columns = int(rng.integers(2, 12))
        row = np.floor(y * rows)
        column = np.floor(x * columns + 0.5 * (row % 2))
        joint = ((y * rows) % 1 < 0.14) | ((x * columns + 0.5 * (row % 2)) % 1 < 0.08)
        bricks = rng.standard_normal((rows, columns + 1))
        value = bricks[row.astype(int), column.astype(int) % columns] - 3.0 * joint
    else:  # windows
        n = rng.integers(2, 9, 2)
        u, v = (x * n[0]) % 1, (y * n[1]) % 1
        w, h = rng.uniform(0.3, 0.8, 2)
        pane = (u < w) & (v < h)
        bars = pane & ((np.abs(u - w / 2) < 0.04) | (np.abs(v - h / 2) < 0.04))
        value = 1.0 - 2.5 * pane + 2.0 * bars + 1.0 * ((v > h) & (v < h + 0.08))
    value = value + rng.uniform(0.1, 0.6) * rough
    value = (value - value.mean()) / max(float(value.std()), 1e-6)
    tint = rng.normal(0, 0.35, (3, 2))
    other = power_noise(rng, size, 1.5)
    color = value[..., None] * (1 + tint[:, 0]) + other[..., None] * tint[:, 1]
    return np.clip(128 + 38 * color, 0, 255).astype(np.uint8)


@lru_cache(maxsize=4)
def texture_bank(seed: int = 0, count: int = 64) -> UInt8[np.ndarray, "t s s 3"]:
    """Make the periodic textures that scenes are dressed with, once per seed and count.

    Args:
        seed: the same seed gives the same textures.
        count: how many.

    Returns:
        (count, 256, 256, 3) uint8 around mid grey, read-only.
    """
    rng = np.random.default_rng([seed, 77])
    bank = np.stack([_texture(rng, TEXTURE_SIZE) for _ in range(count)])
    bank.setflags(write=False)
    return bank


@lru_cache(maxsize=2)
def lettering(count: int = 48) -> tuple[np.ndarray, ...]:
    """Words as boolean stencils, drawn once."""
    stencils = []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        canvas = np.zeros((64, 40 * len(word) + 16, 3), np.uint8)
        drawn = preprocessing.draw_text(canvas, word, (4, 4), 44)[..., 0] > 127
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        stencils.append(drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return tuple(stencils)


def random_palette(rng: np.random.Generator) -> Float[np.ndarray, "k 3"]:
    """A few colours that go together: two hues, mostly dull, light and dark."""
    hue = rng.uniform(0, 2 * np.pi)
    hues = hue + rng.choice([0.0, 0.4, 2.5], 7) + rng.normal(0, 0.2, 7)
    chroma = rng.gamma(1.5, rng.uniform(8, 40), 7).clip(0, 110)
    light = rng.uniform(25, 230, 7)
    turn = np.stack([np.cos(hues), np.cos(hues - 2.09), np.cos(hues + 2.09)], -1)
    return (light[:, None] + chroma[:, None] * turn).clip(0, 255)
