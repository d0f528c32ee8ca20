"""Growing all intervals of an axis at once, each from a shorter one and one more strip of cells."""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
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


def strips(x: Array, axis: int, combine: Combine, *, shortest: int = 1, step: int = 1) -> Array:
    """What intervals grow from: their `shortest` first cells, then every further `step` cells.

    The axis must have room for one interval; of n first parts and n - 1 further strips it gets
    2 n - 1 entries.
    """
    count = (x.shape[axis] - shortest) // step + 1

    def joined(start: int, cells: int, number: int) -> Array:
        """At each of `number` places, `step` apart, this many cells from there on."""
        shifted = (slice(start + k, start + k + step * number, step) for k in range(cells))
        return reduce(combine, (x[(slice(None),) * axis + (part,)] for part in shifted))

    first, more = joined(0, shortest, count), joined(shortest, step, count - 1)
    return jnp.concatenate([first, more], axis=axis)


def grow(parts: Array, axis: int, combine: Combine) -> list[Array]:
    """All intervals along an axis, one array for each length, from what `strips` gave."""
    count = (parts.shape[axis] + 1) // 2
    grown = [jax.lax.slice_in_dim(parts, 0, count, axis=axis)]
    for length in range(1, count):
        shorter = jax.lax.slice_in_dim(grown[-1], 0, count - length, axis=axis)
        strip = jax.lax.slice_in_dim(parts, count + length - 1, 2 * count - 1, axis=axis)
        grown.append(combine(shorter, strip))
    return grown
