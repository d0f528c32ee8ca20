"""Scores that can say "not found": what is there against what is not, and where to draw the line.

A search always has a best photo. Whether it shows the object is a question to its score, and the
answer is learned from queries whose object is known to be in no photo: their best scores are what
chance reaches.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real

__all__ = ["RocCurve", "learn_thresholds", "roc", "threshold_at"]

Scores = Real[np.ndarray, "_"] | Sequence[float]


class RocCurve(NamedTuple):
    """Hits against false alarms, for every threshold that makes a difference.

    Attributes:
        thresholds: (k,) float64, decreasing: inf, then each different score.
        false_alarms: (k,) float64, share of the absent scores that are at least the threshold.
        hits: (k,) float64, share of the present scores that are at least the threshold.
        auc: the area under hits over false alarms: the chance that a present score is the larger of
            a pair, ties counted half.
    """

    thresholds: Float64[np.ndarray, "k"]
    false_alarms: Float64[np.ndarray, "k"]
    hits: Float64[np.ndarray, "k"]
    auc: float


def roc(present_scores: Scores, absent_scores: Scores) -> RocCurve:
    """Draw the curve of hits over false alarms; exact, ties included.

    Args:
        present_scores: the best score of each query whose object is there.
        absent_scores: the best score of each query whose object is not.

    Returns:
        The curve, from nothing accepted to everything, and its area.

    Raises:
        ValueError: no score on one of the sides, or a nan.

    References:
        Fawcett 2006, "An introduction to ROC analysis".

    >>> curve = roc([3, 2], [2, 1])
    >>> curve.thresholds.tolist(), curve.false_alarms.tolist(), curve.hits.tolist(), curve.auc
    ([inf, 3.0, 2.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0], 0.875)
    """
    present, absent = _sorted("present", present_scores), _sorted("absent", absent_scores)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([present, absent]))[::-1]])

    def share_from(scores: np.ndarray) -> np.ndarray:
        return (scores.size - np.searchsorted(scores, thresholds, side="left")) / scores.size

    # Twice the number of pairs won: whole numbers, so nothing is rounded before the division.
    below = np.searchsorted(absent, present, side="left")
    not_above = np.searchsorted(absent, present, side="right")
    won = int(below.sum()) + int(not_above.sum())
    area = won / (2 * present.size * absent.size)
    return RocCurve(thresholds, share_from(absent), share_from(present), area)


def threshold_at(absent_scores: Scores, *, false_alarm: float = 0.01) -> float:
    """Return the least threshold that keeps false alarms rare.

    Something is found where ``score >= threshold``. Of n queries without an answer at most
    ``m = floor(false_alarm * n)`` may then be found, so the threshold is the float64 next above the
    (m + 1)-th largest of their best scores: equal scores are all let in or all kept out. With fewer
    than ``1 / false_alarm`` queries m is 0 and the threshold lies just above the largest of them,
    which promises less than it seems: of n queries, none of which was a false alarm, the true rate
    may still be ``1 - 0.05^(1/n)``, some ``3 / n``, once in twenty times.

    Args:
        absent_scores: the best score of each query whose object is in no photo.
        false_alarm: the share of them that may be found, 0..1.

    Returns:
        The threshold; -inf where all of them may be found.

    Raises:
        ValueError: no scores, a nan, or a share outside 0..1.

    >>> threshold_at([0.1, 0.2, 0.3, 0.4], false_alarm=0.25)
    0.30000000000000004
    """
    if not 0 <= false_alarm <= 1:
        raise ValueError(f"false_alarm is a share and lies in 0..1, not {false_alarm}.")
    scores = _sorted("absent", absent_scores)
    # 0.29 * 100 is a little less than 29; what a share times a count means is a whole number.
    allowed = math.floor(round(false_alarm * scores.size, 9))
    if allowed >= scores.size:
        return -math.inf
    return float(np.nextafter(scores[scores.size - 1 - allowed], np.inf))


def learn_thresholds(
    absent_scores: Mapping[str, Scores], *, false_alarm: float = 0.01
) -> tuple[tuple[str, float], ...]:
    """Learn one threshold for each kind of score, in the form in which a network carries them.

    Args:
        absent_scores: for each kind of score (see `rmacjax.results.score_kind`) the best score of
            each query whose object is in no photo.
        false_alarm: as for `threshold_at`.

    Returns:
        Pairs of a kind and its threshold, in the order given.

    Raises:
        ValueError: as for `threshold_at`, naming the kind.

    >>> learn_thresholds({"filter": [0.25, 0.5]}, false_alarm=1)
    (('filter', -inf),)
    """
    learned = []
    for kind, scores in absent_scores.items():
        try:
            learned.append((kind, threshold_at(scores, false_alarm=false_alarm)))
        except ValueError as error:
            raise ValueError(f"The threshold of {kind!r} cannot be learned: {error}") from error
    return tuple(learned)


def _sorted(side: str, given: object) -> np.ndarray:
    scores = np.asarray(given, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(
            f"The {side} scores are a list of at least one number, not of shape {scores.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"The {side} scores hold a nan; leave out queries without a score.")
    return np.sort(scores)
