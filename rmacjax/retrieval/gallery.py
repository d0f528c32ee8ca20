"""What retrieval needs of the photos it searches, wherever their descriptors and maps lie."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from rmacjax.diffusion import NeighbourGraph
from rmacjax.storage import PackedLevels

Levels = UInt8[np.ndarray, "_ _ c"] | PackedLevels


@runtime_checkable
class Gallery(Protocol):
    """What retrieval needs of a collection: one consistent view of it."""

    @property
    def descriptors(self) -> Float[Array | np.ndarray, "n d"]:
        """One unit row per image, float16 or float32; those beyond `map_sizes` are padding."""

    @property
    def map_sizes(self) -> Int[np.ndarray, "n 2"]:
        """Rows and columns of each activation map, cells."""

    def read_levels(self, indices: Sequence[int]) -> Sequence[Levels]:
        """The quantised activation maps of some images, in the order asked for, packed or not."""

    def region_scores(self, regions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " n"]:
        """How well each image's regions match the query's, see `rmacjax.search.best_scores`.

        Raises:
            ValueError: where the gallery has no region vectors.
        """

    def graph(self) -> NeighbourGraph:
        """The images' nearest neighbours, see `rmacjax.diffusion`; only diffusion asks for it."""
