"""Mining: which images a step of training compares, chosen with descriptors as they are now.

`hard_negatives` finds the images that a query would be confused with, by the same exact search that
answers queries. Images are numbered. Which images match is said by labels or by geometry, see
`rmacjax.finetune.sources.plans`.

References:
    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", PAMI
    2018, section 3.3.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.search import pad_rows, top_k

__all__ = ["hard_negatives"]

ASKED_AT_ONCE = 64
"""Queries that are searched for side by side."""


def hard_negatives(
    descriptors: Float[Array | np.ndarray, "n d"],
    clusters: Int[np.ndarray, "n"],
    queries: Int[np.ndarray, "q"],
    *,
    count: int = 5,
    candidates: Int[np.ndarray, "m"] | None = None,
) -> Int[np.ndarray, "q count"]:
    """Find for each query the most similar images of other clusters, at most one of each.

    One of each, because many photos of one wrong place teach no more than the best of them. All
    candidates are looked at; what is in memory beside the descriptors are the scores of some
    queries.

    Args:
        descriptors: of all images, float16 or float32, unit rows.
        clusters: images of one cluster may show the same object and are not each other's negatives;
            -1 is nobody's negative.
        queries: numbers of images; one whose cluster is -1 has no negatives.
        count: how many to find for each query.
        candidates: numbers of the images that may be negatives; None for all.

    Returns:
        (q, count) int64 numbers of images, the most similar first; of equals the lower number. -1
        where there are no more. An image whose descriptor has a NaN is nobody's negative.

    Raises:
        ValueError: count below 1, as many clusters as descriptors are not given, or a number that
            no image has.

    References:
        Radenović et al. 2018, section 3.3.

    >>> descriptors = np.float32([[1, 0], [0.9, 0.4], [0.8, 0.6], [0.6, 0.8], [0, 1]])
    >>> hard_negatives(descriptors, np.asarray([0, 0, 1, 1, 2]), np.asarray([0]), count=3).tolist()
    [[2, 4, -1]]
    """
    n = len(descriptors)
    if count < 1:
        raise ValueError(f"count is {count}, but at least 1 negative is looked for.")
    if len(clusters) != n:
        raise ValueError(
            f"There are {len(clusters)} clusters for {n} descriptors; give the cluster of each."
        )
    _check_numbers("queries", queries, n)
    pool = np.arange(n) if candidates is None else np.unique(candidates)
    _check_numbers("candidates", pool, n)
    pool = pool[clusters[pool] >= 0]
    found = np.full((len(queries), count), -1, np.int64)
    if len(pool) == 0:
        return found
    everyone = len(pool) == n
    gallery = pad_rows(descriptors if everyone else jnp.asarray(descriptors)[jnp.asarray(pool)])
    asked = np.flatnonzero(clusters[queries] >= 0)
    k = min(len(pool), 4 * count)
    # Most are done with few results; those that met too much of one cluster ask for more.
    while len(asked):
        left = []
        for start in range(0, len(asked), ASKED_AT_ONCE):
            some = asked[start : start + ASKED_AT_ONCE]
            vectors = np.zeros((ASKED_AT_ONCE, gallery.shape[1]), np.float32)
            vectors[: len(some)] = np.asarray(descriptors[queries[some]], np.float32)
            search = jax.vmap(partial(top_k, k=k, rows=len(pool)), in_axes=(0, None))
            scores, places = (np.asarray(part) for part in search(jnp.asarray(vectors), gallery))
            for row, query in enumerate(some):
                best = pool[places[row][scores[row] > -np.inf]]
                best = _first_of_each(best, clusters, int(clusters[queries[query]]))[:count]
                found[query, : len(best)] = best
                if len(best) < count:
                    left.append(query)
        if k == len(pool):
            break
        k = min(len(pool), 4 * k)
        asked = np.asarray(left, np.int64)
    return found


def _first_of_each(
    ranked: Int[np.ndarray, "_"], clusters: Int[np.ndarray, "n"], own: int
) -> Int[np.ndarray, "_"]:
    """The first of each cluster but the query's own, in the order of the ranking."""
    others = ranked[clusters[ranked] != own]
    _, first = np.unique(clusters[others], return_index=True)
    return others[np.sort(first)]


def _check_numbers(name: str, numbers: Int[np.ndarray, "_"], n: int) -> None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < n):
        wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
        raise ValueError(
            f"{name} holds the number {wrong}, but the {n} images are numbered from 0 to {n - 1}."
        )
