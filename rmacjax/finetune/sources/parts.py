"""A part of a source: what is trained on, and what is held out to be measured on."""

import numpy as np
from jaxtyping import Int, UInt8

from rmacjax.finetune.sources.protocols import Source

__all__ = ["Part", "hold_out"]


class Part:
    """Some images of a source, as a source of their own.

    Attributes:
        name: that of the whole.
        labels: (m,) of these images.
        clusters: (m,) of these images.
        pairs: (p, 2) the pairs of which both are among these images, or None.
        long_side: that of the whole, where it shrinks what it reads.
    """

    def __init__(self, source: Source, indices: Int[np.ndarray, " m"]) -> None:
        """Choose images.

        Args:
            source: the whole.
            indices: numbers of its images, each once.
        """
        self._source, self._indices = source, indices
        self.name = source.name
        self.long_side: int | None = getattr(source, "long_side", None)
        self.labels = source.labels[indices]
        self.clusters = source.clusters[indices]
        self.pairs: Int[np.ndarray, "p 2"] | None = None
        if source.pairs is not None:
            place = np.full(len(source), -1, np.int64)
            place[indices] = np.arange(len(indices))
            pairs = place[source.pairs]
            self.pairs = pairs[(pairs >= 0).all(axis=1)]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode an image of the part."""
        return self._source.read(int(self._indices[index]))

    def label_of(self, index: int) -> str:
        """What an image of the part is labelled with."""
        return self._source.label_of(int(self._indices[index]))

    def name_of(self, index: int) -> str:
        """Which image it is."""
        return self._source.name_of(int(self._indices[index]))


def hold_out(source: Source, share: float, seed: int) -> tuple[Part, Part]:
    """Split a source by objects: no cluster is in both parts.

    Args:
        source: images with labels.
        share: of the clusters that have at least two images, to be held out; above 0, below 1.
        seed: of the choice.

    Returns:
        What is trained on, with all images without a cluster; and what is held out.

    Raises:
        ValueError: the share is not between 0 and 1, or one of the parts would have no object with
            two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out lies between 0 and 1, not at {share}")
    known = source.clusters[source.clusters >= 0]
    clusters, counts = np.unique(known, return_counts=True)
    several = clusters[counts > 1]
    chosen = round(share * len(several))
    if not 0 < chosen < len(several):
        raise ValueError(
            f"of the objects of {source.name} {len(several)} have two photos at least, of which a "
            f"share of {share} is {chosen}: hold out another share, or give more objects"
        )
    rng = np.random.default_rng([seed, 7])
    out = np.isin(source.clusters, rng.choice(several, chosen, replace=False))
    return Part(source, np.flatnonzero(~out)), Part(source, np.flatnonzero(out))
