"""What localization costs and finds: every way beside NumPy reading the same maps once.

    python benchmarks/localization.py
    python benchmarks/localization.py --maps 200 --stored 1000        # a quick look

Each way runs in a process of its own, on maps of quantised levels in which one object is planted.
Its time is divided by that of ``maps.max(axis=(1, 2))`` in the same process, the two taken in turn,
and the medians compared; compilation is not counted. Memory is the process's peak above what it
held before the way ran, so the maps themselves are not in it. Box quality is the exact cosine of
the boxes found as a part of the best over all boxes, and their overlap with the planted ones.
"""

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

CHANNELS = 512
RATIO = 0.75
FILLED = 0.1
"""Share of cells above zero, about as in real maps."""

JUDGED = 48
"""Boxes are judged on so many maps: the best of all boxes is looked for on each."""

BLOCK = 8
"""Maps of one call, as retrieval has them on a CPU."""

Boxes = np.ndarray
Way = Callable[[], Boxes | None]
"""What is timed; compiling and putting things in place have been done."""


class Sizes(NamedTuple):
    """How much is measured."""

    maps: int
    stored: int
    slow: int
    repeats: int


def plant(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps (n, 24, 32, c) with an object in each, its boxes (n, 4), and the query (c,)."""
    rng = np.random.default_rng(seed)

    def levels(*cells: int) -> np.ndarray:
        shape = (*cells, CHANNELS)
        there = rng.random(shape, np.float32) < FILLED
        return there * rng.integers(1, 9, shape, np.uint8)

    thing = levels(9, 12)
    maps = np.empty((count, 24, 32, CHANNELS), np.uint8)
    boxes = np.empty((count, 4), np.int64)
    quiet = rng.random(CHANNELS) < 0.5  # the background knows only half of the channels
    for i in range(count):
        maps[i] = levels(24, 32) * quiet
        height = int(rng.integers(6, 16))
        width = round(height / RATIO * rng.uniform(0.95, 1.05))
        top, left = rng.integers(0, 24 - height + 1), rng.integers(0, 32 - width + 1)
        rows, columns = (np.arange(n) * m // n for n, m in ((height, 9), (width, 12)))
        seen = thing[rows][:, columns] * (rng.random((height, width, CHANNELS)) < 0.9)
        maps[i, top : top + height, left : left + width] = seen
        boxes[i] = top, left, top + height, left + width
    query = thing.max((0, 1)).astype(np.float32)
    return maps, boxes, query / np.linalg.norm(query)


def by_transcription(maps: np.ndarray, query: np.ndarray) -> Boxes:
    """The slow float64 transcription of section 4 that the tests compare with."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import oracles

    return np.stack([oracles.aml(a1, query.astype(np.float64), RATIO)[1] for a1 in maps])


def in_blocks(maps: np.ndarray, query: np.ndarray, *, way: str) -> Way:
    """One of the package's searches over maps on the device, block by block, a few at a time."""
    import jax

    from rmacjax.retrieval import AT_ONCE

    search = _search(way)
    blocks = [jax.device_put(maps[i : i + BLOCK]) for i in range(0, len(maps), BLOCK)]
    for block in {block.shape: block for block in blocks}.values():
        search(block, query)  # compiles

    def find() -> Boxes:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return np.concatenate(list(pool.map(lambda b: np.asarray(search(b, query)), blocks)))

    return find


_compiled: dict[str, Callable] = {}


def _search(way: str) -> Callable:
    import jax
    import jax.numpy as jnp

    from rmacjax.localization import localize
    from rmacjax.retrieval import localizer

    if way not in _compiled:
        ratio = jnp.float32(RATIO)
        most = None if way == "all" else jnp.float32(1.1)

        def rerank(maps, query, alpha):
            sizes = np.full((len(maps), 2), maps.shape[1:3], np.int32)
            found = localizer()(maps, sizes, query, ratio, alpha=alpha, instances=1)
            return np.asarray(found.box)[:, 0]

        @jax.jit
        def exact(maps, query):
            return jax.lax.map(lambda a1: localize(a1, query, ratio, most).box, maps)

        ways = {
            "published": partial(rerank, alpha=10.0),
            "rerank": partial(rerank, alpha=None),
            "within": exact,
            "all": exact,
        }
        _compiled[way] = ways[way]
    return _compiled[way]


class Stored:
    """A collection on disk whose maps are read, and localised, a thousand at a time."""

    def __init__(self, folder: str, maps: np.ndarray, stored: int) -> None:
        from rmacjax.storage import StoredImage, Table

        self.place = os.path.join(folder, "maps")
        table = Table.create(self.place, dimensions=8, channels=CHANNELS, metadata={})
        batch = []
        for i in range(stored):
            levels = maps[i % len(maps)]
            batch.append(
                StoredImage(f"{i:06}.jpg", 768, 1024, 1, 1, np.ones(8, np.float32), levels)
            )
            if len(batch) == 500 or i + 1 == stored:
                table.append(batch)
                batch.clear()
        table.compact(keep_seconds=0)  # as a collection does after many commits
        self.table, self.snapshot = table, table.snapshot()
        self.rows = np.random.default_rng(1).permutation(stored)[: len(maps)]

    def forget(self) -> None:
        """Ask the system to drop the files from its cache."""
        for file in Path(self.place).rglob("*"):
            if file.is_file():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)

    @property
    def map_sizes(self) -> np.ndarray:
        """As retrieval asks for them."""
        return self.snapshot.map_sizes

    def read_levels(self, indices: list[int]) -> list:
        """As retrieval asks for them."""
        return self.table.read_packed(self.snapshot, indices)

    def read(self, search: Callable | None = None, query: np.ndarray | None = None) -> Boxes | None:
        """Read a thousand maps as retrieval does, and localise in them if asked to."""
        from rmacjax.retrieval import batches

        def work(part, levels) -> Boxes | None:
            maps, _ = batches.padded_batch(part, levels)
            return None if search is None else np.asarray(search(maps, query))[: len(levels)]

        found = np.zeros((len(self.rows), 4), np.int64)
        parts = batches.map_parts(self, self.rows)
        with ThreadPoolExecutor(batches.AT_ONCE) as pool:
            packed = batches.read_ahead(self, self.rows, parts)
            for part, boxes in zip(parts, batches.mapped(pool, work, packed), strict=True):
                if boxes is not None:
                    found[part.positions] = boxes
        return None if search is None else found


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_MiB(*, anew: bool = False) -> float:
    """The most memory this process has held, since it was last asked to count anew (on Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10


def judge(maps: np.ndarray, true: np.ndarray, query: np.ndarray, found: Boxes) -> dict[str, float]:
    """Mean share of the best cosine of all boxes, and mean overlap with the planted boxes."""
    from rmacjax.localization import localize
    from rmacjax.regions import box_iou

    shares = []
    for a1, (top, left, bottom, right) in zip(maps[:JUDGED], found[:JUDGED].tolist(), strict=False):
        vector = a1[top:bottom, left:right].max((0, 1)).astype(np.float64)
        shares.append(vector @ query / np.linalg.norm(vector) / float(localize(a1, query).score))
    overlap = box_iou(found, true[: len(found)])
    return {"of the best cosine": round(float(np.mean(shares)), 4), "overlap": _mean(overlap)}


def _mean(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 3)


def measure(name: str, sizes: Sizes) -> dict[str, object]:
    """Run one way in this process."""
    slow = name == "float64 transcription"
    maps, true, query = plant(sizes.slow if slow else sizes.maps)
    compiled = {
        "published (alpha = 10)": "published",
        "re-ranking (exact maxima)": "rerank",
        "all boxes within 1.1": "within",
        "all boxes": "all",
    }
    with tempfile.TemporaryDirectory() as folder:
        before: Callable[[], object] = lambda: None  # noqa: E731
        way: Way
        if slow:
            way = partial(by_transcription, maps, query)
        elif name in compiled:
            way = in_blocks(maps, query, way=compiled[name])
        else:
            collection = Stored(folder, maps, sizes.stored)
            search = _search("rerank") if name.startswith("re-ranking") else None
            if search is not None:
                search(maps[:BLOCK], query)  # compiles
            way = partial(collection.read, search, query)
            maps, true = maps[collection.rows % len(maps)], true[collection.rows % len(maps)]
            if name.endswith("cold"):
                before = collection.forget
        held = peak_MiB(anew=True)
        found = way()
        reads, times = [], []
        for _ in range(1 if slow else sizes.repeats):
            reads.append(seconds_of(lambda: maps.max(axis=(1, 2))))
            before()
            times.append(seconds_of(way))
        report: dict[str, object] = {
            "x one read": round(statistics.median(times) / statistics.median(reads), 1),
            "ms per 1000 maps": round(1e6 * statistics.median(times) / len(maps), 1),
            "MiB above the maps": round(peak_MiB() - held),
        }
        return report if found is None else report | judge(maps, true, query, found)


def main(*, maps: int = 1000, stored: int = 20_000, slow: int = 2, repeats: int = 5) -> None:
    """Measure each way and print one JSON document.

    Args:
        maps: activation maps of 24 x 32 x 512, all localised.
        stored: images in the collection on disk, of which so many maps are read.
        slow: maps for the float64 transcription, which takes its time.
        repeats: of each measurement; the median counts.
    """
    names = [
        "float64 transcription",
        "published (alpha = 10)",
        "re-ranking (exact maxima)",
        "all boxes within 1.1",
        "all boxes",
        "reading from a collection, cold",
        "reading from a collection, warm",
        "re-ranking from a collection, cold",
        "re-ranking from a collection, warm",
    ]
    report = {}
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            report[name] = pool.apply(measure, (name, Sizes(maps, stored, slow, repeats)))
        print(f"{name}: {report[name]}", file=sys.stderr, flush=True)
    print(json.dumps({"maps": maps, "stored": stored, "cores": os.cpu_count()} | report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
