"""Normalization: vectors of length one, with nothing undefined at zero."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

__all__ = ["float_dtype", "l2_normalize"]


def l2_normalize(x: Num[Array | np.ndarray, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """Scale vectors to unit length: ``x / ||x||``; a zero vector stays zero.

    The vector is divided by its largest entry before it is squared, so neither faint nor loud
    vectors underflow or overflow.

    Args:
        x: vectors along `axis`.
        axis: the axis whose squares sum to one.

    Returns:
        The same shape; float32, or the type of x where that is a float already. The gradient at a
        zero vector is zero. NaN and infinite entries make their vector NaN.

    >>> l2_normalize(np.asarray([3.0, 4.0])).tolist() == np.float32([0.6, 0.8]).tolist()
    True
    """
    given = jnp.asarray(x)
    values = given.astype(float_dtype(given.dtype))
    # x / ||x|| does not depend on the scale, so neither does its gradient.
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(values)), axis=axis, keepdims=True, initial=0.0)
    faint = largest < jnp.finfo(values.dtype).tiny
    values = values / jnp.where(faint, 1.0, largest)
    squares = jnp.sum(values * values, axis=axis, keepdims=True)
    zero = squares == 0
    norms = jnp.sqrt(jnp.where(zero, 1.0, squares))
    result = jnp.where(zero, 0.0, values / norms)
    return result.astype(given.dtype) if jnp.issubdtype(given.dtype, jnp.floating) else result


def float_dtype(dtype: np.dtype) -> np.dtype:
    """The type to compute in: float32, or float64 where the data are."""
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits > 32
    return np.dtype(dtype if wide else np.float32)
