"""Diffusion: similarity that spreads from neighbour to neighbour instead of reaching straight.

Photos of one object from all sides lie along a curved surface: each is like the next, the first and
the last are not alike. A graph that joins every photo with its nearest ones follows the surface,
and a query's similarity, handed on along its edges, reaches what a cosine does not.

The graph is that of the photos alone and serves every query; a query enters by its similarities to
its nearest photos. Everything is sparse: n photos with k neighbours each take some 12 n k bytes,
and some 100 n k while the graph is made. What bounds n is the time to find all neighbours, which
grows with its square.

References:
    Iscen et al. 2017, "Efficient diffusion on region manifolds: recovering small objects with
    compact CNN representations".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int

from rmacjax.search import nearest_rows

__all__ = ["NeighbourGraph", "diffuse", "neighbour_graph"]

ITERATIONS = 10_000
"""Steps of conjugate gradients at most; alpha = 0.99 needs about a hundred."""


class NeighbourGraph(NamedTuple):
    """Edges between mutual nearest neighbours, row by row: a sparse, symmetric (n, n) matrix.

    It is ``D ** -1/2 @ A @ D ** -1/2``, A the affinities and D their sums by row: its eigenvalues
    lie in -1..1. A row without mutual neighbours is empty.

    Attributes:
        starts: (n + 1,) where each row's edges begin, and the end of the last.
        indices: (e,) the other end of each edge.
        weights: (e,) float64, the normalized affinity.
    """

    starts: Int[np.ndarray, "rows"]
    indices: Int[np.ndarray, "e"]
    weights: Float64[np.ndarray, "e"]

    @property
    def size(self) -> int:
        """How many rows the graph joins."""
        return len(self.starts) - 1


def neighbour_graph(
    descriptors: Float[Array | np.ndarray, "n d"], *, neighbours: int = 50, gamma: float = 3.0
) -> NeighbourGraph:
    """Join each row with those of its nearest rows that have it among their nearest too.

    The affinity of such a pair is ``max(cosine, 0) ** gamma``, of any other 0; a row is not joined
    with itself.

    Args:
        descriptors: (n, d), float16 or float32, unit rows.
        neighbours: how many nearest rows of each are looked at; of equally near ones the first.
        gamma: exponent of the similarities, above 0.

    Returns:
        The normalized graph.

    Raises:
        ValueError: neighbours below 1, or gamma not above 0.

    References:
        Iscen et al. 2017 (affinity of mutual neighbours, symmetric normalization).

    >>> graph = neighbour_graph(np.float32([[1, 0], [0.8, 0.6], [0, 1]]), neighbours=1)
    >>> graph.starts.tolist(), graph.indices.tolist(), graph.weights.round(3).tolist()
    ([0, 1, 2, 2], [1, 0], [1.0, 1.0])
    """
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}, but an exponent of affinities lies above 0.")
    from scipy.sparse import csr_array, diags_array

    n = descriptors.shape[0]
    sources, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    affinities = [np.zeros(0)]
    for start, scores, nearest in nearest_rows(descriptors, neighbours):
        rows = np.broadcast_to(np.arange(start, start + len(scores))[:, None], scores.shape)
        there = scores > 0
        sources.append(rows[there])
        targets.append(nearest[there])
        affinities.append(scores[there].astype(np.float64) ** gamma)
    # The lesser of both directions: nothing where one of them is missing.
    ends = np.concatenate(sources), np.concatenate(targets)
    directed = csr_array((np.concatenate(affinities), ends), shape=(n, n))
    mutual = directed.minimum(directed.T).tocsr()
    sums = mutual.sum(axis=1)
    scale = diags_array(np.where(sums > 0, 1 / np.sqrt(np.where(sums > 0, sums, 1)), 0))
    normalized = (scale @ mutual @ scale).tocsr()
    normalized.eliminate_zeros()
    normalized.sort_indices()
    return NeighbourGraph(normalized.indptr, normalized.indices, normalized.data)


def diffuse(
    graph: NeighbourGraph,
    query_scores: Float[Array | np.ndarray, "n"],
    *,
    alpha: float = 0.99,
    neighbours: int = 10,
    gamma: float = 3.0,
    tolerance: float = 1e-6,
) -> Float64[np.ndarray, "n"]:
    """Let a query's similarities spread over the graph: solve ``(I - alpha S) f = y``.

    y is ``max(similarity, 0) ** gamma`` at the query's nearest rows and 0 elsewhere. The matrix is
    symmetric and positive definite, so f is found by conjugate gradients, and the query need not be
    part of the graph.

    Args:
        graph: of the rows that are searched.
        query_scores: (n,) similarities of the query and every row, such as `rmacjax.search`'s
            `all_scores`; -inf stands for none.
        alpha: share that is handed on at each step, 0 to below 1. 0 returns y.
        neighbours: how many of the query's nearest rows start; of equally near ones the first.
        gamma: exponent of the similarities, above 0.
        tolerance: residual, as a share of y's length, at which the solution is good enough.

    Returns:
        (n,) float64, at least 0 up to the tolerance: larger means more alike, on a scale of its own
        that depends on the graph. Rows that cannot be reached from the query's nearest ones have 0.

    Raises:
        ValueError: alpha outside 0..1, other numbers of scores than rows, a nan, neighbours below 1
            or gamma not above 0.
        RuntimeError: where the solution is not reached.

    References:
        Iscen et al. 2017 (a sparse linear system, conjugate gradients, queries outside the graph).

    >>> graph = neighbour_graph(np.float32([[1, 0], [0.8, 0.6], [0, 1]]), neighbours=1)
    >>> diffuse(graph, np.float32([1, 0, 0]), alpha=0.5, neighbours=1).round(3).tolist()
    [1.333, 0.667, 0.0]
    """
    scores = np.asarray(query_scores, np.float64)
    if not 0 <= alpha < 1:
        raise ValueError(
            f"alpha is {alpha}, but the share that is handed on lies in 0..1, below 1."
        )
    if scores.shape != (graph.size,):
        raise ValueError(
            f"The graph joins {graph.size} rows but the scores have shape {scores.shape}; give the "
            "query's similarity to each row."
        )
    if np.isnan(scores).any():
        raise ValueError("The query's scores hold a nan; -inf stands for a row without a score.")
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}, but at least 1 row must be the start.")
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}, but an exponent of similarities lies above 0.")
    start = np.zeros(graph.size)
    nearest = np.argsort(-scores, kind="stable")[:neighbours]
    start[nearest] = np.maximum(scores[nearest], 0) ** gamma
    if alpha == 0 or not start.any():
        return start
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import LinearOperator, cg

    parts = (graph.weights, graph.indices, graph.starts)
    edges = csr_array(parts, shape=(graph.size, graph.size))
    matrix = LinearOperator(
        edges.shape, matvec=lambda f: f - alpha * (edges @ f), dtype=np.dtype(np.float64)
    )
    spread, failed = cg(matrix, start, rtol=tolerance, atol=0.0, maxiter=ITERATIONS)
    if failed:
        raise RuntimeError(
            f"Diffusion with alpha = {alpha} has not settled to {tolerance} in {ITERATIONS:,} "
            "steps; take a smaller alpha or a larger tolerance."
        )
    return spread
