"""Checkpoints of networks that were trained for retrieval: how they pool, and how they whiten.

A checkpoint of cnnimageretrieval-pytorch holds, beside the convolutions, GeM's exponent, perhaps a
linear layer behind the pooling (``y = W x + b``), and perhaps whitenings learned afterwards for
one scale and for several (``y = P (x - m)``). A linear layer is a whitening with
``m = -pinv(W) b``, exactly so where W has full row rank; where it has not, the file is refused.

References: Radenović, Tolias and Chum, PAMI 2018, sections 3.2 (whitening) and 3.3 (GeM).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmacjax.backbones import InputConvention
from rmacjax.foreign import Stored
from rmacjax.whitening import Whitening

Scales = Literal["single", "multi"]

# By their name of a pooling ours, of the whole map and of regions.
_POOLS = {
    "gem": ("gem", "rgem"),
    "gemmp": ("gem", "rgem"),
    "mac": ("mac", "rmac"),
    "spoc": ("spoc", ""),
    "rmac": ("rmac", ""),
}
_SCALES = {"single": "ss", "multi": "ms"}
_SHRUNK = (1.0, 2**-0.5, 0.5)
_LARGEST_ERROR = 1e-3
_MOST_ROWS = 1 << 16
_SHARED = 1 << 16  # so many places may share their numbers, as views do that PyTorch expands


class Retrieval(NamedTuple):
    """What a checkpoint says beside its convolutions.

    Attributes:
        settings: how it wants to be used, by names of `rmacjax.Settings`.
        gem_p: GeM's exponent; None where it does not pool so.
        whitening: what it whitens with, or None.
        whitening_origin: where that comes from.
        learned: names of the whitenings that can be asked for.
        used: names of the tensors that were read.
        within: whether the whitening is a layer of the network, which each scale goes through by
            itself.
    """

    settings: dict[str, object]
    gem_p: float | None
    whitening: Whitening | None
    whitening_origin: str
    learned: tuple[str, ...]
    used: tuple[str, ...]
    within: bool = False


def is_retrieval(notes: Mapping[str, object]) -> bool:
    """Whether a checkpoint's notes are those of a retrieval network."""
    return isinstance(notes.get("pooling"), str) and isinstance(notes.get("architecture"), str)


def stated_convention(notes: Mapping[str, object]) -> InputConvention | None:
    """What the notes say of pixels; None where they say nothing one can use."""
    values = [_numbers(notes.get(key)) for key in ("mean", "std")]
    if any(len(value) != 3 for value in values) or min(values[1]) <= 0:
        return None
    (m1, m2, m3), (s1, s2, s3) = values
    return InputConvention("RGB", 1 / 255, (m1, m2, m3), (s1, s2, s3))


def stated_settings(notes: Mapping[str, object], path: Path) -> dict[str, object]:
    """How the network wants to be used, by names of `rmacjax.Settings`.

    Raises:
        ValueError: if it pools in a way that cannot be had here.
    """
    regional, theirs = bool(notes.get("regional")), str(notes["pooling"])
    pool = _POOLS.get(theirs, ("", ""))[regional]
    if not pool:
        kind = f"regional {theirs}" if regional else theirs
        raise ValueError(f"{path} pools by {kind}; known are {', '.join(_POOLS)}")
    # Where there are regions, the whole map is one of them.
    whole: dict[str, object] = {"levels": 3, "with_global": True}
    return {"pool": pool} | (whole if pool in ("rmac", "rgem") else {})


def learned_names(notes: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the whitenings that were learned afterwards."""
    learned = notes.get("Lw")
    return tuple(map(str, learned)) if isinstance(learned, dict) else ()


def read_retrieval(
    notes: Mapping[str, object],
    tensors: Mapping[str, Stored],
    channels: int,
    path: Path,
    *,
    learned_whitening: str | None = None,
    scales: Scales = "single",
) -> Retrieval:
    """Read what a retrieval checkpoint holds beside its convolutions.

    Args:
        notes: its notes, see `is_retrieval`.
        tensors: its tensors by name.
        channels: of the activation map.
        path: the file, for messages.
        learned_whitening: take this one of the whitenings learned afterwards.
        scales: of that, the one for a "single" scale or for several ("multi").

    Raises:
        ValueError: if it pools or whitens in a way that cannot be had here, or lacks what is
            asked for.
    """
    if notes.get("local_whitening") or "lwhiten.weight" in tensors:
        raise ValueError(
            f"{path} whitens every cell of its maps before it pools (local whitening), which is "
            "not supported; take a checkpoint without it"
        )
    settings = stated_settings(notes, path)
    pool = str(settings["pool"])
    used = [name for name in ("pool.p", "pool.rpool.p") if name in tensors]
    gem_p = _exponent(tensors[used[0]], used[0], path) if used and "gem" in pool else None
    layers = [name for name in ("whiten", "pool.whiten") if f"{name}.weight" in tensors]
    known = learned_names(notes)
    whitening, origin = None, ""
    if layers and (len(layers) > 1 or learned_whitening is not None):
        raise ValueError(
            f"{path} whitens twice ({', '.join((*layers, learned_whitening or '')).rstrip(', ')}), "
            "which is not supported; leave the learned whitening out, or take another checkpoint"
        )
    if layers:
        parts = [f"{layers[0]}.weight", f"{layers[0]}.bias"]
        whitening, origin = _of_layer(tensors, parts, channels, path), f"{layers[0]} of {path.name}"
        used += parts
    elif learned_whitening is not None:
        if learned_whitening not in known:
            raise ValueError(
                f"{path} has no learned whitening {learned_whitening!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        whitening = _of_notes(notes, learned_whitening, scales, channels, path)
        origin = f"{learned_whitening}, {scales} scale, of {path.name}"
        if scales == "multi":
            settings["scales"] = list(_SHRUNK)
    return Retrieval(settings, gem_p, whitening, origin, known, tuple(used), bool(layers))


def _numbers(value: object) -> tuple[float, ...]:
    """A list of numbers as a tuple; empty for anything else."""
    if isinstance(value, Stored) and len(value.shape) == 1 and value.shape[0] < 100:
        value = value.read().tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(v, float | int) for v in value):
        return ()
    try:
        numbers = tuple(map(float, value))
    except OverflowError:  # an integer without end
        return ()
    return numbers if np.isfinite(numbers).all() else ()


def _matrix(stored: object, shape: tuple[int | None, int], name: str, path: Path) -> np.ndarray:
    """A matrix of so many columns, float64; None stands for any number of rows."""
    rows, columns = shape
    if not isinstance(stored, Stored) or len(stored.shape) != 2 or stored.shape[1] != columns:
        given = stored.shape if isinstance(stored, Stored) else "nothing"
        raise ValueError(f"{path} holds {given} in {name} where {columns} columns are due")
    if stored.shape[0] > _MOST_ROWS:
        raise ValueError(f"{path} holds {stored.shape[0]} rows in {name}, over {_MOST_ROWS}")
    if stored.shape[0] < 1 or (rows is not None and stored.shape[0] != rows):
        raise ValueError(f"{path} holds {stored.shape[0]} rows in {name} where {rows} are due")
    return _finite(stored, name, path)


def _finite(stored: Stored, name: str, path: Path) -> np.ndarray:
    array = stored.read()
    steps = zip(array.shape, array.strides, strict=True)
    reach = 1 + sum((size - 1) * abs(step) // array.itemsize for size, step in steps)
    if array.size > max(reach, _SHARED):
        raise ValueError(f"{path} holds fewer numbers than its shape {array.shape} says in {name}")
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{path} holds something else than finite floating numbers in {name}")
    return np.asarray(array, np.float64)


def _exponent(stored: Stored, name: str, path: Path) -> float:
    if len(stored.shape) > 4 or not stored.shape or 0 in stored.shape:
        raise ValueError(f"{path} holds {name} of shape {stored.shape} where an exponent is due")
    values = _finite(stored, name, path).ravel()
    if np.ptp(values) > 1e-6 * abs(values[0]) or values[0] <= 0:
        raise ValueError(
            f"{path} has an exponent of GeM for each channel ({values.min():g} to "
            f"{values.max():g}); only one positive exponent for all is supported"
        )
    return float(values[0])


def _of_layer(
    tensors: Mapping[str, Stored], names: list[str], channels: int, path: Path
) -> Whitening:
    weight = _matrix(tensors[names[0]], (None, channels), names[0], path)
    bias = tensors.get(names[1])
    if bias is None or bias.shape != weight.shape[:1]:
        raise ValueError(f"{path} holds no {names[1]} with {weight.shape[0]} numbers")
    shift = _finite(bias, names[1], path)
    mean = _undone(weight, shift)
    kept = weight.astype(np.float32).astype(np.float64)
    error = np.linalg.norm(kept @ mean.astype(np.float64) + shift)
    # Beside what the layer makes of a unit vector.
    usual = np.linalg.norm(weight) / np.sqrt(weight.shape[1])
    if not error <= _LARGEST_ERROR * max(np.linalg.norm(shift), usual):
        raise ValueError(
            f"{path} adds something in {names[1]} that no mean before {names[0]} can stand for"
        )
    return Whitening(jnp.asarray(mean), jnp.asarray(weight, jnp.float32))


def _undone(weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The shortest m with ``weight @ m = -shift``, float32; not finite where there may be none.

    By elimination or a QR decomposition, which take a fraction of the pseudoinverse's time.
    """
    rows, columns = weight.shape
    try:
        with np.errstate(all="ignore"):
            if rows == columns:
                return np.linalg.solve(weight, -shift).astype(np.float32)
            if rows < columns:
                q, r = np.linalg.qr(weight.T)
                return (q @ np.linalg.solve(r.T, -shift)).astype(np.float32)
    except np.linalg.LinAlgError:
        return np.full(columns, np.nan, np.float32)
    return np.full(columns, np.nan, np.float32)


def _of_notes(
    notes: Mapping[str, object], name: str, scales: Scales, channels: int, path: Path
) -> Whitening:
    learned = notes["Lw"]
    both = learned.get(name) if isinstance(learned, dict) else None
    found = both.get(_SCALES[scales]) if isinstance(both, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no whitening {name} learned on {scales} scales")
    projection = _matrix(found.get("P"), (None, channels), f"{name}'s P", path)
    mean = found.get("m")
    if not isinstance(mean, Stored) or mean.shape not in ((channels,), (channels, 1)):
        raise ValueError(f"{path} holds no mean of {channels} channels in {name}'s m")
    rows = notes.get("outputdim")
    kept = rows if isinstance(rows, int) and 0 < rows < len(projection) else len(projection)
    return Whitening(
        jnp.asarray(_finite(mean, f"{name}'s m", path).ravel(), jnp.float32),
        jnp.asarray(projection[:kept], jnp.float32),
    )
