"""Pooling: one vector from an activation map, or one from each of its regions.

`mac`, `spoc` and `gem` pool the whole map (`rmacjax.weighting` has two more); `region_maxima` pools
boxes; `rmac` and `rgem` join the regions of a grid into one descriptor by way of
`aggregate_regions`. All take one map; ``jax.vmap`` takes many.

References:
    MAC, R-MAC: Tolias, Sicre and Jégou, ICLR 2016. SPoC: Babenko and Lempitsky, ICCV 2015. GeM and
    regional GeM: Radenović, Tolias and Chum, PAMI 2018.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from rmacjax.integral import (
    box_generalized_mean,
    box_maximum,
    check_map,
    integral_image,
    root,
    row_max_table,
)
from rmacjax.normalization import float_dtype, l2_normalize
from rmacjax.regions import rmac_regions
from rmacjax.weighting import valid_cells
from rmacjax.whitening import Whitening, whiten

__all__ = [
    "aggregate_regions",
    "gem",
    "mac",
    "pad_regions",
    "region_gems",
    "region_generalized_means",
    "region_maxima",
    "region_vectors",
    "rgem",
    "rmac",
    "spoc",
]


def mac(
    a1: Num[Array | np.ndarray, "h w c"], *, size: Int[Array | np.ndarray, "2"] | None = None
) -> Num[Array, "c"]:
    """Maximum of each channel (MAC): ``max over cells of x``.

    Args:
        a1: activation map, floats or quantised levels.
        size: valid (h, w) of a padded map; None where all of it is valid. May be traced.

    Returns:
        (c,) in the map's type, not normalized. Zero where no cell is valid.

    Raises:
        ValueError: a map without cells.

    References:
        Tolias et al. 2016, section 3.1.

    >>> mac(np.float32([[[1, 5], [3, 2]]])).tolist()
    [3.0, 5.0]
    """
    x = jnp.asarray(a1)
    check_map(x)
    if size is None:
        return jnp.max(x, axis=(0, 1))
    inside = valid_cells(x, size)
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    maxima = jnp.max(jnp.where(inside, x, jnp.asarray(least, x.dtype)), axis=(0, 1))
    return jnp.where(jnp.any(inside), maxima, jnp.zeros((), x.dtype))


def spoc(
    a1: Num[Array | np.ndarray, "h w c"], *, size: Int[Array | np.ndarray, "2"] | None = None
) -> Float[Array, "c"]:
    """Mean of each channel (SPoC without its centre prior): ``mean over cells of x``.

    Sum-pooled convolutional features are a sum; once normalized, sum and mean are the same, and the
    mean does not grow with the image.

    Args:
        a1: activation map, floats or quantised levels.
        size: valid (h, w) of a padded map; None where all of it is valid. May be traced.

    Returns:
        (c,) float32, not normalized. Zero where no cell is valid.

    Raises:
        ValueError: a map without cells.

    References:
        Babenko and Lempitsky 2015, section 3.1.

    >>> spoc(np.float32([[[1, 5], [3, 2]]])).tolist()
    [2.0, 3.5]
    """
    x = jnp.asarray(a1)
    check_map(x)
    return _mean(x.astype(float_dtype(x.dtype)), size)


def gem(
    a1: Num[Array | np.ndarray, "h w c"],
    p: Num[ArrayLike, ""] = 3,
    *,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Float[Array, "c"]:
    """Generalized mean of each channel (GeM): ``(mean over cells of x ** p) ** (1 / p)``.

    p = 1 is the mean (`spoc`), and the larger p, the closer to the maximum (`mac`). Each channel is
    divided by its maximum before the power, so no p overflows. Other programs clamp activations at
    1e-6 for the gradient's sake; here a dark channel is exactly zero, and so is its gradient.

    Args:
        a1: activation map, floats or quantised levels. Negative activations count as 0.
        p: the exponent, above 0; may be traced and learned.
        size: valid (h, w) of a padded map; None where all of it is valid. May be traced.

    Returns:
        (c,) float32, not normalized. Zero where no cell is valid.

    Raises:
        ValueError: p not above 0 (where p is a plain number), or a map without cells.

    References:
        Radenović et al. 2018, equation 3.

    >>> [round(value, 3) for value in gem(np.float32([[[1, 5], [3, 2]]])).tolist()]
    [2.41, 4.051]
    """
    _check_exponent(p)
    x = jnp.asarray(a1)
    check_map(x)
    x = x.astype(float_dtype(x.dtype))
    x = jnp.where(x <= 0, 0.0, x)
    if size is not None:
        x = jnp.where(valid_cells(x, size), x, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(x, axis=(0, 1)))
    scale = jnp.where((largest > jnp.finfo(x.dtype).tiny) & jnp.isfinite(largest), largest, 1.0)
    exponent = jnp.asarray(p).astype(x.dtype)
    dark = x == 0
    powers = jnp.where(dark, 0.0, jnp.where(dark, 1.0, x / scale[None, None, :]) ** exponent)
    return root(_mean(powers, size), 1.0 / exponent) * scale


def region_maxima(
    a1: Num[Array | np.ndarray, "h w c"],
    boxes: Int[Array | np.ndarray, "r 4"],
    *,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Num[Array, "r c"]:
    """Exact maximum of each channel over each box (integral max-pooling without the integral).

    Args:
        a1: activation map, floats or quantised levels.
        boxes: (top, left, bottom, right) in cells, traced or not; clipped to the map.
        size: valid (h, w) of a padded map, to which boxes are clipped too. May be traced.

    Returns:
        (r, c) in the map's type. Zero where a box is empty, as padding boxes (0, 0, 0, 0) are. A
        NaN shows in the boxes that contain it and in no other.

    References:
        Tolias et al. 2016, sections 3.2 and 4.1.

    >>> region_maxima(np.arange(12).reshape(3, 4, 1), np.asarray([[0, 0, 2, 2], [0] * 4])).tolist()
    [[5], [0]]
    """
    table = row_max_table(a1)
    return jax.vmap(box_maximum, in_axes=(None, 0))(table, _clip(boxes, size))


def region_generalized_means(
    a1: Num[Array | np.ndarray, "h w c"],
    boxes: Int[Array | np.ndarray, "r 4"],
    alpha: int | float = 10,
    *,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Float[Array, "r c"]:
    """Generalized mean over each box: the paper's approximation of `region_maxima`.

    ``(sum over the box of x ** alpha) ** (1 / alpha)``: a sum, so it lies between the maximum and
    the maximum times ``cells ** (1 / alpha)``.

    Args:
        a1: activation map, floats or quantised levels. Negative activations count as 0.
        boxes: (top, left, bottom, right) in cells, traced or not; clipped to the map.
        alpha: the exponent, at least 1.
        size: valid (h, w) of a padded map, to which boxes are clipped too. May be traced.

    Returns:
        (r, c) float32. Zero where a box is empty.

    Raises:
        ValueError: alpha below 1.

    References:
        Tolias et al. 2016, section 4.1.
    """
    table = integral_image(a1, alpha)
    return jax.vmap(box_generalized_mean, in_axes=(None, 0))(table, _clip(boxes, size))


def region_gems(
    a1: Num[Array | np.ndarray, "h w c"],
    boxes: Int[Array | np.ndarray, "r 4"],
    p: Num[ArrayLike, ""] = 10,
    *,
    size: Int[Array | np.ndarray, "2"] | None = None,
) -> Float[Array, "r c"]:
    """GeM of each box, for learning: differentiable in the map and in the exponent.

    ``(mean over the box of x ** p) ** (1 / p)``, from the mean at p = 1 to the maximum as p grows.
    It is `region_generalized_means` but for a factor that all channels of a box share; that one
    reads a table of prefix sums, this one every cell of every box, each box by the logarithm of its
    own maximum, so that no exponent is too large.

    Args:
        a1: activation map. Negative activations count as 0.
        boxes: (top, left, bottom, right) in cells, traced or not; clipped to the map.
        p: the exponent, above 0; may be traced and learned.
        size: valid (h, w) of a padded map, to which boxes are clipped too. May be traced.

    Returns:
        (r, c) float32. Zero where a box is empty or a channel is dark in it, and so is the
        gradient there; a dark cell has no gradient.

    Raises:
        ValueError: p not above 0 (where p is a plain number), or a map without cells.

    References:
        Radenović et al. 2018, equation 3; Tolias et al. 2016, section 4.1.

    >>> map_ = np.float32([[[1], [3]], [[2], [2]]])
    >>> pooled = region_gems(map_, np.asarray([[0, 0, 1, 2], [0, 0, 2, 2]]), 2)
    >>> [round(value, 3) for value in pooled[:, 0].tolist()]
    [2.236, 2.121]
    """
    _check_exponent(p)
    x = jnp.asarray(a1)
    check_map(x)
    x = x.astype(float_dtype(x.dtype))
    exponent = jnp.asarray(p).astype(x.dtype)
    lit = x >= jnp.finfo(x.dtype).tiny
    logs = jnp.log(jnp.where(lit, x, 1.0))
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None, None]
    columns = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :, None]

    @jax.checkpoint
    def pool(box: Array) -> Array:
        top, left, bottom, right = box
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        seen = inside & lit
        some = jnp.any(seen, axis=(0, 1))
        peak = jax.lax.stop_gradient(jnp.max(jnp.where(seen, logs, -jnp.inf), axis=(0, 1)))
        peak = jnp.where(some, peak, 0.0)
        below = jnp.where(seen, logs - peak[None, None, :], 0.0)
        powers = jnp.where(seen, jnp.exp(exponent * below), 0.0)
        mean = jnp.sum(powers, axis=(0, 1)) / jnp.maximum(jnp.sum(inside), 1).astype(x.dtype)
        value = jnp.exp(peak + jnp.log(jnp.where(some, mean, 1.0)) / exponent)
        return jnp.where(some, value, 0.0)

    return jax.lax.map(pool, _clip(boxes, size))


def rmac(
    a1: Num[Array | np.ndarray, "h w c"],
    levels: int = 3,
    whitening: Whitening | None = None,
    with_global: bool = False,
) -> Float[Array, "d"]:
    """R-MAC descriptor: the maxima of a grid of regions, normalized, whitened and summed.

    Args:
        a1: activation map, floats or quantised levels; none of it padding.
        levels: scales of the region grid.
        whitening: applied to each region; None leaves it out.
        with_global: adds the MAC of the whole map as one more region, the last. The paper has none;
            a widespread PyTorch port has it, and does not whiten.

    Returns:
        (d,) float32 of unit length, d = c without whitening; zero for a map without activations.

    Raises:
        ValueError: fewer than one level.

    References:
        Tolias et al. 2016, section 3.2.

    >>> descriptor = rmac(np.ones((6, 8, 4), np.float32))
    >>> np.round(descriptor, 2).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    return aggregate_regions(region_maxima(a1, _grid(a1, levels, with_global)), whitening)


def rgem(
    a1: Num[Array | np.ndarray, "h w c"],
    p: int | float = 3,
    *,
    levels: int = 3,
    whitening: Whitening | None = None,
    with_global: bool = False,
) -> Float[Array, "d"]:
    """Regional GeM: R-MAC with the generalized mean of each region in place of its maximum.

    Regions are those of `rmac`, and so is what follows: each is normalized, whitened and summed. A
    region's mean and its sum of powers differ by a factor, which normalizing takes out.

    Args:
        a1: activation map, floats or quantised levels; none of it padding. Negative activations
            count as 0.
        p: the exponent, at least 1; a plain number.
        levels: scales of the region grid.
        whitening: applied to each region; None leaves it out.
        with_global: adds the GeM of the whole map as one more region, the last.

    Returns:
        (d,) float32 of unit length, d = c without whitening; zero for a map without activations.

    Raises:
        ValueError: fewer than one level, or p below 1.

    References:
        Radenović et al. 2018, equation 3; Tolias et al. 2016, section 3.2.

    >>> descriptor = rgem(np.ones((6, 8, 4), np.float32))
    >>> np.round(descriptor, 2).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    boxes = _grid(a1, levels, with_global)
    return aggregate_regions(region_generalized_means(a1, boxes, p), whitening)


def aggregate_regions(
    vectors: Num[Array | np.ndarray, "r c"],
    whitening: Whitening | None = None,
    mask: Bool[Array | np.ndarray, "r"] | None = None,
) -> Float[Array, "d"]:
    """Join region vectors into a descriptor: l2, whiten, l2, sum over regions, l2.

    Args:
        vectors: one pooled vector per region.
        whitening: applied to each region; None leaves it out.
        mask: False for rows that are no region. Zero rows contribute nothing in any case.

    Returns:
        (d,) float32 of unit length; zero where there is nothing to sum.

    References:
        Tolias et al. 2016, section 3.2.

    >>> joined = aggregate_regions(np.float32([[3, 0], [0, 7], [0, 0]]))
    >>> [round(value, 3) for value in joined.tolist()]
    [0.707, 0.707]
    """
    return l2_normalize(jnp.sum(region_vectors(vectors, whitening, mask), axis=0))


def region_vectors(
    vectors: Num[Array | np.ndarray, "r c"],
    whitening: Whitening | None = None,
    mask: Bool[Array | np.ndarray, "r"] | None = None,
) -> Float[Array, "r d"]:
    """Normalize and whiten each region's vector by itself: l2, whiten, l2.

    They are what `aggregate_regions` sums up.

    Args:
        vectors: one pooled vector per region.
        whitening: applied to each region; None leaves it out.
        mask: False for rows that are no region.

    Returns:
        (r, d) float32, unit rows; zero for zero rows and for those that are no region.

    References:
        Tolias et al. 2016, section 3.2.

    >>> region_vectors(np.float32([[3, 4], [0, 7]]), mask=np.asarray([False, True])).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    x = jnp.asarray(vectors)
    x = l2_normalize(x.astype(float_dtype(x.dtype)))
    if whitening is not None:
        x = whiten(whitening, x)
    if mask is not None:
        x = jnp.where(jnp.asarray(mask)[:, None], x, 0.0)
    return x


def pad_regions(regions: Int[np.ndarray, "r 4"], rows: int) -> Int[np.ndarray, "rows 4"]:
    """Append empty boxes, so that maps with different numbers of regions share one program.

    Args:
        regions: boxes in cells.
        rows: the number of boxes wanted, such as `rmacjax.regions.max_regions`.

    Returns:
        (rows, 4) int32; the boxes (0, 0, 0, 0) at the end mean "no region".

    Raises:
        ValueError: more regions than rows.

    >>> pad_regions(np.asarray([[0, 0, 2, 2]]), 2).tolist()
    [[0, 0, 2, 2], [0, 0, 0, 0]]
    """
    count = len(regions)
    if count > rows:
        raise ValueError(f"{count} regions do not fit in {rows} rows; ask for at least {count}.")
    padded = np.zeros((rows, 4), np.int32)
    padded[:count] = regions
    return padded


def _check_exponent(p: ArrayLike) -> None:
    """Raise a ValueError where the exponent of a generalized mean is a number not above 0."""
    if not isinstance(p, jax.Array) and not float(np.asarray(p)) > 0:
        raise ValueError(f"p is {p}, but the exponent of a generalized mean lies above 0.")


def _grid(a1: Array | np.ndarray, levels: int, with_global: bool) -> np.ndarray:
    h, w, _ = a1.shape
    boxes = rmac_regions(h, w, levels)
    if with_global:
        boxes = np.concatenate([boxes, np.asarray([[0, 0, h, w]], np.int32)])
    return boxes


def _mean(x: Array, size: Array | np.ndarray | None) -> Array:
    if size is None:
        return jnp.mean(x, axis=(0, 1))
    inside = valid_cells(x, size)
    cells = jnp.maximum(jnp.sum(inside), 1).astype(x.dtype)
    return jnp.sum(jnp.where(inside, x, 0.0), axis=(0, 1)) / cells


def _clip(boxes: Array | np.ndarray, size: Array | np.ndarray | None) -> Array:
    edges = jnp.asarray(boxes, jnp.int32)
    if size is None:
        return edges
    last = jnp.tile(jnp.asarray(size, jnp.int32), 2)
    return jnp.clip(edges, 0, last[None, :])
