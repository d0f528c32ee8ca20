"""Scoring: boxes' vectors, their cosine with the query, and what may be asked at all."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from rmacjax.integral import channel_powers, check_map, out_of_units, root
from rmacjax.localization.growth import Combine
from rmacjax.normalization import l2_normalize

SCORE_RESOLUTION = 2.0**-21
"""Cosines closer than this (4.8e-7) are equal: a few roundings of a float32 sum over channels."""

MISSING = -1.0
"""Score of an instance that does not exist; its box is (0, 0, 0, 0)."""

BRIGHTEST = 2.0**125
"""Activations above this count as this: float32 has a reciprocal for it."""


class Pooling(NamedTuple):
    """How boxes get their vectors, whether many grow at once or one is looked at.

    Attributes:
        cells: (h, w, c) what is combined: activations, or powers of them; never below 0.
        combine: of two neighbouring parts.
        reduce: the same over axes.
        vectors: from (..., c) combined cells to (..., c) float32 vectors, in the range in which
            their squares can be summed.
    """

    cells: Array
    combine: Combine
    reduce: Callable[..., Array]
    vectors: Callable[[Array], Array]

    def of_box(self, box: Array) -> Array:
        """The vector (c,) of one box (4,), traced; zero where it is empty."""
        top, left, bottom, right = box
        rows = self.within(0, top, bottom)
        inside = _between(rows[None], 1, left, right)[0]
        return self.vectors(self.reduce(jnp.where(inside, rows, jnp.zeros((), rows.dtype)), axis=0))

    def within(self, axis: int, first: Array, last: Array) -> Array:
        """The map's lines first..last - 1 across an axis, combined: rows (0) or columns (1)."""
        inside = _between(self.cells, axis, first, last)
        return self.reduce(
            jnp.where(inside, self.cells, jnp.zeros((), self.cells.dtype)), axis=axis
        )


def _between(x: Array, axis: int, first: Array, last: Array) -> Array:
    """Which places along an axis of (h, w, c) are in a range; shaped to broadcast."""
    place = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], x.shape[1], 1), axis)
    return (place >= first) & (place < last)


def pooling(x: Array, size: Array, alpha: float | None = None) -> Pooling:
    """Exact maxima of a clean map, or generalized means where there is an exponent.

    What lies beyond the valid size is never looked at, not even for the map's brightest cell.
    """
    if alpha is None and jnp.issubdtype(x.dtype, jnp.integer):
        return Pooling(x, jnp.maximum, jnp.max, lambda values: values.astype(jnp.float32))
    x = valid(x, size)
    brightest = jax.lax.stop_gradient(jnp.max(x)).astype(jnp.float32)
    brightest = jnp.where(brightest > 0, brightest, 1.0)
    if alpha is None:
        return Pooling(
            x, jnp.maximum, jnp.max, lambda values: values.astype(jnp.float32) / brightest
        )
    powers, unit = channel_powers(x.astype(jnp.float32), alpha)

    def rooted(sums: Array) -> Array:
        units = jnp.expand_dims(unit, tuple(range(sums.ndim - 1)))
        return out_of_units(root(sums, 1.0 / alpha), units) / brightest

    return Pooling(powers, jnp.add, jnp.sum, rooted)


def valid(x: Array, size: Array) -> Array:
    """A map (h, w, c) that is zero beyond its valid size."""
    inside = _between(x, 0, jnp.zeros_like(size[0]), size[0])
    inside &= _between(x, 1, jnp.zeros_like(size[1]), size[1])
    return jnp.where(inside, x, jnp.zeros((), x.dtype))


def cosines(vectors: Float[Array, "*m c"], query: Float[Array, "c"]) -> Float[Array, "*m"]:
    """Cosine of vectors with a unit query; 0 for a zero vector."""
    dots = jnp.matmul(vectors, query, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(vectors * vectors, axis=-1)
    return jnp.where(squares > 0, dots / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def clean(x: Array) -> Array:
    """Activations without what no network gives: negative, NaN and infinite ones become 0.

    Those above `BRIGHTEST` become that.
    """
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.maximum(x, jnp.zeros((), x.dtype))
    highest = jnp.asarray(min(BRIGHTEST, float(jnp.finfo(x.dtype).max)), x.dtype)
    return jnp.where((x > 0) & jnp.isfinite(x), jnp.minimum(x, highest), jnp.zeros((), x.dtype))


class Inputs(NamedTuple):
    """Checked arguments: the map, the query's vector, the map's valid size, the query's ratio."""

    a1: Array
    query: Array
    size: Array
    ratio: Array | None


def unit_query(inputs: Inputs) -> Float[Array, "c"]:
    """The query's vector at length 1, in float32."""
    return l2_normalize(clean(inputs.query.astype(jnp.float32)))


def check_inputs(
    a1: Array | np.ndarray,
    query: Array | np.ndarray,
    ratio: ArrayLike | None,
    size: Array | np.ndarray | None,
) -> Inputs:
    """Refuse maps, queries and ratios that do not fit, and turn the others into arrays."""
    x, vector = jnp.asarray(a1), jnp.asarray(query)
    check_map(x)
    if vector.shape != x.shape[2:]:
        raise ValueError(
            f"The query has shape {vector.shape} but the map has {x.shape[2]} channels; both must "
            "come from the same network."
        )
    if is_number(ratio) and not 0 < float(ratio) < math.inf:
        raise ValueError(f"ratio is {ratio}, but height / width of the query lies above 0.")
    shape = jnp.asarray(x.shape[:2], jnp.int32)
    if size is not None:
        shape = jnp.clip(jnp.asarray(size).astype(jnp.int32), 0, shape)
    return Inputs(x, vector, shape, None if ratio is None else as_float(ratio))


def check_at_least_one(options: Mapping[str, ArrayLike | None]) -> None:
    """Refuse options, known by name, that are plain numbers below 1."""
    for name, value in options.items():
        if is_number(value) and not float(value) >= 1:
            raise ValueError(f"{name} is {value}, but it is at least 1.")


def check_overlap(overlap: float) -> None:
    """Refuse what is no intersection over union."""
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap is {overlap}, but intersection over union lies in 0..1.")


def as_float(value: ArrayLike) -> Float[Array, ""]:
    """A number as a float32 array, so that its value never decides what is compiled."""
    return jnp.asarray(value).astype(jnp.float32)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is known already: a number, or an array of one that no transformation traces.

    Raises:
        ValueError: for an array of several.
    """
    known = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    if not known or isinstance(value, jax.core.Tracer):
        return False
    shape = getattr(value, "shape", ())
    if shape:
        raise ValueError(f"Expected one number, but got an array of shape {shape}.")
    return True
