"""AML: candidates on a coarse grid, the best of them refined; the published localization."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Num

from rmacjax.localization.boxes import (
    RATIO_TOLERANCE,
    Localization,
    apart,
    on_map,
    whole_map,
    within_ratio,
)
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
    pooling,
)
from rmacjax.normalization import l2_normalize

SHORTEST = 2
"""Least height and width of the published candidates, cells."""

# The order in which refinement tries its moves: top, left, bottom, right; first -, then +.
_MOVES = np.kron(np.eye(4, dtype=np.int32), np.asarray([[-1], [1]], np.int32))


def aml(
    a1: Num[Array | np.ndarray, "h w c"],
    query: Num[Array | np.ndarray, "c"],
    ratio: Num[ArrayLike, ""] | None = None,
    *,
    alpha: int | float | None = 10,
    size: Int[Array | np.ndarray, "2"] | None = None,
    step: int = 3,
    max_ratio: int | float = 1.1,
    refine_steps: Sequence[int] = (3, 2, 1),
    passes: int = 5,
) -> Localization:
    """Approximate max-pooling localization (AML): the published search for the query's box.

    Candidates start at every `step`-th row and column and are 2, 2 + step, 2 + 2 step, .. cells
    high and wide; kept are those of about the query's shape, ``|log(ratio / (height / width))| <=
    log(max_ratio)``. The first of the best scores, in the order of top, bottom, left, right, is
    refined: for each of `refine_steps`, up to `passes` times, the top, left, bottom and right side
    in turn move by minus, then plus the step, each move being kept at once if the score rises. A
    step ends when no side moves; the box stays inside the map and never becomes empty. Without a
    candidate (a map one cell wide, an unusual shape) the whole map is refined.

    Args:
        a1: activation map, floats or quantised levels. Negative, NaN and infinite activations count
            as 0.
        query: the query's pooled vector (its plain MAC), of any length; NaN counts as 0.
        ratio: height / width of the query's box in pixels; None sets no limit. May be traced.
        alpha: exponent of the generalized mean that stands for a box's maximum; None takes the
            exact maximum.
        size: valid (h, w) of a map that is padded at the bottom and the right; no box leaves it.
            May be traced.
        step: cells between candidates.
        max_ratio: largest factor between the candidates' and the query's ratio.
        refine_steps: cells by which sides move, in turn; empty for no refinement.
        passes: most rounds for each step.

    Returns:
        score () float32 and box (4,) int32. Where the query or the map is zero the score is 0 and
        the box the first candidate.

    Raises:
        ValueError: a query of another length than the map's channels, a map without cells, ratio
            not above 0, alpha or max_ratio below 1, step, refine_steps or passes below 1.

    References:
        Tolias et al. 2016, section 4.2.

    >>> map_ = np.ones((9, 12, 2), np.float32)
    >>> map_[:, :4], map_[:, 8:] = [3, 0], [2, 0]
    >>> map_[5, 6] = [0, 3]
    >>> found = aml(map_, np.asarray([1.0, 3.0]), ratio=1.0)
    >>> found.box.tolist(), round(float(found.score), 3)
    ([5, 6, 6, 8], 1.0)
    """
    found = aml_instances(
        a1,
        query,
        ratio,
        instances=1,
        alpha=alpha,
        size=size,
        step=step,
        max_ratio=max_ratio,
        refine_steps=refine_steps,
        passes=passes,
    )
    return Localization(found.score[0], found.box[0])


def aml_instances(
    a1: Num[Array | np.ndarray, "h w c"],
    query: Num[Array | np.ndarray, "c"],
    ratio: Num[ArrayLike, ""] | None = None,
    *,
    instances: int = 3,
    overlap: int | float = 0.3,
    alpha: int | float | None = 10,
    size: Int[Array | np.ndarray, "2"] | None = None,
    step: int = 3,
    max_ratio: int | float = 1.1,
    refine_steps: Sequence[int] = (3, 2, 1),
    passes: int = 5,
) -> Localization:
    """Find several instances of the query's object on one map by AML.

    The first is that of `aml`. Each further one is the best candidate that overlaps none of those
    found by more than `overlap` (intersection over union), refined under the same condition.

    Args:
        a1: activation map, floats or quantised levels.
        query: the query's pooled vector.
        ratio: height / width of the query's box in pixels; None sets no limit. May be traced.
        instances: number of boxes to find.
        overlap: largest intersection over union of any two of them.
        alpha: as in `aml`, and so are the other options.
        size: valid (h, w) of a padded map. May be traced.
        step: cells between candidates.
        max_ratio: largest factor between the candidates' and the query's ratio.
        refine_steps: cells by which sides move, in turn.
        passes: most rounds for each step.

    Returns:
        score (k,) float32 and box (k, 4) int32, k = instances, in the order found: refinement may
        lift a later one above an earlier. Where there is no further candidate the score is -1 and
        the box (0, 0, 0, 0).

    Raises:
        ValueError: as `aml`, and instances below 1 or overlap outside 0..1.
    """
    inputs = check_inputs(a1, query, ratio, size)
    check_at_least_one(
        {"step": step, "passes": passes, "max_ratio": max_ratio, "instances": instances}
    )
    check_overlap(overlap)
    if any(cells < 1 for cells in refine_steps):
        raise ValueError(f"refine_steps is {refine_steps}, but a side moves by at least 1 cell.")
    if alpha is not None and not (math.isfinite(alpha) and alpha >= 1):
        raise ValueError(
            f"alpha is {alpha}, but the exponent of a generalized mean is at least 1; None takes "
            "exact maxima."
        )
    return _aml(
        inputs,
        as_float(overlap),
        instances=int(instances),
        alpha=None if alpha is None else float(alpha),
        step=int(step),
        max_ratio=float(max_ratio),
        refine_steps=tuple(int(cells) for cells in refine_steps),
        passes=int(passes),
    )


@partial(
    jax.jit,
    static_argnames=("instances", "alpha", "step", "max_ratio", "refine_steps", "passes"),
)
def _aml(
    inputs: Inputs,
    overlap: Array,
    *,
    instances: int,
    alpha: float | None,
    step: int,
    max_ratio: float,
    refine_steps: tuple[int, ...],
    passes: int,
) -> Localization:
    size, query = inputs.size, l2_normalize(clean(inputs.query.astype(jnp.float32)))
    pooled = pooling(clean(inputs.a1), alpha)
    candidates = _candidates(pooled, query, inputs.ratio, size, step, max_ratio)

    def score_of(boxes: Array) -> Array:
        return cosines(jax.vmap(pooled.of_box)(boxes), query)

    def find(earlier: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        box, exists = _first_best(candidates, apart(candidates.boxes, earlier, overlap))
        box = jnp.where(exists, box, whole_map(size))
        exists |= number == 0

        def allow(boxes: Array) -> Array:
            return on_map(boxes, size) & apart(boxes, earlier, overlap) & exists

        score, box = _refine(score_of, allow, score_of(box[None])[0], box, refine_steps, passes)
        score = jnp.where(exists, jnp.minimum(score, 1.0), MISSING)
        box = jnp.where(exists, box, 0)
        return earlier.at[number].set(box), (score, box)

    none = jnp.zeros((instances, 4), jnp.int32)
    _, (scores, boxes) = jax.lax.scan(find, none, jnp.arange(instances, dtype=jnp.int32))
    return Localization(scores, boxes)


class _Candidates(NamedTuple):
    """The grid's boxes: (m,) scores, -1 where not allowed; (m, 4) boxes; (m,) published order."""

    scores: Array
    boxes: Array
    order: Array


def _candidates(
    pooled: Pooling,
    query: Array,
    ratio: Array | None,
    size: Array,
    step: int,
    max_ratio: float,
) -> _Candidates:
    """Score the grid, all column intervals side by side, grown from height to height.

    Only a few widths have the right shape for a height. Column intervals are in order of width, so
    these are neighbours: a slice whose start depends on the ratio, of a length that serves any.
    """
    h, w, channels = pooled.cells.shape
    tops, bottoms = intervals(h, SHORTEST, step)
    lefts, rights = intervals(w, SHORTEST, step)
    if tops.size == 0 or lefts.size == 0:
        nothing = jnp.zeros((1, 4), jnp.int32)
        return _Candidates(jnp.full(1, MISSING), nothing, nothing[:, 0])
    bands = _bands(pooled, step)
    widths = rights - lefts
    if ratio is None:
        kept, starts = widths.size, jnp.zeros(len(bands), jnp.int32)
        shapely = jnp.ones((len(bands), widths.size), bool)
    else:
        kept = _most_of_a_shape(widths, max_ratio)
        shapes = np.unique(bottoms - tops)[:, None] / widths[None, :]
        shapely = within_ratio(shapes, ratio, as_float(max_ratio))
        starts = jnp.minimum(jnp.argmax(shapely, axis=1), widths.size - kept).astype(jnp.int32)
    vectors = jnp.concatenate(
        [
            jax.lax.dynamic_slice_in_dim(band, start, kept, axis=1)
            for band, start in zip(bands, starts, strict=True)
        ]
    )
    scores = cosines(pooled.vectors(vectors.reshape(-1, channels)), query)
    # Row intervals, like the bands, are in order of height.
    height = np.repeat(np.arange(len(bands)), [len(band) for band in bands])
    columns = starts[height][:, None] + jnp.arange(kept, dtype=jnp.int32)[None, :]
    rows = np.arange(tops.size, dtype=np.int32)[:, None]
    grid = np.broadcast_arrays(tops[:, None], lefts[None], bottoms[:, None], rights[None])
    every = np.stack(grid, axis=-1).reshape(-1, 4)
    order = np.argsort(np.lexsort(every[:, [3, 1, 2, 0]].T)).astype(np.int32)
    taken = (jnp.asarray(rows * widths.size) + columns).reshape(-1)
    boxes = jnp.asarray(every)[taken]
    allowed = shapely[height].reshape(-1)[taken] & on_map(boxes, size)
    return _Candidates(jnp.where(allowed, scores, MISSING), boxes, jnp.asarray(order)[taken])


def _bands(pooled: Pooling, step: int) -> list[Array]:
    """All boxes of the grid: per height, (tops, column intervals in order of width, channels)."""
    cells, combine, _, _ = pooled
    rows = strips(cells, 0, combine, shortest=SHORTEST, step=step)
    columns = grow(strips(rows, 1, combine, shortest=SHORTEST, step=step), 1, combine)
    return grow(jnp.concatenate(columns, axis=1), 0, combine)


def _most_of_a_shape(lengths: np.ndarray, max_ratio: float) -> int:
    """Most intervals, sorted by length, whose lengths lie within a factor of max_ratio squared."""
    longest = lengths * (max_ratio**2 * (1 + 4 * RATIO_TOLERANCE))
    ends = np.searchsorted(lengths, longest, side="right")
    return int(np.max(ends - np.searchsorted(lengths, lengths)))


def _first_best(candidates: _Candidates, free: Array) -> tuple[Array, Array]:
    """The best candidate that is free, the first in the published order, and whether there is."""
    scores = jnp.where(free, candidates.scores, MISSING)
    best = jnp.max(scores)
    tied = scores >= best - SCORE_RESOLUTION
    first = jnp.argmin(jnp.where(tied, candidates.order, jnp.iinfo(jnp.int32).max))
    return candidates.boxes[first], best > MISSING


_State = tuple[Array, Array, Array, Array, Array]
"""Refinement's place: which step, round and move comes next, and the best score and box."""


def _refine(
    score_of: Callable[[Array], Array],
    allow: Callable[[Array], Array],
    score: Array,
    box: Array,
    steps: tuple[int, ...],
    passes: int,
) -> tuple[Array, Array]:
    """Greedy refinement: move one side at a time, keep what improves.

    All eight moves of a box are scored at once, and the first that improves, from the present place
    in the order on, is made. That is what trying them one by one does: moves before it changed
    nothing, and a round that comes back to the present place without improvement is the last.
    """
    if not steps:
        return score, box
    moves, cells = jnp.asarray(_MOVES), jnp.asarray(steps, jnp.int32)

    def unfinished(state: _State) -> Array:
        return state[0] < len(steps)

    def move(state: _State) -> _State:
        stage, lap, place, score, box = state
        boxes = box[None] + moves * cells[stage]
        scores = score_of(boxes)
        better = allow(boxes) & (scores > score + SCORE_RESOLUTION)
        later = jnp.arange(len(_MOVES), dtype=jnp.int32) - place
        later = jnp.where(later < 0, later + len(_MOVES), later)
        chosen = jnp.argmin(jnp.where(better, later, len(_MOVES))).astype(jnp.int32)
        lap += (chosen < place).astype(jnp.int32)
        moved = better[chosen] & (lap < passes)
        return (
            jnp.where(moved, stage, stage + 1),
            jnp.where(moved, lap, 0),
            jnp.where(moved, chosen + 1, 0),
            jnp.where(moved, scores[chosen], score),
            jnp.where(moved, boxes[chosen], box),
        )

    zero = jnp.zeros((), jnp.int32)
    *_, score, box = jax.lax.while_loop(unfinished, move, (zero, zero, zero, score, box))
    return score, box
