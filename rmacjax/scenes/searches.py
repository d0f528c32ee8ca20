"""Searches to learn from: an outlined thing, and a photo that shows it somewhere."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rmacjax.regions import box_iou
from rmacjax.scenes.camera import homography, photograph, sample
from rmacjax.scenes.pairs import hide_parts, related_scenes
from rmacjax.scenes.textures import texture_bank


class SearchBatch(NamedTuple):
    """Queries, photos that show what they outline, and boxes to tell apart.

    Attributes:
        queries: (n, h, w, 3) uint8, the outlined things, each filling its image.
        photos: (n, H, W, 3) uint8; photo i shows thing i.
        boxes: (n, k, 4) float32, candidate boxes (top, left, bottom, right) in pixels of photo i.
            The first is the thing's own, the second the whole photo.
        overlaps: (n, k) float32, intersection over union of each box with the thing's own.
    """

    queries: UInt8[np.ndarray, "n h w 3"]
    photos: UInt8[np.ndarray, "n H W 3"]
    boxes: Float32[np.ndarray, "n k 4"]
    overlaps: Float32[np.ndarray, "n k"]


def _corners(top: float, left: float, bottom: float, right: float) -> Float[np.ndarray, "4 2"]:
    """Corners (x, y) of a box, clockwise from the upper left."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def _quad(
    rng: np.random.Generator, size: tuple[int, int], aspect: float, share: float
) -> Float[np.ndarray, "4 2"]:
    """Where the corners (x, y) of a thing come to lie in a photo that it fills by `share`."""
    height, width = size
    aspect *= np.exp(rng.normal(0, 0.12))
    tall = share * min(height, width * aspect)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = (corners + rng.normal(0, 0.05, (4, 2))) * [tall / aspect, tall]
    angle = rng.normal(0, 0.1) if rng.random() < 0.85 else rng.normal(0, 0.4)
    cos, sin = np.cos(angle), np.sin(angle)
    corners = corners @ np.array([[cos, sin], [-sin, cos]])
    # What is larger than the photo reaches out of it, but still covers it along that side.
    room = np.abs(np.array([width, height]) / 2 - np.abs(corners).max(0))
    return corners + np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * room


def _candidates(
    rng: np.random.Generator, box: Float[np.ndarray, "4"], size: tuple[int, int], count: int
) -> Float[np.ndarray, "k 4"]:
    """The box, the whole photo, boxes near the box, and boxes of like shape anywhere."""
    height, width = size
    tall, wide = box[2] - box[0], box[3] - box[1]
    near = (count - 2) // 2
    grow = np.exp(rng.normal(0, 0.45, (count - 2, 2)) * [1, 0.6])
    h = np.clip(tall * grow[:, 0] * grow[:, 1], 16, height)
    w = np.clip(wide * grow[:, 0] / grow[:, 1], 16, width)
    y = (box[0] + box[2]) / 2 + rng.normal(0, 0.3, count - 2) * tall
    x = (box[1] + box[3]) / 2 + rng.normal(0, 0.3, count - 2) * wide
    y[near:], x[near:] = (
        rng.uniform(0, height, y[near:].shape),
        rng.uniform(0, width, x[near:].shape),
    )
    y, x = np.clip(y, h / 2, height - h / 2), np.clip(x, w / 2, width - w / 2)
    others = np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    return np.concatenate([box[None], [[0, 0, height, width]], others])


def search_batch(
    rng: np.random.Generator,
    n: int,
    query_size: tuple[int, int] = (128, 128),
    photo_size: tuple[int, int] = (192, 192),
    *,
    candidates: int = 24,
    strength: float = 0.8,
    gray: float = 0.3,
    relatives: int = 4,
    textures: UInt8[np.ndarray, "t s s 3"] | None = None,
) -> SearchBatch:
    """Make queries and photos that show, somewhere, what the queries outline.

    In half of the photos the thing is a part of its scene, as a facade is of its street, and the
    scene is seen around it; in the others it was cut out and lies before another scene. Scenes have
    relatives with the same colours and textures, as in `training_batch`.

    Args:
        rng: source of randomness.
        n: number of searches.
        query_size: (height, width) of the queries in pixels.
        photo_size: (height, width) of the photos in pixels.
        candidates: boxes per photo, at least 2.
        strength: of the camera's changes to the photos, see `photograph`; queries get half of it.
        gray: how often colours are lost.
        relatives: how many scenes in a row share a palette and textures.
        textures: bank of textures; that of seed 0 when None.
    """
    textures = texture_bank() if textures is None else textures
    side = max(photo_size) * 3 // 2
    scenes = related_scenes(rng, n, side, relatives, textures, leaves=(30, 200))
    aspect = query_size[0] / query_size[1]
    queries = np.empty((n, *query_size, 3), np.uint8)
    photos = np.empty((n, *photo_size, 3), np.uint8)
    boxes = np.empty((n, candidates, 4), np.float32)
    overlaps = np.empty((n, candidates), np.float32)
    for i, scene in enumerate(scenes):
        tall = side * rng.uniform(0.4, 0.9) * min(1, aspect)
        wide = tall / aspect
        top, left = rng.uniform(0, side - tall), rng.uniform(0, side - wide)
        outline = _corners(top, left, top + tall, left + wide)

        by_hand = outline + rng.normal(0, 0.03, (4, 2)) * [wide, tall]
        frame = _corners(0, 0, *query_size)
        seen, _ = sample(scene, homography(frame, by_hand), query_size)
        queries[i] = photograph(rng, seen, strength=0.5 * strength, gray=gray)

        share = float(np.exp(rng.uniform(np.log(0.3), np.log(1.2))))
        quad = _quad(rng, photo_size, aspect, share)
        cut = rng.random() < 0.5
        if cut:
            t, le, b, r = int(top), int(left), int(np.ceil(top + tall)), int(np.ceil(left + wide))
            thing = np.ascontiguousarray(scene[t:b, le:r])
            matrix = homography(quad, outline - [le, t])
        else:
            thing, matrix = scene, homography(quad, outline)
        image, alpha = sample(thing, matrix, photo_size)
        if alpha.min() < 1:
            other = scenes[(i + int(rng.integers(1, relatives + 1))) % n]
            y = int(rng.integers(0, side - photo_size[0] + 1))
            x = int(rng.integers(0, side - photo_size[1] + 1))
            behind = other[y : y + photo_size[0], x : x + photo_size[1]]
            image = behind + alpha[..., None] * (image - behind)
        if rng.random() < 0.4:
            hide_parts(rng, image, scenes[(i + 1) % n])
        photos[i] = photograph(rng, image, strength=strength, gray=gray)

        (x0, y0), (x1, y1) = quad.min(0), quad.max(0)
        low, high = np.zeros(2), np.array(photo_size, np.float64)
        box = np.concatenate([np.clip([y0, x0], low, high), np.clip([y1, x1], low, high)])
        boxes[i] = _candidates(rng, box, photo_size, candidates)
        overlaps[i] = box_iou(boxes[i], boxes[i, :1])
    return SearchBatch(queries, photos, boxes, overlaps)
