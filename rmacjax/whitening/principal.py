"""PCA-whitening: learned from nothing but vectors of another collection.

`Moments` lets it run over any number of vectors in the memory of one covariance matrix.

References:
    Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA
    and whitening", ECCV 2012.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64

from rmacjax.whitening.applying import Whitening
from rmacjax.whitening.fitting import (
    BLOCK_ROWS,
    check_channels,
    check_options,
    decreasing_eigenvectors,
    finite_rows,
    float32_whitening,
)

__all__ = ["Moments", "fit_pca_whitening", "pca_whitening_from_moments", "update_moments"]

NULL_EIGENVALUE = 1e-10
"""Directions whose variance is at most this share of the largest are rounding: weight zero."""


class Moments(NamedTuple):
    """What PCA-whitening needs to know of all vectors seen so far.

    Attributes:
        total: how many vectors.
        mean: (c,) float64.
        scatter: (c, c) float64, the sum over vectors of ``(x - mean) (x - mean)^T``.
    """

    total: int
    mean: Float64[np.ndarray, "c"]
    scatter: Float64[np.ndarray, "c c"]


def update_moments(moments: Moments | None, vectors: Float[Array | np.ndarray, "n c"]) -> Moments:
    """Add vectors to running moments; start with None.

    Two sets are merged by the difference of their means, so nothing cancels however many come in.

    Args:
        moments: of the vectors seen before, or None.
        vectors: (n, c); n may be 0.

    Returns:
        The moments of all of them; the argument is left as it was.

    Raises:
        ValueError: vectors of another length than before, or NaN or infinite values.
    """
    rows = finite_rows(vectors)
    channels = rows.shape[1]
    if moments is None:
        moments = Moments(0, np.zeros(channels), np.zeros((channels, channels)))
    check_channels(channels, len(moments.mean))
    for start in range(0, rows.shape[0], BLOCK_ROWS):
        moments = _merge_block(moments, rows[start : start + BLOCK_ROWS].astype(np.float64))
    return moments


def pca_whitening_from_moments(
    moments: Moments, *, dimensions: int | None = None, shrinkage: float = 0.5
) -> Whitening:
    """PCA-whitening from running moments; `fit_pca_whitening` tells what is computed.

    Args:
        moments: of at least two different vectors.
        dimensions: how many directions to keep, the most varied first; None keeps all c.
        shrinkage: the eigenvalues' exponent, 0 (rotate only) to 0.5 (whiten).

    Returns:
        The whitening, (d, c).

    Raises:
        ValueError: too few or all equal vectors, dimensions outside 1..c, shrinkage outside 0..0.5.
    """
    channels = moments.mean.shape[0]
    kept = check_options(channels, dimensions=dimensions, shrinkage=shrinkage)
    if moments.total < 2:
        raise ValueError(
            f"PCA-whitening was given {moments.total} vector(s); it needs at least 2, and many "
            f"more than the {channels} channels to be of use."
        )
    eigenvalues, directions = decreasing_eigenvectors(moments.scatter / moments.total)
    # Where all vectors are equal, the variance left is that of rounding at the vectors' own size.
    size = max(float(np.square(moments.mean).sum()), float(eigenvalues[0]))
    if eigenvalues[0] <= np.finfo(np.float32).eps ** 2 * size:
        raise ValueError(
            f"All {moments.total} vectors are the same, so there is no variance to whiten; learn "
            "the whitening on vectors of different images."
        )
    seen = eigenvalues > NULL_EIGENVALUE * eigenvalues[0]
    weights = np.where(seen, np.where(seen, eigenvalues, 1.0) ** -shrinkage, 0.0)
    return float32_whitening(moments.mean, (weights[:, None] * directions)[:kept])


def fit_pca_whitening(
    vectors: Float[Array | np.ndarray, "n c"],
    dimensions: int | None = None,
    shrinkage: float = 0.5,
) -> Whitening:
    """Learn a PCA-whitening: ``diag(eigval ** -shrinkage) @ eigvec.T @ (x - mean)``.

    The eigenvalues and eigenvectors are those of the vectors' covariance (divided by n), in
    decreasing order. An eigenvector's sign is free; here its entry of largest size is positive.
    Directions with a variance of at most 1e-10 of the largest (there are some whenever n <= c) get
    weight zero, never NaN.

    Args:
        vectors: (n, c), for R-MAC the unit region vectors of another collection than the searched.
        dimensions: how many directions to keep, the most varied first; None keeps all c.
        shrinkage: the eigenvalues' exponent: 0.5 whitens, less keeps some of the variances'
            differences, 0 only rotates.

    Returns:
        The whitening, (d, c).

    Raises:
        ValueError: too few or all equal vectors, NaN or infinite values, dimensions outside 1..c,
            shrinkage outside 0..0.5.

    References:
        Tolias et al. 2016, section 5.1 (learned on the other building set, full dimension).

    >>> import numpy as np
    >>> vectors = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 5.0, 0.1]
    >>> fit_pca_whitening(vectors, 2).projection.shape
    (2, 3)
    """
    moments = update_moments(None, vectors)
    return pca_whitening_from_moments(moments, dimensions=dimensions, shrinkage=shrinkage)


def _merge_block(moments: Moments, block: np.ndarray) -> Moments:
    count = block.shape[0]
    mean = block.mean(axis=0)
    centred = block - mean
    total = moments.total + count
    shift = mean - moments.mean
    scatter = moments.scatter + centred.T @ centred
    scatter += np.outer(shift, shift) * (moments.total * count / total)
    return Moments(total, moments.mean + shift * (count / total), scatter)
