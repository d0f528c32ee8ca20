"""Reading odd image files, finding them, and drawing: against expectations made without Pillow.

Files are written here byte by byte, or with Pillow where it can write the kind; what they must
decode to is computed in NumPy from the file formats' own rules.
"""

import io
import math
import os
import pickle
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin

from rmacjax import preprocessing
from rmacjax.preprocessing import ImageError, find_images, load_image, read_size
from rmacjax.preprocessing.decoding import DRAFT_MARGIN, MAX_PIXELS
from rmacjax.preprocessing.headers import exif_orientation

# ---------------------------------------------------------------- files made by hand


def picture(height, width, seed=0):
    """Smooth random colours: survives JPEG well, and no two places look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif_block(orientation, order="<"):
    mark = b"II" if order == "<" else b"MM"
    entries = [(0x010F, 2, 4, b"abc\0"), (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))]
    body = mark + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count) + value
    return body + b"\0\0\0\0"


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(height, width, depth, color_type, rows, *, before=b"", after=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    raw = b"".join(b"\0" + row for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + png_chunk(b"IDAT", zlib.compress(raw))
        + after
        + png_chunk(b"IEND", b"")
    )


def tiff_file(
    height, width, bits, data, *, order="<", photometric=1, sample_format=1, samples=1, more=()
):
    """Write an uncompressed TIFF of one strip; ``more`` are (tag, type, count, value) entries."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, (bits, bits) if samples == 2 else bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
        *more,
    ]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = mark + struct.pack(order + "I", 8 + len(data)) + data
    body += struct.pack(order + "H", len(entries))
    for tag, kind, count, value in sorted(entries):
        form = "HH" if kind == 3 else "I"
        if not isinstance(value, tuple):
            value = (value, 0) if kind == 3 else (value,)
        body += struct.pack(order + "HHI" + form, tag, kind, count, *value)
    return body + b"\0\0\0\0"


def icc_profile(space, tags, name=b"made for a test"):
    """Write a display profile (ICC version 2) of a few tags."""
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79
    tags = [(b"desc", text), (b"wtpt", xyz(0.9642, 1.0, 0.8249)), *tags]
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for key, value in tags:
        value += b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", start + len(data), len(value))
        data += value
    size = 128 + len(table) + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28
    header += struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + table + data


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in values))


def gamma_curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
SWAPPED_PROFILE = icc_profile(
    b"RGB ",
    [(b"rXYZ", xyz(*BLUE)), (b"gXYZ", xyz(*GREEN)), (b"bXYZ", xyz(*RED))]
    + [(name, gamma_curve(2.2)) for name in (b"rTRC", b"gTRC", b"bTRC")],
)


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def refused(path, *words):
    """The sentence with which reading a file fails: it names the file, on one line."""
    with pytest.raises(ImageError) as caught:
        load_image(path)
    sentence = str(caught.value)
    assert repr(os.fspath(path)) in sentence and "\n" not in sentence
    for word in words:
        assert word in sentence
    assert caught.value.path == os.fspath(path)
    return sentence


# ---------------------------------------------------------------- orientation

# Where EXIF says that the stored first row and first column lie in the upright picture.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def turned_upright(stored, orientation):
    """Put every stored pixel where EXIF's definition says, one by one."""
    height, width = stored.shape[:2]
    row_side, column_side = SIDES[orientation]
    swapped = row_side in ("left", "right")
    upright = np.zeros((width, height, 3) if swapped else (height, width, 3), np.uint8)
    for i in range(height):
        for j in range(width):
            place = {
                "top": lambda k: ("row", k),
                "bottom": lambda k: ("row", upright.shape[0] - 1 - k),
                "left": lambda k: ("column", k),
                "right": lambda k: ("column", upright.shape[1] - 1 - k),
            }
            where = dict([place[row_side](i), place[column_side](j)])
            upright[where["row"], where["column"]] = stored[i, j]
    return upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_pictures_are_turned_upright_in_every_kind_that_can_say_so(tmp_path, kind, orientation):
    stored = picture(13, 20)
    exif = exif_block(orientation)
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        exif = Image.Exif()
        exif[0x0112] = orientation
    if kind == "JPEG":
        exif = b"Exif\0\0" + exif
        options = {"quality": 100, "subsampling": 0}
    path = write(tmp_path, "a", encoded(Image.fromarray(stored), kind, exif=exif, **options))
    expected = turned_upright(stored, orientation)
    loaded = load_image(path)
    tolerance = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(loaded.pixels.astype(int), expected, atol=tolerance)
    assert (loaded.height_px, loaded.width_px) == expected.shape[:2] == read_size(path)
    # Boxes mean the upright picture.
    cut = load_image(path, box_px=(2, 1, 9, 12))
    np.testing.assert_allclose(cut.pixels.astype(int), expected[2:9, 1:12], atol=tolerance)
    assert cut[1:] == loaded[1:]
    small = load_image(path, 10)
    assert max(small.pixels.shape) == 10 and small[1:] == loaded[1:]
    np.testing.assert_allclose(
        small.pixels.astype(int), preprocessing.resize(expected, 10), atol=tolerance + 1
    )


def test_the_turn_of_a_png_may_stand_behind_its_pixels(tmp_path):
    rows = [bytes(range(30)), bytes(range(30, 60))]
    data = png_file(2, 10, 8, 2, rows, after=png_chunk(b"eXIf", exif_block(6, ">")))
    path = write(tmp_path, "late.png", data)
    stored = np.arange(60, dtype=np.uint8).reshape(2, 10, 3)
    np.testing.assert_array_equal(load_image(path).pixels, turned_upright(stored, 6))
    assert read_size(path) == (10, 2)


@given(st.binary(max_size=64), st.integers(0, 40))
def test_damaged_exif_means_upright(noise, length):
    block = exif_block(6)
    assert exif_orientation(block) == 6
    assert exif_orientation(block[: min(length, 29)]) == 1
    assert exif_orientation(exif_block(9)) == exif_orientation(exif_block(0)) == 1
    assert 1 <= exif_orientation(b"II*\0" + noise) <= 8
    assert 1 <= exif_orientation(noise) <= 8


# ---------------------------------------------------------------- pixels of every kind


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_grey_of_16_bits_is_scaled_not_cut(tmp_path, order, kind):
    ramp = np.linspace(0, 65535, 40).astype(np.uint16).reshape(4, 10)
    if kind == "PNG":
        data = png_file(4, 10, 16, 0, [row.astype(">u2").tobytes() for row in ramp])
    else:
        data = tiff_file(4, 10, 16, ramp.astype(order + "u2").tobytes(), order=order)
    pixels = load_image(write(tmp_path, "ramp", data)).pixels
    np.testing.assert_array_equal(pixels, np.rint(ramp / 257)[..., None].repeat(3, 2))


def test_white_may_be_zero(tmp_path):
    ramp = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    path = write(tmp_path, "a", tiff_file(3, 4, 16, ramp.tobytes(), photometric=0))
    np.testing.assert_array_equal(load_image(path).pixels[..., 1], 255 - np.rint(ramp / 257))
    path = write(tmp_path, "b", tiff_file(3, 4, 8, bytes(range(12)), photometric=0))
    np.testing.assert_array_equal(load_image(path).pixels[..., 1].ravel(), 255 - np.arange(12))


def test_wide_integers_and_floats_are_scaled_as_documented(tmp_path):
    def grey(values, sample_format):
        values = np.asarray(values)
        data = tiff_file(1, values.size, 32, values.tobytes(), sample_format=sample_format)
        return load_image(write(tmp_path, "a", data)).pixels[0, :, 0].tolist()

    assert grey(np.array([0.0, 0.5, 1.0], "<f4"), 3) == [0, 128, 255]
    assert grey(np.array([0.0, 100.4, 255.0], "<f4"), 3) == [0, 100, 255]
    assert grey(np.array([-1.0, 0.0, 3.0], "<f4"), 3) == [0, 64, 255]
    assert grey(np.array([np.nan, 0.25, np.inf], "<f4"), 3) == [0, 64, 0]
    assert grey(np.array([-2.0, np.nan, 2.0], "<f4"), 3) == [0, 0, 255]
    assert grey(np.array([-7.0, -7.0], "<f4"), 3) == [0, 0]
    assert grey(np.array([-1e-40, 1e-40], "<f4"), 3) == [0, 255]
    assert grey(np.array([0x7F800001, 0x3F800000], "<u4"), 3) == [0, 255]  # a signalling NaN
    assert grey(np.array([np.nan, np.nan], "<f4"), 3) == [0, 0]
    assert grey(np.array([0, 7, 200], "<i4"), 2) == [0, 7, 200]
    assert grey(np.array([-(2**31), 0, 2**31 - 1], "<i4"), 2) == [0, 128, 255]


def test_cmyk_is_ink_not_light(tmp_path):
    inks = np.zeros((32, 40, 4), np.uint8)
    inks[:16, :20, 0] = 255  # cyan
    inks[:16, 20:, 1] = 200  # some magenta
    inks[16:, :20, 3] = 255  # black
    expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
    image = Image.fromarray(inks, mode="CMYK")
    # Pillow writes JPEGs as Adobe does, inverted and marked so.
    jpeg = encoded(image, "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in jpeg
    for data in (jpeg, encoded(image, "TIFF")):
        pixels = load_image(write(tmp_path, "a", data)).pixels
        np.testing.assert_allclose(pixels.astype(int), expected, atol=6)
    small = load_image(write(tmp_path, "a", jpeg), 8).pixels
    np.testing.assert_allclose(small[1, 1].astype(int), (0, 255, 255), atol=6)


def test_transparent_parts_lie_on_white(tmp_path):
    colours = picture(6, 7)
    alpha = np.linspace(0, 255, 42).astype(np.uint8).reshape(6, 7)
    share = alpha[..., None] / 255
    expected = colours * share + 255 * (1 - share)
    rgba = Image.fromarray(np.dstack([colours, alpha]))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = load_image(write(tmp_path, "a", encoded(rgba, kind, **options))).pixels
        np.testing.assert_allclose(pixels, expected, atol=1)
    grey = np.dstack([colours[..., 0], alpha])
    pixels = load_image(write(tmp_path, "a", encoded(Image.fromarray(grey), "PNG"))).pixels
    np.testing.assert_allclose(pixels[..., 2], expected[..., 0], atol=1)


def test_premultiplied_grey_lies_on_white(tmp_path):
    # Grey 200 at alpha 255, 128 and 0, stored times alpha.
    stored = bytes([200, 255, 100, 128, 0, 0])
    data = tiff_file(1, 3, 8, stored, samples=2, more=[(338, 3, 1, 1)])
    pixels = load_image(write(tmp_path, "a", data)).pixels
    np.testing.assert_allclose(pixels[0, :, 0], [200, 100 + 127, 255], atol=1)


def test_transparent_colours_lie_on_white(tmp_path):
    palette = png_chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 0, 0, 0, 255]))
    seen = png_chunk(b"tRNS", bytes([255, 0, 128]))
    rows = [bytes([0, 1, 2])]
    data = png_file(1, 3, 8, 3, rows, before=palette + seen)
    pixels = load_image(write(tmp_path, "palette", data)).pixels
    np.testing.assert_allclose(
        pixels[0].astype(int), [[10, 20, 30], [255, 255, 255], [127, 127, 255]], atol=1
    )
    data = png_file(1, 3, 8, 0, rows, before=png_chunk(b"tRNS", b"\0\1"))
    assert load_image(write(tmp_path, "grey", data)).pixels[0, :, 0].tolist() == [0, 255, 2]
    rows = [bytes([1, 2, 3, 4, 5, 6])]
    data = png_file(1, 2, 8, 2, rows, before=png_chunk(b"tRNS", b"\0\4\0\5\0\6"))
    pixels = load_image(write(tmp_path, "colour", data)).pixels
    assert pixels[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    rows = [struct.pack(">3H", 0, 25700, 65535)]
    data = png_file(1, 3, 16, 0, rows, before=png_chunk(b"tRNS", struct.pack(">H", 0)))
    assert load_image(write(tmp_path, "deep", data)).pixels[0, :, 0].tolist() == [255, 100, 255]
    # One bit: 1 0 1 0, black is transparent.
    data = png_file(1, 4, 1, 0, [b"\xa0"], before=png_chunk(b"tRNS", b"\0\0"))
    assert load_image(write(tmp_path, "bit", data)).pixels[0, :, 0].tolist() == [255] * 4
    data = png_file(1, 4, 1, 0, [b"\xa0"])
    assert load_image(write(tmp_path, "bit", data)).pixels[0, :, 0].tolist() == [255, 0, 255, 0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(tmp_path, kind):
    frames = [Image.new("RGB", (12, 8), color) for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    path = write(tmp_path, "moving", data)
    pixels = load_image(path).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to([255, 0, 0], (8, 12, 3)))
    assert read_size(path) == (8, 12)


def test_a_gif_may_be_transparent(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    image.putpalette([9, 9, 9, 50, 60, 70, 90, 80, 70])
    path = write(tmp_path, "a.gif", encoded(image, "GIF", transparency=1))
    expected = [[[9, 9, 9], [255, 255, 255]], [[90, 80, 70], [255, 255, 255]]]
    assert load_image(path).pixels.tolist() == expected


def test_a_webp_of_every_sort_tells_its_size(tmp_path):
    image = Image.fromarray(picture(33, 47))
    clear = image.convert("RGBA")
    clear.putalpha(100)
    for number, (kind, options) in enumerate(
        [(image, {}), (image, {"lossless": True}), (clear, {}), (clear, {"lossless": True})]
    ):
        path = write(tmp_path, f"{number}", encoded(kind, "WEBP", **options))
        assert read_size(path) == load_image(path).pixels.shape[:2] == (33, 47)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "GIF", "TIFF"])
def test_palettes_are_looked_up(tmp_path, kind):
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10)
    colours = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette(colours.tobytes())
    path = write(tmp_path, "a", encoded(image, kind))
    np.testing.assert_array_equal(load_image(path).pixels, colours[indices])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs(tmp_path, compression):
    pixels = picture(20, 30)
    path = write(tmp_path, "a", encoded(Image.fromarray(pixels), "TIFF", compression=compression))
    np.testing.assert_array_equal(load_image(path).pixels, pixels)


def test_colours_deeper_than_8_bits(tmp_path):
    deep = np.random.default_rng(5).integers(0, 65536, (3, 5, 3), dtype=np.uint16)
    data = png_file(3, 5, 16, 2, [row.astype(">u2").tobytes() for row in deep])
    pixels = load_image(write(tmp_path, "a", data)).pixels
    np.testing.assert_allclose(pixels, deep / 257, atol=1)


def test_lab_is_converted(tmp_path):
    # L = 255 is white; a = b = 0 is grey.
    lab = np.full((1, 2, 3), (255, 0, 0), np.uint8)
    lab[0, 1, 0] = 0
    path = write(tmp_path, "a", encoded(Image.fromarray(lab, mode="LAB"), "TIFF"))
    np.testing.assert_allclose(load_image(path).pixels[0].astype(int), [[255] * 3, [0] * 3], atol=2)


# ---------------------------------------------------------------- colour profiles


def test_profiles_other_than_srgb_are_converted(tmp_path):
    pixels = picture(10, 12)
    data = encoded(Image.fromarray(pixels), "PNG", icc_profile=SWAPPED_PROFILE)
    converted = load_image(write(tmp_path, "a", data)).pixels.astype(int)
    # Its red is sRGB's blue; its gamma of 2.2 is close to sRGB's curve, save in the shadows.
    bright = pixels > 60
    difference = np.abs(converted - pixels[..., ::-1])[bright[..., ::-1]]
    assert difference.mean() < 3 and difference.max() < 12
    assert np.abs(converted - pixels).mean() > 20

    linear = icc_profile(b"GRAY", [(b"kTRC", gamma_curve(1.0))])
    grey = np.array([[0, 55, 128, 255]], np.uint8)
    data = encoded(Image.fromarray(grey), "PNG", icc_profile=linear)
    # sRGB's own curve, written out.
    light = grey[0] / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    pixels = load_image(write(tmp_path, "a", data)).pixels
    np.testing.assert_allclose(pixels[0, :, 1], expected, atol=2)


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        SWAPPED_PROFILE[:150],
        b"not a profile",
        SWAPPED_PROFILE.replace(b"RGB XYZ ", b"CMYKXYZ "),
    ],
    ids=["sRGB", "cut", "nonsense", "for other pixels"],
)
def test_srgb_and_broken_profiles_change_nothing(tmp_path, profile):
    pixels = picture(10, 12)
    data = encoded(Image.fromarray(pixels), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(load_image(write(tmp_path, "a", data)).pixels, pixels)


# ---------------------------------------------------------------- size


def cubic_weights(size, result):
    """Weights of an antialiased cubic filter (a = -1/2), pixel by pixel; (result, size)."""
    scale = max(size / result, 1)

    def kernel(x):
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    weights = np.zeros((result, size))
    for i in range(result):
        centre = (i + 0.5) * size / result
        for j in range(size):
            weights[i, j] = kernel((j + 0.5 - centre) / scale)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (50, 50)])
def test_resizing_is_an_antialiased_cubic_filter(shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = preprocessing.resize_shape(*shape, 23)
    expected = np.einsum(
        "ij,jkc,lk->ilc",
        cubic_weights(shape[0], height),
        pixels.astype(np.float64),
        cubic_weights(shape[1], width),
    )
    small = preprocessing.resize(pixels, 23)
    assert small.dtype == np.uint8 and small.shape == (height, width, 3)
    np.testing.assert_allclose(small, np.clip(expected, 0, 255), atol=1.5)
    small = preprocessing.resize(pixels.astype(np.float64), 23)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, expected, atol=0.01)


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 2000))
def test_shapes_keep_the_aspect(height, width, long_side):
    h, w = preprocessing.resize_shape(height, width, long_side)
    if max(height, width) <= long_side:
        assert (h, w) == (height, width)
    else:
        assert max(h, w) == long_side and min(h, w) >= 1
        exact = min(height, width) * long_side / max(height, width)
        assert min(h, w) == max(1, math.floor(exact + 0.5))
        assert (h >= w) == (height >= width) or h == w


def test_nothing_is_enlarged(tmp_path):
    path = write(tmp_path, "a.png", encoded(Image.fromarray(picture(9, 5)), "PNG"))
    np.testing.assert_array_equal(load_image(path, 100).pixels, picture(9, 5))
    np.testing.assert_array_equal(load_image(path, 9).pixels, picture(9, 5))
    assert load_image(path, 100, box_px=(1, 1, 4, 4)).pixels.shape == (3, 3, 3)


def test_the_box_is_cut_before_resizing(tmp_path):
    pixels = picture(60, 80)
    path = write(tmp_path, "a.png", encoded(Image.fromarray(pixels), "PNG"))
    loaded = load_image(path, 15, box_px=(10, 20, 50, 50))
    np.testing.assert_array_equal(loaded.pixels, preprocessing.resize(pixels[10:50, 20:50], 15))
    assert loaded[1:] == (60, 80)
    np.testing.assert_array_equal(
        preprocessing.crop(pixels, (10, 20, 50, 50)), pixels[10:50, 20:50]
    )
    for box in [(0, 0, 61, 80), (5, 5, 5, 9), (-1, 0, 3, 3)]:
        with pytest.raises(ValueError, match="box"):
            load_image(path, box_px=box)
        with pytest.raises(ValueError, match="box"):
            preprocessing.crop(pixels, box)


@pytest.mark.parametrize("orientation", [1, 6])
def test_big_jpegs_are_decoded_at_reduced_size_without_harm(tmp_path, orientation):
    rng = np.random.default_rng(2)
    coarse = Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    image = coarse.resize((1303, 901), Image.Resampling.BICUBIC)
    exif = b"Exif\0\0" + exif_block(orientation)
    path = write(tmp_path, "a.jpg", encoded(image, "JPEG", quality=90, exif=exif))
    whole = load_image(path)
    long_side = 1303 // 4 - 20
    assert DRAFT_MARGIN * long_side <= 1303 // 2
    small = load_image(path, long_side)
    assert small[1:] == whole[1:] == ((1303, 901) if orientation == 6 else (901, 1303))
    expected = preprocessing.resize(whole.pixels, long_side)
    difference = np.abs(small.pixels.astype(int) - expected)
    assert difference.mean() < 1.5 and np.percentile(difference, 99.9) < 8
    # A box is cut at full resolution.
    cut = load_image(path, 30, box_px=(100, 200, 300, 420))
    np.testing.assert_array_equal(
        cut.pixels, preprocessing.resize(whole.pixels[100:300, 200:420], 30)
    )
    # Not shifted: a pixel to any side fits worse.
    moved = [
        np.abs(small.pixels.astype(int) - np.roll(expected, 1, axis)).mean() for axis in (0, 1)
    ]
    assert min(moved) > 5 * difference.mean()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 20000), (20000, 20), (1, 300)])
def test_odd_shapes(tmp_path, height, width):
    pixels = np.full((height, width, 3), (9, 99, 199), np.uint8)
    for kind in ("PNG", "JPEG"):
        path = write(tmp_path, kind, encoded(Image.fromarray(pixels), kind, quality=100))
        loaded = load_image(path, 1024)
        assert loaded.pixels.shape[:2] == preprocessing.resize_shape(height, width, 1024)
        assert loaded[1:] == (height, width) == read_size(path)
        np.testing.assert_allclose(loaded.pixels[0, 0].astype(int), (9, 99, 199), atol=2)


def test_a_long_side_is_a_positive_number(tmp_path):
    path = write(tmp_path, "a.png", encoded(Image.fromarray(picture(3, 3)), "PNG"))
    for call in (
        lambda: load_image(path, 0),
        lambda: preprocessing.resize_shape(3, 3, -1),
        lambda: preprocessing.resize(picture(3, 3), 0),
    ):
        with pytest.raises(ValueError, match="long_side must be at least 1"):
            call()


# ---------------------------------------------------------------- what is refused


def test_a_bomb_is_refused_by_its_header(tmp_path):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100)))
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\x7f\x3e\0" * 2  # 16000 x 16000
    gif = b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 60000, 60000, 0) + b"\x08\x01\0\0;"
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    tiff = tiff_file(60000, 60000, 8, b"x" * 10)
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    for name, data in dict(png=png, webp=webp, gif=gif, bmp=bmp, tiff=tiff, jpeg=jpeg).items():
        path = write(tmp_path, name, bytes(data))
        refused(path, "claims", f"{MAX_PIXELS:,}", "leave it out")
        with pytest.raises(ImageError, match="claims"):
            read_size(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_an_error_never_half_a_picture(tmp_path, kind, share):
    noise = np.random.default_rng(4).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    data = encoded(image.quantize() if kind == "GIF" else image, kind)
    refused(write(tmp_path, "cut.jpg", data[: int(share * len(data))]), "copy")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"Dear diary, today I took no photo.", "but text"),
        (b"<!DOCTYPE html><html><body>404", "but a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "but a HEIC photo"),
        (b"%PDF-1.7 ...", "but a PDF document"),
        (b"BMW is a car, not a bitmap, whatever its name", "but text"),
        (b"\x01\x02\x03\x04", "but something else"),
        (b"\xff\xd8\xff", "copy"),
        (b"\x89PNG\r\n\x1a\n", "copy"),
        (b"RIFF\x04\0\0\0WEBP", "copy"),
        (b"II*\0", "copy"),
        (b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 - 1), "copy"),
        (b"GIF89a", "copy"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "copy"),
    ],
)
def test_files_that_are_no_images_say_what_they_are(tmp_path, data, words):
    refused(write(tmp_path, "photo.jpg", data), words)


def test_camera_raw_files_are_refused_not_shown_as_thumbnails(tmp_path):
    data = tiff_file(3, 4, 8, bytes(12), more=[(254, 4, 1, 1)])
    refused(write(tmp_path, "photo.nef", data), "camera raw", "export")


def test_what_the_system_refuses(tmp_path, monkeypatch):
    refused(tmp_path / "none.jpg", "no file or folder", "check the path")
    refused(tmp_path, "is a folder")
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    refused(tmp_path / "broken.jpg", "broken link to 'gone.jpg'")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    refused(tmp_path / "loop.jpg", "leads back to itself")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "not a regular file")
    refused(tmp_path / ("x" * 300 + ".jpg"), "cannot be opened")
    refused(Path(str(tmp_path / "nul") + "\0.jpg"), "cannot be opened")
    path = write(tmp_path, "secret.jpg", b"x")
    # As root nothing is forbidden, so the refusal comes from a place that forbids.
    real = os.stat

    def forbidden(file, *args, **options):
        if os.fspath(file) == os.fspath(path):
            raise PermissionError(13, "Permission denied", file)
        return real(file, *args, **options)

    monkeypatch.setattr(os, "stat", forbidden)
    refused(path, "No permission to read", "permissions")


@pytest.mark.parametrize("name", ["two\nlines.jpg", "smile \U0001f600.jpg", 'it\'s "so".jpg'])
def test_strange_names_are_read_and_quoted(tmp_path, name):
    path = write(tmp_path, name, b"text")
    refused(path, "but text")
    path.write_bytes(encoded(Image.fromarray(picture(4, 5)), "PNG"))
    assert load_image(path).pixels.shape == (4, 5, 3)
    assert find_images(tmp_path).files == [str(path)]


def test_names_that_are_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    Path(path).write_bytes(b"text")
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "caf\\udce9.jpg" in str(caught.value) and str(caught.value).encode("utf-8")
    assert find_images(tmp_path).files == [path]


def test_the_kind_is_told_by_the_bytes_not_by_the_name(tmp_path):
    path = write(tmp_path, "liar.jpg", encoded(Image.fromarray(picture(4, 5)), "GIF"))
    assert load_image(path).pixels.shape == (4, 5, 3)


def test_images_in_memory():
    pixels = picture(30, 40)
    png = preprocessing.encode_png(pixels)
    np.testing.assert_array_equal(preprocessing.decode_image(png), pixels)
    assert preprocessing.decode_image(png, 10).shape == (8, 10, 3)
    with pytest.raises(ImageError, match=r"The data \(4 bytes\) is not an image"):
        preprocessing.decode_image(b"text")
    with pytest.raises(ImageError, match="cut short"):
        preprocessing.decode_image(preprocessing.encode_jpeg(pixels)[:-200])


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("a sentence", "a/path")))
    assert (str(error), error.path, type(error)) == ("a sentence", "a/path", ImageError)
    assert isinstance(error, OSError)


# ---------------------------------------------------------------- warnings and threads


def warning_tiff():
    """Write a file whose metadata make Pillow warn."""
    return tiff_file(3, 4, 8, bytes(12), more=[(274, 3, 2, 1)])


def test_pillows_warnings_stay_inside(tmp_path):
    path = write(tmp_path, "odd.tif", warning_tiff())
    with open(path, "rb") as file, pytest.warns(UserWarning, match="Metadata Warning"):
        TiffImagePlugin.TiffImageFile(file).load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert load_image(path).pixels.shape == (3, 4, 3)
        assert read_size(path) == (3, 4)
        assert warnings.filters == before


def test_many_threads_read_at_once(tmp_path):
    pixels = [picture(30 + i, 40, seed=i) for i in range(8)]
    paths = [
        write(tmp_path, f"{i}", encoded(Image.fromarray(p), kind, **options))
        for i, (p, (kind, options)) in enumerate(
            zip(
                pixels,
                2 * [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})],
                strict=True,
            )
        )
    ]
    odd = write(tmp_path, "odd", warning_tiff())
    start = threading.Barrier(8)
    before = list(warnings.filters)

    def work(i):
        start.wait()
        for _ in range(10):
            np.testing.assert_array_equal(load_image(paths[i]).pixels, pixels[i])
            load_image(odd)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert warnings.filters == before


# ---------------------------------------------------------------- finding files


def test_folders_are_listed_depth_first_by_name(tmp_path):
    png = encoded(Image.fromarray(picture(2, 2)), "PNG")
    for name in ["b/2.jpg", "b/10.jpg", "b/a/z.PNG", "a.jpg", "c.txt", "photo", "broken.jpeg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    (tmp_path / "c.txt").write_text("a text")
    (tmp_path / "broken.jpeg").write_text("no image at all")
    (tmp_path / "photo.heic").write_text("cannot be read, but should be told of")
    (tmp_path / ".hidden.jpg").write_bytes(png)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jpg").write_bytes(png)
    os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    names = [os.path.relpath(file, tmp_path) for file in found.files]
    assert names == [
        *("a.jpg", "b/10.jpg", "b/2.jpg", "b/a/z.PNG", "broken.jpeg", "photo", "photo.heic")
    ]
    assert found.problems == []


def test_named_files_are_taken_whatever_they_are(tmp_path):
    text = write(tmp_path, "c.txt", b"a text")
    image = write(tmp_path, "a.jpg", b"")
    found = find_images([text, str(tmp_path), image, tmp_path / "none.jpg"])
    assert found.files == [str(text), str(image)]
    assert [path for path, _ in found.problems] == [str(tmp_path / "none.jpg")]
    assert "no file or folder" in found.problems[0][1]
    assert find_images([]) == ([], [])


def test_links_are_followed_once(tmp_path):
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    write(inner, "x.jpg", b"x")
    (inner / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(inner)
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "self").symlink_to("self")
    found = find_images(tmp_path)
    names = [os.path.relpath(file, tmp_path) for file in found.files]
    assert names == ["a/inner/x.jpg", "gone.jpg", "self.png"]
    assert found.problems == []
    refused(found.files[1], "broken link")


def test_deep_folders(tmp_path):
    path = tmp_path
    for _ in range(400):
        path = path / "d"
        path.mkdir()
    write(path, "x.jpg", b"x")
    assert find_images(tmp_path).files == [str(path / "x.jpg")]


def test_a_folder_that_cannot_be_read_is_told_of(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg", b"x")
    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.scandir

    def forbidden(path):
        if os.fspath(path) == os.fspath(closed):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    found = find_images(tmp_path)
    assert found.files == [str(tmp_path / "a.jpg")]
    assert found.problems[0][0] == str(closed)
    assert "No permission" in found.problems[0][1] and repr(str(closed)) in found.problems[0][1]


# ---------------------------------------------------------------- drawing


def test_encoding_and_back(tmp_path):
    pixels = picture(30, 40)
    np.testing.assert_array_equal(
        preprocessing.decode_image(preprocessing.encode_png(pixels)), pixels
    )
    jpeg = preprocessing.encode_jpeg(pixels, 95)
    assert np.abs(preprocessing.decode_image(jpeg).astype(int) - pixels).mean() < 3
    assert len(preprocessing.encode_jpeg(pixels, 20)) < len(jpeg)
    preprocessing.save_png(tmp_path / "a.png", pixels[..., 0])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").pixels[..., 2], pixels[..., 0])
    with pytest.raises(ValueError, match="quality must be 1 to 100, got 0"):
        preprocessing.encode_jpeg(pixels, 0)
    with pytest.raises(ValueError, match="65500"):
        preprocessing.encode_jpeg(np.zeros((1, 70000, 3), np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        preprocessing.encode_png(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(OSError, match="No such file"):
        preprocessing.save_png(tmp_path / "no" / "a.png", pixels)


def test_a_box_is_a_bright_line_between_dark_ones():
    pixels = np.full((60, 80, 3), 128, np.uint8)
    original = pixels.copy()
    drawn = preprocessing.draw_box(pixels, (10, 20, 50, 70), (255, 0, 0), 3)
    np.testing.assert_array_equal(pixels, original)
    inside = np.zeros((60, 80), bool)
    inside[10:50, 20:70] = True
    inside[13:47, 23:67] = False
    np.testing.assert_array_equal((drawn == (255, 0, 0)).all(-1), inside)
    halo = np.zeros((60, 80), bool)
    halo[9:51, 19:71] = True
    halo[14:46, 24:66] = False
    np.testing.assert_array_equal((drawn == 0).all(-1), halo & ~inside)
    assert (drawn[~halo] == 128).all()


def test_boxes_at_the_edge_and_tiny_ones_stay_visible():
    pixels = np.zeros((20, 30, 3), np.uint8)
    whole = preprocessing.draw_box(pixels, (0, 0, 20, 30), (255, 255, 255), 2)
    assert (
        (whole[:2] == 255).all() and (whole[:, -2:] == 255).all() and (whole[5:15, 5:25] == 0).all()
    )
    outside = preprocessing.draw_box(pixels, np.array([-9.0, -9.0, 99.0, 99.0]), (255, 255, 255), 2)
    np.testing.assert_array_equal(whole, outside)
    tiny = preprocessing.draw_box(pixels, (5, 5, 6, 6), (255, 255, 255), 3)
    assert (tiny[5, 5] == 255).all() and tiny.sum() == 3 * 255


def test_text_stays_in_its_box():
    pixels = np.zeros((120, 300, 3), np.uint8)
    for text in ["Quick", "gy|\nsecond line", "Crème brûlée – 3 × ß", "中文 \udce9 \t"]:
        height, width = preprocessing.text_size(text, 20)
        drawn = preprocessing.draw_text(pixels, text, (7, 11), 20, (255, 255, 255))
        rows, columns = np.nonzero(drawn.any(-1))
        assert rows.min() >= 7 and rows.max() < 7 + height
        assert columns.min() >= 11 - 2 and columns.max() < 11 + width + 2
        assert pixels.max() == 0
    filled = preprocessing.draw_text(pixels, "a", (7, 11), 20, (9, 9, 9), background=(0, 0, 50))
    height, width = preprocessing.text_size("a", 20)
    assert (filled[7 : 7 + height, 11 : 11 + width, 2] > 0).all()
    assert filled[..., 2].astype(bool).sum() == height * width
    assert preprocessing.text_size("twice\nas high", 20)[0] == 2 * height
    two = preprocessing.draw_text(pixels, "H\nH", (7, 11), 20)
    np.testing.assert_array_equal(two[7 : 7 + height], two[7 + height : 7 + 2 * height])
    assert two[7 + height :].any()


def test_letters_that_the_font_lacks_are_spelled():
    blank = np.zeros((40, 200, 3), np.uint8)

    def drawn(text):
        return preprocessing.draw_text(blank, text, (0, 0), 20)

    np.testing.assert_array_equal(drawn("Crème – ß"), drawn("Creme - ss"))
    np.testing.assert_array_equal(drawn("中"), drawn("?"))


def inside_share(shape, points, steps=24):
    """Share of each pixel inside a polygon, by testing many points of each (even-odd rule)."""
    grid = (np.arange(steps) + 0.5) / steps
    y = (np.arange(shape[0])[:, None] + grid).reshape(-1, 1)
    x = (np.arange(shape[1])[:, None] + grid).reshape(1, -1)
    inside = np.zeros((y.size, x.size), bool)
    for (y0, x0), (y1, x1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside.reshape(shape[0], steps, shape[1], steps).mean((1, 3))


@pytest.mark.parametrize(
    "points",
    [
        [(2, 3), (2, 12), (9, 12), (9, 3)],
        [(1.25, 2.5), (3.5, 14.75), (9.0, 8.25)],
        [(-5, -5), (4, 30), (30, 6)],
        [(1, 1), (1, 14), (9, 14), (5, 8), (9, 1)],
        [(2, 3), (9, 3), (9, 12), (2, 12)],
    ],
)
def test_polygons_cover_what_they_enclose(points):
    mask = preprocessing.polygon_mask((11, 17), np.array(points))
    assert mask.dtype == np.uint8
    np.testing.assert_allclose(mask / 255, inside_share((11, 17), points), atol=0.05)


def test_polygons_outside_cover_nothing():
    for points in ([(20, 20), (30, 20), (30, 30)], [(-9, 2), (-3, 2), (-3, 9)], [(1, 1), (1, 9)]):
        assert not preprocessing.polygon_mask((11, 17), np.array(points)).any()


def test_warping_to_its_own_corners_changes_nothing():
    pixels = picture(30, 40)
    corners = np.array([(0, 0), (0, 40), (30, 40), (30, 0)])
    warped, alpha = preprocessing.warp_perspective(pixels, corners, (30, 40))
    np.testing.assert_allclose(warped.astype(int), pixels, atol=1)
    assert (alpha == 255).all()
    moved, alpha = preprocessing.warp_perspective(pixels, corners + np.array([5, 7]), (50, 60))
    np.testing.assert_allclose(moved[5:35, 7:47].astype(int), pixels, atol=1)
    assert (alpha[5:35, 7:47] == 255).all() and alpha.astype(int).sum() == 255 * 30 * 40


def test_warping_takes_corners_and_crossing_diagonals_along():
    # In perspective the crossing of the diagonals stays the crossing of the diagonals.
    pixels = np.zeros((81, 121, 3), np.uint8)
    pixels[36:45, 56:65] = 255
    quad = np.array([(20.0, 30.0), (35.0, 160.0), (110.0, 140.0), (150.0, 25.0)])
    warped, alpha = preprocessing.warp_perspective(pixels, quad, (170, 180))
    a, b = quad[2] - quad[0], quad[3] - quad[1]
    t = np.linalg.solve(np.stack([a, -b], 1), quad[1] - quad[0])[0]
    centre = quad[0] + t * a
    weights = warped[..., 0].astype(float) * (alpha > 0)
    y, x = np.mgrid[:170, :180] + 0.5
    found = np.array([(weights * y).sum(), (weights * x).sum()]) / weights.sum()
    np.testing.assert_allclose(found, centre, atol=0.7)
    np.testing.assert_allclose(alpha / 255, inside_share((170, 180), quad.tolist(), 6), atol=0.2)
    for corner, color in zip(
        quad, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], strict=True
    ):
        y, x = np.round(corner + 0.12 * (centre - corner)).astype(int)
        corners = np.zeros((80, 120, 3), np.uint8)
        corners[:40, :60], corners[:40, 60:] = (255, 0, 0), (0, 255, 0)
        corners[40:, 60:], corners[40:, :60] = (0, 0, 255), (255, 255, 0)
        warped, _ = preprocessing.warp_perspective(corners, quad, (170, 180))
        np.testing.assert_allclose(warped[y, x].astype(int), color, atol=2)


def test_no_dark_seam_at_the_border_and_no_flicker():
    white = np.full((300, 400, 3), 250, np.uint8)
    quad = np.array([(10.3, 12.7), (14.2, 90.4), (70.9, 80.1), (66.6, 8.8)])
    warped, alpha = preprocessing.warp_perspective(white, quad, (90, 100))
    assert (warped[alpha > 0] >= 249).all()
    checks = ((np.indices((300, 400)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, 2)
    warped, alpha = preprocessing.warp_perspective(checks, quad, (90, 100))
    inside = warped[alpha == 255].astype(int)
    assert abs(inside.mean() - 127.5) < 2 and inside.std() < 12


def test_alpha_of_the_picture_is_carried_along():
    pixels = np.full((20, 20, 4), 200, np.uint8)
    pixels[:, :10, 3], pixels[:, 10:, 3] = 0, 255
    corners = np.array([(0, 0), (0, 20), (20, 20), (20, 0)])
    _, alpha = preprocessing.warp_perspective(pixels, corners, (20, 20))
    np.testing.assert_array_equal(alpha[:, :10], 0)
    np.testing.assert_array_equal(alpha[:, 10:], 255)


def test_quadrangles_must_be_convex():
    pixels = picture(5, 5)
    for quad in (
        [(0, 0), (0, 9), (0, 5), (9, 0)],
        [(0, 0), (9, 9), (0, 9), (9, 0)],
        [(0, 0), (0, np.nan), (9, 9), (9, 0)],
        [(3, 3)] * 4,
    ):
        with pytest.raises(ValueError, match="quadrangle"):
            preprocessing.warp_perspective(pixels, np.array(quad), (9, 9))
    with pytest.raises(ValueError, match="Pixels to warp"):
        corners = np.array([(0, 0), (0, 9), (9, 9), (9, 0)])
        preprocessing.warp_perspective(np.zeros((5, 5, 2), np.uint8), corners, (9, 9))


def test_blur():
    impulse = np.zeros((41, 41), np.uint8)
    impulse[20, 20] = 255
    sharp = np.kron(impulse[15:26, 15:26], np.ones((9, 9), np.uint8))
    blurred = preprocessing.gaussian_blur(sharp, 4).astype(float)
    y = np.arange(blurred.shape[0])[:, None]
    weights = blurred / blurred.sum()
    centre = (weights * y).sum()
    spread = (weights * (y - centre) ** 2).sum()
    np.testing.assert_allclose(spread, 16 + (81 - 1) / 12, rtol=0.1)
    np.testing.assert_array_equal(preprocessing.gaussian_blur(picture(9, 9), 0), picture(9, 9))
    flat = np.full((9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(preprocessing.gaussian_blur(flat, 3), flat)
