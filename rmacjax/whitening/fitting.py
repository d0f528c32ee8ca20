"""What all fits share: checks of what comes in, eigenvectors in order, and the result."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmacjax.whitening.applying import Whitening

__all__ = [
    "BLOCK_ROWS",
    "check_channels",
    "check_options",
    "decreasing_eigenvectors",
    "finite_rows",
    "fix_signs",
    "float32_whitening",
]

BLOCK_ROWS = 16_384
"""So many vectors are in memory as float64 at a time."""


def finite_rows(vectors: Array | np.ndarray) -> np.ndarray:
    """Return (n, c) vectors on the host; ValueError where they are not, or hold NaN."""
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"Expected vectors of shape (n, c), but these are {rows.shape}.")
    bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if bad:
        raise ValueError(
            f"{bad} of {rows.shape[0]} vectors hold NaN or infinite values; leave them out before "
            "learning a whitening."
        )
    return rows


def check_options(channels: int, *, dimensions: int | None = None, shrinkage: float = 0.5) -> int:
    """Check what a fit is asked for; to be called before the work that it takes.

    Args:
        channels: of the vectors to learn on.
        dimensions: how many to keep; None for all.
        shrinkage: the eigenvalues' exponent.

    Returns:
        The number of dimensions.

    Raises:
        ValueError: dimensions outside 1..channels, shrinkage outside 0..0.5.
    """
    if not 0.0 <= shrinkage <= 0.5:
        raise ValueError(
            f"shrinkage is {shrinkage}, but the eigenvalues' exponent lies between 0 (rotation "
            "only) and 0.5 (full whitening)."
        )
    if dimensions is None:
        return channels
    if not 1 <= dimensions <= channels:
        raise ValueError(
            f"dimensions is {dimensions}, but vectors of {channels} channels can be reduced to "
            f"1..{channels}."
        )
    return int(dimensions)


def check_channels(channels: int, begun: int) -> None:
    """Refuse vectors of another length than those that running moments were begun with."""
    if channels != begun:
        raise ValueError(
            f"The vectors have {channels} channels but the moments were begun with {begun}; use "
            "one network and one pooling for all vectors."
        )


def decreasing_eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and the unit eigenvectors as rows with their signs fixed."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return values[::-1], fix_signs(vectors.T[::-1])


def fix_signs(rows: np.ndarray) -> np.ndarray:
    """Turn each row so that its entry of largest size (the first of equals) is positive."""
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.where(rows[np.arange(rows.shape[0]), largest] < 0, -1.0, 1.0)[:, None]


def float32_whitening(mean: np.ndarray, projection: np.ndarray) -> Whitening:
    """Return the learned map in float32; ValueError where it is not finite."""
    if not math.isfinite(float(np.abs(projection).max())):
        raise ValueError(
            "The whitening is not finite; the vectors' variances are too small to learn one."
        )
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(projection, jnp.float32))
