"""What the network that ships is trained to make small, and the vectors it is computed from."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from rmacjax.backbones import TORCHVISION_CONVENTION, Network
from rmacjax.normalization import l2_normalize
from rmacjax.regions import rmac_regions

ARCHITECTURE = "alexnet"


def network():
    """The static facts of the network that is trained."""
    return Network(ARCHITECTURE, last_pool=False, convention=TORCHVISION_CONVENTION, name="default")


def region_vectors(maps, levels: int):
    """Unit vectors of every map's regions, (n, r, c); the grid is static, so slices will do."""
    grid = rmac_regions(maps.shape[1], maps.shape[2], levels).tolist()
    return l2_normalize(jnp.stack([maps[:, t:b, le:r].max((1, 2)) for t, le, b, r in grid], 1))


def box_vectors(maps, cells):
    """Unit vectors of the plain maxima of each map's own boxes, (n, k, c)."""
    rows = jnp.arange(maps.shape[1])[None, :, None]
    columns = jnp.arange(maps.shape[2])[None, None, :]

    @jax.checkpoint
    def maxima(box):
        top, left, bottom, right = (box[:, i, None, None] for i in range(4))
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return jnp.where(inside[..., None], maps, 0).max((1, 2))

    return l2_normalize(jax.lax.map(maxima, cells.swapaxes(0, 1)).swapaxes(0, 1))


def follow(moments: dict, regions: list) -> dict:
    """Running mean and second moment of region vectors; the last 20 batches count most."""
    rows = jnp.concatenate([some.reshape(-1, some.shape[-1]) for some in regions])
    share = jnp.maximum(0.05, 1 / (moments["seen"] + 1))
    now = {"mean": rows.mean(0), "second": rows.T @ rows / rows.shape[0]}
    followed = {name: moments[name] + share * (now[name] - moments[name]) for name in now}
    return {"seen": moments["seen"] + 1, **followed}


def whitened(moments: dict, regions, ridge: float = 0.02):
    """Whiten region vectors by the Cholesky factor of their running covariance."""
    mean = moments["mean"]
    covariance = moments["second"] - mean[:, None] * mean[None, :]
    identity = jnp.eye(mean.shape[0])
    factor = jnp.linalg.cholesky(covariance + ridge * jnp.trace(covariance) / len(mean) * identity)
    projection = solve_triangular(factor, identity, lower=True)
    return (regions - mean[None, None, :]) @ projection.T


def contrast(first, second, temperature: float):
    """InfoNCE over 2 n views: each row's partner against all other rows."""
    rows = jnp.concatenate([first, second])
    n = first.shape[0]
    similarity = rows @ rows.T / temperature
    similarity = jnp.where(jnp.eye(2 * n, dtype=bool), -1e9, similarity)
    partner = jnp.roll(jnp.arange(2 * n), n)
    right = similarity[jnp.arange(2 * n), partner]
    loss = (jax.nn.logsumexp(similarity, axis=1) - right).mean()
    return loss, (similarity.argmax(1) == partner).mean()


def placed(queries, boxes, overlaps, temperature: float, sharpness: float = 0.1):
    """Each query against every box of every photo; its own photo's boxes share the target.

    Args:
        queries: (n, c) unit vectors.
        boxes: (n, k, c) unit vectors.
        overlaps: (n, k), of the boxes with what the query of the same number outlines.
        temperature: of the cosines.
        sharpness: of the target: a box that overlaps by this much less gets 1 / e of the share.

    Returns:
        The cross entropy, and the mean overlap of the own photo's best box.
    """
    cosines = jnp.einsum("nc,mkc->nmk", queries, boxes)
    n, _, k = cosines.shape
    log_share = jax.nn.log_softmax(cosines.reshape(n, -1) / temperature).reshape(n, n, k)
    mine = jnp.arange(n)
    loss = -(jax.nn.softmax(overlaps / sharpness) * log_share[mine, mine]).sum(1).mean()
    best = cosines[mine, mine].argmax(1)
    return loss, overlaps[mine, best].mean()
