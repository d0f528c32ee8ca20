"""Integral max-pooling: one table per map, then the maximum of any box at a price of its width.

The maximum over a box R is approximated by the generalized mean

    f_R = (sum over R of x ** alpha) ** (1 / alpha),

a sum, so that a table of partial sums serves every box. The paper's table holds sums over
everything above and left of a cell, and a box is a *difference* of four of them. In float32 these
differences lose whole quantisation levels, because x ** 10 spans more digits than a float has, and
even float64 leaves noise where a box is dark and its surroundings are bright.

The table here subtracts nothing. It halves the rows again and again and keeps, at each level, the
sums from every row to the middle of its block. Any range of rows then is two of its rows laid end
to end: from the first row down to a middle, and from that middle down to the last. What is added
is only what lies inside the box, so the result is as precise as the box's own sum, for levels and
floats alike, and an empty box is exactly zero. The same table with maxima in place of sums gives
exact maxima in any type, without power and root.

References:
    Tolias, Sicre and Jégou, ICLR 2016, section 4.1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num, UInt8

from rmacjax.normalization import float_dtype

__all__ = [
    "IntegralImage",
    "box_generalized_mean",
    "box_maximum",
    "integral_image",
    "quantize",
    "row_max_table",
]

LEVELS = 8
"""Quantised activations are the integers 0..8."""


class IntegralImage(NamedTuple):
    """What `box_generalized_mean` needs to know of a map; a pytree of three arrays.

    Attributes:
        sums: (l, H, w, c) sums of ``(x / unit) ** alpha`` over rows; l levels, H >= h a power of 2.
        unit: (c,) the unit of each channel, chosen so that powers and sums stay in range.
        alpha: () the exponent.
    """

    sums: Float[Array, "l H w c"]
    unit: Float[Array, "c"]
    alpha: Float[Array, ""]


def quantize(
    a: Num[Array | np.ndarray, "*shape"], scale: Num[ArrayLike, ""] = 1.0
) -> UInt8[Array, "*shape"]:
    """Quantise activations to the levels 0..8: ``floor((15 + min(x * scale, 128)) / 16)``.

    Level k >= 1 means ``16 (k - 1) + 1 <= x * scale < 16 k + 1``, and 8 everything from 113 on.
    Computed as ``floor((x * scale - 1) / 16) + 1``, which float32 does without rounding.

    Args:
        a: activations of any shape.
        scale: brings activations to the range of the paper's networks, whose maxima are about 128.

    Returns:
        The same shape, uint8. Negative and NaN activations are level 0.

    References:
        The authors' program, which stores these levels in four bits each.

    >>> quantize(np.asarray([0.0, 0.5, 1.0, 16.5, 17.0, 500.0])).tolist()
    [0, 0, 1, 1, 2, 8]
    """
    x = jnp.asarray(a).astype(jnp.float32) * jnp.asarray(scale).astype(jnp.float32)
    levels = jnp.clip(jnp.floor((x - 1.0) / 16.0) + 1.0, 0.0, float(LEVELS))
    return jnp.where(jnp.isnan(x), 0.0, levels).astype(jnp.uint8)


def integral_image(a1: Num[Array | np.ndarray, "h w c"], alpha: int | float = 10) -> IntegralImage:
    """Table from which `box_generalized_mean` takes any box of the map.

    Args:
        a1: activation map, floats or quantised levels. Negative activations count as 0.
        alpha: the exponent, at least 1; 1 sums, more comes closer to the maximum. Powers have to
            fit into a float, so activations below 2 ** (-200 / alpha) of their channel's maximum
            count as 0: a millionth at 10, a thirtieth at 40. `row_max_table` is the limit.

    Returns:
        The table, float32 (float64 for a float64 map); with l = ceil(log2 h) it takes l to 2 l
        times the memory of the map.

    Raises:
        ValueError: alpha below 1 or not finite, or a map without cells.

    References:
        Tolias et al. 2016, section 4.1.
    """
    alpha = float(alpha)
    if not (math.isfinite(alpha) and alpha >= 1.0):
        raise ValueError(f"alpha is {alpha}, but the exponent of a generalized mean is at least 1.")
    x = jnp.asarray(a1)
    check_map(x)
    powers, unit = channel_powers(x.astype(float_dtype(x.dtype)), alpha)
    return IntegralImage(
        _row_table(powers, jnp.add, 0.0), unit, jnp.asarray(alpha, dtype=powers.dtype)
    )


def box_generalized_mean(
    table: IntegralImage, box: Int[Array | np.ndarray, "4"]
) -> Float[Array, "c"]:
    """The generalized mean of every channel over one box: ``(sum of x ** alpha) ** (1 / alpha)``.

    Args:
        table: of `integral_image`.
        box: (top, left, bottom, right) in cells, traced or not; clipped to the map.

    Returns:
        (c,) in the map's unit; precise to about 1e-6 of itself. Zero where the box is empty, with a
        zero gradient there. A NaN or infinite activation inside the box, and only inside, shows.

    References:
        Tolias et al. 2016, equation 8.

    >>> map_ = np.arange(12.0).reshape(2, 6, 1)
    >>> table = integral_image(map_)
    >>> round(float(box_generalized_mean(table, np.asarray([0, 1, 2, 3]))[0]), 2)
    8.19
    """
    sums = _reduce_box(table.sums, jnp.asarray(box, jnp.int32), jnp.add, jnp.sum, 0.0)
    return out_of_units(root(sums, 1.0 / table.alpha), table.unit)


def row_max_table(a1: Num[Array | np.ndarray, "h w c"]) -> Num[Array, "l H w c"]:
    """Table from which `box_maximum` takes the exact maximum of any box of the map.

    Args:
        a1: activation map of any real type.

    Returns:
        (l, H, w, c) in the map's type; H >= h is a power of 2, l its logarithm (at least 1).

    Raises:
        ValueError: a map without cells.
    """
    x = jnp.asarray(a1)
    check_map(x)
    return _row_table(x, jnp.maximum, _least(x.dtype))


def box_maximum(table: Num[Array, "l H w c"], box: Int[Array | np.ndarray, "4"]) -> Num[Array, "c"]:
    """The exact maximum of every channel over one box.

    Args:
        table: of `row_max_table`.
        box: (top, left, bottom, right) in cells, traced or not; clipped to the map.

    Returns:
        (c,) in the map's type; zero where the box is empty. A NaN inside the box, and only inside,
        makes its channel NaN.

    >>> table = row_max_table(np.arange(12).reshape(2, 6, 1))
    >>> box_maximum(table, np.asarray([0, 1, 2, 3])).tolist()
    [8]
    """
    edges = jnp.asarray(box, jnp.int32)
    least = _least(table.dtype)
    maxima = _reduce_box(table, edges, jnp.maximum, jnp.max, least)
    # Rows that only pad the table hold the least value, and so does a box without cells.
    return jnp.where(maxima == least, jnp.zeros((), table.dtype), maxima)


def channel_powers(
    x: Float[Array, "h w c"], alpha: float
) -> tuple[Float[Array, "h w c"], Float[Array, "c"]]:
    """Powers ``(x / unit) ** alpha`` in a unit per channel that uses most of a float's range.

    Larger units of powers keep smaller activations from underflowing; but the gradient of a box's
    mean with respect to a power shrinks as the powers grow, and must not underflow either. So the
    largest sum over the map is put at 2 ** 90 of a float32: activations of a millionth of their
    channel's maximum still count at alpha = 10, and gradients of 1e-9 still come through.

    Args:
        x: activation map; negative activations count as 0.
        alpha: the exponent, at least 1.

    Returns:
        The powers (h, w, c) and the unit (c,), by which a root is to be multiplied.
    """
    finite = jnp.where(jnp.isfinite(x), x, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(finite, axis=(0, 1)))
    headroom = 0.7 * jnp.finfo(x.dtype).maxexp - math.log2(x.shape[0] * x.shape[1])
    stretch = 2.0 ** (headroom / alpha)
    unit = jnp.where(largest > 0, jnp.maximum(largest / stretch, jnp.finfo(x.dtype).tiny), 1.0)
    return power(_in_units(x, unit[None, None, :]), alpha), unit


@jax.custom_jvp
def _in_units(x: Array, unit: Array) -> Array:
    """``x / unit``, with the derivative of x itself.

    A generalized mean is taken in units and then put back (`out_of_units`), and its derivative has
    no unit: leaving the two factors out, where they cancel, is right at every scale. Multiplied in,
    they would underflow one after the other.
    """
    return x / unit


@jax.custom_jvp
def out_of_units(x: Float[Array, "*shape"], unit: Float[Array, "*units"]) -> Float[Array, "*shape"]:
    """``x * unit``, which undoes the units of `channel_powers`, with the derivative of x itself."""
    return x * unit


_in_units.defjvp(lambda primals, tangents: (_in_units(*primals), tangents[0]))
out_of_units.defjvp(lambda primals, tangents: (out_of_units(*primals), tangents[0]))


def power(x: Float[Array, "*shape"], exponent: float) -> Float[Array, "*shape"]:
    """``max(x, 0) ** exponent`` for a fixed exponent of at least 1; small integers by squaring."""
    x = jnp.where(x < 0, 0.0, x)
    if exponent == int(exponent) and exponent <= 64:
        return jax.lax.integer_pow(x, int(exponent))
    return jnp.where(x == 0, 0.0, jnp.where(x == 0, 1.0, x) ** exponent)


def root(
    sums: Float[Array, "*shape"], exponent: Float[Array, ""] | float
) -> Float[Array, "*shape"]:
    """``sums ** exponent`` for sums of non-negative terms; zero, with a zero gradient, at zero."""
    exponent = jnp.asarray(exponent, sums.dtype)
    return jnp.where(sums == 0, 0.0, jax.lax.pow(jnp.where(sums == 0, 1.0, sums), exponent))


def check_map(x: Array) -> None:
    """Refuse what is not one activation map with cells."""
    if x.ndim != 3 or 0 in x.shape[:2]:
        raise ValueError(
            f"Expected one activation map (h, w, c) of at least 1 x 1 cells, but got {x.shape}; "
            "jax.vmap takes a batch."
        )


def _row_table(
    rows: Array, combine: Callable[[Array, Array], Array], identity: float | int
) -> Array:
    """All combinations of rows from each row to the middle of its block, at every block size.

    Level k has blocks of 2 ** (k + 1) rows. A row of a block's upper half holds the combination of
    the rows from itself down to the middle; one of the lower half, from the middle down to itself.
    """
    h, *rest = rows.shape
    levels = max(1, (h - 1).bit_length())
    padding = ((0, (1 << levels) - h), *((0, 0) for _ in rest))
    above = below = jnp.pad(rows, padding, constant_values=identity)
    table = []
    for level in range(levels):
        # `above` reaches up to the start, `below` down to the end, of a block of 2 ** level rows.
        above = above.reshape(-1, 2, 1 << level, *rest)
        below = below.reshape(-1, 2, 1 << level, *rest)
        table.append(jnp.stack([below[:, 0], above[:, 1]], axis=1))
        above = jnp.stack([above[:, 0], combine(above[:, 0, -1:], above[:, 1])], axis=1)
        below = jnp.stack([combine(below[:, 0], below[:, 1, :1]), below[:, 1]], axis=1)
    return jnp.stack([part.reshape(-1, *rest) for part in table])


def _reduce_box(
    table: Array,
    box: Array,
    combine: Callable[[Array, Array], Array],
    reduce: Callable[..., Array],
    identity: float | int,
) -> Array:
    """One box from a table of `_row_table`: two rows end to end, then the columns in between."""
    _, rows, columns, channels = table.shape
    lines = table.reshape(-1, columns, channels)
    top, left, bottom, right = box
    first, last = jnp.maximum(top, 0), jnp.minimum(bottom, rows) - 1
    # The highest bit in which the two rows differ says whose block's middle lies between them.
    level = jnp.maximum(31 - jax.lax.clz(first ^ last), 0)
    none = jnp.asarray(identity, table.dtype)
    lower = jnp.where(first == last, none, lines[level * rows + last])
    band = combine(lines[level * rows + first], lower)
    column = jnp.arange(columns, dtype=jnp.int32)
    inside = (column >= left) & (column < right) & (first <= last)
    return reduce(jnp.where(inside[:, None], band, none), axis=0)


def _least(dtype: np.dtype) -> float | int:
    if jnp.issubdtype(dtype, jnp.floating):
        return -math.inf
    return int(jnp.iinfo(dtype).min)
