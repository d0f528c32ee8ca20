"""Rows of a table: what goes in, what comes out, and how both look as columns."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float16, Int32, Int64, UInt8
from lance.fragment import FragmentMetadata

from rmacjax.storage.levels import pack_levels
from rmacjax.storage.regions import half_regions, region_column


class StoredImage(NamedTuple):
    """One image as it goes into a table.

    Attributes:
        path: the image's name; at most one row of a table has it. Any string will do, file names
            that are not valid UTF-8 (as Python reads them) included.
        height_px: height of the original image.
        width_px: width of the original image.
        file_bytes: size of the file.
        file_mtime_ns: modification time of the file; with its size, the file's signature.
        descriptor: (d,) float16 or float32, stored as float16.
        levels: (h, w, c) uint8, the quantised activation map, values 0..8.
        regions: (r, d) float16 or float32, one vector per region, stored as float16; a table that
            keeps none passes them over.
    """

    path: str
    height_px: int
    width_px: int
    file_bytes: int
    file_mtime_ns: int
    descriptor: Float[np.ndarray, " d"]
    levels: UInt8[np.ndarray, "h w c"]
    regions: Float[np.ndarray, "r d"] | None = None


class Snapshot(NamedTuple):
    """All rows of one version of a table but their maps, in the order they were added.

    The arrays are shared and cannot be written to.

    Attributes:
        version: the table's version.
        row_ids: (n,) int64, increasing; the rows' own numbers, which they keep for life.
        paths: n names.
        sizes_px: (n, 2) int32, height and width of the original images.
        map_sizes: (n, 2) int32, height and width of the activation maps, in cells.
        descriptors: (n, d) float16.
    """

    version: int
    row_ids: Int64[np.ndarray, " n"]
    paths: list[str]
    sizes_px: Int32[np.ndarray, "n 2"]
    map_sizes: Int32[np.ndarray, "n 2"]
    descriptors: Float16[np.ndarray, "n d"]


class Found(NamedTuple):
    """Rows that `find_rows` found.

    Attributes:
        addresses: (k,) uint64, where they lie in this version.
        row_ids: (k,) uint64.
        names: k encoded paths.
    """

    addresses: np.ndarray
    row_ids: np.ndarray
    names: list[bytes]


def schema(dimensions: int, *, regions: bool) -> pa.Schema:
    """Return the columns of a table.

    Args:
        dimensions: d, the descriptors' length.
        regions: whether the table keeps region vectors.

    Returns:
        The schema, without metadata. Paths are bytes, because file names are; maps are a blob
        column, which Lance keeps in files of its own and reads several times faster.
    """
    plain = {
        "path": pa.binary(),
        "height_px": pa.int32(),
        "width_px": pa.int32(),
        "file_bytes": pa.int64(),
        "file_mtime_ns": pa.int64(),
        "map_height": pa.int32(),
        "map_width": pa.int32(),
        "descriptor": pa.list_(pa.float16(), dimensions),
    }
    if regions:
        plain["regions"] = pa.list_(pa.float16())
    fields = [pa.field(name, dtype, nullable=False) for name, dtype in plain.items()]
    return pa.schema([*fields, lance.blob_field("levels", nullable=False)])


def to_columns(
    images: Sequence[StoredImage], *, dimensions: int, channels: int, regions: bool
) -> pa.Table:
    """Check images and put them into columns, their maps packed.

    Args:
        images: the rows; where a path occurs twice the last one counts.
        dimensions: d, what the table's descriptors have.
        channels: c, what the table's maps have.
        regions: whether the table keeps region vectors.

    Returns:
        A row per path.

    Raises:
        ValueError: for a shape that does not fit, a descriptor or a region's vector that is not
            finite in float16, or region vectors that are missing.
    """
    images = list({image.path: image for image in images}.values())
    for image in images:
        if image.descriptor.shape != (dimensions,):
            raise ValueError(
                f"the descriptor of {image.path!r} has shape {image.descriptor.shape}, "
                f"those of the collection have ({dimensions},)"
            )
        if image.levels.ndim != 3 or image.levels.shape[2] != channels:
            raise ValueError(
                f"the map of {image.path!r} has shape {image.levels.shape}, "
                f"those of the collection have (h, w, {channels})"
            )
    halves = [half_regions(image.path, image.regions, dimensions) for image in images if regions]
    with np.errstate(over="ignore"):
        descriptors = np.stack([image.descriptor.astype(np.float16) for image in images])
    finite = np.isfinite(descriptors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"the descriptor of {images[int(np.argmin(finite))].path!r} is not finite in float16"
        )
    packed = list(in_threads(pack_levels, [image.levels for image in images]))
    arrays = [
        encode_paths([image.path for image in images]),
        pa.array([image.height_px for image in images], pa.int32()),
        pa.array([image.width_px for image in images], pa.int32()),
        pa.array([image.file_bytes for image in images], pa.int64()),
        pa.array([image.file_mtime_ns for image in images], pa.int64()),
        pa.array([image.levels.shape[0] for image in images], pa.int32()),
        pa.array([image.levels.shape[1] for image in images], pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(descriptors.reshape(-1)), dimensions),
        *([region_column(halves)] if regions else []),
        lance.blob_array(packed),
    ]
    return pa.Table.from_arrays(arrays, schema=schema(dimensions, regions=regions))


def encode_paths(paths: Sequence[str]) -> pa.Array:
    """Return paths as bytes, those that are not valid UTF-8 as they are on the disk.

    Args:
        paths: names.
    """
    return pa.array([path.encode("utf-8", "surrogateescape") for path in paths], pa.binary())


def decode_paths(column: pa.ChunkedArray) -> list[str]:
    """Undo `encode_paths`.

    Args:
        column: encoded names.
    """
    return [name.decode("utf-8", "surrogateescape") for name in column.to_pylist()]


def read_signatures(dataset: lance.LanceDataset) -> dict[str, tuple[int, int]]:
    """Map every path to the signature of its file, the newest where a path occurs twice.

    Args:
        dataset: one version of the table.
    """
    columns = ["path", "file_bytes", "file_mtime_ns"]
    rows = dataset.to_table(columns=columns, with_row_id=True).sort_by("_rowid")
    sizes, times = rows["file_bytes"].to_pylist(), rows["file_mtime_ns"].to_pylist()
    return dict(zip(decode_paths(rows["path"]), zip(sizes, times, strict=True), strict=True))


def read_snapshot(dataset: lance.LanceDataset, *, dimensions: int) -> Snapshot:
    """Stream all columns but the maps into arrays that are made once.

    Args:
        dataset: one version of the table.
        dimensions: d, the descriptors' length.
    """
    count = dataset.count_rows()
    row_ids = np.empty(count, np.int64)
    sizes = np.empty((count, 4), np.int32)
    descriptors = np.empty((count, dimensions), np.float16)
    names: list[pa.Array] = []
    start = 0
    columns = ["path", "height_px", "width_px", "map_height", "map_width", "descriptor"]
    for batch in dataset.to_batches(columns=columns, with_row_id=True):
        stop = start + batch.num_rows
        row_ids[start:stop] = batch["_rowid"].to_numpy()
        for k, column in enumerate(columns[1:5]):
            sizes[start:stop, k] = batch[column].to_numpy()
        descriptors[start:stop] = batch["descriptor"].flatten().to_numpy().reshape(-1, dimensions)
        names.append(batch["path"])
        start = stop
    paths = pa.chunked_array(names, pa.binary())
    order = np.argsort(row_ids, kind="stable")  # compaction beside a writer may shuffle fragments
    if len(pc.unique(paths)) < count:
        # Two writers have added a path at once, and the second was stopped before it tidied up.
        codes = paths.combine_chunks().dictionary_encode().indices.to_numpy()[order]
        newest = {code: k for k, code in enumerate(codes.tolist())}
        order = order[sorted(newest.values())]
    if not np.array_equal(order, np.arange(count)):
        row_ids, sizes, descriptors = row_ids[order], sizes[order], descriptors[order]
        paths = paths.take(pa.array(order))
    for array in (row_ids, sizes, descriptors):
        array.flags.writeable = False
    return Snapshot(
        int(dataset.version), row_ids, decode_paths(paths), sizes[:, :2], sizes[:, 2:], descriptors
    )


def find_rows(dataset: lance.LanceDataset, names: pa.Array) -> Found:
    """Look up rows by their encoded paths.

    Comparing values, not building a filter in SQL, leaves no name that needs quoting.

    Args:
        dataset: one version of the table.
        names: encoded paths.
    """
    addresses = [np.empty(0, np.uint64)]
    row_ids = [np.empty(0, np.uint64)]
    known: list[bytes] = []
    scanner = dataset.scanner(columns=["path"], with_row_id=True, with_row_address=True)
    for batch in scanner.to_batches():
        rows = batch.filter(pc.is_in(batch["path"], value_set=names))
        if rows.num_rows:
            addresses.append(rows["_rowaddr"].to_numpy())
            row_ids.append(rows["_rowid"].to_numpy())
            known += rows["path"].to_pylist()
    return Found(np.concatenate(addresses), np.concatenate(row_ids), known)


def without_rows(
    dataset: lance.LanceDataset, addresses: np.ndarray
) -> tuple[list[FragmentMetadata], list[int]]:
    """Mark rows as deleted, for a commit to come.

    Args:
        dataset: one version of the table.
        addresses: (k,) uint64, where the rows lie in it.

    Returns:
        The fragments with their new marks, and the ids of fragments that have no row left.
    """
    updated: list[FragmentMetadata] = []
    emptied: list[int] = []
    fragment_ids, offsets = addresses >> np.uint64(32), addresses & np.uint64(0xFFFFFFFF)
    for fragment_id in np.unique(fragment_ids).tolist():
        fragment = dataset.get_fragment(fragment_id)
        if fragment is None:
            raise RuntimeError(f"fragment {fragment_id} is missing")
        rest = fragment.delete_rows(offsets[fragment_ids == fragment_id].tolist())
        if rest is None:
            emptied.append(fragment_id)
        else:
            updated.append(rest)
    return updated, emptied


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Map in order, on several threads where there is more than one item.

    Args:
        function: leaves the interpreter's lock for most of its time.
        items: its arguments.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(items))) as pool:
        yield from pool.map(function, items)
