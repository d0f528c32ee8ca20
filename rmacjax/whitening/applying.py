"""Applying a whitening: ``l2(projection @ (x - mean))``, pure JAX for jit, vmap and grad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmacjax.normalization import float_dtype, l2_normalize

__all__ = ["Whitening", "power_normalize", "whiten"]


class Whitening(NamedTuple):
    """A learned whitening, ``y = projection @ (x - mean)``; a pytree of two arrays.

    Attributes:
        mean: (c,) float32, subtracted first.
        projection: (d, c) float32, rows in decreasing order of importance.
    """

    mean: Float[Array, "c"]
    projection: Float[Array, "d c"]


def whiten(w: Whitening, vectors: Float[Array | np.ndarray, "n c"]) -> Float[Array, "n d"]:
    """Whiten vectors and bring them back to unit length: ``l2(projection @ (x - mean))``.

    A zero row (an empty region, an image without activations) stays zero instead of becoming the
    direction of ``-mean``; a row with a NaN or infinite value becomes zero. Gradients there are
    zero.

    Args:
        w: the whitening.
        vectors: (n, c).

    Returns:
        (n, d) float32 (float64 for float64 vectors), rows of length one, or zero.

    Raises:
        ValueError: vectors of another length than the whitening's.
    """
    x = jnp.asarray(vectors)
    x = x.astype(float_dtype(x.dtype))
    if x.shape[-1] != w.mean.shape[0]:
        raise ValueError(
            f"The vectors have {x.shape[-1]} channels but the whitening was learned on "
            f"{w.mean.shape[0]}; use a whitening learned with the same network."
        )
    valid = jnp.all(jnp.isfinite(x), axis=1) & jnp.any(x != 0, axis=1)
    centred = jnp.where(valid[:, None], x - jnp.asarray(w.mean, x.dtype)[None, :], 0.0)
    projected = jnp.matmul(
        centred, jnp.asarray(w.projection, x.dtype).T, precision=jax.lax.Precision.HIGHEST
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
