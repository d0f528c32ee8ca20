"""A collection on disk: described photos that can grow, shrink and be searched.

`Collection` ties the stages together: `add` finds files, skips what is stored, describes the rest
(`rmacjax.extraction`) and commits batch by batch (`rmacjax.storage`); `search` describes the query
and hands over to `rmacjax.retrieval`. The collection remembers a fingerprint of the weights and
settings it was made with, so a query is always described like the photos it is compared with.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Literal, NamedTuple, get_args

from rmacjax.descriptors import Params, Settings, fingerprint
from rmacjax.extraction import DEFAULTS, Extracted, Failed, Source, extract
from rmacjax.galleries import StoredGallery
from rmacjax.preprocessing import find_images
from rmacjax.results import Box, Hit, Lines, MinScore, SearchResult, hits_of, score_kind
from rmacjax.retrieval import Depth, FirstStage, describe_query, retrieve
from rmacjax.storage import StoredImage, Table
from rmacjax.weights import load

__all__ = ["AddReport", "Collection", "Hit", "SearchResult"]

COMMIT_IMAGES = 256
"""Images per commit."""

COMMIT_SECONDS = 2.0, 20.0
"""How long what was described waits for its commit, at first and at most, so that little is lost
when adding is killed. The wait doubles with each commit, so that long runs make few."""

COMPACT_FRAGMENTS = 16
"""Commits after which the table is put together, so that reading stays fast."""

Progress = Callable[[int, int], None]


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
        self._gallery: StoredGallery | None = None

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

    def gallery(self, *, augment: int = 0) -> StoredGallery:
        """A consistent view for `rmacjax.retrieval`, untouched by what is added meanwhile.

        Args:
            augment: how many nearest photos join each photo's descriptor, see
                `rmacjax.augmentation.augment`; computed once and kept in memory, and of a thousand
                photos on also in the collection's folder, until photos come or go.
        """
        self._table.refresh()
        snapshot = self._table.snapshot()
        if self._gallery is None or self._gallery.snapshot is not snapshot:
            self._gallery = StoredGallery(self._table, snapshot)
        return self._gallery.augmented(augment)

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
        since = 0.0
        pause, longest = COMMIT_SECONDS
        done = 0
        try:
            for item in extract(
                self.params, pending, settings=self.settings, keep_regions=self.regions
            ):
                done += 1
                if isinstance(item, Failed):
                    skipped.append((pending[item.index], str(item.error)))
                else:
                    since = since if waiting else time.monotonic()
                    waiting.append(_row(pending[item.index], signatures[item.index], item))
                late = bool(waiting) and time.monotonic() - since > pause
                if late or len(waiting) >= COMMIT_IMAGES:
                    self._commit(waiting, stored)
                    pause = min(2 * pause, longest)
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
        expand_alpha: float | None = None,
        augment: int = 0,
        min_score: MinScore | None = None,
    ) -> SearchResult:
        """Find the photos that show the outlined object, and where it is in each.

        Args:
            image: a file path, or an (H, W, 3) RGB array.
            box_px: the object, (top, left, bottom, right) in pixels; None for the whole image.
            top: how many hits to return.
            rerank: how many of the best are localised and re-ranked; 0 for none, "all" for the
                whole collection, whatever the filter thinks of it.
            expand: how many of the best boxes join the query; 0 for none. Without re-ranking there
                are no boxes, and nothing joins.
            instances: boxes per photo.
            alpha: exponent of the paper's generalized mean for localization; None for exact maxima.
            fusion: share (0..1) of the whole photo's descriptor in the re-ranking score; 0 scores
                the box alone, as published.
            first_stage: what the filter compares: "descriptor", one vector per photo as published,
                or "regions", each of the query's regions with the photo's one most like it, where
                the collection was made with ``regions=True``; or "diffusion", by similarity handed
                on from neighbour to neighbour, where views differ. The nearest of all photos are
                looked for once, which takes time that grows with the square of their number, and
                kept as `gallery` says.
            expand_alpha: None counts the boxes that join the query alike, as published; a number
                weighs each by its cosine with the query to this power (3 is usual), so that wrong
                ones do less harm.
            augment: how many nearest photos join each photo's descriptor before the search
                (database-side augmentation); 0 for none. It is computed as the neighbours are.
            min_score: hits whose score is less are left out, so there may be none: "not found" is
                an answer. "auto" leaves out what does not count as `Hit.found`, by the threshold
                learned with the network; by default nothing is left out. Photos are judged by their
                scores before expansion, those that were not re-ranked by the first stage's.

        Raises:
            ValueError: where a number is out of range, the box is no box of the image, the
                collection has no region vectors to start with, or no threshold was learned.
            OSError: where the query cannot be read.
        """
        if isinstance(rerank, str) and rerank != "all":
            raise ValueError(f'rerank is a number of photos or "all", not {rerank!r}')
        for name, value, least in (
            ("top", top, 1),
            ("rerank", 0 if rerank == "all" else rerank, 0),
            ("expand", expand, 0),
            ("instances", instances, 1),
            ("augment", augment, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not 0 <= fusion <= 1:
            raise ValueError(f"fusion is a share and lies in 0..1, not {fusion}")
        if first_stage not in get_args(FirstStage):
            *names, last = (f'"{name}"' for name in get_args(FirstStage))
            raise ValueError(f"first_stage is {', '.join(names)} or {last}, not {first_stage!r}")
        if isinstance(min_score, float) and math.isnan(min_score):
            raise ValueError('min_score is a score or "auto", not nan')
        if isinstance(min_score, str) and min_score != "auto":
            raise ValueError(f'min_score is a score or "auto", not {min_score!r}')
        if expand_alpha is not None and not expand_alpha >= 0:
            raise ValueError(f"expand_alpha is an exponent of at least 0, not {expand_alpha}")
        if augment and first_stage == "regions" and not fusion:
            raise ValueError(
                "augment changes the photos' descriptors, which a search by regions does not "
                "compare: leave it out, or take another first stage"
            )
        first_kind = score_kind(
            rerank=0, first_stage=first_stage, augment=augment, settings=self.settings
        )
        kind = score_kind(
            rerank=rerank,
            expand=expand,
            fusion=fusion,
            first_stage=first_stage,
            expand_alpha=expand_alpha,
            augment=augment,
            alpha=alpha,
            settings=self.settings,
        )
        # Whether an object is there shows before the query is expanded by what was found.
        judged_by = score_kind(
            rerank=rerank,
            expand=0,
            fusion=fusion,
            first_stage=first_stage,
            augment=augment,
            alpha=alpha,
            settings=self.settings,
        )
        lines = Lines.of(self.params, judged_by, first_kind, min_score)
        start = time.perf_counter()
        query = describe_query(self.params, image, box_px, settings=self.settings)
        described = time.perf_counter() - start
        gallery = self.gallery(augment=augment)
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
            expand_alpha=expand_alpha,
        )
        ranked, judged = retrieved.ranking.scores, retrieved.reranked or retrieved.filtered
        return SearchResult(
            hits=list(hits_of(retrieved, gallery.snapshot, top, lines)),
            query_path=None if hasattr(image, "ndim") else os.fspath(image),
            query_box_px=query.box_px,
            query_size_px=(query.height_px, query.width_px),
            searched=len(gallery.snapshot.paths),
            timings={"describe": described, "open": opened} | retrieved.seconds,
            scored_by=kind,
            threshold=lines.learned,
            min_score=lines.learned if isinstance(min_score, str) else min_score,
            best_score=float(ranked[0]) if len(ranked) else None,
            judged_by=judged_by,
            best_judged=float(judged.scores[0]) if len(ranked) else None,
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
