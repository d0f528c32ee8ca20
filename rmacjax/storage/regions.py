"""The column of region vectors, which a table has where it was made with one.

A row's vectors lie end to end in one list of float16; its length says how many there are. Twenty
vectors of 512 components are 20 KB, as much as the packed map, and a search reads all of them: so
they are never all in memory, but streamed, some megabytes at a time.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lance
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Int64

ROWS_AT_ONCE = 512
"""Rows of a batch that is read."""

READ_AHEAD_BYTES = 32 << 20
"""What Lance may read before it is asked for; its own default is 2 GB."""


class StoredRegions(NamedTuple):
    """The region vectors of some rows of a snapshot.

    Attributes:
        indices: (k,) int64, the rows' numbers in the snapshot.
        counts: (k,) int64, how many vectors each of them has.
        vectors: (r, d) float16, those of the first row, then those of the second, and so on.
    """

    indices: Int64[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]
    vectors: Float16[np.ndarray, "r d"]


def half_regions(
    name: str, vectors: Float[np.ndarray, "r d"] | None, dimensions: int
) -> Float16[np.ndarray, "r d"]:
    """Check an image's region vectors and round them to float16.

    Args:
        name: what to call the image.
        vectors: one per region.
        dimensions: d, what the table's descriptors have.

    Raises:
        ValueError: where they are missing, of another length or not finite in float16.
    """
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != dimensions:
        given = "no region vectors"
        if vectors is not None:
            given = f"region vectors of shape {vectors.shape}"
        raise ValueError(f"{name!r} has {given}, the collection's have shape (r, {dimensions})")
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"a region's vector of {name!r} is not finite in float16")
    return half


def region_column(regions: Sequence[Float16[np.ndarray, "_ d"]]) -> pa.Array:
    """Return the region vectors of several rows as one column.

    Args:
        regions: one array per row, at least one row.
    """
    offsets = np.cumsum([0, *(vectors.size for vectors in regions)])
    values = np.concatenate([vectors.reshape(-1) for vectors in regions])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def read_regions(
    dataset: lance.LanceDataset, row_ids: Int64[np.ndarray, " n"], *, dimensions: int
) -> Iterator[StoredRegions]:
    """Stream the region vectors of all rows, in the order in which they lie on the disk.

    Args:
        dataset: the version of the table that the snapshot shows.
        row_ids: the snapshot's, increasing; rows that it leaves out (older doubles) are passed
            over.
        dimensions: d, the vectors' length.
    """
    for batch in dataset.to_batches(
        columns=["regions"],
        with_row_id=True,
        batch_size=ROWS_AT_ONCE,
        batch_readahead=2,
        fragment_readahead=1,
        io_buffer_size=READ_AHEAD_BYTES,
    ):
        numbers = batch["_rowid"].to_numpy().astype(np.int64)
        indices = np.searchsorted(row_ids, numbers)
        known = row_ids[np.minimum(indices, len(row_ids) - 1)] == numbers
        if not known.all():
            batch, indices = batch.filter(pa.array(known)), indices[known]
        column = batch["regions"]
        yield StoredRegions(
            indices.astype(np.int64),
            column.value_lengths().to_numpy().astype(np.int64) // dimensions,
            column.flatten().to_numpy().reshape(-1, dimensions),
        )
