"""Mining: which images a step of training compares, chosen with descriptors as they are now.

`hard_negatives` finds the images that a query would be confused with, by the same exact search that
answers queries. `label_groups`, `positives_by_label` and `positives_by_pair` say what may stand on
the other side. Images are numbered; what is drawn by chance comes from a generator that is given.

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

__all__ = ["hard_negatives", "label_groups", "positives_by_label", "positives_by_pair"]

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


def label_groups(
    labels: Int[np.ndarray, "n"], *, least: int = 2
) -> tuple[Int[np.ndarray, "_"], ...]:
    """Group images by label: those of which there are enough to be each other's positives.

    Args:
        labels: of each image; -1 for none.
        least: images that a label has at least.

    Returns:
        For each such label, in increasing order, the numbers of its images, increasing.

    >>> [group.tolist() for group in label_groups(np.asarray([7, 2, 7, -1, 2, 5, -1]))]
    [[1, 4], [0, 2]]
    """
    order = np.argsort(labels, kind="stable")
    edges = np.flatnonzero(np.diff(labels[order])) + 1
    groups = np.split(order, edges)
    return tuple(group for group in groups if len(group) >= least and labels[group[0]] >= 0)


def positives_by_label(
    labels: Int[np.ndarray, "n"], queries: Int[np.ndarray, "q"], generator: np.random.Generator
) -> Int[np.ndarray, "q"]:
    """Draw one positive for each query: another image with its label, each as likely as the others.

    Args:
        labels: of each image; -1 for none.
        queries: numbers of images.
        generator: of what is drawn; one number for each query.

    Returns:
        (q,) int64 numbers of images; -1 for a query that has no label, or its label for itself.

    Raises:
        ValueError: a query that no image is.

    >>> labels = np.asarray([7, 2, 7, -1, 3])
    >>> positives_by_label(labels, np.asarray([0, 2, 1, 3]), np.random.default_rng(0)).tolist()
    [2, 0, -1, -1]
    """
    _check_numbers("queries", queries, len(labels))
    order = np.argsort(labels, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    wanted = labels[queries]
    first = np.searchsorted(labels[order], wanted, side="left")
    others = np.searchsorted(labels[order], wanted, side="right") - first - 1
    # A place among the others of the label, which the query's own is left out of.
    drawn = first + _drawn(others, generator)
    drawn += drawn >= place[queries]
    has = (others > 0) & (wanted >= 0)
    return np.where(has, order[np.where(has, drawn, 0)], -1) if len(labels) else drawn


def positives_by_pair(
    pairs: Int[np.ndarray, "p 2"], queries: Int[np.ndarray, "q"], generator: np.random.Generator
) -> Int[np.ndarray, "q"]:
    """Draw one positive for each query from pairs that geometry has verified.

    Args:
        pairs: (query, positive) numbers of images, in any order; a query may have several. They
            hold in this direction only.
        queries: numbers of images.
        generator: of what is drawn; one number for each query.

    Returns:
        (q,) int64 numbers of images, each of a query's positives as likely as the others; -1 for a
        query without pairs.

    >>> pairs = np.asarray([[4, 1], [0, 2], [4, 1]])
    >>> positives_by_pair(pairs, np.asarray([4, 0, 1]), np.random.default_rng(0)).tolist()
    [1, 2, -1]
    """
    known = np.unique(pairs, axis=0)
    first = np.searchsorted(known[:, 0], queries, side="left")
    several = np.searchsorted(known[:, 0], queries, side="right") - first
    drawn = first + _drawn(several, generator)
    has = several > 0
    if not has.any():
        return np.full(len(queries), -1, np.int64)
    return np.where(has, known[np.where(has, drawn, 0), 1], -1).astype(np.int64)


def _first_of_each(
    ranked: Int[np.ndarray, "_"], clusters: Int[np.ndarray, "n"], own: int
) -> Int[np.ndarray, "_"]:
    """The first of each cluster but the query's own, in the order of the ranking."""
    others = ranked[clusters[ranked] != own]
    _, first = np.unique(clusters[others], return_index=True)
    return others[np.sort(first)]


def _drawn(several: Int[np.ndarray, "q"], generator: np.random.Generator) -> Int[np.ndarray, "q"]:
    """A whole number from 0 to one below each of several; 0 where there is nothing to draw from."""
    shares = generator.random(len(several))
    most = np.maximum(several - 1, 0)
    return np.minimum((shares * several).astype(np.int64), most)


def _check_numbers(name: str, numbers: Int[np.ndarray, "_"], n: int) -> None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < n):
        wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
        raise ValueError(
            f"{name} holds the number {wrong}, but the {n} images are numbered from 0 to {n - 1}."
        )
