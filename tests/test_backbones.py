"""The networks: exact padded batches, sizes, types and the smallest images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_networks
import torch_resnets

from rmacjax import backbones
from rmacjax.backbones import (
    ARCHITECTURES,
    CAFFE_CONVENTION,
    TORCHVISION_CONVENTION,
    InputConvention,
    Network,
    forward,
    initialize,
    input_means,
    map_size,
    minimum_size,
    stride,
    weight_shapes,
)

run = jax.jit(forward)

# Every network with and without its last pool.
NETWORKS = [
    Network(
        name,
        last_pool,
        CAFFE_CONVENTION
        if name.endswith("-caffe") or name == "alexnet-2012"
        else TORCHVISION_CONVENTION,
    )
    for name, architecture in ARCHITECTURES.items()
    for last_pool in ((True, False) if architecture.ends_with_pool else (False,))
]


def label(network):
    return f"{network.architecture}{'-pool' if network.last_pool else ''}"


every_network = pytest.mark.parametrize("network", NETWORKS, ids=label)
# Compiling takes long: of ResNets with the same kinds of blocks, the smallest stands for all.
DEEPER = ("resnet34", "resnet101")
every_architecture = pytest.mark.parametrize(
    "architecture", [name for name in ARCHITECTURES if not name.startswith(DEEPER)]
)
compiled_network = pytest.mark.parametrize(
    "network", [n for n in NETWORKS if not n.architecture.startswith(DEEPER)], ids=label
)
every_table = pytest.mark.parametrize("architecture", ARCHITECTURES)


@functools.cache
def weights_of(architecture):
    """He's kernels; biases that are not zero, so that forgotten padding shows."""
    weights = initialize(architecture, 1)
    rng = np.random.default_rng(2)
    return {
        name: value
        if name.endswith(".kernel")
        else jnp.asarray(rng.uniform(-0.2, 0.5, value.shape), jnp.float32)
        for name, value in weights.items()
    }


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(architecture):
    """The network with its last pool, if it has one; all tests share its compilations."""
    last_pool = ARCHITECTURES[architecture].ends_with_pool
    return Network(architecture, last_pool, TORCHVISION_CONVENTION)


SIDE = 110
SIZES = np.array([[SIDE, 83], [75, SIDE], [90, 97]], np.int32)


@every_architecture
def test_padded_batch_equals_one_by_one(architecture):
    network, weights = whole(architecture), weights_of(architecture)
    batch = np.full((3, SIDE, SIDE, 3), 200, np.uint8)  # what the padding holds must not matter
    for i, (height, width) in enumerate(SIZES):
        batch[i, :height, :width] = picture(height, width, i)
    maps, cells = run(network, weights, batch, SIZES)
    assert maps.dtype == jnp.float32 and cells.dtype == jnp.int32
    for i, (height, width) in enumerate(SIZES):
        alone, (own,) = run(network, weights, picture(height, width, i)[None])
        h, w = map_size(network, int(height), int(width))
        assert tuple(cells[i].tolist()) == tuple(own.tolist()) == alone.shape[1:3] == (h, w)
        scale = float(alone.max())
        assert scale > 0
        np.testing.assert_allclose(maps[i, :h, :w], alone[0], rtol=0, atol=1e-5 * scale)
        beyond = np.asarray(maps[i]).copy()
        beyond[:h, :w] = 0
        assert not beyond.any()


@every_network
def test_map_size_is_that_of_the_map(network):
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in weight_shapes(network.architecture).items()
    }
    least = minimum_size(network)
    for height, width in [(least, least), (least + 1, 97), (160, 133), (224, 223), (768, 1024)]:
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
        maps, _ = jax.eval_shape(lambda w, x: forward(network, w, x), shapes, images)
        assert maps.shape == (1, *map_size(network, height, width), network.channels)


@every_network
def test_map_size_is_pytorchs(network):
    resnet = network.architecture in torch_resnets.DEPTHS
    if resnet:
        with torch.device("meta"):
            reference = torch_resnets.ResNet(network.architecture)
    else:
        weights = torch_networks.random_weights(network.architecture)
    for height, width in [(70, 131), (99, 100)]:
        if resnet:
            shape = reference(torch.zeros(1, 3, height, width, device="meta")).shape
            assert map_size(network, height, width) == tuple(shape[2:])
            assert network.channels == shape[1]
            continue
        zeros = np.zeros((1, height, width, 3), np.uint8)
        truth = torch_networks.activations(
            network.architecture,
            weights,
            zeros,
            network.last_pool,
        )
        assert map_size(network, height, width) == truth.shape[1:3]


def test_published_sizes():
    vgg = Network("vgg16", True, CAFFE_CONVENTION)
    assert map_size(vgg, 768, 1024) == (24, 32)  # Tolias et al., section 3
    assert stride(vgg) == 32
    assert map_size(dataclasses.replace(vgg, last_pool=False), 768, 1024) == (48, 64)
    assert map_size(Network("alexnet", True, TORCHVISION_CONVENTION), 224, 224) == (6, 6)
    assert map_size(Network("alexnet-caffe", True, CAFFE_CONVENTION), 227, 227) == (6, 6)
    squeeze = Network("squeezenet1_1", False, TORCHVISION_CONVENTION)
    assert map_size(squeeze, 224, 224) == (13, 13)
    assert stride(squeeze) == 16
    for name in ("resnet18", "resnet50", "resnet101", "resnet50-caffe"):  # He et al., table 1
        resnet = Network(name, False, TORCHVISION_CONVENTION)
        assert map_size(resnet, 224, 224) == (7, 7)
        assert stride(resnet) == 32
    early = Network("resnet18-layer3", False, TORCHVISION_CONVENTION)
    assert map_size(early, 224, 224) == (14, 14)
    assert (stride(early), early.channels) == (16, 256)


@compiled_network
def test_smallest_images(network):
    least = minimum_size(network)
    assert map_size(network, least, least) == (1, 1)
    maps, cells = run(network, weights_of(network.architecture), picture(least, least)[None])
    assert maps.shape == (1, 1, 1, network.channels)
    assert np.isfinite(maps).all() and np.asarray(maps).any()
    assert cells.tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=rf"too small.*at least {least} x {least}"):
        map_size(network, least - 1, 500)
    with pytest.raises(ValueError, match="too small"):
        map_size(network, 500, least - 1)


@every_architecture
def test_any_pixels_give_finite_non_negative_maps(architecture):
    black, white = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    white += 255
    stripes = np.where(picture(SIDE, SIDE) > 127, white, black)
    full = np.full((3, 2), SIDE, np.int32)
    batch = np.stack([black, white, stripes])
    maps, _ = run(whole(architecture), weights_of(architecture), batch, full)
    assert np.isfinite(maps).all()
    assert (np.asarray(maps) >= 0).all()


@pytest.mark.parametrize(
    "architecture", ["vgg16", "alexnet", "alexnet-caffe", "squeezenet1_1", "resnet18"]
)
def test_bfloat16_is_close(architecture):
    half = dataclasses.replace(whole(architecture), compute_dtype="bfloat16")
    batch = np.stack([picture(SIDE, SIDE, i) for i in range(3)])
    exact, _ = run(whole(architecture), weights_of(architecture), batch, SIZES)
    close, _ = run(half, weights_of(architecture), batch, SIZES)
    assert close.dtype == jnp.float32
    exact, close = np.asarray(exact), np.asarray(close)
    cosine = np.vdot(exact, close) / np.linalg.norm(exact) / np.linalg.norm(close)
    assert cosine > 0.999
    assert not np.array_equal(exact, close)
    np.testing.assert_allclose(close, exact, rtol=0, atol=0.05 * exact.max())


def test_float_pixels_are_uint8_pixels():
    batch = np.stack([picture(SIDE, SIDE, i) for i in range(3)])
    network, weights = whole("alexnet"), weights_of("alexnet")
    bytes_, _ = run(network, weights, batch, SIZES)
    floats, _ = run(network, weights, batch.astype(np.float32), SIZES)
    np.testing.assert_allclose(floats, bytes_, rtol=0, atol=1e-5 * float(bytes_.max()))


def test_convention_is_applied():
    # The same weights under a convention and its own undoing: first kernels and biases adapted.
    image = picture(70, 80)[None]
    convention = InputConvention("BGR", 0.5, (10.0, 20.0, 30.0), (2.0, 3.0, 4.0))
    weights = weights_of("alexnet-caffe")  # no padding before the first convolution
    kernel = np.asarray(weights["conv1.kernel"], np.float64)
    mean, std = np.array(convention.mean), np.array(convention.std)
    plain = dict(weights)
    plain["conv1.kernel"] = jnp.asarray((0.5 * kernel / std[:, None])[:, :, ::-1], jnp.float32)
    shift = (kernel * (mean / std)[:, None]).sum((0, 1, 2))
    plain["conv1.bias"] = jnp.asarray(weights["conv1.bias"] - shift, jnp.float32)
    expected, _ = run(Network("alexnet-caffe", False, InputConvention()), plain, image)
    found, _ = run(Network("alexnet-caffe", False, convention), weights, image)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.max()))


@every_table
def test_weights_are_those_of_pytorch(architecture):
    assert weight_shapes(architecture) == {
        f"{layer}.{ours}": shape
        for layer, (o, i, height, width) in torch_networks.KERNELS[architecture].items()
        for ours, shape in (("kernel", (height, width, i, o)), ("bias", (o,)))
    }


@every_architecture
def test_initial_weights(architecture):
    first, again, other = (initialize(architecture, seed) for seed in (0, 0, 1))
    assert {name: value.shape for name, value in first.items()} == weight_shapes(architecture)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        if name.endswith(".kernel"):
            assert not np.array_equal(value, other[name])
            assert np.var(value) == pytest.approx(2 / np.prod(value.shape[:3]), rel=0.2)
        else:
            assert not np.asarray(value).any()


def test_gradients_reach_the_first_layer():
    network, weights = whole("alexnet"), weights_of("alexnet")
    image = jnp.asarray(picture(70, 70)[None])
    gradient = jax.jit(jax.grad(lambda w: forward(network, w, image)[0].sum()))(weights)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert np.asarray(gradient["conv1.kernel"]).any()


def test_networks_are_static_under_jit():
    network = Network("alexnet", True, TORCHVISION_CONVENTION)
    assert jax.tree.leaves(network) == []
    assert hash(network) == hash(dataclasses.replace(network))


def test_bad_networks():
    with pytest.raises(ValueError, match=r"unknown architecture 'resnet'; known are vgg16, "):
        Network("resnet", True, CAFFE_CONVENTION)
    with pytest.raises(ValueError, match="squeezenet1_1 does not end with a pool"):
        Network("squeezenet1_1", True, TORCHVISION_CONVENTION)


def test_layers_before_the_last_pool():
    for name, architecture in ARCHITECTURES.items():
        network = Network(name, False, CAFFE_CONVENTION)
        assert not isinstance(network.layers[-1], backbones.MaxPool)
        assert network.channels == architecture.channels


def test_input_means_are_those_of_what_convolutions_see(rng):
    """By a network that ends there, and of pixels by hand."""
    network = Network("resnet18", False, TORCHVISION_CONVENTION)
    weights = initialize("resnet18", 0)
    images = rng.integers(0, 256, (2, 96, 80, 3), np.uint8)
    sizes = np.asarray([[96, 80], [64, 72]], np.int32)
    given = jnp.asarray(images), jnp.asarray(sizes)
    means = input_means(network, weights, *given)
    kernels = {name.removesuffix(".kernel") for name in weights if name.endswith(".kernel")}
    assert set(means) == kernels
    shorter = Network("resnet18-layer3", False, TORCHVISION_CONVENTION)
    maps, _ = forward(shorter, weights, *given)
    valid = 96 * 80 + 64 * 72
    cells = 2 * 96 * 80 / valid
    for name in ("layer4_0.conv1", "layer4_0.shortcut"):
        np.testing.assert_allclose(means[name], cells * np.mean(maps, axis=(0, 1, 2)), rtol=1e-5)
    convention = TORCHVISION_CONVENTION
    pixels = (images * convention.scale - np.asarray(convention.mean)) / np.asarray(convention.std)
    pixels[1, 64:], pixels[1, :, 72:] = 0, 0
    np.testing.assert_allclose(means["conv1"], pixels.sum((0, 1, 2)) / valid, rtol=1e-4)
