"""Exact search against a sort in float64, its ties, its padding, and how often it compiles."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmacjax import search
from rmacjax.search import (
    BLOCK_ROWS,
    all_scores,
    best_scores,
    nearest_rows,
    pad_rows,
    padded_size,
    top_k,
)


def unit_rows(rng, n, d, dtype=np.float32):
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def brute_force(query, descriptors, k):
    """Scores in float64; of equal ones the lower index first."""
    scores = np.array([np.dot(row, query) for row in descriptors.astype(np.float64)])
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    return scores[order], np.array(order, int)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n", [1, 1999, 2000, 2001, 7500])
def test_equals_brute_force(rng, dtype, n):
    descriptors = unit_rows(rng, n, 16, dtype)
    query = unit_rows(rng, 1, 16)[0]
    scores, indices = top_k(query, descriptors, 20)
    wanted, order = brute_force(query, descriptors, 20)
    assert scores.dtype == jnp.float32
    assert indices.dtype == jnp.int32
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    np.testing.assert_array_equal(indices, order)
    everything = all_scores(query, descriptors)
    assert everything.shape == (n,)
    np.testing.assert_allclose(everything, descriptors.astype(np.float64) @ query, atol=1e-6)


@settings(max_examples=25)
@given(n=st.integers(1, 60), k=st.integers(1, 80), seed=st.integers(0, 10**6))
def test_ties_go_to_the_lower_index_and_padding_never_wins(n, k, seed):
    rng = np.random.default_rng(seed)
    # Whole numbers: many scores are equal, exactly; all are negative, so that a zero row would win.
    descriptors = -rng.integers(1, 4, size=(n, 3)).astype(np.float32)
    query = np.ones(3, np.float32)
    scores, indices = top_k(query, descriptors, k)
    wanted, order = brute_force(query, descriptors, k)
    np.testing.assert_array_equal(scores, wanted)
    np.testing.assert_array_equal(indices, order)


def test_ties_across_blocks(rng):
    descriptors = np.tile(unit_rows(rng, 1, 8), (5000, 1))
    _, indices = top_k(descriptors[0], descriptors, 4500)
    np.testing.assert_array_equal(indices, np.arange(4500))


def test_padded_once_equals_padded_each_time(rng):
    descriptors = unit_rows(rng, 2500, 8, np.float16)
    query = unit_rows(rng, 1, 8)[0]
    padded = pad_rows(descriptors)
    assert padded.shape == (4000, 8)
    assert padded.dtype == jnp.float16
    for given_rows in (padded, pad_rows(jnp.asarray(descriptors))):
        once = top_k(query, given_rows, 7, rows=2500)
        each_time = top_k(query, descriptors, 7)
        np.testing.assert_array_equal(once[1], each_time[1])
        np.testing.assert_array_equal(once[0], each_time[0])
    np.testing.assert_array_equal(
        all_scores(query, padded, rows=2500), all_scores(query, descriptors)
    )
    # What lies below `rows` is never looked at, whatever it holds.
    dirty = padded.at[2500:].set(jnp.float16(60.0))
    np.testing.assert_array_equal(top_k(query, dirty, 7, rows=2500)[1], each_time[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("counts", [[1], [3, 1, 700, 2, 1500], [0, 2, 0, 0, 5, 0], [0, 0], []])
def test_the_best_of_each_image_equals_a_loop(rng, dtype, counts):
    vectors = unit_rows(rng, sum(counts), 16, dtype)
    queries = unit_rows(rng, 3, 16)
    wanted, start = [], 0
    for count in counts:
        own = vectors[start : start + count].astype(np.float64)
        partners = [max([float(row @ query) for row in own], default=-1.0) for query in queries]
        wanted.append(sum(partners) / 3)
        start += count
    counts = np.asarray(counts, np.int64)
    for given_vectors in (vectors, pad_rows(vectors)):
        best = best_scores(queries, given_vectors, counts)
        assert best.dtype == np.float32
        np.testing.assert_allclose(best, np.asarray(wanted), atol=1e-6)


def test_the_best_of_each_image_compiles_few_programs(rng):
    search._scores_of_all.clear_cache()
    for rows in (1, 3, 150, 1999, 2000, 2001, 3100, 4000, 5999):
        for parts in (9, 14, 16):
            queries = unit_rows(rng, parts, 6)
            best_scores(queries, np.ones((rows, 6), np.float16), np.asarray([rows]))
    assert search._scores_of_all._cache_size() == 3


def test_nothing_to_find(rng):
    scores, indices = top_k(np.ones(4, np.float32), np.zeros((0, 4), np.float32), 3)
    assert scores.shape == indices.shape == (0,)
    assert all_scores(np.ones(4, np.float32), np.zeros((0, 4), np.float32)).shape == (0,)


def test_a_broken_row_comes_last():
    descriptors = np.eye(4, dtype=np.float32)
    descriptors[1] = np.nan
    scores, indices = top_k(np.float32([-1, 0, 0, 1]), descriptors, 4)
    assert indices.tolist() == [3, 2, 0, 1]
    assert scores[3] == -np.inf


def test_several_queries_and_jit(rng):
    descriptors = pad_rows(unit_rows(rng, 2300, 8, np.float16))
    queries = unit_rows(rng, 3, 8)
    scores, indices = jax.vmap(lambda q: top_k(q, descriptors, 5, rows=2300))(queries)
    direct = jax.vmap(top_k, in_axes=(0, None, None))(queries, descriptors[:2000], 5)
    assert direct[0].shape == (3, 5)
    inside = jax.jit(lambda q, x: top_k(q, x, 5, rows=2300))
    for i in range(3):
        one = top_k(queries[i], descriptors, 5, rows=2300)
        np.testing.assert_array_equal(indices[i], one[1])
        np.testing.assert_allclose(scores[i], one[0], atol=1e-6)
        np.testing.assert_array_equal(inside(queries[i], descriptors)[1], one[1])


def test_a_growing_collection_compiles_few_programs(rng):
    search._best.clear_cache()
    for n in (3, 150, 1999, 2000, 2001, 3100, 4000, 5999):
        descriptors = unit_rows(rng, n, 6, np.float16)
        for k in (5, 6, 8):
            top_k(descriptors[0], descriptors, k)
    assert search._best._cache_size() == 3  # one each for 2,000, 4,000 and 6,000 rows
    # All of a small collection, as it grows to a thousand: k is rounded up to powers of two.
    search._best.clear_cache()
    for n in (1, 2, 3, 40, 50, 60, 700, 800, 999):
        scores, _ = top_k(np.ones(6, np.float32), np.ones((n, 6), np.float16), n)
        assert scores.shape == (n,)
    assert search._best._cache_size() == 5  # for 1, 2, 4, 64 and 1,024 results


def test_padded_sizes_are_few_and_close():
    sizes = {padded_size(n) for n in range(0, 2_000_001, 500)}
    assert len(sizes) <= 2 * 11
    for n in range(0, 300_001, 777):
        size = padded_size(n)
        assert size >= n
        assert size % BLOCK_ROWS == 0
        assert size <= max(1.5 * (n + BLOCK_ROWS), BLOCK_ROWS)


def test_errors(rng):
    descriptors = unit_rows(rng, 5, 4)
    with pytest.raises(ValueError, match="k is 0"):
        top_k(descriptors[0], descriptors, 0)
    with pytest.raises(ValueError, match="rows is 6, but the matrix has 5"):
        top_k(descriptors[0], descriptors, 2, rows=6)
    # Without the tests' own shape checks, which would speak first.
    for function, more in ((top_k, (2,)), (all_scores, ())):
        with pytest.raises(ValueError, match="the descriptors have 4 dimensions"):
            inspect.unwrap(function)(descriptors[0, :3], descriptors, *more)
    with pytest.raises(ValueError, match="rows is 6, but the matrix has 5"):
        best_scores(descriptors[:1], descriptors, np.asarray([2, 4]))
    with pytest.raises(ValueError, match="no queries"):
        best_scores(descriptors[:0], descriptors, np.asarray([2]))


def slow_neighbours(descriptors, k):
    """For each row all others by their score in float64, of equals the lower index first."""
    x = descriptors.astype(np.float64)
    found = []
    for i, row in enumerate(x):
        scores = x @ row
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j, s=scores: (-s[j], j))
        found.append(others[:k])
    return np.array(found).reshape(len(x), -1)


def gathered(blocks):
    starts, scores, indices = zip(*blocks, strict=True)
    assert list(starts) == np.cumsum([0, *map(len, scores)])[:-1].tolist()
    return np.concatenate(scores), np.concatenate(indices)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (255, 5), (257, 300), (700, 40)])
def test_nearest_rows_equal_brute_force(rng, monkeypatch, dtype, n, k):
    monkeypatch.setattr(search, "BLOCK_ROWS", 320)  # several blocks, asked for and searched
    descriptors = unit_rows(rng, n, 16, dtype)
    scores, indices = gathered(nearest_rows(descriptors, k))
    x = descriptors.astype(np.float64)
    wanted = np.einsum("nd,nkd->nk", x, x[slow_neighbours(descriptors, k)])
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    # What is equal in float32 may change places.
    np.testing.assert_allclose(np.einsum("nd,nkd->nk", x, x[indices]), wanted, atol=1e-6)
    for row, own in enumerate(indices.tolist()):
        assert row not in own and len(set(own)) == len(own) == min(k, n - 1)
    padded = gathered(nearest_rows(pad_rows(descriptors), k, rows=n))
    np.testing.assert_array_equal(padded[1], indices)


@settings(max_examples=25)
@given(n=st.integers(1, 40), k=st.integers(1, 50), seed=st.integers(0, 10**6))
def test_nearest_rows_of_ties_are_the_first_and_never_themselves(n, k, seed):
    rng = np.random.default_rng(seed)
    # Whole numbers, all negative or all positive: products tie exactly, zero rows would be last.
    descriptors = rng.integers(1, 3, size=(n, 2)).astype(np.float32) * (-1) ** (seed % 2)
    _, indices = gathered(nearest_rows(descriptors, k))
    np.testing.assert_array_equal(indices, slow_neighbours(descriptors, k))


def test_nearest_rows_of_nan_and_of_nothing():
    descriptors = np.float32([[1, 0], [np.nan, 0], [0.6, 0.8]])
    scores, indices = gathered(nearest_rows(descriptors, 2))
    assert indices.tolist() == [[2, -1], [-1, -1], [0, -1]]
    np.testing.assert_allclose(scores, [[0.6, -np.inf], [-np.inf] * 2, [0.6, -np.inf]])
    assert not list(nearest_rows(np.zeros((0, 2), np.float32), 3))
    with pytest.raises(ValueError, match="k is 0"):
        next(nearest_rows(descriptors, 0))
    with pytest.raises(ValueError, match="rows is 4"):
        next(nearest_rows(descriptors, 1, rows=4))
