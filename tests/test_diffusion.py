"""Diffusion against dense matrices and a direct solver in float64, and what it is for."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax import diffusion, search
from rmacjax.diffusion import diffuse, neighbour_graph


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense(graph):
    matrix = np.zeros((graph.size, graph.size))
    for row in range(graph.size):
        for edge in range(graph.starts[row], graph.starts[row + 1]):
            matrix[row, graph.indices[edge]] += graph.weights[edge]
    return matrix


def slow_graph(descriptors, k, gamma):
    """The affinities pair by pair, then the normalization entry by entry."""
    x = descriptors.astype(np.float64)
    n = len(x)
    nearest = []
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (-float(x[i] @ x[j]), j))
        nearest.append(set(others[:k]))
    a = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if j in nearest[i] and i in nearest[j]:
                a[i, j] = max(float(x[i] @ x[j]), 0) ** gamma
    degree = a.sum(axis=1)
    s = np.zeros((n, n))
    for i, j in zip(*np.nonzero(a), strict=True):
        s[i, j] = a[i, j] / np.sqrt(degree[i] * degree[j])
    return s


def slow_start(scores, k, gamma):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    return np.array([max(s, 0) ** gamma if i in order else 0 for i, s in enumerate(scores)])


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 45),
    gamma=st.sampled_from([1.0, 3.0]),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 10**6),
)
def test_the_graph_equals_the_transcription(n, k, gamma, dtype, seed):
    rows = unit(np.random.default_rng(seed).normal(size=(n, 5))).astype(dtype)
    graph = neighbour_graph(rows, neighbours=k, gamma=gamma)
    assert graph.size == n
    matrix = dense(graph)
    np.testing.assert_allclose(matrix, slow_graph(rows, k, gamma), atol=2e-6)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.abs(np.linalg.eigvalsh(matrix)).max() <= 1 + 1e-9


def test_the_graph_over_many_blocks(rng, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_ROWS", 320)
    rows = unit(rng.normal(size=(700, 8))).astype(np.float32)
    graph = neighbour_graph(rows, neighbours=12)
    np.testing.assert_allclose(dense(graph), slow_graph(rows, 12, 3.0), atol=2e-6)


def test_rows_that_are_equal_are_joined_with_the_first():
    """Of five equal rows, row 0 has 1 and 2 for neighbours, the others have 0 and 1, or 2."""
    graph = neighbour_graph(np.ones((5, 1), np.float32), neighbours=2)
    joined = np.zeros((5, 5))
    joined[0, 1] = joined[1, 0] = joined[0, 2] = joined[2, 0] = joined[1, 2] = joined[2, 1] = 0.5
    np.testing.assert_allclose(dense(graph), joined, atol=1e-12)


@given(
    n=st.integers(2, 40),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    k=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_equals_the_direct_solution(n, alpha, k, seed):
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(n, 4))).astype(np.float32)
    scores = (rows @ unit(rng.normal(size=(1, 4)))[0]).astype(np.float32)
    graph = neighbour_graph(rows, neighbours=8)
    got = diffuse(graph, scores, alpha=alpha, neighbours=k, tolerance=1e-10)
    y = slow_start(scores.astype(np.float64), k, 3.0)
    wanted = np.linalg.solve(np.eye(n) - alpha * dense(graph), y)
    np.testing.assert_allclose(got, wanted, atol=1e-7)
    if alpha == 0:
        np.testing.assert_allclose(got, y, rtol=1e-12)


def test_the_usual_tolerance_ranks_as_the_direct_solution(rng):
    rows = unit(rng.normal(size=(400, 6))).astype(np.float32)
    scores = rows @ rows[0]
    graph = neighbour_graph(rows)
    exact = diffuse(graph, scores, tolerance=1e-13)
    usual = diffuse(graph, scores)
    assert np.linalg.norm(usual - exact) < 1e-3 * np.linalg.norm(exact)
    assert np.argsort(-usual)[:20].tolist() == np.argsort(-exact)[:20].tolist()


def test_reaches_along_a_circle_what_a_cosine_does_not():
    """Views all round an object against a crowd that is nearer to the query than most views are."""
    rng = np.random.default_rng(4)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    views = np.zeros((60, 12))
    views[:, 0], views[:, 1] = np.cos(angles), np.sin(angles)
    crowd = rng.normal(size=(80, 12))
    crowd[:, :2] = [0.5, 0.0]
    crowd[:, 2:] *= 0.3
    rows = unit(np.concatenate([views, crowd])).astype(np.float32)
    scores = rows @ rows[0]
    assert np.argsort(-scores)[:60].max() >= 60, "by cosine, the crowd stands among the views"
    reached = diffuse(neighbour_graph(rows, neighbours=4), scores, neighbours=3)
    assert set(np.argsort(-reached)[:60]) == set(range(60))


def test_what_is_not_joined_is_not_reached_and_nothing_comes_of_nothing():
    rows = np.eye(3, dtype=np.float32)
    graph = neighbour_graph(rows)
    assert graph.weights.size == 0
    np.testing.assert_array_equal(
        diffuse(graph, np.float32([0.5, 0.1, -1]), neighbours=2),
        [
            0.125,
            pytest.approx(0.001),
            0,
        ],
    )
    np.testing.assert_array_equal(diffuse(graph, np.float32([-0.5, -np.inf, 0])), np.zeros(3))
    empty = neighbour_graph(np.zeros((0, 4), np.float32))
    assert empty.size == 0 and diffuse(empty, np.zeros(0, np.float32)).shape == (0,)


def test_errors(monkeypatch):
    rows = unit(np.random.default_rng(0).normal(size=(6, 3))).astype(np.float32)
    graph = neighbour_graph(rows)
    scores = rows @ rows[0]
    with pytest.raises(ValueError, match="k is 0, but a row has at least 1"):
        neighbour_graph(rows, neighbours=0)
    with pytest.raises(ValueError, match="gamma is 0, but an exponent of affinities"):
        neighbour_graph(rows, gamma=0)
    with pytest.raises(ValueError, match="alpha is 1, but the share"):
        diffuse(graph, scores, alpha=1)
    with pytest.raises(ValueError, match="The graph joins 6 rows"):
        inspect.unwrap(diffuse)(graph, scores[:5])
    with pytest.raises(ValueError, match="hold a nan"):
        diffuse(graph, np.full(6, np.nan, np.float32))
    with pytest.raises(ValueError, match="neighbours is 0"):
        diffuse(graph, scores, neighbours=0)
    with pytest.raises(ValueError, match="gamma is -1"):
        diffuse(graph, scores, gamma=-1)
    monkeypatch.setattr(diffusion, "ITERATIONS", 1)
    with pytest.raises(RuntimeError, match="has not settled to 1e-06 in 1 steps"):
        diffuse(graph, scores)
