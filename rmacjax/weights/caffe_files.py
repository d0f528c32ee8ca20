"""Reading Caffe's binary networks (`.caffemodel`) as far as weights need them.

Such a file is one protocol buffer message: fields, each a number, a kind and a value, some of them
messages themselves. Only the few fields below are looked at; all lengths are compared with the
bytes that are there, and numbers stay in the file until asked for.

References: Protocol Buffers, "Encoding"; the field numbers are those of Caffe's published
`caffe.proto` (`NetParameter`, `LayerParameter`, `V1LayerParameter`, `BlobProto`).
"""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmacjax.foreign import Refusal, Stored

MOST_FIELDS = 1_000_000
"""A network of a hundred layers has some thousands."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_WIDTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

# Of a network: where layers are, by format; of a layer: its name, kind and numbers.
_LAYER, _LAYER_V1 = 100, 2
_PLACES = {_LAYER: (1, 2, 7), _LAYER_V1: (4, 5, 6)}
_KINDS_V1 = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling"}
# Of numbers: the older format's four sizes, the numbers, the newer format's shape.
_SIZES, _FLOATS, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8
_DIMENSIONS = 1

# What a kind of layer calls its numbers.
_PARTS = {"BatchNorm": ("mean", "variance", "factor"), "Scale": ("weight", "bias")}
_USUAL_PARTS = ("weight", "bias")


class Layer(NamedTuple):
    """A layer: its name, its kind ("Convolution", "LRN", ...) and its numbers."""

    name: str
    kind: str
    blobs: tuple[Stored, ...]


class _Budget:
    """How many fields may still be looked at."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Refusal(f"holds more than {MOST_FIELDS} fields")


class _Message(NamedTuple):
    """A stretch of the file that is a message."""

    content: mmap.mmap
    start: int
    end: int
    budget: _Budget

    def fields(self) -> Iterator[tuple[int, int, int, int]]:
        """Number, kind, and first and last byte of each field's value; a number is both."""
        position = self.start
        while position < self.end:
            self.budget.spend()
            tag, position = self._varint(position)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise Refusal("is damaged: it holds a field of no number")
            if kind == _VARINT:
                value, position = self._varint(position)
                yield number, kind, value, value
                continue
            if kind == _BYTES:
                length, position = self._varint(position)
            elif kind in _WIDTHS:
                length = _WIDTHS[kind]
            else:
                raise Refusal("is damaged: it holds a field of no known kind")
            if position + length > self.end:
                raise Refusal("is damaged: a field is longer than what is left")
            yield number, kind, position, position + length
            position += length

    def inside(self, start: int, end: int) -> "_Message":
        return self._replace(start=start, end=end)

    def text(self, start: int, end: int) -> str:
        return self.content[start:end].decode("utf-8", "replace")

    def varints(self, start: int, end: int) -> list[int]:
        values = []
        while start < end:
            self.budget.spend()
            value, start = self._varint(start)
            values.append(value)
        if start != end:
            raise Refusal("is damaged: a number is longer than its place")
        return values

    def _varint(self, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= self.end:
                raise Refusal("is damaged: it ends in the middle of a number")
            byte = self.content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise Refusal("is damaged: it holds a number that never ends")


def is_caffe(start: bytes) -> bool:
    """Whether a file that starts so may be a network of Caffe's, which has no mark of its own.

    It begins with the network's name, printable, and a field of its own after it; or at once with
    a layer.
    """
    if start[:1] == b"\x0a" and len(start) > 2 and start[1] < 0x80:
        name = start[2 : 2 + start[1]]
        behind = start[2 + start[1] : 4 + start[1]]
        known = behind[:1] in (b"\x12", b"\x1a", b"\x20", b"\x22", b"\x28", b"\x32", b"\x42")
        return name.isascii() and name.decode().isprintable() and (known or behind == b"\xa2\x06")
    return start[:2] == b"\xa2\x06" or start[:1] == b"\x12"


@contextmanager
def open_caffe(path: Path) -> Iterator[list[Layer]]:
    """Open a network of Caffe's.

    Yields:
        Its layers in order; their numbers must be read before the block ends.

    Raises:
        Refusal: if the file is damaged or lies about sizes.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        network = _Message(content, 0, len(content), _Budget())
        yield [
            _layer(network.inside(start, end), *_PLACES[number])
            for number, kind, start, end in network.fields()
            if number in _PLACES and kind == _BYTES
        ]


def name_tensors(layers: list[Layer]) -> dict[str, Stored]:
    """Name the numbers of all layers: "conv1.weight", "bn1.variance", ...

    Raises:
        Refusal: if two layers with numbers have the same name.
    """
    tensors: dict[str, Stored] = {}
    for layer in layers:
        names = _PARTS.get(layer.kind, _USUAL_PARTS)
        for i, blob in enumerate(layer.blobs):
            name = f"{layer.name}.{names[i] if i < len(names) else i}"
            if name in tensors:
                raise Refusal(f"holds {name} twice")
            # The older format knows four sizes only; a bias is 1 x 1 x 1 x n.
            vector = len(blob.shape) == 4 and blob.shape[:3] == (1, 1, 1)
            tensors[name] = Stored(blob.shape[3:], partial(_flat, blob)) if vector else blob
    return tensors


def normalizes_first(layers: list[Layer]) -> bool:
    """Whether responses are normalized before they are pooled for the first time."""
    kinds = [layer.kind for layer in layers]
    return "LRN" in kinds[: kinds.index("Pooling") if "Pooling" in kinds else None]


def _layer(message: _Message, name_at: int, kind_at: int, blobs_at: int) -> Layer:
    name, type_, blobs = "", "", []
    for number, kind, start, end in message.fields():
        if number == name_at and kind == _BYTES:
            name = message.text(start, end)
        elif number == kind_at and kind == _BYTES:
            type_ = message.text(start, end)
        elif number == kind_at and kind == _VARINT:
            type_ = _KINDS_V1.get(start, "")
        elif number == blobs_at and kind == _BYTES:
            blobs.append(_blob(message.inside(start, end)))
    return Layer(name, type_, tuple(blobs))


def _blob(message: _Message) -> Stored:
    older: dict[int, int] = {}
    shape: list[int] | None = None
    stretches: list[tuple[int, int]] = []
    types = set()
    for number, kind, start, end in message.fields():
        if number in _SIZES and kind == _VARINT:
            older[number] = start
        elif number == _SHAPE and kind == _BYTES:
            shape = _dimensions(message.inside(start, end))
        elif number in (_FLOATS, _DOUBLES) and kind != _VARINT:
            stretches.append((start, end))
            types.add("<f4" if number == _FLOATS else "<f8")
    sizes = tuple(shape if shape is not None else (older.get(number, 0) for number in _SIZES))
    if len(sizes) > 8 or len(types) > 1 or max(sizes, default=0) >= 2**62:
        raise Refusal("is damaged: it holds numbers that make no sense")
    dtype = np.dtype(types.pop() if types else "<f4")
    held = sum(end - start for start, end in stretches)
    if math.prod(sizes) * dtype.itemsize != held:
        raise Refusal(f"is damaged: it holds {held} bytes for numbers of shape {sizes}")

    def read() -> np.ndarray:
        data = b"".join(message.content[start:end] for start, end in stretches)
        return np.frombuffer(data, dtype).reshape(sizes)

    return Stored(sizes, read)


def _dimensions(message: _Message) -> list[int]:
    sizes: list[int] = []
    for number, kind, start, end in message.fields():
        if number == _DIMENSIONS:
            sizes += [start] if kind == _VARINT else message.varints(start, end)
    return sizes


def _flat(blob: Stored) -> np.ndarray:
    return blob.read().ravel()
