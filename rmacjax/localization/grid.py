"""A grid of boxes and their scores: those that AML starts from, or all of about one shape."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.localization.boxes import RATIO_TOLERANCE, on_map, within_ratio
from rmacjax.localization.growth import grow, intervals, strips
from rmacjax.localization.scoring import MISSING, Pooling, as_float, cosines


class Grid(NamedTuple):
    """Scored boxes.

    Attributes:
        scores: (m,) float32, -1 where the box does not count.
        boxes: (m, 4) int32, cells.
        order: (m,) int32, increasing by top, bottom, left, right.
    """

    scores: Float[Array, "m"]
    boxes: Int[Array, "m 4"]
    order: Int[Array, "m"]


def score_grid(
    pooled: Pooling,
    query: Float[Array, "c"],
    ratio: Float[Array, ""] | None,
    size: Int[Array, "2"],
    *,
    shortest: int,
    step: int,
    max_ratio: float,
) -> Grid:
    """Score the grid, from height to height; of each height only the widths of the right shape.

    Row intervals of one height lie in a band, which grows downward by `step` cells at a time. What
    widths are right depends on the ratio, which is traced, so one small program per first width is
    compiled and the one that is asked for runs.

    Args:
        pooled: the map.
        query: unit vector (c,).
        ratio: height / width that the boxes shall have about; None takes all. May be traced.
        size: valid (h, w) of the map, traced.
        shortest: least height and width, cells.
        step: cells between the boxes' starts, and between their heights and widths.
        max_ratio: largest factor between the boxes' ratio and the one asked for.
    """
    h, w, _ = pooled.cells.shape
    tops, bottoms = intervals(h, shortest, step)
    lefts, rights = intervals(w, shortest, step)
    if tops.size == 0 or lefts.size == 0:
        nothing = jnp.zeros((1, 4), jnp.int32)
        return Grid(jnp.full(1, MISSING), nothing, nothing[:, 0])
    heights, widths = np.unique(bottoms - tops), np.unique(rights - lefts)
    combine = pooled.combine
    rows = strips(pooled.cells, 0, combine, shortest=shortest, step=step)
    cells = strips(rows, 1, combine, shortest=shortest, step=step)

    if ratio is None:
        groups = [np.arange(widths.size)]
        shapely = jnp.ones((heights.size, widths.size), bool)
    else:
        factor = min(max_ratio, float(max(h, w))) ** 2  # more lets everything in
        longest = widths * (factor * (1 + 4 * RATIO_TOLERANCE))
        ends = np.searchsorted(widths, longest, side="right")
        groups = [np.arange(first, end) for first, end in enumerate(ends)]
        shapes = heights[:, None] / widths[None, :]
        most = min(max_ratio, float(np.finfo(np.float32).max))
        shapely = within_ratio(shapes, ratio, as_float(most))
    kept = max(int(np.sum(widths.size - group)) for group in groups)

    def score_widths(band: Array, group: np.ndarray) -> Array:
        """Scores (tops, kept) of a band's boxes of these widths."""
        grown = grow(band, 1, combine)[group[0] : group[-1] + 1]
        scores = cosines(pooled.vectors(jnp.concatenate(grown, axis=1)), query)
        return jnp.pad(scores, ((0, 0), (0, kept - scores.shape[1])), constant_values=MISSING)

    programs = [partial(score_widths, group=group) for group in groups]
    chosen = jnp.argmax(shapely, axis=1).astype(jnp.int32) if len(groups) > 1 else None
    more = jnp.pad(cells[heights.size :], ((0, heights.size + 1), (0, 0), (0, 0)))

    def of_height(band: Array, item: tuple[Array, Array | None]) -> tuple[Array, Array]:
        number, group = item
        scores = programs[0](band) if group is None else jax.lax.switch(group, programs, band)
        below = jax.lax.dynamic_slice_in_dim(more, number, heights.size, axis=0)
        return combine(band, below), scores

    numbers = jnp.arange(heights.size, dtype=jnp.int32)
    _, scores = jax.lax.scan(of_height, cells[: heights.size], (numbers, chosen))

    # Which box each score belongs to: height, top, and place among the columns of its group.
    columns = np.full((len(groups), kept, 2), -1, np.int32)
    for group, row in zip(groups, columns, strict=True):
        pairs = [(left, width) for width in group for left in range(widths.size - width)]
        row[: len(pairs)] = pairs
    left, width = (
        jnp.asarray(columns)[jnp.zeros_like(numbers) if chosen is None else chosen][:, None, :, i]
        for i in range(2)
    )
    top, height = numbers[None, :, None], numbers[:, None, None]
    edges = (
        step * top,
        step * left,
        step * (top + height) + shortest,
        step * (left + width) + shortest,
    )
    boxes = jnp.stack(jnp.broadcast_arrays(*edges), axis=-1).reshape(-1, 4)
    fitting = shapely[height, jnp.maximum(width, 0)] & (width >= 0)
    allowed = jnp.broadcast_to(fitting, scores.shape).reshape(-1) & on_map(boxes, size)
    order = ((top * heights.size + height) * widths.size + left) * widths.size + width
    return Grid(jnp.where(allowed, scores.reshape(-1), MISSING), boxes, order.reshape(-1))
