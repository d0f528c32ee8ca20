"""Scores of rankings against a ground truth: average precision, precision at k, first places.

A ranking is a column of image indices, best first. For a query an image is positive, or junk (as if
it were not there: it is taken out of the ranking), or neither. Queries without a positive are
skipped. Everything here is NumPy, and float64.

References:
    Philbin et al. 2007 (Oxford5k: average precision by trapezoids); Radenović et al. 2018,
    "Revisiting Oxford and Paris" (easy, medium, hard, and precision at k).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Real

from rmacjax.regions import box_iou

__all__ = [
    "Difficulty",
    "MeanAveragePrecision",
    "Revisited",
    "first_place",
    "mean_average_precision",
    "mean_overlap",
    "mean_precision_at",
    "revisited_protocol",
]

Indices = Int[Any, "_"] | Sequence[int]


class MeanAveragePrecision(NamedTuple):
    """Average precision of each query and their mean.

    Attributes:
        map: the mean over queries with a positive, 0..1; nan where there is none.
        per_query: (q,) float64; nan for queries without a positive.
    """

    map: float
    per_query: Float64[np.ndarray, "q"]


class Difficulty(NamedTuple):
    """The scores of one difficulty of the revisited protocol.

    Attributes:
        map: the mean over queries with a positive, 0..1; nan where there is none.
        per_query: (q,) float64, average precision; nan for queries without a positive.
        precision_at: mean precision at each of the asked k, by k.
    """

    map: float
    per_query: Float64[np.ndarray, "q"]
    precision_at: dict[int, float]


class Revisited(NamedTuple):
    """The revisited protocol's three difficulties.

    Attributes:
        easy: easy images are positive; hard ones and junk are ignored.
        medium: easy and hard images are positive; junk is ignored.
        hard: hard images are positive; easy ones and junk are ignored.
    """

    easy: Difficulty
    medium: Difficulty
    hard: Difficulty


def mean_average_precision(
    ranks: Int[Any, "n q"], positives: Sequence[Indices], junk: Sequence[Indices]
) -> MeanAveragePrecision:
    """Score rankings by the area under precision over recall, by trapezoids.

    For a query's j-th found positive (from 0) at rank r (from 0, junk taken out) of n positives,
    add ``(p0 + p1) / 2 / n`` with ``p0 = 1 if r == 0 else j / r`` and ``p1 = (j + 1) / (r + 1)``. A
    positive that the ranking leaves out adds nothing. A query image that is in the collection is
    treated as its lists say; in Oxford5k and Paris6k it counts as a positive.

    Args:
        ranks: (n, q), column i the images' indices for query i, best first. May leave images out.
        positives: for each query the indices of its positives.
        junk: for each query the indices to ignore.

    Returns:
        The mean, and each query's average precision.

    Raises:
        ValueError: as many lists as queries are not given, a ranking names an image twice, an index
            is negative, or an image is both positive and junk.

    References:
        Tolias et al. 2016, section 5; Philbin et al. 2007.

    >>> import numpy as np
    >>> ranks = np.array([[0], [1], [2]])
    >>> float(round(mean_average_precision(ranks, [[0, 2]], [[]]).map, 4))
    0.7917
    """
    found = _positions(ranks, positives, junk)
    per_query = np.array([_average_precision(*each) for each in found], np.float64)
    return MeanAveragePrecision(_mean(per_query), per_query)


def mean_precision_at(
    ranks: Int[Any, "n q"], positives: Sequence[Indices], junk: Sequence[Indices], k: int
) -> float:
    """Score rankings by the share of positives among the first k' images, junk taken out.

    ``k' = min(rank of the last positive, k)``, ranks from 1: a query with 3 positives, all in
    front, has precision 1 at 10. Where the ranking leaves a positive out, ``k' = k``.

    Args:
        ranks: (n, q), column i the images' indices for query i, best first.
        positives: for each query the indices of its positives.
        junk: for each query the indices to ignore.
        k: at least 1.

    Returns:
        The mean over queries with a positive, 0..1; nan where there is none.

    Raises:
        ValueError: as for `mean_average_precision`, or k below 1.

    References:
        Radenović et al. 2018, "Revisiting Oxford and Paris", section 3.
    """
    if k < 1:
        raise ValueError(f"k is {k}, but a precision at k needs k of at least 1.")
    precisions = []
    for places, count in _positions(ranks, positives, junk):
        if count == 0:
            precisions.append(np.nan)
            continue
        reached = min(k, int(places[-1]) + 1) if len(places) == count else k
        precisions.append(float((places < reached).sum()) / reached)
    return _mean(np.array(precisions, np.float64))


def revisited_protocol(
    ranks: Int[Any, "n q"],
    easy: Sequence[Indices],
    hard: Sequence[Indices],
    junk: Sequence[Indices],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> Revisited:
    """Score rankings by the revisited Oxford and Paris protocol.

    Args:
        ranks: (n, q), column i the images' indices for query i, best first. The query images are
            not part of those collections.
        easy: for each query the indices of the easy positives.
        hard: for each query the indices of the hard positives.
        junk: for each query the indices to ignore.
        ks: where the precision is measured.

    Returns:
        Easy, medium and hard, each with its mAP and precisions.

    Raises:
        ValueError: as for `mean_average_precision`.

    References:
        Radenović et al. 2018, "Revisiting Oxford and Paris", section 3.
    """
    queries = np.shape(ranks)[1]
    for name, lists in (("easy", easy), ("hard", hard), ("junk", junk)):
        _check_count(name, lists, queries)
    both = [np.r_[_indices(e), _indices(h)] for e, h in zip(easy, hard, strict=True)]
    without_hard = [np.r_[_indices(h), _indices(j)] for h, j in zip(hard, junk, strict=True)]
    without_easy = [np.r_[_indices(e), _indices(j)] for e, j in zip(easy, junk, strict=True)]

    def score(positives: Sequence[Indices], ignored: Sequence[Indices]) -> Difficulty:
        result = mean_average_precision(ranks, positives, ignored)
        at = {k: mean_precision_at(ranks, positives, ignored, k) for k in ks}
        return Difficulty(result.map, result.per_query, at)

    return Revisited(score(easy, without_hard), score(both, junk), score(hard, without_easy))


def first_place(
    ranks: Int[Any, "n q"],
    positives: Sequence[Indices],
    *,
    junk: Sequence[Indices] | None = None,
) -> float:
    """Return the share of queries whose first image, junk taken out, is a positive.

    Args:
        ranks: (n, q), column i the images' indices for query i, best first.
        positives: for each query the indices of its positives.
        junk: for each query the indices to ignore; None: nothing.

    Returns:
        A share of the queries with a positive, 0..1; nan where there is none.

    Raises:
        ValueError: as for `mean_average_precision`.
    """
    ignored: Sequence[Indices] = [[]] * np.shape(ranks)[1] if junk is None else junk
    return mean_precision_at(ranks, positives, ignored, 1)


def mean_overlap(found: Real[Any, "n 4"], true: Real[Any, "n 4"]) -> float:
    """Return the mean intersection over union of found boxes and true ones, pair by pair.

    Args:
        found: (n, 4), top, left, bottom, right.
        true: (n, 4), in the same unit.

    Returns:
        0..1; nan without boxes.
    """
    if len(found) == 0:
        return float("nan")
    return float(np.mean(box_iou(np.asarray(found), np.asarray(true))))


def _average_precision(places: np.ndarray, count: int) -> float:
    if count == 0:
        return float("nan")
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float(((before + after) / 2).sum() / count)


def _mean(per_query: np.ndarray) -> float:
    scored = per_query[~np.isnan(per_query)]
    return float(scored.mean()) if scored.size else float("nan")


def _positions(
    ranks: Int[Any, "n q"], positives: Sequence[Indices], junk: Sequence[Indices]
) -> list[tuple[np.ndarray, int]]:
    """For each query the junk-free ranks (from 0) of the positives found, and how many exist."""
    order = np.asarray(ranks)
    if order.ndim != 2 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(
            f"ranks must be whole numbers of shape (images, queries), one column for each query, "
            f"but it has shape {order.shape} and dtype {order.dtype}."
        )
    _check_count("positives", positives, order.shape[1])
    _check_count("junk", junk, order.shape[1])
    if order.size and order.min() < 0:
        raise ValueError(
            f"ranks holds the index {int(order.min())}; images are numbered from 0, and those that "
            "were not found are left out."
        )
    return [
        _query_positions(order[:, query], positives[query], junk[query], query)
        for query in range(order.shape[1])
    ]


def _query_positions(
    column: np.ndarray, positives: Indices, junk: Indices, query: int
) -> tuple[np.ndarray, int]:
    values, counts = np.unique(column, return_counts=True)
    if counts.size and counts.max() > 1:
        raise ValueError(
            f"The ranking of query {query} names image {int(values[counts.argmax()])} twice; each "
            "image has one rank."
        )
    wanted, ignored = np.unique(_indices(positives)), np.unique(_indices(junk))
    for index in (wanted, ignored):
        if index.size and index[0] < 0:
            raise ValueError(
                f"The lists of query {query} hold the index {int(index[0])}; images are numbered "
                "from 0."
            )
    twice = np.intersect1d(wanted, ignored)
    if twice.size:
        raise ValueError(
            f"Image {int(twice[0])} is both positive and junk for query {query}; it can be only "
            "one of them."
        )
    kept = column[~np.isin(column, ignored)]
    return np.flatnonzero(np.isin(kept, wanted)), len(wanted)


def _indices(index: Indices) -> np.ndarray:
    array = np.asarray(index)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError("Positives and junk are lists of whole numbers, one list for each query.")
    return array.astype(np.int64)


def _check_count(name: str, lists: Sequence[Indices], queries: int) -> None:
    if len(lists) != queries:
        raise ValueError(
            f"{name} has {len(lists)} lists but ranks has {queries} columns; give one list for "
            "each query."
        )
