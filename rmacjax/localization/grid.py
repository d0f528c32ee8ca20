"""A grid of boxes and their scores: those that AML starts from, or all of about one shape."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.localization.boxes import RATIO_TOLERANCE, on_map, within_ratio
from rmacjax.localization.growth import interval, intervals, runs, strips
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
    """Score the grid, row interval by row interval; of each only the widths of the right shape.

    From each top a band of rows grows downward by `step` rows at a time. What widths are right
    depends on the ratio, which is traced, so one small program per first width is compiled and the
    one that is asked for runs.

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
    parts = partial(strips, combine=combine, shortest=shortest, step=step)
    cells = jnp.concatenate(
        [jnp.concatenate(parts(rows, 1), axis=1) for rows in parts(pooled.cells, 0)]
    )

    if ratio is None:
        groups = [np.arange(widths.size)]
        shapely = jnp.ones((heights.size, widths.size), bool)
    else:
        factor = min(max_ratio, float(max(h, w))) ** 2  # more lets everything in
        longest = widths * (factor * (1 + 4 * RATIO_TOLERANCE))
        ends = np.searchsorted(widths, longest, side="right")
        groups = [np.arange(first, end) for first, end in enumerate(ends.tolist())]
        shapes = heights[:, None] / widths[None, :]
        most = min(max_ratio, float(np.finfo(np.float32).max))
        shapely = within_ratio(shapes, ratio, as_float(most))
    kept = max(int(np.sum(widths.size - group)) for group in groups)

    def of_widths(first: Array, more: Array, group: np.ndarray) -> Array:
        """A band's boxes of these widths, (kept, c)."""
        joined = runs(more, 0, combine)
        boxes = [interval(first, joined, 0, combine, length) for length in group.tolist()]
        short = kept - sum(len(some) for some in boxes)
        return jnp.concatenate([*boxes, jnp.zeros((short, boxes[0].shape[1]), boxes[0].dtype)])

    programs = [partial(of_widths, group=group) for group in groups]
    chosen = jnp.argmax(shapely, axis=1).astype(jnp.int32)

    # Row intervals: top, height, and the row of `cells` that each adds to the one before.
    pairs = [(i, j) for i in range(heights.size) for j in range(heights.size - i)]
    top, height = np.asarray(pairs, np.int32).T
    added = np.where(height == 0, top, heights.size + top + height - 1)

    def of_rows(band: Array, item: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        starts, row, group = item
        line = jax.lax.dynamic_index_in_dim(cells, row, axis=0, keepdims=False)
        band = jnp.where(starts, line, combine(band, line))
        first, more = band[: widths.size], band[widths.size :]
        boxes = jax.lax.switch(group, programs, first, more)
        return band, cosines(pooled.vectors(boxes), query)

    items = (jnp.asarray(height == 0), jnp.asarray(added), chosen[height])
    _, scores = jax.lax.scan(of_rows, jnp.zeros_like(cells[0]), items)

    # Which box each score belongs to: its row interval, and its place among its group's columns.
    columns = np.full((len(groups), kept, 2), -1, np.int32)
    for group, row in zip(groups, columns, strict=True):
        pairs = [(left, width) for width in group.tolist() for left in range(widths.size - width)]
        row[: len(pairs)] = pairs
    left, width = (jnp.asarray(columns)[chosen[height], :, i] for i in range(2))
    edges = (
        step * top[:, None],
        step * left,
        step * (top + height)[:, None] + shortest,
        step * (left + width) + shortest,
    )
    boxes = jnp.stack(jnp.broadcast_arrays(*edges), axis=-1).reshape(-1, 4)
    fitting = shapely[height[:, None], jnp.maximum(width, 0)] & (width >= 0)
    allowed = fitting.reshape(-1) & on_map(boxes, size)
    order = (left + widths.size * (top * heights.size + height)[:, None]) * widths.size + width
    return Grid(jnp.where(allowed, scores.reshape(-1), MISSING), boxes, order.reshape(-1))
