"""Pairs of descriptors: who belongs to whom, similarities, distances, and means over some pairs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rmacjax.localization.scoring import is_number
from rmacjax.normalization import float_dtype

COMPARED_AT_ONCE = 1 << 22
"""Triplets of rows that are in memory at a time, or those of one row where these are more."""


def pair_masks(
    labels: Int[Array | np.ndarray, "n"], clusters: Int[Array | np.ndarray, "n"]
) -> tuple[Bool[Array, "n n"], Bool[Array, "n n"]]:
    """Say which rows are positives, and which negatives, of each row.

    Args:
        labels: rows of one label show the same object; -1 takes no part.
        clusters: rows of one cluster may show the same object, so they are not each other's
            negatives. The labels themselves where nothing else is known.

    Returns:
        positives (n, n): the same label, and another row; negatives (n, n): another label and
        another cluster. Both are symmetric; no pair is in both.

    >>> positives, negatives = pair_masks(np.asarray([3, 3, 5, -1]), np.asarray([0, 0, 1, 2]))
    >>> positives.astype(int).tolist()
    [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    >>> negatives.astype(int).tolist()
    [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    """
    label, cluster = jnp.asarray(labels), jnp.asarray(clusters)
    there = (label[:, None] >= 0) & (label[None, :] >= 0)
    same = label[:, None] == label[None, :]
    apart = cluster[:, None] != cluster[None, :]
    return there & same & ~jnp.eye(len(label), dtype=bool), there & ~same & apart


def participants(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
) -> tuple[Float[Array, "n d"], Bool[Array, "n n"], Bool[Array, "n n"]]:
    """Bring a loss's arrays into shape; rows that no mask names become zero, even if they are NaN.

    Raises:
        ValueError: a mask of another shape than (n, n).
    """
    x = jnp.asarray(descriptors)
    x = x.astype(float_dtype(x.dtype))
    n = x.shape[0]
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask.shape != (n, n):
            raise ValueError(
                f"{name} has shape {mask.shape}, but {n} descriptors have {(n, n)} pairs; make "
                "the masks with pair_masks."
            )
    near, far = jnp.asarray(positives), jnp.asarray(negatives)
    named = near | far
    there = jnp.any(named, axis=0) | jnp.any(named, axis=1)
    return jnp.where(there[:, None], x, 0.0), near, far


def similarities(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Dot products of all rows with all rows; cosines where the rows are unit vectors."""
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def squared_distances(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Squared Euclidean distances of all rows from all rows, without a row for each pair."""
    squares = jnp.sum(x * x, axis=1)
    return jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * similarities(x), 0.0)


def distances(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Distances of all rows from all rows, with no gradient between rows that coincide.

    Rows so close that rounding decides their distance, about a thousandth in float32, coincide:
    there is no direction to tell them apart by, and a quotient of two roundings has no bound.
    """
    squares = squared_distances(x)
    lengths = jnp.sum(x * x, axis=1)
    noise = 4.0 * jnp.finfo(x.dtype).eps * (lengths[:, None] + lengths[None, :])
    known = ~(squares <= jax.lax.stop_gradient(noise))
    return jnp.where(known, jnp.sqrt(jnp.where(known, squares, 1.0)), 0.0)


def mean_where(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The mean of the values that a mask picks; 0, with a zero gradient, where it picks none."""
    count = jnp.sum(mask, dtype=values.dtype)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1.0)


def first_positives(
    positives: Bool[Array, "n"], most: int | None
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Places of a row's positives, the first `most` of them, and which of the places are some."""
    n = positives.shape[0]
    if most is None or most >= n:
        return jnp.arange(n, dtype=jnp.int32), positives
    return jax.lax.top_k(positives.astype(jnp.int32), most)[1], _first(positives, most)


def rows_at_once(n: int, most: int | None) -> int:
    """How many rows may be compared with their positives and everything else at a time."""
    return max(1, min(n, COMPARED_AT_ONCE // max(1, n * (n if most is None else min(most, n)))))


def check_above_zero(name: str, value: ArrayLike) -> None:
    """Refuse an option that is a plain number and not above 0."""
    if is_number(value) and not float(value) > 0:
        raise ValueError(f"{name} is {value}, but it lies above 0.")


def check_most(most: int | None) -> None:
    """Refuse a number of positives below 1."""
    if most is not None and most < 1:
        raise ValueError(
            f"most_positives is {most}, but at least 1 of a row's positives counts; None for all."
        )


def _first(positives: Bool[Array, "n"], most: int) -> Bool[Array, "k"]:
    return jnp.arange(most, dtype=jnp.int32) < jnp.sum(positives, dtype=jnp.int32)
