"""Query expansion: a query that has seen its best answers asks better.

The paper's form: the mean of the query's vector and the vectors of the 5 best re-ranked boxes; the
result re-scores the same re-ranked boxes, not the whole collection.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmacjax.normalization import l2_normalize

__all__ = ["average_expansion"]


def average_expansion(
    query: Float[Array | np.ndarray, "d"], vectors: Float[Array | np.ndarray, "k d"]
) -> Float[Array, "d"]:
    """Average a query with its best answers: ``l2(query + sum over k of vectors)``.

    All count the same. A zero row adds nothing, so fewer answers can be padded with zeros.

    Args:
        query: (d,), unit.
        vectors: (k, d), unit rows; k may be 0.

    Returns:
        (d,) float32, unit; zero where the sum is zero.

    Raises:
        ValueError: vectors of another length than the query's.

    References:
        Tolias et al. 2016, section 5.1 (QE); Chum et al. 2007, "Total recall" (average query
        expansion).

    >>> import numpy as np
    >>> average_expansion(np.float32([1, 0]), np.float32([[0, 1], [0, 0]])).round(3).tolist()
    [0.7070000171661377, 0.7070000171661377]
    """
    if vectors.shape[1:] != query.shape:
        raise ValueError(
            f"The query has shape {query.shape} but the vectors have shape {vectors.shape}; "
            "describe both with the same network and whitening."
        )
    total = jnp.asarray(query, jnp.float32) + jnp.asarray(vectors, jnp.float32).sum(axis=0)
    return l2_normalize(total)
