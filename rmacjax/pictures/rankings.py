"""What is shown: a query, its ranked photos, and how they are put into words."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from rmacjax import preprocessing
from rmacjax.regions import box_iou

Box = tuple[int, int, int, int]

POOL_WORDS = {
    "rmac": "R-MAC",
    "mac": "MAC",
    "spoc": "SPoC",
    "spoc_centre": "SPoC with its centre prior",
    "gem": "GeM",
    "crow": "CroW",
    "rgem": "regional GeM",
}
"""What people call the pools."""


class Picture(NamedTuple):
    """One photo to show.

    Attributes:
        image: the file's path, or its pixels, (H, W, 3) uint8 RGB.
        height_px: height of the photo that the boxes refer to, after EXIF orientation.
        width_px: its width.
        boxes_px: boxes to outline, (top, left, bottom, right) in pixels of the photo, best first.
        score: how alike, or None for no score.
        truth_px: the true box where it is known, drawn dashed.
        correct: whether the photo shows the object, None where nobody knows.
        name: what to call it; the file's name where empty.
    """

    image: str | os.PathLike[str] | UInt8[np.ndarray, "H W 3"]
    height_px: int
    width_px: int
    boxes_px: tuple[Box, ...] = ()
    score: float | None = None
    truth_px: Box | None = None
    correct: bool | None = None
    name: str = ""


class Ranking(NamedTuple):
    """One query and what was found for it.

    Attributes:
        query: the query's photo; its first box is the object's outline.
        results: best first.
        timings: seconds per stage.
        verdict: a sentence to print beside the query, such as how many were found.
    """

    query: Picture
    results: Sequence[Picture]
    timings: Mapping[str, float] = {}
    verdict: str = ""


def ranking(
    result: Any,
    *,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    truths: Mapping[str, Sequence[int | float] | None] | None = None,
    ignored: Collection[str] = (),
    name: str = "",
    verdict: str = "",
) -> Ranking:
    """Make a `Ranking` of what `rmacjax.Collection.search` gave.

    Args:
        result: the search's result.
        image: the query's pixels, where the search was given an array instead of a file.
        truths: path -> true box, (top, left, bottom, right) in pixels, of each photo that shows the
            object (None where the box is not known); other photos are marked as wrong. None where
            nothing is known: no photo is marked.
        ignored: paths that count neither as right nor as wrong.
        name: what to call the query.
        verdict: a sentence to print beside the query.

    Raises:
        ValueError: an array was searched and its pixels are not given.
    """
    asked = result.query_path if image is None else image
    if asked is None:
        raise ValueError("the query was an array: pass it as image=, so that it can be shown")
    height, width = result.query_size_px
    outline = whole_pixels(result.query_box_px)
    boxes = () if outline == (0, 0, height, width) else (outline,)
    pictures = []
    for hit in result:
        truth = None if truths is None else truths.get(hit.path)
        pictures.append(
            Picture(
                hit.path,
                hit.height_px,
                hit.width_px,
                tuple(whole_pixels(box) for box in hit.boxes_px),
                float(hit.score),
                None if truth is None else whole_pixels(truth),
                None if truths is None or hit.path in ignored else hit.path in truths,
            )
        )
    query = Picture(asked, height, width, boxes, name=name)
    return Ranking(query, pictures, dict(result.timings), verdict)


def whole_pixels(box: Iterable[int | float]) -> Box:
    """A box with its sides rounded to whole pixels."""
    top, left, bottom, right = (round(float(side)) for side in box)
    return top, left, bottom, right


def overlap(picture: Picture) -> float | None:
    """Intersection over union of the best box and the true one, or None where one is missing."""
    if picture.truth_px is None or not picture.boxes_px:
        return None
    return float(box_iou(np.asarray([picture.boxes_px[0]]), np.asarray([picture.truth_px]))[0])


def load(picture: Picture, long_side: int) -> UInt8[np.ndarray, "H W 3"] | None:
    """The photo at a small size, or None where its file cannot be read any more."""
    if isinstance(picture.image, np.ndarray):
        return preprocessing.resize(picture.image, long_side)
    try:
        return preprocessing.load_image(picture.image, long_side).pixels
    except OSError:
        return None


def printable(name: object) -> str:
    r"""A name as it can be shown anywhere: what no screen can show is written out.

    >>> printable("café\n.jpg")
    'café\\n.jpg'
    """
    text = os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name_of(picture: Picture) -> str:
    """What to call a picture: its given name, or its file's."""
    if picture.name:
        return printable(picture.name)
    if isinstance(picture.image, np.ndarray):
        return "an image"
    return printable(os.path.basename(os.fspath(picture.image)))


def in_words(picture: Picture, what: str) -> str:
    """What a picture shows, in one line: for those who do not see it, and below its large view."""
    words = [f"{what}: {name_of(picture)}"]
    if picture.score is not None:
        words.append(f"score {picture.score:.3f}")
    if picture.boxes_px:
        boxes = " and ".join(box_for_people(box) for box in picture.boxes_px)
        words.append(f"box (left top right bottom) {boxes}")
    if picture.correct is not None:
        words.append("shows the object" if picture.correct else "does not show the object")
    shared = overlap(picture)
    if shared is not None:
        words.append(f"overlap with the true box {shared:.2f}")
    return ", ".join(words)


def box_for_people(box: Iterable[int | float]) -> str:
    """A box as people and image editors write it: left, top, right, bottom.

    >>> box_for_people((10, 20, 30, 40))
    '20 10 40 30'
    """
    top, left, bottom, right = whole_pixels(box)
    return f"{left} {top} {right} {bottom}"


def duration(seconds: int | float) -> str:
    """A time as people say it.

    >>> duration(0.0123), duration(3.21), duration(200)
    ('12 ms', '3.2 s', '3 min 20 s')
    """
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.00995 else f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def settings_in_words(
    collection: Any,
    *,
    rerank: int | Literal["all"] = 1000,
    expand: int = 5,
    fusion: float = 0.0,
    first_stage: Literal["descriptor", "regions", "diffusion"] = "descriptor",
    expand_alpha: float | None = None,
    augment: int = 0,
) -> dict[str, object]:
    """What a page says about how its results came about, as names and values.

    Args:
        collection: with `params`, `settings` and a length.
        rerank: how many photos were re-ranked, or "all".
        expand: how many boxes joined the query.
        fusion: share of the whole photo in the re-ranking score.
        first_stage: what all photos were ranked by first.
        expand_alpha: power of the cosine by which each box joined, or None for all alike.
        augment: how many neighbours joined each photo's descriptor.
    """
    depth = "every photo" if rerank == "all" else f"the best {rerank:,}" if rerank else "no"
    score = f"{1 - fusion:.0%} box, {fusion:.0%} whole photo" if fusion else "the box alone"
    first = {
        "descriptor": "whole photos",
        "regions": "regions, part by part",
        "diffusion": "whole photos, from neighbour to neighbour",
    }[first_stage]
    drawn = f", each with its nearest {augment:,}" if augment else ""
    weighed = "" if expand_alpha is None else f", by likeness to the power of {expand_alpha:g}"
    params, settings = collection.params, collection.settings
    pool = POOL_WORDS[settings.pool]
    if len(settings.scales) > 1:
        pool += f" at {len(settings.scales)} scales"
    whitened = params.whitening is not None and settings.whiten
    network = os.path.basename(params.network.name) or params.network.architecture
    return {
        "Photos searched": f"{len(collection):,}",
        "Network": network,
        "Descriptor": f"{pool}, {'whitened' if whitened else 'not whitened'}",
        "Long side": f"at most {settings.long_side} pixels",
        "First ranked": f"by {first}{drawn}",
        "Re-ranked": f"{depth}, by {score}" if rerank else depth,
        "Query expansion": f"by the best {expand:,} boxes{weighed}" if rerank and expand else "no",
    }
