"""How good rankings and scores are, in NumPy and float64: no JAX is needed here.

| module | what it measures |
|---|---|
| `rankings` | average precision, classic and revisited, precision at k, first places, overlap |
| `presence` | how well a score tells what is there from what is not; where to draw the line |
| `intervals` | how far a mean over these queries can be trusted, and a difference of two |
"""

from rmacjax.evaluation.intervals import Interval, bootstrap_interval, paired_difference
from rmacjax.evaluation.presence import RocCurve, learn_thresholds, roc, threshold_at
from rmacjax.evaluation.rankings import (
    Difficulty,
    MeanAveragePrecision,
    Revisited,
    first_place,
    mean_average_precision,
    mean_overlap,
    mean_precision_at,
    revisited_protocol,
)

__all__ = [
    "Difficulty",
    "Interval",
    "MeanAveragePrecision",
    "Revisited",
    "RocCurve",
    "bootstrap_interval",
    "first_place",
    "learn_thresholds",
    "mean_average_precision",
    "mean_overlap",
    "mean_precision_at",
    "paired_difference",
    "revisited_protocol",
    "roc",
    "threshold_at",
]
