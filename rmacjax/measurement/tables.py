"""Tables: every stage of every way, scored over the queries."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from rmacjax.collection import Collection
from rmacjax.datasets import GroundTruth, Query
from rmacjax.evaluation import (
    bootstrap_interval,
    mean_average_precision,
    mean_precision_at,
)
from rmacjax.galleries import StoredGallery
from rmacjax.measurement.searches import (
    PUBLISHED,
    STAGES,
    Progress,
    Way,
    described_query,
    numbers_of,
    searched_in,
    stages_of,
)
from rmacjax.regions import box_iou
from rmacjax.retrieval import Query as Described
from rmacjax.retrieval import (
    Retrieved,
    boxes_in_pixels,
)

KS = (1, 5, 10)
"""Where the revisited protocol measures precision."""


class Score(NamedTuple):
    """A mean over queries, and where it may lie for other queries of their kind.

    Attributes:
        mean: over queries with a positive; nan where there is none.
        low: lower end of the 95 % interval.
        high: its upper end.
        per_query: (q,) float64; nan for queries without a positive.
    """

    mean: float
    low: float
    high: float
    per_query: Float64[np.ndarray, "q"]


class Row(NamedTuple):
    """The scores of one stage.

    Attributes:
        name: what it is called.
        scores: by name: "mAP" and "first place", or those of the revisited protocol, "mAP E" to
            "mP@10 H".
        overlap: mean intersection over union of the boxes with the true ones, in all photos but
            the query's own; nan without any.
        boxes: how many true boxes that was measured on.
    """

    name: str
    scores: dict[str, Score]
    overlap: float
    boxes: int


class Measured(NamedTuple):
    """All that a measurement says.

    Attributes:
        rows: the scores, way by way and stage by stage.
        seconds: median time per query of each stage of the first way.
        unusable: by number, why a query could not be described; it found nothing, in every row.
    """

    rows: list[Row]
    seconds: dict[str, float]
    unusable: dict[int, str]


def measure(
    collection: Collection,
    truth: GroundTruth,
    ways: Sequence[Way] = (PUBLISHED,),
    *,
    whole_queries: bool = False,
    progress: Progress | None = None,
    seen: Callable[[int, Described, Retrieved], None] | None = None,
) -> Measured:
    """Search for every query of a ground truth in every way, and score each stage.

    What cannot be read is never left out of a mean, which would be the better for it: a positive
    that the collection lacks counts as missed, and a query whose photo cannot be described as one
    that finds nothing.

    Args:
        collection: holds the ground truth's images; others count as wrong.
        truth: from `rmacjax.datasets`.
        ways: how to search; the first is the one that is timed and shown.
        whole_queries: whether the outlines are left out and whole photos searched for, which gives
            higher scores than published ones mean.
        progress: called with (done, total) after each query.
        seen: called with each query's number, its description and what the first way found.

    Raises:
        OSError: not one query can be described.
    """
    gallery = collection.gallery()
    numbers = numbers_of(gallery.snapshot.paths, truth)
    orders: dict[str, list[np.ndarray]] = {}
    overlaps: dict[str, list[float]] = {}
    seconds: list[dict[str, float]] = []
    unusable: dict[int, str] = {}
    for done, query in enumerate(truth.queries):
        described = described_query(collection, query, whole_queries)
        if isinstance(described, str):
            unusable[done] = described
            continue
        for number, way in enumerate(ways):
            searched = gallery.augmented(way.augment)
            found = searched_in(collection, described, searched, way, len(numbers))
            shares = _overlaps(found, gallery, numbers, query)
            for stage, name, order in zip(STAGES, way.rows, stages_of(found, way), strict=True):
                if name is not None and order is not None:
                    orders.setdefault(name, []).append(numbers[order.indices])
                    overlaps.setdefault(name, []).extend(shares if stage != "filter" else [])
            if number == 0:
                seconds.append(found.seconds)
                if seen is not None:
                    seen(done, described, found)
        if progress is not None:
            progress(done + 1, len(truth.queries))
    if truth.queries and len(unusable) == len(truth.queries):
        raise OSError(f"none of the queries of {truth.name} can be described: {unusable[0]}")
    # Numbers that are nobody's: a ranking in which nothing is found.
    nothing = len(truth.paths) + 2 * len(numbers) + np.arange(len(numbers))
    for columns in orders.values():
        for number in unusable:
            columns.insert(number, nothing)
    rows = [
        _row(name, np.stack(columns, axis=1), truth, overlaps.get(name, []))
        for name, columns in orders.items()
    ]
    keys = dict.fromkeys(key for each in seconds for key in each)
    typical = {key: float(np.median([each.get(key, 0.0) for each in seconds])) for key in keys}
    return Measured(rows, typical, unusable)


def _row(name: str, ranks: np.ndarray, truth: GroundTruth, overlaps: Sequence[float]) -> Row:
    scores = {
        column: Score(*bootstrap_interval(per_query), per_query)
        for column, per_query in _columns(ranks, truth)
    }
    overlap = sum(overlaps) / len(overlaps) if overlaps else float("nan")
    return Row(name, scores, overlap, len(overlaps))


def _columns(
    ranks: Int[np.ndarray, "n q"], truth: GroundTruth
) -> Iterator[tuple[str, Float64[np.ndarray, "q"]]]:
    """Each score of the ground truth's protocol, query by query."""
    positives = [query.positives for query in truth.queries]
    junk = [query.junk for query in truth.queries]
    if truth.protocol == "classic":
        yield "mAP", mean_average_precision(ranks, positives, junk).per_query
        yield "first place", _precisions(ranks, positives, junk, 1)
        return
    hard = [query.hard for query in truth.queries]
    easy = [np.setdiff1d(p, h) for p, h in zip(positives, hard, strict=True)]
    for letter, wanted, ignored in (
        ("E", easy, [np.r_[j, h] for j, h in zip(junk, hard, strict=True)]),
        ("M", positives, junk),
        ("H", hard, [np.r_[j, e] for j, e in zip(junk, easy, strict=True)]),
    ):
        yield f"mAP {letter}", mean_average_precision(ranks, wanted, ignored).per_query
        for k in KS:
            yield f"mP@{k} {letter}", _precisions(ranks, wanted, ignored, k)


def _precisions(
    ranks: np.ndarray, positives: Sequence[np.ndarray], junk: Sequence[np.ndarray], k: int
) -> Float64[np.ndarray, "q"]:
    each = [
        mean_precision_at(ranks[:, [i]], [positives[i]], [junk[i]], k)
        for i in range(ranks.shape[1])
    ]
    return np.asarray(each, np.float64)


def _overlaps(
    found: Retrieved, gallery: StoredGallery, numbers: Int[np.ndarray, " n"], query: Query
) -> list[float]:
    """How well the boxes lie on the true ones, for one query's photos whose true box is known.

    The query's own photo is left out: to find in it what was cut from it is no find.
    """
    if not found.boxes:
        return []
    position = {int(number): i for i, number in enumerate(numbers)}
    own = os.path.abspath(query.path)
    overlaps = []
    for number, true in query.boxes.items():
        index = position.get(number)
        if index is None or index not in found.boxes or gallery.snapshot.paths[index] == own:
            continue
        size = gallery.snapshot.sizes_px[index].tolist()
        boxes = boxes_in_pixels(found, index, gallery.map_sizes[index].tolist(), size)
        if boxes:
            overlaps.append(float(box_iou(np.asarray([boxes[0]]), np.asarray([true]))[0]))
    return overlaps
