"""Average query expansion: the mean's direction, and its ends."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmacjax.expansion import average_expansion


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
