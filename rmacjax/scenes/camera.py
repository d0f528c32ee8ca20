"""The camera: perspective, light and everything else that tells two photos of one thing apart."""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rmacjax import preprocessing


def homography(
    source: Float[np.ndarray, "4 2"], target: Float[np.ndarray, "4 2"]
) -> Float[np.ndarray, "3 3"]:
    """Find the projective map that takes four points to four others.

    Args:
        source: four corners (x, y) in pixels.
        target: where they go.

    Returns:
        (3, 3) float64 matrix for homogeneous (x, y, 1).
    """
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)


def sample(
    pixels: UInt8[np.ndarray, "H W c"], matrix: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "h w c"], Float32[np.ndarray, "h w"]]:
    """Look an image up through a projective map, with straight lines between pixels.

    Args:
        pixels: (H, W, c) uint8.
        matrix: takes the output's (x, y, 1) to those of the image.
        size: (height, width) of the output.

    Returns:
        (h, w, c) float32, and (h, w) float32: 1 where the output lies inside the image, 0 outside,
        in between at the edge.
    """
    height, width = size
    H, W = pixels.shape[:2]
    m = np.asarray(matrix, np.float32)
    x = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    z = m[2, 0] * x + (m[2, 1] * y + m[2, 2])
    np.maximum(z, np.float32(1e-3), out=z)
    u = (m[0, 0] * x + (m[0, 1] * y + m[0, 2])) / z - np.float32(0.5)
    v = (m[1, 0] * x + (m[1, 1] * y + m[1, 2])) / z - np.float32(0.5)
    edge = np.minimum(np.minimum(u, W - 1 - u), np.minimum(v, H - 1 - v))
    alpha = np.clip(edge + np.float32(1.0), 0, 1)
    u = np.clip(u, 0, np.float32(max(W - 1.001, 0)))
    v = np.clip(v, 0, np.float32(max(H - 1.001, 0)))
    left, top = u.astype(np.int32), v.astype(np.int32)
    fx, fy = (u - left)[..., None], (v - top)[..., None]
    index = top * W + left
    right, down = int(W > 1), W * int(H > 1)  # the only row or column is its own neighbour
    flat = pixels.reshape(H * W, -1)
    upper = flat.take(index, axis=0).astype(np.float32)
    upper += fx * (flat.take(index + right, axis=0) - upper)
    lower = flat.take(index + down, axis=0).astype(np.float32)
    lower += fx * (flat.take(index + down + right, axis=0) - lower)
    lower -= upper
    lower *= fy
    lower += upper
    return lower, alpha


def blur(image: Float32[np.ndarray, "H W c"], passes: int) -> Float32[np.ndarray, "H W c"]:
    """Blur by passes of the kernel (1, 2, 1) / 4 along both axes.

    Args:
        image: (H, W, c) float32.
        passes: how many; the standard deviation is `sqrt(passes / 2)` pixels.

    Returns:
        (H, W, c) float32.
    """
    for _ in range(passes):
        padded = np.concatenate([image[:1], image, image[-1:]], 0)
        image = 0.25 * (padded[:-2] + padded[2:]) + 0.5 * padded[1:-1]
        padded = np.concatenate([image[:, :1], image, image[:, -1:]], 1)
        image = 0.25 * (padded[:, :-2] + padded[:, 2:]) + 0.5 * padded[:, 1:-1]
    return image


def photograph(
    rng: np.random.Generator,
    image: Float32[np.ndarray, "H W 3"],
    *,
    strength: float = 1.0,
    gray: float = 0.15,
) -> UInt8[np.ndarray, "H W 3"]:
    """Do to an image what a camera does: uneven light, cast, shadow, blur, noise, gamma, JPEG.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32, 0..255.
        strength: 0 leaves the image nearly alone, 1 is a careless photographer.
        gray: how often the colours are lost, times `strength`.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    # Saturation, a hue turn and the light's colour are one 3 x 3 matrix.
    saturation = float(np.exp(rng.normal(0, 0.4 * strength)))
    if rng.random() < gray * strength:
        saturation = 0.0
    mean = np.full((3, 3), 1 / 3)
    angle = rng.normal(0, 0.2 * strength)
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) * mean + sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    cast = np.exp(rng.normal(0, 0.13 * strength, 3)) * np.exp(rng.normal(0, 0.22 * strength))
    matrix = (cast[:, None] * ((saturation * (np.eye(3) - mean) + mean) @ turn)).astype(np.float32)
    image = image @ matrix.T
    slope = rng.normal(0, 0.25 * strength, 2).astype(np.float32)
    light = np.float32(1) + slope[0] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = light + slope[1] * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    if rng.random() < 0.3 * strength:  # a shadow with a straight, soft edge
        direction = rng.uniform(0, 2 * np.pi)
        side = np.cos(direction) * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        side = side + np.sin(direction) * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        side = side + rng.normal(0, 0.4)
        depth, softness = rng.uniform(0.2, 0.6), rng.uniform(3, 30)
        light = light * (1 - depth * np.clip(0.5 + softness * side, 0, 1)).astype(np.float32)
    image = image * np.clip(light, 0.15, 2.0)[..., None]
    if rng.random() < 0.45 * strength:
        image = blur(image, int(rng.integers(1, 4)))
    if rng.random() < 0.5 * strength:
        spread = np.float32(rng.gamma(1.5, 5.0))
        image = image + spread * rng.standard_normal(image.shape, np.float32)
    levels = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.3 * strength))
    gain = np.exp(rng.normal(-0.1, 0.25 * strength))
    table = 255 * (0.5 + gain * (levels - 0.5)) + rng.normal(0, 10 * strength)
    table = np.clip(table, 0, 255).astype(np.uint8)
    pixels = table[np.clip(image, 0, 255).astype(np.uint8)]
    if rng.random() < 0.4 * strength:
        quality = int(rng.integers(20, 90))
        pixels = preprocessing.decode_image(preprocessing.encode_jpeg(pixels, quality))
    return pixels
