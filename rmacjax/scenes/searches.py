"""Searches to learn from: an outlined thing, and a photo that shows it somewhere."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from rmacjax.regions import box_iou
from rmacjax.scenes.camera import homography, photograph, sample
from rmacjax.scenes.mishaps import spoil
from rmacjax.scenes.painting import place
from rmacjax.scenes.pairs import hide_parts, related_scenes
from rmacjax.scenes.places import render_place
from rmacjax.scenes.textures import texture_bank
from rmacjax.scenes.things import render_object


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
    rng: np.random.Generator,
    size: tuple[int, int],
    aspect: float,
    share: float,
    slant: float = 0.05,
) -> Float[np.ndarray, "4 2"]:
    """Where the corners (x, y) of a thing come to lie in a photo that it fills by `share`."""
    height, width = size
    aspect *= np.exp(rng.normal(0, 0.12))
    tall = share * min(height, width * aspect)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = (corners + rng.normal(0, slant, (4, 2))) * [tall / aspect, tall]
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


def _put_beside(
    rng: np.random.Generator,
    image: Float32[np.ndarray, "H W 3"],
    quad: Float[np.ndarray, "4 2"],
    others: list[UInt8[np.ndarray, "S S 3"]],
) -> None:
    """Put one to three parts of other scenes into a photo, in place, off the thing."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        other = others[int(rng.integers(len(others)))]
        share, aspect = float(rng.uniform(0.15, 0.4)), float(np.exp(rng.normal(0, 0.3)))
        corners = _quad(rng, (height, width), aspect, share, 0.08)
        # Of four places in the photo, what is farthest from the thing's middle.
        places = rng.uniform(0.05, 0.95, (4, 2)) * [width, height]
        away = np.square(places - quad.mean(0)).sum(-1)
        corners = corners - corners.mean(0) + places[np.argmax(away)]
        low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(corners.max(0)).astype(int), [width, height])
        shared = np.minimum(high, quad.max(0)) - np.maximum(low, quad.min(0))
        hidden = np.prod(np.maximum(shared, 0)) / np.prod(np.ptp(quad, axis=0))
        if (high - low < 4).any() or hidden > 0.2:
            continue
        side = other.shape[0]
        part = side * rng.uniform(0.25, 0.6)
        y, x = rng.uniform(0, side - part, 2)
        cut = other[int(y) : int(y + part), int(x) : int(x + part)]
        frame = _corners(0, 0, cut.shape[0], cut.shape[1])
        matrix = homography(corners - low, frame)
        wide, tall = (int(n) for n in high - low)
        seen, alpha = sample(np.ascontiguousarray(cut), matrix, (tall, wide))
        there = image[low[1] : high[1], low[0] : high[0]]
        there += alpha[..., None] * (seen - there)


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
    extreme: float = 0.0,
    several: float = 0.0,
    prints: float = 0.0,
    mishaps: float = 0.0,
) -> SearchBatch:
    """Make queries and photos that show, somewhere, what the queries outline.

    In half of the photos the thing is a part of its scene, as a facade is of its street, and the
    scene is seen around it; in the others it was cut out and lies before another scene. Scenes have
    relatives with the same colours and textures, as in `training_batch`. What stands behind, beside
    and before a thing comes from scenes of which no query shows a part: a photo shows one query's
    thing and no other's, so every query and any other's photo are true negatives. Two photos may
    have the same background.

    Args:
        rng: source of randomness.
        n: number of searches.
        query_size: (height, width) of the queries in pixels.
        photo_size: (height, width) of the photos in pixels.
        candidates: boxes per photo, at least 2.
        strength: of the camera's changes to the photos, see `photograph`; queries get half of it.
        gray: how often colours are lost.
        relatives: how many queries in a row share a palette and textures, with one background.
        textures: bank of textures; that of seed 0 when None.
        extreme: how often the thing is tiny or fills more than the photo, and is seen aslant.
        several: how often parts of other scenes stand beside the thing.
        prints: how often the thing is a poster, a painting or a package in a room or a street.
        mishaps: how much goes wrong when photos are taken, see `spoil`; queries get half of it.
    """
    textures = texture_bank() if textures is None else textures
    side = max(photo_size) * 3 // 2
    groups = -(-n // relatives)
    rendered = related_scenes(rng, n + groups, side, relatives + 1, textures, leaves=(30, 200))
    scenes = [rendered[i + i // relatives] for i in range(n)]
    ends = [min((group + 1) * (relatives + 1), len(rendered)) for group in range(groups)]
    backgrounds = [rendered[end - 1] for end in ends]
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
        if prints and rng.random() < prints:
            front = render_object(rng, (round(tall), round(wide)))
            scene, _ = place(render_place(rng, (side, side)), front, outline[:, ::-1])

        by_hand = outline + rng.normal(0, 0.03, (4, 2)) * [wide, tall]
        frame = _corners(0, 0, *query_size)
        seen, _ = sample(scene, homography(frame, by_hand), query_size)
        if mishaps:
            seen = spoil(rng, seen, 0.5 * mishaps)
        queries[i] = photograph(rng, seen, strength=0.5 * strength, gray=gray)

        share = float(np.exp(rng.uniform(np.log(0.3), np.log(1.2))))
        slant = 0.05
        if extreme and rng.random() < extreme:
            shares = ((0.12, 0.3), (1.2, 1.8))[int(rng.random() < 0.3)]
            share, slant = float(np.exp(rng.uniform(*np.log(shares)))), 0.1
        quad = _quad(rng, photo_size, aspect, share, slant)
        cut = rng.random() < 0.5
        if cut:
            t, le, b, r = int(top), int(left), int(np.ceil(top + tall)), int(np.ceil(left + wide))
            thing = np.ascontiguousarray(scene[t:b, le:r])
            matrix = homography(quad, outline - [le, t])
        else:
            thing, matrix = scene, homography(quad, outline)
        image, alpha = sample(thing, matrix, photo_size)
        if alpha.min() < 1:
            other = backgrounds[(i // relatives + int(rng.integers(2))) % groups]
            y = int(rng.integers(0, side - photo_size[0] + 1))
            x = int(rng.integers(0, side - photo_size[1] + 1))
            behind = other[y : y + photo_size[0], x : x + photo_size[1]]
            image = behind + alpha[..., None] * (image - behind)
        if several and rng.random() < several:
            _put_beside(rng, image, quad, backgrounds)
        if rng.random() < 0.4:
            hide_parts(rng, image, backgrounds[i // relatives])
        if mishaps:
            image = spoil(rng, image, mishaps)
        photos[i] = photograph(rng, image, strength=strength, gray=gray)

        (x0, y0), (x1, y1) = quad.min(0), quad.max(0)
        low, high = np.zeros(2), np.array(photo_size, np.float64)
        box = np.concatenate([np.clip([y0, x0], low, high), np.clip([y1, x1], low, high)])
        boxes[i] = _candidates(rng, box, photo_size, candidates)
        overlaps[i] = box_iou(boxes[i], boxes[i, :1])
    return SearchBatch(queries, photos, boxes, overlaps)
