"""Weights: one file format of our own, and the door through which others' networks come in.

`load` gives a network by its name or from a file, `save` writes one, `convert` reads what other
programs wrote, `fetch` gets what their makers publish. A file follows this path: `fetching`
(download and checksum), `formats` (names, shapes, numbers; `torch_files` and `pickles` for
PyTorch's, `mat_files`, `mat_hdf5_files` and `matconvnet` for MatConvNet's, `caffe_files` for
Caffe's; the machines below are `rmacjax.foreign`'s), `conversion` (which network; `schemes`: whose
layout; `retrieval`: how it pools and whitens), `calibration` (how loud it is), `files` (our
format; `writing`: onto the disk).
"""

from rmacjax.weights.calibration import measure_activation_scale
from rmacjax.weights.conversion import Conversion, convert, convert_file
from rmacjax.weights.fetching import fetch
from rmacjax.weights.files import describe_file, load, locate, provenance, save
from rmacjax.weights.manifest import NAMES, PUBLISHED, weights_folder

__all__ = [
    "NAMES",
    "PUBLISHED",
    "Conversion",
    "convert",
    "convert_file",
    "describe_file",
    "fetch",
    "load",
    "locate",
    "measure_activation_scale",
    "provenance",
    "save",
    "weights_folder",
]
