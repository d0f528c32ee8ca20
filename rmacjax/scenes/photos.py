"""A collection of photos to search in: things in places, with the truth about where they are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rmacjax import preprocessing
from rmacjax.scenes.camera import photograph
from rmacjax.scenes.mishaps import spoil
from rmacjax.scenes.painting import disc, fill, mask_box, mix, place, rectangle, surface
from rmacjax.scenes.places import render_place
from rmacjax.scenes.things import render_object

Box = tuple[int, int, int, int]


class SceneCollection(NamedTuple):
    """Generated photos of things in places, and where the things are.

    Attributes:
        images: n photos, (H, W, 3) uint8.
        names: n file names.
        boxes: n boxes (top, left, bottom, right) in pixels of the photo's object, hidden parts
            included; None where there is none.
        labels: n object numbers, -1 where the photo shows none of the objects.
        queries: (number of a photo, box in pixels) of each object's query, in the objects' order.
    """

    images: list[np.ndarray]
    names: list[str]
    boxes: list[Box | None]
    labels: list[int]
    queries: list[tuple[int, Box]]


def _quad(
    rng: np.random.Generator, size: tuple[int, int], aspect: float, share: float, slant: float
) -> Float[np.ndarray, "4 2"]:
    """Corners (y, x) of a panel in a photo, `share` of it high, turned by about `slant` radians."""
    height, width = size
    tall, wide = share * height, share * height / aspect
    if wide > 0.9 * width:
        tall, wide = tall * 0.9 * width / wide, 0.9 * width
    corners = np.array([(-0.5, -0.5, 0), (-0.5, 0.5, 0), (0.5, 0.5, 0), (0.5, -0.5, 0)])
    corners *= [tall, wide, 1]
    angles = np.clip(rng.normal(0, [slant, 0.5 * slant, 0.35 * slant]), -0.9, 0.9)
    (c, d, e), (s, t, u) = np.cos(angles), np.sin(angles)
    turn = np.array([[e, -u, 0], [u, e, 0], [0, 0, 1]])
    turn = turn @ np.array([[d, 0, -t], [0, 1, 0], [t, 0, d]])
    turn = turn @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    turned = corners @ turn.T
    distance = 2.2 * max(tall, wide)
    flat = turned[:, :2] * (distance / (distance + turned[:, 2:]))
    middle = np.array([height, width]) / 2
    room = np.maximum(middle - np.abs(flat).max(0) - 4, 0)
    return flat + middle + rng.uniform(-1, 1, 2) * room


def _photo(
    rng: np.random.Generator,
    size: tuple[int, int],
    front: np.ndarray | None,
    *,
    share: float,
    slant: float,
    clutter: int,
    strength: float,
    beside: Sequence[np.ndarray] = (),
    mishaps: float = 0.0,
) -> tuple[np.ndarray, Box | None]:
    """Photograph a thing, or none, in a place among others; the thing's box comes with it."""
    image = render_place(rng, size)
    box = None
    for other in beside:  # the thing itself stands before them
        quad = _quad(rng, size, other.shape[0] / other.shape[1], rng.uniform(0.15, 0.45), slant)
        image, _ = place(image, other, quad)
    if front is not None:
        quad = _quad(rng, size, front.shape[0] / front.shape[1], share, slant)
        shift = np.array([rng.uniform(3, 10), rng.uniform(-10, 10)]) * share
        shadow = preprocessing.gaussian_blur(
            preprocessing.polygon_mask(size, quad + shift), 2 + 6 * share
        )
        image = mix(image, np.zeros(3), (shadow * np.float32(0.5)).astype(np.uint8))
        image, alpha = place(image, front, quad)
        box = mask_box(alpha)
    if box is not None:
        top, left, bottom, right = box
        for _ in range(clutter):  # something stands before a corner or an edge
            x = rng.choice([left, right]) + rng.normal(0, 0.06) * (right - left)
            h = rng.uniform(0.15, 0.5) * (bottom - top)
            w = rng.uniform(0.06, 0.16) * (right - left)
            y = bottom + rng.uniform(-0.05, 0.1) * (bottom - top)
            look = surface(rng, rng.uniform(20, 220, 3), strength=0.5)
            upright = rng.random() < 0.5
            fill(
                image,
                rectangle(y - h, x - w, y, x + w) if upright else disc(y - h / 2, x, h / 2),
                look,
            )
    seen = image.astype(np.float32)
    if mishaps:
        seen = spoil(rng, seen, mishaps)
    return photograph(rng, seen, strength=strength), box


def _front(seed: int, number: int, size: tuple[int, int]) -> np.ndarray:
    """Draw the front of an object: upright, square or lying."""
    rng = np.random.default_rng([seed, 1, number])
    height = max(8, int(size[0] * 1.04))
    return render_object(
        rng, (height, max(8, int(height / rng.choice([1.4, 1.33, 1.2, 1.0, 0.75]))))
    )


def render_collection(
    seed: int = 0,
    objects: int = 8,
    views: int = 5,
    distractors: int = 20,
    size: tuple[int, int] = (384, 512),
) -> SceneCollection:
    """Make photos of some things in many places, with the box of every thing.

    Each object is seen from near and far, from the side, in other light and partly hidden. The
    first view of each is a fair one and its query. Distractors show other things, or none.

    Args:
        seed: the same seed gives the same photos.
        objects: number of things to search for.
        views: photos of each.
        distractors: photos without any of them.
        size: (height, width) of a photo in pixels.

    Returns:
        `objects * views + distractors` photos with names, boxes, labels and queries.

    Raises:
        ValueError: a number is negative, objects have no view, or photos are below 64 pixels.
    """
    _check(objects, views, distractors, size)
    found = SceneCollection([], [], [], [], [])
    for i in range(objects):
        front = _front(seed, i, size)
        for j in range(views):
            rng = np.random.default_rng([seed, 2, i, j])
            fair = j == 0
            pixels, box = _photo(
                rng,
                size,
                front,
                share=0.72 if fair else float(np.exp(rng.uniform(np.log(0.3), np.log(0.85)))),
                slant=0.12 if fair else 0.45,
                clutter=0 if fair else int(rng.integers(0, 3)),
                strength=0.15 if fair else 0.45,
            )
            if fair and box is not None:
                found.queries.append((len(found.images), box))
            found.images.append(pixels)
            found.names.append(f"object{i:02d}_view{j}.jpg")
            found.boxes.append(box)
            found.labels.append(i)
    for j in range(distractors):
        rng = np.random.default_rng([seed, 3, j])
        other = _front(seed, 1_000_000 + j, size) if rng.random() < 0.6 else None
        share, clutter = float(rng.uniform(0.3, 0.8)), int(rng.integers(0, 3))
        pixels, _ = _photo(rng, size, other, share=share, slant=0.4, clutter=clutter, strength=0.4)
        found.images.append(pixels)
        found.names.append(f"other{j:02d}.jpg")
        found.boxes.append(None)
        found.labels.append(-1)
    return found


def search_set(
    seed: int = 0,
    objects: int = 24,
    views: int = 4,
    distractors: int = 60,
    size: tuple[int, int] = (384, 512),
) -> SceneCollection:
    """Make a small benchmark: things that are hard to find, with exact boxes.

    Each object's first view is a fair one and its query. In the others it fills a tenth to all of
    the photo's height, stands aslant among up to three other things, is partly hidden, and the
    photos are taken in a hurry. Every second distractor shows other things, as the same kind of
    photo does.

    Args:
        seed: the same seed gives the same photos.
        objects: number of things to search for.
        views: photos of each.
        distractors: photos without any of them.
        size: (height, width) of a photo in pixels.

    Returns:
        `objects * views + distractors` photos with names, boxes, labels and queries.

    Raises:
        ValueError: a number is negative, objects have no view, or photos are below 64 pixels.
    """
    _check(objects, views, distractors, size)
    found = SceneCollection([], [], [], [], [])
    for i in range(objects):
        front = _front(seed, i, size)
        for j in range(views):
            rng = np.random.default_rng([seed, 4, i, j])
            if j == 0:
                pixels, box = _photo(
                    rng, size, front, share=0.72, slant=0.12, clutter=0, strength=0.15
                )
                if box is not None:
                    found.queries.append((len(found.images), box))
            else:
                pixels, box = _hard(rng, seed, size, front)
            found.images.append(pixels)
            found.names.append(f"object{i:03d}_view{j}.jpg")
            found.boxes.append(box)
            found.labels.append(i)
    for j in range(distractors):
        rng = np.random.default_rng([seed, 5, j])
        other = _front(seed, 2_000_000 + j, size) if j % 2 else None
        found.images.append(_hard(rng, seed, size, other)[0])
        found.names.append(f"other{j:03d}.jpg")
        found.boxes.append(None)
        found.labels.append(-1)
    return found


def _hard(
    rng: np.random.Generator, seed: int, size: tuple[int, int], front: np.ndarray | None
) -> tuple[np.ndarray, Box | None]:
    """A careless photo of a thing, or none, among others, at any scale."""
    count = int(rng.integers(0, 4))
    small = (size[0] // 2, size[1] // 2)
    numbers = rng.integers(3_000_000, 4_000_000, count).tolist()
    return _photo(
        rng,
        size,
        front,
        share=float(np.exp(rng.uniform(np.log(0.1), np.log(1.0)))),
        slant=0.5,
        clutter=int(rng.integers(0, 3)),
        strength=0.6,
        beside=[_front(seed, number, small) for number in numbers],
        mishaps=0.5,
    )


def _check(objects: int, views: int, distractors: int, size: tuple[int, int]) -> None:
    if objects < 0 or distractors < 0 or (objects and views < 1):
        raise ValueError(
            "expected objects >= 0, views >= 1 and distractors >= 0, got "
            f"{objects}, {views} and {distractors}"
        )
    if min(size) < 64:
        raise ValueError(f"photos need at least 64 pixels along each side, but size is {size}")
