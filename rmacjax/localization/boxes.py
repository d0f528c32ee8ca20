"""Boxes on a map, traced: what is found, and the conditions a box has to meet."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

RATIO_TOLERANCE = 1e-6
"""A box whose log-ratio misses the limit by less than this is within the limit."""


class Localization(NamedTuple):
    """A box on a map and its score; several, with a leading axis, in the order found.

    Attributes:
        score: (...) float32, cosine with the query, 0..1 (-1 for an instance that is missing).
        box: (..., 4) int32, (top, left, bottom, right), cells.
    """

    score: Float[Array, "*k"]
    box: Int[Array, "*k 4"]


class Edges(NamedTuple):
    """Boxes by their four edges, int32 cells, in shapes that broadcast."""

    top: Array
    left: Array
    bottom: Array
    right: Array

    @property
    def area(self) -> Array:
        """Cells of each box."""
        return (self.bottom - self.top) * (self.right - self.left)


def overlapping(a: Edges, b: Edges, overlap: Float[Array, ""]) -> Array:
    """Where the intersection over union of boxes is more than `overlap`."""
    height = jnp.minimum(a.bottom, b.bottom) - jnp.maximum(a.top, b.top)
    width = jnp.minimum(a.right, b.right) - jnp.maximum(a.left, b.left)
    shared = jnp.maximum(height, 0) * jnp.maximum(width, 0)
    joined = a.area + b.area - shared
    return shared.astype(jnp.float32) > overlap * joined.astype(jnp.float32)


def apart(
    boxes: Int[Array, "m 4"], earlier: Int[Array, "k 4"], overlap: Float[Array, ""]
) -> Bool[Array, "m"]:
    """Which boxes overlap none of the earlier ones by more than `overlap`."""
    each = Edges(*(edge[:, None] for edge in boxes.T))
    other = Edges(*(edge[None, :] for edge in earlier.T))
    return ~jnp.any(overlapping(each, other, overlap), axis=1)


def on_map(boxes: Int[Array, "m 4"], size: Int[Array, "2"]) -> Bool[Array, "m"]:
    """Which boxes have a cell and lie inside a map of this size."""
    first, last = boxes[:, :2], boxes[:, 2:]
    return jnp.all((first >= 0) & (first < last) & (last <= size[None, :]), axis=1)


def whole_map(size: Int[Array, "2"]) -> Int[Array, "4"]:
    """The box that is all of a map."""
    return jnp.concatenate([jnp.zeros_like(size), size])


def within_ratio(
    shapes: Float[Array | np.ndarray, "*m"], ratio: Float[Array, ""], max_ratio: Float[Array, ""]
) -> Bool[Array, "*m"]:
    """Which heights / widths differ from the query's ratio by no more than a factor."""
    distance = jnp.abs(jnp.log(ratio) - jnp.log(jnp.asarray(shapes, jnp.float32)))
    return distance <= jnp.log(max_ratio) + RATIO_TOLERANCE
