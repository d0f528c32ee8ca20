"""Schemes: how other programs name a network's tensors, lay them out, and normalize.

A scheme is one way in which one network comes: which of the file's tensors make each of our
convolutions. Batch normalization with fixed statistics is one more linear step behind a
convolution, so it is folded into kernel and bias:
``kernel * g`` and ``shift + (bias - mean) * g`` with ``g = scale / sqrt(variance + 1e-5)``.

References: Ioffe & Szegedy 2015 (batch normalization); He et al. 2016 (ResNet).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from rmacjax.backbones import (
    ARCHITECTURES,
    CAFFE_CONVENTION,
    TORCHVISION_CONVENTION,
    InputConvention,
    weight_shapes,
)

# Where torchvision's `features` keeps each layer.
_TORCHVISION_PLACES = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet": (0, 3, 6, 8, 10),
    "squeezenet1_1": (0, 3, 4, 6, 7, 9, 10, 11, 12),
}
_CAFFE_NAMED = ("vgg16", "alexnet-caffe", "alexnet-2012")
_RESNETS = tuple(name for name in ARCHITECTURES if name.startswith("resnet"))

# What lies behind the last layer used, which is left alone.
_BEHIND = (
    "classifier.",
    "pre_logits.",
    "head.",
    "predictions.",
    "pool.",
    "whiten.",
    "fc.",
    *(f"fc{i}." for i in (1, 2, 6, 7, 8, 1000)),
)
_COUNTER = ".num_batches_tracked"  # of the training, not of the network

EPSILON = 1e-5
"""What PyTorch and Caffe add to a variance."""


class NotFoldable(ValueError):
    """A normalization cannot be made part of a convolution; the sentence lacks the file's name."""


class Norm(NamedTuple):
    """Where the numbers of a batch normalization are.

    Attributes:
        scale: name of what it multiplies by.
        shift: name of what it adds.
        mean: name of the mean.
        spread: name of the variance; or of the standard deviation, see `squared`.
        factor: name of a number that divides mean and variance (Caffe); empty for none.
        squared: `spread` is a variance, to which epsilon is still to be added.
    """

    scale: str
    shift: str
    mean: str
    spread: str
    factor: str = ""
    squared: bool = True


class Part(NamedTuple):
    """Where the numbers of one of our convolutions are.

    Attributes:
        ours: our name, "conv1" or "layer1_0.conv2".
        kernel: their name of the kernel.
        bias: their name of the bias; with a `norm` it may be missing.
        norm: the batch normalization behind it, or None.
    """

    ours: str
    kernel: str
    bias: str
    norm: Norm | None = None


class Scheme(NamedTuple):
    """One way in which one network's tensors are named and laid out.

    Attributes:
        architecture: the network.
        title: whose way it is.
        parts: what each convolution is made of.
        output_first: kernels are OIHW; else HWIO, which is ours.
        convention: what such weights expect of a pixel.
        behind: starts of the names that are left alone.
    """

    architecture: str
    title: str
    parts: tuple[Part, ...]
    output_first: bool
    convention: InputConvention
    behind: tuple[str, ...] = _BEHIND

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that a file of this scheme holds."""
        ours = weight_shapes(self.architecture)
        shapes: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            height, width, inputs, outputs = ours[f"{part.ours}.kernel"]
            first = (outputs, inputs, height, width)
            shapes[part.kernel] = first if self.output_first else (height, width, inputs, outputs)
            if part.norm is None:
                shapes[part.bias] = (outputs,)
                continue
            for name in (part.norm.scale, part.norm.shift, part.norm.mean, part.norm.spread):
                shapes[name] = (outputs,)
            if part.norm.factor:
                shapes[part.norm.factor] = (1,)
        return shapes

    def optional(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that such a file may hold as well: biases before normalizations."""
        ours = weight_shapes(self.architecture)
        return {part.bias: ours[f"{part.ours}.bias"] for part in self.parts if part.norm}

    def leaves_alone(self, name: str) -> bool:
        """Whether a tensor of this name is none of the map's business."""
        return name.startswith(self.behind) or name.endswith(_COUNTER)

    def weights(
        self, read: Callable[[str], np.ndarray], held: Callable[[str], bool]
    ) -> dict[str, np.ndarray]:
        """Read the tensors into our names and layout, batch normalization folded in.

        Args:
            read: a tensor's numbers, float32, by its name.
            held: whether the file has a tensor of that name.

        Returns:
            Flat dictionary as `rmacjax.backbones.weight_shapes` has it, float32.

        Raises:
            NotFoldable: if a normalization has a variance that is none.
        """
        weights: dict[str, np.ndarray] = {}
        for part in self.parts:
            kernel = read(part.kernel)
            kernel = kernel.transpose(2, 3, 1, 0) if self.output_first else kernel
            bias = read(part.bias) if part.norm is None or held(part.bias) else None
            if part.norm is not None:
                kernel, bias = _folded(part.norm, kernel, bias, read)
            weights[f"{part.ours}.kernel"] = np.ascontiguousarray(kernel, np.float32)
            weights[f"{part.ours}.bias"] = np.ascontiguousarray(bias, np.float32)
        return weights


def _folded(
    norm: Norm, kernel: np.ndarray, bias: np.ndarray | None, read: Callable[[str], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    scale, shift, mean, spread = (
        read(name).astype(np.float64) for name in (norm.scale, norm.shift, norm.mean, norm.spread)
    )
    if norm.factor:  # Caffe keeps sums; a network that has seen nothing has the factor 0
        total = float(read(norm.factor)[0])
        mean, spread = (part / total if total else part * 0 for part in (mean, spread))
    squares = spread + EPSILON if norm.squared else spread * np.abs(spread)
    if not (squares > 0).all():
        raise NotFoldable(f"{norm.spread} holds numbers that are no spread of anything")
    gain = scale / np.sqrt(squares)
    moved = -mean if bias is None else bias.astype(np.float64) - mean
    return kernel.astype(np.float64) * gain[None, None, None, :], shift + moved * gain


def _convolutions(architecture: str) -> list[str]:
    """Names of the convolutions: "conv1", "fire2.squeeze", ..."""
    names = weight_shapes(architecture)
    return [name.removesuffix(".kernel") for name in names if name.endswith(".kernel")]


def _named(pairs: Iterable[tuple[str, str]], kernel: str, bias: str) -> tuple[Part, ...]:
    """Pairs of their names and ours, of convolutions without normalization."""
    return tuple(Part(ours, f"{theirs}.{kernel}", f"{theirs}.{bias}") for theirs, ours in pairs)


def _resnet_name(ours: str, *, features: bool) -> tuple[str, str]:
    """PyTorch's names of a ResNet's convolution and of the normalization behind it.

    With `features`, the network is a row of numbered children (0 and 1 are the first convolution
    and its normalization, 4 to 7 the stages), as retrieval programs cut it off.
    """
    if ours == "conv1":
        return ("features.0", "features.1") if features else ("conv1", "bn1")
    block, part = ours.split(".")
    stage, number = block.removeprefix("layer").split("_")
    before = f"features.{int(stage) + 3}.{number}" if features else f"layer{stage}.{number}"
    if part == "shortcut":
        return f"{before}.downsample.0", f"{before}.downsample.1"
    return f"{before}.{part}", f"{before}.{part.replace('conv', 'bn')}"


def _caffe_resnet_name(architecture: str, ours: str) -> tuple[str, str]:
    """Caffe's name of a ResNet's convolution, and what follows "bn" and "scale" behind it.

    Stages count from 2 and blocks from a: 4a, 4b, ... 4f; where a ResNet-101 has more than three
    blocks in a stage they are 4a, 4b1, ... 4b22.
    """
    if ours == "conv1":
        return "conv1", "_conv1"
    block, part = ours.split(".")
    stage, number = block.removeprefix("layer").split("_")
    long = architecture.startswith("resnet101") and stage in ("2", "3")
    letter = f"b{number}" if long and number != "0" else "abcdef"[int(number)]
    branch = "1" if part == "shortcut" else f"2{'abc'[int(part.removeprefix('conv')) - 1]}"
    place = f"{int(stage) + 1}{letter}_branch{branch}"
    return f"res{place}", place


def _resnet_schemes(architecture: str) -> list[Scheme]:
    caffe = architecture.endswith("-caffe")
    convention = CAFFE_CONVENTION if caffe else TORCHVISION_CONVENTION
    schemes = []
    for title, features in (("torchvision's", False), ("cut-off torchvision's", True)):
        normalized, folded = [], []
        for ours in _convolutions(architecture):
            conv, bn = _resnet_name(ours, features=features)
            norm = Norm(f"{bn}.weight", f"{bn}.bias", f"{bn}.running_mean", f"{bn}.running_var")
            normalized.append(Part(ours, f"{conv}.weight", f"{conv}.bias", norm))
            folded.append(Part(ours, f"{conv}.weight", f"{conv}.bias"))
        later = ("layer4.", "features.7.") if architecture.endswith("-layer3") else ()
        schemes += [
            Scheme(architecture, name, tuple(parts), True, convention, (*_BEHIND, *later))
            for name, parts in ((title, normalized), (f"{title}, folded,", folded))
        ]
    if caffe:
        theirs, matlab = [], []
        for ours in _convolutions(architecture):
            conv, place = _caffe_resnet_name(architecture, ours)
            bn, scale = f"bn{place}", f"scale{place}"
            norm = Norm(
                f"{scale}.weight",
                f"{scale}.bias",
                f"{bn}.mean",
                f"{bn}.variance",
                f"{bn}.factor",
            )
            theirs.append(Part(ours, f"{conv}.weight", f"{conv}.bias", norm))
            norm = Norm(
                f"{bn}.filters", f"{bn}.biases", f"{bn}.mean", f"{bn}.deviation", squared=False
            )
            matlab.append(Part(ours, f"{conv}.filters", f"{conv}.biases", norm))
        schemes += [
            Scheme(architecture, "Caffe's", tuple(theirs), True, convention),
            Scheme(architecture, "MatConvNet's", tuple(matlab), False, convention),
        ]
    return schemes


def known_schemes() -> list[Scheme]:
    """All schemes; of two that fit a file alike the first is meant."""
    schemes = []
    for architecture, places in _TORCHVISION_PLACES.items():
        ours = _convolutions(architecture)
        layers = list(dict.fromkeys(part.split(".")[0] for part in ours))
        place = dict(zip(layers, places, strict=True))
        pairs = []
        for part in ours:
            layer, *rest = part.split(".")
            pairs.append((".".join(["features", str(place[layer]), *rest]), part))
        parts = _named(pairs, "weight", "bias")
        schemes.append(Scheme(architecture, "torchvision's", parts, True, TORCHVISION_CONVENTION))
    for architecture in _CAFFE_NAMED:
        pairs = [(part, part) for part in _convolutions(architecture)]
        schemes += [
            Scheme(architecture, title, _named(pairs, *ends), first, CAFFE_CONVENTION)
            for title, ends, first in (
                ("Caffe's", ("weight", "bias"), True),
                ("MatConvNet's", ("filters", "biases"), False),
            )
        ]
    pairs = [
        (part.replace("conv", "block", 1).replace("_", "_conv"), part)
        for part in _convolutions("vgg16")
    ]
    parts = _named(pairs, "kernel", "bias")
    schemes.append(Scheme("vgg16", "Keras'", parts, False, CAFFE_CONVENTION))
    for architecture in _RESNETS:
        schemes += _resnet_schemes(architecture)
    return schemes
