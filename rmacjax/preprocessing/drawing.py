"""Draw on pixels, bend them, and encode them: what result pages and made-up photos need.

Pixels are (H, W, 3) uint8. Points are (top, left) in pixels, counted from the picture's corner, so
the centre of the first pixel is (0.5, 0.5). Nothing is changed in place.
"""

import io
import math
import os
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = [
    "draw_box",
    "draw_text",
    "encode_jpeg",
    "encode_png",
    "gaussian_blur",
    "polygon_mask",
    "save_png",
    "text_size",
    "warp_perspective",
]

Color = tuple[int, int, int]

YELLOW: Color = (255, 214, 10)
_HALO: Color = (0, 0, 0)
# What Pillow's own font has beyond ASCII, and how to spell what it lacks.
_MORE_LETTERS = frozenset("©«°±´·»‘’“”…‹›™")
_SPELLINGS = str.maketrans(
    {"\t": " ", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE"}
    | {"ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i", "–": "-", "—": "-", "−": "-", "×": "x"}
)
_MASK_ROWS = 16
_MARGIN = 4


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"], quality: int = 85) -> bytes:
    """Encode pixels as a JPEG file.

    Args:
        pixels: (H, W, 3) uint8.
        quality: 1 to 100.

    Returns:
        The file's bytes.

    Raises:
        ValueError: pixels are not RGB, or a side is over 65500, the most that a JPEG can have.
    """
    image = _image(pixels)
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be 1 to 100, got {quality}")
    if max(image.size) > 65500:
        raise ValueError(
            f"A JPEG's sides are at most 65500 pixels, got {image.width} x {image.height}: "
            "resize it, or encode it as PNG"
        )
    return _encode(image, "JPEG", quality=int(quality))


def encode_png(pixels: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]) -> bytes:
    """Encode pixels, colour or grey, as a PNG file.

    Args:
        pixels: (H, W, 3) or (H, W) uint8.

    Returns:
        The file's bytes.
    """
    return _encode(_image(pixels), "PNG")


def save_png(
    path: str | os.PathLike[str], pixels: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]
) -> None:
    """Write pixels to a PNG file.

    Args:
        path: the file, replaced if it exists.
        pixels: (H, W, 3) or (H, W) uint8.

    Raises:
        OSError: the file cannot be written.
    """
    data = encode_png(pixels)
    with open(path, "wb") as file:
        file.write(data)


def draw_box(
    pixels: UInt8[np.ndarray, "H W 3"],
    box_px: Sequence[float | int] | Num[np.ndarray, "4"],
    color: Color = YELLOW,
    width: int = 3,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a box: a bright line just inside its edge, between two dark ones.

    Args:
        pixels: (H, W, 3) uint8.
        box_px: (top, left, bottom, right), rounded to whole pixels and clipped to the picture.
        color: (red, green, blue).
        width: of the bright line, in pixels.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    drawn = np.array(_checked(pixels))
    height_px, width_px = drawn.shape[:2]
    limits = (height_px, width_px, height_px, width_px)
    outer = [
        min(max(math.floor(float(side) + 0.5), 0), limit)
        for side, limit in zip(box_px, limits, strict=True)
    ]
    halo = max(1, width // 3)
    _frame(drawn, _grow(outer, halo), 2 * halo + width, _HALO)
    _frame(drawn, outer, width, color)
    return drawn


def draw_text(
    pixels: UInt8[np.ndarray, "H W 3"],
    text: str,
    top_left: Sequence[float | int],
    size: float | int = 16,
    color: Color = (255, 255, 255),
    *,
    background: Color | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Write text; what does not fit into the picture is cut off.

    The font is the one that comes with Pillow, the same on every machine. It has little more than
    ASCII: accents are left out, and letters that it cannot spell become question marks.

    Args:
        pixels: (H, W, 3) uint8.
        text: one line or several.
        top_left: upper left corner of the text's box, whose size is `text_size`.
        size: of the letters, in pixels.
        color: (red, green, blue).
        background: fills the text's box; None leaves the picture visible.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    image = _image(_checked(pixels))
    top, left = top_left
    font, lines, line_height, line_width = _layout(text, size)
    draw = ImageDraw.Draw(image)
    if background is not None:
        bottom, right = top + line_height * len(lines), left + line_width
        draw.rectangle((left, top, right - 1, bottom - 1), fill=background)
    for number, line in enumerate(lines):
        draw.text((left, top + number * line_height), line, fill=color, font=font)
    return np.array(image)


def text_size(text: str, size: float | int = 16) -> tuple[int, int]:
    """Measure a text.

    Args:
        text: one line or several.
        size: of the letters, in pixels.

    Returns:
        (height, width) in pixels of the box that `draw_text` writes into.
    """
    _, lines, line_height, line_width = _layout(text, size)
    return line_height * len(lines), line_width


def polygon_mask(
    shape: tuple[int, int], points: Num[np.ndarray, "points 2"]
) -> UInt8[np.ndarray, "H W"]:
    """Fill a polygon, antialiased: each value is the share of the pixel covered, times 255.

    Args:
        shape: (height, width) of the mask in pixels.
        points: corners as (top, left), in order; the last is joined to the first. They may lie
            outside the mask.

    Returns:
        (height, width) uint8.
    """
    height, width = shape
    rows = height * _MASK_ROWS
    corners = np.asarray(points, np.float64)
    # Lines run through the mask, several to a pixel. An edge that a line crosses means "covered
    # from here on", exact to the part of a pixel; edges that go up subtract. A cumulative sum
    # along the rows then fills.
    starts, weights = [], []
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        first = max(math.ceil(low * _MASK_ROWS - 0.5), 0)
        last = min(math.ceil(high * _MASK_ROWS - 0.5), rows)
        if first >= last:
            continue
        lines = np.arange(first, last)
        y = (lines + 0.5) / _MASK_ROWS
        x = np.clip(x0 + (y - y0) * ((x1 - x0) / (y1 - y0)), 0, width)
        cell = np.floor(x).astype(np.int64)
        share = (x - cell) / _MASK_ROWS
        sign = 1.0 if y1 > y0 else -1.0
        start = lines // _MASK_ROWS * (width + 2) + cell
        starts += [start, start + 1]
        weights += [sign * (1 / _MASK_ROWS - share), sign * share]
    if not starts:
        return np.zeros((height, width), np.uint8)
    cells = height * (width + 2)
    deltas = np.bincount(np.concatenate(starts), np.concatenate(weights), cells)
    covered = np.abs(np.cumsum(deltas.reshape(height, width + 2), axis=1)[:, :width])
    return np.rint(np.minimum(covered, 1) * 255).astype(np.uint8)


def warp_perspective(
    pixels: UInt8[np.ndarray, "H W c"],
    quad_px: Num[np.ndarray, "4 2"],
    out_shape: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Show a flat picture in perspective, as a poster is seen from the side.

    The picture is first made smaller where the quadrangle is, so that nothing flickers, then read
    bilinearly. Its edge is continued outwards under the antialiased border of the alpha.

    Args:
        pixels: (H, W, 3), or (H, W, 4) with the alpha last, uint8.
        quad_px: where the upper left, upper right, lower right and lower left corner go, as
            (top, left) in the output; they may lie outside.
        out_shape: (height, width) of the output.

    Returns:
        pixels (height, width, 3) uint8 and alpha (height, width) uint8; where alpha is 0 the
        pixels mean nothing.

    Raises:
        ValueError: the corners do not make a convex quadrangle.

    References:
        Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 2.2.3.
    """
    quad = np.asarray(quad_px, np.float64)
    _check_convex(quad)
    source = np.asarray(pixels)
    if source.ndim != 3 or source.shape[2] not in (3, 4) or source.dtype != np.uint8:
        raise ValueError(
            "Pixels to warp must be (H, W, 3) or (H, W, 4) uint8, got "
            f"{source.shape} {source.dtype}"
        )
    height, width = out_shape
    sides = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
    most_wide, most_high = max(sides[0], sides[2]), max(sides[1], sides[3])
    small_size = (
        max(1, min(source.shape[1], math.ceil(most_wide))),
        max(1, min(source.shape[0], math.ceil(most_high))),
    )
    image = Image.fromarray(np.ascontiguousarray(source))
    if small_size != image.size:
        image = image.resize(small_size, Image.Resampling.BOX)
    padding = ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0))
    image = Image.fromarray(np.pad(np.asarray(image), padding, mode="edge"))
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)]) * np.array(small_size[::-1]) + _MARGIN
    coefficients = _perspective(quad, corners)
    warped = np.asarray(
        image.transform(
            (width, height),
            Image.Transform.PERSPECTIVE,
            tuple(coefficients),
            Image.Resampling.BILINEAR,
        )
    )
    alpha = polygon_mask((height, width), quad)
    if warped.shape[2] == 4:
        product = alpha.astype(np.uint16) * warped[..., 3]
        alpha = ((product + 127) // 255).astype(np.uint8)
    return np.array(warped[..., :3]), alpha


def gaussian_blur(
    pixels: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"], radius: float | int
) -> UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]:
    """Blur a picture or a mask.

    Args:
        pixels: (H, W, 3) or (H, W) uint8.
        radius: standard deviation in pixels; 0 changes nothing.

    Returns:
        uint8 of the same shape.
    """
    return np.array(_image(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _checked(pixels: np.ndarray) -> np.ndarray:
    array = np.asarray(pixels)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(
            f"Pixels must be (H, W, 3) uint8 with at least one pixel, got {array.shape} "
            f"{array.dtype}: convert them first"
        )
    return array


def _image(pixels: np.ndarray) -> Image.Image:
    array = np.asarray(pixels)
    if array.ndim != 2 or array.dtype != np.uint8 or array.size == 0:
        array = _checked(array)
    return Image.fromarray(np.ascontiguousarray(array))


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _grow(box: list[int], by: int) -> list[int]:
    top, left, bottom, right = box
    return [top - by, left - by, bottom + by, right + by]


def _frame(drawn: np.ndarray, box: list[int], width: int, color: Color) -> None:
    """Paint a frame of the given width inside a box, in place; parts outside are left out."""
    top, left, bottom, right = box
    for t, le, b, r in (
        (top, left, min(top + width, bottom), right),
        (max(bottom - width, top), left, bottom, right),
        (top, left, bottom, min(left + width, right)),
        (top, max(right - width, left), bottom, right),
    ):
        drawn[max(t, 0) : max(b, 0), max(le, 0) : max(r, 0)] = color


def _layout(
    text: str, size: float | int
) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, list[str], int, int]:
    """Find font, lines, height of a line and width of the widest."""
    # A font is made for each call: one shared by threads may break.
    font = ImageFont.load_default(size)
    lines = [_spelled(line) for line in text.split("\n")]
    if isinstance(font, ImageFont.FreeTypeFont):
        ascent, descent = font.getmetrics()
        line_height = ascent + descent
    else:
        line_height = math.ceil(font.getbbox("Ag")[3])
    return font, lines, line_height, max(math.ceil(font.getlength(line)) for line in lines)


def _spelled(line: str) -> str:
    """Write a line with the letters that the font has."""
    plain = unicodedata.normalize("NFKD", line.translate(_SPELLINGS))
    return "".join(
        letter if " " <= letter <= "~" or letter in _MORE_LETTERS else "?"
        for letter in plain
        if not unicodedata.combining(letter)
    )


def _check_convex(quad: np.ndarray) -> None:
    if quad.shape != (4, 2) or not np.isfinite(quad).all():
        raise ValueError(f"A quadrangle is four finite (top, left) corners, got {quad.tolist()}")
    edges = np.roll(quad, -1, axis=0) - quad
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    if not ((turns > 0).all() or (turns < 0).all()):
        raise ValueError(f"The corners {quad.tolist()} do not make a convex quadrangle")


def _perspective(outputs: np.ndarray, inputs: np.ndarray) -> Float[np.ndarray, "8"]:
    """Solve for the map that takes the output's corners to the input's, in Pillow's order."""
    rows, right_side = [], []
    for (y, x), (v, u) in zip(outputs, inputs, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        right_side += [u, v]
    return np.linalg.solve(np.array(rows, np.float64), np.array(right_side, np.float64))
