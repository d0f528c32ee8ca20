"""MATLAB's files, version 5 to 7, element by element.

A file is a row of elements, each a tag (type, length) and its bytes, some of them deflated; arrays
are elements made of elements. Every length and every dimension is compared with the bytes that are
there before anything is made of it, and numbers stay unread until asked for. SciPy's reader, made
for honest files, takes a file's word for its sizes.

References:
    The MathWorks, "MAT-File Format" (2019), chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Collection
from functools import partial

import numpy as np

from rmacjax.foreign import Damage, Refusal, Stored

__all__ = ["read_variables"]

_HEADER_BYTES = 128
_MATRIX, _DEFLATED = 14, 15
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"} | {
    12: "i8",
    13: "u8",
}
_CODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_COMPLEX = 0x0800
_MOST_NUMBERS = 1 << 48
_SPARE_VALUES = 1 << 16
_BYTES_A_VALUE = 4
_VALUES_AN_ARRAY = 4
_BYTES_MORE_TEXT = 64
_MOST_AXES = 8
_NOTHING = Stored((0, 0), partial(np.zeros, (0, 0)))


def read_variables(
    content: memoryview,
    *,
    most_bytes: int,
    deepest: int,
    most_values: int,
    wanted: Collection[str] | None = None,
) -> dict[str, object]:
    """Read the variables of a MATLAB file.

    Args:
        content: all of the file.
        most_bytes: what is deflated may come to so many bytes, all of it together.
        deepest: cells and structures may lie in each other so often.
        most_values: so many values may lie in all of them together. Neither may there be more than
            one in four bytes of the file, beside 65,536: a name takes more, also deflated, and an
            empty one, which hardly takes any, costs hundreds of bytes once it is made. An array of
            numbers, which costs a thousand, counts as four, a structure beside its fields, and a
            text once more for each 64 bytes.
        wanted: names of variables, others are passed over; None: all.

    Returns:
        Value by name. Arrays of numbers come as `Stored` with MATLAB's shape, text as a string, a
        cell array as a list and a structure as a list of dictionaries, as MATLAB knows only arrays
        of structures; both are in MATLAB's order (down the first column first). Anything else
        (functions, objects, sparse and complex arrays) is None.

    Raises:
        Refusal: if it is no such file.
        Damage: if it is damaged or lies about sizes.
    """
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:_HEADER_BYTES]))
    if order is None:
        raise Refusal("is no MATLAB file of version 5 to 7")
    found: dict[str, object] = {}
    position, room = _HEADER_BYTES, most_bytes
    reader = _Reader(
        order, deepest, min(most_values, len(content) // _BYTES_A_VALUE + _SPARE_VALUES)
    )
    try:
        while position < len(content):
            kind, data, position = reader.element(content, position)
            if kind == _DEFLATED:
                stream = zlib.decompressobj()
                inside = memoryview(stream.decompress(data, max(room, 1)))
                if stream.unconsumed_tail:
                    raise Damage(f"is damaged: its arrays inflate to more than {most_bytes} bytes")
                room -= len(inside)
                kind, data, _ = reader.element(inside, 0)
            if kind == _MATRIX and len(data):
                name = reader.head(data)[0]
                if wanted is None or name in wanted:
                    found[name] = reader.value(data, 0)
    except Damage:
        raise
    except (struct.error, zlib.error, ValueError) as error:
        raise Damage(f"is damaged: {error}") from error
    return found


class _Reader:
    """How to read one file: its byte order, how deep it may go, and how many values it may hold."""

    def __init__(self, order: str, deepest: int, most_values: int) -> None:
        self.order, self.deepest, self.most_values = order, deepest, most_values
        self.two_words = struct.Struct(f"{order}II").unpack_from
        self.room = most_values

    def charge(self, count: int) -> None:
        """Count what is about to be made: each value takes far more than it has in the file."""
        self.room -= count
        if self.room < 0:
            raise Damage(f"is damaged: it says that it holds more than {self.most_values} values")

    def element(self, content: memoryview, position: int) -> tuple[int, memoryview, int]:
        """Take one element: its type, its bytes, and where the next begins."""
        if position + 8 > len(content):
            raise Damage("is damaged: it ends in the middle of an element")
        word, length = self.two_words(content, position)
        if word >> 16:  # up to four bytes stand in the tag itself
            length, start, end = word >> 16, position + 4, position + 8
            if length > 4:
                raise Damage("is damaged: an element is longer than its place")
        else:
            start = position + 8
            end = start + length + (0 if word == _DEFLATED else -length % 8)
        if start + length > len(content):
            raise Damage("is damaged: it ends in the middle of an element")
        return word & 0xFFFF, content[start : start + length], end

    def head(self, data: memoryview) -> tuple[str, int, tuple[int, ...], memoryview]:
        """Take an array's name, flags and shape, and what stands behind them."""
        _, flags, position = self.element(data, 0)
        (word,) = struct.unpack_from(f"{self.order}I", flags)
        _, sizes, position = self.element(data, position)
        if len(sizes) > 4 * _MOST_AXES:
            raise Damage("is damaged: an array has no shape")
        shape = struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes)
        _, letters, position = self.element(data, position)
        return bytes(letters).decode("latin-1"), word, shape, data[position:]

    def value(self, data: memoryview, depth: int) -> object:
        """Read an array's value; `data` is what stands behind its tag."""
        if not len(data):
            return _NOTHING
        if depth > self.deepest:
            raise Damage("is damaged: it is nested too deeply")
        _, word, shape, rest = self.head(data)
        if not 2 <= len(shape) <= _MOST_AXES or min(shape) < 0:
            raise Damage("is damaged: an array has no shape")
        kind = word & 0xFF
        if kind == _CELL:
            return self.values(rest, math.prod(shape), depth)
        if kind == _STRUCT:
            return self.structures(rest, math.prod(shape), depth)
        if kind == _CHAR:
            return self.text(rest)
        if kind in _NUMBERS and not word & _COMPLEX:
            return self.numbers(rest, shape)
        return None

    def values(self, data: memoryview, count: int, depth: int) -> list[object]:
        """Read so many arrays, one behind the other."""
        if count * 8 > len(data):  # each takes a tag at least
            raise Damage("is damaged: it holds fewer values than it says")
        self.charge(count)
        found: list[object] = []
        position = 0
        for _ in range(count):
            kind, inside, position = self.element(data, position)
            if kind != _MATRIX:
                raise Damage("is damaged: it holds a value of no known kind")
            found.append(self.value(inside, depth + 1))
        return found

    def structures(self, data: memoryview, count: int, depth: int) -> list[dict[str, object]]:
        """Read so many structures: the fields' names, then all of the first one's values."""
        _, width_bytes, position = self.element(data, 0)
        (width,) = struct.unpack_from(f"{self.order}i", width_bytes)
        _, letters, position = self.element(data, position)
        if width < 1:
            raise Damage("is damaged: it holds fields without names")
        text = bytes(letters)
        self.charge(-(-len(text) // width))
        fields = [
            text[i : i + width].split(b"\0")[0].decode("latin-1")
            for i in range(0, len(text), width)
        ]
        values = self.values(data[position:], count * len(fields), depth)
        self.charge(count)
        size = max(len(fields), 1)
        return [
            dict(zip(fields, values[i : i + size], strict=True))
            for i in range(0, len(values), size)
        ]

    def text(self, data: memoryview) -> str:
        """Read letters, in whatever coding they were written."""
        kind, letters, _ = self.element(data, 0) if len(data) else (2, data, 0)
        self.charge(len(letters) // _BYTES_MORE_TEXT)
        coding = _CODINGS.get(kind, "latin-1")
        ending = {"<": "-le", ">": "-be"}[self.order] if coding in ("utf-16", "utf-32") else ""
        return str(letters, coding + ending)

    def numbers(self, data: memoryview, shape: tuple[int, ...]) -> Stored:
        """Find an array's numbers, which MATLAB may keep in a smaller type than the array's."""
        kind, numbers, _ = self.element(data, 0)
        if kind not in _DTYPES:
            raise Damage("is damaged: it holds numbers of no known kind")
        dtype = np.dtype(self.order + _DTYPES[kind])
        if math.prod(shape) * dtype.itemsize != len(numbers):
            raise Damage(f"is damaged: it holds {len(numbers)} bytes for an array of shape {shape}")
        if math.prod(max(size, 1) for size in shape) > _MOST_NUMBERS:  # beside a size of 0
            raise Damage("is damaged: it holds an array of impossible shape")
        self.charge(_VALUES_AN_ARRAY - 1)
        return Stored(shape, partial(_reshaped, numbers, dtype, shape))


def _reshaped(numbers: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(numbers, dtype).reshape(shape, order="F")
