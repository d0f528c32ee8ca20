"""AML: candidates on a coarse grid, the best of them refined; the published localization."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Num

from rmacjax.localization.boxes import (
    Localization,
    apart,
    on_map,
    whole_map,
)
from rmacjax.localization.grid import Grid, score_grid
from rmacjax.localization.refinement import Joining, all_at_once, line_by_line, refine
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
    unit_query,
)

SHORTEST = 2
"""Least height and width of the published candidates, cells."""


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

    Scores count as equal where they differ by less than ``SCORE_RESOLUTION`` (4.8e-7). The authors'
    doubles tell such boxes apart, and a greedy search may then take another path: on a thousand
    random maps it came to scores that differed by some millionths as a rule, by 0.005 at most.

    In `jax.shard_map` give ``check_vma=False``; maps laid out over devices by a `NamedSharding`
    need nothing.

    Args:
        a1: activation map, floats or quantised levels. Negative, NaN and infinite activations count
            as 0.
        query: the query's pooled vector (its plain MAC), of any length; NaN counts as 0.
        ratio: height / width of the query's box in pixels; None sets no limit. May be traced.
        alpha: exponent of the generalized mean that stands for a box's maximum; None takes the
            exact maximum. As in `integral_image`, activations below 2 ** (-200 / alpha) of their
            channel's maximum count as 0: a millionth at 10, a thirtieth at 40.
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
    check_overlap(overlap)
    plan = _checked(instances, alpha, step, max_ratio, refine_steps, passes)
    return _aml(inputs, as_float(overlap), plan)


def aml_batch(
    maps: Num[Array | np.ndarray, "n h w c"],
    sizes: Int[Array | np.ndarray, "n 2"],
    query: Num[Array | np.ndarray, "c"],
    ratio: Num[ArrayLike, ""] | None = None,
    *,
    instances: int = 1,
    overlap: int | float = 0.3,
    alpha: int | float | None = 10,
    side_by_side: int | None = None,
    refine_side_by_side: int | None = None,
) -> Localization:
    """`aml_instances` over a padded batch of maps; the same numbers, shaped for speed.

    The two halves of the search want different shapes: scoring the grid is the same work for every
    map and goes well with many maps at once, refinement takes a different number of moves on each
    and, where nothing is gained by waiting for the slowest, goes one by one.

    Args:
        maps: activation maps, padded at the bottom and the right.
        sizes: valid rows and columns of each map, cells.
        query: the query's pooled vector.
        ratio: height / width of the query's box in pixels; None sets no limit. May be traced.
        instances: number of boxes per map.
        overlap: largest intersection over union of any two boxes of a map.
        alpha: as in `aml`; the other options are the published ones.
        side_by_side: maps whose grids are scored at once; None for all.
        refine_side_by_side: maps that are refined at once; None for one by one.

    Returns:
        score (n, k) float32 and box (n, k, 4) int32, k = instances.
    """
    check_overlap(overlap)
    plan = _checked(instances, alpha, 3, 1.1, (3, 2, 1), 5)

    x = clean(jnp.asarray(maps))
    one_by_one = refine_side_by_side is None

    def candidates_of(item: tuple[Array, Array]) -> Grid:
        return _candidates(check_inputs(item[0], query, ratio, item[1]), plan)

    def find(item: tuple[Grid, Array, Array]) -> Localization:
        candidates, number, size = item
        inputs = check_inputs(x[number], query, ratio, size)
        pooled = pooling(inputs.a1, inputs.size, plan.alpha)
        if not one_by_one:
            joining = all_at_once(pooled)
        elif plan.alpha is None:
            joining = line_by_line(x, number, pooled.combine)
        else:
            joining = line_by_line(pooled.cells[None], 0, pooled.combine)
        return _find(inputs, as_float(overlap), candidates, pooled, joining, plan)

    sizes = jnp.asarray(sizes)
    many = len(maps) if side_by_side is None else side_by_side
    candidates = jax.lax.map(candidates_of, (x, sizes), batch_size=many)
    numbers = jnp.arange(len(maps), dtype=jnp.int32)
    return jax.lax.map(find, (candidates, numbers, sizes), batch_size=refine_side_by_side)


class _Plan(NamedTuple):
    """What of a search is fixed when it is compiled."""

    instances: int
    alpha: float | None
    step: int
    max_ratio: float
    refine_steps: tuple[int, ...]
    passes: int


def _checked(
    instances: int,
    alpha: float | None,
    step: int,
    max_ratio: float,
    refine_steps: Sequence[int],
    passes: int,
) -> _Plan:
    """The options, or an error that says which is out of range."""
    check_at_least_one(
        {"step": step, "passes": passes, "max_ratio": max_ratio, "instances": instances}
    )
    if any(cells < 1 for cells in refine_steps):
        raise ValueError(f"refine_steps is {refine_steps}, but a side moves by at least 1 cell.")
    if alpha is not None and not (math.isfinite(alpha) and alpha >= 1):
        raise ValueError(
            f"alpha is {alpha}, but the exponent of a generalized mean is at least 1; None takes "
            "exact maxima."
        )
    return _Plan(
        int(instances),
        None if alpha is None else float(alpha),
        int(step),
        float(max_ratio),
        tuple(int(cells) for cells in refine_steps),
        int(passes),
    )


@partial(jax.jit, static_argnames=("plan",))
def _aml(inputs: Inputs, overlap: Array, plan: _Plan) -> Localization:
    """The search, which is followed by no gradient, and the scores of what was found, which are."""
    fixed = jax.lax.stop_gradient(inputs)
    pooled = pooling(clean(fixed.a1), fixed.size, plan.alpha)
    if jax.default_backend() == "cpu":
        joining = line_by_line(pooled.cells[None], 0, pooled.combine)
    else:
        joining = all_at_once(pooled)
    found = _find(fixed, overlap, _candidates(fixed, plan), pooled, joining, plan)
    own = pooling(clean(inputs.a1), inputs.size, plan.alpha)
    scores = cosines(jax.vmap(own.of_box)(found.box), unit_query(inputs))
    return found._replace(score=jnp.where(found.score > MISSING, jnp.minimum(scores, 1.0), MISSING))


def _candidates(inputs: Inputs, plan: _Plan) -> Grid:
    return score_grid(
        pooling(clean(inputs.a1), inputs.size, plan.alpha),
        unit_query(inputs),
        inputs.ratio,
        inputs.size,
        shortest=SHORTEST,
        step=plan.step,
        max_ratio=plan.max_ratio,
    )


def _find(
    inputs: Inputs,
    overlap: Array,
    candidates: Grid,
    pooled: Pooling,
    joining: Joining,
    plan: _Plan,
) -> Localization:
    """Instance by instance, the best free candidate, refined."""
    size, query = inputs.size, unit_query(inputs)

    def find(earlier: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        box, exists = _first_best(candidates, apart(candidates.boxes, earlier, overlap))
        box = jnp.where(exists, box, whole_map(size))
        exists |= number == 0

        def allow(boxes: Array) -> Array:
            return on_map(boxes, size) & apart(boxes, earlier, overlap) & exists

        score, box = refine(
            pooled, joining, query, allow, box, steps=plan.refine_steps, passes=plan.passes
        )
        score = jnp.where(exists, jnp.minimum(score, 1.0), MISSING)
        box = jnp.where(exists, box, 0)
        return earlier.at[number].set(box), (score, box)

    none = jnp.zeros((plan.instances, 4), jnp.int32)
    _, (scores, boxes) = jax.lax.scan(find, none, jnp.arange(plan.instances, dtype=jnp.int32))
    return Localization(scores, boxes)


def _first_best(candidates: Grid, free: Array) -> tuple[Array, Array]:
    """The best candidate that is free, the first in the published order, and whether there is."""
    scores = jnp.where(free, candidates.scores, MISSING)
    best = jnp.max(scores)
    tied = scores >= best - SCORE_RESOLUTION
    first = jnp.argmin(jnp.where(tied, candidates.order, jnp.iinfo(jnp.int32).max))
    return candidates.boxes[first], best > MISSING
