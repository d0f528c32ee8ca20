"""Reading the MATLAB files (version 5 to 7) that ground truth is distributed in.

A file is a row of elements, each a type, a length and that many bytes; an array is an element made
of elements, and most of a file's are deflated. Every length and every dimension is compared with
the bytes that are there before anything is made of it, so that a damaged file is a sentence and not
an allocation; SciPy's reader takes a file's word for its sizes.

References:
    The MathWorks, "MAT-File Format" (2019), chapter 1.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_mat"]

_LARGEST = 1 << 28
"""Bytes of all arrays; the ground truth of a million images takes a tenth."""

_DEEPEST = 8
_MATRIX, _DEFLATED = 14, 15
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"} | {
    12: "i8",
    13: "u8",
}
_CODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_UNREAD = 0x0800  # complex numbers


class _Damage(ValueError):
    """What is wrong with the bytes; the sentence goes on after the file's name."""


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a MATLAB file.

    Args:
        path: the file.

    Returns:
        Value by name: arrays of numbers as NumPy arrays of MATLAB's shape, texts as strings, cell
        arrays as lists and structures as lists of dictionaries, both in MATLAB's order (down the
        first column first); None for anything else.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, too large, or of another version.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no ground truth: it is larger than {_LARGEST >> 20} MB.")
    content = memoryview(path.read_bytes())
    if b"HDF" in bytes(content[:8]) or b"MATLAB 7.3" in bytes(content[:16]):
        raise ValueError(f"{path} is a MATLAB file of version 7.3; save it with -v7 in MATLAB.")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise ValueError(f"{path} is no MATLAB file of version 5 to 7.")
    try:
        return _variables(content, order)
    except (_Damage, struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; copy or download it again.") from error


def _variables(content: memoryview, order: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    position, room = 128, _LARGEST
    while position + 8 <= len(content):
        kind, data, position = _element(content, position, order)
        if kind == _DEFLATED:
            stream = zlib.decompressobj()
            inside = memoryview(stream.decompress(data, max(room, 1)))
            if stream.unconsumed_tail:
                raise _Damage("its arrays are larger than any ground truth's")
            room -= len(inside)
            kind, data, _ = _element(inside, 0, order)
        if kind == _MATRIX:
            name, value = _array(data, order, 0)
            found[name] = value
    return found


def _element(content: memoryview, position: int, order: str) -> tuple[int, memoryview, int]:
    """Take one element: its type, its bytes, and where the next begins."""
    (word,) = struct.unpack_from(f"{order}I", content, position)
    if word >> 16:  # up to four bytes stand in the tag itself
        length, start, end = word >> 16, position + 4, position + 8
        if length > 4:
            raise _Damage("an element is longer than its place")
    else:
        (length,) = struct.unpack_from(f"{order}I", content, position + 4)
        start = position + 8
        end = start + length + (0 if word == _DEFLATED else -length % 8)
    if start + length > len(content):
        raise _Damage("it ends in the middle of an element")
    return word & 0xFFFF, content[start : start + length], end


def _array(data: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Read an array's name and value; `data` is what stands behind its tag."""
    if not len(data):
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _Damage("it is nested too deeply")
    _, flags, position = _element(data, 0, order)
    (word,) = struct.unpack_from(f"{order}I", flags)
    _, sizes, position = _element(data, position, order)
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    _, letters, position = _element(data, position, order)
    name = bytes(letters).decode("latin-1")
    if not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise _Damage("an array has no shape")
    kind, rest = word & 0xFF, data[position:]
    if kind == _CELL:
        return name, _many(rest, math.prod(shape), order, depth)
    if kind == _STRUCT:
        return name, _structures(rest, math.prod(shape), order, depth)
    if kind == _CHAR:
        code, text, _ = _element(rest, 0, order) if len(rest) else (2, rest, 0)
        coding = _CODINGS.get(code, "latin-1")
        ending = {"<": "-le", ">": "-be"}[order] if coding in ("utf-16", "utf-32") else ""
        return name, bytes(text).decode(coding + ending)
    if kind in _NUMBERS and not word & _UNREAD:
        code, numbers, _ = _element(rest, 0, order)
        if code not in _DTYPES:
            raise _Damage("it holds numbers of no known kind")
        dtype = np.dtype(order + _DTYPES[code])
        if math.prod(shape) * dtype.itemsize != len(numbers):
            raise _Damage(f"it holds {len(numbers)} bytes for an array of shape {shape}")
        return name, np.frombuffer(numbers, dtype).reshape(shape, order="F")
    return name, None


def _many(data: memoryview, count: int, order: str, depth: int) -> list[Any]:
    if count * 8 > len(data):  # each takes a tag at least
        raise _Damage("it holds fewer values than it says")
    values, position = [], 0
    for _ in range(count):
        kind, inside, position = _element(data, position, order)
        if kind != _MATRIX:
            raise _Damage("it holds a value of no known kind")
        values.append(_array(inside, order, depth + 1)[1])
    return values


def _structures(data: memoryview, count: int, order: str, depth: int) -> list[dict[str, Any]]:
    _, width_bytes, position = _element(data, 0, order)
    (width,) = struct.unpack_from(f"{order}i", width_bytes)
    _, letters, position = _element(data, position, order)
    if width < 1 or not len(letters):
        raise _Damage("it holds fields without names")
    text = bytes(letters)
    fields = [
        text[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(text), width)
    ]
    values = _many(data[position:], count * len(fields), order, depth)
    return [
        dict(zip(fields, values[i : i + len(fields)], strict=True))
        for i in range(0, len(values), len(fields))
    ]
