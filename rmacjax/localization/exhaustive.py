"""Localization over all boxes: every rectangle of the map is pooled and scored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Num

from rmacjax.localization.boxes import Edges, Localization, overlapping, whole_map, within_ratio
from rmacjax.localization.grid import score_grid
from rmacjax.localization.growth import grow, intervals, strips
from rmacjax.localization.scoring import (
    MISSING,
    SCORE_RESOLUTION,
    Inputs,
    Pooling,
    as_float,
    check_at_least_one,
    check_inputs,
    check_overlap,
    clean,
    cosines,
    is_number,
    pooling,
    unit_query,
)


def localize(
    a1: Num[Array | np.ndarray, "h w c"],
    query: Num[Array | np.ndarray, "c"],
    ratio: Num[ArrayLike, ""] | None = None,
    max_ratio: Num[ArrayLike, ""] | None = None,
    *,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Localization:
    """The exact best of all boxes: the largest cosine of a box's maxima with the query.

    Of boxes with the same score the smallest wins, then the topmost, then the leftmost, then the
    widest; many boxes do share their maxima, and what the smallest leaves out showed nothing.

    Args:
        a1: activation map, floats or quantised levels. Negative, NaN and infinite activations count
            as 0.
        query: the query's pooled vector (its plain MAC), of any length; NaN counts as 0.
        ratio: height / width of the query's box in pixels. May be traced.
        max_ratio: only boxes with ``|log(ratio / (height / width))| <= log(max_ratio)`` count; None
            sets no limit, whatever the ratio. May be traced; a plain number is faster, because
            boxes beyond it are then not scored at all.
        size: valid (h, w) of a map that is padded at the bottom and the right; no box leaves it.
            May be traced.

    Returns:
        score () float32 and box (4,) int32; the whole map where no box is within the limit. Where
        the query or the map is zero the score is 0.

    Raises:
        ValueError: a query of another length than the map's channels, a map without cells, ratio
            not above 0, max_ratio below 1, or max_ratio without ratio.

    >>> map_ = np.zeros((9, 12, 2), np.float32)
    >>> map_[4, 5], map_[4, 6] = [1, 0], [0, 2]
    >>> found = localize(map_, np.asarray([1.0, 2.0]))
    >>> found.box.tolist(), round(float(found.score), 3)
    ([4, 5, 5, 7], 1.0)
    """
    found = localize_instances(a1, query, ratio, max_ratio, instances=1, size=size)
    return Localization(found.score[0], found.box[0])


def localize_instances(
    a1: Num[Array | np.ndarray, "h w c"],
    query: Num[Array | np.ndarray, "c"],
    ratio: Num[ArrayLike, ""] | None = None,
    max_ratio: Num[ArrayLike, ""] | None = None,
    *,
    instances: int = 3,
    overlap: int | float = 0.3,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Localization:
    """Find several instances of the query's object: the best of all boxes, again and again.

    The first is that of `localize`. Each further one is the best box that overlaps none of those
    found by more than `overlap` (intersection over union): greedy non-maximum suppression.

    Args:
        a1: activation map, floats or quantised levels.
        query: the query's pooled vector.
        ratio: as in `localize`, and so are `max_ratio` and `size`.
        max_ratio: largest factor between a box's and the query's ratio; None sets no limit.
        instances: number of boxes to find.
        overlap: largest intersection over union of any two of them.
        size: valid (h, w) of a padded map. May be traced.

    Returns:
        score (k,) float32 and box (k, 4) int32, best first, k = instances. Where there is no
        further box the score is -1 and the box (0, 0, 0, 0).

    Raises:
        ValueError: as `localize`, and instances below 1 or overlap outside 0..1.
    """
    inputs = check_inputs(a1, query, ratio, size)
    check_at_least_one({"instances": instances, "max_ratio": max_ratio})
    check_overlap(overlap)
    if max_ratio is None:
        inputs = inputs._replace(ratio=None)
    elif ratio is None:
        raise ValueError("max_ratio was given without a ratio; give the query's height / width.")
    if is_number(max_ratio):
        limit, most = float(max_ratio), None
    else:
        limit, most = None, None if max_ratio is None else as_float(max_ratio)
    return _localize(inputs, most, as_float(overlap), instances=int(instances), limit=limit)


@partial(jax.jit, static_argnames=("instances", "limit"))
def _localize(
    inputs: Inputs, max_ratio: Array | None, overlap: Array, *, instances: int, limit: float | None
) -> Localization:
    """With `limit`, a `max_ratio` known when compiling, boxes beyond it are not scored at all."""
    size, query = inputs.size, unit_query(inputs)
    pooled = pooling(clean(inputs.a1), inputs.size)
    if inputs.ratio is not None and limit is not None:
        grid = score_grid(pooled, query, inputs.ratio, size, shortest=1, step=1, max_ratio=limit)
        scores, boxes = grid.scores, Edges(*grid.boxes.T)
    else:
        scores, boxes = _all_boxes(pooled, query)
        allowed = (boxes.bottom <= size[0]) & (boxes.right <= size[1])
        if inputs.ratio is not None and max_ratio is not None:
            heights, widths = boxes.bottom - boxes.top, boxes.right - boxes.left
            shapes = heights.astype(jnp.float32) / widths.astype(jnp.float32)
            allowed &= within_ratio(shapes, inputs.ratio, max_ratio)
        scores = jnp.where(allowed, scores, MISSING)

    def find(scores: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.max(scores)
        tied = scores >= best - SCORE_RESOLUTION
        # Of the same area, top and left the one that ends highest up is the widest.
        for key in (boxes.area, boxes.top, boxes.left, boxes.bottom):
            tied &= key == jnp.min(jnp.where(tied, key, jnp.iinfo(jnp.int32).max))
        box = jnp.stack([jnp.max(jnp.where(tied, edge, 0)) for edge in boxes])
        exists = best > MISSING
        box = jnp.where(exists, box, jnp.where(number == 0, whole_map(size), 0))
        # Scored once more, so that it is the number that `aml` gives for this box.
        score = jnp.minimum(cosines(pooled.of_box(box)[None], query)[0], 1.0)
        scores = jnp.where(overlapping(boxes, Edges(*box), overlap), MISSING, scores)
        return scores, (jnp.where(exists | (number == 0), score, MISSING), box)

    _, (best, found) = jax.lax.scan(find, scores, jnp.arange(instances, dtype=jnp.int32))
    return Localization(best, found)


def _all_boxes(pooled: Pooling, query: Array) -> tuple[Array, Edges]:
    """Scores of all boxes: (row intervals, column intervals), and their edges.

    A band of rows grows downward from each top; of each band all column intervals grow at once. No
    more than one band's boxes exist at a time.
    """
    x = pooled.cells
    tops, rows = (edges.astype(np.int32) for edges in np.triu_indices(x.shape[0]))
    lefts, rights = intervals(x.shape[1])

    def score(above: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        starts, row = item
        band = jnp.where(starts, x[row], jnp.maximum(above, x[row]))
        boxes = jnp.concatenate(grow(*strips(band, 0, jnp.maximum), 0, jnp.maximum))
        return band, cosines(pooled.vectors(boxes), query)

    _, scores = jax.lax.scan(score, x[0], (jnp.asarray(tops == rows), jnp.asarray(rows)))
    edges = (tops[:, None], lefts[None, :], rows[:, None] + 1, rights[None, :])
    return scores, Edges(*(jnp.asarray(edge, jnp.int32) for edge in edges))
