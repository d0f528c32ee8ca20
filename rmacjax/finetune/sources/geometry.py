"""retrieval-SfM's layout: photos of landmarks, and which of them show the same part of one.

A folder holds ``retrieval-SfM-120k.pkl`` (or ``-30k``) and the photos in ``ims``, each in folders
that the last six characters of its name choose. The file has a part "train" and a part "val"; each
lists names of photos, the landmark (cluster) of each, and pairs of photos that see the same points
of a reconstruction.

References:
    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI
    2018, section 4 (how matching pairs are found by structure from motion).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from rmacjax.datasets.pickles import read_pickle
from rmacjax.finetune.sources.protocols import numbered
from rmacjax.preprocessing import load_image

__all__ = ["RetrievalSfm", "find_geometry"]

PARTS = ("train", "val")
_KEYS = ("cids", "cluster", "qidxs", "pidxs")


def find_geometry(folder: str | os.PathLike[str]) -> Path | None:
    """Return the file that lists pairs, where a folder holds one.

    Args:
        folder: a folder, or the file itself.

    Returns:
        ``retrieval-SfM-NAME.pkl``; of several, that of the folder's own name, else the largest
        set's.
    """
    path = Path(folder)
    if path.is_file():
        return path if path.suffix == ".pkl" else None
    own = path / f"{path.name}.pkl"
    found = sorted(path.glob("retrieval-SfM-*.pkl"))
    return own if own in found else next(iter(found), None)


class RetrievalSfm:
    """Photos of landmarks, with pairs that match by geometry.

    Attributes:
        name: the file and its part.
        labels: (m,) int64, the landmark that a photo belongs to, counted from 0. Two photos of one
            need not show the same part of it: positives come from `pairs` alone.
        clusters: the same.
        pairs: (p, 2) int64.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, part: str = "train", long_side: int = 1024
    ) -> None:
        """Read the list; no photo is looked at yet.

        Args:
            folder: it holds the list and ``ims``; or the list itself.
            part: "train" or "val".
            long_side: photos are shrunk to this long side, in pixels, while they are decoded.

        Raises:
            FileNotFoundError: there is no list, or no folder ``ims``.
            ValueError: the list is not as described, or has no such part.
        """
        file = find_geometry(folder)
        if file is None:
            raise FileNotFoundError(f"there is no retrieval-SfM-NAME.pkl in {os.fsdecode(folder)}")
        if part not in PARTS:
            raise ValueError(f"a list has the parts {' and '.join(PARTS)}, not {part!r}")
        content = read_pickle(file)
        lists = content.get(part) if isinstance(content, dict) else None
        if not isinstance(lists, dict) or any(key not in lists for key in _KEYS):
            raise ValueError(
                f"{file} has no part {part!r} with {', '.join(_KEYS)}: download it again"
            )
        self._photos = file.parent / "ims"
        if not self._photos.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self._photos}: unpack the photos (ims.tar.gz) beside {file}"
            )
        self.name = f"{file} ({part})"
        self.long_side = long_side
        self._cids = _texts(lists["cids"], f"{file}: {part}")
        self.labels, self._landmarks = numbered(_numbers(lists["cluster"], "cluster", file))
        self.clusters = self.labels
        sides = [_numbers(lists[key], key, file) for key in ("qidxs", "pidxs")]
        if len(self.labels) != len(self._cids) or len(sides[0]) != len(sides[1]):
            raise ValueError(f"{file}: lists of {part!r} that belong together differ in length")
        self.pairs: Int[np.ndarray, "p 2"] = np.stack(sides, axis=-1)
        if self.pairs.size and not (0 <= self.pairs.min() <= self.pairs.max() < len(self._cids)):
            raise ValueError(f"{file}: pairs of {part!r} name photos that are not in its list")

    def __len__(self) -> int:
        return len(self._cids)

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Decode a photo, shrunk to the long side."""
        return load_image(self.name_of(index), self.long_side).pixels

    def label_of(self, index: int) -> str:
        """The landmark's number."""
        label = int(self.labels[index])
        return f"landmark {int(self._landmarks[label])}" if label >= 0 else ""

    def name_of(self, index: int) -> str:
        """The photo's path: its folders are the last characters of its name, in pairs."""
        cid = self._cids[index]
        return str(self._photos / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid)


def _texts(values: Any, where: str) -> list[str]:
    if not isinstance(values, list | tuple | np.ndarray) or np.ndim(values) != 1:
        raise ValueError(f"{where} has no list of the names of its photos ('cids')")
    texts = [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values
    ]
    for text in texts:
        if not isinstance(text, str) or len(text) < 6 or not text.isalnum():
            raise ValueError(f"{where} lists {text!r}, which is no name of a photo")
    return texts


def _numbers(values: Any, key: str, file: Path) -> np.ndarray:
    try:
        numbers = np.asarray(values)
    except ValueError:  # lists of several lengths
        numbers = np.empty(())
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{file}: {key!r} is no list of whole numbers")
    if numbers.dtype == np.uint64:  # what 64 bits with a sign cannot hold is no photo's number
        numbers = np.minimum(numbers, np.uint64(np.iinfo(np.int64).max))
    return numbers.astype(np.int64)
