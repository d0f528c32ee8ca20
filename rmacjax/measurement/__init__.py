"""Measurement: every query of a ground truth is searched for, and every stage is scored.

`measure` takes a collection, a ground truth and the ways of searching that are to be compared, and
gives one row of scores per stage, with intervals from resampling the queries. `trust` asks the
other question too: each object is looked for once where it is and once where it is not, which
tells how far a score by itself can be believed.

References: Tolias et al., ICLR 2016, section 6 (the rows); Radenović et al. 2018 (the revisited
protocol).
"""

from rmacjax.measurement.presences import MISSED, Trust, trust
from rmacjax.measurement.searches import ROWS, STAGES, Progress, Way
from rmacjax.measurement.tables import KS, Measured, Row, Score, measure

__all__ = [
    "KS",
    "MISSED",
    "ROWS",
    "STAGES",
    "Measured",
    "Progress",
    "Row",
    "Score",
    "Trust",
    "Way",
    "measure",
    "trust",
]
