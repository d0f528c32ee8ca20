"""Pairs of views to learn from: the same scene twice, seen differently."""

import numpy as np
from jaxtyping import UInt8

from rmacjax.scenes.camera import homography, photograph, sample
from rmacjax.scenes.leaves import render_scene
from rmacjax.scenes.mishaps import spoil
from rmacjax.scenes.textures import random_palette, texture_bank


def _view(
    rng: np.random.Generator,
    subject: np.ndarray,
    background: np.ndarray,
    anchor: np.ndarray,
    size: int,
    strength: float,
    gray: float,
    reach: tuple[float, float],
    mishaps: float,
) -> np.ndarray:
    """Photograph a square scene with the point `anchor` (x, y) in view, before another scene."""
    side = subject.shape[0] * np.exp(rng.uniform(np.log(reach[0]), np.log(reach[1])))
    angle = rng.normal(0, 0.2) if rng.random() < 0.85 else rng.normal(0, 0.6)
    stretch = np.exp(rng.normal(0, 0.12))
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = corners + rng.normal(0, 0.05, (4, 2))
    corners = corners * [side * stretch, side / stretch]
    cos, sin = np.cos(angle), np.sin(angle)
    corners = corners @ np.array([[cos, sin], [-sin, cos]])
    center = anchor + rng.uniform(-0.22, 0.22, 2) * side
    low = min(0.5 * side, subject.shape[0] / 2) * 0.85
    high = subject.shape[0] - low
    center = np.clip(center, low, high)
    square = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    matrix = homography(square, corners + center)
    image, alpha = sample(subject, matrix, (size, size))
    if alpha.min() < 1:
        top, left = rng.integers(0, background.shape[0] - size + 1, 2)
        behind = background[top : top + size, left : left + size]
        image = behind + alpha[..., None] * (image - behind)
    if rng.random() < 0.5:
        hide_parts(rng, image, background)
    if mishaps:
        image = spoil(rng, image, mishaps)
    return photograph(rng, image, strength=strength, gray=gray)


def hide_parts(rng: np.random.Generator, image: np.ndarray, other: np.ndarray) -> None:
    """Put one to three pieces of another scene before an image, in place."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        h = int(rng.integers(height // 10, height // 3))
        w = int(rng.integers(width // 10, width // 3))
        top = int(rng.integers(-h // 2, height - h // 2))
        left = int(rng.integers(-w // 2, width - w // 2))
        there = image[max(top, 0) : top + h, max(left, 0) : left + w]
        y, x = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        there[:] = other[y : y + there.shape[0], x : x + there.shape[1]]


def related_scenes(
    rng: np.random.Generator,
    n: int,
    side: int,
    relatives: int,
    textures: UInt8[np.ndarray, "t s s 3"],
    leaves: tuple[int, int] = (16, 90),
) -> list[UInt8[np.ndarray, "side side 3"]]:
    """Render square scenes of which each `relatives` in a row share colours and textures.

    Args:
        rng: source of randomness.
        n: number of scenes.
        side: in pixels.
        relatives: how many scenes in a row share a palette and a handful of textures.
        textures: the bank that they choose from.
        leaves: fewest and most shapes of a scene.

    Returns:
        n scenes, (side, side, 3) uint8.
    """
    scenes = []
    for i in range(n):
        if i % relatives == 0:
            palette = random_palette(rng)
            few = textures[rng.choice(len(textures), min(8, len(textures)), replace=False)]
        count = int(np.exp(rng.uniform(*np.log(leaves))))
        tilt = float(rng.choice([0.03, 0.2, 1.0]))
        varied = rng.random() < 0.8
        own = palette + rng.normal(0, 12, palette.shape) if varied else random_palette(rng)
        scenes.append(
            render_scene(
                rng,
                (side, side),
                leaves=count,
                textures=few,
                palette=own,
                tilt=tilt,
                largest=float(rng.uniform(0.2, 0.6)),
                contrast=float(rng.uniform(0.4, 1.4)),
            )
        )
    return scenes


def training_batch(
    rng: np.random.Generator,
    n: int,
    size: int = 128,
    *,
    strength: float = 1.0,
    gray: float = 0.15,
    reach: tuple[float, float] = (0.45, 1.5),
    relatives: int = 4,
    textures: UInt8[np.ndarray, "t s s 3"] | None = None,
    mishaps: float = 0.0,
) -> tuple[UInt8[np.ndarray, "n H W 3"], UInt8[np.ndarray, "n H W 3"]]:
    """Make pairs of views of different scenes, meant to be confused with each other.

    Neighbouring scenes share colours and textures, and each is the other's background and the thing
    in front of it: only the arrangement of details says which view belongs to which.

    Args:
        rng: source of randomness.
        n: number of scenes.
        size: side of a view in pixels.
        strength: of the camera's changes, see `photograph`.
        gray: how often colours are lost, see `photograph`.
        reach: least and greatest side of a view as a part of the scene's.
        relatives: how many scenes in a row share a palette and a handful of textures.
        textures: bank of textures; that of seed 0 when None.
        mishaps: how much goes wrong when photos are taken, see `spoil`.

    Returns:
        Two (n, size, size, 3) uint8 arrays; row i of both shows scene i.
    """
    textures = texture_bank() if textures is None else textures
    scene_size = size * 3 // 2
    scenes = related_scenes(rng, n, scene_size, relatives, textures)
    first = np.empty((n, size, size, 3), np.uint8)
    second = np.empty_like(first)
    for i, scene in enumerate(scenes):
        anchor = rng.uniform(0.25, 0.75, 2) * scene_size
        for out in (first, second):
            step = int(rng.integers(1, relatives + 1))
            behind = scenes[(i + step) % n]
            out[i] = _view(rng, scene, behind, anchor, size, strength, gray, reach, mishaps)
    return first, second


def training_pair(
    rng: np.random.Generator, size: int = 128
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]:
    """Make two views of one generated scene, before different backgrounds.

    Args:
        rng: source of randomness.
        size: side of a view in pixels.

    Returns:
        Two (size, size, 3) uint8 images.
    """
    first, second = training_batch(rng, 2, size)
    return first[0], second[0]
