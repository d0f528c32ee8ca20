"""Whitening learned from pairs of vectors that show the same object.

What differs within pairs becomes quiet. `PairMoments` holds all that has to be known of the pairs,
`rmacjax.whitening.Moments` all that has to be known of the other vectors, so that a million of
either take the memory of one covariance matrix.

References:
    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", PAMI
    2018, section 3.2 (learned whitening). Mikolajczyk and Matas, "Improving descriptors for fast
    tree matching by optimal linear projection", ICCV 2007.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int

from rmacjax.whitening.applying import Whitening
from rmacjax.whitening.fitting import (
    BLOCK_ROWS,
    check_channels,
    check_options,
    decreasing_eigenvectors,
    finite_rows,
    fix_signs,
    float32_whitening,
)
from rmacjax.whitening.principal import Moments, update_moments

__all__ = [
    "PairMoments",
    "fit_pair_whitening",
    "pair_whitening_from_moments",
    "update_pair_moments",
]

SINGULAR_PAIRS = 1e-6
"""Pair differences are singular when their least variance is at most this share of the largest."""

PAIR_RIDGE = 1e-3
"""Share of the mean variance that is added to every direction of singular pair differences."""


class PairMoments(NamedTuple):
    """What pair whitening needs to know of all pairs seen so far.

    Attributes:
        total: how many pairs.
        mean: (c,) float64, of the pairs' query vectors.
        scatter: (c, c) float64, the sum over pairs of ``(x_q - x_p) (x_q - x_p)^T``.
    """

    total: int
    mean: Float64[np.ndarray, "c"]
    scatter: Float64[np.ndarray, "c c"]


def update_pair_moments(
    moments: PairMoments | None,
    queries: Float[Array | np.ndarray, "m c"],
    positives: Float[Array | np.ndarray, "m c"],
) -> PairMoments:
    """Add pairs to running moments; start with None.

    Args:
        moments: of the pairs seen before, or None.
        queries: (m, c), one vector of each pair; m may be 0.
        positives: (m, c), its match.

    Returns:
        The moments of all of them; the argument is left as it was.

    Raises:
        ValueError: as many of one as of the other were expected, vectors of another length than
            before, or NaN or infinite values.
    """
    first, second = finite_rows(queries), finite_rows(positives)
    if first.shape != second.shape:
        raise ValueError(
            f"There are queries {first.shape} but positives {second.shape}; the k-th query and the "
            "k-th positive are a pair, so give as many of one as of the other."
        )
    channels = first.shape[1]
    if moments is None:
        moments = PairMoments(0, np.zeros(channels), np.zeros((channels, channels)))
    check_channels(channels, len(moments.mean))
    total, mean, scatter = moments
    for start in range(0, first.shape[0], BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        block = first[part].astype(np.float64)
        differences = block - second[part]
        total += len(block)
        mean = mean + (block.mean(axis=0) - mean) * (len(block) / total)
        scatter = scatter + differences.T @ differences
    return PairMoments(total, mean, scatter)


def pair_whitening_from_moments(
    moments: Moments, pairs: PairMoments, *, dimensions: int | None = None
) -> Whitening:
    """Pair whitening from running moments; `fit_pair_whitening` tells what is computed.

    Args:
        moments: of all vectors.
        pairs: of at least one pair whose vectors differ.
        dimensions: how many directions to keep; None keeps all c.

    Returns:
        The whitening, (d, c).

    Raises:
        ValueError: no pairs, pairs that do not differ at all, moments of vectors of another length,
            dimensions outside 1..c.
    """
    channels = len(pairs.mean)
    kept = check_options(channels, dimensions=dimensions)
    check_channels(len(moments.mean), channels)
    if pairs.total == 0 or moments.total == 0:
        raise ValueError(
            "There are no pairs to learn from; give at least one query and its positive."
        )
    within = pairs.scatter / pairs.total
    spread = np.linalg.eigvalsh(within)
    if spread[-1] <= 0.0:
        raise ValueError(
            f"None of the {pairs.total} pairs differ, so nothing can be learned from them; give "
            "pairs of different pictures of the same object."
        )
    if spread[0] <= SINGULAR_PAIRS * spread[-1]:
        within = within + PAIR_RIDGE * np.trace(within) / channels * np.eye(channels)
    unmix = np.linalg.inv(np.linalg.cholesky(within))
    # The mean of (x - m) (x - m)^T around another point than the vectors' own mean.
    shift = moments.mean - pairs.mean
    around = moments.scatter / moments.total + np.outer(shift, shift)
    _, directions = decreasing_eigenvectors(unmix @ around @ unmix.T)
    return float32_whitening(pairs.mean, fix_signs(directions @ unmix)[:kept])


def fit_pair_whitening(
    vectors: Float[Array | np.ndarray, "n c"],
    queries: Int[Array | np.ndarray, "m"],
    positives: Int[Array | np.ndarray, "m"],
    *,
    dimensions: int | None = None,
) -> Whitening:
    """Learn a whitening from pairs of vectors that show the same object.

    With ``S = mean((x_q - x_p) (x_q - x_p)^T)`` over the pairs and ``S = L L^T`` (Cholesky),
    ``L^-1`` makes the differences within pairs equally small in every direction. The eigenvectors
    of ``mean(L^-1 (x - mean) (x - mean)^T L^-T)`` over *all* vectors, in decreasing order, then
    rotate, so that the first dimensions tell objects apart best. ``mean`` is the mean of the pairs'
    query vectors, as published, each counted once for every pair it is in.

    Where S is singular (always so with fewer pairs than channels; here: least eigenvalue at most
    1e-6 of the largest), one thousandth of its mean eigenvalue is added to its diagonal first.

    Args:
        vectors: (n, c), all of them.
        queries: (m,) indices into vectors, one of each pair.
        positives: (m,) indices into vectors, its match.
        dimensions: how many directions to keep; None keeps all c.

    Returns:
        The whitening, (d, c). Signs are free; here each row's entry of largest size is positive.

    Raises:
        ValueError: no pairs, lists of different lengths, indices outside vectors, pairs that do not
            differ at all, NaN or infinite values, dimensions outside 1..c.

    References:
        Radenovic et al. 2018, section 3.2; Mikolajczyk and Matas 2007.

    >>> import numpy as np
    >>> vectors = np.random.default_rng(0).normal(size=(40, 3))
    >>> fit_pair_whitening(vectors, np.arange(20), np.arange(20, 40)).projection.shape
    (3, 3)
    """
    rows = finite_rows(vectors)
    count, channels = rows.shape
    check_options(channels, dimensions=dimensions)
    first = _check_indices(queries, count, "queries")
    second = _check_indices(positives, count, "positives")
    if first.shape != second.shape:
        raise ValueError(
            f"There are {first.size} queries but {second.size} positives; the k-th query and the "
            "k-th positive are a pair, so give as many of one as of the other."
        )
    pairs: PairMoments | None = None
    for start in range(0, max(first.size, 1), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        pairs = update_pair_moments(pairs, rows[first[part]], rows[second[part]])
    if pairs is None or pairs.total == 0:
        raise ValueError(
            "There are no pairs to learn from; give at least one query and its positive."
        )
    return pair_whitening_from_moments(update_moments(None, rows), pairs, dimensions=dimensions)


def _check_indices(indices: Array | np.ndarray, count: int, name: str) -> np.ndarray:
    index = np.asarray(indices)
    if index.size == 0:
        return np.zeros(0, np.int64)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"{name} must be a list of whole numbers, one for each pair.")
    wrong = index[(index < 0) | (index >= count)]
    if wrong.size:
        raise ValueError(
            f"{name} names vector {int(wrong[0])}, but there are {count} vectors (0..{count - 1})."
        )
    return index.astype(np.int64)
