"""Refinement: the sides of a box move, one at a time, as long as its score rises."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rmacjax.localization.growth import Combine
from rmacjax.localization.scoring import SCORE_RESOLUTION, Pooling, cosines

# The order in which the sides move: top, left, bottom, right; each by -, then by +.
_MOVES = np.kron(np.eye(4, dtype=np.int32), np.asarray([[-1], [1]], np.int32))
_SIDES = np.arange(len(_MOVES), dtype=np.int32) // 2
_AXES = _SIDES % 2
_GROWS = (_MOVES.sum(axis=1) > 0) == (_SIDES >= 2)


class Profiles(NamedTuple):
    """A box's rows, combined for every column of the map, and its columns, for every row.

    Attributes:
        rows: (w, c).
        columns: (h, c).
    """

    rows: Array
    columns: Array


class Joining(NamedTuple):
    """How lines are combined: those of a map into profiles, those of a profile into vectors.

    Attributes:
        lines: (axis, first, last, start) -> `start` combined with the map's lines first..last - 1
            across an axis: rows (0) give (w, c), columns (1) give (h, c).
        ranges: (profile (n, c), edges (m, 2)) -> the parts (m, c) of a profile from edge to edge,
            exclusive and cut off at its ends.
    """

    lines: Callable[[int, Array, Array, Array], Array]
    ranges: Callable[[Array, Array], Array]


def line_by_line(maps: Array, number: Array | int, combine: Combine) -> Joining:
    """Loops over the lines of one map of a batch (n, h, w, c), which read no others.

    Right where maps are refined one after the other: a box is a small part of its map, and a side
    that moves outward adds a few lines only.
    """
    _, h, w, c = maps.shape
    zero, which = jnp.int32(0), jnp.int32(number)

    def lines(axis: int, first: Array, last: Array, start: Array) -> Array:
        def add(index: Array, sofar: Array) -> Array:
            place, size = ((index, zero), (1, w)) if axis == 0 else ((zero, index), (h, 1))
            line = jax.lax.dynamic_slice(maps, (which, *place, zero), (1, *size, c))
            return combine(sofar, line.reshape(sofar.shape))

        return jax.lax.fori_loop(first, last, add, start)

    def ranges(profile: Array, edges: Array) -> Array:
        firsts, lasts = edges[:, :1], edges[:, 1:]
        none = jnp.zeros((), profile.dtype)

        def add(index: Array, parts: Array) -> Array:
            line = jax.lax.dynamic_index_in_dim(profile, index, axis=0)
            return combine(parts, jnp.where((index >= firsts) & (index < lasts), line, none))

        begin = jnp.maximum(jnp.min(firsts), 0)
        end = jnp.minimum(jnp.max(lasts), profile.shape[0])
        start = jnp.zeros((edges.shape[0], profile.shape[1]), profile.dtype)
        return jax.lax.fori_loop(begin, end, add, start)

    return Joining(lines, ranges)


def all_at_once(pooled: Pooling) -> Joining:
    """Masked passes over all lines there are.

    Right where many maps are refined side by side: no loop waits for the largest box.
    """

    def lines(axis: int, first: Array, last: Array, start: Array) -> Array:
        return pooled.combine(start, pooled.within(axis, first, last))

    def ranges(profile: Array, edges: Array) -> Array:
        place = jnp.arange(profile.shape[0], dtype=jnp.int32)[None, :]
        inside = (place >= edges[:, :1]) & (place < edges[:, 1:])
        none = jnp.zeros((), profile.dtype)
        return pooled.reduce(jnp.where(inside[:, :, None], profile[None], none), axis=1)

    return Joining(lines, ranges)


def refine(
    pooled: Pooling,
    joining: Joining,
    query: Array,
    allow: Callable[[Array], Array],
    box: Int[Array, "4"],
    *,
    steps: Sequence[int],
    passes: int,
) -> tuple[Array, Array]:
    """Greedy refinement: move one side at a time, keep what improves.

    All eight moves of a box are scored at once, and the first that improves, from the present place
    in the order on, is made. That is what trying them one by one does: moves before it changed
    nothing, and a round that comes back to the present place without improvement is the last.

    Args:
        pooled: the map.
        joining: how its lines are combined.
        query: unit vector (c,).
        allow: which boxes (m, 4) may be taken.
        box: where to start.
        steps: cells by which sides move, in turn.
        passes: most rounds for each step.

    Returns:
        score () float32 and box (4,) int32.
    """
    h, w, c = pooled.cells.shape
    nothing = Profiles(*(jnp.zeros((n, c), pooled.cells.dtype) for n in (w, h)))
    profiles = Profiles(
        joining.lines(0, box[0], box[2], nothing.rows),
        joining.lines(1, box[1], box[3], nothing.columns),
    )
    whole = joining.ranges(profiles.columns, box[None, ::2])
    score = cosines(pooled.vectors(whole), query)[0]
    if not steps:
        return score, box
    moves, cells = jnp.asarray(_MOVES), jnp.asarray(steps, jnp.int32)

    def unfinished(state: _State) -> Array:
        return state.stage < len(steps)

    def move(state: _State) -> _State:
        stage, lap, place, score, box, profiles = state
        boxes = box[None] + moves * cells[stage]
        scores = cosines(_moved(pooled, joining, profiles, boxes), query)
        better = allow(boxes) & (scores > score + SCORE_RESOLUTION)
        later = jnp.arange(len(_MOVES), dtype=jnp.int32) - place
        later = jnp.where(later < 0, later + len(_MOVES), later)
        chosen = jnp.argmin(jnp.where(better, later, len(_MOVES))).astype(jnp.int32)
        lap += (chosen < place).astype(jnp.int32)
        moved = better[chosen] & (lap < passes)
        after = jnp.where(moved, boxes[chosen], box)
        grows = jnp.asarray(_GROWS)[chosen]

        def rejoined(axis: int) -> Array:
            """The profile of lines that changed: only what is new where the box grew."""
            (a, z), (first, last) = box[axis::2], after[axis::2]
            new = jnp.where(first < a, first, z), jnp.where(first < a, a, last)
            begin, end = (jnp.where(grows, *pair) for pair in zip(new, (first, last), strict=True))
            start = jnp.where(grows, profiles[axis], nothing[axis])
            return joining.lines(axis, begin, end, start)

        axis = jnp.where(moved, jnp.asarray(_AXES)[chosen], -1)
        return _State(
            jnp.where(moved, stage, stage + 1),
            jnp.where(moved, lap, 0),
            jnp.where(moved, chosen + 1, 0),
            jnp.where(moved, scores[chosen], score),
            after,
            Profiles(
                *(
                    jax.lax.cond(axis == k, partial(rejoined, k), lambda k=k: profiles[k])
                    for k in (0, 1)
                )
            ),
        )

    zero = jnp.zeros((), jnp.int32)
    end = jax.lax.while_loop(unfinished, move, _State(zero, zero, zero, score, box, profiles))
    return end.score, end.box


class _State(NamedTuple):
    """Refinement's place: the step, round and move that come next, and the best box so far."""

    stage: Array
    lap: Array
    place: Array
    score: Array
    box: Array
    profiles: Profiles


def _moved(
    pooled: Pooling, joining: Joining, profiles: Profiles, boxes: Int[Array, "8 4"]
) -> Array:
    """The vectors (8, c) of a box's eight moves.

    Moves of the top and the bottom keep the box's columns, those of the left and the right its
    rows, so the two profiles serve all.
    """
    vertical = joining.ranges(profiles.columns, boxes[_AXES == 0, ::2])
    horizontal = joining.ranges(profiles.rows, boxes[_AXES == 1, 1::2])
    order = np.argsort(np.argsort(_AXES, kind="stable"))
    return pooled.vectors(jnp.concatenate([vertical, horizontal])[order])
