"""Re-ranking: find the object in each map of a batch, then describe and score what was found.

Two pure steps with a little geometry between them. `localize_batch` finds a box per map; the
caller turns each box into R-MAC regions (`box_regions`, plain NumPy, so that the grid is written
once); `describe_boxes` gives each box its descriptor, whose product with the query's is the
re-ranking score.

References: Tolias et al., ICLR 2016, section 5.
"""

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Num

from rmacjax.descriptors import Pool, pool_map, region_grid
from rmacjax.localization import Localization, aml_batch
from rmacjax.whitening import Whitening

SCORED_AT_ONCE = {"cpu": 8}
"""Maps whose candidates are scored side by side; elsewhere the whole batch."""

REFINED_AT_ONCE = {"gpu": 64, "tpu": 64}
"""Maps refined side by side; on a CPU one by one, so that none waits for the slowest."""


def localize_batch(
    maps: Num[Array, "n h w c"],
    sizes: Int[Array, "n 2"],
    query: Float[Array, " c"],
    ratio: Float[Array, ""] | float | None = None,
    *,
    alpha: float | None = None,
    instances: int = 1,
) -> Localization:
    """AML over a padded batch of maps, as many at a time as suit the device.

    Args:
        maps: activation maps or quantised levels, zero beyond their valid sizes.
        sizes: valid rows and columns of each map, cells.
        query: the query's plain MAC.
        ratio: height / width of the query's box in pixels, or None for no limit.
        alpha: the exponent of the paper's generalized mean; None takes exact maxima, which need no
            exponent and are faster.
        instances: boxes per map, best first.

    Returns:
        score (n, k) float32 and box (n, k, 4) int32 in cells, `k` = instances.
    """
    backend = jax.default_backend()
    return aml_batch(
        maps,
        sizes,
        query,
        ratio,
        instances=instances,
        alpha=alpha,
        side_by_side=SCORED_AT_ONCE.get(backend),
        refine_side_by_side=REFINED_AT_ONCE.get(backend),
    )


def box_regions(
    boxes: Int[np.ndarray, "n 4"], *, levels: int = 3, with_global: bool = False
) -> Int[np.ndarray, "n r 4"]:
    """R-MAC's regions inside each box, in cells of the whole map; padding rows are empty.

    A box without cells gives padding rows only.
    """
    boxes = np.asarray(boxes)
    grids = []
    for top, left, bottom, right in boxes.tolist():
        empty = bottom <= top or right <= left
        grid = region_grid(
            1 if empty else bottom - top,
            1 if empty else right - left,
            levels=levels,
            with_global=with_global,
        )
        real = (grid[:, 2:3] > grid[:, 0:1]) & (not empty)
        grids.append(np.where(real, grid + np.asarray([top, left, top, left]), 0))
    return np.stack(grids).astype(np.int32)


def describe_boxes(
    maps: Num[Array, "n h w c"],
    regions: Int[Array, "n r 4"],
    whitening: Whitening | None = None,
    *,
    pool: Pool = "rmac",
    gem_p: float | Float[Array, ""] = 3.0,
) -> Float[Array, "n d"]:
    """The descriptor of each map's box, from the map as it is stored.

    Args:
        maps: activation maps or quantised levels, zero beyond their valid sizes.
        regions: for pools with regions those of each box (`box_regions`), else the box itself.
        whitening: applied to each region's unit vector.
        pool: how a vector is made of a region.
        gem_p: exponent of "gem", which may be traced, and of "rgem", a plain number.
    """
    describe = partial(pool_map, whitening=whitening, pool=pool, gem_p=gem_p)
    return jax.vmap(describe)(maps, regions)
