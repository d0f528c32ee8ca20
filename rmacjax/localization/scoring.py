"""Scoring: boxes' vectors, their cosine with the query, and what may be asked at all."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from rmacjax.integral import (
    box_generalized_mean,
    box_maximum,
    check_map,
    integral_image,
    root,
    row_max_table,
)
from rmacjax.localization.growth import Combine

SCORE_RESOLUTION = 2.0**-21
"""Cosines closer than this (4.8e-7) are equal: a few roundings of a float32 sum over channels."""

MISSING = -1.0
"""Score of an instance that does not exist; its box is (0, 0, 0, 0)."""


class Pooling(NamedTuple):
    """How boxes get their vectors: by growing many at once, or one by one from a table.

    Attributes:
        cells: (h, w, c) what is combined: activations, or powers of them.
        combine: of two neighbouring parts.
        vectors: from (..., c) combined cells to (..., c) float32 vectors of a size around 1.
        of_box: from a box (4,), traced, to its vector (c,).
    """

    cells: Array
    combine: Combine
    vectors: Callable[[Array], Array]
    of_box: Callable[[Array], Array]


def pooling(x: Array, alpha: float | None = None) -> Pooling:
    """Exact maxima of a clean map, or generalized means where there is an exponent."""
    brightest = jnp.max(x).astype(jnp.float32)
    scale = 1.0 / jnp.where(brightest > 0, brightest, 1.0)
    if alpha is None:
        maxima = row_max_table(x)

        def scaled(values: Array) -> Array:
            return values.astype(jnp.float32) * scale

        return Pooling(x, jnp.maximum, scaled, lambda box: scaled(box_maximum(maxima, box)))
    table = integral_image(x.astype(jnp.float32), alpha)
    unit = table.unit * scale

    def rooted(sums: Array) -> Array:
        return root(sums, 1.0 / alpha) * jnp.expand_dims(unit, tuple(range(sums.ndim - 1)))

    # The table's first level is the powers themselves.
    powers = table.sums[0, : x.shape[0]]
    return Pooling(powers, jnp.add, rooted, lambda box: box_generalized_mean(table, box) * scale)


def cosines(vectors: Float[Array, "*m c"], query: Float[Array, "c"]) -> Float[Array, "*m"]:
    """Cosine of vectors with a unit query; 0 for a zero vector."""
    dots = jnp.matmul(vectors, query, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(vectors * vectors, axis=-1)
    return jnp.where(squares > 0, dots / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def clean(x: Array) -> Array:
    """Activations without what no network gives: negative, NaN and infinite ones become 0."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.maximum(x, jnp.zeros((), x.dtype))
    return jnp.where((x > 0) & jnp.isfinite(x), x, jnp.zeros((), x.dtype))


class Inputs(NamedTuple):
    """Checked arguments: the map, the query's vector, the map's valid size, the query's ratio."""

    a1: Array
    query: Array
    size: Array
    ratio: Array | None


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
    if _is_number(ratio) and not 0 < float(ratio) < math.inf:
        raise ValueError(f"ratio is {ratio}, but height / width of the query lies above 0.")
    shape = jnp.asarray(x.shape[:2], jnp.int32)
    if size is not None:
        shape = jnp.clip(jnp.asarray(size).astype(jnp.int32), 0, shape)
    return Inputs(x, vector, shape, None if ratio is None else as_float(ratio))


def check_at_least_one(options: Mapping[str, ArrayLike | None]) -> None:
    """Refuse options, known by name, that are plain numbers below 1."""
    for name, value in options.items():
        if _is_number(value) and not float(value) >= 1:
            raise ValueError(f"{name} is {value}, but it is at least 1.")


def check_overlap(overlap: float) -> None:
    """Refuse what is no intersection over union."""
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap is {overlap}, but intersection over union lies in 0..1.")


def as_float(value: ArrayLike) -> Float[Array, ""]:
    """A number as a float32 array, so that its value never decides what is compiled."""
    return jnp.asarray(value).astype(jnp.float32)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.number, np.ndarray))
