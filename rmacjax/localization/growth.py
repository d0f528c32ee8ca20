"""Growing all intervals of an axis at once, each from a shorter one and one more strip of cells."""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import numpy as np
from jaxtyping import Array, Int32

Combine = Callable[[Array, Array], Array]
"""What two neighbouring parts of a box combine by: ``jnp.maximum`` or ``jnp.add``."""


def intervals(
    length: int, shortest: int = 1, step: int = 1
) -> tuple[Int32[np.ndarray, "i"], Int32[np.ndarray, "i"]]:
    """First and (exclusive) last cells of all intervals that `grow` makes, in its order.

    They begin at every `step`-th cell and are shortest, shortest + step, .. cells long; shorter
    ones come first.
    """
    count = max(0, (length - shortest) // step + 1)
    pairs = [(i, i + j) for j in range(count) for i in range(count - j)]
    firsts, lasts = np.asarray(pairs, np.int32).reshape(-1, 2).T
    return step * firsts, step * lasts + shortest


def strips(
    x: Array, axis: int, combine: Combine, *, shortest: int = 1, step: int = 1
) -> tuple[Array, Array]:
    """What intervals grow from: their `shortest` first cells, and every further `step` cells.

    The axis must have room for one interval; of n first parts there are n - 1 further strips.
    """
    count = (x.shape[axis] - shortest) // step + 1

    def joined(start: int, cells: int, number: int) -> Array:
        """At each of `number` places, `step` apart, this many cells from there on."""
        first, last = start, start + step * (number - 1) + 1
        return reduce(
            combine,
            (jax.lax.slice_in_dim(x, first + k, last + k, step, axis) for k in range(cells)),
        )

    if count == 1:
        return joined(0, shortest, 1), jax.lax.slice_in_dim(x, 0, 0, axis=axis)
    return joined(0, shortest, count), joined(shortest, step, count - 1)


def grow(first: Array, more: Array, axis: int, combine: Combine) -> list[Array]:
    """All intervals along an axis, one array for each length, from what `strips` gave."""
    count = first.shape[axis]
    grown = [first]
    for length in range(1, count):
        shorter = jax.lax.slice_in_dim(grown[-1], 0, count - length, axis=axis)
        strip = jax.lax.slice_in_dim(more, length - 1, count - 1, axis=axis)
        grown.append(combine(shorter, strip))
    return grown


def runs(more: Array, axis: int, combine: Combine) -> list[Array]:
    """From the further strips that `strips` gave, runs of 1, 2, 4, .. of them."""
    joined, length = [more], 1
    while (left := joined[-1].shape[axis] - length) > 0:
        run = joined[-1]
        later = jax.lax.slice_in_dim(run, length, length + left, axis=axis)
        joined.append(combine(jax.lax.slice_in_dim(run, 0, left, axis=axis), later))
        length *= 2
    return joined


def interval(
    first: Array, joined: Sequence[Array], axis: int, combine: Combine, length: int
) -> Array:
    """All intervals of one length, in further strips, from their first cells and `runs`."""
    places, done = first.shape[axis] - length, 0
    x = jax.lax.slice_in_dim(first, 0, places, axis=axis)
    for power, run in enumerate(joined):
        if length >> power & 1:
            x = combine(x, jax.lax.slice_in_dim(run, done, done + places, axis=axis))
            done += 1 << power
    return x
