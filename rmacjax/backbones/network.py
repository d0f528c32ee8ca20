"""Static facts of a network: which layers run, what it expects of a pixel, what size comes out."""

import math
from dataclasses import dataclass
from typing import Literal

import jax

from rmacjax.backbones.architectures import ARCHITECTURES
from rmacjax.backbones.layers import Layer, channels, input_size, kernels, output_size


@dataclass(frozen=True)
class InputConvention:
    """What the weights expect of a pixel: `(pixel * scale - mean) / std`, channels in `order`.

    It belongs to the weights and travels with them; callers always pass RGB in 0..255.
    """

    order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


TORCHVISION_CONVENTION = InputConvention(
    "RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
CAFFE_CONVENTION = InputConvention("BGR", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Network:
    """The static facts of a network: a pytree without leaves, so it may ride along under `jit`.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        last_pool: whether the map is taken after the last max-pool (the paper) or before it
            (twice the resolution).
        convention: what the weights expect of a pixel.
        activation_scale: the factor that brings activations into the range the paper's 4-bit
            quantiser was made for; 1 for networks in Caffe's convention.
        gem_p: the exponent of GeM pooling, which belongs to weights that were trained with it.
        thresholds: for the kinds of scores that tell what was found ("filter", "rerank" and others,
            see `rmacjax.results.score_kind`) the least that counts, where they have been learned;
            they come with the whitening.
        compute_dtype: the type of the convolutions, "float32" or "bfloat16"; maps are float32.
        name: what messages call it.
        source: what `rmacjax.load` finds it again by, a known name or a file's path; empty for a
            network that was never stored.
        whitens_scales: whether its whitening is a layer of the network, which whitens what is seen
            at each scale before scales are joined; one that was learned afterwards comes last.
    """

    architecture: str
    last_pool: bool
    convention: InputConvention
    activation_scale: float = 1.0
    gem_p: float = 3.0
    thresholds: tuple[tuple[str, float], ...] = ()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    name: str = ""
    source: str = ""
    whitens_scales: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"unknown architecture {self.architecture!r}; known are {', '.join(ARCHITECTURES)}"
            )
        if self.last_pool and not ARCHITECTURES[self.architecture].ends_with_pool:
            raise ValueError(
                f"{self.architecture} does not end with a pool; leave last_pool out or set it False"
            )
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"compute dtype must be float32 or bfloat16, not {self.compute_dtype!r}"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that run, the last pool left out where it is not wanted."""
        architecture = ARCHITECTURES[self.architecture]
        drop = architecture.ends_with_pool and not self.last_pool
        return architecture.layers[:-1] if drop else architecture.layers

    @property
    def channels(self) -> int:
        """Channels of the activation map."""
        return ARCHITECTURES[self.architecture].channels


def stride(network: Network) -> int:
    """Pixels from one cell of the activation map to the next."""
    return math.prod(getattr(layer, "stride", 1) for layer in network.layers)


def map_size(network: Network, height: int, width: int) -> tuple[int, int]:
    """Cells `(h, w)` of the activation map of an image of `height` x `width` pixels.

    Raises:
        ValueError: if the image is too small for a single cell.
    """
    sizes = []
    for size in (height, width):
        for layer in network.layers:
            size = int(output_size(layer, size)) if size > 0 else 0
        sizes.append(size)
    if min(sizes) < 1:
        least = minimum_size(network)
        raise ValueError(
            f"an image of {height} x {width} pixels is too small for {network.architecture}: "
            f"it needs at least {least} x {least}"
        )
    return sizes[0], sizes[1]


def minimum_size(network: Network) -> int:
    """The least number of pixels along a side that gives one cell."""
    needed = 1
    for layer in reversed(network.layers):
        needed = input_size(layer, needed)
    return needed


def weight_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Flat names of all weights and their shapes: `{"conv1.kernel": (kh, kw, in, out), ...}`."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for layer in ARCHITECTURES[architecture].layers:
        for name, shape in kernels(layer, inputs).items():
            shapes[f"{name}.kernel"] = shape
            shapes[f"{name}.bias"] = shape[-1:]
        inputs = channels(layer, inputs)
    return shapes
