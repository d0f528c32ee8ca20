"""From other programs' names and layouts to ours: which network is it, and what does it expect?

A file's names and shapes choose the scheme (`schemes` has them); the scheme brings the input
convention. Tensors behind the last layer used (classifiers) are left alone knowingly, anything else
that is missing, left over or of the wrong shape is an error that names all of it.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rmacjax.backbones import (
    ARCHITECTURES,
    InputConvention,
    Network,
    Weights,
)
from rmacjax.descriptors import Params
from rmacjax.foreign import Stored
from rmacjax.weights.calibration import measure_activation_scale
from rmacjax.weights.formats import OWN_FORMAT, open_tensors
from rmacjax.weights.retrieval import Scales, is_retrieval, read_retrieval, stated_convention
from rmacjax.weights.schemes import NotFoldable, Scheme, known_schemes

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

# Caffe's VGG16 as torchvision publishes it (VGG16_Weights.IMAGENET1K_FEATURES): the same names, but
# other pixels. The first digits of the file's sha256 are part of its published name.
_CONVENTION_OF_FILE = {
    "88682ab5": InputConvention("RGB", 1 / 255, (0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
}
_MOST_NAMES = 60


class Conversion(NamedTuple):
    """A converted network and where it came from.

    Attributes:
        params: the network, with a whitening where the source holds one.
        origin: name of the source file.
        source_sha256: of the whole source file, hexadecimal.
        scheme: whose names and layout the source had.
        ignored: names of the tensors that were left alone knowingly.
        settings: how the network wants to be used, where the source says it, as `save` takes it.
        whitening_origin: where the whitening comes from.
        learned: names of whitenings that the source holds to choose from.
    """

    params: Params
    origin: str
    source_sha256: str
    scheme: str
    ignored: tuple[str, ...]
    settings: Mapping[str, object] | None = None
    whitening_origin: str = ""
    learned: tuple[str, ...] = ()


def _bare(name: str) -> str:
    """Strip what training frameworks put before a name."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name


def _choose(
    tensors: Mapping[str, Stored],
    architecture: str | None,
    normalizes_first: bool,
    path: Path,
) -> Scheme:
    """Take the scheme that most names fit with their shapes, then most names alone.

    Of two that fit alike, the one that lacks less: a ResNet-50 is the beginning of a ResNet-101.
    """

    def fit(scheme: Scheme) -> tuple[int, int, int]:
        shapes = scheme.shapes()
        same = [name for name in shapes if name in tensors]
        right = sum(tensors[name].shape == shapes[name] for name in same)
        return right, len(same), -len(shapes)

    unlike = "alexnet-caffe" if normalizes_first and architecture is None else None
    candidates = [
        scheme
        for scheme in known_schemes()
        if architecture in (None, scheme.architecture) and scheme.architecture != unlike
    ]
    best = max(candidates, key=fit)
    right, known, _ = fit(best)
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
    required = list(shapes)
    shapes |= {name: shape for name, shape in scheme.optional().items() if name in tensors}
    ignored = tuple(n for n in tensors if n not in shapes and scheme.leaves_alone(n))
    missing = [name for name in required if name not in tensors]
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
    stored: Mapping[str, Stored],
    path: Path,
    *,
    architecture: str | None = None,
    normalizes_first: bool = False,
) -> tuple[Scheme, dict[str, Stored], tuple[str, ...]]:
    """Tell which network a file holds, by names and shapes alone.

    Args:
        stored: the file's tensors by name.
        path: the file, for messages.
        architecture: what it must hold; None: found out.
        normalizes_first: the file says that responses are normalized before they are pooled, by
            which alone two of the AlexNets differ.

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
    if tensors and all(name[0].isdigit() for name in tensors if name):
        # Features alone, as retrieval programs keep them.
        tensors = {f"features.{name}": tensor for name, tensor in tensors.items()}
    scheme = _choose(tensors, architecture, normalizes_first, path)
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
    learned_whitening: str | None = None,
    scales: Scales = "single",
) -> Conversion:
    """Convert a file of another program's weights, and say where they came from.

    Args:
        source: a PyTorch checkpoint (torchvision's or cnnimageretrieval-pytorch's, both formats), a
            `.safetensors` file (timm, Hugging Face), a Keras VGG16 `.h5`, a MatConvNet `.mat`
            (SimpleNN or DagNN, MATLAB's versions 5 to 7.3), a Caffe `.caffemodel` or a NumPy
            `.npz`.
        architecture: a key of `rmacjax.backbones.ARCHITECTURES`; None: found out. It must be given
            for Caffe's ResNets under torchvision's names, which nothing else tells apart.
        convention: what the weights expect of a pixel; None: what comes with such a file.
        learned_whitening: of a retrieval checkpoint that holds whitenings learned afterwards, take
            this one ("retrieval-SfM-120k").
        scales: of that, the one for images at a "single" scale or at several ("multi").

    Returns:
        The network with its weights in float32, its whitening if it brings one, and its provenance.

    Raises:
        ValueError: if the file holds another network (missing, extra and mis-shaped names are
            listed) or asks for something that is refused.
        OSError: if the file is missing or damaged.
        RuntimeError: if a library is missing.
    """
    path = Path(source)
    retrieval = None
    with open_tensors(path) as opened:
        if opened.metadata.get("format") == OWN_FORMAT:
            raise ValueError(f"{path} is one of rmacjax's own files already: use it as it is")
        scheme, tensors, ignored = recognise(
            opened.tensors,
            path,
            architecture=architecture,
            normalizes_first=opened.normalizes_first,
        )

        def read(name: str) -> np.ndarray:
            return as_float32(tensors[name].read(), name, path)

        try:
            arrays = scheme.weights(read, tensors.__contains__)
        except NotFoldable as error:
            raise ValueError(f"{path}: {error}") from error
        weights: Weights = {
            name: jnp.asarray(as_float32(array, name, path)) for name, array in arrays.items()
        }
        stated = opened.convention
        if is_retrieval(opened.notes):
            stated = stated or stated_convention(opened.notes)
            retrieval = read_retrieval(
                opened.notes,
                tensors,
                ARCHITECTURES[scheme.architecture].channels,
                path,
                learned_whitening=learned_whitening,
                scales=scales,
            )
    if retrieval is None and learned_whitening is not None:
        raise ValueError(
            f"{path} is no checkpoint of a retrieval network: it has no learned whitening "
            f"{learned_whitening!r}"
        )
    sha256 = file_sha256(path)
    expects = convention or stated or _CONVENTION_OF_FILE.get(sha256[:8]) or scheme.convention
    network = Network(
        scheme.architecture,
        last_pool=retrieval is None and ARCHITECTURES[scheme.architecture].ends_with_pool,
        convention=expects,
        name=scheme.architecture,
    )
    scale = measure_activation_scale(network, weights)
    network = dataclasses.replace(network, activation_scale=scale)
    if retrieval is None:
        params = Params(network, weights, None)
        return Conversion(params, path.name, sha256, scheme.title, ignored)
    if retrieval.gem_p is not None:
        network = dataclasses.replace(network, gem_p=retrieval.gem_p)
    network = dataclasses.replace(network, whitens_scales=retrieval.within)
    return Conversion(
        Params(network, weights, retrieval.whitening),
        path.name,
        sha256,
        scheme.title,
        tuple(name for name in ignored if name not in retrieval.used),
        retrieval.settings,
        retrieval.whitening_origin,
        retrieval.learned,
    )


def convert(
    source: str | Path,
    *,
    architecture: str | None = None,
    convention: InputConvention | None = None,
    learned_whitening: str | None = None,
    scales: Scales = "single",
) -> Params:
    """Convert a file of another program's weights; see `convert_file` for what is read.

    Args:
        source: the file.
        architecture: a key of `rmacjax.backbones.ARCHITECTURES`; None: found out.
        convention: what the weights expect of a pixel; None: what comes with such a file.
        learned_whitening: as for `convert_file`.
        scales: as for `convert_file`.

    Returns:
        The network with its weights in float32, and its whitening if the file brings one.

    Raises:
        ValueError, OSError, RuntimeError: as `convert_file`.
    """
    return convert_file(
        source,
        architecture=architecture,
        convention=convention,
        learned_whitening=learned_whitening,
        scales=scales,
    ).params
