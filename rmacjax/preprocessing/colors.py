"""Pixels of every mode to 8-bit sRGB: transparency, deep grey, ink, colour profiles.

The rules are told in `decoding`. Two steps, because resizing goes between them: `opaque` gives
pixels that can be resized, `to_srgb` converts the few that are left.
"""

import io

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

__all__ = ["opaque", "to_srgb"]

_PHOTOMETRIC_TAG = 0x0106


def opaque(image: Image.Image) -> Image.Image:
    """Bring a decoded picture of any mode to L, RGB or CMYK, transparent parts over white.

    Args:
        image: decoded, of any mode that the six file kinds can have.

    Returns:
        A picture of 8 bits a channel that can be resized.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _grey(image)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if mode == "La":
            image = image.convert("LA")
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        if converted is not None:
            return converted
    if mode == "1":
        return image.convert("L")
    return image if mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 0..255."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values.astype(np.uint32) + 128) // 257
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return _positive(image, grey.astype(np.uint8))
    finite = np.isfinite(values)
    wide = np.where(finite, values, 0).astype(np.float64)
    known = wide[finite] if finite.any() else np.zeros(1)
    least, largest = known.min(), known.max()
    if image.mode == "F" and least >= 0 and largest <= 1:
        wide = wide * 255
    elif least < 0 or largest > 255:
        span = largest - least if largest > least else 1.0
        wide = np.where(finite, (wide - least) / span * 255, 0.0)
    return _positive(image, np.rint(wide).astype(np.uint8))


def _positive(image: Image.Image, grey: np.ndarray) -> Image.Image:
    """Undo TIFF's "white is zero", which Pillow does for at most 8 bits only."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC_TAG) == 0:
        grey = 255 - grey
    return Image.fromarray(grey)


# The colour space that a profile is for, as it stands in its header, by Pillow's mode.
_PROFILE_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Convert to RGB, through the profile where it says something else than sRGB.

    Args:
        picture: of mode L, RGB or CMYK.
        profile: the ICC profile that came with it, or nothing.

    Returns:
        A picture of mode RGB.
    """
    is_srgb = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    if profile[16:20] == _PROFILE_SPACES.get(picture.mode) and not is_srgb:
        try:
            converted = ImageCms.profileToProfile(
                picture,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return picture if picture.mode == "RGB" else picture.convert("RGB")
