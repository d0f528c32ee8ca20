"""Reading MATLAB's files of version 7.3, which are HDF5 behind a header of 512 bytes.

Arrays lie there with their axes reversed; text is an array of numbers; the members of a cell array
lie elsewhere in the file and are pointed at; a structure is a group, and an array of structures a
group of arrays of pointers. Pointers may go round in a circle, so depth and number are bounded;
what lies in other files is refused.

Reference: The MathWorks, "MAT-File Versions"; The HDF Group, "HDF5 File Format Specification".
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmacjax.foreign import Refusal, Stored

START = b"MATLAB 7.3 MAT-file"

_MOST_VALUES = 100_000
_DEEPEST = 16
_LONGEST_TEXT = 100_000
# Numbers of a network hardly shrink; what grows a hundredfold and is large is no network.
_MOST_GROWTH = 100
_SMALL_BYTES = 2**24
# How h5py says that bytes are wrong.
_WRONG = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
    OverflowError,
    MemoryError,
)


@contextmanager
def open_mat_hdf5(path: Path, wanted: Collection[str]) -> Iterator[Mapping[str, object]]:
    """Open some variables of a MATLAB file of version 7.3.

    Args:
        path: the file.
        wanted: names of variables; others are passed over.

    Yields:
        Value by name, as `rmacjax.weights.mat_files.read_mat` has them; arrays must be read before
        the block ends.

    Raises:
        Refusal: if the file is damaged or lies about sizes, or keeps things in other files.
        ImportError: if h5py is missing.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except _WRONG as error:
        raise Refusal(f"is damaged: {error}") from error
    with file:
        reader = _Reader(file, h5py)
        try:
            content = {name: reader.member(file, name, 0) for name in wanted if name in file}
        except Refusal:
            raise
        except _WRONG as error:
            raise Refusal(f"is damaged: {error}") from error
        yield content


class _Reader:
    """Reads values of one open file, so many and no more."""

    def __init__(self, file: Any, h5py: Any) -> None:
        self.file, self.h5py = file, h5py
        self.left = _MOST_VALUES

    def member(self, group: Any, name: str, depth: int) -> object:
        link = group.get(name, getlink=True)
        if not isinstance(link, self.h5py.HardLink):
            raise Refusal(f"points to other places with {name}, which is refused")
        return self.value(group[name], depth)

    def value(self, item: Any, depth: int) -> object:
        self.left -= 1
        if self.left < 0 or depth > _DEEPEST:
            raise Refusal(f"holds more than {_MOST_VALUES} values, or too deep ones")
        if isinstance(item, self.h5py.Group):
            return self.structure(item, depth)
        if not isinstance(item, self.h5py.Dataset):
            return None
        if item.is_virtual or item.external:
            raise Refusal("keeps numbers in other files, which is refused")
        kind = item.attrs.get("MATLAB_class", b"")
        kind = kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)
        if item.dtype == self.h5py.ref_dtype:
            return self.pointed(item, depth)
        if item.shape is None or item.dtype.kind not in "fiu":
            return None
        if "MATLAB_empty" in item.attrs:  # what it holds are its sizes
            return self.empty(item, kind)
        if kind == "char":
            return self.text(item)
        return Stored(item.shape[::-1], partial(_numbers, item))

    def structure(self, group: Any, depth: int) -> object:
        """A group of members; a list of structures where all members are arrays of pointers."""
        members = {name: group[name] for name in group if self.plain(group, name)}
        repeated = [
            isinstance(item, self.h5py.Dataset)
            and item.dtype == self.h5py.ref_dtype
            and "MATLAB_class" not in item.attrs
            for item in members.values()
        ]
        values = {name: self.value(item, depth + 1) for name, item in members.items()}
        if not repeated or not all(repeated):
            return values
        columns = [value if isinstance(value, list) else [] for value in values.values()]
        if len({len(column) for column in columns}) != 1:
            raise Refusal("is damaged: it holds structures of unequal members")
        return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]

    def plain(self, group: Any, name: str) -> bool:
        if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
            raise Refusal(f"points to other places with {name}, which is refused")
        return True

    def pointed(self, item: Any, depth: int) -> list[object]:
        if math.prod(item.shape) > self.left:
            raise Refusal(f"holds more than {_MOST_VALUES} values, or too deep ones")
        pointers = np.asarray(item[()]).ravel()  # reversed axes: this is MATLAB's order
        return [self.value(self.file[p], depth + 1) if p else None for p in pointers]

    @staticmethod
    def empty(item: Any, kind: str) -> object:
        if kind == "char":
            return ""
        if kind == "cell":
            return []
        if math.prod(item.shape) > 8:
            raise Refusal("is damaged: it holds an array without a shape")
        shape = tuple(int(size) for size in item[()].ravel())
        if min(shape, default=1) < 0 or math.prod(shape) != 0:
            raise Refusal("is damaged: it says that an array is empty which is not")
        return Stored(shape, partial(np.zeros, shape, np.float32))

    @staticmethod
    def text(item: Any) -> str:
        if math.prod(item.shape) > _LONGEST_TEXT:
            raise Refusal("is damaged: it holds a text that is too long")
        letters = np.asarray(item[()]).T.ravel(order="F")  # rows below each other, as version 5
        return letters.astype("<u2").tobytes().decode("utf-16-le", "replace")


def _numbers(item: Any) -> np.ndarray:
    size = math.prod(item.shape) * item.dtype.itemsize
    if size > _SMALL_BYTES + _MOST_GROWTH * item.id.get_storage_size():
        raise Refusal("is damaged: it holds more than can be")
    try:
        return np.asarray(item[()]).T
    except _WRONG as error:
        raise Refusal(f"is damaged: {error}") from error
