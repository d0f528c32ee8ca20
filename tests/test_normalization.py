"""Unit length, and nothing undefined where there is no direction."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from rmacjax.normalization import l2_normalize


def test_it_equals_the_oracle_along_any_axis(rng):
    x = rng.normal(size=(3, 4, 5))
    x[1, 2] = 0
    for axis in (-1, 0, 1):
        expected = np.apply_along_axis(oracles.unit, axis, x)
        np.testing.assert_allclose(l2_normalize(x, axis), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-42, 1e-37, 1e-25, 1.0, 1e25, 1e38])
def test_faint_and_loud_vectors_neither_vanish_nor_overflow(scale):
    x = np.float32([3e-1, -4e-1]) * np.float32(scale)
    expected = [0.6, -0.8] if scale > 1e-38 else [0, 0]
    np.testing.assert_allclose(l2_normalize(x), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_floats_keep_their_type_and_integers_become_float32(dtype):
    result = l2_normalize(np.asarray([[3, 4], [0, 0]]).astype(dtype))
    assert result.dtype == (dtype if jnp.issubdtype(dtype, jnp.floating) else np.float32)
    np.testing.assert_allclose(result.astype(jnp.float32), [[0.6, 0.8], [0, 0]], atol=4e-3)


def test_a_vector_without_entries_is_unchanged():
    assert l2_normalize(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_nan_and_infinity_stay_in_their_own_vector():
    x = np.float32([[1, np.nan], [np.inf, 1], [3, 4]])
    result = np.asarray(l2_normalize(x))
    assert np.isnan(result[0]).all() and np.isnan(result[1]).any()
    np.testing.assert_allclose(result[2], [0.6, 0.8], rtol=1e-6)


def test_gradients_are_right_and_zero_at_zero(rng):
    with jax.enable_x64(True):
        check_grads(l2_normalize, (rng.normal(size=(2, 3)),), order=2, atol=1e-5, rtol=1e-5)
    jacobian = jax.jacobian(l2_normalize)(jnp.zeros(3))
    np.testing.assert_array_equal(jacobian, 0)


def test_compiled_and_mapped_it_is_the_same(rng):
    x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    eager = l2_normalize(x)
    np.testing.assert_allclose(jax.jit(l2_normalize)(x), eager, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(l2_normalize)(x), eager, rtol=1e-6)
