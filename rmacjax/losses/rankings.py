"""Losses of rankings: each row's positives against everything that it is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from rmacjax.losses.pairs import (
    check_above_zero,
    check_most,
    first_positives,
    mean_where,
    participants,
    rows_at_once,
    similarities,
)

NOTHING = -1e30
"""A logit that no sum of exponentials notices, and whose difference from itself is a number."""


def info_nce(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
    *,
    temperature: Num[ArrayLike, ""] = 0.05,
) -> Float[Array, ""]:
    """The cross entropy of telling each positive from all of a row's negatives (InfoNCE).

    With S the similarities, a row i and its positive p cost

        -log(exp(S_ip / t) / (exp(S_ip / t) + sum over negatives n of exp(S_in / t))).

    A row's other positives stand in no denominator. The loss is the mean over a row's positives,
    and of these the mean over rows that have one.

    Args:
        descriptors: unit rows.
        positives: for each row which others show the same object.
        negatives: for each row which others show another.
        temperature: t, above 0; the smaller, the more the closest negatives count. May be traced.

    Returns:
        () float32; 0 without positives.

    Raises:
        ValueError: masks that do not fit, or a temperature that is not above 0.

    References:
        Van den Oord, Li and Vinyals 2018, equation 4.
    """
    x, near, far = participants(descriptors, positives, negatives)
    return cross_entropy(similarities(x), near, far, temperature)


def smooth_ap(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
    *,
    temperature: Num[ArrayLike, ""] = 0.01,
    most_positives: int | None = None,
) -> Float[Array, ""]:
    """One minus average precision, with steps smoothed into sigmoids (Smooth-AP).

    With S a row's similarities, the rank of its positive j is ``1 + sum of
    sigmoid((S_k - S_j) / t)`` over the others k: over its positives that among positives, over
    positives and negatives that among all. Average precision is the mean over j of the first
    divided by the second, and the loss the mean of ``1 - AP`` over rows that have a positive. As t
    goes to 0 it is the exact average precision by rectangles.

    Args:
        descriptors: unit rows.
        positives: for each row which others show the same object.
        negatives: for each row which others show another.
        temperature: t, above 0. May be traced.
        most_positives: the mean is over the first so many positives of a row; None for all. Where
            no row has more, the same result with ``n / most_positives`` times less work.

    Returns:
        () float32, 0..1; 0 without positives.

    Raises:
        ValueError: masks that do not fit, temperature not above 0, or most_positives below 1.

    References:
        Brown et al., ECCV 2020, equations 4 and 6.
    """
    check_above_zero("temperature", temperature)
    check_most(most_positives)
    x, near, far = participants(descriptors, positives, negatives)
    width = jnp.asarray(temperature).astype(x.dtype)

    @jax.checkpoint
    def precision(item: tuple[Array, Array, Array]) -> Array:
        alike, mine, all_ = item
        places, valid = first_positives(mine, most_positives)
        ahead = jax.nn.sigmoid((alike[None, :] - alike[places][:, None]) / width)
        another = jnp.arange(len(alike), dtype=jnp.int32)[None, :] != places[:, None]
        among_mine = 1.0 + jnp.sum(jnp.where(another & mine[None, :], ahead, 0.0), axis=1)
        among_all = 1.0 + jnp.sum(jnp.where(another & all_[None, :], ahead, 0.0), axis=1)
        return mean_where(among_mine / among_all, valid)

    rows = (similarities(x), near, near | far)
    at_once = rows_at_once(len(x), most_positives)
    precisions = jax.lax.map(precision, rows, batch_size=at_once)
    return mean_where(1.0 - precisions, jnp.any(near, axis=1))


def cross_entropy(
    alike: Float[Array, "q m"],
    positives: Bool[Array, "q m"],
    negatives: Bool[Array, "q m"],
    temperature: Num[ArrayLike, ""],
) -> Float[Array, ""]:
    """InfoNCE of any similarities: each row's positives one by one against all its negatives."""
    check_above_zero("temperature", temperature)
    used = jnp.where(positives | negatives, alike, 0.0)
    logits = used / jnp.asarray(temperature).astype(alike.dtype)
    against = jax.nn.logsumexp(jnp.where(negatives, logits, NOTHING), axis=1)
    costs = jnp.where(positives, jax.nn.softplus(against[:, None] - logits), 0.0)
    counts = jnp.sum(positives, axis=1, dtype=alike.dtype)
    return mean_where(jnp.sum(costs, axis=1) / jnp.maximum(counts, 1.0), counts > 0)
