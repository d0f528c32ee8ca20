"""Image files to RGB pixels: JPEG, PNG, WebP, TIFF, GIF (first frame) and BMP.

The kind is decided by a file's first bytes, never by its suffix, and its size is checked in the
header before a pixel is decoded. What comes out is always (H, W, 3) uint8 in sRGB, turned upright:

- EXIF orientation is applied; all sizes and boxes mean the upright picture.
- Transparent pixels are laid over white, as a page would show them.
- 16-bit grey is scaled by 1/257. Wider integers and floats have no agreed white: floats within
  0..1 are scaled by 255, values within 0..255 are kept, others are stretched from least to largest.
- A colour profile other than sRGB is converted to sRGB (after resizing, so it costs milliseconds);
  this matters most for CMYK. A broken or mismatched profile is ignored.
- Big JPEGs are decoded at 1/2, 1/4 or 1/8 size when that leaves enough pixels for the filter.

Every failure is an `ImageError` whose one sentence names the file and says what to do. All
functions may run in many threads.
"""

import io
import operator
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rmacjax.preprocessing.colors import opaque, to_srgb
from rmacjax.preprocessing.headers import (
    HEADER_BYTES,
    BinaryFile,
    exif_orientation,
    foreign_kind,
    read_png_exif,
    read_webp,
    sniff,
)
from rmacjax.preprocessing.opening import ImageError, explained, name_of, opened
from rmacjax.regions import check_box_px

__all__ = [
    "MAX_PIXELS",
    "LoadedImage",
    "crop",
    "decode_image",
    "load_image",
    "read_size",
    "resize",
    "resize_shape",
]

MAX_PIXELS = 178_956_970
"""Images that claim more pixels are refused by their header: decoded, this many take 0.7 GB.

The number at which Pillow itself refuses (twice its ``MAX_IMAGE_PIXELS``).
"""

DRAFT_MARGIN = 1.75
"""A JPEG is decoded at reduced size only if that leaves so many times the result's side.

Measured on 20 photos against full decoding, both then reduced with the cubic filter: 46 dB at 1.75,
48 dB at 2, 40 dB at 1. Choosing Lanczos instead of the cubic filter makes more of a difference
(44 dB). At 1.75 a photo of 4000 pixels is still decoded at half size for a result of 1024.
"""

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}

_REDUCED_TAG = 0x00FE

Box = Sequence[float | int] | Num[np.ndarray, "4"]

# How to turn the stored picture upright, by EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class LoadedImage(NamedTuple):
    """An upright picture and the size of the photo it was made from.

    Attributes:
        pixels: (H, W, 3) uint8, sRGB.
        height_px: height of the original, upright, before cropping and resizing.
        width_px: its width.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    height_px: int
    width_px: int


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read an image's upright size from its header; no pixel is decoded.

    Args:
        path: an image file.

    Returns:
        (height, width) in pixels, after EXIF orientation.

    Raises:
        ImageError: the file cannot be opened or is not a readable image.
    """
    name = os.fsdecode(path)
    with opened(name) as file, explained(name, name_of(name)):
        return _read_header(file, name, name_of(name))[1:3]


def load_image(
    path: str | os.PathLike[str],
    long_side: int | None = None,
    *,
    box_px: Box | None = None,
) -> LoadedImage:
    """Decode an image file, upright, cropped to a box and made smaller if asked.

    The box is cut at the original resolution, then its long side is reduced to ``long_side`` with
    an antialiasing cubic filter. Nothing is ever enlarged and the aspect is kept.

    Args:
        path: an image file.
        long_side: largest side of the result in pixels; None keeps the resolution.
        box_px: (top, left, bottom, right) of the upright original, half-open; None is all of it.

    Returns:
        `LoadedImage`: pixels and the size of the upright original.

    Raises:
        ImageError: the file cannot be opened or decoded.
        ValueError: the box does not lie in the image, or ``long_side`` is not positive.
    """
    limit = _checked_side(long_side)
    name = os.fsdecode(path)
    with opened(name) as file:
        return _decode(file, name, name_of(name), limit, box_px)


def decode_image(data: bytes, long_side: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image that is in memory.

    Args:
        data: the bytes of an image file of any kind that `load_image` reads.
        long_side: as for `load_image`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageError: the bytes are not a readable image.
    """
    return _decode(
        io.BytesIO(data), "", f"The data ({len(data)} bytes)", _checked_side(long_side), None
    ).pixels


def resize_shape(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    """Find the size of a picture whose long side is reduced to a limit.

    Args:
        height: in pixels.
        width: in pixels.
        long_side: largest side of the result; None or a larger value than both changes nothing.

    Returns:
        (height, width), each at least 1.

    Example:
        >>> resize_shape(3000, 4000, 1024)
        (768, 1024)
    """
    limit = _checked_side(long_side)
    longest = max(height, width)
    if limit is None or longest <= limit:
        return height, width
    # In integers: round half up, the same on every machine.
    return tuple(max(1, (2 * side * limit + longest) // (2 * longest)) for side in (height, width))  # type: ignore[return-value]


def resize(
    pixels: Num[np.ndarray, "H W 3"], long_side: int | None
) -> UInt8[np.ndarray, "_ _ 3"] | Float32[np.ndarray, "_ _ 3"]:
    """Make a picture smaller, with the filter that `load_image` uses; never larger.

    Args:
        pixels: (H, W, 3), uint8 or float 0..255.
        long_side: largest side of the result in pixels; None changes nothing.

    Returns:
        (H', W', 3), uint8 for uint8 and float32 for anything else.
    """
    pixels = np.asarray(pixels)
    height, width = resize_shape(pixels.shape[0], pixels.shape[1], long_side)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
    if (height, width) == pixels.shape[:2]:
        return pixels
    if pixels.dtype == np.uint8:
        smaller = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        return np.array(smaller)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., channel])).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for channel in range(3)
    ]
    return np.stack(planes, axis=-1)


def crop(pixels: Num[np.ndarray, "H W 3"], box_px: Box) -> Num[np.ndarray, "_ _ 3"]:
    """Cut a box out of a picture.

    Args:
        pixels: (H, W, 3).
        box_px: (top, left, bottom, right), half-open, inside the picture.

    Returns:
        (bottom - top, right - left, 3), a copy.

    Raises:
        ValueError: the box is empty or does not lie in the picture.
    """
    top, left, bottom, right = check_box_px(box_px, (pixels.shape[0], pixels.shape[1]))
    return np.array(pixels[top:bottom, left:right])


def _checked_side(long_side: int | None) -> int | None:
    if long_side is None:
        return None
    side = operator.index(long_side)
    if side < 1:
        raise ValueError(f"long_side must be at least 1 pixel, got {side}: give a positive number")
    return side


def _read_header(
    file: BinaryFile, path: str, name: str
) -> tuple[ImageFile.ImageFile | None, int, int, int]:
    """Read Pillow's unloaded image (None for WebP), upright height and width, orientation."""
    header = file.read(HEADER_BYTES)
    kind = sniff(header)
    if not header:
        raise ImageError(f"{name} is empty: copy or download it again, or leave it out", path)
    if not kind:
        what = foreign_kind(header)
        raise ImageError(
            f"{name} is not an image that can be read but {what}: give a JPEG, PNG, WebP, TIFF, "
            "GIF or BMP file",
            path,
        )
    file.seek(0)
    image: ImageFile.ImageFile | None
    if kind == "WebP":
        # Pillow would allocate the whole canvas at once; the header's few bytes are enough here.
        image, (height, width, exif) = None, read_webp(file)
        orientation = exif_orientation(exif)
    else:
        # The plugin itself, not Image.open: the kind is known, and the limit below is ours.
        image = _PLUGINS[kind](file)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            orientation = 1  # Pillow turns TIFF upright by itself, and its size with it.
            # Camera raw files are TIFF too; their first picture is a preview of some 160 pixels.
            if header[8:10] == b"CR" or image.tag_v2.get(_REDUCED_TAG, 0) == 1:
                raise ImageError(
                    f"{name} is a camera raw file or a mere preview: export it as JPEG or PNG", path
                )
        elif kind == "PNG":
            orientation = exif_orientation(read_png_exif(file))
        else:
            orientation = exif_orientation(image.info.get("exif") or b"")
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}): leave it out", path)
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {width} x {height} pixels, more than the {MAX_PIXELS:,} that are "
            "decoded: make it smaller, or leave it out",
            path,
        )
    if orientation >= 5:
        height, width = width, height
    return image, height, width, orientation


def _decode(
    file: BinaryFile,
    path: str,
    name: str,
    long_side: int | None,
    box_px: Box | None,
) -> LoadedImage:
    with explained(path, name):
        image, height, width, orientation = _read_header(file, path, name)
        if image is None:
            file.seek(0)
            image = WebPImagePlugin.WebPImageFile(file)
    box = None if box_px is None else check_box_px(box_px, (height, width))
    with explained(path, name):
        return LoadedImage(_upright_pixels(image, orientation, long_side, box), height, width)


def _upright_pixels(
    image: ImageFile.ImageFile,
    orientation: int,
    long_side: int | None,
    box: tuple[int, int, int, int] | None,
) -> UInt8[np.ndarray, "H W 3"]:
    profile = image.info.get("icc_profile") or b""
    region: tuple[float, float, float, float] = (0, 0, *image.size)
    stored_size = image.size
    if box is None and long_side is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        at_least = int(long_side * DRAFT_MARGIN)
        drafted = image.draft(None, resize_shape(*stored_size, at_least))
        if drafted is not None:
            # Where the stored picture lies in the reduced one, which may end in part of a pixel.
            region = drafted[1]
    image.load()
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        stored_size, region = image.size, (0, 0, *image.size)
    picture = opaque(image)
    if box is not None:
        top, left, bottom, right = box
        picture, orientation = _turn(picture, orientation).crop((left, top, right, bottom)), 1
        stored_size, region = picture.size, (0, 0, *picture.size)
    size = resize_shape(*stored_size, long_side)
    if size != picture.size or region[2:] != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC, box=region)
    picture = _turn(to_srgb(picture, profile), orientation)
    return np.array(picture)


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)
