"""Localization over all boxes: every rectangle is pooled and scored, or ruled out by a bound."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Num

from rmacjax.localization.boxes import (
    RATIO_TOLERANCE,
    Edges,
    Localization,
    on_map,
    overlapping,
    whole_map,
    within_ratio,
)
from rmacjax.localization.grid import score_grid
from rmacjax.localization.groups import Spans
from rmacjax.localization.growth import grow, intervals, strips
from rmacjax.localization.refinement import line_by_line, refine
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
    valid,
)
from rmacjax.localization.sparing import LEAST, unspared

MANY_BOXES = 20_000
"""From so many boxes on a map, bounds save more than they cost."""


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

    In `jax.shard_map` give ``check_vma=False``; maps laid out over devices by a `NamedSharding`
    need nothing.

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
    if instances == 1 and pays(inputs.a1.shape):
        held = jax.tree.map(jax.lax.stop_gradient, (inputs._replace(query=query), max_ratio))
        box, exists = _in_turn(limit)(*held)
        box = jnp.where(exists, box, whole_map(size))
        score = jnp.minimum(cosines(pooled.of_box(box)[None], query)[0], 1.0)
        return Localization(score[None], box[None])
    scores, boxes = _scored(pooled, query, inputs, max_ratio, limit)

    def find(scores: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        box, exists = _first(scores, boxes)
        box = jnp.where(exists, box, jnp.where(number == 0, whole_map(size), 0))
        # Scored once more, so that it is the number that `aml` gives for this box.
        score = jnp.minimum(cosines(pooled.of_box(box)[None], query)[0], 1.0)
        scores = jnp.where(overlapping(boxes, Edges(*box), overlap), MISSING, scores)
        return scores, (jnp.where(exists | (number == 0), score, MISSING), box)

    _, (best, found) = jax.lax.scan(find, scores, jnp.arange(instances, dtype=jnp.int32))
    return Localization(best, found)


def _first(scores: Array, boxes: Edges) -> tuple[Array, Array]:
    """The best box, of equals the smallest, topmost, leftmost, widest; and whether there is one."""
    best = jnp.max(scores)
    tied = scores >= best - SCORE_RESOLUTION
    # Of the same area, top and left the one that ends highest up is the widest.
    for key in (boxes.area, boxes.top, boxes.left, boxes.bottom):
        tied &= key == jnp.min(jnp.where(tied, key, jnp.iinfo(jnp.int32).max))
    return jnp.stack([jnp.max(jnp.where(tied, edge, 0)) for edge in boxes]), best > MISSING


def _scored(
    pooled: Pooling, query: Array, inputs: Inputs, max_ratio: Array | None, limit: float | None
) -> tuple[Array, Edges]:
    """Scores of all boxes, -1 where one does not count, and their edges, in shapes that broadcast.

    With `limit`, most of those that do not count are not among them.
    """
    if inputs.ratio is not None and limit is not None:
        shape = inputs.ratio, inputs.size
        grid = score_grid(pooled, query, *shape, shortest=1, step=1, max_ratio=limit)
        return grid.scores, Edges(*grid.boxes.T)
    scores, boxes = _all_boxes(pooled, query)
    return jnp.where(_counts(boxes, inputs, max_ratio), scores, MISSING), boxes


def _counts(boxes: Edges, inputs: Inputs, max_ratio: Array | None) -> Array:
    """Which boxes of a map lie inside its valid size and have about the query's ratio."""
    counts = (boxes.bottom <= inputs.size[0]) & (boxes.right <= inputs.size[1])
    if inputs.ratio is None or max_ratio is None:
        return counts
    heights, widths = boxes.bottom - boxes.top, boxes.right - boxes.left
    shapes = heights.astype(jnp.float32) / widths.astype(jnp.float32)
    return counts & within_ratio(shapes, inputs.ratio, max_ratio)


def pays(shape: tuple[int, ...]) -> bool:
    """Whether to spare groups of boxes: on a CPU, which looks at what is left one by one."""
    h, w, _ = shape
    many = h * (h + 1) * w * (w + 1) // 4 >= MANY_BOXES
    return many and min(h, w) > 2 and jax.default_backend() == "cpu"


@cache
def _in_turn(limit: float | None) -> Callable[[Inputs, Array | None], tuple[Array, Array]]:
    """The search that spares boxes; mapped over maps it looks at them one after the other."""
    return jax.custom_batching.sequential_vmap(partial(best_box, limit=limit))


def best_box(
    inputs: Inputs, max_ratio: Array | None, *, limit: float | None
) -> tuple[Int[Array, "4"], Bool[Array, ""]]:
    """The best of all boxes, most of them spared, and whether any counts.

    The published grid and its refinement give a score to compare bounds with. Where it has no box
    that counts, or too few can be spared, all are scored.
    """
    query, size = inputs.query, inputs.size
    most = max_ratio
    if limit is not None:
        most = as_float(min(limit, float(np.finfo(np.float32).max)))
    pooled = pooling(clean(inputs.a1), size)
    pooled = pooled._replace(cells=valid(pooled.cells, size))
    counts = partial(_counts, inputs=inputs, max_ratio=most)
    ratio = inputs.ratio if limit is not None else None
    grid = score_grid(pooled, query, ratio, size, shortest=2, step=3, max_ratio=limit or 1.0)
    scores = jnp.where(counts(Edges(*grid.boxes.T)), grid.scores, MISSING)
    start = jnp.argmax(scores)

    def spare() -> tuple[Array, Array, Array]:
        def allow(boxes: Array) -> Array:
            return on_map(boxes, size) & counts(Edges(*boxes.T))

        joining = line_by_line(pooled.cells[None], 0, pooled.combine)
        begin = grid.boxes[start]
        reached, _ = refine(pooled, joining, query, allow, begin, steps=(2, 1), passes=5)
        possible = partial(_possible, inputs=inputs, max_ratio=most)
        left = unspared(pooled, query, reached, allow=counts, possible=possible)
        return *_first(left.scores, left.boxes), left.complete

    def give_up() -> tuple[Array, Array, Array]:
        return jnp.zeros(4, jnp.int32), jnp.asarray(False), jnp.asarray(False)

    box, exists, complete = jax.lax.cond(scores[start] >= LEAST, spare, give_up)
    return jax.lax.cond(
        complete,
        lambda: (box, exists),
        lambda: _first(*_scored(pooled, query, inputs, max_ratio, limit)),
    )


def _possible(rows: Spans, columns: Spans, *, inputs: Inputs, max_ratio: Array | None) -> Array:
    """Which groups of boxes may hold one that counts, by the least and the greatest shape."""
    h, w = inputs.size
    inside = (h >= rows.inner_last)[:, None] & (w >= columns.inner_last)[None, :]
    if inputs.ratio is None or max_ratio is None:
        return inside
    tall, wide = ((s.last - s.first).astype(np.float32) for s in (rows, columns))
    flat, slim = ((s.inner_last - s.inner_first).astype(np.float32) for s in (rows, columns))
    least, greatest = np.log(flat[:, None] / wide), np.log(tall[:, None] / slim)
    ratio, slack = jnp.log(inputs.ratio), jnp.log(max_ratio) + 2 * RATIO_TOLERANCE
    return inside & (ratio >= least - slack) & (ratio <= greatest + slack)


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
