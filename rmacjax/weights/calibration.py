"""How loud a network is: the factor that brings its activations into the paper's range.

The paper quantises activations to `floor((15 + min(x, 128)) / 16)`, a ladder made for networks in
Caffe's convention, whose maxima lie between some tens and some hundreds. Networks trained otherwise
may be a hundred times quieter, and all of their cells would fall on one step. A single number,
measured once on generated pictures and kept with the weights, puts them in the same place.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmacjax.backbones import Network, Residual, Weights, forward

TYPICAL_MAXIMUM = 48.0
"""Where the mean over channels and pictures of a channel's largest activation is brought to."""

_run = jax.jit(forward)

PICTURES = 3
SIDE_PX = 384


def _texture(rng: np.random.Generator, side: int, roughness: float) -> np.ndarray:
    """Noise with a spectrum that falls by `roughness`, of unit variance."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / frequency**roughness).real
    return (noise - noise.mean()) / noise.std()


def _color(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.uniform(0, 255) + rng.uniform(-64, 64, 3), 0, 255)


def generate_picture(seed: int, side_px: int) -> np.ndarray:
    """Draw shapes that hide each other, large to small, shaded, patterned and textured.

    Edges, corners, repeated parts and texture at all scales are what networks respond to; on white
    noise they stay almost silent.

    Args:
        seed: the same seed gives the same picture.
        side_px: height and width.

    Returns:
        (side, side, 3) uint8, RGB.

    >>> generate_picture(0, 32).shape
    (32, 32, 3)
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side_px, :side_px]
    textures = [_texture(rng, side_px, roughness) for roughness in (0.5, 1.0, 1.5)]
    picture = _color(rng) + 30 * textures[1][..., None]
    least, most = 6, side_px / 2.5
    sizes = (least**-2 + (most**-2 - least**-2) * rng.random(120)) ** -0.5  # as many per octave^2
    for size in np.sort(sizes)[::-1]:
        top, left = rng.uniform(0, side_px, 2)
        angle = rng.normal(0, 0.15) if rng.random() < 0.6 else rng.uniform(0, np.pi)
        part = tuple(  # what a turned square can reach
            slice(max(0, int(middle - 1.5 * size)), int(middle + 1.5 * size) + 1)
            for middle in (top, left)
        )
        y, x = rows[part] - top, columns[part] - left
        u = np.cos(angle) * y + np.sin(angle) * x
        v = (np.cos(angle) * x - np.sin(angle) * y) / rng.uniform(0.4, 1)
        square = np.maximum(abs(u), abs(v))
        inside = square < size if rng.random() < 0.5 else np.hypot(u, v) < size
        period = max(4.0, size / rng.uniform(1, 6))
        match rng.choice(4, p=[0.35, 0.25, 0.2, 0.2]):
            case 0:  # light from one side
                shade = np.clip(u / (2 * size) + 0.5, 0, 1)
            case 1:  # a relief
                shade = np.clip(square / size, 0, 1) ** 2
            case 2:  # windows
                shade = ((u % period < 0.5 * period) & (v % period < 0.6 * period)).astype(float)
            case _:  # rings
                shade = 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(u, v) / period)
        near, far = _color(rng), _color(rng)
        grain = rng.uniform(0, 25) * textures[rng.integers(3)][part]
        surface = near + (far - near) * shade[..., None] + grain[..., None]
        picture[part][inside] = surface[inside]
    return np.clip(picture, 0, 255).astype(np.uint8)


def measure_activation_scale(network: Network, weights: Weights) -> float:
    """Find the factor that brings a network's activations into the paper's range.

    Networks that see pixels in Caffe's range (0..255, not divided by a standard deviation) are what
    the paper's range was made for: exactly 1, unless they are ResNets, whose batch normalization
    makes them quiet whatever they see. For others it is 48 / (mean of the channels' maxima) on a
    few generated pictures; photos of the same size give much the same maxima.

    Args:
        network: the static facts.
        weights: its weights.

    Returns:
        The factor; 1 for a network that stays silent.
    """
    in_range = np.allclose(network.convention.scale / np.asarray(network.convention.std), 1.0)
    if in_range and not any(isinstance(layer, Residual) for layer in network.layers):
        return 1.0
    maxima = []
    for seed in range(PICTURES):  # one by one: the memory of one picture
        maps, _ = _run(network, weights, jnp.asarray(generate_picture(seed, SIDE_PX)[None]))
        maxima.append(np.asarray(maps).max((0, 1, 2)))
    typical = float(np.mean(maxima))
    return float(np.float32(TYPICAL_MAXIMUM / typical)) if typical > 0 else 1.0
