"""MatConvNet's networks: from what a MATLAB file holds to tensors with names.

SimpleNN is a row of layers, each with its own numbers; DagNN is a graph, whose layers name their
parameters, which lie beside them. Both become the same names: "conv1.filters", "conv1.biases", and
for a batch normalization also "bn1.mean" and "bn1.deviation".

Reference: Vedaldi and Lenc, "MatConvNet: convolutional neural networks for MATLAB", 2015.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from rmacjax.foreign import Refusal, Stored

VARIABLES = ("layers", "params", "meta", "normalization", "net")
"""What is read of a file; all of it may also lie in one variable "net"."""

_NORMALIZATIONS = ("lrn", "normalize")
_LARGEST_AVERAGE = 2048 * 2048 * 3


class MatConvNet(NamedTuple):
    """A network of MatConvNet's.

    Attributes:
        tensors: numbers by name.
        mean_rgb: the average colour, to be subtracted from pixels in 0..255.
        normalizes_first: responses are normalized before they are pooled for the first time.
    """

    tensors: dict[str, Stored]
    mean_rgb: tuple[float, float, float]
    normalizes_first: bool


def read_matconvnet(content: Mapping[str, object]) -> MatConvNet:
    """Find the network among a MATLAB file's variables.

    Args:
        content: `VARIABLES` by name, as far as the file has them.

    Raises:
        Refusal: if there is none.
    """
    inside = content.get("net")
    facts = inside if isinstance(inside, dict) else content
    meta = facts.get("meta", facts)
    normalization = meta.get("normalization") if isinstance(meta, dict) else None
    average = normalization.get("averageImage") if isinstance(normalization, dict) else None
    layers = _structures(facts.get("layers"))
    if not layers or not isinstance(average, Stored):
        raise Refusal("is no network of MatConvNet's: it has no layers or no average image")
    params = _structures(facts.get("params"))
    values = {str(entry.get("name")): entry.get("value") for entry in params}
    tensors: dict[str, Stored] = {}
    kinds = []
    for layer in layers:
        kind = str(layer.get("type")).removeprefix("dagnn.").lower()
        kinds.append("pool" if kind == "pooling" else kind)
        parts = _parts(layer, values)
        if kind not in ("conv", "batchnorm", "bnorm"):
            continue
        for part, tensor in zip(("filters", "biases", "moments"), parts, strict=False):
            if not isinstance(tensor, Stored):
                continue
            for name, stored in _named(f"{layer.get('name')}.", part, tensor):
                if name in tensors:
                    raise Refusal(f"holds {name} twice")
                tensors[name] = stored
    first_pool = kinds.index("pool") if "pool" in kinds else None
    first = any(norm in kinds[:first_pool] for norm in _NORMALIZATIONS)
    return MatConvNet(tensors, _average_color(average), first)


def _structures(value: object) -> list[dict]:
    """A cell array or an array of structures as a list of them; one structure as well."""
    entries = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _parts(layer: dict, values: Mapping[str, object]) -> list[object]:
    """A layer's numbers: its own, its older own, or those that it names."""
    own = layer.get("weights")
    if isinstance(own, list) and own:
        return own
    if "filters" in layer:
        return [layer.get("filters"), layer.get("biases")]
    names = layer.get("params")
    names = [names] if isinstance(names, str) else names if isinstance(names, list) else []
    return [values.get(name) if isinstance(name, str) else None for name in names]


def _named(layer: str, part: str, tensor: Stored) -> list[tuple[str, Stored]]:
    if part == "moments" and len(tensor.shape) == 2 and tensor.shape[1] == 2:
        size = tensor.shape[:1]
        return [
            (f"{layer}{name}", Stored(size, partial(_column, tensor, i)))
            for i, name in enumerate(("mean", "deviation"))
        ]
    return [(f"{layer}{part}", _squeezed(tensor))]


def _column(tensor: Stored, i: int) -> np.ndarray:
    return tensor.read()[:, i]


def _squeezed(tensor: Stored) -> Stored:
    """Make a row or column a vector; MATLAB knows no other."""
    if len(tensor.shape) == 2 and 1 in tensor.shape:
        return Stored((math.prod(tensor.shape),), lambda: tensor.read().ravel())
    return tensor


def _average_color(average: Stored) -> tuple[float, float, float]:
    """Average an image over its pixels, or take the colour that is there."""
    right = average.shape[-1:] == (3,) or average.shape == (3, 1)
    if right and math.prod(average.shape) <= _LARGEST_AVERAGE:
        pixels = np.asarray(average.read(), np.float64).reshape(-1, 3)
        red, green, blue = pixels.mean(0).tolist()
        return red, green, blue
    raise Refusal(f"has an average image of shape {average.shape} where three colours are due")
