"""Groups of neighbouring intervals of an axis: what each covers at most, and what all share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Num

from rmacjax.localization.growth import grow, intervals, strips


class Spans(NamedTuple):
    """Groups of intervals of an axis, each interval in one of them.

    One cell is a group by itself, and so are two cells from an even one on. All other intervals
    begin with the first or the second of two cells and end with the first or the second of two
    later ones: four to a group, in which two cells at least are shared.

    Attributes:
        first: (g,) where the longest of each group begins, cells.
        last: (g,) where it ends, exclusive.
        inner_first: (g,) where what all of a group share begins.
        inner_last: (g,) where it ends, exclusive.
    """

    first: Int32[np.ndarray, "g"]
    last: Int32[np.ndarray, "g"]
    inner_first: Int32[np.ndarray, "g"]
    inner_last: Int32[np.ndarray, "g"]


def spans(length: int) -> Spans:
    """The groups of all intervals of an axis of even length: shorter ones first, then by place."""
    cells = np.arange(length, dtype=np.int32)
    firsts, lasts = intervals(length, 2, 2)
    inner_firsts, inner_lasts = intervals(length - 2, 2, 2)
    pairs = length // 2
    return Spans(
        np.concatenate([cells, firsts]),
        np.concatenate([cells + 1, lasts]),
        np.concatenate([cells, firsts[:pairs], inner_firsts + 1]),
        np.concatenate([cells + 1, lasts[:pairs], inner_lasts + 1]),
    )


def covered(x: Num[Array, "..."], axis: int) -> Num[Array, "..."]:
    """Maxima of what any interval of each group covers, in the order of `spans`."""
    pairs = strips(x, axis, jnp.maximum, shortest=2, step=2)
    return jnp.concatenate([x, *grow(*pairs, axis, jnp.maximum)], axis)


def shared(x: Num[Array, "..."], axis: int) -> Num[Array, "..."]:
    """Maxima of what all intervals of each group share, in the order of `spans`."""
    parts = [x, strips(x, axis, jnp.maximum, shortest=2, step=2)[0]]
    if x.shape[axis] > 2:
        inside = jax.lax.slice_in_dim(x, 1, x.shape[axis] - 1, axis=axis)
        parts += grow(*strips(inside, axis, jnp.maximum, shortest=2, step=2), axis, jnp.maximum)
    return jnp.concatenate(parts, axis)


class Lines(NamedTuple):
    """How bands of rows grow, group by group: from each even top downward, after single rows.

    Attributes:
        order: (g,) the groups of `spans` in the order in which their bands grow.
        starts: (g, 2) whether a band begins anew rather than from the one before: what the group
            covers, and what it shares.
        added: (g, 2) which of `lines` each adds.
    """

    order: Int32[np.ndarray, "g"]
    starts: np.ndarray
    added: Int32[np.ndarray, "g 2"]


def line_order(length: int) -> Lines:
    """The order of an axis of even length."""
    rows, pairs = spans(length), length // 2
    later = np.arange(rows.first.size) >= length
    order = np.lexsort((rows.last, rows.first, later)).astype(np.int32)
    top, bottom = rows.first[order] // 2, rows.last[order] // 2 - 1
    one, two = ~later[order], later[order] & (top == bottom)
    starts = np.stack([one | two, one | (bottom <= top + 1)], axis=1)
    # `lines` holds single rows, then pairs from an even row on, then pairs from an odd one on.
    both = np.stack([length + bottom, np.where(two, length, length + pairs - 1) + bottom], axis=1)
    added = np.where(one[:, None], rows.first[order][:, None], both)
    return Lines(order, starts, added.astype(np.int32))


def lines(x: Num[Array, "h w c"]) -> Num[Array, "g w c"]:
    """What bands of rows grow by."""
    parts = [x, strips(x, 0, jnp.maximum, shortest=2, step=2)[0]]
    if x.shape[0] > 2:
        parts.append(strips(x[1:-1], 0, jnp.maximum, shortest=2, step=2)[0])
    return jnp.concatenate(parts)
