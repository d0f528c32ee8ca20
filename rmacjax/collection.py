"""A collection on disk: described photos that can grow, shrink and be searched.

`Collection` ties the stages together: `add` finds files, skips what is stored, describes the rest
(`rmacjax.extraction`) and commits batch by batch (`rmacjax.storage`); `search` describes the query
and hands over to `rmacjax.retrieval`. The collection remembers a fingerprint of the weights and
settings it was made with, so a query is always described like the photos it is compared with.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, get_args, overload

import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.descriptors import Params, Settings, fingerprint
from rmacjax.extraction import DEFAULTS, Extracted, Failed, Source, extract
from rmacjax.preprocessing import find_images
from rmacjax.retrieval import (
    Depth,
    FirstStage,
    Retrieved,
    boxes_in_pixels,
    describe_query,
    retrieve,
)
from rmacjax.search import best_scores, pad_rows
from rmacjax.storage import PackedLevels, Snapshot, StoredImage, Table
from rmacjax.weights import load

COMMIT_IMAGES = 256
"""Images per commit."""

COMMIT_SECONDS = 20.0
"""A commit is made at least this often, so that little is lost when adding is interrupted."""

COMPACT_FRAGMENTS = 16
"""Commits after which the table is put together, so that reading stays fast."""

REGION_BYTES = 256 << 20
"""Region vectors that take no more than this stay in memory for the next search."""

Progress = Callable[[int, int], None]
Box = tuple[int, int, int, int]


class AddReport(NamedTuple):
    """What `Collection.add` did.

    Attributes:
        added: images described and stored for the first time.
        replaced: images whose file had changed since.
        unchanged: images that were stored already.
        skipped: path and reason of each image that could not be described.
        seconds: how long it took.
    """

    added: int
    replaced: int
    unchanged: int
    skipped: list[tuple[str, str]]
    seconds: float


class Hit(NamedTuple):
    """One photo found.

    Attributes:
        path: the photo, which is also its id in the collection.
        score: what it is ranked by: after expansion, after re-ranking, or the filter's.
        box_px: where the object is, (top, left, bottom, right) in pixels of the original after
            EXIF orientation; None where the photo was not localised.
        boxes_px: all boxes where several instances were asked for, best first.
        filter_score: the first stage's: cosine of the query's descriptor with the whole photo's, or
            the mean, over the query's regions, of the largest with any of the photo's.
        box_score: cosine of localization, None where the photo was not localised.
        height_px: height of the original.
        width_px: width of the original.
    """

    path: str
    score: float
    box_px: Box | None
    boxes_px: list[Box]
    filter_score: float
    box_score: float | None
    height_px: int
    width_px: int


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """The hits of one search, best first, with what was asked and how long it took.

    Attributes:
        hits: best first.
        query_path: the query's file, or None for an array.
        query_box_px: the outlined box in the query image.
        query_size_px: height and width of the query image.
        searched: number of photos in the collection.
        timings: seconds per stage.
    """

    hits: list[Hit]
    query_path: str | None
    query_box_px: Box
    query_size_px: tuple[int, int]
    searched: int
    timings: dict[str, float]

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]


_Regions = tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[Array, "r d"]]


class _StoredGallery:
    """One version of a table, as retrieval wants to see it."""

    def __init__(self, table: Table, snapshot: Snapshot) -> None:
        self._table = table
        self.snapshot = snapshot
        self._descriptors = pad_rows(snapshot.descriptors)
        self._regions: list[_Regions] | None = None
        self._regions_fit = True

    @property
    def descriptors(self) -> Float[Array | np.ndarray, "n d"]:
        return self._descriptors

    @property
    def map_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self.snapshot.map_sizes

    def read_levels(self, indices: Sequence[int]) -> list[PackedLevels]:
        return self._table.read_packed(self.snapshot, indices)

    def region_scores(self, regions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
        scores = np.empty(len(self.snapshot.paths), np.float32)
        for indices, counts, vectors in self._read_regions():
            scores[indices] = best_scores(regions, vectors, counts)
        return scores

    def _read_regions(self) -> Iterator[_Regions]:
        """The region vectors, some hundred photos at a time; from memory where they fit in."""
        if self._regions is not None:
            yield from self._regions
            return
        kept: list[_Regions] = []
        size = 0
        for indices, counts, stored in self._table.read_regions(self.snapshot):
            vectors = pad_rows(stored)
            size += vectors.nbytes
            if size > REGION_BYTES:
                self._regions_fit = False
                kept.clear()
            if self._regions_fit:
                kept.append((indices, counts, vectors))
            yield indices, counts, vectors
        if self._regions_fit:
            self._regions = kept


class Collection:
    """Described photos on disk. Make one with `create`, come back with `open`.

    Attributes:
        location: the folder or URI it lies at.
        params: the network and whitening it is described with.
        settings: how it is described.
    """

    def __init__(self, location: str, table: Table, params: Params, settings: Settings) -> None:
        self.location = location
        self._table = table
        self.params = params
        self.settings = settings
        self._gallery: _StoredGallery | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        params: Params,
        *,
        settings: Settings = DEFAULTS,
        regions: bool = False,
    ) -> "Collection":
        """Make an empty collection.

        Args:
            path: a folder that does not exist yet, or the URI of an object store.
            params: what to describe with; `open` will load it again by its name.
            settings: how to describe.
            regions: whether to keep the vectors of each photo's regions too, which a search with
                ``first_stage="regions"`` compares with: some 20 regions of d components in two
                bytes each, for d = 512 about 20 KB a photo. Of several scales, it is the first
                one's regions; pools other than R-MAC have a single region, the whole photo.

        Raises:
            FileExistsError: where there is one already, or anything else.
        """
        used = params.whitening if settings.whiten else None
        dimensions = params.network.channels if used is None else used.projection.shape[0]
        metadata = {
            "weights": params.network.source,
            "fingerprint": fingerprint(params, settings),
            "settings": json.dumps(asdict(settings)),
            "last_pool": json.dumps(params.network.last_pool),
            "compute_dtype": params.network.compute_dtype,
        }
        table = Table.create(
            os.fspath(path),
            dimensions=dimensions,
            channels=params.network.channels,
            regions=regions,
            metadata=metadata,
        )
        return cls(os.fspath(path), table, params, settings)

    @classmethod
    def open(cls, path: str | os.PathLike, params: Params | None = None) -> "Collection":
        """Open a collection.

        Args:
            path: where it was made.
            params: what to describe with; None loads what the collection was made with.

        Raises:
            FileNotFoundError: where there is no collection, or its weights are not found.
            ValueError: where the weights are not those that the collection was made with.
        """
        table = Table.open(os.fspath(path))
        metadata = table.metadata
        stored = json.loads(metadata["settings"])
        settings = Settings(**stored | {"scales": tuple(stored["scales"])})
        source = metadata["weights"]
        remedy = "or index the photos again"
        if params is None and not source:
            raise ValueError(
                f"collection {os.fspath(path)!r} was made with a network that was never stored: "
                f"pass its params, {remedy}"
            )
        if params is None:
            last_pool = json.loads(metadata["last_pool"])
            dtype: Literal["float32", "bfloat16"] = (
                "bfloat16" if metadata["compute_dtype"] == "bfloat16" else "float32"
            )
            params = load(source, last_pool=last_pool, dtype=dtype)
            remedy = f"restore {source!r}, {remedy}"
        elif source:
            remedy = f"open it with {source!r} and without options, {remedy}"
        if fingerprint(params, settings) != metadata["fingerprint"]:
            raise ValueError(
                f"collection {os.fspath(path)!r} was made with other weights, another whitening, "
                f"last pool or number type than {params.network.source or params.network.name!r} "
                f"has now: {remedy}"
            )
        return cls(os.fspath(path), table, params, settings)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def paths(self) -> list[str]:
        """The stored photos, which are their ids."""
        return self._table.snapshot().paths

    @property
    def regions(self) -> bool:
        """Whether the vectors of each photo's regions are kept, for the first stage by regions."""
        return self._table.regions

    @property
    def recovered(self) -> list[str]:
        """What was set right on opening after a power cut, a sentence each."""
        return self._table.recovered

    def gallery(self) -> _StoredGallery:
        """A consistent view for `rmacjax.retrieval`, untouched by what is added meanwhile."""
        self._table.refresh()
        snapshot = self._table.snapshot()
        if self._gallery is None or self._gallery.snapshot is not snapshot:
            self._gallery = _StoredGallery(self._table, snapshot)
        return self._gallery

    def add(
        self,
        paths: str | os.PathLike | Iterable[str | os.PathLike],
        *,
        progress: Progress | None = None,
    ) -> AddReport:
        """Describe and store photos; what is stored already and unchanged is skipped.

        Interrupted, it keeps what it has described; called again, it goes on from there.

        Args:
            paths: files and folders, searched with their sub-folders.
            progress: called with (done, total) as images are finished.

        Returns:
            What was added, and the images that could not be described, with reasons.
        """
        start = time.perf_counter()
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        files, problems = find_images([os.path.abspath(os.fspath(path)) for path in paths])
        skipped = list(problems)
        self._table.refresh()
        known = self._table.signatures()
        fragments = self._table.fragments
        pending, signatures, unchanged = [], [], 0
        for file in files:
            try:
                status = os.stat(file)
            except OSError as error:
                why = f"cannot be read ({error.strerror}): check the link and the rights"
                skipped.append((file, f"{file!r} {why}"))
                continue
            signature = (status.st_size, status.st_mtime_ns)
            if known.get(file) == signature:
                unchanged += 1
            else:
                pending.append(file)
                signatures.append(signature)
        stored: list[str] = []
        waiting: list[StoredImage] = []
        committed = time.monotonic()
        done = 0
        try:
            for item in extract(
                self.params, pending, settings=self.settings, keep_regions=self.regions
            ):
                done += 1
                if isinstance(item, Failed):
                    skipped.append((pending[item.index], str(item.error)))
                else:
                    waiting.append(_row(pending[item.index], signatures[item.index], item))
                late = time.monotonic() - committed > COMMIT_SECONDS
                if waiting and (late or len(waiting) >= COMMIT_IMAGES):
                    self._commit(waiting, stored)
                    committed = time.monotonic()
                if progress is not None:
                    progress(done, len(pending))
        finally:
            self._commit(waiting, stored)
            if self._table.fragments > fragments + COMPACT_FRAGMENTS:
                self._table.compact()
        replaced = sum(path in known for path in stored)
        return AddReport(
            len(stored) - replaced, replaced, unchanged, skipped, time.perf_counter() - start
        )

    def _commit(self, waiting: list[StoredImage], stored: list[str]) -> None:
        if waiting:
            self._table.append(waiting)
            stored.extend(image.path for image in waiting)
            waiting.clear()

    def remove(self, ids: str | os.PathLike | Iterable[str | os.PathLike]) -> int:
        """Take photos out of the collection; the files themselves stay.

        Args:
            ids: paths as stored, or relative to the current folder.

        Returns:
            How many were removed.
        """
        if isinstance(ids, str | os.PathLike):
            ids = [ids]
        wanted = {os.fspath(i) for i in ids}
        return self._table.delete(sorted(wanted | {os.path.abspath(i) for i in wanted}))

    def search(
        self,
        image: Source,
        box_px: Box | None = None,
        top: int = 20,
        rerank: Depth = 1000,
        expand: int = 5,
        *,
        instances: int = 1,
        alpha: float | None = None,
        fusion: float = 0.0,
        first_stage: FirstStage = "descriptor",
    ) -> SearchResult:
        """Find the photos that show the outlined object, and where it is in each.

        Args:
            image: a file path, or an (H, W, 3) RGB array.
            box_px: the object, (top, left, bottom, right) in pixels; None for the whole image.
            top: how many hits to return.
            rerank: how many of the best are localised and re-ranked; 0 for none, "all" for the
                whole collection, whatever the filter thinks of it.
            expand: how many of the best boxes join the query; 0 for none.
            instances: boxes per photo.
            alpha: exponent of the paper's generalized mean for localization; None for exact maxima.
            fusion: share (0..1) of the whole photo's descriptor in the re-ranking score; 0 scores
                the box alone, as published.
            first_stage: what the filter compares: "descriptor", one vector per photo as published,
                or "regions", each of the query's regions with the photo's one most like it, where
                the collection was made with ``regions=True``.

        Raises:
            ValueError: where a number is out of range, the box is no box of the image, or the
                collection has no region vectors to start with.
            OSError: where the query cannot be read.
        """
        if isinstance(rerank, str) and rerank != "all":
            raise ValueError(f'rerank is a number of photos or "all", not {rerank!r}')
        for name, value, least in (
            ("top", top, 1),
            ("rerank", 0 if rerank == "all" else rerank, 0),
            ("expand", expand, 0),
            ("instances", instances, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not 0 <= fusion <= 1:
            raise ValueError(f"fusion is a share and lies in 0..1, not {fusion}")
        if first_stage not in get_args(FirstStage):
            known = " or ".join(f'"{name}"' for name in get_args(FirstStage))
            raise ValueError(f"first_stage is {known}, not {first_stage!r}")
        start = time.perf_counter()
        query = describe_query(self.params, image, box_px, settings=self.settings)
        described = time.perf_counter() - start
        gallery = self.gallery()
        opened = time.perf_counter() - start - described
        retrieved = retrieve(
            query,
            gallery,
            whitening=self.params.whitening if self.settings.whiten else None,
            settings=self.settings,
            keep=top,
            rerank=rerank,
            expand=expand,
            instances=instances,
            alpha=alpha,
            fusion=fusion,
            first_stage=first_stage,
        )
        return SearchResult(
            hits=list(_hits(retrieved, gallery.snapshot, top)),
            query_path=None if hasattr(image, "ndim") else os.fspath(image),
            query_box_px=query.box_px,
            query_size_px=(query.height_px, query.width_px),
            searched=len(gallery.snapshot.paths),
            timings={"describe": described, "open": opened} | retrieved.seconds,
        )


def _row(path: str, signature: tuple[int, int], item: Extracted) -> StoredImage:
    return StoredImage(
        path=path,
        height_px=item.height_px,
        width_px=item.width_px,
        file_bytes=signature[0],
        file_mtime_ns=signature[1],
        descriptor=item.descriptor,
        levels=item.levels,
        regions=item.regions,
    )


def _hits(retrieved: Retrieved, snapshot: Snapshot, top: int) -> Iterator[Hit]:
    first = dict(
        zip(retrieved.filtered.indices.tolist(), retrieved.filtered.scores.tolist(), strict=True)
    )
    ranking = zip(retrieved.ranking.indices[:top].tolist(), retrieved.ranking.scores, strict=False)
    for index, score in ranking:
        height, width = (int(side) for side in snapshot.sizes_px[index])
        cells = snapshot.map_sizes[index].tolist()
        boxes = boxes_in_pixels(retrieved, index, cells, (height, width))
        cosines = retrieved.box_scores.get(index)
        yield Hit(
            path=snapshot.paths[index],
            score=float(score),
            box_px=boxes[0] if boxes else None,
            boxes_px=boxes,
            filter_score=first[index],
            box_score=None if cosines is None else float(cosines[0]),
            height_px=height,
            width_px=width,
        )
