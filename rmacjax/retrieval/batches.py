"""Batches of maps: read ahead, sorted by size, padded to few shapes, some of them in work at once.

Each padded shape is a program to compile, so shapes lie on a fixed ladder and rare ones go with
others; what a map was batched with changes no result (see `rmacjax.reranking`).
"""

import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Int, Int32, UInt8

from rmacjax.retrieval.gallery import Gallery, Levels
from rmacjax.storage import PackedLevels

MAP_SIDES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Sides of padded map batches in cells; beyond 64, multiples of 32."""

MAPS_PER_BATCH = {"cpu": 8, "gpu": 128, "tpu": 128}

AT_ONCE = min(8, 1 + (os.cpu_count() or 1))
"""Batches in work at a time: one for each core, and one that is unpacked meanwhile."""

OWN_SHAPE = 128
"""Maps that a padded shape needs for batches of its own."""

READ_AHEAD = 512
"""Maps that are fetched at a time, packed, while those before are unpacked and localised in."""

T = TypeVar("T")

_own = threading.local()


def map_side(side: int) -> int:
    """The padded side, in cells, for a map's side."""
    for step in MAP_SIDES:
        if side <= step:
            return step
    return -(-side // 32) * 32


class Part(NamedTuple):
    """Maps of like size that are read and localised together.

    Attributes:
        positions: (m,) where they are among the chosen.
        shape: (n, h, w) of the padded batch; n >= m is fixed, so that little is compiled.
    """

    positions: Int[np.ndarray, " m"]
    shape: tuple[int, int, int]


def map_parts(gallery: Gallery, chosen: Int[np.ndarray, " k"]) -> list[Part]:
    """The chosen images, sorted into batches by padded size."""
    length = MAPS_PER_BATCH.get(jax.default_backend(), MAPS_PER_BATCH["cpu"])
    padded = by_shape([(map_side(h), map_side(w)) for h, w in gallery.map_sizes[chosen].tolist()])
    return [
        Part(np.asarray(positions[start : start + length]), (length, *shape))
        for shape, positions in padded.items()
        for start in range(0, len(positions), length)
    ]


def by_shape(shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Positions by padded shape; rare shapes are padded further, to one that is there anyway.

    Each shape is a program to compile, which takes as long as localising in ten thousand maps.
    """
    counts = Counter(shapes)
    rare = [shape for shape, count in counts.items() if count < OWN_SHAPE]
    common = sorted(counts.keys() - set(rare), key=math.prod)
    homes = {shape: shape for shape in common}
    for h, w in rare:
        fitting = (shape for shape in common if h <= shape[0] and w <= shape[1])
        if home := next(fitting, None):
            homes[h, w] = home
    left = [shape for shape in rare if shape not in homes]
    if left:
        around = max(h for h, _ in left), max(w for _, w in left)
        homes |= dict.fromkeys(left, around)
    padded: dict[tuple[int, int], list[int]] = {}
    for position, shape in enumerate(shapes):
        padded.setdefault(homes[shape], []).append(position)
    return padded


def read_ahead(
    gallery: Gallery, chosen: Int[np.ndarray, " k"], parts: Sequence[Part]
) -> Iterator[tuple[Part, Sequence[Levels]]]:
    """The batches with their maps, many of which are fetched at a time, before they are needed."""

    def fetch(some: Sequence[Part]) -> list[Sequence[Levels]]:
        positions = np.concatenate([part.positions for part in some])
        levels = gallery.read_levels(chosen[positions].tolist())
        counts = [len(part.positions) for part in some]
        ends = np.cumsum(counts).tolist()
        return [levels[end - n : end] for n, end in zip(counts, ends, strict=True)]

    count = max(1, READ_AHEAD // parts[0].shape[0])
    groups = [parts[start : start + count] for start in range(0, len(parts), count)]
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = reader.submit(fetch, groups[0])
        for group, following in zip(groups, [*groups[1:], None], strict=True):
            levels = coming.result()
            if following is not None:
                coming = reader.submit(fetch, following)
            yield from zip(group, levels, strict=True)


def mapped(
    pool: ThreadPoolExecutor, function: Callable[..., T], items: Iterable[tuple]
) -> Iterator[T]:
    """Results in order, of calls that are made a few before they are asked for, and no more."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, *item))
        if len(waiting) > 2 * AT_ONCE:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def padded_batch(
    part: Part, levels: Sequence[Levels]
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n 2"]]:
    """A part's maps, unpacked and padded, and their valid sizes; in memory that is used again."""
    maps = _aligned((*part.shape, levels[0].shape[-1]))
    sizes = np.ones((part.shape[0], 2), np.int32)
    maps[len(levels) :] = 0
    for row, level in enumerate(levels):
        h, w = sizes[row] = level.shape[:2]
        maps[row, h:], maps[row, :h, w:] = 0, 0
        if isinstance(level, PackedLevels):
            level.unpack(maps[row, :h, :w])
        else:
            maps[row, :h, :w] = level
    return maps, sizes


def _aligned(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """This thread's array for one batch, to be written over by the next.

    It begins at a multiple of 64 bytes, so that a CPU device takes it over as it is; and it is the
    same memory again and again, because touching fresh memory takes longer than unpacking.
    """
    size = math.prod(shape)
    room = getattr(_own, "room", None)
    if room is None or room.size < size + 64:
        room = _own.room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].reshape(shape)
