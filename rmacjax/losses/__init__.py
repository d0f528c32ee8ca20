"""Losses: what training makes small, as functions of unit descriptors and of who belongs to whom.

``loss(descriptors, positives, negatives)`` takes (n, d) unit rows and two (n, n) masks: for each
row, which others show the same object and which another. `pair_masks` makes them of labels. Nothing
here knows where descriptors come from: the gradient of a loss goes on through whatever made them.

`contrastive`, `triplet` and `multi_similarity` look at pairs and triplets, `info_nce` and
`smooth_ap` at whole rankings. `box_cosines` and `placed` put localization into the loss: the first
compares a query with the box that is found for it on each map, the second with boxes whose overlap
with the object is known.

All are pure, for jit, vmap and grad; float32, or float64 where the descriptors are. Rows in no
mask take no part, whatever they hold. Without positives, and at zero rows and ties, value and
gradient are finite.
"""

from rmacjax.losses.boxes import box_cosines, latent_boxes, localized, placed
from rmacjax.losses.margins import contrastive, multi_similarity, triplet
from rmacjax.losses.pairs import pair_masks
from rmacjax.losses.rankings import info_nce, smooth_ap

__all__ = [
    "box_cosines",
    "contrastive",
    "info_nce",
    "latent_boxes",
    "localized",
    "multi_similarity",
    "pair_masks",
    "placed",
    "smooth_ap",
    "triplet",
]
