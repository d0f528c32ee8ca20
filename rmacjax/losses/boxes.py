"""Localization in the loss: a query is compared with boxes of maps, not with whole images.

Which box is meant may be known (`placed`), or it may be what localization itself would find
(`box_cosines`): a latent variable, searched for anew with the network as it is. The search has no
gradient, and needs none: where the best of many boxes is taken, the derivative is that of the best.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from rmacjax.integral import channel_powers, out_of_units, root
from rmacjax.localization import aml, localize
from rmacjax.losses.pairs import check_above_zero
from rmacjax.losses.rankings import cross_entropy
from rmacjax.normalization import float_dtype, l2_normalize

QUERIES_AT_ONCE = {"cpu": 8, "gpu": 64, "tpu": 64}
"""Queries that are looked for side by side on one map, by kind of device."""


def latent_boxes(
    queries: Float[Array | np.ndarray, "q c"],
    maps: Num[Array | np.ndarray, "m h w c"],
    sizes: Int[Array | np.ndarray, "m 2"],
    ratios: Float[Array | np.ndarray, "q"] | None = None,
    *,
    alpha: int | float | None = None,
    max_ratio: int | float = 1.1,
    every_box: bool = False,
) -> Int[Array, "q m 4"]:
    """Find the box of each map that is most like each query; followed by no gradient.

    Args:
        queries: the queries' pooled vectors, of any length.
        maps: activation maps, padded at the bottom and the right.
        sizes: valid rows and columns of each map, cells.
        ratios: height / width of each query in pixels; None sets no limit.
        alpha: exponent of the generalized mean that AML pools with; None takes exact maxima.
        max_ratio: largest factor between a candidate's and the query's ratio.
        every_box: whether all boxes are scored by their exact maxima (`rmacjax.localize`), which
            takes many times longer, instead of AML's candidates and their refinement.

    Returns:
        (q, m, 4) int32 boxes, cells.

    Raises:
        ValueError: as `rmacjax.aml` and `rmacjax.localize`.

    References:
        Tolias et al. 2016, section 4.2.
    """
    vectors = jax.lax.stop_gradient(jnp.asarray(queries))
    shapes = None if ratios is None else jax.lax.stop_gradient(jnp.asarray(ratios))
    at_once = QUERIES_AT_ONCE.get(jax.default_backend())

    def on_map(item: tuple[Array, Array]) -> Array:
        map_, size = item

        def of_query(asked: tuple[Array, Array | None]) -> Array:
            vector, ratio = asked
            if every_box:
                limit = None if ratio is None else max_ratio
                return localize(map_, vector, ratio, limit, size=size).box
            return aml(map_, vector, ratio, alpha=alpha, size=size, max_ratio=max_ratio).box

        return jax.lax.map(of_query, (vectors, shapes), batch_size=at_once)

    fixed = jax.lax.stop_gradient(jnp.asarray(maps))
    return jax.lax.map(on_map, (fixed, jnp.asarray(sizes))).swapaxes(0, 1)


def box_cosines(
    queries: Float[Array | np.ndarray, "q c"],
    maps: Num[Array | np.ndarray, "m h w c"],
    sizes: Int[Array | np.ndarray, "m 2"],
    ratios: Float[Array | np.ndarray, "q"] | None = None,
    *,
    alpha: int | float | None = None,
    max_ratio: int | float = 1.1,
    every_box: bool = False,
) -> Float[Array, "q m"]:
    """Cosine of each query with the box that is found for it on each map.

    The boxes are those of `latent_boxes`. The gradient takes them as given: it goes through the
    pooled vector of the box and through the query. Only one map's boxes are in memory at a time,
    then and in the backward pass, which pools once more but does not search again.

    Args:
        queries: the queries' pooled vectors; their length does not matter. No entry below 0, as
            there is none in a maximum over activations.
        maps: activation maps, padded at the bottom and the right. Negative activations count as 0.
        sizes: valid rows and columns of each map, cells.
        ratios: height / width of each query in pixels; None sets no limit.
        alpha: a box is pooled by the generalized mean of this exponent; None takes the maximum.
        max_ratio: as in `latent_boxes`.
        every_box: as in `latent_boxes`.

    Returns:
        (q, m) float32. 0, with a zero gradient, where the query or the box is dark. A NaN shows.

    Raises:
        ValueError: as `latent_boxes`.

    References:
        Tolias et al. 2016, equation 8 and section 4.2.
    """
    boxes = latent_boxes(
        queries, maps, sizes, ratios, alpha=alpha, max_ratio=max_ratio, every_box=every_box
    )
    x = jnp.asarray(maps)
    asked = l2_normalize(jnp.asarray(queries).astype(float_dtype(x.dtype)))

    @jax.checkpoint
    def on_map(item: tuple[Array, Array]) -> Array:
        return jnp.sum(l2_normalize(_box_vectors(*item, alpha)) * asked, axis=1)

    return jax.lax.map(on_map, (x, boxes.swapaxes(0, 1))).T


def localized(
    cosines: Float[Array | np.ndarray, "q m"],
    positives: Bool[Array | np.ndarray, "q m"],
    negatives: Bool[Array | np.ndarray, "q m"],
    *,
    temperature: Num[ArrayLike, ""] = 0.05,
) -> Float[Array, ""]:
    """InfoNCE of queries and maps: the box found on a right map against those on all wrong ones.

    Args:
        cosines: of each query with each map, see `box_cosines`.
        positives: which maps show the query's object.
        negatives: which maps do not.
        temperature: of the cosines, above 0. May be traced.

    Returns:
        () float32; averaged as `info_nce`. 0 without positives. Cosines in neither mask count for
        nothing, whatever they are.

    Raises:
        ValueError: masks of another shape than the cosines, or a temperature not above 0.
    """
    alike = jnp.asarray(cosines)
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask.shape != alike.shape:
            raise ValueError(
                f"{name} has shape {mask.shape}, but there are {alike.shape} cosines; a mask says "
                "of each query which maps count."
            )
    return cross_entropy(
        alike.astype(float_dtype(alike.dtype)),
        jnp.asarray(positives),
        jnp.asarray(negatives),
        temperature,
    )


def placed(
    queries: Float[Array | np.ndarray, "n c"],
    boxes: Float[Array | np.ndarray, "n k c"],
    overlaps: Float[Array | np.ndarray, "n k"],
    *,
    temperature: Num[ArrayLike, ""] = 0.05,
    sharpness: Num[ArrayLike, ""] = 0.1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Each query against every box of every photo; its own photo's boxes share the target.

    The loss is the mean cross entropy of ``softmax(cosines / temperature)`` over all n k boxes with
    ``softmax(overlaps / sharpness)`` over the k boxes of the query's own photo.

    Args:
        queries: unit vectors, the i-th of an object on the i-th photo.
        boxes: unit vectors of k boxes of each photo.
        overlaps: intersection over union of the boxes with what the query of the same number
            outlines.
        temperature: of the cosines, above 0. May be traced.
        sharpness: of the target, above 0: a box that overlaps by this much less gets 1 / e of the
            share. May be traced.

    Returns:
        The loss () float32, and () the mean overlap of the own photo's best box, to be reported.

    Raises:
        ValueError: temperature or sharpness not above 0.
    """
    check_above_zero("temperature", temperature)
    check_above_zero("sharpness", sharpness)
    asked = jnp.asarray(queries)
    asked = asked.astype(float_dtype(asked.dtype))
    precise = jax.lax.Precision.HIGHEST
    cosines = jnp.einsum("nc,mkc->nmk", asked, jnp.asarray(boxes, asked.dtype), precision=precise)
    n, _, k = cosines.shape
    logits = cosines.reshape(n, n * k) / jnp.asarray(temperature).astype(asked.dtype)
    shares = jax.nn.log_softmax(logits).reshape(n, n, k)
    truth = jnp.asarray(overlaps, asked.dtype)
    target = jax.nn.softmax(truth / jnp.asarray(sharpness).astype(asked.dtype))
    mine = jnp.arange(n)
    loss = -jnp.mean(jnp.sum(target * shares[mine, mine], axis=1))
    best = jnp.argmax(cosines[mine, mine], axis=1)
    return loss, jnp.mean(truth[mine, best])


def _box_vectors(
    map_: Num[Array, "h w c"], boxes: Int[Array, "q 4"], alpha: float | None
) -> Float[Array, "q c"]:
    """The pooled vectors of boxes of one map, box by box where they are maxima."""
    x = map_.astype(float_dtype(map_.dtype))
    x = jnp.where(x < 0, 0.0, x)
    h, w, channels = x.shape
    rows = jnp.arange(h, dtype=jnp.int32)[:, None]
    columns = jnp.arange(w, dtype=jnp.int32)[None, :]

    def inside(box: Array) -> Array:
        top, left, bottom, right = box
        return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)

    if alpha is None:

        @jax.checkpoint
        def maxima(box: Array) -> Array:
            return jnp.max(jnp.where(inside(box)[:, :, None], x, 0.0), axis=(0, 1))

        return jax.lax.map(maxima, boxes)
    powers, unit = channel_powers(x, float(alpha))
    cells = jax.vmap(inside)(boxes).reshape(len(boxes), h * w).astype(x.dtype)
    # Nothing is subtracted: all terms of a sum are the box's own, or zero.
    sums = jnp.matmul(cells, powers.reshape(h * w, channels), precision=jax.lax.Precision.HIGHEST)
    return out_of_units(root(sums, 1.0 / float(alpha)), unit[None, :])
