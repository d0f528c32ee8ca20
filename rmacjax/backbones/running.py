"""Running a network: one Flax module interprets the table of layers.

Images of different sizes share a batch *exactly*. They are padded with zeros at the bottom and the
right, and after every convolution and ReLU the cells beyond an image's own size are set to zero
again. A convolution then sees at its border what it would see alone (its own zero padding), and a
maximum over non-negative values ignores zeros, so the valid cells are those of a batch of one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int, Num

from rmacjax.backbones.layers import (
    Convolution,
    Fire,
    Layer,
    MaxPool,
    Residual,
    ResponseNormalization,
    output_size,
)
from rmacjax.backbones.network import InputConvention, Network, weight_shapes

Weights = dict[str, Float[Array, "..."]]


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
    recompute: bool = False

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> tuple[Array, Array | None]:
        for part in _parts(self.layers) if self.recompute else (self.layers,):

            def run(
                module: nn.Module,
                x: Array,
                sizes: Array | None,
                layers: tuple[Layer, ...] = part,
            ) -> tuple[Array, Array | None]:
                return self._run(layers, x, sizes)

            x, sizes = (nn.remat(run) if self.recompute else run)(self, x, sizes)
        return x, sizes

    def _run(
        self, layers: tuple[Layer, ...], x: Array, sizes: Array | None
    ) -> tuple[Array, Array | None]:
        for layer in layers:
            match layer:
                case Convolution():
                    x = nn.relu(_convolve(layer, self.dtype)(x))
                case Fire():
                    x = _FireBlock(layer, self.dtype, name=layer.name)(x, sizes)
                case Residual():
                    x = _ResidualBlock(layer, self.dtype, name=layer.name)(x, sizes)
                case MaxPool():
                    x = _pool(layer, x)
                case ResponseNormalization():
                    x = _normalize(layer, x)
            if sizes is not None:
                sizes = output_size(layer, sizes)
            x = _erase_beyond(x, sizes)
        return x, sizes


def _parts(layers: tuple[Layer, ...]) -> list[tuple[Layer, ...]]:
    """The layers in runs that each end where the map shrinks, so that what is kept is small."""
    parts: list[tuple[Layer, ...]] = []
    start = 0
    for i, layer in enumerate(layers, 1):
        if getattr(layer, "stride", 1) > 1 or i == len(layers):
            parts.append(layers[start:i])
            start = i
    return parts


def _convolve(layer: Convolution, dtype: jnp.dtype) -> nn.Conv:
    return nn.Conv(
        layer.features,
        (layer.kernel, layer.kernel),
        strides=layer.stride,
        padding=layer.padding,
        feature_group_count=layer.groups,
        dtype=dtype,
        name=layer.name,
    )


def _pool(layer: MaxPool, x: Array) -> Array:
    # What is padded counts less than any value (minus infinity), not as zero.
    overhang = [
        max(0, (output_size(layer, size) - 1) * layer.stride + layer.window - size - layer.padding)
        for size in x.shape[1:3]
    ]
    window = (layer.window, layer.window)
    step = (layer.stride, layer.stride)
    return nn.max_pool(x, window, step, [(layer.padding, after) for after in overhang])


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


class _ResidualBlock(nn.Module):
    """ResNet's block, erased beyond each image's size between the branch's convolutions."""

    layer: Residual
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, sizes: Array | None) -> Array:
        shortcut = self.layer.shortcut
        kept = x if shortcut is None else _convolve(shortcut, self.dtype)(x)
        for i, convolution in enumerate(self.layer.branch):
            if i > 0:
                x = _erase_beyond(nn.relu(x), sizes)
            x = _convolve(convolution, self.dtype)(x)
            if sizes is not None:
                sizes = output_size(convolution, sizes)
        return nn.relu(x + kept)


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
    *,
    recompute: bool = False,
) -> tuple[Float[Array, "n h w c"], Int[Array, "n 2"]]:
    """Run the network on a batch: images in, activation maps out.

    Args:
        network: the static facts.
        weights: flat dictionary of weights, see `weight_shapes`.
        images: RGB, uint8 or float in 0..255.
        sizes: valid height and width of each image in pixels where the batch is padded at the
            bottom and the right; what the padding holds does not matter. None: all of it.
        recompute: for training: keep only the maps between parts of the network for the gradient
            and compute what lies between again, a third more work for a fraction of the memory.

    Returns:
        Activation maps, float32 and non-negative, zero beyond each map's valid size; and the valid
        sizes `(h, w)` in cells, int32.
    """
    x = _normalize_pixels(network.convention, images, sizes)
    dtype = jnp.dtype(network.compute_dtype)
    module = _Backbone(network.layers, dtype, recompute)
    parameters = {"params": unflatten_dict(weights, sep=".")}
    outcome: Any = module.apply(parameters, x.astype(dtype), sizes)
    x, cells = outcome
    if cells is None:
        cells = jnp.broadcast_to(jnp.asarray(x.shape[1:3], jnp.int32), (x.shape[0], 2))
    return x.astype(jnp.float32), cells.astype(jnp.int32)


def input_means(
    network: Network, weights: Weights, images: Num[Array, "n H W 3"], sizes: Int[Array, "n 2"]
) -> dict[str, Float[Array, " c"]]:
    """What the convolutions of a network get to see on average: `{"conv1": (channels in,), ...}`.

    Args:
        network: the static facts.
        weights: flat dictionary of weights.
        images: as in `forward`.
        sizes: valid height and width of each image in pixels. Cells beyond them are zero and do
            not count, but for rounding: the share of valid cells is taken to be that of pixels.

    Returns:
        For each convolution, by the name of its kernel and bias, the mean of each channel.
    """
    pixels = jnp.maximum(jnp.sum(jnp.prod(sizes.astype(jnp.float32), axis=1)), 1.0)
    all_cells = math.prod(images.shape[:3]) / pixels
    means: dict[str, Array] = {}

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            name = ".".join(context.module.path)
            means[name] = all_cells * jnp.mean(args[0].astype(jnp.float32), axis=(0, 1, 2))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        forward(network, weights, images, sizes)
    return means
