"""What the first bytes of an image file tell, without decoding: its kind, its size, its turn.

Only bytes are looked at here; nothing is trusted and nothing is allocated.
"""

import io
import os
import struct

__all__ = [
    "HEADER_BYTES",
    "BinaryFile",
    "exif_orientation",
    "foreign_kind",
    "read_png_exif",
    "read_webp",
    "sniff",
]

BinaryFile = io.BufferedReader | io.BytesIO

HEADER_BYTES = 32
"""So many first bytes of a file are enough for `sniff`."""

_BMP_HEADER_SIZES = {bytes([size]) for size in (12, 16, 40, 52, 56, 64, 108, 124)}

# What people hand over by mistake, by first bytes (offset, bytes, what it is).
_FOREIGN = (
    (4, b"ftypheic", "a HEIC photo"),
    (4, b"ftypheix", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIC photo"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<!doctype", "a web page"),
    (0, b"<html", "a web page"),
)

_ORIENTATION_TAG = 0x0112


def sniff(header: bytes) -> str:
    """Tell what kind of image begins with these bytes.

    Args:
        header: the first `HEADER_BYTES` of a file.

    Returns:
        A key of the kinds that can be read ("JPEG", "PNG", ...), or "" for anything else.
    """
    if header.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WebP"
    if header[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if header[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # "BM" alone is common in texts; the size of the header that follows is one of a few.
    if header[:2] == b"BM" and header[15:18] == b"\0\0\0" and header[14:15] in _BMP_HEADER_SIZES:
        return "BMP"
    return ""


def foreign_kind(header: bytes) -> str:
    """Name what begins with these bytes and is no image that can be read.

    Args:
        header: the first `HEADER_BYTES` of a file.

    Returns:
        Words for a message, like "a web page".
    """
    for offset, signature, what in _FOREIGN:
        if header[offset:].startswith(signature):
            return what
    if header and all(byte >= 32 or byte in b"\t\r\n" for byte in header):
        return "text"
    return "something else"


def exif_orientation(exif: bytes) -> int:
    """Find the orientation, 1 to 8, in an EXIF block; 1 where there is none or it is damaged."""
    if exif[:6] == b"Exif\0\0":
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == _ORIENTATION_TAG:
            form = {1: "B", 3: "H", 4: "I"}.get(kind)
            value = struct.unpack_from(order + form, exif, entry + 8)[0] if form else 1
            return value if 1 <= value <= 8 else 1
    return 1


def read_png_exif(file: BinaryFile) -> bytes:
    """Find a PNG's EXIF block, which may stand behind the pixels, by hopping over the chunks."""
    place = file.tell()
    file.seek(8)
    exif = b""
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            exif = file.read(length)
            break
        if name == b"IEND":
            break
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(place)
    return exif


def read_webp(file: BinaryFile) -> tuple[int, int, bytes]:
    """Read a WebP's stored height and width, and its EXIF block."""
    file.seek(12)
    size = None
    exif = b""
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"VP8X" and size is None:
            data = file.read(10)
            size = (
                1 + int.from_bytes(data[7:10], "little"),
                1 + int.from_bytes(data[4:7], "little"),
            )
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack("<HH", file.read(10)[6:10])
            size = (height & 0x3FFF, width & 0x3FFF)
        elif name == b"VP8L" and size is None:
            bits = int.from_bytes(file.read(5)[1:5], "little")
            size = (1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
        elif name == b"EXIF":
            exif = file.read(length)
            break
        file.seek(start + length + length % 2)
    if size is None:
        raise EOFError("no picture in the file")
    return *size, exif
