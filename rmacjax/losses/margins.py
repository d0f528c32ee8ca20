"""Losses of pairs and triplets: how far apart others should be, and no farther."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from rmacjax.losses.pairs import (
    check_above_zero,
    check_most,
    distances,
    first_positives,
    mean_where,
    participants,
    rows_at_once,
    similarities,
    squared_distances,
)


def contrastive(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
    *,
    margin: Num[ArrayLike, ""] = 0.7,
) -> Float[Array, ""]:
    """Pull positives together, and push negatives out to a margin.

    A positive pair at distance D costs ``D ** 2 / 2``, a negative one
    ``max(0, margin - D) ** 2 / 2``. The loss is the mean over positive pairs, plus the mean over
    those negative pairs that are closer than the margin: the two weigh the same whatever the batch,
    and negatives that are far enough already do not water down those that are not.

    Args:
        descriptors: unit rows.
        positives: for each row which others show the same object.
        negatives: for each row which others show another.
        margin: the distance, above 0 and at most 2, beyond which a negative costs nothing. May be
            traced.

    Returns:
        () float32; 0 without pairs. Negatives that coincide cost, but have no gradient.

    Raises:
        ValueError: masks that do not fit, or a margin that is not above 0.

    References:
        Hadsell, Chopra and LeCun, CVPR 2006, equation 4; Radenović et al. 2018, equation 4.

    >>> rows, masks = np.eye(2, dtype=np.float32), np.asarray([[False, True], [True, False]])
    >>> float(contrastive(rows, masks, ~masks & False))
    1.0
    """
    check_above_zero("margin", margin)
    x, near, far = participants(descriptors, positives, negatives)
    gaps = jnp.asarray(margin).astype(x.dtype) - distances(x)
    pulled = mean_where(squared_distances(x), near)
    # Not `gaps > 0`, which would pass over a NaN in silence; so everywhere here.
    pushed = mean_where(gaps * gaps, far & ~(gaps <= 0))
    return 0.5 * (pulled + pushed)


def triplet(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
    *,
    margin: Num[ArrayLike, ""] = 0.1,
    most_positives: int | None = None,
) -> Float[Array, ""]:
    """Ask that every positive be closer than every negative, by a margin of squared distances.

    A row, one of its positives and one of its negatives cost ``max(0, D_p ** 2 - D_n ** 2 +
    margin)``. All triplets are looked at, some rows at a time; the loss is the mean over those that
    cost something, for with time nearly all cost nothing.

    Args:
        descriptors: unit rows.
        positives: for each row which others show the same object.
        negatives: for each row which others show another.
        margin: of squared distances, above 0. May be traced.
        most_positives: only the first so many positives of a row count; None for all. Where no row
            has more, the same result with ``n / most_positives`` times less work.

    Returns:
        () float32; 0 without triplets.

    Raises:
        ValueError: masks that do not fit, a margin not above 0, or most_positives below 1.

    References:
        Schroff, Kalenichenko and Philbin, CVPR 2015, equation 2; Arandjelović et al., CVPR 2016,
        equation 7 (margin 0.1); Hermans, Beyer and Leibe 2017, section 2 (the mean).
    """
    check_above_zero("margin", margin)
    check_most(most_positives)
    x, near, far = participants(descriptors, positives, negatives)
    slack = jnp.asarray(margin).astype(x.dtype)

    @jax.checkpoint
    def of_row(item: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        squares, mine, others = item
        places, valid = first_positives(mine, most_positives)
        costs = squares[places][:, None] - squares[None, :] + slack
        counted = valid[:, None] & others[None, :] & ~(costs <= 0)
        return jnp.sum(jnp.where(counted, costs, 0.0)), jnp.sum(counted, dtype=x.dtype)

    rows = (squared_distances(x), near, far)
    at_once = rows_at_once(len(x), most_positives)
    costs, counts = jax.lax.map(of_row, rows, batch_size=at_once)
    return jnp.sum(costs) / jnp.maximum(jnp.sum(counts), 1.0)


def multi_similarity(
    descriptors: Float[Array | np.ndarray, "n d"],
    positives: Bool[Array | np.ndarray, "n n"],
    negatives: Bool[Array | np.ndarray, "n n"],
    *,
    alpha: Num[ArrayLike, ""] = 2,
    beta: Num[ArrayLike, ""] = 50,
    base: Num[ArrayLike, ""] = 0.5,
    epsilon: Num[ArrayLike, ""] = 0.1,
) -> Float[Array, ""]:
    """Weigh each pair by its own similarity and by that of the row's other pairs.

    First the pairs are chosen: negatives more similar than the row's least similar positive less
    `epsilon`, and positives less similar than its most similar negative plus `epsilon`. Then a row
    costs, with S the similarities of the chosen ones,

        log(1 + sum over positives of exp(-alpha (S - base))) / alpha
        + log(1 + sum over negatives of exp(beta (S - base))) / beta,

    and the loss is the mean over rows that have both positives and negatives.

    Args:
        descriptors: unit rows.
        positives: for each row which others show the same object.
        negatives: for each row which others show another.
        alpha: steepness for positives, above 0. May be traced, as all options.
        beta: steepness for negatives, above 0.
        base: the similarity that divides alike from unlike.
        epsilon: how far from the border pairs are chosen.

    Returns:
        () float32; 0 where no row has both. The choice of pairs has no gradient.

    Raises:
        ValueError: masks that do not fit, or alpha or beta not above 0.

    References:
        Wang et al., CVPR 2019, equations 11, 12 and 15.
    """
    check_above_zero("alpha", alpha)
    check_above_zero("beta", beta)
    x, near, far = participants(descriptors, positives, negatives)
    steep, steeper, middle, reach = (
        jnp.asarray(option).astype(x.dtype) for option in (alpha, beta, base, epsilon)
    )
    alike = similarities(x)
    least = jnp.min(jnp.where(near, alike, jnp.inf), axis=1, keepdims=True)
    most = jnp.max(jnp.where(far, alike, -jnp.inf), axis=1, keepdims=True)
    hard_near, hard_far = near & ~(alike >= most + reach), far & ~(alike <= least - reach)
    pulled = _log_one_plus(-steep * (alike - middle), hard_near) / steep
    pushed = _log_one_plus(steeper * (alike - middle), hard_far) / steeper
    return mean_where(pulled + pushed, jnp.any(near, axis=1) & jnp.any(far, axis=1))


def _log_one_plus(exponents: Float[Array, "n m"], mask: Bool[Array, "n m"]) -> Float[Array, "n"]:
    """``log(1 + sum of exp)`` over the exponents of each row that a mask picks."""
    one = jnp.zeros_like(exponents[:, :1])
    picked = jnp.where(mask, exponents, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([one, picked], axis=1), axis=1)
