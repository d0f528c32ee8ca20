"""Whitening: the linear map that makes the channels of region vectors uncorrelated, equally loud.

Two ways to learn one. *PCA-whitening* needs nothing but vectors of another collection; *pair
whitening* needs pairs of vectors that show the same object and makes what differs between them
quiet. Both give a `Whitening`, and `whiten` applies it: ``l2(projection @ (x - mean))``.

Fitting happens once, on the host, in float64 NumPy; the result is float32. `Moments` lets it run
over any number of vectors in the memory of one covariance matrix. Applying is JAX: pure, for jit,
vmap and grad.

References:
    Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA
    and whitening", ECCV 2012. Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no
    human annotation", PAMI 2018, section 3.2 (learned whitening).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from rmacjax.normalization import l2_normalize

__all__ = [
    "Moments",
    "Whitening",
    "fit_pair_whitening",
    "fit_pca_whitening",
    "pca_whitening_from_moments",
    "power_normalize",
    "update_moments",
    "whiten",
]

NULL_EIGENVALUE = 1e-10
"""Directions whose variance is at most this share of the largest are rounding: weight zero."""

SINGULAR_PAIRS = 1e-6
"""Pair differences are singular when their least variance is at most this share of the largest."""

PAIR_RIDGE = 1e-3
"""Share of the mean variance that is added to every direction of singular pair differences."""

_BLOCK_ROWS = 16_384


class Whitening(NamedTuple):
    """A learned whitening, ``y = projection @ (x - mean)``; a pytree of two arrays.

    Attributes:
        mean: (c,) float32, subtracted first.
        projection: (d, c) float32, rows in decreasing order of importance.
    """

    mean: Float[Array, "c"]
    projection: Float[Array, "d c"]


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
    rows = _finite_rows(vectors)
    channels = rows.shape[1]
    if moments is None:
        moments = Moments(0, np.zeros(channels), np.zeros((channels, channels)))
    if moments.mean.shape != (channels,):
        raise ValueError(
            f"The vectors have {channels} channels but the moments were begun with "
            f"{moments.mean.shape[0]}; use one network and one pooling for all vectors."
        )
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        moments = _merge_block(moments, rows[start : start + _BLOCK_ROWS].astype(np.float64))
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
    kept = _check_dimensions(dimensions, channels)
    if not 0.0 <= shrinkage <= 0.5:
        raise ValueError(
            f"shrinkage is {shrinkage}, but the eigenvalues' exponent lies between 0 (rotation "
            "only) and 0.5 (full whitening)."
        )
    if moments.total < 2:
        raise ValueError(
            f"PCA-whitening was given {moments.total} vector(s); it needs at least 2, and many "
            f"more than the {channels} channels to be of use."
        )
    eigenvalues, directions = _decreasing_eigenvectors(moments.scatter / moments.total)
    # Where all vectors are equal, the variance left is that of rounding at the vectors' own size.
    size = max(float(np.square(moments.mean).sum()), float(eigenvalues[0]))
    if eigenvalues[0] <= np.finfo(np.float32).eps ** 2 * size:
        raise ValueError(
            f"All {moments.total} vectors are the same, so there is no variance to whiten; learn "
            "the whitening on vectors of different images."
        )
    seen = eigenvalues > NULL_EIGENVALUE * eigenvalues[0]
    weights = np.where(seen, np.where(seen, eigenvalues, 1.0) ** -shrinkage, 0.0)
    return _whitening(moments.mean, (weights[:, None] * directions)[:kept])


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
    rows = _finite_rows(vectors)
    count, channels = rows.shape
    kept = _check_dimensions(dimensions, channels)
    first = _check_indices(queries, count, "queries")
    second = _check_indices(positives, count, "positives")
    if first.shape != second.shape:
        raise ValueError(
            f"There are {first.size} queries but {second.size} positives; the k-th query and the "
            "k-th positive are a pair, so give as many of one as of the other."
        )
    if first.size == 0:
        raise ValueError(
            "There are no pairs to learn from; give at least one query and its positive."
        )
    mean = np.asarray(np.mean(rows[first], axis=0, dtype=np.float64))
    within = np.zeros((channels, channels))
    for start in range(0, first.size, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        differences = rows[first[part]].astype(np.float64) - rows[second[part]]
        within += differences.T @ differences
    within /= first.size
    spread = np.linalg.eigvalsh(within)
    if spread[-1] <= 0.0:
        raise ValueError(
            f"None of the {first.size} pairs differ, so nothing can be learned from them; give "
            "pairs of different pictures of the same object."
        )
    if spread[0] <= SINGULAR_PAIRS * spread[-1]:
        within = within + PAIR_RIDGE * np.trace(within) / channels * np.eye(channels)
    unmix = np.linalg.inv(np.linalg.cholesky(within))
    between = np.zeros((channels, channels))
    for start in range(0, count, _BLOCK_ROWS):
        quiet = (rows[start : start + _BLOCK_ROWS].astype(np.float64) - mean) @ unmix.T
        between += quiet.T @ quiet
    _, directions = _decreasing_eigenvectors(between / count)
    return _whitening(mean, _fix_signs(directions @ unmix)[:kept])


def whiten(w: Whitening, vectors: Float[Array | np.ndarray, "n c"]) -> Float[Array, "n d"]:
    """Whiten vectors and bring them back to unit length: ``l2(projection @ (x - mean))``.

    A zero row (an empty region, an image without activations) stays zero instead of becoming the
    direction of ``-mean``; a row with a NaN or infinite value becomes zero. Gradients there are
    zero.

    Args:
        w: the whitening.
        vectors: (n, c).

    Returns:
        (n, d) float32, rows of length one, or zero.

    Raises:
        ValueError: vectors of another length than the whitening's.
    """
    x = jnp.asarray(vectors, jnp.float32)
    if x.shape[-1] != w.mean.shape[0]:
        raise ValueError(
            f"The vectors have {x.shape[-1]} channels but the whitening was learned on "
            f"{w.mean.shape[0]}; use a whitening learned with the same network."
        )
    valid = jnp.all(jnp.isfinite(x), axis=1) & jnp.any(x != 0, axis=1)
    centred = jnp.where(valid[:, None], x - jnp.asarray(w.mean)[None, :], 0.0)
    projected = jnp.matmul(
        centred, jnp.asarray(w.projection).T, precision=jax.lax.Precision.HIGHEST
    )
    return l2_normalize(jnp.where(jnp.isfinite(projected), projected, 0.0))


def power_normalize(
    vectors: Float[Array | np.ndarray, "n c"], *, exponent: float = 0.5
) -> Float[Array, "n c"]:
    """Signed power, then unit length: ``l2(sign(x) * |x| ** exponent)``; quietens bursts.

    Args:
        vectors: (n, c).
        exponent: above 0, at most 1; 1 only normalizes.

    Returns:
        (n, c) float32, rows of length one; zero rows stay zero. A zero entry's gradient is zero.

    Raises:
        ValueError: exponent outside 0..1.
    """
    if not 0.0 < exponent <= 1.0:
        raise ValueError(
            f"exponent is {exponent}, but a power normalization has 0 < exponent <= 1."
        )
    x = jnp.asarray(vectors, jnp.float32)
    nonzero = x != 0
    size = jnp.where(nonzero, jnp.abs(x), 1.0)
    return l2_normalize(jnp.where(nonzero, jnp.sign(x) * size**exponent, 0.0))


def _finite_rows(vectors: Array | np.ndarray) -> np.ndarray:
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"Expected vectors of shape (n, c), but these are {rows.shape}.")
    bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if bad:
        raise ValueError(
            f"{bad} of {rows.shape[0]} vectors hold NaN or infinite values; leave them out before "
            "learning a whitening."
        )
    return rows


def _check_dimensions(dimensions: int | None, channels: int) -> int:
    if dimensions is None:
        return channels
    if not 1 <= dimensions <= channels:
        raise ValueError(
            f"dimensions is {dimensions}, but vectors of {channels} channels can be reduced to "
            f"1..{channels}."
        )
    return int(dimensions)


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


def _merge_block(moments: Moments, block: np.ndarray) -> Moments:
    count = block.shape[0]
    mean = block.mean(axis=0)
    centred = block - mean
    total = moments.total + count
    shift = mean - moments.mean
    scatter = moments.scatter + centred.T @ centred
    scatter += np.outer(shift, shift) * (moments.total * count / total)
    return Moments(total, moments.mean + shift * (count / total), scatter)


def _decreasing_eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and the unit eigenvectors as rows with their signs fixed."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return values[::-1], _fix_signs(vectors.T[::-1])


def _fix_signs(rows: np.ndarray) -> np.ndarray:
    """Turn each row so that its entry of largest size (the first of equals) is positive."""
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.where(rows[np.arange(rows.shape[0]), largest] < 0, -1.0, 1.0)[:, None]


def _whitening(mean: np.ndarray, projection: np.ndarray) -> Whitening:
    if not math.isfinite(float(np.abs(projection).max())):
        raise ValueError(
            "The whitening is not finite; the vectors' variances are too small to learn one."
        )
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(projection, jnp.float32))
