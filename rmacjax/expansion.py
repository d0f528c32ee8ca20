"""Query expansion: a query that has seen its best answers asks better.

The paper's form: the mean of the query's vector and the vectors of the 5 best re-ranked boxes; the
result re-scores the same re-ranked boxes, not the whole collection. Later work lets each answer
count by how alike it is, so that wrong ones among the five do less harm.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmacjax.normalization import l2_normalize

__all__ = ["alpha_expansion", "average_expansion"]


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
    _check(query, vectors)
    total = jnp.asarray(query, jnp.float32) + jnp.asarray(vectors, jnp.float32).sum(axis=0)
    return l2_normalize(total)


def alpha_expansion(
    query: Float[Array | np.ndarray, "d"],
    vectors: Float[Array | np.ndarray, "k d"],
    scores: Float[Array | np.ndarray, "k"],
    *,
    alpha: float | Float[Array, ""] = 3.0,
) -> Float[Array, "d"]:
    """Average a query with its best answers, the more alike the more: ``s ** alpha`` each.

    That is ``l2(query + sum over k of max(s, 0) ** alpha * vector)``; the query counts 1, as alike
    as it is to itself. With alpha = 0 every answer counts 1, whatever its score, which is
    `average_expansion`; the larger alpha is, the less do answers below 1 count.

    Args:
        query: (d,), unit.
        vectors: (k, d), unit rows; k may be 0. Zero rows add nothing.
        scores: (k,) similarities of the answers to the query, cosines; what is negative counts 0.
        alpha: finite and at least 0; not looked at where it is traced.

    Returns:
        (d,) float32, unit; zero where the sum is zero.

    Raises:
        ValueError: vectors of another length than the query's, or as many scores as vectors are not
            given, or alpha is out of range.

    References:
        Radenović et al. 2018, "Fine-tuning CNN image retrieval with no human annotation"
        (alpha-weighted query expansion).

    >>> import numpy as np
    >>> answers = np.float32([[0, 1], [0, -1]])
    >>> alpha_expansion(np.float32([1, 0]), answers, np.float32([0.5, -0.5])).round(3).tolist()
    [0.9920000433921814, 0.12400000542402267]
    """
    _check(query, vectors)
    if scores.shape != vectors.shape[:1]:
        raise ValueError(
            f"There are {vectors.shape[0]} vectors but the scores have shape {scores.shape}; give "
            "one score for each vector."
        )
    if not isinstance(alpha, jax.core.Tracer) and not 0 <= float(alpha) < math.inf:
        raise ValueError(f"alpha must be finite and at least 0, not {alpha}.")
    similarity = jnp.asarray(scores, jnp.float32)
    exponent = jnp.asarray(alpha, jnp.float32)
    # By logarithms of what is positive, so that the gradient is finite at zero.
    positive = similarity > 0
    powers = jnp.exp(exponent * jnp.log(jnp.where(positive, similarity, 1.0)))
    weights = jnp.where(positive | (exponent == 0), powers, 0.0)
    answers = jnp.asarray(vectors, jnp.float32)
    total = jnp.asarray(query, jnp.float32) + (weights[:, None] * answers).sum(axis=0)
    return l2_normalize(total)


def _check(query: Array | np.ndarray, vectors: Array | np.ndarray) -> None:
    if vectors.shape[1:] != query.shape:
        raise ValueError(
            f"The query has shape {query.shape} but the vectors have shape {vectors.shape}; "
            "describe both with the same network and whitening."
        )
