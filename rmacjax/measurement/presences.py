"""Presence: what scores say when the object is there, and when it is not."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from rmacjax.collection import Collection
from rmacjax.datasets import GroundTruth
from rmacjax.evaluation import (
    RocCurve,
    roc,
    threshold_at,
)
from rmacjax.measurement.searches import (
    PUBLISHED,
    STAGES,
    Progress,
    Way,
    Without,
    described_query,
    numbers_of,
    searched_in,
    stages_of,
)

MISSED = -1.0
"""The score of an object that a stage never came to; no cosine is less."""


class Trust(NamedTuple):
    """How well one stage's scores tell objects that are there from those that are not.

    Attributes:
        stage: one of `STAGES`.
        kind: what a threshold for such scores is stored under, see `rmacjax.results.score_kind`.
        present: (p,) for each query, the best score of a photo that shows its object; `MISSED`
            where the stage never came to one, or none could be read.
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


def trust(
    collection: Collection,
    truth: GroundTruth,
    way: Way = PUBLISHED,
    *,
    allowed: float = 0.01,
    whole_queries: bool = False,
    progress: Progress | None = None,
) -> list[Trust]:
    """Look for every object where it is and where it is not, and compare the best scores.

    Junk and the query's own photo are left out of both collections, the photos that show the object
    out of the second. Nothing is learned from the absent but how high scores get by chance.
    A query whose photo cannot be described misses what is there, and says nothing of what is not.
    An object that is there, but in no photo of the collection (none of them could be read), is
    missed too: what cannot be read betters no figure.

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
    numbers = numbers_of(gallery.snapshot.paths, truth)
    position = {int(number): i for i, number in enumerate(numbers)}
    own = {os.path.abspath(path): number for number, path in enumerate(truth.paths)}
    present: dict[str, list[float]] = {}
    absent: dict[str, list[float]] = {}
    missed = 0
    for done, query in enumerate(truth.queries):
        described = described_query(collection, query, whole_queries)
        mine = own.get(os.path.abspath(query.path))
        ignored = {int(i) for i in query.junk} | ({mine} if mine is not None else set())
        answers = {int(i) for i in query.positives} - ignored
        if isinstance(described, str):
            missed += bool(answers)
            continue
        for hidden, best in ((ignored, present), (ignored | answers, absent)):
            rest = Without(gallery, [position[i] for i in hidden if i in position])
            wanted = np.asarray([number in answers for number in numbers[rest.kept]], bool)
            if best is present and not wanted.any():
                missed += bool(answers)
                continue
            if not len(rest.kept):
                continue
            found = searched_in(collection, described, rest, way, len(rest.kept))
            for stage, order in zip(STAGES, stages_of(found, way), strict=True):
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
    trusted = []
    for stage, kind in zip(STAGES, way.kinds(collection.settings), strict=True):
        if stage in absent:
            there = np.asarray(present.get(stage, []) + [MISSED] * missed)
            trusted.append(_trust(stage, kind, there, np.asarray(absent[stage]), allowed))
    return trusted


def _trust(stage: str, kind: str, present: np.ndarray, absent: np.ndarray, allowed: float) -> Trust:
    threshold = threshold_at(absent, false_alarm=allowed)
    if not len(present):
        return Trust(stage, kind, present, absent, None, threshold, float("nan"))
    hits = float(np.mean(present >= threshold))
    return Trust(stage, kind, present, absent, roc(present, absent), threshold, hits)
