"""A collection's photos as a search sees them: one version, untouched by what is added.

What is read or computed for one search stays in memory for the next one: descriptors, region
vectors where they are small, the descriptors drawn towards their neighbours, and the graph of
neighbours. The latter two take long to compute, and of larger collections they are kept beside
them for the next command, until photos come or go (`rmacjax.storage.computed`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from rmacjax.augmentation import augment
from rmacjax.diffusion import NeighbourGraph, neighbour_graph
from rmacjax.search import best_scores, pad_rows
from rmacjax.storage import PackedLevels, Snapshot, Table, derived, derived_key

REGION_BYTES = 256 << 20
"""Region vectors that take no more than this stay in memory for the next search."""

KEPT_FROM = 1000
"""Of so many photos on, what is computed from all of them is kept; of fewer it takes no time."""

COMPUTATION = 1
"""To be raised where neighbours, their graph or what is drawn towards them come out otherwise."""


def graph_neighbours(photos: int) -> int:
    """Return how many nearest photos each one is joined with: a hundredth of all, 5 to 50.

    The published 50 were for sets of 5,000 photos and more. In a small collection 50 reach far
    beyond the photos of one thing, and diffusion ranks much worse than the cosines it began with.

    >>> graph_neighbours(360), graph_neighbours(1_500), graph_neighbours(10**6)
    (5, 15, 50)
    """
    return min(50, max(5, photos // 100))


_Regions = tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[Array, "r d"]]


class StoredGallery:
    """One version of a table, a `rmacjax.retrieval.Gallery`; perhaps with other descriptors.

    Attributes:
        snapshot: the version.
    """

    def __init__(
        self,
        table: Table,
        snapshot: Snapshot,
        descriptors: Float[np.ndarray, "n d"] | None = None,
        neighbours: int = 0,
    ) -> None:
        self._table = table
        self._neighbours = neighbours
        self.snapshot = snapshot
        self._plain = snapshot.descriptors if descriptors is None else descriptors
        self._descriptors = pad_rows(self._plain)
        self._augmented: dict[int, StoredGallery] = {}
        self._graph: NeighbourGraph | None = None
        self._regions: list[_Regions] | None = None
        self._regions_fit = True

    @property
    def descriptors(self) -> Float[Array | np.ndarray, "n d"]:
        """One unit row per photo, and padding below."""
        return self._descriptors

    @property
    def map_sizes(self) -> Int[np.ndarray, "n 2"]:
        """Rows and columns of each photo's activation map, cells."""
        return self.snapshot.map_sizes

    def read_levels(self, indices: Sequence[int]) -> list[PackedLevels]:
        """The packed activation maps of some photos, in the order asked for."""
        return self._table.read_packed(self.snapshot, indices)

    def region_scores(self, regions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
        """How well each photo's regions match the query's, see `rmacjax.search.best_scores`.

        Raises:
            ValueError: where the collection keeps no region vectors.
        """
        scores = np.empty(len(self.snapshot.paths), np.float32)
        for indices, counts, vectors in self._read_regions():
            scores[indices] = best_scores(regions, vectors, counts)
        return scores

    def graph(self) -> NeighbourGraph:
        """The graph of each photo's nearest, as many as suit the number of photos; made once."""
        if self._graph is None:
            neighbours = graph_neighbours(len(self._plain))
            drawn = f"-of-augmented-{self._neighbours}" if self._neighbours else ""
            arrays = self._kept(
                f"graph{drawn}",
                neighbours,
                lambda: neighbour_graph(self._plain, neighbours=neighbours)._asdict(),
            )
            self._graph = NeighbourGraph(**arrays)
        return self._graph

    def augmented(self, neighbours: int) -> "StoredGallery":
        """This gallery with each descriptor drawn towards its nearest; 0 is the gallery itself."""
        if neighbours == 0:
            return self
        if neighbours not in self._augmented:
            arrays = self._kept(
                f"augmented-{neighbours}",
                neighbours,
                lambda: {"descriptors": augment(self._plain, neighbours=neighbours)},
            )
            drawn = arrays["descriptors"]
            self._augmented[neighbours] = StoredGallery(
                self._table, self.snapshot, drawn, neighbours
            )
        return self._augmented[neighbours]

    def _kept(
        self, name: str, neighbours: int, compute: Callable[[], dict[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """What is computed from all descriptors; of larger collections, what an earlier one was."""
        if len(self._plain) < KEPT_FROM:
            return compute()
        key = derived_key(self._plain, name, neighbours, COMPUTATION)
        return derived(self._table.folder, name, key, compute)

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
