"""Images described per second: a folder of mixed sizes in one call, against one image per call.

    python benchmarks/describe.py                      # photos generated for the purpose
    python benchmarks/describe.py --photos FOLDER --long-side 512

Each way runs in a process of its own, twice over the same files: the first pass compiles, the
second is the figure. Peak memory is that of the whole process.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

import rmacjax

SIZES = [(768, 1024), (1024, 768), (683, 1024), (1024, 683), (600, 800), (480, 640), (640, 427)]
"""Heights and widths that photographs really have."""


def generate(folder: Path, count: int) -> list[str]:
    """Write photos of mixed sizes; return their paths."""
    from rmacjax import scenes
    from rmacjax.preprocessing import encode_jpeg

    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        path = folder / f"{i:05}.jpg"
        path.write_bytes(encode_jpeg(scenes.render_scene(rng, SIZES[i % len(SIZES)]), 90))
        paths.append(str(path))
    return paths


def measure(paths: list[str], weights: str, long_side: int, together: bool) -> dict[str, float]:
    """Describe all photos twice; return both passes' speed and the process's peak memory."""
    params = rmacjax.load(weights)
    settings = rmacjax.Settings(long_side=long_side)
    groups = [paths] if together else [[path] for path in paths]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for group in groups:
            np.asarray(rmacjax.describe(params, group, settings=settings))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "first_pass_per_s": len(paths) / seconds[0],
        "images_per_s": len(paths) / seconds[1],
        "peak_MiB": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def main(
    photos: Path | None = None,
    *,
    weights: str = "default",
    long_side: int = 1024,
    count: int = 200,
) -> None:
    """Measure both ways and print one JSON document.

    Args:
        photos: folder of photos; generated ones when left out.
        weights: name or file of the network.
        long_side: longest side in pixels.
        count: how many photos at most.
    """
    # A fresh process each, so that neither compiled programs nor memory carry over.
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        if photos is None:
            paths = generate(Path(folder), count)
        else:
            from rmacjax.preprocessing import find_images

            paths = find_images(photos)[:count]
        report: dict[str, object] = {"weights": weights, "long_side": long_side, "n": len(paths)}
        for name, together in (("together", True), ("one_by_one", False)):
            with fresh.Pool(1) as pool:
                report[name] = pool.apply(measure, (paths, weights, long_side, together))
        report["ratio"] = report["together"]["images_per_s"] / report["one_by_one"]["images_per_s"]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
