"""ResNets, Caffe's files, MATLAB's newer files and retrieval checkpoints, each against PyTorch."""

import collections
import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import h5py
import jax
import matlab_writer
import numpy as np
import pytest
import scipy.io
import torch
import torch_networks
import torch_resnets
from caffe_writer import caffemodel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rmacjax import backbones
from rmacjax.backbones import CAFFE_CONVENTION, TORCHVISION_CONVENTION, InputConvention, forward
from rmacjax.cli import main
from rmacjax.descriptors import Settings
from rmacjax.extraction import describe
from rmacjax.foreign import Stored
from rmacjax.pooling import gem
from rmacjax.preprocessing import resize
from rmacjax.weights import (
    caffe_files,
    convert,
    convert_file,
    describe_file,
    load,
    mat_hdf5_files,
    save,
)
from rmacjax.weights import retrieval as retrieval_module
from rmacjax.weights.mat_files import read_mat
from rmacjax.whitening import whiten

run = jax.jit(forward)


pytestmark = pytest.mark.usefixtures("not_measured")


def pictures(height, width):
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)


def pixels(images, convention):
    x = images.astype(np.float64) * convention.scale
    x = x[..., ::-1] if convention.order == "BGR" else x
    return (x - np.array(convention.mean)) / np.array(convention.std)


def assert_same_maps(params, network, sizes, convention):
    for height, width in sizes:
        images = pictures(height, width)
        maps, _ = run(params.network, params.weights, images)
        truth = torch_resnets.activations(network, pixels(images, convention))
        assert maps.shape == truth.shape
        assert truth.max() > 0
        np.testing.assert_allclose(maps, truth, rtol=0, atol=1e-4 * truth.max())


# --- ResNets -------------------------------------------------------------------------------------


@functools.cache
def resnet(architecture):
    return torch_resnets.make(architecture)


def state_of(architecture):
    state = collections.OrderedDict(resnet(architecture).state_dict())
    return state | {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("resnet18", [(65, 97), (64, 96)]),
        ("resnet18-layer3", [(65, 98), (96, 64)]),
        ("resnet34", [(33, 66)]),
        ("resnet50", [(65, 97), (70, 64)]),
        ("resnet101", [(65, 97)]),
    ],
)
def test_resnets_of_pytorch(file, architecture, sizes):
    torch.save({"state_dict": state_of(architecture)}, file)
    converted = convert_file(file)
    params = converted.params
    assert params.network.architecture == architecture
    assert not params.network.last_pool
    assert params.network.convention == TORCHVISION_CONVENTION
    assert set(params.weights) == set(backbones.weight_shapes(architecture))
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(converted.ignored)
    assert_same_maps(params, resnet(architecture), sizes, TORCHVISION_CONVENTION)


def fused(architecture):
    """The same network without normalizations, by PyTorch's own fusion."""
    state = {name: value.detach() for name, value in resnet(architecture).state_dict().items()}
    folded = {}
    for name in [name for name in state if name.endswith("weight") and state[name].ndim == 4]:
        conv = name.removesuffix(".weight")
        bn = f"{conv[:-1]}1" if conv.endswith("downsample.0") else "bn".join(conv.rsplit("conv", 1))
        numbers = [
            state[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        ]
        mean, variance, scale, shift = numbers
        kernel, bias = fuse_conv_bn_weights(state[name], None, mean, variance, 1e-5, scale, shift)
        folded |= {name: kernel.detach().numpy(), f"{conv}.bias": bias.detach().numpy()}
    return folded


@pytest.mark.parametrize("architecture", ["resnet18", "resnet18-layer3", "resnet50", "resnet101"])
def test_folding_is_pytorchs(file, architecture):
    torch.save(state_of(architecture), file)
    ours = convert_file(file)
    assert ours.scheme == "torchvision's"
    with open(file, "wb") as opened:
        np.savez(opened, **fused(architecture))
    theirs = convert_file(file)
    assert theirs.scheme == "torchvision's, folded,"
    assert theirs.params.network == ours.params.network
    for name, array in theirs.params.weights.items():
        np.testing.assert_allclose(ours.params.weights[name], array, rtol=1e-4, atol=1e-6)


def test_a_convolution_may_have_a_bias_before_its_normalization(file):
    state = state_of("resnet18-layer3")
    torch.save(state, file)
    without = convert(file).weights
    bias = torch.linspace(-1, 1, 64)
    torch.save(state | {"conv1.bias": bias}, file)
    gain = (state["bn1.weight"] / (state["bn1.running_var"] + 1e-5).sqrt()).numpy()
    found = convert(file).weights["conv1.bias"]
    np.testing.assert_allclose(found, without["conv1.bias"] + bias.numpy() * gain, atol=1e-5)


def test_a_larger_resnet_may_be_cut(file):
    torch.save(state_of("resnet18"), file)
    cut = convert_file(file, architecture="resnet18-layer3")
    assert cut.params.network.channels == 256
    assert any(name.startswith("layer4.") for name in cut.ignored)
    with pytest.raises(ValueError, match=r"does not fit resnet34.*missing: layer1.2.conv1.weight"):
        convert(file, architecture="resnet34")


def test_a_resnet_that_lacks_something(file):
    state = state_of("resnet50")
    del state["layer2.1.bn2.running_var"]
    state["layer4.0.downsample.0.weight"] = torch.ones(2048, 1024, 3, 3)
    torch.save(state, file)
    with pytest.raises(
        ValueError,
        match=r"does not fit resnet50 .*missing: layer2.1.bn2.running_var; mis-shaped: "
        r"layer4.0.downsample.0.weight \(2048, 1024, 3, 3\) instead of \(2048, 1024, 1, 1\)$",
    ):
        convert(file)
    torch.save(state_of("resnet18-layer3") | {"bn1.running_var": torch.full((64,), -1.0)}, file)
    with pytest.raises(ValueError, match=r"file: bn1.running_var holds numbers that are no spread"):
        convert(file)


def test_a_resnet_goes_round(file, tmp_path):
    torch.save(state_of("resnet18-layer3"), file)
    params = convert(file)
    path = save(tmp_path / "ours.safetensors", params, origin="a test", licence="CC0-1.0")
    again = load(path)
    assert again.network.architecture == "resnet18-layer3"
    for name, array in params.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    shown = describe_file(path)
    assert (shown["channels"], shown["stride"], shown["last_pool"]) == (256, 16, False)
    with pytest.raises(ValueError, match="resnet18-layer3 does not end with a pool"):
        load(path, last_pool=True)


def test_real_resnet18(shared, measured):
    params = convert(shared / "weights" / "resnet18_layer1to3_bnfolded.npz")
    assert params.network.architecture == "resnet18-layer3"
    assert params.network.convention == TORCHVISION_CONVENTION
    vectors, loudest = {}, []
    folder = shared / "data" / "oxford5k_mini"
    for kind in ("pitt_rivers", "radcliffe_camera"):
        for photo in sorted(folder.rglob(f"{kind}*.jpg"))[:3]:
            image = np.asarray(Image.open(photo).convert("RGB").resize((256, 192)))
            maps, _ = run(params.network, params.weights, image[None])
            vector = np.asarray(maps[0]).mean((0, 1))
            vectors[photo.stem] = vector / np.linalg.norm(vector)
            loudest.append(np.asarray(maps[0]).max((0, 1)).mean())
    # On photos, too, the channels' maxima lie in the middle of the paper's range of 0..128.
    assert 24 < np.mean(loudest) * params.network.activation_scale < 96
    names = list(vectors)
    likeness = np.stack([*vectors.values()]) @ np.stack([*vectors.values()]).T
    alike = np.array([[a[:4] == b[:4] for a in names] for b in names]) & ~np.eye(6, dtype=bool)
    other = np.array([[a[:4] != b[:4] for a in names] for b in names])
    assert likeness[alike].mean() > likeness[other].mean()


# --- Caffe ---------------------------------------------------------------------------------------


def caffe_layers_of_resnet(architecture, factor=3.0):
    """As its authors published it, names taken from their published definition."""
    state = {n: v.detach().numpy() for n, v in resnet(architecture).state_dict().items()}
    long = architecture.startswith("resnet101")
    names = [("conv1", "bn1", "conv1", "_conv1")]
    for stage in (1, 2, 3, 4):
        depth = torch_resnets.DEPTHS[architecture][stage - 1]
        letters = (
            ["a", *(f"b{i}" for i in range(1, depth))] if long and stage in (2, 3) else "abcdef"
        )
        for block in range(depth):
            place = f"{stage + 1}{letters[block]}_branch"
            before = f"layer{stage}.{block}"
            names += [
                (f"{before}.conv{i}", f"{before}.bn{i}", f"res{place}2{x}", f"{place}2{x}")
                for i, x in enumerate("abc", start=1)
            ]
            if block == 0:
                shortcut = f"{before}.downsample"
                names.append((f"{shortcut}.0", f"{shortcut}.1", f"res{place}1", f"{place}1"))
    for conv, bn, theirs, place in names:
        blobs = [state[f"{conv}.weight"]]
        if conv == "conv1":  # it has a bias, in spite of the normalization
            blobs.append(np.full(64, 0.25, np.float32))
        yield theirs, "Convolution", blobs
        mean, variance = (state[f"{bn}.running_{part}"] for part in ("mean", "var"))
        mean = mean + 0.25 if conv == "conv1" else mean
        one = np.array([factor], np.float32)
        yield f"bn{place}", "BatchNorm", [mean * one, variance * one, one]
        yield f"scale{place}", "Scale", [state[f"{bn}.weight"], state[f"{bn}.bias"]]
        yield f"{theirs}_relu", "ReLU", []
    yield "fc1000", "InnerProduct", [np.ones((2, 3), np.float32), np.ones(2, np.float32)]


def test_resnet_of_caffe(file):
    file.write_bytes(caffemodel(caffe_layers_of_resnet("resnet50-caffe")))
    converted = convert_file(file)
    assert converted.scheme == "Caffe's"
    assert converted.ignored == ("fc1000.weight", "fc1000.bias")
    params = converted.params
    assert params.network.architecture == "resnet50-caffe"
    assert params.network.convention == CAFFE_CONVENTION
    # 32 rows hang over the first pool's border, 49 columns do not.
    assert_same_maps(params, resnet("resnet50-caffe"), [(64, 97)], CAFFE_CONVENTION)
    # The same under torchvision's names, which must be said.
    torch.save(state_of("resnet50-caffe"), file)
    assert convert(file).network.architecture == "resnet50"
    named = convert(file, architecture="resnet50-caffe")
    assert named.network.convention == CAFFE_CONVENTION
    for name, array in params.weights.items():
        np.testing.assert_allclose(named.weights[name], array, rtol=1e-4, atol=1e-5)


def test_deeper_resnet_of_caffe(file):
    file.write_bytes(caffemodel(caffe_layers_of_resnet("resnet101-caffe", factor=1.0)))
    found = convert(file)
    assert found.network.architecture == "resnet101-caffe"
    torch.save(state_of("resnet101-caffe"), file)
    expected = convert(file, architecture="resnet101-caffe").weights
    for name, array in found.weights.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


@functools.cache
def plain_weights(architecture):
    return torch_networks.random_weights(architecture)


def caffe_layers(architecture):
    weights = plain_weights(architecture)
    for name in torch_networks.KERNELS[architecture]:
        yield name, "Convolution", [weights[f"{name}.weight"], weights[f"{name}.bias"]]
        yield f"relu_{name}", "ReLU", []
        if name in ("conv1", "conv2"):
            kinds = ["Pooling", "LRN"]
            for kind in kinds[::-1] if architecture == "alexnet-2012" else kinds:
                yield f"{kind}_{name}", kind, []
    yield "fc6", "InnerProduct", [np.ones((2, 3), np.float32), np.ones(2, np.float32)]


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("architecture", ["alexnet-caffe", "alexnet-2012", "vgg16"])
def test_networks_of_caffe(file, architecture, v1):
    file.write_bytes(caffemodel(caffe_layers(architecture), v1=v1))
    converted = convert_file(file)
    assert converted.ignored == ("fc6.weight", "fc6.bias")
    network = converted.params.network
    assert (network.architecture, network.last_pool) == (architecture, True)
    assert network.convention == CAFFE_CONVENTION
    if v1:  # what is read does not depend on the format
        for name, array in plain_weights(architecture).items():
            layer, part = name.split(".")
            ours = f"{layer}.{'kernel' if part == 'weight' else 'bias'}"
            array = array.transpose(2, 3, 1, 0) if part == "weight" else array
            np.testing.assert_array_equal(converted.params.weights[ours], array)
        return
    images = pictures(*((83, 107) if architecture != "vgg16" else (49, 70)))
    known = "vgg16-caffe" if architecture == "vgg16" else architecture
    truth = torch_networks.activations(known, plain_weights(architecture), images, True)
    maps, _ = run(network, converted.params.weights, images)
    assert maps.shape == truth.shape
    np.testing.assert_allclose(maps, truth, rtol=0, atol=1e-4 * truth.max())


SMALL = [
    ("conv1", "Convolution", [np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.ones(2)]),
    ("norm1", "LRN", []),
    ("pool1", "Pooling", []),
    ("bn", "BatchNorm", [np.ones(3), np.ones(3), np.ones(1)]),
]


@pytest.mark.parametrize("double", [True, False])
def test_numbers_of_caffe(file, double):
    file.write_bytes(caffemodel(SMALL, double=double))
    with caffe_files.open_caffe(file) as layers:
        assert [layer.name for layer in layers] == ["conv1", "norm1", "pool1", "bn"]
        assert caffe_files.normalizes_first(layers)
        tensors = caffe_files.name_tensors(layers)
        assert set(tensors) == {"conv1.weight", "conv1.bias", "bn.mean", "bn.variance", "bn.factor"}
        kernel = tensors["conv1.weight"].read()
        assert kernel.dtype == (np.float64 if double else np.float32)
        np.testing.assert_array_equal(kernel, SMALL[0][2][0])


def test_caffe_files_that_lie(file, monkeypatch):
    good = caffemodel(SMALL)
    shape = b"\x3a\x06\x0a\x04\x02\x03\x02\x02"  # of the first kernel
    assert shape in good
    for lie, message in (
        (b"\x3a\x06\x0a\x04\x02\x03\x02\x03", r"96 bytes for numbers of shape \(2, 3, 2, 3\)"),
        (b"\x3a\x06\x0a\x04\x82\x03\x02\x02", "is damaged"),
        (b"\x3a\x06\x0a\x04\xff\xff\xff\x7f", r"96 bytes for numbers of shape \(268435455,\)"),
        (b"\x3a\x06\x0b\x04\x02\x03\x02\x02", "is damaged: it holds a field of no known kind"),
        (b"\x3a\x06\x02\x04\x02\x03\x02\x02", "is damaged: it holds a field of no number"),
        (b"\x3a\x07\x0a\x04\x02\x03\x02\x02", "is damaged"),
    ):
        file.write_bytes(good.replace(shape, lie))
        with pytest.raises(ValueError, match=message):
            convert(file)
    for keep in (20, 100, len(good) - 1):
        file.write_bytes(good[:keep])
        with pytest.raises(ValueError, match=r"file is damaged: a field is longer"):
            convert(file)
    file.write_bytes(caffemodel([SMALL[0], SMALL[0]]))
    with pytest.raises(ValueError, match=r"file holds conv1.weight twice"):
        convert(file)
    monkeypatch.setattr(caffe_files, "MOST_FIELDS", 20)
    file.write_bytes(good)
    with pytest.raises(ValueError, match="more than 20 fields"):
        convert(file)


# --- MATLAB --------------------------------------------------------------------------------------


def test_matlab_7_3_is_read_as_version_5(file, tmp_path):
    rng = np.random.default_rng(0)
    content = {
        "x": {
            "cells": [rng.standard_normal((3, 1, 2, 2)), "some text", [], np.zeros((0, 3))],
            "inner": {"numbers": np.float32([[1.5]]), "none": "", "bytes": np.uint8([[1, 2, 3]])},
            "rows": ({"a": "one", "b": np.ones((2, 3))}, {"a": "two", "b": np.ones((1, 1))}),
        },
        "y": np.arange(24.0).reshape(2, 3, 4),
        "unwanted": np.ones(3),
    }
    matlab_writer.write(file, content, compress=True)

    def cell(values):
        row = np.empty((1, len(values)), object)
        for i, value in enumerate(values):
            row[0, i] = cell(value) if isinstance(value, list) else value
        return row

    older = {"x": dict(content["x"]), "y": content["y"]}
    older["x"]["cells"] = cell(content["x"]["cells"])
    rows = np.empty((1, 2), [("a", object), ("b", object)])
    for i, row in enumerate(content["x"]["rows"]):
        rows[0, i] = (row["a"], row["b"])
    older["x"]["rows"] = rows
    with open(tmp_path / "older", "wb") as opened:
        scipy.io.savemat(opened, older)

    def plain(value):
        match value:
            case dict():
                return {key: plain(member) for key, member in value.items()}
            case list():
                return [plain(member) for member in value]
            case str() | None:
                return value
            case _:
                return value.shape, value.read().tolist()

    expected = plain(read_mat(tmp_path / "older", ("x", "y")))
    with mat_hdf5_files.open_mat_hdf5(file, ("x", "y")) as found:
        assert plain(dict(found)) == expected
    assert expected["x"]["rows"][1]["a"] == "two"


def simple_nn(architecture, cell):
    layers = []
    for name, kind, blobs in caffe_layers(architecture):
        layer = {"type": {"Convolution": "conv", "LRN": "lrn", "Pooling": "pool"}.get(kind, "relu")}
        layer["name"] = name
        if kind == "Convolution":
            kernel = blobs[0].transpose(2, 3, 1, 0)
            kernel = kernel[:, :, ::-1] if kernel.shape[2] == 3 else kernel  # RGB
            layer["weights"] = cell([kernel, blobs[1][None]])
        if kind != "InnerProduct":
            layers.append(layer)
    average = np.tile(np.float32(CAFFE_CONVENTION.mean[::-1]), (5, 5, 1))
    return {"layers": cell(layers), "meta": {"normalization": {"averageImage": average}}}


def as_cells(values):
    row = np.empty((1, len(values)), object)
    for i, value in enumerate(values):
        row[0, i] = value
    return row


def dag_nn(layers, rows):
    """A graph: layers that name their parameters, and the parameters."""
    graph, params = [], []
    for name, kind, blobs in layers:
        ours = {"Convolution": "Conv", "BatchNorm": "BatchNorm", "Pooling": "Pooling"}.get(kind)
        if kind == "Scale":
            params[-3]["value"], params[-2]["value"] = (blob[:, None] for blob in blobs)
            continue
        names = []
        if kind == "Convolution":
            kernel = blobs[0].transpose(2, 3, 1, 0)
            kernel = kernel[:, :, ::-1] if kernel.shape[2] == 3 else kernel
            values = [kernel, *(blob[:, None] for blob in blobs[1:])]
            names = [f"{name}_filter", f"{name}_bias"][: len(values)]
        elif kind == "BatchNorm":
            mean, variance, factor = (np.float64(blob) for blob in blobs)
            deviation = np.sqrt(variance / factor + 1e-5)
            values = [0, 0, np.stack([mean / factor, deviation], axis=1)]
            names = [f"{name}_mult", f"{name}_bias", f"{name}_moments"]
        params += [
            {"name": n, "value": v} for n, v in zip(names, values if names else [], strict=True)
        ]
        if kind != "InnerProduct":
            graph.append((name, f"dagnn.{ours or 'ReLU'}", names))
    average = np.float32(CAFFE_CONVENTION.mean[::-1])[None, None]
    return {
        "layers": rows([{"name": n, "type": k, "params": p} for n, k, p in graph]),
        "params": rows(params),
        "meta": {"normalization": {"averageImage": average}},
    }


def as_rows(entries):
    """An array of structures for SciPy."""
    rows = np.empty((1, len(entries)), [(key, object) for key in entries[0]])
    for i, entry in enumerate(entries):
        values = (as_cells(v) if isinstance(v, list) else v for v in entry.values())
        rows[0, i] = tuple(values)
    return rows


RGB_OF_CAFFE = InputConvention("RGB", mean=CAFFE_CONVENTION.mean[::-1])


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize("architecture", ["alexnet-caffe", "alexnet-2012"])
def test_simple_networks_of_matconvnet(file, architecture, newer):
    if newer:
        matlab_writer.write(file, simple_nn(architecture, list), compress=True)
    else:
        with open(file, "wb") as opened:
            scipy.io.savemat(opened, simple_nn(architecture, as_cells))
    params = convert(file)
    network = params.network
    assert network.architecture == architecture
    assert network.convention.order == "RGB"
    assert network.convention.mean == pytest.approx(RGB_OF_CAFFE.mean)
    images = pictures(83, 107)
    truth = torch_networks.activations(architecture, plain_weights(architecture), images, True)
    maps, _ = run(network, params.weights, images)
    np.testing.assert_allclose(maps, truth, rtol=0, atol=1e-4 * truth.max())


@pytest.mark.parametrize("newer", [True, False])
def test_graphs_of_matconvnet(file, newer):
    layers = list(caffe_layers_of_resnet("resnet50-caffe"))
    if newer:
        matlab_writer.write(file, {"net": dag_nn(layers, tuple)})
    else:
        with open(file, "wb") as opened:
            scipy.io.savemat(opened, dag_nn(layers, as_rows))
    converted = convert_file(file)
    assert converted.scheme == "MatConvNet's"
    assert converted.params.network.architecture == "resnet50-caffe"
    file.write_bytes(caffemodel(layers))
    expected = convert(file).weights
    for name, array in converted.params.weights.items():
        kernel = np.asarray(expected[name])
        kernel = kernel[:, :, ::-1] if name == "conv1.kernel" else kernel
        np.testing.assert_allclose(array, kernel, rtol=1e-4, atol=1e-5)


def test_matlab_7_3_stays_in_its_file_and_ends(file, tmp_path):
    def rewrite(change):
        matlab_writer.write(file, simple_nn("alexnet-caffe", lambda _: []) | {"extra": ["a"]})
        with h5py.File(file, "r+") as opened:
            change(opened)

    def link(opened):
        opened["meta/normalization/other"] = h5py.ExternalLink("/etc/passwd", "/")

    rewrite(link)
    with pytest.raises(ValueError, match="points to other places with other"):
        convert(file)

    def outside(opened):
        del opened["meta/normalization/averageImage"]
        place = [(str(tmp_path / "x"), 0, 12)]
        opened["meta/normalization"].create_dataset("averageImage", (3,), "f4", external=place)

    rewrite(outside)
    with pytest.raises(ValueError, match="in other files"):
        convert(file)

    def circle(opened):
        pointers = np.array([[opened["meta"].ref] * 50], h5py.ref_dtype)
        opened["meta"].create_dataset("again", data=pointers, dtype=h5py.ref_dtype)

    rewrite(circle)
    with pytest.raises(ValueError, match="holds more than 100000 values, or too deep ones"):
        convert(file)

    def pit(opened):
        del opened["meta/normalization/averageImage"]
        shape = (3, 2048, 2048)
        opened["meta/normalization"].create_dataset("averageImage", shape, "f8", chunks=True)
        opened["layers"].attrs["MATLAB_class"] = np.bytes_("double")
        del opened["layers"]
        opened["layers/type"] = opened["extra"]

    rewrite(pit)
    with pytest.raises(ValueError, match=r"more than can be"):
        convert(file)
    rewrite(lambda opened: None)
    with pytest.raises(ValueError, match="is no network of MatConvNet's: it has no layers"):
        convert(file)
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(ValueError, match="file is damaged"):
        convert(file)


def test_matlab_7_3_needs_h5py(file, monkeypatch):
    matlab_writer.write(file, {"x": np.ones(3)})
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(RuntimeError, match=r"needs h5py: pip install rmacjax\[keras\]"):
        convert(file)


# --- networks trained for retrieval --------------------------------------------------------------


def retrieval(architecture, channels, *, layer=None, learned=(), pooling="gem", p=2.7, more=None):
    """A checkpoint as cnnimageretrieval-pytorch saves it."""
    rng = np.random.default_rng(5)
    state = collections.OrderedDict()
    if architecture.startswith("resnet"):
        children = {"conv1": 0, "bn1": 1} | {f"layer{i}": i + 3 for i in range(1, 5)}
        for name, value in resnet(architecture).state_dict().items():
            child, _, rest = name.partition(".")
            state[f"features.{children[child]}.{rest}"] = value
    else:
        weights = plain_weights(architecture)
        named = torch_networks.torchvision_names(architecture, weights)
        del named["classifier.1.weight"]
        state |= {name: torch.from_numpy(value) for name, value in named.items()}
    state["pool.p"] = torch.full((1,), p)
    if layer is not None:
        state["whiten.weight"], state["whiten.bias"] = layer.weight.data, layer.bias.data

    def solution():
        return {
            "m": rng.standard_normal((channels, 1)) / 30,
            "P": rng.standard_normal((channels, channels)),
        }

    meta = {
        "architecture": architecture,
        "local_whitening": False,
        "pooling": pooling,
        "regional": False,
        "whitening": layer is not None,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "outputdim": channels if layer is None else layer.out_features,
        "Lw": {name: {"ss": solution(), "ms": solution()} for name in learned},
    }
    return {"epoch": 3, "meta": meta | (more or {}), "state_dict": state}


STATED = InputConvention("RGB", 1 / 255, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def torch_gem(maps, p):
    """Mean of powers, root, unit length."""
    x = torch.from_numpy(np.asarray(maps, np.float64)).clamp(min=1e-6)
    x = x.pow(p).mean((1, 2)).pow(1 / p)
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize(
    ("architecture", "channels", "zipped"), [("alexnet", 256, True), ("resnet50", 2048, False)]
)
def test_retrieval_network_with_a_layer(file, tmp_path, architecture, channels, zipped):
    torch.manual_seed(1)
    layer = torch.nn.Linear(channels, 64)
    saved = retrieval(architecture, channels, layer=layer)
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    converted = convert_file(file)
    params = converted.params
    network = params.network
    assert (network.architecture, network.last_pool) == (architecture, False)
    assert network.convention == STATED
    assert network.gem_p == pytest.approx(2.7)
    assert converted.settings == {"pool": "gem"}
    images = pictures(65, 97)
    maps, _ = run(network, params.weights, images)
    if architecture == "resnet50":
        truth = torch_resnets.activations(resnet(architecture), pixels(images, STATED))
    else:
        adapted = np.float32(pixels(images, STATED) * TORCHVISION_CONVENTION.std)
        adapted = (adapted + np.float32(TORCHVISION_CONVENTION.mean)) * 255
        truth = torch_networks.activations(
            architecture, plain_weights(architecture), adapted, False
        )
    np.testing.assert_allclose(maps, truth, rtol=0, atol=1e-4 * truth.max())
    weight, bias = (np.float64(value.detach()) for value in (layer.weight, layer.bias))
    mean = -np.linalg.pinv(weight) @ bias
    np.testing.assert_allclose(params.whitening.mean, mean, atol=1e-5 * abs(mean).max())
    with torch.no_grad():
        final = torch.nn.functional.normalize(layer.double()(torch_gem(truth, 2.7)), dim=1)
    pooled = gem(maps[0], network.gem_p)
    ours = whiten(params.whitening, (pooled / np.linalg.norm(pooled))[None])
    np.testing.assert_allclose(ours, final.numpy(), atol=2e-5)
    path = save(
        tmp_path / "ours.safetensors",
        params,
        origin="a test",
        licence="CC0-1.0",
        settings=converted.settings,
        whitening_origin=converted.whitening_origin,
    )
    again, shown = load(path), describe_file(path)
    assert again.network.gem_p == network.gem_p and not again.network.last_pool
    assert shown["settings"] == {"pool": "gem"}
    assert shown["whitening"] == {
        "dimensions": 64,
        "channels": channels,
        "origin": "whiten of file",
    }
    if architecture == "alexnet":
        assert load(file).whitening is not None


@pytest.mark.parametrize("within", [True, False])
def test_a_layer_whitens_each_scale_and_what_was_learned_later_all_at_once(file, tmp_path, within):
    """The authors' forward passes, in torch: with the layer m = 1, without it m = p."""
    torch.manual_seed(3)
    layer = torch.nn.Linear(256, 32).double()
    saved = retrieval("alexnet", 256, layer=layer if within else None, learned=("afterwards",))
    if not within:
        weight = layer.weight.data.numpy()
        mean = -np.linalg.pinv(weight) @ layer.bias.data.numpy()
        saved["meta"]["Lw"]["afterwards"]["ss"] = {"P": weight, "m": mean[:, None]}
    torch.save(saved, file)
    converted = convert_file(file, learned_whitening=None if within else "afterwards")
    path = tmp_path / "ours.safetensors"
    save(path, converted.params, origin="a test", licence="CC0-1.0")
    params = load(path)
    assert describe_file(path)["whitens_scales"] is within
    (image,) = pictures(150, 190)
    several = Settings(pool="gem", scales=(1.0, 0.5))
    ours = describe(params, [image], settings=several)
    vectors = []
    for view in (image, resize(image, 95)):
        adapted = np.float32(pixels(view[None], STATED) * TORCHVISION_CONVENTION.std)
        adapted = (adapted + np.float32(TORCHVISION_CONVENTION.mean)) * 255
        maps = torch_networks.activations("alexnet", plain_weights("alexnet"), adapted, False)
        vectors.append(torch_gem(maps, 2.7))
    with torch.no_grad():
        if within:
            each = [torch.nn.functional.normalize(layer(vector), dim=1) for vector in vectors]
            expected = torch.nn.functional.normalize(sum(each) / 2, dim=1)
        else:
            joined = (sum(vector.pow(2.7) for vector in vectors) / 2).pow(1 / 2.7)
            joined = torch.nn.functional.normalize(joined, dim=1)
            expected = torch.nn.functional.normalize(layer(joined), dim=1)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)
    network = dataclasses.replace(params.network, whitens_scales=not within)
    other = describe(params._replace(network=network), [image], settings=several)
    assert np.abs(other - expected.numpy()).max() > 1e-3


def test_features_alone(file):
    state = retrieval("resnet18", 512)["state_dict"]
    del state["pool.p"]
    torch.save({name.removeprefix("features."): value for name, value in state.items()}, file)
    found = convert(file)
    assert (found.network.architecture, found.network.convention) == (
        "resnet18",
        TORCHVISION_CONVENTION,
    )
    torch.save(state_of("resnet18"), file)
    for name, array in convert(file).weights.items():
        np.testing.assert_array_equal(found.weights[name], array)


@pytest.mark.parametrize("scales", ["single", "multi"])
def test_learned_whitenings(file, scales):
    saved = retrieval("alexnet", 256, learned=("retrieval-SfM-120k", "retrieval-SfM-30k"))
    saved["meta"]["outputdim"] = 200
    torch.save(saved, file)
    plain = convert_file(file)
    assert plain.params.whitening is None
    assert plain.learned == ("retrieval-SfM-120k", "retrieval-SfM-30k")
    shown = describe_file(file)
    assert shown["learned whitenings"] == list(plain.learned)
    assert shown["settings"] == {"pool": "gem"}
    assert shown["convention"]["mean"] == [0.4, 0.5, 0.6]
    found = convert_file(file, learned_whitening="retrieval-SfM-120k", scales=scales)
    theirs = saved["meta"]["Lw"]["retrieval-SfM-120k"][{"single": "ss", "multi": "ms"}[scales]]
    x = np.random.default_rng(0).standard_normal((5, 256))
    expected = (theirs["P"] @ (x.T - theirs["m"]))[:200].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(whiten(found.params.whitening, np.float32(x)), expected, atol=1e-5)
    assert found.whitening_origin == f"retrieval-SfM-120k, {scales} scale, of file"
    assert found.settings.get("scales") == (None if scales == "single" else [1, 2**-0.5, 0.5])
    with pytest.raises(
        ValueError, match=r"no learned whitening 'other'; it has retrieval-SfM-120k"
    ):
        convert(file, learned_whitening="other")
    torch.save(state_of("resnet18-layer3"), file)
    with pytest.raises(ValueError, match="no checkpoint of a retrieval network"):
        convert(file, learned_whitening="other")


def test_regional_pooling(file):
    saved = retrieval("alexnet", 256, more={"regional": True})
    state = saved["state_dict"]
    state["pool.rpool.p"] = state.pop("pool.p")
    layer = torch.nn.Linear(256, 256)
    state["pool.whiten.weight"], state["pool.whiten.bias"] = layer.weight.data, layer.bias.data
    torch.save(saved, file)
    converted = convert_file(file)
    assert converted.settings == {"pool": "rgem", "levels": 3, "with_global": True}
    assert converted.params.network.gem_p == pytest.approx(2.7)
    assert converted.ignored == ()
    x = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(layer(torch.from_numpy(x)), dim=1).numpy()
    np.testing.assert_allclose(whiten(converted.params.whitening, x), expected, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mac", "spoc", "rmac"])
def test_other_pools(file, pooling):
    saved = retrieval("alexnet", 256, pooling=pooling)
    del saved["state_dict"]["pool.p"]
    torch.save(saved, file)
    converted = convert_file(file)
    assert converted.settings["pool"] == pooling
    assert converted.params.network.gem_p == 3.0


def _rows(saved, projection):
    saved["meta"]["Lw"]["a"]["ss"]["P"] = projection


def _squashed(saved):
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    saved["state_dict"] |= {"whiten.weight": weight * (torch.arange(64) > 5)[:, None]}
    saved["state_dict"] |= {"whiten.bias": torch.ones(64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["meta"].update(local_whitening=True), "local whitening"),
        (lambda s: s["meta"].update(pooling="vlad"), "pools by vlad; known are gem,"),
        (lambda s: s["meta"].update(pooling="spoc", regional=True), "pools by regional spoc"),
        (
            lambda s: s["state_dict"].update({"pool.p": torch.linspace(1, 3, 256)}),
            r"exponent of GeM for each channel \(1 to 3\)",
        ),
        (lambda s: s["state_dict"].update({"pool.p": torch.zeros(1)}), "one positive exponent"),
        (lambda s: s["state_dict"].update({"whiten.weight": torch.ones(3, 7)}), "256 columns"),
        (lambda s: s["state_dict"].update({"whiten.weight": torch.ones(3, 256)}), "no whiten.bias"),
        (
            lambda s: s["state_dict"].update(
                {"whiten.weight": torch.ones(257, 256), "whiten.bias": torch.arange(257.0)}
            ),
            "no mean before whiten.weight can stand for",
        ),
        (_squashed, "no mean before whiten.weight can stand for"),
        # A few bytes that say they are many rows, or many numbers.
        (lambda s: _rows(s, torch.ones(1).expand(40_000_000, 256)), "40000000 rows in a's P, over"),
        (lambda s: _rows(s, torch.ones(1).expand(60_000, 256)), "fewer numbers than its shape"),
        (lambda s: _rows(s, torch.ones(60_000, 1).expand(-1, 256)), "fewer numbers than its shape"),
        (
            lambda s: s["state_dict"].update(
                {"whiten.weight": torch.ones(1).expand(65_537, 256), "whiten.bias": torch.ones(1)}
            ),
            "65537 rows in whiten.weight, over 65536",
        ),
        (
            lambda s: s["state_dict"].update({"pool.p": torch.ones(1).expand(1 << 40)}),
            "fewer numbers than its shape",
        ),
        (lambda s: s["meta"]["Lw"].update(a=3), "no whitening a learned on single scales"),
        (lambda s: s["meta"]["Lw"]["a"].update(ss={"P": np.ones((2, 256))}), "no mean of 256"),
        (lambda s: s["meta"]["Lw"]["a"]["ss"].update(P=np.full((2, 256), np.nan)), "finite"),
    ],
)
def test_retrieval_networks_that_cannot_be_had(file, change, message):
    saved = retrieval("alexnet", 256, learned=["a"])
    change(saved)
    torch.save(saved, file)
    asked = "a" if "whiten.weight" not in saved["state_dict"] else None
    with pytest.raises(ValueError, match=f"^{file} .*{message}"):
        convert(file, learned_whitening=asked)


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
) | st.builds(
    lambda array: Stored(array.shape, lambda: array),
    st.sampled_from([np.ones(3), np.ones((2, 4)), np.zeros((0, 4)), np.ones(4, int), np.ones(())]),
)


@given(
    notes=st.dictionaries(
        st.sampled_from(["local_whitening", "regional", "mean", "std", "outputdim", "Lw"]), odd
    ),
    learned=st.dictionaries(st.sampled_from(["m", "P"]), odd) | odd,
    tensors=st.dictionaries(
        st.sampled_from(["pool.p", "whiten.weight", "whiten.bias", "pool.whiten.weight"]),
        odd.filter(lambda value: isinstance(value, Stored)),
        max_size=3,
    ),
    asked=st.sampled_from([None, "a"]),
)
@settings(max_examples=100)
def test_odd_notes_are_an_error_in_words(notes, learned, tensors, asked):
    notes = {"Lw": {"a": {"ss": learned}}, "pooling": "gem", "architecture": "alexnet"} | notes
    retrieval_module.stated_convention(notes)
    with contextlib.suppress(ValueError):
        retrieval_module.read_retrieval(notes, tensors, 4, Path("file"), learned_whitening=asked)


def test_one_exponent_for_every_channel(file):
    saved = retrieval("alexnet", 256, pooling="gemmp")
    saved["state_dict"]["pool.p"] = torch.full((256,), 2.5)
    torch.save(saved, file)
    assert convert(file).network.gem_p == 2.5


def test_converting_on_the_command_line(file, tmp_path, capsys):
    torch.save(retrieval("alexnet", 256, learned=["retrieval-SfM-120k"]), file)
    out = str(tmp_path / "ours.safetensors")
    assert main(["weights", "convert", str(file), out]) == 0
    assert "there are: retrieval-SfM-120k (--learned-whitening)" in capsys.readouterr().err
    words = ["--learned-whitening", "retrieval-SfM-120k", "--scales", "multi", "--json", "-"]
    assert main(["weights", "convert", str(file), out, *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["settings"] == {"pool": "gem", "scales": [1, 2**-0.5, 0.5]}
    assert shown["gem_p"] == pytest.approx(2.7)
    assert shown["whitening"]["dimensions"] == 256
