"""Query expansion, average and weighted: the mean's direction, and its ends."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.expansion import alpha_expansion, average_expansion


@given(k=st.integers(0, 6), seed=st.integers(0, 10**6))
def test_is_the_unit_mean(k, seed):
    rng = np.random.default_rng(seed)
    everything = rng.normal(size=(k + 1, 5))
    everything /= np.linalg.norm(everything, axis=1, keepdims=True)
    mean = np.zeros(5)
    for row in everything:
        mean += row / (k + 1)
    wanted = mean / np.sqrt((mean**2).sum())
    got = average_expansion(everything[0].astype(np.float32), everything[1:].astype(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_no_answers_and_zero_rows_change_nothing(rng):
    query = np.float32([0.6, 0.8, 0.0])
    answer = np.float32([[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(average_expansion(query, answer[:0]), query, rtol=1e-6)
    padded = np.concatenate([answer, np.zeros((4, 3), np.float32)])
    np.testing.assert_array_equal(
        average_expansion(query, padded), average_expansion(query, answer)
    )
    zero = np.zeros(3, np.float32)
    np.testing.assert_array_equal(average_expansion(zero, padded[1:]), zero)


def test_jit_vmap_and_gradient(rng):
    queries = rng.normal(size=(4, 3)).astype(np.float32)
    vectors = rng.normal(size=(4, 5, 3)).astype(np.float32)
    mapped = jax.jit(jax.vmap(average_expansion))(queries, vectors)
    for i in range(4):
        np.testing.assert_allclose(mapped[i], average_expansion(queries[i], vectors[i]), atol=1e-6)
    zero = jnp.zeros(3)
    gradient = jax.grad(lambda q: average_expansion(q, jnp.zeros((2, 3))).sum())(zero)
    np.testing.assert_array_equal(gradient, zero)


def test_other_lengths_are_refused():
    # Without the tests' own shape checks, which would speak first.
    with pytest.raises(ValueError, match="same network and whitening"):
        inspect.unwrap(average_expansion)(np.ones(3, np.float32), np.ones((2, 4), np.float32))


@given(
    k=st.integers(0, 6),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0]),
    seed=st.integers(0, 10**6),
)
def test_alpha_weights_are_powers_of_the_scores(k, alpha, seed):
    rng = np.random.default_rng(seed)
    everything = rng.normal(size=(k + 1, 5))
    everything /= np.linalg.norm(everything, axis=1, keepdims=True)
    scores = rng.uniform(-1, 1, k)
    scores[:1] = 0.0
    total = everything[0].copy()
    for row, score in zip(everything[1:], scores, strict=True):
        total += row * (1 if alpha == 0 else max(score, 0) ** alpha)
    wanted = total / np.sqrt((total**2).sum())
    query, vectors = np.float32(everything[0]), everything[1:].astype(np.float32)
    got = alpha_expansion(query, vectors, scores.astype(np.float32), alpha=alpha)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    equal = alpha_expansion(query, vectors, scores.astype(np.float32), alpha=0)
    np.testing.assert_allclose(equal, average_expansion(query, vectors), atol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf"), jnp.float32(-0.5)])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha must be finite and at least 0, not"):
        alpha_expansion(np.ones(1, np.float32), np.ones((1, 1)), np.ones(1), alpha=alpha)


def test_alpha_expansion_under_jit_vmap_and_grad(rng):
    queries = rng.normal(size=(4, 3)).astype(np.float32)
    vectors = rng.normal(size=(4, 5, 3)).astype(np.float32)
    scores = rng.uniform(-1, 1, (4, 5)).astype(np.float32)
    mapped = jax.jit(jax.vmap(lambda q, v, s: alpha_expansion(q, v, s, alpha=2.0)))
    for i, row in enumerate(mapped(queries, vectors, scores)):
        one = alpha_expansion(queries[i], vectors[i], scores[i], alpha=2.0)
        np.testing.assert_allclose(row, one, atol=1e-6)
    for value in (0.0, 2.0):
        gradient = jax.grad(
            lambda s, a=value: alpha_expansion(queries[0], vectors[0], s, alpha=a)[0]
        )
        assert np.isfinite(gradient(jnp.zeros(5))).all()
    by_alpha = jax.grad(lambda a: alpha_expansion(queries[0], vectors[0], scores[0], alpha=a)[0])
    step = 1e-2
    ends = [
        alpha_expansion(queries[0], vectors[0], scores[0], alpha=2.0 + sign * step)[0]
        for sign in (-1, 1)
    ]
    np.testing.assert_allclose(
        by_alpha(jnp.float32(2)), (ends[1] - ends[0]) / (2 * step), atol=1e-3
    )


def test_as_many_scores_as_vectors():
    with pytest.raises(ValueError, match="2 vectors but the scores have shape"):
        inspect.unwrap(alpha_expansion)(np.ones(3, np.float32), np.ones((2, 3)), np.ones(3))
