"""Pooling by weighted sums: cells and channels count by what a picture looks like, or where it is.

`spoc_centre` trusts the middle of the map; `crow` trusts cells where much is going on and channels
that seldom speak. Both take one map; ``jax.vmap`` takes many.

References:
    SPoC: Babenko and Lempitsky, "Aggregating deep convolutional features for image retrieval", ICCV
    2015. CroW: Kalantidis, Mellina and Osindero, "Cross-dimensional weighting for aggregated deep
    convolutional features", ECCV Workshops 2016.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from rmacjax.integral import check_map, root
from rmacjax.normalization import float_dtype, l2_normalize

__all__ = ["crow", "spoc_centre", "valid_cells"]

SELDOM = 1e-6
"""Added to a channel's share of cells, so that the weight of one that never speaks is finite."""

CENTRE_SPREAD = 1 / 3
"""Standard deviation of the centre prior, as a share of the way from the centre to the edge."""


def spoc_centre(
    a1: Num[Array | np.ndarray, "h w c"], *, size: Int[Array | np.ndarray, "2"] | None = None
) -> Float[Array, "c"]:
    """Mean of each channel weighted towards the centre (SPoC with its centre prior).

    A cell weighs ``exp(-distance ** 2 / (2 sigma ** 2))`` by its middle's distance from the map's
    centre; sigma is a third of the way from the centre to the closest edge. The published sum is
    divided by the sum of the weights, which normalizing takes out again: it does not grow with the
    map.

    Args:
        a1: activation map, floats or quantised levels.
        size: valid (h, w) of a padded map, whose centre counts; None where all of it is valid. May
            be traced.

    Returns:
        (c,) float32, not normalized. Zero where no cell is valid.

    Raises:
        ValueError: a map without cells.

    References:
        Babenko and Lempitsky 2015, section 3 (the centering prior).

    >>> round(float(spoc_centre(np.float32([[[9]] * 3, [[9]] * 3, [[0]] * 3]))[0]), 2)
    8.04
    """
    x = jnp.asarray(a1)
    check_map(x)
    x = x.astype(float_dtype(x.dtype))
    h, w, _ = x.shape
    sides = (jnp.asarray([h, w]) if size is None else jnp.asarray(size)).astype(x.dtype)
    sigma = jnp.maximum(jnp.min(sides) / 2, 0.5) * CENTRE_SPREAD
    rows = (jnp.arange(h).astype(x.dtype) + 0.5 - sides[0] / 2) / sigma
    columns = (jnp.arange(w).astype(x.dtype) + 0.5 - sides[1] / 2) / sigma
    weights = jnp.exp(-0.5 * (rows * rows)[:, None, None]) * jnp.exp(
        -0.5 * (columns * columns)[None, :, None]
    )
    if size is not None:
        inside = valid_cells(x, size)
        x, weights = jnp.where(inside, x, 0.0), jnp.where(inside, weights, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(x * weights, axis=(0, 1)) / jnp.where(total > 0, total, 1.0)


def crow(
    a1: Num[Array | np.ndarray, "h w c"], *, size: Int[Array | np.ndarray, "2"] | None = None
) -> Float[Array, "c"]:
    """Sum of each channel, weighted by cell and by channel (CroW).

    With ``S`` the sum over channels, a cell weighs ``(S / ||S||) ** (1 / 2)``: much weight where
    many channels are awake. With ``Q_k`` the share of cells in which channel k is above zero, a
    channel weighs ``log((c e + sum of Q) / (e + Q_k))``, e = 1e-6: much weight where it is seldom.

    Args:
        a1: activation map, floats or quantised levels. Negative activations count as 0.
        size: valid (h, w) of a padded map; None where all of it is valid. May be traced.

    Returns:
        (c,) float32, not normalized. Zero where no cell is valid. The shares are counts, so their
        gradient is zero, and so is that of a dark cell. A NaN makes all of it NaN, because every
        weight comes of all channels or all cells.

    Raises:
        ValueError: a map without cells.

    References:
        Kalantidis et al. 2016, section 4, with a = b = 2.

    >>> [round(value, 3) for value in crow(np.float32([[[1, 5], [3, 0]]])).tolist()]
    [1.197, 5.195]
    """
    x = jnp.asarray(a1)
    check_map(x)
    x = x.astype(float_dtype(x.dtype))
    h, w, channels = x.shape
    x = jnp.where(x <= 0, 0.0, x)
    cells: Array | int = h * w
    if size is not None:
        inside = valid_cells(x, size)
        x = jnp.where(inside, x, 0.0)
        cells = jnp.maximum(jnp.sum(inside), 1).astype(x.dtype)
    # In units of the largest activation, nothing overflows or vanishes on the way.
    largest = jax.lax.stop_gradient(jnp.max(x))
    unit = jnp.where((largest > jnp.finfo(x.dtype).tiny) & jnp.isfinite(largest), largest, 1.0)
    x = x / unit
    awake = l2_normalize(jnp.sum(x, axis=2).reshape(-1)).reshape(h, w, 1)
    shares = jnp.sum(x > 0, axis=(0, 1)).astype(x.dtype) / cells
    seldom = jnp.log((channels * SELDOM + jnp.sum(shares)) / (SELDOM + shares))
    return jnp.sum(x * root(awake, 0.5), axis=(0, 1)) * seldom * unit


def valid_cells(x: Num[Array, "h w c"], size: Int[Array | np.ndarray, "2"]) -> Bool[Array, "h w 1"]:
    """Which cells of a padded map are valid."""
    h, w, _ = x.shape
    valid = jnp.asarray(size, jnp.int32)
    rows = jnp.arange(h, dtype=jnp.int32)[:, None, None] < valid[0]
    columns = jnp.arange(w, dtype=jnp.int32)[None, :, None] < valid[1]
    return rows & columns
