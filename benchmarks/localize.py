"""Milliseconds to localize a query in 1000 activation maps, as published and exactly.

    python benchmarks/localize.py
    python benchmarks/localize.py --h 24 --w 32 --c 512 --maps 1000 --block 50

Maps are quantised levels drawn at random with the sparsity of real ones. Compilation is not
counted: every way runs once on the first block before the clock starts.
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rmacjax


def milliseconds(function: Callable, maps: np.ndarray, query: np.ndarray, block: int) -> float:
    """Time a vmapped function over all maps, block by block, after one block to compile."""
    compiled = jax.jit(jax.vmap(function, in_axes=(0, None)))
    jax.block_until_ready(compiled(maps[:block], query))
    start = time.perf_counter()
    for at in range(0, len(maps), block):
        jax.block_until_ready(compiled(maps[at : at + block], query))
    return 1000 * (time.perf_counter() - start)


def main(*, maps: int = 1000, h: int = 24, w: int = 32, c: int = 512, block: int = 50) -> None:
    """Measure each way and print one JSON document.

    Args:
        maps: how many activation maps, a multiple of the block.
        h: rows of a map, in cells.
        w: columns of a map.
        c: channels.
        block: maps per compiled call.
    """
    rng = np.random.default_rng(0)
    shape = (maps, h, w, c)
    levels = np.where(rng.random(shape) < 0.1, rng.integers(1, 9, shape), 0).astype(np.uint8)
    query = rng.random(c).astype(np.float32)
    query /= np.linalg.norm(query)
    ratio = jnp.float32(1.0)
    ways = {
        "aml, ratio within 1.1": lambda a, q: rmacjax.aml(a, q, ratio),
        "aml, any ratio": lambda a, q: rmacjax.aml(a, q),
        "aml, exact maxima": lambda a, q: rmacjax.aml(a, q, ratio, alpha=None),
        "localize, all boxes": lambda a, q: rmacjax.localize(a, q),
    }
    report = {"maps": list(shape), "device": str(jax.devices()[0].device_kind)}
    for name, way in ways.items():
        report[f"{name} [ms]"] = round(milliseconds(way, levels, query, block), 1)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
