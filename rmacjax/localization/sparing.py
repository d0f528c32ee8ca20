"""The best of all boxes without scoring all: bounds spare the groups that cannot hold it.

Every vector v of a group of boxes lies between the maxima of what all its boxes share, `low`, and
of what any of them covers, `high`, channel by channel. Let q be the unit query and t a score that
some box reaches. For every number s and c = clip(s q, low, high) with |c| <= s t, the vector
u = c / (s t) is no longer than 1, so |v| >= u . v and

    q . v - t |v|  <=  (q - c / s) . v  <=  (q - c / s) . c

since each channel of the middle is largest where v is c. Where the right side is below 0, no box
of the group reaches t. The least s that is allowed has |c| = s t and makes the bound the least,
which is then reached by v = c; one step from above towards it, s' = |clip(s q, low, high)| / t, is
allowed too and near enough.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rmacjax.localization.boxes import Edges
from rmacjax.localization.groups import Spans, covered, line_order, lines, shared, spans
from rmacjax.localization.scoring import MISSING, Pooling, cosines

ROUNDING = 1e-5
"""Share of a score by which bounds are loosened: many roundings of a float32 sum over channels,
and, of scores above `LEAST`, more than `rmacjax.localization.scoring.SCORE_RESOLUTION`."""

LEAST = 0.1
"""No bounds below this score."""

ROOM = 1024
"""Groups that may be left. Where more are, as on a map without structure, bounds do not pay."""

AT_A_TIME = 16
"""Groups of columns that are bounded at a time: few, since only some have the right shape."""


_FIRST = np.asarray([False, True, False, True])
_LAST = np.asarray([False, False, True, True])
"""Which of the four intervals of a group have its first line, and which its last."""


class Left(NamedTuple):
    """The boxes of the groups that were not spared.

    Attributes:
        scores: (m,) float32; -1 where the box does not count.
        boxes: (m,) edges.
        complete: whether there was room for all of them.
    """

    scores: Float[Array, "m"]
    boxes: Edges
    complete: Bool[Array, ""]


class _State(NamedTuple):
    """The present bands of rows, the best score so far, and a log of the groups that are left."""

    high: Array
    low: Array
    best: Array
    number: Array
    scores: Array
    groups: Array


def unspared(
    pooled: Pooling,
    query: Float[Array, "c"],
    reached: Float[Array, ""],
    *,
    allow: Callable[[Edges], Array],
    possible: Callable[[Spans, Spans], Array],
) -> Left:
    """Score the boxes that bounds do not spare; those with the best score are always among them.

    Args:
        pooled: the map's maxima, its cells zero beyond its valid size.
        query: unit vector (c,).
        reached: a score, `LEAST` or more, that a box that counts has.
        allow: which boxes count.
        possible: which pairs of groups of rows and of columns hold such boxes; it may let in more.
    """
    h, w, _ = pooled.cells.shape
    x = jnp.pad(pooled.cells, ((0, h % 2), (0, w % 2), (0, 0)))  # a dark row changes no maximum
    order = line_order(x.shape[0])
    rows, columns = Spans(*(edge[order.order] for edge in spans(x.shape[0]))), spans(x.shape[1])
    row_edges, column_edges = (jnp.stack([*map(jnp.asarray, s)], axis=1) for s in (rows, columns))
    added = lines(x)
    at = partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    chunk = min(AT_A_TIME, columns.first.size)

    def of_rows(state: _State, item: tuple[Array, ...]) -> tuple[_State, None]:
        starts, places, row, may = item
        high, low = (
            jnp.where(starts[k], at(added, places[k]), jnp.maximum(band, at(added, places[k])))
            for k, band in enumerate((state.high, state.low))
        )
        highs, lows = jax.lax.optimization_barrier((covered(high, 0), shared(low, 0)))
        reached = state.best * (1 - ROUNDING)
        # The longest column interval holds all others.
        steepest = jnp.sqrt(jnp.sum(jnp.square(pooled.vectors(highs[-1])))) / reached

        def bounded(first: Array) -> Array:
            low, high = (
                pooled.vectors(jax.lax.dynamic_slice_in_dim(side, first, chunk))
                for side in (lows, highs)
            )
            return _may_reach(low, high, query, reached, steepest)

        last = may.size - jnp.argmax(may[::-1]).astype(jnp.int32)

        def bound(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            first, left = carry
            begin = jnp.minimum(first, may.size - chunk)
            left = jax.lax.dynamic_update_slice_in_dim(left, bounded(begin), begin, 0)
            return first + chunk, left

        first = jnp.where(jnp.any(may), jnp.argmax(may), may.size).astype(jnp.int32)
        _, left = jax.lax.while_loop(
            lambda carry: carry[0] < last, bound, (first, jnp.zeros_like(may))
        )

        def look(carry: tuple[Array, _State]) -> tuple[Array, _State]:
            left, state = carry
            group = jnp.argmax(left).astype(jnp.int32)
            column = at(column_edges, group)
            pieces = _pieces(x, low, at(lows, group), row, column)
            boxes = _edges(row, column)
            scores = cosines(pooled.vectors(_boxes(pieces)), query)
            scores = jnp.where(allow(boxes), scores, MISSING)
            place = (state.number, jnp.int32(0))
            edges = jnp.concatenate([row, column])[None]
            state = state._replace(
                best=jnp.maximum(state.best, jnp.max(scores)),
                number=state.number + 1,
                scores=jax.lax.dynamic_update_slice(state.scores, scores[None], place),
                groups=jax.lax.dynamic_update_slice(state.groups, edges, place),
            )
            others = jnp.arange(left.size, dtype=jnp.int32) != group
            return left & others & (state.number <= ROOM), state

        state = state._replace(high=high, low=low)
        _, state = jax.lax.while_loop(
            lambda carry: jnp.any(carry[0]), look, (left & may & (state.number <= ROOM), state)
        )
        return state, None

    dark = jnp.zeros(x.shape[1:], x.dtype)
    log = jnp.full((ROOM + 1, 16), MISSING, jnp.float32), jnp.zeros((ROOM + 1, 8), jnp.int32)
    start = _State(dark, dark, reached, jnp.int32(0), *log)
    items = *map(jnp.asarray, order[1:]), row_edges, possible(rows, columns)
    end, _ = jax.lax.scan(of_rows, start, items)
    boxes = jax.vmap(lambda edges: _edges(edges[:4], edges[4:]))(end.groups)
    flat = Edges(*(edge.reshape(-1) for edge in boxes))
    return Left(end.scores.reshape(-1), flat, end.number <= ROOM)


def _may_reach(
    low: Float[Array, "g c"],
    high: Float[Array, "g c"],
    query: Float[Array, "c"],
    score: Float[Array, ""],
    steepest: Float[Array, ""],
) -> Bool[Array, "g"]:
    """Which groups the bound does not spare; `steepest` is an s that is allowed for all of them.

    Sums over channels are products with a vector, for which XLA has its fastest code on a CPU.
    """
    total = partial(jnp.matmul, b=jnp.ones_like(query), precision=jax.lax.Precision.HIGHEST)
    clipped = jnp.clip(steepest * query[None], low, high)
    s = jnp.sqrt(total(clipped * clipped)) * ((1 + ROUNDING) / score)
    # A product of matrices, since XLA is slow where every row is multiplied by its own number.
    none = jnp.zeros_like(s)
    sloped = jnp.matmul(
        jnp.stack([s, none], axis=1),
        jnp.stack([query, query]),
        precision=jax.lax.Precision.HIGHEST,
    )
    clipped = jnp.clip(sloped, low, high)
    return total(clipped * (sloped * (1 + ROUNDING) - clipped)) > 0


def _pieces(x: Array, low: Array, center: Array, row: Array, column: Array) -> Array:
    """A group's (3, 3, c) pieces: what its boxes share, and one cell more on each side."""
    lines = jnp.stack(
        [jax.lax.dynamic_index_in_dim(x, y, keepdims=False) for y in (row[0], row[1] - 1)]
    )

    def join(place: Array, joined: Array) -> Array:
        cells = jax.lax.dynamic_index_in_dim(lines, place, axis=1, keepdims=False)
        return jnp.maximum(joined, cells)

    middle = jax.lax.fori_loop(column[2], column[3], join, jnp.zeros_like(lines[:, 0]))
    bands = jnp.stack([lines[0], low, lines[1]])
    left, right = (
        jax.lax.dynamic_index_in_dim(bands, place, axis=1, keepdims=False)
        for place in (column[0], column[1] - 1)
    )
    return jnp.stack([left, jnp.stack([middle[0], center, middle[1]]), right], axis=1)


def _boxes(pieces: Array) -> Array:
    """The vectors (16, c) of a group's boxes, in the order of `_edges`."""
    none = jnp.zeros((), pieces.dtype)
    first, last = (jnp.asarray(which)[:, None, None] for which in (_FIRST, _LAST))

    def wider(x: Array) -> Array:
        before, middle, after = (x[k][None] for k in range(3))
        longer = jnp.maximum(middle, jnp.where(first, before, none))
        return jnp.maximum(longer, jnp.where(last, after, none))

    bands = wider(pieces)  # (4, 3, c)
    return jnp.moveaxis(wider(jnp.moveaxis(bands, 1, 0)), 0, 1).reshape(16, -1)


def _edges(row: Int[Array, "4"], column: Int[Array, "4"]) -> Edges:
    """A group's 16 boxes: what is shared, then with the first line too, the last one, or both."""

    def wider(span: Array) -> tuple[Array, Array]:
        first, last, inner_first, inner_last = span
        firsts = jnp.stack([inner_first, first, inner_first, first])
        return firsts, jnp.stack([inner_last, inner_last, last, last])

    (tops, bottoms), (lefts, rights) = wider(row), wider(column)
    vertical, horizontal = partial(jnp.repeat, repeats=4), partial(jnp.tile, reps=4)
    return Edges(vertical(tops), horizontal(lefts), vertical(bottoms), horizontal(rights))
