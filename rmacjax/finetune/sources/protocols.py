"""What a source of training images is: photos with labels, or images drawn anew for each step."""

from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

__all__ = ["Drawing", "Drawn", "Photos", "Source", "is_labelled", "numbered"]


@runtime_checkable
class Photos(Protocol):
    """Photos, read at random."""

    def __len__(self) -> int:
        """How many photos there are."""

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read a photo: RGB; OSError or ValueError with a sentence where that fails."""

    def name_of(self, index: int) -> str:
        """Say which photo it is."""


@runtime_checkable
class Source(Protocol):
    """Photos with labels, read at random. Sources travel to other processes by pickle.

    Attributes:
        name: what messages call it.
        labels: (m,) the object that each image shows, -1 where nobody said.
        clusters: (m,) what negatives must differ in: the label, or the landmark where geometry
            says which images match; -1 where nobody said.
        pairs: (p, 2) numbers of matching images (query, positive) where geometry says so, else
            None: then images of one label match.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def labels(self) -> Int[np.ndarray, " m"]:
        """The object of each image, -1 where nobody said."""

    @property
    def clusters(self) -> Int[np.ndarray, " m"]:
        """What negatives must differ in, -1 where nobody said."""

    @property
    def pairs(self) -> Int[np.ndarray, "p 2"] | None:
        """Matching images, where geometry says so."""

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode an image, RGB, its long side reduced to the source's limit.

        Raises:
            OSError: it cannot be read; the sentence names it.
            ValueError: likewise.
        """

    def label_of(self, index: int) -> str:
        """Say what an image is labelled with; "" where nobody said."""

    def name_of(self, index: int) -> str:
        """Say which image it is: a path where there is one."""


class Drawing(NamedTuple):
    """Two images of each of n things, and where the things are.

    Attributes:
        first: (n, h, w, 3) uint8, queries or first views.
        second: (n, H, W, 3) uint8, photos or second views; row i shows what `first` row i shows.
        labels: (n,) int32, -1 where a row is to be left out.
        boxes_px: (n, k, 4) float32 boxes (top, left, bottom, right) in pixels of `second`, or None.
        overlaps: (n, k) float32, intersection over union of each with the thing's own, or None.
        files: what the images were made from; () where nothing was read.
        unreadable: a sentence for each file that could not be read.
    """

    first: UInt8[np.ndarray, "n h w 3"]
    second: UInt8[np.ndarray, "n H W 3"]
    labels: Int32[np.ndarray, " n"]
    boxes_px: Float32[np.ndarray, "n k 4"] | None = None
    overlaps: Float32[np.ndarray, "n k"] | None = None
    files: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


@runtime_checkable
class Drawn(Protocol):
    """Images drawn anew for each step; nothing is stored. They travel by pickle, too."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def draw(self, seed: int, step: int) -> Drawing:
        """Draw a step's images, which depend on seed and step alone."""


def is_labelled(source: Source | Drawn) -> TypeGuard[Source]:
    """Whether a source has photos with labels; others draw images for every step."""
    return hasattr(source, "labels")


def numbered(
    labels: Int[np.ndarray, " m"],
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " k"]]:
    """Labels of any size as 0, 1, 2 and so on, so that training's 32 bits hold them.

    Args:
        labels: those below 0 are none.

    Returns:
        (m,) int64 numbers in the order of the labels, -1 for none; and what each number stands for.

    >>> numbers, meant = numbered(np.asarray([2**40, 7, -3, 7]))
    >>> numbers.tolist(), meant.tolist()
    ([1, 0, -1, 0], [7, 1099511627776])
    """
    known = labels >= 0
    meant, numbers = np.unique(labels[known], return_inverse=True)
    found = np.full(len(labels), -1, np.int64)
    found[known] = numbers
    return found, meant
