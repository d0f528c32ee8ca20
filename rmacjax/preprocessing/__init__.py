"""Photos in, pictures out: the package's only door to Pillow.

`decoding` turns an image file into RGB pixels (with `headers` for what the first bytes tell,
`colors` for pixels of every mode and `opening` for the sentences when a file fails), `listing`
finds the image files of a folder, `padding` puts images of many sizes into one array, and `drawing`
draws on pixels and encodes them. Pixels are NumPy arrays, (H, W, 3) uint8, red first.
"""

from rmacjax.preprocessing.decoding import (
    MAX_PIXELS,
    LoadedImage,
    crop,
    decode_image,
    load_image,
    read_size,
    resize,
    resize_shape,
)
from rmacjax.preprocessing.drawing import (
    draw_box,
    draw_text,
    encode_jpeg,
    encode_png,
    gaussian_blur,
    polygon_mask,
    save_png,
    text_size,
    warp_perspective,
)
from rmacjax.preprocessing.listing import IMAGE_SUFFIXES, FoundImages, find_images
from rmacjax.preprocessing.opening import ImageError
from rmacjax.preprocessing.padding import SIDES, bucket_side, padded

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "SIDES",
    "FoundImages",
    "ImageError",
    "LoadedImage",
    "bucket_side",
    "crop",
    "decode_image",
    "draw_box",
    "draw_text",
    "encode_jpeg",
    "encode_png",
    "find_images",
    "gaussian_blur",
    "load_image",
    "padded",
    "polygon_mask",
    "read_size",
    "resize",
    "resize_shape",
    "save_png",
    "text_size",
    "warp_perspective",
]
