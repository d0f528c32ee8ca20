"""Exact search: the rows of a matrix that are most like a query, and no approximation.

Descriptors are unit vectors, so the dot product is the cosine. They may be kept in float16, half
the memory for a difference of some 1e-4 in a score; blocks of 2,000 rows are turned into float32 as
they are needed, because a CPU's half-precision products are slow.

A program is compiled for a number of rows, and collections grow. So rows are padded to one of a few
sizes (1, 2, 3, 4, 6, 8, 12, .. blocks: two programs each time a collection doubles), the true
number of rows is an ordinary argument, and the loop ends after the last block that holds one.
Whoever searches the same matrix often pads it once with `pad_rows` and passes ``rows=``.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = [
    "BLOCK_ROWS",
    "all_scores",
    "best_scores",
    "nearest_rows",
    "pad_rows",
    "padded_size",
    "top_k",
]

BLOCK_ROWS = 2_000
"""Rows that are turned into float32 at a time."""

ASKED_AT_ONCE = 256
"""Rows whose nearest ones are looked for at a time."""


def padded_size(rows: int) -> int:
    """Return the number of rows that a matrix of so many rows is padded to.

    Args:
        rows: at least 0.

    Returns:
        The least ``BLOCK_ROWS * 2**i`` or ``BLOCK_ROWS * 3 * 2**i`` that holds them.

    >>> padded_size(1), padded_size(2_001), padded_size(9_000)
    (2000, 4000, 12000)
    """
    blocks = -(-max(rows, 1) // BLOCK_ROWS)
    power = 1 << (blocks - 1).bit_length()
    return BLOCK_ROWS * (power * 3 // 4 if power >= 4 and blocks <= power * 3 // 4 else power)


def pad_rows(descriptors: Float[Array | np.ndarray, "n d"]) -> Float[Array, "N d"]:
    """Put a matrix on the device with zero rows below it, up to `padded_size`.

    Args:
        descriptors: (n, d), kept in their own dtype.

    Returns:
        (N, d); pass it to `top_k` together with ``rows=n``.
    """
    rows = descriptors.shape[0]
    missing = padded_size(rows) - rows
    if missing == 0:
        return jnp.asarray(descriptors)
    if isinstance(descriptors, np.ndarray):
        padded = np.zeros((rows + missing, descriptors.shape[1]), descriptors.dtype)
        padded[:rows] = descriptors
        return jnp.asarray(padded)
    return jnp.pad(descriptors, ((0, missing), (0, 0)))


def top_k(
    query: Float[Array | np.ndarray, "d"],
    descriptors: Float[Array | np.ndarray, "n d"],
    k: int,
    *,
    rows: int | None = None,
) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """Find the k rows with the largest dot products with a query: all of them are looked at.

    Several queries: ``jax.vmap(top_k, in_axes=(0, None, None))``, at 4 bytes per query and row.

    Args:
        query: (d,).
        descriptors: (n, d), float16 or float32.
        k: how many; where there are fewer rows, all of them are returned.
        rows: how many rows count, from the top; the rest is padding. None: all n.

    Returns:
        scores (min(k, rows),) float32, decreasing, and indices (min(k, rows),) int32. Of equal
        scores the lower index comes first. A score that is NaN counts as -inf and so comes last.

    Raises:
        ValueError: k below 1, rows outside 0..n, or a query of another length.

    >>> import numpy as np
    >>> scores, indices = top_k(np.ones(2, np.float32), np.eye(2, dtype=np.float32) * 3, 5)
    >>> indices.tolist()
    [0, 1]
    """
    if k < 1:
        raise ValueError(f"k is {k}, but a search returns at least 1 result.")
    rows = _check(query, descriptors, rows)
    padded = _padded(descriptors)
    # k is rounded up too: "all of them" must not be one program for each size of a collection.
    rounded = min(1 << (k - 1).bit_length(), padded.shape[0])
    scores, indices = _best(jnp.asarray(query, jnp.float32), padded, jnp.int32(rows), k=rounded)
    kept = min(k, rows)
    return scores[:kept], indices[:kept]


def all_scores(
    query: Float[Array | np.ndarray, "d"],
    descriptors: Float[Array | np.ndarray, "n d"],
    *,
    rows: int | None = None,
) -> Float[Array, "rows"]:
    """Return the dot products of a query with all rows, computed as `top_k` does.

    Args:
        query: (d,).
        descriptors: (n, d), float16 or float32.
        rows: how many rows count, from the top; the rest is padding. None: all n.

    Returns:
        (rows,) float32; -inf for NaN.

    Raises:
        ValueError: rows outside 0..n, or a query of another length.
    """
    rows = _check(query, descriptors, rows)
    padded = _padded(descriptors)
    return _scores(jnp.asarray(query, jnp.float32), padded, jnp.int32(rows))[:rows]


def best_scores(
    queries: Float[Array | np.ndarray, "k d"],
    vectors: Float[Array | np.ndarray, "r d"],
    counts: Int[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
    """Match the parts of a query with the parts of images: the mean of each one's best partner.

    Args:
        queries: (k, d), the query's vectors, at least one.
        vectors: (r, d), float16 or float32: those of the first image, then those of the second, and
            so on. What lies below the last image's is padding.
        counts: how many vectors each image has.

    Returns:
        (n,) float32: of each query's vector the largest dot product with any of the image's, and
        the mean of these. -1, the least that a cosine can be, for an image without vectors, and
        -inf where NaN is all there is.

    Raises:
        ValueError: no query, more vectors counted than there are, or queries of another length.

    References:
        Razavian et al. 2016, "Visual instance retrieval with deep convolutional networks".

    >>> vectors = np.float32([[1, 0], [0, 1], [0, -1]])
    >>> queries = np.float32([[0.6, 0.8], [1, 0]])
    >>> np.round(best_scores(queries, vectors, np.asarray([2, 0, 1])), 3).tolist()
    [0.8999999761581421, -1.0, -0.4000000059604645]
    """
    number = len(queries)
    if number == 0:
        raise ValueError("There are no queries, but a score is the mean over at least one.")
    rows = _check(queries[0], vectors, int(counts.sum()))
    # Queries have few or many parts: their number is rounded up, so that little is compiled.
    rounded = np.zeros((1 << (number - 1).bit_length(), queries.shape[1]), np.float32)
    rounded[:number] = queries
    scores = np.asarray(_scores_of_all(rounded, _padded(vectors), jnp.int32(rows)))
    best = np.full(len(counts), -1.0, np.float32)
    some = counts > 0
    if rows:
        starts = (np.cumsum(counts) - counts)[some]
        best[some] = np.maximum.reduceat(scores[:number, :rows], starts, axis=1).mean(axis=0)
    return best


def nearest_rows(
    descriptors: Float[Array | np.ndarray, "n d"],
    k: int,
    *,
    rows: int | None = None,
) -> Iterator[tuple[int, Float[np.ndarray, "m K"], Int[np.ndarray, "m K"]]]:
    """Find for each row the k others with the largest dot products, some rows at a time.

    All pairs are looked at. Beside the matrix itself only a block of scores and of results is in
    memory, so the number of rows is bounded by the matrix alone.

    Args:
        descriptors: (n, d), float16 or float32.
        k: how many; where there are fewer other rows, all of them are found.
        rows: how many rows count, from the top; the rest is padding. None: all n.

    Yields:
        The number of the first row of a block; scores (m, K) float32, decreasing, and indices
        (m, K) int32 of its m rows' nearest ones, ``K = min(k, rows - 1)``. A row is not among its
        own. Of equal scores the lower index comes first. NaN counts as -inf, and there the index
        is -1.

    Raises:
        ValueError: k below 1, or rows outside 0..n.

    >>> matrix = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
    >>> [(start, nearest.tolist()) for start, _, nearest in nearest_rows(matrix, 1)]
    [(0, [[2], [2], [1]])]
    """
    if k < 1:
        raise ValueError(f"k is {k}, but a row has at least 1 nearest one.")
    count = _check(np.empty(descriptors.shape[1]), descriptors, rows)
    padded = _padded(descriptors)
    found = min(k, max(0, count - 1))
    # Rounded up, as in `top_k`; one more, because a row finds itself.
    rounded = min(1 << k.bit_length(), padded.shape[0])
    for start in range(0, count, ASKED_AT_ONCE):
        first = min(start, padded.shape[0] - ASKED_AT_ONCE)
        answers = _nearest(padded, jnp.int32(first), jnp.int32(count), k=rounded)
        mine = slice(start - first, min(count - first, ASKED_AT_ONCE))
        scores, indices = (np.asarray(part)[mine] for part in answers)
        own = np.arange(start, start + len(scores), dtype=np.int32)[:, None]
        # Itself goes to the end; where it is not there, its equals are, and the last one goes.
        order = np.argsort(indices == own, axis=1, kind="stable")[:, :found]
        yield (
            start,
            np.take_along_axis(scores, order, axis=1),
            np.take_along_axis(indices, order, axis=1),
        )


def _check(query: Array | np.ndarray, descriptors: Array | np.ndarray, rows: int | None) -> int:
    n, d = descriptors.shape
    if query.shape != (d,):
        raise ValueError(
            f"The query has shape {query.shape}, but the descriptors have {d} dimensions; describe "
            "both with the same network and whitening."
        )
    if rows is None:
        return n
    if not 0 <= rows <= n:
        raise ValueError(f"rows is {rows}, but the matrix has {n} rows.")
    return rows


def _padded(descriptors: Array | np.ndarray) -> Array:
    if descriptors.shape[0] == padded_size(descriptors.shape[0]):
        return jnp.asarray(descriptors)
    return pad_rows(descriptors)


@jax.jit
def _scores(
    query: Float[Array, "d"], descriptors: Float[Array, "n d"], rows: Int[Array, ""]
) -> Float[Array, "n"]:
    def score_block(block: Array, scores: Array) -> Array:
        start = block * BLOCK_ROWS
        part = jax.lax.dynamic_slice_in_dim(descriptors, start, BLOCK_ROWS)
        part_scores = jnp.matmul(
            part.astype(jnp.float32), query, precision=jax.lax.Precision.HIGHEST
        )
        part_scores = jnp.where(jnp.isnan(part_scores), -jnp.inf, part_scores)
        return jax.lax.dynamic_update_slice_in_dim(scores, part_scores, start, 0)

    count = descriptors.shape[0]
    blocks = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    start = jnp.full(count, -jnp.inf, jnp.float32)
    scores = jax.lax.fori_loop(jnp.int32(0), blocks, score_block, start)
    return jnp.where(jnp.arange(count, dtype=jnp.int32) < rows, scores, -jnp.inf)


@partial(jax.jit, static_argnames="k")
def _nearest(
    descriptors: Float[Array, "n d"], first: Int[Array, ""], rows: Int[Array, ""], *, k: int
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """The k best rows for each of a block of rows; those known so far are merged block by block."""
    queries = jax.lax.dynamic_slice_in_dim(descriptors, first, ASKED_AT_ONCE).astype(jnp.float32)

    def merge(block: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        start = block * BLOCK_ROWS
        part = jax.lax.dynamic_slice_in_dim(descriptors, start, BLOCK_ROWS).astype(jnp.float32)
        scores = jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)
        index = start + jnp.arange(BLOCK_ROWS, dtype=jnp.int32)
        scores = jnp.where(jnp.isnan(scores) | (index >= rows)[None, :], -jnp.inf, scores)
        # Earlier rows stand first, and of equals the first is taken.
        every = jnp.concatenate([best[0], scores], axis=1)
        of_block = jnp.broadcast_to(index, scores.shape)
        indices = jnp.concatenate([best[1], of_block], axis=1)
        kept, places = jax.lax.top_k(every, k)
        return kept, jnp.take_along_axis(indices, places, axis=1)

    blocks = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    nothing = (
        jnp.full((ASKED_AT_ONCE, k), -jnp.inf, jnp.float32),
        jnp.full((ASKED_AT_ONCE, k), -1, jnp.int32),
    )
    scores, indices = jax.lax.fori_loop(jnp.int32(0), blocks, merge, nothing)
    return scores, indices


_scores_of_all = jax.jit(jax.vmap(_scores, in_axes=(0, None, None)))


@partial(jax.jit, static_argnames="k")
def _best(
    query: Float[Array, "d"], descriptors: Float[Array, "n d"], rows: Int[Array, ""], *, k: int
) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    scores, indices = jax.lax.top_k(_scores(query, descriptors, rows), k)
    return scores, indices
