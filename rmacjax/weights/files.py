"""Our own file: safetensors with the facts that belong to the weights.

One file holds one network and perhaps its whitening. Tensors go by flat names ("conv1.kernel" in
HWIO, "conv1.bias", "whitening.mean", "whitening.projection"), float32 or float16; the facts are
strings in the header. Reading one runs no code, and what was damaged on the way is noticed.

| fact | meaning |
|---|---|
| `format`, `format_version` | "rmacjax-weights", "1" |
| `name` | what messages call the network |
| `architecture`, `last_pool` | which layers run |
| `convention` | what the weights expect of a pixel: JSON with order, scale, mean, std |
| `activation_scale` | brings activations into the range of the paper's quantiser |
| `gem_p` | exponent of GeM pooling; optional, 3 without it |
| `whitens_scales` | whether each scale is whitened before scales are joined; optional, no |
| `thresholds` | JSON: by stage the least score that counts as found; optional |
| `origin`, `source_sha256`, `licence`, `made_by` | where the numbers come from |
| `whitening_origin` | what the whitening was learned on |
| `settings` | JSON: the settings that the whitening was made for; optional |
| `sha256` | of the tensors' bytes, one after the other in order of name |
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as serialize

from rmacjax.backbones import ARCHITECTURES, InputConvention, Network, stride, weight_shapes
from rmacjax.descriptors import Params
from rmacjax.foreign import Stored
from rmacjax.weights.conversion import as_float32, convert, file_sha256, recognise
from rmacjax.weights.formats import OWN_FORMAT, Opened, open_tensors
from rmacjax.weights.manifest import NAMES, find_named
from rmacjax.weights.retrieval import (
    is_retrieval,
    learned_names,
    stated_convention,
    stated_settings,
)
from rmacjax.weights.writing import reproducible, write_atomically
from rmacjax.whitening import Whitening

FORMAT = OWN_FORMAT
FORMAT_VERSION = 1

_PROVENANCE = ("origin", "licence", "made_by", "source_sha256")
_WHITENING_NAMES = ("whitening.mean", "whitening.projection")
UNKNOWN_LICENCE = "unknown: as the source file's"


def save(
    path: str | Path,
    params: Params,
    *,
    origin: str,
    licence: str,
    dtype: Literal["float32", "float16"] = "float32",
    made_by: str = "",
    source_sha256: str = "",
    whitening_origin: str = "",
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Write a network, with its whitening if it has one, to one file: all of it or nothing.

    The file appears under its name only when it is complete and on the disk.

    Args:
        path: the file; it is replaced where it exists, and its folder is made where it does not.
        params: what to write.
        origin: where the weights come from: a file's name, or how they were trained.
        licence: under which terms they may be used.
        dtype: "float32", or "float16" for half the size; a whitening stays float32, because its
            scale spans more than float16 can hold.
        made_by: what made them.
        source_sha256: checksum of the file that they were converted from.
        whitening_origin: what the whitening was learned on.
        settings: settings that belong to the weights, as JSON values.

    Returns:
        The path.

    Raises:
        ValueError: if the weights do not fit the network, or their numbers do not fit the type.
        OSError: if it cannot be written.
    """
    path = Path(path)
    network = params.network
    arrays = {name: np.asarray(array) for name, array in params.weights.items()}
    if params.whitening is not None:
        arrays |= zip(_WHITENING_NAMES, map(np.asarray, params.whitening), strict=True)
    _check(arrays, network.architecture, f"the network to be saved as {path}")
    stored = {
        name: _narrowed(arrays[name], "float32" if name in _WHITENING_NAMES else dtype, name)
        for name in sorted(arrays)
    }
    facts = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "name": network.name or path.stem,
        "architecture": network.architecture,
        "last_pool": json.dumps(network.last_pool),
        "convention": json.dumps(asdict(network.convention)),
        "activation_scale": repr(float(network.activation_scale)),
        "gem_p": repr(float(network.gem_p)),
        "thresholds": json.dumps(dict(network.thresholds)),
        "origin": origin,
        "source_sha256": source_sha256,
        "licence": licence,
        "made_by": made_by,
        "whitening_origin": whitening_origin,
        "sha256": _tensors_sha256(stored),
    }
    if network.whitens_scales:
        facts["whitens_scales"] = "true"
    if settings is not None:
        facts["settings"] = json.dumps(dict(settings))
    write_atomically(path, reproducible(serialize(stored, facts)))
    return path


def load(
    name_or_path: str | Path,
    *,
    last_pool: bool | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Params:
    """Load a network by its name or from a file.

    Args:
        name_or_path: "default" or "vgg16-scenes" (they ship), a name that was fetched or converted
            before ("vgg16", "vgg16-torchvision", "alexnet", "alexnet-caffe", "alexnet-2012",
            "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101", "resnet50-caffe",
            "resnet101-caffe"), or a file: one of ours, or another program's, which is then
            converted in memory.
        last_pool: whether maps are taken after the last max-pool (the paper) or before it (twice
            the resolution); None: as the file says.
        dtype: type of the convolutions; weights and maps are float32.

    Returns:
        The network, its weights and its whitening.

    Raises:
        FileNotFoundError: if it is not there; the sentence says how to get it.
        OSError: if the file is damaged.
        ValueError: if it holds no known network, or the network has no last pool to keep.
    """
    path = locate(name_or_path)
    with open_tensors(path) as opened:
        params = _read_own(opened, path) if _is_own(opened) else None
    if params is None:
        params = convert(path)
    source = str(name_or_path) if name_or_path in NAMES else str(path.absolute())
    network = replace(params.network, compute_dtype=dtype, source=source)
    if last_pool is not None and last_pool != network.last_pool:
        # Scores are others then, and so would be the least that counts as found.
        network = replace(network, last_pool=last_pool, thresholds=())
    return params._replace(network=network)


def locate(name_or_path: str | Path) -> Path:
    """Find the file behind a name or a path.

    Args:
        name_or_path: as `load` takes it. A name wins over a file of the same name here: write
            "./vgg16" for that file.

    Returns:
        The path of a file that exists.

    Raises:
        FileNotFoundError: if there is none; the sentence says how to get it.
    """
    if name_or_path in NAMES:
        return find_named(str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file of weights {path}, and networks by name are {', '.join(NAMES)}"
        )
    return path


def provenance(name_or_path: str | Path) -> dict[str, str]:
    """Say where a network's numbers come from, as the keyword arguments that `save` takes.

    Args:
        name_or_path: as `load` takes it.

    Returns:
        "origin", "licence", "made_by" and "source_sha256".

    Raises:
        OSError, ValueError: as `load`.
    """
    path = locate(name_or_path)
    with open_tensors(path) as opened:
        if _is_own(opened):
            return {fact: opened.metadata.get(fact, "") for fact in _PROVENANCE}
    return {
        "origin": path.name,
        "licence": UNKNOWN_LICENCE,
        "made_by": "",
        "source_sha256": file_sha256(path),
    }


def describe_file(name_or_path: str | Path) -> dict[str, object]:
    """Say what is in a file of weights, ours or another program's.

    Args:
        name_or_path: as `load` takes it.

    Returns:
        Plain values, fit for JSON. For one of our files every fact of its header, parsed, with the
        whitening's size and the numbers' type; for another program's what it would be converted to.

    Raises:
        OSError, ValueError: as `load`; a file that is described is whole.
    """
    path = locate(name_or_path)
    with open_tensors(path) as opened:
        tensors = opened.tensors
        if not _is_own(opened):
            scheme, _, ignored = recognise(tensors, path, normalizes_first=opened.normalizes_first)
            told: dict[str, object] = {}
            stated = None
            if is_retrieval(opened.notes):
                stated = stated_convention(opened.notes)
                told = {
                    "settings": stated_settings(opened.notes, path),
                    "learned whitenings": list(learned_names(opened.notes)),
                }
            return {
                "file": str(path),
                "bytes": path.stat().st_size,
                "format": opened.title,
                "names": scheme.title,
                "architecture": scheme.architecture,
                "convention": _plain(opened.convention or stated or scheme.convention),
                "tensors": len(tensors),
                "ignored": list(ignored),
                **told,
            }
        params = _read_own(opened, path)
        facts = opened.metadata
        network, whitening = params.network, params.whitening
        return {
            "file": str(path),
            "bytes": path.stat().st_size,
            "format": f"{FORMAT} {facts['format_version']}",
            "name": network.name,
            "architecture": network.architecture,
            "last_pool": network.last_pool,
            "channels": network.channels,
            "stride": stride(network),
            "convention": _plain(network.convention),
            "activation_scale": network.activation_scale,
            "gem_p": network.gem_p,
            "whitens_scales": network.whitens_scales,
            "thresholds": dict(network.thresholds),
            "dtype": str(tensors[next(iter(params.weights))].read().dtype),
            "tensors": len(tensors),
            "parameters": sum(int(array.size) for array in params.weights.values()),
            "whitening": None
            if whitening is None
            else {
                "dimensions": whitening.projection.shape[0],
                "channels": whitening.projection.shape[1],
                "origin": facts.get("whitening_origin", ""),
            },
            **{fact: facts.get(fact, "") for fact in _PROVENANCE},
            "settings": json.loads(facts.get("settings", "null")),
            "sha256 of tensors": facts["sha256"],
        }


def _plain(convention: InputConvention) -> dict[str, object]:
    return {
        fact: list(value) if isinstance(value, tuple) else value
        for fact, value in asdict(convention).items()
    }


def _is_own(opened: Opened) -> bool:
    return opened.metadata.get("format") == FORMAT


def _read_own(opened: Opened, path: Path) -> Params:
    """Check one of our files and read it."""
    facts = opened.metadata
    version = facts.get("format_version", "")
    if version.isdigit() and int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, this rmacjax reads up to "
            f"{FORMAT_VERSION}: install a newer rmacjax"
        )
    try:
        network = _network(facts)
        sha256 = facts["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise OSError(
            f"{path} is damaged: its header does not say what it holds ({error})"
        ) from error
    _check(opened.tensors, network.architecture, str(path))
    arrays = {name: stored.read() for name, stored in opened.tensors.items()}
    if _tensors_sha256(arrays) != sha256:
        raise OSError(f"{path} is damaged: its numbers do not match their checksum; get it again")
    ready = {name: jnp.asarray(as_float32(array, name, path)) for name, array in arrays.items()}
    mean, projection = (ready.pop(name, None) for name in _WHITENING_NAMES)
    whitening = None if mean is None or projection is None else Whitening(mean, projection)
    return Params(network, ready, whitening)


def _network(facts: Mapping[str, str]) -> Network:
    stated = json.loads(facts["convention"])
    (m1, m2, m3), (s1, s2, s3) = (map(float, stated[key]) for key in ("mean", "std"))
    order: Literal["RGB", "BGR"] = "BGR" if stated["order"] == "BGR" else "RGB"
    return Network(
        facts["architecture"],
        last_pool=bool(json.loads(facts["last_pool"])),
        convention=InputConvention(order, float(stated["scale"]), (m1, m2, m3), (s1, s2, s3)),
        activation_scale=float(facts["activation_scale"]),
        gem_p=float(facts.get("gem_p", "3")),
        thresholds=tuple(
            (str(stage), float(score))
            for stage, score in json.loads(facts.get("thresholds", "{}")).items()
        ),
        name=facts["name"],
        whitens_scales=json.loads(facts.get("whitens_scales", "false")) is True,
    )


def _check(arrays: Mapping[str, np.ndarray | Stored], architecture: str, what: str) -> None:
    """Compare names and shapes with the architecture's, the whitening's with each other."""
    shapes = weight_shapes(architecture)
    if any(name in arrays for name in _WHITENING_NAMES):
        channels = ARCHITECTURES[architecture].channels
        projection = arrays.get("whitening.projection")
        rows = projection.shape[0] if projection is not None and projection.shape else channels
        shapes |= zip(_WHITENING_NAMES, ((channels,), (rows, channels)), strict=True)
    problems = {
        "missing": [name for name in shapes if name not in arrays],
        "extra": [name for name in arrays if name not in shapes],
        "mis-shaped": [
            f"{name} {tuple(arrays[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in arrays and tuple(arrays[name].shape) != shape
        ],
    }
    said = "; ".join(f"{title}: {', '.join(names)}" for title, names in problems.items() if names)
    if said:
        raise ValueError(f"{what} does not fit {architecture}; {said}")


def _narrowed(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(narrow).all():
        raise ValueError(f"{name} holds numbers that {dtype} cannot hold; save it as float32")
    return narrow


def _tensors_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
