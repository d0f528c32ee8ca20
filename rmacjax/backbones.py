"""Backbones: convolutional networks that turn an image into an activation map.

A network is data to everyone else: a table of layers (`ARCHITECTURES`), a few static facts
(`Network`) and a flat dictionary of weights. One Flax module interprets the table, so training,
describing and re-ranking share one forward pass.

Images of different sizes share a batch *exactly*. They are padded with zeros at the bottom and the
right, and after every convolution and ReLU the cells beyond an image's own size are set to zero
again. A convolution then sees at its border what it would see alone (its own zero padding), and a
maximum over non-negative values ignores zeros, so the valid cells are those of a batch of one.

References: Simonyan & Zisserman 2015 (VGG16); Krizhevsky et al. 2012 and 2014 (AlexNet in Caffe's
and in torchvision's shape); Iandola et al. 2016 (SqueezeNet); Tolias et al., ICLR 2016, section 3
(which layer is taken).
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int, Num

Weights = dict[str, Float[Array, "..."]]


class Convolution(NamedTuple):
    """A square convolution with bias, followed by a ReLU."""

    name: str
    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


class Fire(NamedTuple):
    """SqueezeNet's block: a 1 x 1 squeeze, then 1 x 1 and 3 x 3 expansions side by side."""

    name: str
    squeeze: int
    expand: int


class MaxPool(NamedTuple):
    """A square maximum; `ceil` lets the last window hang over the border, as Caffe does.

    Windows are wider than their stride, so with `ceil` the last one still starts inside.
    """

    window: int
    stride: int
    ceil: bool = False


class ResponseNormalization(NamedTuple):
    """Local response normalization across channels: `x / (k + alpha / size * sum x^2) ** beta`."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


Layer = Convolution | Fire | MaxPool | ResponseNormalization


@dataclass(frozen=True)
class Architecture:
    """The layers of a network up to the one whose output is the activation map."""

    layers: tuple[Layer, ...]
    channels: int

    @property
    def ends_with_pool(self) -> bool:
        """Whether there is a last pool to keep or to leave out."""
        return isinstance(self.layers[-1], MaxPool)


def _vgg16() -> Architecture:
    layers: list[Layer] = []
    for block, (depth, features) in enumerate(
        ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1
    ):
        layers += [
            Convolution(f"conv{block}_{i}", features, kernel=3, padding=1)
            for i in range(1, depth + 1)
        ]
        layers.append(MaxPool(2, 2))
    return Architecture(tuple(layers), channels=512)


def _squeezenet() -> Architecture:
    pool = MaxPool(3, 2, ceil=True)
    return Architecture(
        (
            Convolution("conv1", 64, kernel=3, stride=2),
            pool,
            Fire("fire2", 16, 64),
            Fire("fire3", 16, 64),
            pool,
            Fire("fire4", 32, 128),
            Fire("fire5", 32, 128),
            pool,
            Fire("fire6", 48, 192),
            Fire("fire7", 48, 192),
            Fire("fire8", 64, 256),
            Fire("fire9", 64, 256),
        ),
        channels=512,
    )


ARCHITECTURES = MappingProxyType(
    {
        "vgg16": _vgg16(),
        "alexnet": Architecture(  # as torchvision has it: one tower, no normalization
            (
                Convolution("conv1", 64, kernel=11, stride=4, padding=2),
                MaxPool(3, 2),
                Convolution("conv2", 192, kernel=5, padding=2),
                MaxPool(3, 2),
                Convolution("conv3", 384, kernel=3, padding=1),
                Convolution("conv4", 256, kernel=3, padding=1),
                Convolution("conv5", 256, kernel=3, padding=1),
                MaxPool(3, 2),
            ),
            channels=256,
        ),
        "alexnet-caffe": Architecture(  # the paper's: CaffeNet, which pools before it normalizes
            (
                Convolution("conv1", 96, kernel=11, stride=4),
                MaxPool(3, 2, ceil=True),
                ResponseNormalization(),
                Convolution("conv2", 256, kernel=5, padding=2, groups=2),
                MaxPool(3, 2, ceil=True),
                ResponseNormalization(),
                Convolution("conv3", 384, kernel=3, padding=1),
                Convolution("conv4", 384, kernel=3, padding=1, groups=2),
                Convolution("conv5", 256, kernel=3, padding=1, groups=2),
                MaxPool(3, 2, ceil=True),
            ),
            channels=256,
        ),
        "squeezenet1_1": _squeezenet(),
    }
)


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
        thresholds: for each stage of a search ("filter", "rerank", "expand") the least score that
            counts as found, where they have been learned; they come with the whitening.
        compute_dtype: the type of the convolutions, "float32" or "bfloat16"; maps are float32.
        name: what messages call it.
        source: what `rmacjax.load` finds it again by, a known name or a file's path; empty for a
            network that was never stored.
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
    return int(np.prod([getattr(layer, "stride", 1) for layer in network.layers]))


def _steps(layer: Layer) -> tuple[int, int, int, bool] | None:
    """Window, stride, padding on either side and ceil mode; None where the size stays."""
    match layer:
        case Convolution(kernel=kernel, stride=step, padding=padding):
            return kernel, step, padding, False
        case MaxPool(window=window, stride=step, ceil=ceil):
            return window, step, 0, ceil
        case _:
            return None


def _output_size(layer: Layer, size: Any) -> Any:
    """Cells after a layer along one axis, for Python integers and for traced arrays alike."""
    steps = _steps(layer)
    if steps is None:
        return size
    window, step, padding, ceil = steps
    return (size + 2 * padding - window + (step - 1 if ceil else 0)) // step + 1


def map_size(network: Network, height: int, width: int) -> tuple[int, int]:
    """Cells `(h, w)` of the activation map of an image of `height` x `width` pixels.

    Raises:
        ValueError: if the image is too small for a single cell.
    """
    sizes = []
    for size in (height, width):
        for layer in network.layers:
            size = int(_output_size(layer, size)) if size > 0 else 0
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
        steps = _steps(layer)
        if steps is not None:
            window, step, padding, ceil = steps
            # The fewest inputs that give `needed` outputs; ceil mode forgives all but one pixel
            # of the stride.
            needed = (needed - 1) * step + window - 2 * padding - (step - 1 if ceil else 0)
            needed = max(needed, 1)
    return needed


def weight_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Flat names of all weights and their shapes: `{"conv1.kernel": (kh, kw, in, out), ...}`."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for layer in ARCHITECTURES[architecture].layers:
        match layer:
            case Convolution(name=name, features=features, kernel=kernel, groups=groups):
                shapes[f"{name}.kernel"] = (kernel, kernel, inputs // groups, features)
                shapes[f"{name}.bias"] = (features,)
                inputs = features
            case Fire(name=name, squeeze=squeeze, expand=expand):
                for part, kernel, before, after in (
                    ("squeeze", 1, inputs, squeeze),
                    ("expand1x1", 1, squeeze, expand),
                    ("expand3x3", 3, squeeze, expand),
                ):
                    shapes[f"{name}.{part}.kernel"] = (kernel, kernel, before, after)
                    shapes[f"{name}.{part}.bias"] = (after,)
                inputs = 2 * expand
    return shapes


def initialize(architecture: str, seed: int) -> Weights:
    """Random weights: He's normal kernels, zero biases.

    Args:
        architecture: a key of `ARCHITECTURES`.
        seed: the same seed gives the same weights.

    References: He et al. 2015.
    """
    shapes = weight_shapes(architecture)
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    kernel = nn.initializers.he_normal()
    return {
        name: kernel(key, shape) if name.endswith(".kernel") else jnp.zeros(shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _erase_beyond(x: Array, sizes: Array | None) -> Array:
    """Set the cells outside each image's valid size to zero."""
    if sizes is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :, None, None] < sizes[:, 0, None, None, None]
    columns = jnp.arange(x.shape[2])[None, None, :, None] < sizes[:, 1, None, None, None]
    return jnp.where(rows & columns, x, jnp.zeros((), x.dtype))


class _Backbone(nn.Module):
    """Interprets a table of layers."""

    layers: tuple[Layer, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> tuple[Array, Array | None]:
        for layer in self.layers:
            match layer:
                case Convolution():
                    x = nn.relu(self._convolve(layer)(x))
                case Fire():
                    x = _FireBlock(layer, self.dtype, name=layer.name)(x, sizes)
                case MaxPool():
                    x = self._pool(layer, x)
                case ResponseNormalization():
                    x = self._normalize(layer, x)
            if sizes is not None:
                sizes = _output_size(layer, sizes)
            x = _erase_beyond(x, sizes)
        return x, sizes

    def _convolve(self, layer: Convolution) -> nn.Conv:
        return nn.Conv(
            layer.features,
            (layer.kernel, layer.kernel),
            strides=layer.stride,
            padding=layer.padding,
            feature_group_count=layer.groups,
            dtype=self.dtype,
            name=layer.name,
        )

    @staticmethod
    def _pool(layer: MaxPool, x: Array) -> Array:
        overhang = [
            max(0, (_output_size(layer, size) - 1) * layer.stride + layer.window - size)
            for size in x.shape[1:3]
        ]
        window = (layer.window, layer.window)
        step = (layer.stride, layer.stride)
        return nn.max_pool(x, window, step, [(0, overhang[0]), (0, overhang[1])])

    @staticmethod
    def _normalize(layer: ResponseNormalization, x: Array) -> Array:
        half = layer.size // 2
        squares = jnp.pad(x * x, ((0, 0), (0, 0), (0, 0), (half, half)))
        energy = sum(squares[..., i : i + x.shape[-1]] for i in range(layer.size))
        return x * (layer.k + layer.alpha / layer.size * energy) ** -layer.beta


class _FireBlock(nn.Module):
    """SqueezeNet's block, erased beyond each image's size between its two stages."""

    layer: Fire
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> Array:
        squeeze = nn.Conv(self.layer.squeeze, (1, 1), dtype=self.dtype, name="squeeze")
        left = nn.Conv(self.layer.expand, (1, 1), dtype=self.dtype, name="expand1x1")
        right = nn.Conv(self.layer.expand, (3, 3), padding=1, dtype=self.dtype, name="expand3x3")
        x = _erase_beyond(nn.relu(squeeze(x)), sizes)
        return nn.relu(jnp.concatenate([left(x), right(x)], axis=-1))


def _normalize_pixels(convention: InputConvention, images: Array, sizes: Array | None) -> Array:
    x = images.astype(jnp.float32) * jnp.float32(convention.scale)
    if convention.order == "BGR":
        x = x[..., ::-1]
    mean = jnp.asarray(convention.mean, jnp.float32)[None, None, None, :]
    std = jnp.asarray(convention.std, jnp.float32)[None, None, None, :]
    return _erase_beyond((x - mean) / std, sizes)


def forward(
    network: Network,
    weights: Weights,
    images: Num[Array, "n H W 3"],
    sizes: Int[Array, "n 2"] | None = None,
) -> tuple[Float[Array, "n h w c"], Int[Array, "n 2"]]:
    """Run the network on a batch: images in, activation maps out.

    Args:
        network: the static facts.
        weights: flat dictionary of weights, see `weight_shapes`.
        images: RGB, uint8 or float in 0..255.
        sizes: valid height and width of each image in pixels where the batch is padded at the
            bottom and the right; what the padding holds does not matter. None: all of it.

    Returns:
        Activation maps, float32 and non-negative, zero beyond each map's valid size; and the valid
        sizes `(h, w)` in cells, int32.
    """
    x = _normalize_pixels(network.convention, images, sizes)
    dtype = jnp.dtype(network.compute_dtype)
    module = _Backbone(network.layers, dtype)
    parameters = {"params": unflatten_dict(weights, sep=".")}
    outcome: Any = module.apply(parameters, x.astype(dtype), sizes)
    x, cells = outcome
    if cells is None:
        cells = jnp.broadcast_to(jnp.asarray(x.shape[1:3], jnp.int32), (x.shape[0], 2))
    return x.astype(jnp.float32), cells.astype(jnp.int32)
