"""Database-side augmentation: every photo's descriptor takes in those of its nearest neighbours.

What query expansion does for a query at each search is done for the photos beforehand, once, and
costs nothing at search time. Photos of the same thing draw together; where a collection shows most
things once only, neighbours are strangers, and blur.
"""

import numpy as np
from jaxtyping import Array, Float, Float32

from rmacjax.search import nearest_rows

__all__ = ["augment"]


def augment(
    descriptors: Float[Array | np.ndarray, "n d"],
    *,
    neighbours: int = 10,
    alpha: float | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Replace each descriptor by ``l2(itself + sum over its k nearest of weight * neighbour)``.

    By default the r-th nearest (from 1) of k weighs ``(k + 1 - r) / (k + 1)``: the published
    ``(K - rank) / K`` of ``K = k + 1`` rows, of which the first is the row itself. With alpha it
    weighs ``max(cosine, 0) ** alpha`` instead. The neighbours are exact, and those of the rows as
    they are given: what is replaced does not change what is still to be replaced.

    All pairs of rows are compared, some hundred rows at a time: the time grows with the square of
    n, the memory is that of one padded copy and of the result.

    Args:
        descriptors: (n, d), float16 or float32, unit rows.
        neighbours: how many of the nearest others join each row; 0 for none, which only normalizes.
            Where there are fewer rows, all others do.
        alpha: None weighs by rank, a number of at least 0 by similarity.

    Returns:
        (n, d) float32, unit rows. A zero row stays zero, and is added to none.

    Raises:
        ValueError: a negative number of neighbours, or a negative alpha.

    References:
        Arandjelović and Zisserman 2012, "Three things everyone should know to improve object
        retrieval"; Gordo et al. 2017, "End-to-end learning of deep visual
        representations for image retrieval".

    >>> augment(np.float32([[1, 0], [0, 1]]), neighbours=1)[0] / np.float32(5**-0.5)
    array([2., 1.], dtype=float32)
    """
    if neighbours < 0:
        raise ValueError(f"neighbours is {neighbours}, but it is a count, 0 or more.")
    if alpha is not None and alpha < 0:
        raise ValueError(f"alpha is {alpha}, but an exponent of similarities is 0 or more.")
    given = np.asarray(descriptors)
    if neighbours == 0:
        return _unit(given.astype(np.float32))
    augmented = np.empty(given.shape, np.float32)
    for start, scores, nearest in nearest_rows(descriptors, neighbours):
        k = scores.shape[1]
        rows = slice(start, start + len(scores))
        own = given[rows].astype(np.float32)
        if alpha is None:
            weights = np.broadcast_to(1 - np.arange(1, k + 1) / (k + 1), scores.shape)
        else:
            weights = np.maximum(scores, 0) ** alpha
        weights = np.where(np.isfinite(scores), weights, 0).astype(np.float32)
        total = own.copy()
        for rank in range(k):
            total += weights[:, rank, None] * given[nearest[:, rank]]
        augmented[rows] = np.where(own.any(axis=1, keepdims=True), _unit(total), 0)
    return augmented


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
