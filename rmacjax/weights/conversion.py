"""From other programs' names and layouts to ours: which network is it, and what does it expect?

A *scheme* is one way in which one network's tensors are named and laid out. The file's names and
shapes choose the scheme; the scheme brings the input convention. Tensors behind the last layer used
(classifiers) are left alone knowingly, anything else that is missing, left over or of the wrong
shape is an error that names all of it.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rmacjax.backbones import (
    ARCHITECTURES,
    CAFFE_CONVENTION,
    TORCHVISION_CONVENTION,
    InputConvention,
    Network,
    Weights,
    weight_shapes,
)
from rmacjax.descriptors import Params
from rmacjax.weights.calibration import measure_activation_scale
from rmacjax.weights.formats import open_tensors
from rmacjax.weights.pickles import Stored

# Where torchvision's `features` keeps each layer.
_TORCHVISION_PLACES = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet": (0, 3, 6, 8, 10),
    "squeezenet1_1": (0, 3, 4, 6, 7, 9, 10, 11, 12),
}
_CAFFE_NAMED = ("vgg16", "alexnet-caffe")

# What training frameworks put before a network's own names.
_PREFIXES = (
    "state_dict.",
    "model_state_dict.",
    "module.",
    "model.",
    "backbone.",
    "encoder.",
    "net.",
    "network.",
    "params.",
    "_orig_mod.",
)
# What lies behind the last layer used, which is left alone.
_IGNORED = (
    "classifier.",
    "pre_logits.",
    "head.",
    "predictions.",
    "pool.",
    "whiten.",
    *(f"fc{i}." for i in (1, 2, 6, 7, 8)),
)

# Caffe's VGG16 as torchvision publishes it (VGG16_Weights.IMAGENET1K_FEATURES): the same names, but
# other pixels. The first digits of the file's sha256 are part of its published name.
_CONVENTION_OF_FILE = {
    "88682ab5": InputConvention("RGB", 1 / 255, (0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
}
_MOST_NAMES = 60


class Conversion(NamedTuple):
    """A converted network and where it came from.

    Attributes:
        params: the network, without whitening.
        origin: name of the source file.
        source_sha256: of the whole source file, hexadecimal.
        scheme: whose names and layout the source had.
        ignored: names of the tensors that were left alone knowingly.
    """

    params: Params
    origin: str
    source_sha256: str
    scheme: str
    ignored: tuple[str, ...]


class Scheme(NamedTuple):
    """One way in which one network's tensors are named and laid out.

    Attributes:
        architecture: the network.
        title: whose way it is.
        names: from their names to ours.
        output_first: kernels are OIHW; else HWIO, which is ours.
        convention: what such weights expect of a pixel.
    """

    architecture: str
    title: str
    names: dict[str, str]
    output_first: bool
    convention: InputConvention

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that a file of this scheme holds."""
        ours = weight_shapes(self.architecture)
        return {theirs: self._theirs(ours[name]) for theirs, name in self.names.items()}

    def _theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) == 1 or not self.output_first:
            return shape
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Bring a tensor into our layout."""
        return array.transpose(2, 3, 1, 0) if self.output_first and array.ndim == 4 else array


def _parts(architecture: str) -> list[str]:
    """Names of the convolutions: "conv1", "fire2.squeeze", ..."""
    names = weight_shapes(architecture)
    return [name.removesuffix(".kernel") for name in names if name.endswith(".kernel")]


def _rename(pairs: Iterable[tuple[str, str]], kernel: str, bias: str) -> dict[str, str]:
    names = {}
    for theirs, ours in pairs:
        names[f"{theirs}.{kernel}"] = f"{ours}.kernel"
        names[f"{theirs}.{bias}"] = f"{ours}.bias"
    return names


def _schemes() -> list[Scheme]:
    schemes = []
    for architecture, places in _TORCHVISION_PLACES.items():
        parts = _parts(architecture)
        layers = list(dict.fromkeys(part.split(".")[0] for part in parts))
        place = dict(zip(layers, places, strict=True))
        pairs = []
        for part in parts:
            layer, *rest = part.split(".")
            pairs.append((".".join(["features", str(place[layer]), *rest]), part))
        names = _rename(pairs, "weight", "bias")
        schemes.append(Scheme(architecture, "torchvision's", names, True, TORCHVISION_CONVENTION))
    for architecture in _CAFFE_NAMED:
        pairs = [(part, part) for part in _parts(architecture)]
        schemes += [
            Scheme(architecture, title, _rename(pairs, *ends), first, CAFFE_CONVENTION)
            for title, ends, first in (
                ("Caffe's", ("weight", "bias"), True),
                ("MatConvNet's", ("filters", "biases"), False),
            )
        ]
    pairs = [
        (part.replace("conv", "block", 1).replace("_", "_conv"), part) for part in _parts("vgg16")
    ]
    names = _rename(pairs, "kernel", "bias")
    schemes.append(Scheme("vgg16", "Keras'", names, False, CAFFE_CONVENTION))
    return schemes


def _bare(name: str) -> str:
    """Strip what training frameworks put before a name."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name


def _choose(tensors: Mapping[str, Stored], architecture: str | None, path: Path) -> Scheme:
    """Take the scheme that most names fit with their shapes, then most names alone."""

    def fit(scheme: Scheme) -> tuple[int, int]:
        shapes = scheme.shapes()
        same = [name for name in shapes if name in tensors]
        return sum(tensors[name].shape == shapes[name] for name in same), len(same)

    candidates = [s for s in _schemes() if architecture in (None, s.architecture)]
    best = max(candidates, key=fit)
    right, known = fit(best)
    if right == 0 and (architecture is None or known == 0):
        held = ", ".join(list(tensors)[:5]) or "no tensor at all"
        raise ValueError(
            f"{path} holds none of {architecture or ', '.join(ARCHITECTURES)}: the first of its "
            f"{len(tensors)} names are {held}"
        )
    return best


def _listing(title: str, entries: list[str]) -> str:
    more = f" and {len(entries) - _MOST_NAMES} more" if len(entries) > _MOST_NAMES else ""
    return f"{title}: {', '.join(entries[:_MOST_NAMES])}{more}"


def _check(tensors: Mapping[str, Stored], scheme: Scheme, path: Path) -> tuple[str, ...]:
    """Compare names and shapes with the scheme's; return the names that are ignored."""
    shapes = scheme.shapes()
    ignored = tuple(n for n in tensors if n not in shapes and n.startswith(_IGNORED))
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes and name not in ignored]
    wrong = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        _listing(title, entries)
        for title, entries in (("missing", missing), ("extra", extra), ("mis-shaped", wrong))
        if entries
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit {scheme.architecture} under {scheme.title} names; "
            + "; ".join(problems)
        )
    return ignored


def recognise(
    stored: Mapping[str, Stored], path: Path, architecture: str | None = None
) -> tuple[Scheme, dict[str, Stored], tuple[str, ...]]:
    """Tell which network a file holds, by names and shapes alone.

    Args:
        stored: the file's tensors by name.
        path: the file, for messages.
        architecture: what it must hold; None: found out.

    Returns:
        The scheme, the tensors under the scheme's names (and others), and the ignored names.

    Raises:
        ValueError: if the file holds no known network, or not all of it.
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}"
        )
    tensors: dict[str, Stored] = {}
    for name, tensor in stored.items():
        bare = _bare(name)
        if bare in tensors:
            raise ValueError(f"{path} holds {bare} twice, under different prefixes")
        tensors[bare] = tensor
    scheme = _choose(tensors, architecture, path)
    return scheme, tensors, _check(tensors, scheme, path)


def as_float32(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Bring one tensor to contiguous float32; anything but finite floating numbers is refused."""
    if array.dtype.kind != "f":
        raise ValueError(f"{path} holds {array.dtype} in {name} where floating numbers are due")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path} holds numbers in {name} that are not finite")
    return array


def file_sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_file(
    source: str | Path,
    *,
    architecture: str | None = None,
    convention: InputConvention | None = None,
) -> Conversion:
    """Convert a file of another program's weights, and say where they came from.

    Args:
        source: a PyTorch checkpoint (torchvision's, both formats), a `.safetensors` file (timm,
            Hugging Face), a Keras VGG16 `.h5`, a MatConvNet `.mat` or a NumPy `.npz`.
        architecture: a key of `rmacjax.backbones.ARCHITECTURES`; None: found out.
        convention: what the weights expect of a pixel; None: what comes with such a file.

    Returns:
        The network with its weights in float32, and its provenance.

    Raises:
        ValueError: if the file holds another network (missing, extra and mis-shaped names are
            listed) or asks for something that is refused.
        OSError: if the file is missing or damaged.
        RuntimeError: if a library is missing.
    """
    path = Path(source)
    with open_tensors(path) as opened:
        scheme, tensors, ignored = recognise(opened.tensors, path, architecture)
        weights: Weights = {
            ours: jnp.asarray(as_float32(scheme.ours(tensors[theirs].read()), theirs, path))
            for theirs, ours in scheme.names.items()
        }
        stated = opened.convention
    sha256 = file_sha256(path)
    expects = convention or stated or _CONVENTION_OF_FILE.get(sha256[:8]) or scheme.convention
    network = Network(
        scheme.architecture,
        last_pool=ARCHITECTURES[scheme.architecture].ends_with_pool,
        convention=expects,
        name=scheme.architecture,
    )
    scale = measure_activation_scale(network, weights)
    params = Params(dataclasses.replace(network, activation_scale=scale), weights, None)
    return Conversion(params, path.name, sha256, scheme.title, ignored)


def convert(
    source: str | Path,
    *,
    architecture: str | None = None,
    convention: InputConvention | None = None,
) -> Params:
    """Convert a file of another program's weights; see `convert_file` for what is read.

    Args:
        source: the file.
        architecture: a key of `rmacjax.backbones.ARCHITECTURES`; None: found out.
        convention: what the weights expect of a pixel; None: what comes with such a file.

    Returns:
        The network with its weights in float32, without whitening.

    Raises:
        ValueError, OSError, RuntimeError: as `convert_file`.
    """
    return convert_file(source, architecture=architecture, convention=convention).params
