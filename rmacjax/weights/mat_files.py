"""Reading MATLAB's files (version 5 to 7) as far as networks need them.

A file is a row of elements, each a tag (type, length) and its bytes, some of them deflated; arrays
are elements made of elements. Lengths and dimensions are compared with the bytes that are there
before anything is made of them, and numbers stay unread until asked for, which SciPy's reader, made
for honest files, does not offer.

Reference: The MathWorks, "MAT-File Format", version 5.
"""

import math
import struct
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from rmacjax.weights.pickles import Refusal, Stored

START = b"MATLAB 5.0 MAT-file"

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"} | {
    12: "i8",
    13: "u8",
}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)
_COMPLEX = 0x0800
_DEEPEST = 16
# Numbers of a network hardly shrink; what grows a hundredfold is no network.
_MOST_GROWTH = 100


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, object]:
    """Read some variables of a MATLAB file.

    Args:
        path: the file.
        wanted: names of variables; others are passed over.

    Returns:
        Value by name. Arrays of numbers come as `Stored` (with MATLAB's shape), text as a string,
        a cell array as a list in MATLAB's order, a structure as a dictionary (an array of them as
        a list), and anything else as None.

    Raises:
        Refusal: if the file is damaged or lies about sizes.
    """
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise Refusal("has no byte order")
    found: dict[str, object] = {}
    try:
        position = _HEADER_BYTES
        while position < len(content):
            kind, data, position = _element(content, position, order)
            if kind == _COMPRESSED:
                kind, data = _inflate(data, order)
            if kind == _MATRIX:
                name, value = _matrix(data, order, 0, wanted)
                if name in wanted:
                    found[name] = value
    except (struct.error, zlib.error, ValueError) as error:
        raise Refusal(f"is damaged: {error}") from error
    return found


def _element(content: memoryview, position: int, order: str) -> tuple[int, memoryview, int]:
    """Take one element apart: type, data, and where the next one starts."""
    (word,) = struct.unpack_from(f"{order}I", content, position)
    if word >> 16:  # up to 4 bytes lie in the tag itself
        kind, length, start = word & 0xFFFF, word >> 16, position + 4
        if length > 4:
            raise Refusal("is damaged: an element is longer than its place")
        return kind, content[start : start + length], position + 8
    kind = word
    (length,) = struct.unpack_from(f"{order}I", content, position + 4)
    start = position + 8
    if start + length > len(content):
        raise Refusal("is damaged: an element is longer than what is left")
    padding = 0 if kind == _COMPRESSED else -length % 8
    return kind, content[start : start + length], start + length + padding


def _inflate(data: memoryview, order: str) -> tuple[int, memoryview]:
    stream = zlib.decompressobj()
    tag = stream.decompress(data, 8)
    kind, length = struct.unpack(f"{order}II", tag)
    if length > _MOST_GROWTH * len(data):
        raise Refusal("is damaged: it holds more than can be")
    inside = stream.decompress(stream.unconsumed_tail, max(length, 1))
    if len(inside) != length:
        raise Refusal("is damaged: it ends early")
    return kind, memoryview(inside)


def _matrix(
    data: memoryview, order: str, depth: int, wanted: Collection[str] | None = None
) -> tuple[str, object]:
    """Read an array: its name and its value; the value only if the name is wanted."""
    if len(data) == 0:
        return "", None
    if depth > _DEEPEST:
        raise Refusal("is damaged: it is nested too deeply")
    _, flags, position = _element(data, 0, order)
    (word,) = struct.unpack_from(f"{order}I", flags)
    _, sizes, position = _element(data, position, order)
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    _, text, position = _element(data, position, order)
    name = bytes(text).decode("latin-1")
    if wanted is not None and name not in wanted:
        return name, None
    if not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise Refusal("is damaged: it holds an array without a shape")
    kind, count = word & 0xFF, math.prod(shape)
    rest = data[position:]
    if kind in _NUMERIC and not word & _COMPLEX:
        return name, _numbers(rest, shape, order)
    if kind == _CHAR:
        type_, letters, _ = _element(rest, 0, order)
        coding = _TEXTS.get(type_, "latin-1")
        suffix = {"<": "-le", ">": "-be"}[order] if coding == "utf-16" else ""
        return name, bytes(letters).decode(coding + suffix)
    if kind == _CELL:
        return name, _values(rest, count, order, depth)
    if kind == _STRUCT:
        _, length, position = _element(rest, 0, order)
        (width,) = struct.unpack_from(f"{order}i", length)
        _, text, position = _element(rest, position, order)
        if width < 1:
            raise Refusal("is damaged: it holds fields without names")
        fields = [
            bytes(text[i : i + width]).split(b"\0")[0].decode("latin-1")
            for i in range(0, len(text), width)
        ]
        values = _values(rest[position:], count * len(fields), order, depth)
        size = max(len(fields), 1)
        rows = [
            dict(zip(fields, values[i : i + size], strict=True))
            for i in range(0, len(values), size)
        ]
        return name, rows[0] if len(rows) == 1 else rows
    return name, None  # functions, objects, sparse and complex arrays


def _values(data: memoryview, count: int, order: str, depth: int) -> list[object]:
    if count * 8 > len(data):  # a value takes a tag at least
        raise Refusal("is damaged: it holds fewer values than it says")
    values, position = [], 0
    for _ in range(count):
        kind, inside, position = _element(data, position, order)
        if kind != _MATRIX:
            raise Refusal("is damaged: it holds a value of no known kind")
        values.append(_matrix(inside, order, depth + 1)[1])
    return values


def _numbers(data: memoryview, shape: tuple[int, ...], order: str) -> Stored:
    type_, inside, _ = _element(data, 0, order)
    if type_ not in _NUMBERS:
        raise Refusal("is damaged: it holds numbers of no known kind")
    dtype = np.dtype(f"{order}{_NUMBERS[type_]}")
    if math.prod(shape) * dtype.itemsize != len(inside):
        raise Refusal(f"is damaged: it holds {len(inside)} bytes for an array of shape {shape}")
    return Stored(shape, partial(_reshaped, inside, dtype, shape))


def _reshaped(data: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order="F")
