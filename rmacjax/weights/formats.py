"""The file formats that networks come in, each read without the library that wrote it.

A reader knows names, shapes and numbers, nothing of networks. The format is told by a file's first
bytes, never by its suffix. Numbers are read one tensor at a time, after its shape has been found
right: a header that lies costs nothing, and the classifiers, nine tenths of VGG16, stay unread.
"""

import itertools
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rmacjax.backbones import InputConvention
from rmacjax.foreign import Refusal, Stored
from rmacjax.weights import torch_files
from rmacjax.weights.caffe_files import is_caffe, name_tensors, normalizes_first, open_caffe
from rmacjax.weights.mat_files import START as MAT_START
from rmacjax.weights.mat_files import read_mat
from rmacjax.weights.mat_hdf5_files import START as MAT_HDF5_START
from rmacjax.weights.mat_hdf5_files import open_mat_hdf5
from rmacjax.weights.matconvnet import VARIABLES as MATCONVNET_VARIABLES
from rmacjax.weights.matconvnet import read_matconvnet

OWN_FORMAT = "rmacjax-weights"
"""What this package's own files call themselves."""

HDF5_START = b"\x89HDF\r\n\x1a\n"
DEEPEST_NESTING = 16
# What the libraries below say of broken bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    SafetensorError,
    EOFError,
    zlib.error,
    UnicodeDecodeError,
)
_NETWORK_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "params")
MOST_ENTRIES = 100_000
NEEDS_H5PY = "reading {} needs h5py: pip install rmacjax[keras]"


class Opened(NamedTuple):
    """A file that is open.

    Attributes:
        title: what messages call the format.
        tensors: what is in it, by name.
        metadata: the file's own notes, where the format has a place for them.
        convention: the input convention, where the file says it.
        notes: what a checkpoint holds beside its tensors under "meta", plain values and arrays.
        normalizes_first: the file says that responses are normalized before they are pooled.
    """

    title: str
    tensors: dict[str, Stored]
    metadata: Mapping[str, str] = MappingProxyType({})
    convention: InputConvention | None = None
    notes: Mapping[str, object] = MappingProxyType({})
    normalizes_first: bool = False


@contextmanager
def open_tensors(path: Path) -> Iterator[Opened]:
    """Open a file of weights in any known format.

    Yields:
        What is in it; tensors must be read before the block ends.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if the file is damaged.
        ValueError: if the format is unknown or asks for what is refused.
        RuntimeError: if it needs a library that is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    reader = _reader(path)
    try:
        with reader(path) as opened:
            yield opened
    except Refusal as error:
        raise ValueError(f"{path} {error}") from error
    except _DAMAGE as error:
        raise OSError(f"{path} is damaged: {error}; get it again") from error


def _reader(path: Path) -> Callable:
    with open(path, "rb") as file:
        start = file.read(512)
    # First of all: the eight bytes before it are a length and may look like anything.
    if start[8:9] == b"{":
        return _open_safetensors
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (*_DAMAGE, RuntimeError) as error:  # the latter: a zip of no known version
            raise OSError(f"{path} is damaged: {error}; get it again") from error
        return _open_torch_zip if torch_files.is_zip_checkpoint(names) else _open_npz
    if start.startswith(b"\x80"):
        return _open_torch_legacy
    if start.startswith(HDF5_START):
        return _open_keras
    if start.startswith(MAT_START):
        return _open_matlab
    if start.startswith(MAT_HDF5_START):
        return _open_matlab_hdf5
    if is_caffe(start):
        return _open_caffe
    raise ValueError(
        f"{path} is no file of weights: it starts like none of PyTorch's .pth, .safetensors, "
        "Keras' .h5, MatConvNet's .mat, Caffe's .caffemodel and NumPy's .npz"
    )


def _flatten(saved: object) -> dict[str, Stored]:
    """Join the names of dictionaries in dictionaries by dots; what is no tensor is left out."""
    tensors: dict[str, Stored] = {}
    visits = itertools.count(1)

    def visit(value: object, name: str, depth: int) -> None:
        if next(visits) > MOST_ENTRIES or depth > DEEPEST_NESTING:  # a dictionary may hold itself
            raise Refusal(f"holds more than {MOST_ENTRIES} entries, or too deep ones")
        if isinstance(value, Stored):
            tensors[name.removeprefix(".")] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{name}.{key}", depth + 1)

    visit(saved, "", 0)
    return tensors


def _tensors(saved: object) -> dict[str, Stored]:
    """Find the network in a checkpoint, which may hold an optimizer and notes beside it."""
    if isinstance(saved, dict):
        for key in _NETWORK_KEYS:
            tensors = _flatten(saved.get(key))
            if tensors:
                return tensors
    return _flatten(saved)


def _notes(saved: object) -> Mapping[str, object]:
    notes = saved.get("meta") if isinstance(saved, dict) else None
    return {str(key): value for key, value in notes.items()} if isinstance(notes, dict) else {}


@contextmanager
def _open_torch_zip(path: Path) -> Iterator[Opened]:
    with torch_files.open_zip_checkpoint(path) as saved:
        yield Opened("PyTorch's", _tensors(saved), notes=_notes(saved))


@contextmanager
def _open_torch_legacy(path: Path) -> Iterator[Opened]:
    with torch_files.open_legacy_checkpoint(path) as saved:
        yield Opened("PyTorch's older", _tensors(saved), notes=_notes(saved))


@contextmanager
def _open_npz(path: Path) -> Iterator[Opened]:
    with zipfile.ZipFile(path) as archive:
        tensors = {}
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise Refusal(f"holds {info.filename}, which is no array")
            torch_files.check_member(info)
            with archive.open(info) as member:
                shape, dtype = _npy_header(member)
                if dtype.hasobject:
                    raise Refusal(f"holds Python objects in {info.filename}, which is refused")
                if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise Refusal(f"holds another number of bytes in {info.filename} than it says")
            tensors[info.filename.removesuffix(".npy")] = Stored(
                shape, partial(_read_npy, archive, info)
            )
        yield Opened("NumPy's", tensors)


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype]:
    try:
        if np.lib.format.read_magic(member) != (1, 0):  # longer headers are for tables
            raise ValueError("it is no plain array")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    except ValueError as error:
        raise Refusal(f"holds a damaged array ({error})") from error
    return shape, dtype


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Opened]:
    with safe_open(path, framework="numpy") as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (no dictionary)
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            if part.get_dtype() == "BF16":
                tensors[name] = Stored(shape, partial(_read_bfloat16, path, name))
            else:
                tensors[name] = Stored(shape, partial(file.get_tensor, name))
        yield Opened("safetensors", tensors, file.metadata() or {})


def _read_bfloat16(path: Path, name: str) -> np.ndarray:
    # NumPy has no such type: take the bytes from where the header, found valid before, says.
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        first, last = entry["data_offsets"]
        file.seek(8 + length + first)
        halves = np.frombuffer(file.read(last - first), "<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(entry["shape"])


# block1_conv1/block1_conv1_W_1:0 (2016) and block1_conv1/block1_conv1/kernel:0 (since).
_KERAS_NAME = re.compile(
    r"(?:.*/)?(?P<layer>\w+)/(?:(?P=layer)[/_])?(?P<part>W|b|kernel|bias)(?:_\d+)?(?::0)?$"
)


@contextmanager
def _open_keras(path: Path) -> Iterator[Opened]:
    try:
        import h5py
    except ImportError as error:
        raise RuntimeError(NEEDS_H5PY.format(path)) from error
    with h5py.File(path, "r") as file:
        tensors: dict[str, Stored] = {}
        visits = itertools.count(1)

        def visit(group: Any, inside: str, depth: int) -> None:
            for key in group:
                if (
                    next(visits) > MOST_ENTRIES or depth > DEEPEST_NESTING
                ):  # a group may hold itself
                    raise Refusal(f"holds more than {MOST_ENTRIES} entries, or too deep ones")
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise Refusal(f"points to other places with {inside}{key}, which is refused")
                item = group[key]
                if isinstance(item, h5py.Group):
                    visit(item, f"{inside}{key}/", depth + 1)
                elif isinstance(item, h5py.Dataset):
                    if item.is_virtual or item.external:
                        raise Refusal(f"keeps {inside}{key} in other files, which is refused")
                    found = _KERAS_NAME.match(inside + key)
                    name = inside + key
                    if found:
                        part = "kernel" if found["part"] in ("W", "kernel") else "bias"
                        name = f"{found['layer']}.{part}"
                    if name in tensors:
                        raise Refusal(f"holds {name} twice")
                    tensors[name] = Stored(item.shape or (), partial(item.__getitem__, ()))

        try:
            visit(file, "", 0)
        except (
            RuntimeError,
            LookupError,
            TypeError,
        ) as error:  # how h5py says that bytes are wrong
            raise OSError(f"{path} is damaged: {error}; get it again") from error
        yield Opened("Keras'", tensors)


@contextmanager
def _open_matlab(path: Path) -> Iterator[Opened]:
    yield _matconvnet(read_mat(path, MATCONVNET_VARIABLES))


@contextmanager
def _open_matlab_hdf5(path: Path) -> Iterator[Opened]:
    try:
        with open_mat_hdf5(path, MATCONVNET_VARIABLES) as content:
            yield _matconvnet(content)
    except ImportError as error:
        raise RuntimeError(NEEDS_H5PY.format(path)) from error


def _matconvnet(content: Mapping[str, object]) -> Opened:
    network = read_matconvnet(content)
    convention = InputConvention("RGB", mean=network.mean_rgb)
    return Opened(
        "MatConvNet's",
        network.tensors,
        convention=convention,
        normalizes_first=network.normalizes_first,
    )


@contextmanager
def _open_caffe(path: Path) -> Iterator[Opened]:
    with open_caffe(path) as layers:
        first = normalizes_first(layers)
        yield Opened("Caffe's", name_tensors(layers), normalizes_first=first)
