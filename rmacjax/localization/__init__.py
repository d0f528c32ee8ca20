"""Localization: where on an activation map the query's object is, and how alike the two are.

The score of a box is the cosine of its pooled vector with the query's. `aml` looks for the best box
as published: a coarse grid of candidates, then a greedy refinement of the best one. `localize`
finds the best of all boxes there are: it scores every one, or all but those that bounds rule
out. Both pool thousands of boxes by *growing* them: a box's maximum, or its sum of powers, is that
of a smaller box combined with one more strip. Nothing is ever subtracted, so sums of tenth powers
lose no digits, and maxima are exact in the map's own type.

All functions take one map and one query, and are compiled once for each shape and choice of
options, whatever the query's ratio: ``jax.vmap(aml, in_axes=(0, None, None))(maps, query, ratio)``.

Scores are float32, so two boxes with the same vector may differ by a rounding. Everywhere here,
scores that differ by less than `rmacjax.localization.scoring.SCORE_RESOLUTION` are the same score.

References:
    Tolias, Sicre and Jégou, ICLR 2016, section 4.2 (approximate max-pooling localization).
"""

from rmacjax.localization.approximate import aml, aml_batch, aml_instances
from rmacjax.localization.boxes import Localization
from rmacjax.localization.exhaustive import localize, localize_instances

__all__ = ["Localization", "aml", "aml_batch", "aml_instances", "localize", "localize_instances"]
