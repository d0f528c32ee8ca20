"""How far a mean over queries can be trusted: percentile intervals by resampling the queries.

A set of queries is a sample of those that could have been asked. Drawing as many again from it,
with replacement, many times over, shows how much the mean depends on which ones were asked. Two
searches are compared on the same queries, so it is the difference of each query that is resampled:
what makes a query easy for both cancels out.

References:
    Efron and Tibshirani 1993, "An introduction to the bootstrap", chapters 13 and 16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

__all__ = ["Interval", "bootstrap_interval", "paired_difference"]

DRAWN_AT_ONCE = 1 << 20
"""Random indices that are held in memory at a time."""

Scores = Real[np.ndarray, "q"] | Sequence[float]


class Interval(NamedTuple):
    """A mean over queries, and where it may lie with others of their kind.

    Attributes:
        mean: over the queries that have a score; nan where there is none.
        low: lower end of the interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero: for a difference, "it is real"."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    per_query: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Say between which values the mean lies, had other queries of the same kind been asked.

    The ends are the percentiles ``(1 - level) / 2`` and ``(1 + level) / 2`` of the means of
    resampled queries. With few queries such intervals are rather too narrow: below some ten
    queries take them as a hint.

    Args:
        per_query: (q,) a score of each query; nan stands for a query without a score, such as one
            without positives, and is left out.
        level: share of resampled means inside, between 0 and 1.
        resamples: how many times the queries are drawn.
        seed: of the drawing; the same seed gives the same interval.

    Returns:
        The mean and the two ends; all nan without a score.

    Raises:
        ValueError: a level outside 0..1, no resamples, or scores that are no list of numbers.

    >>> bootstrap_interval([0.5, 0.5, float("nan")])
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95, not {level}.")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, but the queries are drawn at least once.")
    scores = _scores(per_query)
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, DRAWN_AT_ONCE // scores.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, scores.size, (count, scores.size))
        means[start : start + count] = scores[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


def paired_difference(
    a: Scores, b: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Say by how much a beats b on the same queries, and how sure that is.

    Args:
        a: (q,) one search's score of each query; nan for a query without a score.
        b: (q,) the other's, of the same queries in the same order.
        level: as for `bootstrap_interval`.
        resamples: as for `bootstrap_interval`.
        seed: as for `bootstrap_interval`.

    Returns:
        The mean of ``a - b`` and its interval. A difference is real at this level where
        `Interval.excludes_zero`; of twenty comparisons of equals, one seems so by chance at 0.95.

    Raises:
        ValueError: as for `bootstrap_interval`, other numbers of queries, or a query that has a
            score in one of them only.

    >>> paired_difference([0.9, 0.8], [0.4, 0.3]).excludes_zero
    True
    """
    first, second = _scores(a), _scores(b)
    if first.shape != second.shape:
        raise ValueError(
            f"There are {first.size} scores on one side and {second.size} on the other; compare "
            "scores of the same queries in the same order."
        )
    alone = np.flatnonzero(np.isnan(first) != np.isnan(second))
    if alone.size:
        raise ValueError(
            f"Query {int(alone[0])} has a score on one side only; compare scores of the same "
            "queries in the same order."
        )
    return bootstrap_interval(first - second, level=level, resamples=resamples, seed=seed)


def _scores(given: object) -> np.ndarray:
    scores = np.asarray(given, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"Scores are a list, one for each query, not of shape {scores.shape}.")
    return scores
