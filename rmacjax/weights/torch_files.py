"""Reading PyTorch's two checkpoint formats without PyTorch.

Since PyTorch 1.6 a checkpoint is a zip archive, uncompressed: a pickle `data.pkl` that refers to
storages, and one file `data/KEY` for each storage's numbers. Before, it was a row of bare pickles
(a magic number, a version, facts about the machine, the object, the storages' keys) followed by the
storages, each a count and its numbers, little-endian on every machine.

Nothing a header says is believed before it has been compared with the bytes that are there, and no
number is read before somebody asks for its tensor.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from rmacjax.foreign import Refusal, Stored
from rmacjax.foreign.pickles import Constructor, is_shape
from rmacjax.weights.pickles import read_pickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

_BFLOAT16 = "bfloat16"
_STORAGE_TYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "u1",
}


class _StorageType:
    """The kind of number that a storage holds."""

    def __init__(self, name: str) -> None:
        self.code = _STORAGE_TYPES[name]
        self.bytes = 2 if self.code == _BFLOAT16 else int(self.code[1])


class _Storage:
    """A row of numbers in the file; `read` gives all of its bytes."""

    def __init__(self, kind: _StorageType, count: int, read: Callable[[], bytes], order: str):
        self.kind, self.count, self.read, self.order = kind, count, read, order

    def numbers(self) -> np.ndarray:
        data = self.read()
        if self.kind.code == _BFLOAT16:  # the upper half of a float32
            halves = np.frombuffer(data, f"{self.order}u2").astype(np.uint32)
            return (halves << 16).view(np.float32)
        return np.frombuffer(data, f"{self.order}{self.kind.code}")


class _View:
    """A stretch of a storage, as the older format shares them."""

    def __init__(self, storage: _Storage, offset: int, count: int) -> None:
        self.storage, self.offset, self.count = storage, offset, count


def is_count(value: object) -> bool:
    """Whether a value is an integer that can count numbers in a file."""
    return type(value) is int and 0 <= value < 2**62


def _rebuild_tensor(
    view: object, offset: object, size: object, steps: object, *_: object
) -> Stored:
    if not (
        isinstance(view, _View)
        and type(offset) is int
        and offset >= 0
        and isinstance(size, tuple | list)
        and isinstance(steps, tuple | list)
        and is_shape(size)
        and is_shape(steps)
        and len(size) == len(steps)
    ):
        raise Refusal("holds a tensor that makes no sense")
    shape = tuple(size)
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if 0 not in shape and last >= view.count:
        raise Refusal(
            f"holds a tensor of shape {shape} that reaches beyond its {view.count} numbers"
        )
    start = view.offset + offset

    def read() -> np.ndarray:
        numbers = view.storage.numbers()
        if 0 in shape:
            return np.zeros(shape, numbers.dtype)
        # Within the storage, as was checked above; a view, so a step of 0 costs no memory.
        return np.lib.stride_tricks.as_strided(
            numbers[start:], shape, [step * numbers.itemsize for step in steps], writeable=False
        )

    return Stored(shape, read)


def _sizes(sizes: object = ()) -> tuple:
    if not isinstance(sizes, tuple | list):
        raise Refusal("holds a size that makes no sense")
    return tuple(sizes)


def _rebuild_parameter(tensor: object, *_: object) -> Stored:
    if not isinstance(tensor, Stored):
        raise Refusal("holds a parameter that is no tensor")
    return tensor


_NAMES: dict[str, object] = {
    "torch._utils._rebuild_tensor": Constructor(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Constructor(_rebuild_tensor),
    "torch._utils._rebuild_parameter": Constructor(_rebuild_parameter),
    "torch.Size": Constructor(_sizes),
    **{
        f"{module}.{name}": _StorageType(name)
        for module in ("torch", "torch.cuda")
        for name in _STORAGE_TYPES
    },
}


class _Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self, open_storage: Callable[[str, _StorageType, int], _Storage]) -> None:
        self.by_key: dict[str, _Storage] = {}
        self.open_storage = open_storage

    def find(self, reference: object) -> _View:
        """Find what `("storage", type, key, location, count)` or, with a view, six facts mean."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6):
            raise Refusal("refers to data outside the file")
        tag, kind, key, _, count, *rest = reference
        if tag != "storage" or not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise Refusal("refers to data outside the file")
        if not is_count(count):
            raise Refusal("holds a storage whose count of numbers is none")
        storage = self.by_key.get(key)
        if storage is None:
            storage = self.by_key[key] = self.open_storage(key, kind, count)
        if storage.kind is not kind or storage.count != count:
            raise Refusal("describes the same storage in two ways")
        if not rest or rest[0] is None:
            return _View(storage, 0, count)
        _, offset, length = rest[0]
        if not (is_count(offset) and is_count(length) and offset + length <= count):
            raise Refusal("holds a view that reaches beyond its storage")
        return _View(storage, offset, length)


def check_member(info: zipfile.ZipInfo) -> None:
    """Refuse what `zipfile` cannot read: encryption, patches and rare ways to compress."""
    odd_flags = 0x01 | 0x20 | 0x40
    if info.flag_bits & odd_flags or info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):
        raise Refusal(f"holds {info.filename} encrypted or compressed in a way that is not read")


def is_zip_checkpoint(names: list[str]) -> bool:
    """Whether a zip archive with these members is a checkpoint."""
    return any(PurePosixPath(name).name == "data.pkl" for name in names)


@contextmanager
def open_zip_checkpoint(path: Path) -> Iterator[object]:
    """Open a checkpoint of PyTorch 1.6 or later.

    Yields:
        The object that was saved, its tensors as `Stored`: read them before the block ends.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:

        def read(name: str, expected: int | None = None) -> bytes:
            info = archive.getinfo(name)
            check_member(info)
            if info.compress_type != zipfile.ZIP_STORED or not (
                info.file_size == info.compress_size <= size
            ):
                raise Refusal(f"holds {name} compressed, which PyTorch never does")
            if expected is not None and info.file_size != expected:
                raise Refusal(f"holds {info.file_size} bytes in {name} where {expected} are due")
            try:
                return archive.read(info)
            except (ValueError, OSError) as error:  # it lies before the file's start
                raise Refusal(f"holds {name} in no place ({error})") from error

        members = set(archive.namelist())
        (pickled, *others) = [n for n in members if PurePosixPath(n).name == "data.pkl"]
        if others:
            raise Refusal("holds more than one data.pkl")
        root = pickled.removesuffix("data.pkl")
        order = ">" if f"{root}byteorder" in members and read(f"{root}byteorder") == b"big" else "<"

        def open_storage(key: str, kind: _StorageType, count: int) -> _Storage:
            name = f"{root}data/{key}"
            if name not in members:
                raise Refusal(f"refers to {name}, which is not in it")
            length = count * kind.bytes
            if archive.getinfo(name).file_size != length:
                given = archive.getinfo(name).file_size
                raise Refusal(f"says that {name} has {length} bytes; it has {given}")
            return _Storage(kind, count, lambda: read(name, length), order)

        yield read_pickle(io.BytesIO(read(pickled)), _NAMES, _Storages(open_storage).find)


@contextmanager
def open_legacy_checkpoint(path: Path) -> Iterator[object]:
    """Open a checkpoint of PyTorch before 1.6.

    Yields:
        The object that was saved, its tensors as `Stored`: read them before the block ends.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        places: dict[str, tuple[int, int]] = {}

        def open_storage(key: str, kind: _StorageType, count: int) -> _Storage:
            def read() -> bytes:
                start, end = places[key]
                return content[start:end]

            return _Storage(kind, count, read, "<")

        storages = _Storages(open_storage)
        if read_pickle(content, {}) != MAGIC_NUMBER or read_pickle(content, {}) != LEGACY_VERSION:
            raise Refusal("is a pickle, but no checkpoint of PyTorch's")
        read_pickle(content, {})  # facts about the machine; the numbers are little-endian anyhow
        saved = read_pickle(content, _NAMES, storages.find)
        keys = read_pickle(content, {})
        # What is no text is refused before it is hashed: hashing a deep tuple never ends.
        plain = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not isinstance(keys, list) or not plain or set(keys) != set(storages.by_key):
            raise Refusal("does not hold the storages that it refers to")
        for key in keys:
            storage = storages.by_key[key]
            header = content.read(8)
            count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
            start = content.tell()
            end = start + storage.count * storage.kind.bytes
            if count != storage.count or end > len(content):
                raise Refusal(
                    f"says that storage {key} has {storage.count} numbers; it has "
                    f"{min(count, (len(content) - start) // storage.kind.bytes)}"
                )
            places[key] = (start, end)
            content.seek(end)
        yield saved
