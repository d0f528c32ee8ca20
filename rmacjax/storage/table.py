"""The table: create, open, append, delete, read, compact."""

import functools
import json
import os
import random
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.dataset import Session  # type: ignore[attr-defined]
from lance.fragment import FragmentMetadata, write_fragments
from lance.optimize import Compaction

from rmacjax.storage.durability import (
    set_torn_manifests_aside,
    sync_folder,
    sync_fragments,
    sync_manifests,
)
from rmacjax.storage.levels import PackedLevels
from rmacjax.storage.regions import StoredRegions, read_regions
from rmacjax.storage.rows import (
    Found,
    Snapshot,
    StoredImage,
    encode_paths,
    find_rows,
    read_signatures,
    read_snapshot,
    schema,
    to_columns,
    without_rows,
)

FORMAT_VERSION = 1
"""Version of the table's layout; a table with a newer one is refused."""

_FACTS = b"rmacjax"  # key of the schema's metadata under which `Table.create` keeps its facts
_TARGET_ROWS = 4096  # rows per fragment after compaction; Lance's default rewrites whole tables
_RETRY_SECONDS = 120.0


class Table:
    """A table of described images; make one with `Table.create` or `Table.open`.

    A `Table` looks at one version. Its own changes move it on; `refresh` moves it to the newest
    version where others have written. Several threads may use it.

    Attributes:
        location: the absolute path of a local folder, or the URI.
        metadata: the strings given to `create`; they never change.
        dimensions: d, the descriptors' length.
        channels: c, the maps' channels.
        regions: whether it keeps the vectors of each image's regions.
        recovered: a sentence per damaged version that `open` had to set aside.
    """

    def __init__(self, location: str, dataset: lance.LanceDataset, recovered: list[str]) -> None:
        facts = _facts(location, dataset)
        self.location = location
        self.metadata: dict[str, str] = facts["metadata"]
        self.dimensions: int = facts["dimensions"]
        self.channels: int = facts["channels"]
        self.regions: bool = facts.get("regions", False)
        self.recovered = recovered
        self._dataset = dataset
        self._snapshot: Snapshot | None = None

    @classmethod
    def create(
        cls,
        location: str | os.PathLike[str],
        *,
        dimensions: int,
        channels: int,
        regions: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> "Table":
        """Make an empty table.

        Args:
            location: a folder that does not exist or is empty, or a URI.
            dimensions: d, the descriptors' length.
            channels: c, the maps' channels.
            regions: whether to keep the vectors of each image's regions too.
            metadata: strings kept with the table; they cannot be changed.

        Returns:
            The table; it is on the disk.

        Raises:
            FileExistsError: where a table, a file or a folder with other things is already.
            ValueError: for sizes below 1.
            TypeError: for metadata that are not strings.
            RuntimeError: when the table cannot be written.
        """
        metadata = dict(metadata or {})
        if dimensions < 1 or channels < 1:
            raise ValueError(
                f"dimensions and channels must be at least 1, got {dimensions} and {channels}"
            )
        for key, value in metadata.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise TypeError(f"metadata must map strings to strings, got {key!r}: {value!r}")
        place = _resolve(location)
        _refuse_occupied(place)
        folder = _local_folder(place)
        missing = [] if folder is None else [one for one in folder.parents if not one.exists()]
        facts = {
            "format": FORMAT_VERSION,
            "dimensions": int(dimensions),
            "channels": int(channels),
            "metadata": metadata,
        }
        if regions:
            facts["regions"] = True
        columns = schema(dimensions, regions=regions).with_metadata({_FACTS: json.dumps(facts)})
        try:
            with _failures("created", place):
                dataset = lance.write_dataset(
                    columns.empty_table(),
                    place,
                    mode="create",
                    data_storage_version="2.2",
                    enable_stable_row_ids=True,
                    session=_session(),
                )
                if folder is not None:
                    sync_manifests(folder, 0, dataset.version)
                    for parent in folder.parents[: len(missing) + 1]:
                        sync_folder(parent)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise FileExistsError(  # another process was quicker
                f"there is a collection at {place} already; open it instead"
            ) from error
        return cls(place, dataset, [])

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> "Table":
        """Open a table at its newest readable version.

        A power cut can leave the newest version's manifest torn. Such a file is renamed (its name
        gets the suffix ``.unreadable``), `recovered` says so, and the version before it opens;
        no change that was acknowledged is lost.

        Args:
            location: a folder or a URI.

        Returns:
            The table.

        Raises:
            FileNotFoundError: where there is no table.
            ValueError: for a Lance table that is not one of ours.
            RuntimeError: for a table of a newer format, or one that cannot be read.
        """
        place = _resolve(location)
        folder = _local_folder(place)
        recovered: list[str] = []
        if folder is not None:
            recovered = set_torn_manifests_aside(folder, lambda: _open_any(place))
        return cls(place, _open_newest(place), recovered)

    @property
    def folder(self) -> Path | None:
        """The local folder it lies in; None in an object store."""
        return _local_folder(self.location)

    @property
    def version(self) -> int:
        """Number of the version that this table looks at."""
        return int(self._dataset.version)

    @property
    def fragments(self) -> int:
        """Number of fragments: one per `append`, until `compact` merges them."""
        return len(self._dataset.get_fragments())

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def refresh(self) -> bool:
        """Move to the newest version; it takes microseconds when there is no newer one.

        Returns:
            Whether there was a newer one.
        """
        newest = _open_newest(self.location)
        changed = newest.version != self._dataset.version
        if changed:
            self._dataset = newest
        return changed

    def append(self, images: Sequence[StoredImage], *, replace: bool = True) -> int:
        """Add rows in one durable commit, which happens as a whole or not at all.

        Give some hundred images at a time: a commit costs milliseconds and several files.

        Args:
            images: the rows; where a path occurs twice the last one counts.
            replace: rows of the table with the same paths give way, in the same commit. When
                False they are refused.

        Returns:
            Number of rows written; they are on the disk.

        Raises:
            ValueError: for a shape that does not fit the table, a descriptor that is not finite
                in float16, or (without `replace`) a path that the table has; nothing changes.
            RuntimeError: when the rows cannot be written.
        """
        if not images:
            return 0
        rows = to_columns(
            images, dimensions=self.dimensions, channels=self.channels, regions=self.regions
        )

        def choose(found: Found) -> np.ndarray:
            if found.names and not replace:
                raise ValueError(
                    f"{found.names[0].decode(errors='replace')!r} is already in the collection at "
                    f"{self.location}; remove it first, or replace it"
                )
            return found.addresses

        names = rows["path"].combine_chunks()
        with _failures("written", self.location):
            added = write_fragments(rows, self._dataset, mode="append")
            self._sync_fragments(added)
        _, overtaken = self._commit(names, choose, added)
        if overtaken:
            # A path that another writer has added anew meanwhile clashed with nothing, so both
            # rows stand now: the later one stays.
            self._commit(names, _older_doubles, [])
        return int(rows.num_rows)

    def delete(self, paths: Iterable[str]) -> int:
        """Remove the rows with these paths in one durable commit.

        Args:
            paths: names; those that the table does not have are passed over.

        Returns:
            Number of rows removed.

        Raises:
            RuntimeError: when the change cannot be written.
        """
        names = encode_paths(sorted(set(paths)))
        removed, _ = self._commit(names, lambda found: found.addresses, [])
        return removed

    def signatures(self) -> dict[str, tuple[int, int]]:
        """Tell which files are stored, for adding to go on where it stopped.

        Returns:
            For every path its file's size in bytes and modification time in nanoseconds.
        """
        with _failures("read", self.location):
            return read_signatures(self._dataset)

    def snapshot(self) -> Snapshot:
        """Read all rows of this version but their maps; kept while the version stands.

        Returns:
            The rows in the order they were added; a replaced row counts as added anew.
        """
        dataset, snapshot = self._dataset, self._snapshot
        if snapshot is None or snapshot.version != dataset.version:
            with _failures("read", self.location):
                snapshot = read_snapshot(dataset, dimensions=self.dimensions)
            self._snapshot = snapshot
        return snapshot

    def read_packed(
        self, snapshot: Snapshot, indices: Sequence[int] | np.ndarray
    ) -> list[PackedLevels]:
        """Read the maps of some rows of a snapshot, from the snapshot's own version.

        Reading is one request to the disk for all, and short; unpacking is work, which the caller
        may share out over threads. Fewer than some hundred maps at a time cost more each.

        Args:
            snapshot: what `snapshot` has returned, now or earlier.
            indices: (k,) numbers of rows in the snapshot, in any order.

        Returns:
            k packed maps in the order of `indices`; `PackedLevels.unpack` gives (h, w, c) uint8.

        Raises:
            ValueError: for numbers outside the snapshot.
            RuntimeError: when maps cannot be read, or when the snapshot is so old that `compact`
                has removed its version.
        """
        chosen = np.asarray(indices, np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(snapshot.paths)):
            raise ValueError(
                f"rows must lie in 0..{len(snapshot.paths) - 1}, got {chosen.min()}..{chosen.max()}"
            )
        if not chosen.size:
            return []
        ids = snapshot.row_ids[chosen].tolist()
        with self._version_of(snapshot) as dataset:
            blobs = dataset.read_blobs("levels", ids=ids, preserve_order=True)
        packed = []
        for index, (_, data) in zip(chosen.tolist(), blobs, strict=True):
            try:
                packed.append(PackedLevels(data or b""))
            except ValueError as error:
                path = snapshot.paths[index]
                raise RuntimeError(
                    f"the collection at {self.location} has a map that cannot be used, that of "
                    f"{path!r}: {error}; remove the photo and add it again"
                ) from error
        return packed

    def read_regions(self, snapshot: Snapshot) -> Iterator[StoredRegions]:
        """Stream the region vectors of all rows of a snapshot, from the snapshot's own version.

        Args:
            snapshot: what `snapshot` has returned, now or earlier.

        Yields:
            Some hundred rows at a time, in no order; each row of the snapshot is there once.

        Raises:
            ValueError: for a table that keeps no regions.
            RuntimeError: as `read_packed`.
        """
        if not self.regions:
            raise ValueError(
                f"the collection at {self.location} keeps no region vectors, which a first stage "
                "by regions needs: index the photos again with --regions (in Python "
                "regions=True), into another collection"
            )
        with self._version_of(snapshot) as dataset:
            yield from read_regions(dataset, snapshot.row_ids, dimensions=self.dimensions)

    @contextmanager
    def _version_of(self, snapshot: Snapshot) -> Iterator[lance.LanceDataset]:
        """The version that a snapshot shows, to be read while the context lasts."""
        with _failures("read (a new snapshot may help)", self.location):
            dataset = self._dataset
            if dataset.version != snapshot.version:
                dataset = _open_any(self.location, version=snapshot.version)
            yield dataset

    def compact(self, *, keep_seconds: int | float = 3600, keep_versions: int = 1) -> None:
        """Merge small fragments, drop removed rows, delete what only old versions need.

        Rows, their order and their numbers stay. Call it now and then while adding (when
        `fragments` has grown by some 16) and after large removals.

        Args:
            keep_seconds: younger versions stay, so that readers can go on with their snapshots and
                writers with their commits; until they are deleted (by a later call) the merged
                rows take their space twice. 0 only where nobody else is at work.
            keep_versions: so many of the newest versions stay in any case.

        Raises:
            RuntimeError: when the table cannot be written.
        """
        options: Any = {"target_rows_per_fragment": _TARGET_ROWS, "batch_size": 256}
        with _failures("compacted", self.location):
            dataset = _open_newest(self.location)
            for task in Compaction.plan(dataset, options).tasks:
                before = dataset.version
                rewrite = task.execute(dataset)
                self._sync_fragments(rewrite.new_fragments)
                try:
                    Compaction.commit(dataset, [rewrite], options)
                except OSError as error:
                    if not _is_conflict(error):
                        raise
                    dataset = _open_newest(self.location)
                    break  # others are changing the same rows: the next call merges them
                dataset = _open_newest(self.location)
                self._sync_manifests(before, dataset.version)
            self._dataset = dataset
            self._sync_manifests(dataset.version - 1, dataset.version)  # others may not have, yet
            dataset.cleanup_old_versions(
                older_than=timedelta(seconds=max(keep_seconds, 1e-6)),
                retain_versions=max(keep_versions, 1),
            )

    def _commit(
        self,
        names: pa.Array,
        choose: Callable[[Found], np.ndarray],
        added: list[FragmentMetadata],
    ) -> tuple[int, bool]:
        """Take rows out and put fragments in by one commit; again where others were quicker.

        Args:
            names: paths to look for.
            choose: returns the addresses of those of the rows found that have to go.
            added: fragments that are written and flushed.

        Returns:
            Number of rows taken out, and whether others have committed in between.
        """
        deadline = time.monotonic() + _RETRY_SECONDS
        longest = 0.01
        while True:
            dataset = _open_newest(self.location)
            with _failures("read", self.location):
                found = find_rows(dataset, names)
            addresses = choose(found)
            if not len(addresses) and not added:
                self._dataset = dataset
                return 0, False
            try:
                with _failures("written", self.location):
                    operation = self._operation(dataset, addresses, added)
                    committed = lance.LanceDataset.commit(
                        dataset, operation, read_version=dataset.version
                    )
            except OSError as error:  # only conflicts get through `_failures` as such
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"others kept changing the collection at {self.location} for "
                        f"{_RETRY_SECONDS:.0f} seconds; try again when they are done"
                    ) from error
                longest = min(2 * longest, 1.0)
                time.sleep(random.uniform(0, longest))
                continue
            self._sync_manifests(dataset.version, committed.version)
            self._dataset = committed
            return len(addresses), committed.version != dataset.version + 1

    def _operation(
        self, dataset: lance.LanceDataset, addresses: np.ndarray, added: list[FragmentMetadata]
    ) -> lance.LanceOperation.BaseOperation:
        """Describe a change to Lance, its deletion marks flushed."""
        if not len(addresses):
            return lance.LanceOperation.Append(added)
        updated, emptied = without_rows(dataset, addresses)
        self._sync_fragments(updated)
        if not added:
            return lance.LanceOperation.Delete(updated, emptied, "path IN (...)")
        return lance.LanceOperation.Update(
            removed_fragment_ids=emptied, updated_fragments=updated, new_fragments=added
        )

    def _sync_fragments(self, fragments: Sequence[FragmentMetadata]) -> None:
        folder = _local_folder(self.location)
        if folder is not None:
            sync_fragments(folder, fragments)

    def _sync_manifests(self, before: int, after: int) -> None:
        folder = _local_folder(self.location)
        if folder is not None:
            sync_manifests(folder, before, after)


def _older_doubles(found: Found) -> np.ndarray:
    """Return the addresses of all rows but the newest of each path."""
    newest = {found.names[k]: k for k in np.argsort(found.row_ids).tolist()}
    return np.delete(found.addresses, list(newest.values()))


def _facts(location: str, dataset: lance.LanceDataset) -> dict[str, Any]:
    """Read what `Table.create` has written beside the columns."""
    text = (dataset.schema.metadata or {}).get(_FACTS)
    if text is None:
        raise ValueError(f"the Lance table at {location} is not a collection of rmacjax")
    facts: dict[str, Any] = json.loads(text)
    if facts["format"] > FORMAT_VERSION:
        raise RuntimeError(
            f"the collection at {location} has format {facts['format']}, this version of rmacjax "
            f"reads up to {FORMAT_VERSION}; upgrade rmacjax"
        )
    return facts


@functools.cache
def _session() -> Session:
    """One bounded cache of metadata for all tables of the process."""
    return Session(index_cache_size_bytes=16 << 20, metadata_cache_size_bytes=256 << 20)


def _resolve(location: str | os.PathLike[str]) -> str:
    """Return an absolute local path, or the URI as it is."""
    text = os.fspath(location)
    if text.startswith("file://"):
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    return text if "://" in text else os.path.abspath(text)


def _local_folder(place: str) -> Path | None:
    return None if "://" in place else Path(place)


def _refuse_occupied(place: str) -> None:
    """Raise FileExistsError where no new table must be made."""
    folder = _local_folder(place)
    if folder is None:
        try:
            _open_newest(place)
        except FileNotFoundError:
            return
    elif not folder.exists():
        return
    elif not folder.is_dir():
        raise FileExistsError(f"{place} is a file; name a new or empty folder")
    elif not (folder / "_versions").is_dir():
        if any(folder.iterdir()):
            raise FileExistsError(f"the folder {place} is not empty; name a new or empty folder")
        return
    raise FileExistsError(f"there is a collection at {place} already; open it instead")


def _open_any(place: str, *, version: int | None = None) -> lance.LanceDataset:
    return lance.dataset(place, version=version, session=_session())


def _open_newest(place: str) -> lance.LanceDataset:
    try:
        with _failures("opened", place):
            return _open_any(place)
    except RuntimeError as error:
        if "was not found" in str(error):
            raise FileNotFoundError(
                f"there is no collection at {place}; create it first"
            ) from error
        raise


@contextmanager
def _failures(done: str, place: str) -> Iterator[None]:
    """Turn what Lance raises into one sentence; conflicts of commits pass through as OSError."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if _is_conflict(error):
            raise
        reason = re.sub(r", [^ ,]+\.rs:\d+(:\d+)?", "", str(error)).partition("\n")[0]
        raise RuntimeError(
            f"the collection at {place} could not be {done}: {reason or type(error).__name__}"
        ) from error


def _is_conflict(error: BaseException) -> bool:
    """Say whether a commit failed only because another one came first."""
    return isinstance(error, OSError) and (
        getattr(error, "retryable", False) or "Retryable commit conflict" in str(error)
    )
