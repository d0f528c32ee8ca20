"""Measurement: every query of a ground truth is searched for, and every stage is scored.

`measure` takes a collection, a ground truth and the ways of searching that are to be compared, and
gives one row of scores per stage, with intervals from resampling the queries. `trust` asks the
other question too: each object is looked for once where it is and once where it is not, which
tells how far a score by itself can be believed.

References: Tolias et al., ICLR 2016, section 6 (the rows); Radenović et al. 2018 (the revisited
protocol).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int

from rmacjax.collection import Collection
from rmacjax.datasets import GroundTruth, Query
from rmacjax.descriptors import Settings
from rmacjax.diffusion import NeighbourGraph, neighbour_graph
from rmacjax.evaluation import (
    RocCurve,
    bootstrap_interval,
    mean_average_precision,
    mean_precision_at,
    roc,
    threshold_at,
)
from rmacjax.galleries import StoredGallery
from rmacjax.regions import box_iou
from rmacjax.results import score_kind
from rmacjax.retrieval import (
    Depth,
    FirstStage,
    Gallery,
    Levels,
    Retrieved,
    Stage,
    boxes_in_pixels,
    describe_query,
    retrieve,
)
from rmacjax.retrieval import Query as Described
from rmacjax.search import pad_rows

__all__ = ["STAGES", "Row", "Score", "Trust", "Way", "measure", "trust"]

STAGES = ("filter", "rerank", "expand")
"""The stages of a search, by the names that thresholds are stored under."""

ROWS = ("filter", "+ AML", "+ AML + QE")
"""The paper's names for them: the filter alone, re-ranked by boxes, and with query expansion."""

MISSED = -1.0
"""The score of an object that a stage never came to; no cosine is less."""

KS = (1, 5, 10)
"""Where the revisited protocol measures precision."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Way:
    """A way of searching, and what its stages are called in the table.

    Attributes:
        rows: a name for each of the three `STAGES`; None where a stage is not reported.
        rerank: how many of the best photos are re-ranked; 0 for none, "all" for every one.
        expand: how many of the best boxes join the query; 0 for none.
        expand_alpha: exponent of alpha query expansion; None averages, as published.
        fusion: share of the whole photo's descriptor in what is re-ranked.
        first_stage: what the filter ranks by.
        augment: how many of its nearest photos join each photo's descriptor.
    """

    rows: tuple[str | None, str | None, str | None] = ROWS
    rerank: Depth = 1000
    expand: int = 5
    expand_alpha: float | None = None
    fusion: float = 0.0
    first_stage: FirstStage = "descriptor"
    augment: int = 0

    def __post_init__(self) -> None:
        depth = 0 if self.rerank == "all" else self.rerank
        for name, value in (("rerank", depth), ("expand", self.expand), ("augment", self.augment)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= self.fusion <= 1:
            raise ValueError(f"fusion is a share and lies in 0..1, not {self.fusion}")

    def kinds(self, settings: Settings) -> tuple[str, str, str]:
        """What thresholds for the scores of each of the `STAGES` are stored under."""
        kind = partial(score_kind, settings=settings, augment=self.augment)
        return (
            kind(rerank=0, first_stage=self.first_stage),
            kind(expand=0, fusion=self.fusion),
            kind(expand=self.expand, fusion=self.fusion, expand_alpha=self.expand_alpha),
        )


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
        overlap: mean intersection over union of the boxes with the true ones; nan without any.
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


class Trust(NamedTuple):
    """How well one stage's scores tell objects that are there from those that are not.

    Attributes:
        stage: one of `STAGES`.
        kind: what a threshold for such scores is stored under, see `rmacjax.results.score_kind`.
        present: (p,) for each query, the best score of a photo that shows its object; `MISSED`
            where the stage never came to one.
        absent: (a,) for each query, the best score in the collection without those photos.
        curve: hits over false alarms; None where no query has an answer.
        threshold: the least score that counts as found, for the asked share of false alarms.
        hits: the share of present objects that score as much; nan where there are none.
    """

    stage: str
    kind: str
    present: Float64[np.ndarray, "p"]
    absent: Float64[np.ndarray, "a"]
    curve: RocCurve | None
    threshold: float
    hits: float


def measure(
    collection: Collection,
    truth: GroundTruth,
    ways: Sequence[Way] = (Way(),),
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
    numbers = _numbers(gallery.snapshot.paths, truth)
    orders: dict[str, list[np.ndarray]] = {}
    overlaps: dict[str, list[float]] = {}
    seconds: list[dict[str, float]] = []
    unusable: dict[int, str] = {}
    for done, query in enumerate(truth.queries):
        described = _described(collection, query, whole_queries)
        if isinstance(described, str):
            unusable[done] = described
            continue
        for number, way in enumerate(ways):
            searched = gallery.augmented(way.augment)
            found = _retrieve(collection, described, searched, way, len(numbers))
            shares = _overlaps(found, gallery, numbers, query)
            for stage, name, order in zip(STAGES, way.rows, _stages(found, way), strict=True):
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


def trust(
    collection: Collection,
    truth: GroundTruth,
    way: Way = Way(),
    *,
    allowed: float = 0.01,
    whole_queries: bool = False,
    progress: Progress | None = None,
) -> list[Trust]:
    """Look for every object where it is and where it is not, and compare the best scores.

    Junk and the query's own photo are left out of both collections, the photos that show the object
    out of the second. Nothing is learned from the absent but how high scores get by chance.
    A query whose photo cannot be described misses what is there, and says nothing of what is not.

    Args:
        collection: holds the ground truth's images.
        truth: from `rmacjax.datasets`.
        way: how to search.
        allowed: share of absent objects that may be reported as found.
        whole_queries: whether the outlines are left out.
        progress: called with (done, total) after each query.

    Returns:
        One entry per stage that ran.

    Raises:
        ValueError: where nothing is left to search without the answers.
    """
    gallery = collection.gallery(augment=way.augment)
    numbers = _numbers(gallery.snapshot.paths, truth)
    position = {int(number): i for i, number in enumerate(numbers)}
    own = {os.path.abspath(path): number for number, path in enumerate(truth.paths)}
    present: dict[str, list[float]] = {}
    absent: dict[str, list[float]] = {}
    missed = 0
    for done, query in enumerate(truth.queries):
        described = _described(collection, query, whole_queries)
        mine = own.get(os.path.abspath(query.path))
        ignored = {int(i) for i in query.junk} | ({mine} if mine is not None else set())
        answers = {int(i) for i in query.positives} - ignored
        if isinstance(described, str):
            missed += bool(answers & position.keys())
            continue
        for hidden, best in ((ignored, present), (ignored | answers, absent)):
            rest = _Without(gallery, [position[i] for i in hidden if i in position])
            wanted = np.asarray([number in answers for number in numbers[rest.kept]], bool)
            if not len(rest.kept) or (best is present and not wanted.any()):
                continue
            found = _retrieve(collection, described, rest, way, len(rest.kept))
            for stage, order in zip(STAGES, _stages(found, way), strict=True):
                if order is None:
                    continue
                place = int(np.argmax(wanted[order.indices])) if best is present else 0
                # Further down, scores are the filter's: this stage never saw the photo.
                scored = stage == "filter" or place < len(found.boxes)
                score = float(order.scores[place]) if scored else MISSED
                best.setdefault(stage, []).append(score)
        if progress is not None:
            progress(done + 1, len(truth.queries))
    if not absent:
        raise ValueError(
            f"without their answers no photo of {truth.name} is left to search: scores of what is "
            "not there cannot be had"
        )
    for scores in present.values():
        scores += [MISSED] * missed
    kinds = zip(STAGES, way.kinds(collection.settings), strict=True)
    return [
        _trust(stage, kind, np.asarray(present.get(stage, [])), np.asarray(absent[stage]), allowed)
        for stage, kind in kinds
        if stage in absent
    ]


def _trust(stage: str, kind: str, present: np.ndarray, absent: np.ndarray, allowed: float) -> Trust:
    threshold = threshold_at(absent, false_alarm=allowed)
    if not len(present):
        return Trust(stage, kind, present, absent, None, threshold, float("nan"))
    hits = float(np.mean(present >= threshold))
    return Trust(stage, kind, present, absent, roc(present, absent), threshold, hits)


class _Without:
    """A gallery as if some of its images had never been added.

    Attributes:
        kept: (m,) positions, in the whole gallery, of the images that are left.
    """

    def __init__(self, gallery: Gallery, left_out: Iterable[int]) -> None:
        every = np.arange(len(gallery.map_sizes))
        self._gallery = gallery
        self.kept: Int[np.ndarray, " m"] = np.setdiff1d(every, np.asarray([*left_out], np.int64))
        self._descriptors = pad_rows(np.asarray(gallery.descriptors)[self.kept])

    @property
    def descriptors(self) -> Float[Array | np.ndarray, "n d"]:
        return self._descriptors

    @property
    def map_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self._gallery.map_sizes[self.kept]

    def read_levels(self, indices: Sequence[int]) -> Sequence[Levels]:
        return self._gallery.read_levels(self.kept[np.asarray(indices, np.int64)].tolist())

    def region_scores(self, regions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
        return self._gallery.region_scores(regions)[self.kept]

    def graph(self) -> NeighbourGraph:
        return neighbour_graph(np.asarray(self._descriptors[: len(self.kept)]))


def _described(collection: Collection, query: Query, whole: bool) -> Described | str:
    """A query's description, or the sentence that says why there is none."""
    box = None if whole else query.box_px
    try:
        return describe_query(collection.params, query.path, box, settings=collection.settings)
    except (OSError, ValueError) as error:
        return str(error)


def _retrieve(
    collection: Collection, query: Described, gallery: Gallery, way: Way, count: int
) -> Retrieved:
    params, settings = collection.params, collection.settings
    return retrieve(
        query,
        gallery,
        whitening=params.whitening if settings.whiten else None,
        settings=settings,
        keep=count,
        rerank=way.rerank,
        expand=way.expand,
        expand_alpha=way.expand_alpha,
        fusion=way.fusion,
        first_stage=way.first_stage,
    )


def _stages(found: Retrieved, way: Way) -> tuple[Stage, Stage | None, Stage | None]:
    """The orders of the three stages, None for those that did not run."""
    return found.filtered, found.reranked, found.ranking if way.rerank and way.expand else None


def _numbers(paths: Sequence[str], truth: GroundTruth) -> Int[np.ndarray, " n"]:
    """The ground truth's number of each photo of a collection; strangers get the next ones."""
    known = {os.path.abspath(path): number for number, path in enumerate(truth.paths)}
    return np.asarray([known.get(path, len(known) + i) for i, path in enumerate(paths)], np.int64)


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
    """How well the boxes lie on the true ones, for one query's photos whose true box is known."""
    if not found.boxes:
        return []
    position = {int(number): i for i, number in enumerate(numbers)}
    overlaps = []
    for number, true in query.boxes.items():
        index = position.get(number)
        if index is None or index not in found.boxes:
            continue
        size = gallery.snapshot.sizes_px[index].tolist()
        boxes = boxes_in_pixels(found, index, gallery.map_sizes[index].tolist(), size)
        if boxes:
            overlaps.append(float(box_iou(np.asarray([boxes[0]]), np.asarray([true]))[0]))
    return overlaps
