"""A folder of folders: what a folder is called is the label of the photos in it."""

import os

import numpy as np
from jaxtyping import Int, UInt8

from rmacjax.preprocessing import find_images, load_image

__all__ = ["FolderOfFolders"]


class FolderOfFolders:
    """Photos in folders, one folder per object; photos beside the folders have no label.

    Photos further down belong to the folder at the top. Folders are numbered in the order of their
    names.

    Attributes:
        name: the folder.
        labels: (m,) int64, -1 for photos without.
        clusters: the same.
        pairs: None.
        problems: a sentence for each folder that could not be looked into.
    """

    pairs: None = None

    def __init__(self, folder: str | os.PathLike[str], *, long_side: int = 1024) -> None:
        """List the photos; none is read yet.

        Args:
            folder: it holds the folders.
            long_side: photos are shrunk to this long side, in pixels, while they are decoded.

        Raises:
            FileNotFoundError: there is no such folder, or no photo in it.
            ValueError: no folder in it holds a photo.
        """
        self.name = os.fsdecode(folder)
        self.long_side = long_side
        if not os.path.isdir(self.name):
            raise FileNotFoundError(f"there is no folder {self.name!r}: check the path")
        found = find_images(self.name)
        self.problems = [sentence for _, sentence in found.problems]
        self._files = found.files
        if not self._files:
            raise FileNotFoundError(f"there is no photo in {self.name!r}: put photos in folders")
        tops = [self._top(path) for path in self._files]
        self._names = sorted({top for top in tops if top})
        if not self._names:
            raise ValueError(
                f"all photos lie in {self.name!r} itself, so none has a label: put those of one "
                f"object into a folder of their own, or learn from views: 'views:{self.name}'"
            )
        numbers = {name: number for number, name in enumerate(self._names)}
        self.labels: Int[np.ndarray, " m"] = np.asarray([numbers.get(top, -1) for top in tops])
        self.clusters = self.labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode a photo, shrunk to the long side."""
        return load_image(self._files[index], self.long_side).pixels

    def label_of(self, index: int) -> str:
        """The folder's name, "" without one."""
        label = int(self.labels[index])
        return self._names[label] if label >= 0 else ""

    def name_of(self, index: int) -> str:
        """The photo's path."""
        return self._files[index]

    def _top(self, path: str) -> str:
        """The folder at the top that a photo lies in, "" if in none."""
        first, *rest = os.path.relpath(path, self.name).split(os.sep)
        return first if rest else ""
