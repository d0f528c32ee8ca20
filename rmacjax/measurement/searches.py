"""The searches that are measured: one query, one way, all stages."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.collection import Collection
from rmacjax.datasets import GroundTruth, Query
from rmacjax.descriptors import Settings
from rmacjax.diffusion import NeighbourGraph, neighbour_graph
from rmacjax.galleries import graph_neighbours
from rmacjax.results import score_kind
from rmacjax.retrieval import (
    Depth,
    FirstStage,
    Gallery,
    Levels,
    Retrieved,
    Stage,
    describe_query,
    retrieve,
)
from rmacjax.retrieval import Query as Described
from rmacjax.search import pad_rows

STAGES = ("filter", "rerank", "expand")
"""The stages of a search, by the names that thresholds are stored under."""

ROWS = ("filter", "+ AML", "+ AML + QE")
"""The paper's names for them: the filter alone, re-ranked by boxes, and with query expansion."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Way:
    """A way of searching, and what its stages are called in the table.

    Attributes:
        rows: a name for each of the three `STAGES`; None where a stage is not reported.
        rerank: how many of the best photos are re-ranked; 0 for none, "all" for every one.
        expand: how many of the best boxes join the query; 0 for none.
        expand_alpha: exponent of alpha query expansion; None averages, as published.
        fusion: share of the whole photo's descriptor in what is re-ranked.
        first_stage: what the filter ranks by.
        augment: how many of its nearest photos join each photo's descriptor.
    """

    rows: tuple[str | None, str | None, str | None] = ROWS
    rerank: Depth = 1000
    expand: int = 5
    expand_alpha: float | None = None
    fusion: float = 0.0
    first_stage: FirstStage = "descriptor"
    augment: int = 0

    def __post_init__(self) -> None:
        depth = 0 if self.rerank == "all" else self.rerank
        for name, value in (("rerank", depth), ("expand", self.expand), ("augment", self.augment)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= self.fusion <= 1:
            raise ValueError(f"fusion is a share and lies in 0..1, not {self.fusion}")

    def kinds(self, settings: Settings) -> tuple[str, str, str]:
        """What thresholds for the scores of each of the `STAGES` are stored under."""
        kind = partial(score_kind, settings=settings, augment=self.augment)
        return (
            kind(rerank=0, first_stage=self.first_stage),
            kind(expand=0, fusion=self.fusion),
            kind(expand=self.expand, fusion=self.fusion, expand_alpha=self.expand_alpha),
        )


PUBLISHED = Way()
"""The paper's own."""


class Without:
    """A gallery as if some of its images had never been added.

    Attributes:
        kept: (m,) positions, in the whole gallery, of the images that are left.
    """

    def __init__(self, gallery: Gallery, left_out: Iterable[int]) -> None:
        every = np.arange(len(gallery.map_sizes))
        self._gallery = gallery
        self.kept: Int[np.ndarray, " m"] = np.setdiff1d(every, np.asarray([*left_out], np.int64))
        self._descriptors = pad_rows(np.asarray(gallery.descriptors)[self.kept])

    @property
    def descriptors(self) -> Float[Array | np.ndarray, "n d"]:
        """One unit row per image that is left, and padding below."""
        return self._descriptors

    @property
    def map_sizes(self) -> Int[np.ndarray, "n 2"]:
        """Rows and columns of their maps, cells."""
        return self._gallery.map_sizes[self.kept]

    def read_levels(self, indices: Sequence[int]) -> Sequence[Levels]:
        """Their maps, in the order asked for."""
        return self._gallery.read_levels(self.kept[np.asarray(indices, np.int64)].tolist())

    def region_scores(self, regions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
        """How well their regions match the query's."""
        return self._gallery.region_scores(regions)[self.kept]

    def graph(self) -> NeighbourGraph:
        """The neighbours among them."""
        rows = np.asarray(self._descriptors[: len(self.kept)])
        return neighbour_graph(rows, neighbours=graph_neighbours(len(rows)))


def described_query(collection: Collection, query: Query, whole: bool) -> Described | str:
    """A query's description, or the sentence that says why there is none."""
    box = None if whole else query.box_px
    try:
        return describe_query(collection.params, query.path, box, settings=collection.settings)
    except (OSError, ValueError) as error:
        return str(error)


def searched_in(
    collection: Collection, query: Described, gallery: Gallery, way: Way, count: int
) -> Retrieved:
    """Search a gallery in one way, for as many photos as it holds."""
    params, settings = collection.params, collection.settings
    return retrieve(
        query,
        gallery,
        whitening=params.whitening if settings.whiten else None,
        settings=settings,
        keep=count,
        rerank=way.rerank,
        expand=way.expand,
        expand_alpha=way.expand_alpha,
        fusion=way.fusion,
        first_stage=way.first_stage,
    )


def stages_of(found: Retrieved, way: Way) -> tuple[Stage, Stage | None, Stage | None]:
    """The orders of the three stages, None for those that did not run."""
    return found.filtered, found.reranked, found.ranking if way.rerank and way.expand else None


def numbers_of(paths: Sequence[str], truth: GroundTruth) -> Int[np.ndarray, " n"]:
    """The ground truth's number of each photo of a collection; strangers get the next ones."""
    known = {os.path.abspath(path): number for number, path in enumerate(truth.paths)}
    return np.asarray([known.get(path, len(known) + i) for i, path in enumerate(paths)], np.int64)
