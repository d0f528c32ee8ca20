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
from rmacjax.weights import torch_files
from rmacjax.weights.mat_files import START as MAT_START
from rmacjax.weights.mat_files import read_mat
from rmacjax.weights.pickles import Refusal, Stored

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
    """

    title: str
    tensors: dict[str, Stored]
    metadata: Mapping[str, str] = MappingProxyType({})
    convention: InputConvention | None = None


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
        return _open_matconvnet
    raise ValueError(
        f"{path} is no file of weights: it starts like none of PyTorch's .pth, .safetensors, "
        "Keras' .h5, MatConvNet's .mat and NumPy's .npz"
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


@contextmanager
def _open_torch_zip(path: Path) -> Iterator[Opened]:
    with torch_files.open_zip_checkpoint(path) as saved:
        yield Opened("PyTorch's", _tensors(saved))


@contextmanager
def _open_torch_legacy(path: Path) -> Iterator[Opened]:
    with torch_files.open_legacy_checkpoint(path) as saved:
        yield Opened("PyTorch's older", _tensors(saved))


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
def _open_matconvnet(path: Path) -> Iterator[Opened]:
    content = read_mat(path, ("layers", "meta", "normalization"))
    layers, facts = content.get("layers"), content.get("meta", content)
    normalization = facts.get("normalization") if isinstance(facts, dict) else None
    average = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if not isinstance(layers, list) or not isinstance(average, Stored):
        raise Refusal(
            "is no network of MatConvNet's SimpleNN: it has no layers or no average image"
        )
    layers = [layer for layer in layers if isinstance(layer, dict)]
    tensors = {}
    for layer in layers:
        parts = layer.get("weights") or [layer.get("filters"), layer.get("biases")]
        if layer.get("type") == "conv" and isinstance(parts, list) and len(parts) >= 2:
            for part, tensor in zip(("filters", "biases"), parts, strict=False):
                if isinstance(tensor, Stored):
                    tensors[f"{layer.get('name')}.{part}"] = _squeezed(tensor)
    kinds = [layer.get("type") for layer in layers]
    for norm in ("lrn", "normalize"):
        if norm in kinds and norm in kinds[: kinds.index("pool") if "pool" in kinds else None]:
            raise Refusal(
                "normalizes before it pools; alexnet-caffe stands for CaffeNet, which pools first"
            )
    convention = InputConvention("RGB", mean=_average_color(average))
    yield Opened("MatConvNet's", tensors, convention=convention)


def _squeezed(tensor: Stored) -> Stored:
    """Make a row or column a vector; MATLAB knows no other."""
    if len(tensor.shape) == 2 and 1 in tensor.shape:
        return Stored((math.prod(tensor.shape),), lambda: tensor.read().ravel())
    return tensor


def _average_color(average: Stored) -> tuple[float, float, float]:
    """Average an image over its pixels, or take the colour that is there."""
    if average.shape[-1] == 3 or average.shape == (3, 1):
        pixels = np.asarray(average.read(), np.float64).reshape(-1, 3)
        red, green, blue = pixels.mean(0).tolist()
        return red, green, blue
    raise Refusal(f"has an average image of shape {average.shape} where three colours are due")
