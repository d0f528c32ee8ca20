"""Milliseconds for the 1000 best of a million descriptors: every row is looked at, none is missed.

    python benchmarks/search.py --rows 1000000 --d 512

The matrix is float16 on the device. The same search by NumPy in float32 is timed beside it and
gives the truth for the recall.
"""

import json
import time

import jax
import numpy as np
import tyro

from rmacjax.search import pad_rows, top_k


def main(*, rows: int = 1_000_000, d: int = 512, k: int = 1000, repeats: int = 10) -> None:
    """Measure both and print one JSON document.

    Args:
        rows: descriptors to search.
        d: components of each.
        k: results.
        repeats: queries to take the median of.
    """
    rng = np.random.default_rng(0)
    matrix = np.empty((rows, d), np.float16)
    for start in range(0, rows, 10_000):
        block = rng.standard_normal((min(10_000, rows - start), d), np.float32)
        matrix[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    queries = rng.standard_normal((repeats, d), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    padded = pad_rows(matrix)

    found = [np.asarray(top_k(queries[0], padded, k, rows=rows)[1])]
    seconds = []
    for query in queries:
        start = time.perf_counter()
        found.append(np.asarray(top_k(query, padded, k, rows=rows)[1]))
        seconds.append(time.perf_counter() - start)

    wide = matrix.astype(np.float32)
    numpy_seconds, recalls = [], []
    for query, indices in zip(queries, found[1:], strict=True):
        start = time.perf_counter()
        scores = wide @ query
        best = np.argpartition(-scores, k)[:k]
        best = best[np.argsort(-scores[best])]
        numpy_seconds.append(time.perf_counter() - start)
        # Ties may stand in any order: what counts is that no found score is below the k-th best.
        recalls.append(float(np.mean(scores[indices] >= scores[best[-1]] - 1e-6)))
    report = {
        "rows": rows,
        "d": d,
        "k": k,
        "device": str(jax.devices()[0].device_kind),
        "top_k [ms]": round(1000 * float(np.median(seconds)), 1),
        "NumPy [ms]": round(1000 * float(np.median(numpy_seconds)), 1),
        "recall": float(np.mean(recalls)),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
