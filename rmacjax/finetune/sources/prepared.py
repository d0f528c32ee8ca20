"""Prepared data sets of tensorflow-datasets as a source."""

import os
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from rmacjax.datasets.labelled import Labelled, open_labelled
from rmacjax.finetune.sources.protocols import numbered
from rmacjax.preprocessing import ImageError, decode_image

__all__ = ["Prepared"]


class Prepared:
    """A split of a data set that tensorflow-datasets prepared, labels and all.

    Attributes:
        name: the data set and its split.
        labels: (m,) int64, the classes that the split holds, counted from 0.
        clusters: the same.
        pairs: None.
    """

    pairs: None = None

    def __init__(
        self,
        dataset: str,
        split: str = "train",
        *,
        folder: str | os.PathLike[str] | None = None,
        long_side: int = 1024,
    ) -> None:
        """Open a split and read its labels; no image is decoded yet.

        Args:
            dataset: its name, as "cars196".
            split: as tensorflow-datasets has it.
            folder: where data sets are prepared; None: tensorflow-datasets' own folder.
            long_side: images are shrunk to this long side, in pixels, while they are decoded.

        Raises:
            FileNotFoundError: it has not been prepared.
            ValueError: there is no such data set or split, or it has no labels.
        """
        self._arguments = (dataset, split, None if folder is None else os.fsdecode(folder))
        self.name = f"{dataset}, {split}"
        self.long_side = long_side
        self._opened: Labelled | None = open_labelled(*self._arguments)
        self.labels: Int[np.ndarray, " m"]
        self.labels, self._classes = numbered(self._opened.labels())
        self.clusters = self.labels
        self._names = self._opened.names

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # Open files stay behind; each process opens its.

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode an image, shrunk to the long side."""
        if self._opened is None:
            self._opened = open_labelled(*self._arguments)
        try:
            return decode_image(self._opened.encoded(index), self.long_side)
        except ImageError as error:
            raise ImageError(f"{self.name_of(index)}: {error}", "") from error

    def label_of(self, index: int) -> str:
        """The class's name where the data set has names, else its number."""
        number = int(self.labels[index])
        if number < 0:
            return ""
        label = int(self._classes[number])
        return self._names[label] if label < len(self._names) else str(label)

    def name_of(self, index: int) -> str:
        """The image's number in the split."""
        return f"{self.name}, image {index}"
