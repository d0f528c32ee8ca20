"""Every reader against the library that writes the format, every network against PyTorch."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import threading
import zipfile

import h5py
import jax
import jax.numpy as jnp
import matlab_writer
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import scipy.io
import torch
import torch_networks
from caffe_writer import caffemodel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rmacjax import backbones
from rmacjax.backbones import CAFFE_CONVENTION, TORCHVISION_CONVENTION, forward
from rmacjax.descriptors import Params
from rmacjax.foreign import Refusal
from rmacjax.weights import (
    calibration,
    conversion,
    convert,
    convert_file,
    describe_file,
    fetch,
    fetching,
    load,
    manifest,
    mat_files,
    pickles,
    provenance,
    save,
    weights_folder,
)
from rmacjax.weights.formats import open_tensors
from rmacjax.weights.manifest import Published
from rmacjax.whitening import Whitening

run = jax.jit(forward)


pytestmark = pytest.mark.usefixtures("not_measured")


# --- every network through every reader ----------------------------------------------------------


@functools.cache
def random_weights(architecture):
    return torch_networks.random_weights(architecture)


@functools.cache
def images(architecture):
    size = (83, 107) if architecture.startswith("alexnet") else (49, 70)
    return np.random.default_rng(3).integers(0, 256, (2, *size, 3), dtype=np.uint8)


@functools.cache
def expected(architecture, caffe, last_pool):
    weights = random_weights(architecture)
    known = "vgg16-caffe" if caffe and architecture == "vgg16" else architecture
    return torch_networks.activations(known, weights, images(architecture), last_pool)


def torchvision(architecture, dtype=None):
    named = torch_networks.torchvision_names(architecture, random_weights(architecture))
    return collections.OrderedDict(
        (name, torch.from_numpy(value).to(dtype or torch.float32)) for name, value in named.items()
    )


def write_zip(path, architecture):
    torch.save(torchvision(architecture), path)


def write_legacy(path, architecture):
    torch.save(torchvision(architecture), path, _use_new_zipfile_serialization=False)


def write_checkpoint(path, architecture):
    state = {f"module.backbone.{name}": value for name, value in torchvision(architecture).items()}
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "best": np.float64(0.5),
            "arch": "a name",
            "mean": [0.485, 0.456],
            "average": np.arange(6, dtype=np.float32).reshape(2, 3),
            "optimizer": optimizer.state_dict(),
            "state_dict": state,
        },
        path,
    )


def write_safetensors(path, architecture):
    named = torch_networks.torchvision_names(architecture, random_weights(architecture))
    named["pre_logits.fc1.weight"] = np.ones((2, 2, 1, 1), np.float32)
    named["head.fc.bias"] = np.ones(2, np.float32)
    safetensors.numpy.save_file(named, path, {"format": "pt"})


def write_safetensors_of_torch(path, architecture):
    safetensors.torch.save_file(
        {f"model.{name}": value for name, value in torchvision(architecture).items()}, path
    )


def write_npz(path, architecture):
    named = torch_networks.torchvision_names(architecture, random_weights(architecture))
    with open(path, "wb") as opened:
        np.savez(opened, **named)


def write_npz_of_caffe(path, architecture):
    with open(path, "wb") as opened:
        np.savez(opened, **random_weights(architecture), **{"fc6.bias": np.ones(2)})


def write_safetensors_of_caffe(path, architecture):
    safetensors.numpy.save_file(random_weights(architecture), path)


def write_zip_of_caffe(path, architecture):
    torch.save({n: torch.from_numpy(w) for n, w in random_weights(architecture).items()}, path)


def write_legacy_of_caffe(path, architecture):
    state = {n: torch.from_numpy(w) for n, w in random_weights(architecture).items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _keras(architecture):
    for name in torch_networks.KERNELS[architecture]:
        block, number = name.removeprefix("conv").split("_")
        kernel = random_weights(architecture)[f"{name}.weight"].transpose(2, 3, 1, 0)
        yield f"block{block}_conv{number}", kernel, random_weights(architecture)[f"{name}.bias"]


def write_keras_of_2016(path, architecture):
    with h5py.File(path, "w") as opened:
        layers = []
        for layer, kernel, bias in _keras(architecture):
            group = opened.create_group(layer)
            names = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, (kernel, bias), strict=True):
                group[name] = value
            layers.append(layer.encode())
        opened.create_group("block1_pool").attrs["weight_names"] = []
        opened.attrs["layer_names"] = layers


def write_keras(path, architecture):
    with h5py.File(path, "w") as opened:
        for layer, kernel, bias in _keras(architecture):
            opened[f"model_weights/{layer}/{layer}/kernel:0"] = kernel
            opened[f"model_weights/{layer}/{layer}/bias:0"] = bias
        opened["model_weights/fc1/fc1/kernel:0"] = np.ones((2, 2), np.float32)
        opened["model_weights/predictions/predictions/bias:0"] = np.ones(2, np.float32)


def write_matconvnet(path, architecture, *, average=(103.939, 116.779, 123.68)[::-1]):
    layers = []
    for name in torch_networks.KERNELS[architecture]:
        kernel = random_weights(architecture)[f"{name}.weight"].transpose(2, 3, 1, 0)
        kernel = kernel[:, :, ::-1] if kernel.shape[2] == 3 else kernel  # RGB
        bias = random_weights(architecture)[f"{name}.bias"][:, None]
        layers.append({"type": "conv", "name": name, "weights": cells(kernel, bias)})
        layers.append({"type": "relu", "name": f"relu_{name}"})
        if name in ("conv1", "conv2"):
            layers.append({"type": "pool", "name": f"pool_{name}"})
            layers.append({"type": "lrn", "name": f"norm_{name}"})
    mean = np.tile(np.array(average), (4, 4, 1))
    savemat(path, {"layers": cells(*layers), "meta": {"normalization": {"averageImage": mean}}})


TORCHVISION_WRITERS = (
    write_zip,
    write_legacy,
    write_checkpoint,
    write_safetensors,
    write_safetensors_of_torch,
    write_npz,
)
CAFFE_WRITERS = (
    write_npz_of_caffe,
    write_safetensors_of_caffe,
    write_zip_of_caffe,
    write_legacy_of_caffe,
    write_matconvnet,
)
CASES = [
    *((a, w) for a in ("vgg16", "alexnet", "squeezenet1_1") for w in TORCHVISION_WRITERS),
    *((a, w) for a in ("vgg16", "alexnet-caffe") for w in CAFFE_WRITERS),
    ("vgg16", write_keras_of_2016),
    ("vgg16", write_keras),
]


@pytest.mark.parametrize(
    ("architecture", "write"), CASES, ids=lambda case: getattr(case, "__name__", case)
)
def test_activations_are_those_of_pytorch(file, architecture, write):
    write(file, architecture)
    conversion = convert_file(file)
    params = conversion.params
    assert params.network.architecture == architecture
    assert params.whitening is None
    assert conversion.origin == "file"
    assert set(params.weights) == set(backbones.weight_shapes(architecture))
    caffe = write not in TORCHVISION_WRITERS
    if write is write_matconvnet:  # the same convention, in the other order
        assert params.network.convention.order == "RGB"
        assert params.network.convention.mean == pytest.approx(CAFFE_CONVENTION.mean[::-1])
    else:
        convention = CAFFE_CONVENTION if caffe else TORCHVISION_CONVENTION
        assert params.network.convention == convention
    assert params.network.activation_scale == 0.25
    both = write in (write_zip, write_npz_of_caffe) and params.network.last_pool
    for last_pool in (True, False) if both else (params.network.last_pool,):
        network = backbones.Network(architecture, last_pool, params.network.convention)
        maps, _ = run(network, params.weights, images(architecture))
        truth = expected(architecture, caffe, last_pool)
        assert maps.shape == truth.shape
        np.testing.assert_allclose(maps, truth, rtol=0, atol=1e-4 * truth.max())


def test_architecture_may_be_given(file):
    write_npz(file, "alexnet")
    assert convert(file, architecture="alexnet").network.architecture == "alexnet"
    with pytest.raises(ValueError, match=r"does not fit vgg16.*missing: features.2.weight"):
        convert(file, architecture="vgg16")
    with pytest.raises(ValueError, match="unknown architecture 'vgg11'"):
        convert(file, architecture="vgg11")


def test_convention_may_be_given(file):
    write_npz(file, "alexnet")
    params = convert(file, convention=CAFFE_CONVENTION)
    assert params.network.convention == CAFFE_CONVENTION


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_other_float_types_become_float32(file, dtype, how):
    state = torchvision("squeezenet1_1", dtype)
    if how == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=how == "zip")
    kernel = convert(file).weights["fire9.expand3x3.kernel"]
    assert kernel.dtype == jnp.float32
    truth = state["features.12.expand3x3.weight"].float().permute(2, 3, 1, 0).numpy()
    np.testing.assert_array_equal(kernel, truth)


# --- what PyTorch can write ----------------------------------------------------------------------

SMALL_DTYPES = (torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.int64)


@st.composite
def strided_tensors(draw):
    """Several views of one storage: transposed, sliced, expanded, empty."""
    dtype = draw(st.sampled_from(SMALL_DTYPES))
    storage = torch.arange(-20, 100).to(dtype)
    tensors = {}
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        steps = [draw(st.integers(0, 5)) for _ in shape]
        tensors[f"t{i}"] = torch.as_strided(storage, shape, steps, draw(st.integers(0, 40)))
    return tensors


@given(tensors=strided_tensors(), zipped=st.booleans())
@settings(max_examples=40)
def test_any_view_of_a_storage_is_read(tmp_path_factory, tensors, zipped):
    path = tmp_path_factory.mktemp("views") / "file"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    with open_tensors(path) as opened:
        assert list(opened.tensors) == list(tensors)
        for name, tensor in tensors.items():
            stored = opened.tensors[name]
            assert stored.shape == tuple(tensor.shape)
            truth = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(stored.read(), truth.numpy())


def _rezip(source, target, change, **options):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.pth"
    torch.save({"a": torch.arange(1234, dtype=torch.float32)}, path)
    return path


def _numbers(path):
    with open_tensors(path) as opened:
        return opened.tensors["a"].read()


def test_big_endian_checkpoint(small, tmp_path):
    def swap(name, content):
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(content, "<f4").byteswap().tobytes() if "/data/" in name else content

    path = tmp_path / "big.pth"
    _rezip(small, path, swap)
    np.testing.assert_array_equal(_numbers(path), torch.load(path)["a"].numpy())
    np.testing.assert_array_equal(_numbers(path), np.arange(1234))


def test_legacy_checkpoint_of_a_big_endian_machine(tmp_path):
    # Such machines wrote little-endian numbers, too; only the note about the machine differs.
    path = tmp_path / "legacy.pth"
    torch.save({"a": torch.arange(5.0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    note = b"little_endian"
    at = content.index(note) + len(note)
    at = content.index(b"\x88", at)
    path.write_bytes(content[:at] + b"\x89" + content[at + 1 :])
    np.testing.assert_array_equal(torch.load(path, weights_only=False)["a"].numpy(), np.arange(5))
    np.testing.assert_array_equal(_numbers(path), np.arange(5))


def test_checkpoint_without_byte_order_is_little_endian(small, tmp_path):
    path = tmp_path / "old.pth"
    _rezip(small, path, lambda name, data: None if name.endswith("byteorder") else data)
    np.testing.assert_array_equal(_numbers(path), np.arange(1234))


def test_numpy_arrays_in_a_checkpoint(tmp_path):
    path = tmp_path / "arrays.pth"
    arrays = {
        "a": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
        "b": np.float32([1, 2]),
        "c": np.zeros((0, 3), np.float16),
    }
    for protocol in (2, 4):
        torch.save(arrays, path, pickle_protocol=protocol)
        with open_tensors(path) as opened:
            for name, array in arrays.items():
                np.testing.assert_array_equal(opened.tensors[name].read(), array)


# --- hostile and broken files --------------------------------------------------------------------


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtins.eval|__builtin__.eval"),
        (getattr, "builtins.getattr|__builtin__.getattr"),
        (io.open, r"io.open|_io.open"),
        (torch.load, "torch.serialization.load"),
        (collections.Counter, "collections.Counter"),
        (np.load, "numpy.load"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_run_nothing(tmp_path, zipped, function, name, protocol):
    canary = tmp_path / "canary"
    path = tmp_path / "bad.pth"
    argument = f"touch {canary}" if function is os.system else f"open({str(canary)!r}, 'w')"
    bad = {"features.0.weight": torch.ones(3), "x": Call(function, argument)}
    torch.save(bad, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"bad.pth asks for '({name})', which is refused"):
        convert(path)
    assert not canary.exists()


DOUBLED = b")" + b"q\x00h\x00\x86" * 64
"""A tuple that holds the same one twice, 64 times over: to hash or write it never ends."""

DEEP = b")" + b"\x85" * 900_000
"""A tuple that hashing follows until the stack ends, and the program with it."""


@pytest.mark.parametrize(
    "key", [DOUBLED, DEEP, b"X\xd0\x07\x00\x00" + b"a" * 2000], ids=["doubled", "deep", "long"]
)
def test_keys_are_looked_at_before_they_are_hashed(tmp_path, key):
    made = b"\x80\x02ccollections\nOrderedDict\n](](" + key + b"K\x01ee\x85R."
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", made)
    with pytest.raises(ValueError, match=r"bad.pth holds a dictionary with keys that are"):
        convert(path)


def test_pairs_that_make_a_dictionary_are_read(tmp_path):
    ordered = b"\x80\x02ccollections\nOrderedDict\n](](X\x01\x00\x00\x00aK\x01ee\x85R."
    assert pickles.read_pickle(io.BytesIO(ordered), {}) == {"a": 1}
    with pytest.raises(Refusal, match="dictionary that makes no sense"):
        pickles.read_pickle(io.BytesIO(ordered.replace(b"K\x01e", b"K\x01K\x01e")), {})


def test_a_list_of_pairs_is_not_made_a_dictionary_again_and_again(tmp_path):
    pairs = b"".join(b"M" + key.to_bytes(2, "little") + b"N\x86" for key in range(20_000))
    start = b"\x80\x02ccollections\nOrderedDict\nq\x00](" + pairs + b"e\x85q\x0100]("
    path = tmp_path / "bad.pth"
    for times, sentence in ((2, "no tensor at all"), (60, "makes far more than was written")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", start + b"h\x00h\x01R" * times + b"e.")
        with pytest.raises(ValueError, match=rf"bad.pth .*{sentence}"):
            convert(path)
    sizes = b"\x80\x02ctorch\nSize\nX\x03\0\0\0abc\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", sizes)
    with pytest.raises(ValueError, match="a size that makes no sense"):
        convert(path)


def test_storages_keys_and_counts_are_never_hashed_or_written(tmp_path):
    path = tmp_path / "bad.pth"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, {})]
    path.write_bytes(b"".join(parts) + b"\x80\x02](" + DOUBLED + b"e.")
    with pytest.raises(ValueError, match=r"does not hold the storages"):
        convert(path)
    facts = b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + DOUBLED + b"tQ."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", facts)
    with pytest.raises(ValueError, match=r"a storage whose count of numbers is none"):
        convert(path)


def test_whole_models_are_refused_by_name(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Conv2d(3, 4, 3), path)
    with pytest.raises(ValueError, match=r"torch.nn.modules.conv.Conv2d.*state_dict\(\)"):
        convert(path)


def test_bare_pickles_are_no_weights(tmp_path):
    path = tmp_path / "bare.pkl"
    path.write_bytes(pickle.dumps({"a": Call(os.system, f"touch {tmp_path / 'canary'}")}))
    with pytest.raises(ValueError, match=r"asks for '\w+.system', which is refused"):
        convert(path)
    assert not (tmp_path / "canary").exists()
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"is a pickle, but no checkpoint"):
        convert(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"\x80\x02" + b")" + b"\x85" * 50_000 + b".", "no tensor at all"),  # ((((...))))
        (b"\x80\x02}" + b")" + b"\x85" * 50_000 + b"K\x01s.", "keys"),
        (b"\x80\x02cos\nsystem\n.", "asks for 'os.system'"),
        (b"\x80\x02(cos\nsystem\no.", "asks for 'os.system'"),
        (b"(S'ls'\nios\nsystem\n.", "instruction INST"),
        (b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00a\x85R.", "dictionary"),
        (b"\x80\x02K\x01", "damaged pickle"),
        (b"\x80\x02.", "damaged pickle"),
        (b"\x80\x02K\x01K\x02.", "damaged pickle"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged pickle"),
        (b"\x80\x02r\xff\xff\xff\xff.", "damaged pickle"),
        (b"\x80\x04\x8f.", "instruction EMPTY_SET"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02}}b}b.", "no tensor at all"),
        (b"\x80\x02K\x01}b.", "sets attributes"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "no constructor"),
        (b"\x80\x02K\x00Q.", "outside the file"),
        (b"\x80\x02X\x00\x00\x00\x00", "damaged pickle"),
        (b"\x80\x02" + b"K\x00" * 200_001 + b".", "instructions"),
    ],
)
def test_odd_pickles(tmp_path, monkeypatch, small, bad, message):
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 200_000)
    path = tmp_path / "odd.pth"
    _rezip(small, path, lambda name, data: bad if name.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match=message):
        convert(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The first 1234 is the storage's length, the second the tensor's.
        (b"M\xd2\x04", b"M\xd3\x04", r"says that small/data/0 has 4940 bytes; it has 4936"),
        (b"M\xd2\x04t", b"J\xff\xff\xff\x7ft", r"says that .* bytes; it has 4936"),
        (b"M\xd2\x04\x85", b"J\xff\xff\xff\x7f\x85", "reaches beyond its 1234 numbers"),
        (b"M\xd2\x04\x85", b"J\xff\xff\xff\xff\x85", "makes no sense"),
        (b"K\x00M\xd2\x04\x85", b"K\x01M\xd2\x04\x85", "reaches beyond its 1234 numbers"),
        (b"FloatStorage", b"DoubleStorage", "says that small/data/0 has 9872 bytes"),
        (b"FloatStorage", b"ComplexFloatStorage", "asks for 'torch.ComplexFloatStorage'"),
    ],
)
def test_storages_that_lie(tmp_path, small, old, new, message):
    def change(name, data):
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new, 1)

    path = tmp_path / "lie.pth"
    _rezip(small, path, change)
    with pytest.raises(ValueError, match=message):
        convert(path)


def test_legacy_storages_that_lie(tmp_path):
    path = tmp_path / "lie.pth"
    torch.save({"a": torch.arange(5.0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    start = len(content) - 20 - 8
    path.write_bytes(content[:start] + (2**40).to_bytes(8, "little") + content[start + 8 :])
    with pytest.raises(ValueError, match="has 5 numbers"):
        convert(path)
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="has 5 numbers; it has 4"):
        convert(path)
    path.write_bytes(content[: start - 30])
    with pytest.raises(ValueError, match="damaged pickle"):
        convert(path)


def test_zip_bombs_are_refused(tmp_path, small):
    path = tmp_path / "bomb.pth"
    _rezip(small, path, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed, which PyTorch never does"):
        convert(path)


def test_npz_that_lies(tmp_path):
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, facts)
    path = tmp_path / "lie.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.0.weight.npy", header.getvalue())
    with pytest.raises(ValueError, match="another number of bytes"):
        convert(path)
    np.savez(path, **{"features.0.weight": np.array([print])}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"Python objects in features.0.weight.npy"):
        convert(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"readme.txt, which is no array"):
        convert(path)


def test_hdf5_stays_in_its_file(tmp_path):
    path = tmp_path / "links.h5"
    with h5py.File(path, "w") as opened:
        opened["block1_conv1"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ValueError, match="points to other places"):
        convert(path)
    with h5py.File(path, "w") as opened:
        opened.create_dataset("a", (3,), "f4", external=[(str(tmp_path / "x"), 0, 12)])
    with pytest.raises(ValueError, match="in other files"):
        convert(path)
    with h5py.File(path, "w") as opened:
        opened["a/b"] = opened["/"]
    with pytest.raises(ValueError, match="entries, or too deep"):
        convert(path)


def test_h5py_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "keras.h5"
    with h5py.File(path, "w") as opened:
        opened["a"] = np.ones(3)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(RuntimeError, match=r"needs h5py: pip install rmacjax\[keras\]"):
        convert(path)


@pytest.mark.parametrize("keep", [0, 1, 30, 3000, -10])
@pytest.mark.parametrize("write", [write_zip, write_safetensors, write_npz])
def test_truncated_files(file, write, keep):
    write(file, "squeezenet1_1")
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises((OSError, ValueError), match="file"):
        convert(file)


def savemat(path, content, **options):
    with open(path, "wb") as opened:
        scipy.io.savemat(opened, content, **options)


def cells(*values):
    row = np.empty((1, len(values)), object)
    row[0] = values
    return row


def test_matconvnet_in_another_order(file):
    layers = cells({"type": "normalize", "name": "norm1"}, {"type": "pool", "name": "pool1"})
    meta = {"normalization": {"averageImage": np.ones((1, 1, 3))}}
    savemat(file, {"layers": layers, "meta": meta})
    with open_tensors(file) as opened:
        assert opened.normalizes_first
    savemat(file, {"layers": cells(*layers[0, ::-1]), "meta": meta})
    with open_tensors(file) as opened:
        assert not opened.normalizes_first
    savemat(file, {"other": np.ones(3)})
    with pytest.raises(ValueError, match="no network of MatConvNet"):
        convert(file)
    good, average = cells({"type": "conv", "name": "conv1"}, {"type": "relu"}), np.ones((4, 4))
    savemat(file, {"layers": good, "normalization": {"averageImage": average}})
    with pytest.raises(ValueError, match="three colours"):
        convert(file)


@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_files_are_read_as_scipy_reads_them(file, compressed):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 100, (2, 3, 4)).astype(np.float64),  # kept in fewer bytes
        rng.standard_normal((3, 1, 2, 2)),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 3)),
        np.float32([[1.5]]),
    ]
    nested = {"a": cells(*arrays), "b": {"c": "some text", "a longer name": arrays[1]}, "e": ""}
    savemat(file, {"x": nested, "y": arrays[0], "z": 1 + 2j}, do_compression=compressed)
    found = mat_files.read_mat(file, ("x", "y", "z"))
    assert found.keys() == {"x", "y", "z"}
    assert found["z"] is None
    assert found["x"]["b"]["c"] == "some text"
    pairs = zip(
        [*found["x"]["a"], found["x"]["b"]["a longer name"], found["y"]],
        [*arrays, arrays[1], arrays[0]],
        strict=True,
    )
    for stored, array in pairs:
        assert stored.shape == array.shape
        np.testing.assert_array_equal(stored.read(), array)
    assert mat_files.read_mat(file, ()) == {}


def test_matlab_files_that_lie(file):
    savemat(file, {"x": {"a": np.ones((1, 1, 77))}})
    content = file.read_bytes()
    dims = np.array([1, 1], "<i4").tobytes()
    for lie in ([1, 2**30], [2**30, 2**30], [-1, 1]):  # a structure, said to be repeated
        file.write_bytes(content.replace(dims, np.array(lie, "<i4").tobytes(), 1))
        with pytest.raises(ValueError, match="is damaged"):
            mat_files.read_mat(file, ("x",))
    dims = np.array([1, 1, 77], "<i4").tobytes()
    file.write_bytes(content.replace(dims, np.array([1, 1, 78], "<i4").tobytes(), 1))
    with pytest.raises(ValueError, match=r"for an array of shape \(1, 1, 78\)"):
        mat_files.read_mat(file, ("x",))
    savemat(file, {"x": np.zeros(10**6)}, do_compression=True)
    with pytest.raises(ValueError, match=r"inflate to more than \d+ bytes"):
        mat_files.read_mat(file, ("x",))


def test_dictionaries_that_hold_each_other(tmp_path):
    inner = {str(i): 0 for i in range(400)}
    for _ in range(5):  # 400 ** 6 entries in a few kilobytes
        inner = {str(i): inner for i in range(400)}
    torch.save(inner, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="entries, or too deep"):
        convert(tmp_path / "bomb.pth")
    inner["0"] = inner
    torch.save(inner, tmp_path / "loop.pth")
    with pytest.raises(ValueError, match="entries, or too deep"):
        convert(tmp_path / "loop.pth")


def write_small(path, kind):
    tensors = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, "f2")}
    match kind:
        case "zip" | "legacy":
            state = {name: torch.from_numpy(value) for name, value in tensors.items()}
            state["more"] = [1, 2.5, "x", None, (True, b"y")]
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
        case "safetensors":
            safetensors.numpy.save_file(tensors, path)
        case "npz":
            with open(path, "wb") as opened:
                np.savez_compressed(opened, **tensors)
        case "mat":
            savemat(path, {"layers": cells({"type": "conv"}), "meta": {"a": np.ones(3)}})
        case "h5":
            with h5py.File(path, "w") as opened:
                opened["block1_conv1/block1_conv1/kernel:0"] = tensors["a.weight"]
        case "mat of 7.3":
            layer = {"type": "conv", "name": "a", "weights": [tensors["a.weight"], np.ones((1, 3))]}
            facts = {"normalization": {"averageImage": np.ones((1, 1, 3))}}
            rows = ({"name": "b", "value": np.ones(3)}, {"name": "", "value": np.zeros((0, 3))})
            matlab_writer.write(path, {"layers": [layer], "meta": facts, "params": rows})
        case "caffe" | "older caffe":
            blobs = [tensors["a.weight"], np.ones(3, np.float32)]
            path.write_bytes(
                caffemodel(
                    [("a", "Convolution", blobs), ("b", "Pooling", [])], v1=kind == "older caffe"
                )
            )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickletools, of odd strings
@given(data=st.data())
@pytest.mark.parametrize(
    "kind",
    ["zip", "legacy", "safetensors", "npz", "mat", "h5", "mat of 7.3", "caffe", "older caffe"],
)
@settings(max_examples=25)
def test_any_damage_is_an_error_in_words(tmp_path_factory, kind, data):
    path = tmp_path_factory.getbasetemp() / f"damaged-{kind.replace(' ', '-')}"
    write_small(path, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(ValueError, OSError), open_tensors(path) as opened:
        for stored in opened.tensors.values():
            if np.prod(stored.shape) < 1000:
                stored.read()


# --- which network is it? ------------------------------------------------------------------------


def test_all_that_does_not_fit_is_named(file):
    named = torch_networks.torchvision_names("alexnet", random_weights("alexnet"))
    del named["features.3.weight"], named["features.10.bias"]
    named["features.1.running_mean"] = np.ones(64, np.float32)
    named["features.6.weight"] = np.ones((384, 192, 5, 5), np.float32)
    safetensors.numpy.save_file(named, file)
    with pytest.raises(
        ValueError,
        match=r"does not fit alexnet under torchvision's names; missing: features.3.weight, "
        r"features.10.bias; extra: features.1.running_mean; mis-shaped: features.6.weight "
        r"\(384, 192, 5, 5\) instead of \(384, 192, 3, 3\)$",
    ):
        convert(file)


def test_unknown_networks(file):
    safetensors.numpy.save_file({"stem.conv.weight": np.ones((3, 3), np.float32)}, file)
    with pytest.raises(ValueError, match=r"holds none of vgg16, .*names are stem.conv.weight"):
        convert(file)


def test_part_of_vgg16(shared):
    with pytest.raises(ValueError, match=r"missing: conv3_1.weight, .*conv5_3.bias") as raised:
        convert(shared / "weights" / "vgg16_block1_block2_only.npz")
    assert "mis-shaped" not in str(raised.value) and "extra" not in str(raised.value)


def test_what_is_not_used_is_not_read(file):
    # As in torchvision's VGG16 "for features only", whose classifier is all NaN.
    named = torch_networks.torchvision_names("squeezenet1_1", random_weights("squeezenet1_1"))
    named["classifier.1.weight"][:] = np.nan
    safetensors.numpy.save_file(named, file)
    assert convert_file(file).ignored == ("classifier.1.weight",)


def test_known_files_bring_their_own_convention(file, monkeypatch):
    write_zip(file, "alexnet")
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(conversion, "_CONVENTION_OF_FILE", {digits: CAFFE_CONVENTION})
    assert convert(file).network.convention == CAFFE_CONVENTION


def test_names_twice(file):
    named = torch_networks.torchvision_names("squeezenet1_1", random_weights("squeezenet1_1"))
    named["module.features.0.bias"] = np.ones(64, np.float32)
    safetensors.numpy.save_file(named, file)
    with pytest.raises(ValueError, match=r"features.0.bias twice"):
        convert(file)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(64, np.nan, np.float32), r"numbers in features.0.bias that are not finite"),
        (np.ones(64, int), r"int64 in features.0.bias"),
    ],
)
def test_numbers_must_be_numbers(file, value, message):
    named = torch_networks.torchvision_names("squeezenet1_1", random_weights("squeezenet1_1"))
    safetensors.numpy.save_file(named | {"features.0.bias": value}, file)
    with pytest.raises(ValueError, match=message):
        convert(file)


def test_no_file_and_no_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of weights"):
        convert(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("hello, this is no file of weights")
    with pytest.raises(ValueError, match=r"no file of weights.*PyTorch's .pth"):
        convert(tmp_path / "text.pth")


def test_real_squeezenet(shared, measured):
    params = convert(shared / "weights" / "squeezenet1_1_torchvision_fp16.npz")
    assert params.network.convention == TORCHVISION_CONVENTION
    photos = sorted((shared / "data" / "oxford5k_mini").rglob("*.jpg"))[::40]
    maxima = []
    for photo in photos:
        pixels = np.asarray(Image.open(photo).convert("RGB").resize((512, 384)))
        maps, _ = run(params.network, params.weights, pixels[None])
        maxima.append(np.asarray(maps[0]).max((0, 1)).mean())
    # On photos, too, the channels' maxima lie in the middle of the paper's range of 0..128.
    assert 24 < np.mean(maxima) * params.network.activation_scale < 96


# --- our own files -------------------------------------------------------------------------------


def make_params(architecture="squeezenet1_1", dimensions=None, seed=0):
    network = backbones.Network(architecture, False, TORCHVISION_CONVENTION, 0.3)
    rng = np.random.default_rng(seed)
    weights = {
        name: jnp.asarray(rng.standard_normal(shape, dtype=np.float32))
        for name, shape in backbones.weight_shapes(architecture).items()
    }
    whitening = None
    if dimensions:
        mean, projection = rng.standard_normal(512), rng.standard_normal((dimensions, 512))
        whitening = Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(projection, jnp.float32))
    return Params(network, weights, whitening)


FACTS = {"origin": "a test", "licence": "CC0-1.0"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dimensions", [None, 7])
def test_round_trip(tmp_path, dtype, dimensions):
    params = make_params(dimensions=dimensions)
    path = tmp_path / "new" / "mine.safetensors"
    save(path, params, **FACTS, dtype=dtype, settings={"long_side": 512})
    again = load(path)
    assert again.network == dataclasses.replace(params.network, name="mine", source=str(path))
    assert jax.tree.structure(again.weights) == jax.tree.structure(params.weights)
    for name, old in params.weights.items():
        assert again.weights[name].dtype == jnp.float32
        rounded = np.asarray(old).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(again.weights[name], rounded)
    assert (again.whitening is None) == (dimensions is None)
    for new, old in zip(again.whitening or (), params.whitening or (), strict=True):
        assert new.dtype == jnp.float32
        np.testing.assert_array_equal(new, old)  # never rounded
    described = describe_file(path)
    assert described["dtype"] == dtype
    assert described["settings"] == {"long_side": 512}
    assert (described["whitening"] is None) == (dimensions is None)
    assert json.loads(json.dumps(described)) == described
    assert os.listdir(path.parent) == ["mine.safetensors"]


def test_header_holds_the_facts(tmp_path):
    path = tmp_path / "mine.safetensors"
    params = make_params()
    save(path, params, **FACTS, made_by="me", source_sha256="ab", whitening_origin="photos")
    with safetensors.safe_open(path, "numpy") as opened:
        facts = opened.metadata()
        numbers = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert {name: array.shape for name, array in numbers.items()} == backbones.weight_shapes(
        "squeezenet1_1"
    )
    whole = b"".join(numbers[name].tobytes() for name in sorted(numbers))
    assert facts == {
        "format": "rmacjax-weights",
        "format_version": "1",
        "name": "mine",
        "architecture": "squeezenet1_1",
        "last_pool": "false",
        "convention": json.dumps(
            {
                "order": "RGB",
                "scale": 1 / 255,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            }
        ),
        "activation_scale": "0.3",
        "gem_p": "3.0",
        "thresholds": "{}",
        **FACTS,
        "made_by": "me",
        "source_sha256": "ab",
        "whitening_origin": "photos",
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    assert provenance(path) == {**FACTS, "made_by": "me", "source_sha256": "ab"}


def test_same_params_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, make_params()._replace(), **FACTS)
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first.replace(b'"name":"a"', b"") == second.replace(b'"name":"b"', b"")


def test_options_of_load(file):
    write_zip(file, "alexnet")
    assert load(file).network.last_pool
    assert not load(file, last_pool=False).network.last_pool
    assert load(file, dtype="bfloat16").network.compute_dtype == "bfloat16"
    assert load(file, dtype="bfloat16").weights["conv1.kernel"].dtype == jnp.float32
    write_zip(file, "squeezenet1_1")
    with pytest.raises(ValueError, match="squeezenet1_1 does not end with a pool"):
        load(file, last_pool=True)


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "mine.safetensors"
    save(path, make_params(dimensions=3), **FACTS)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in (start, (start + len(content)) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        for read in (load, describe_file):
            with pytest.raises(OSError, match=r"mine.safetensors is damaged: .* checksum"):
                read(path)
    path.write_bytes(content[:-1])
    with pytest.raises(OSError, match="is damaged"):
        load(path)
    path.write_bytes(content.replace(b'"RGB\\"', b'"XYZ\\"').replace(b'"0.3"', b'"0,3"'))
    with pytest.raises(OSError, match="its header does not say"):
        load(path)
    path.write_bytes(content.replace(b'"format_version":"1"', b'"format_version":"2"'))
    with pytest.raises(ValueError, match=r"version 2 of the format.*newer rmacjax"):
        load(path)


def test_own_file_that_does_not_fit(tmp_path):
    params = make_params(dimensions=3)
    weights = dict(params.weights)
    weights["conv9.kernel"] = weights.pop("conv1.kernel")
    with pytest.raises(ValueError, match=r"missing: conv1.kernel; extra: conv9.kernel"):
        save(tmp_path / "x", params._replace(weights=weights), **FACTS)
    mean, projection = params.whitening
    wrong = Whitening(mean[:5], projection[:, :5])
    with pytest.raises(ValueError, match=r"whitening.projection \(3, 5\) instead of \(3, 512\)"):
        save(tmp_path / "x", params._replace(whitening=wrong), **FACTS)
    loud = params.weights | {"conv1.bias": params.weights["conv1.bias"] * 1e6}
    with pytest.raises(ValueError, match=r"conv1.bias holds numbers that float16 cannot hold"):
        save(tmp_path / "x", params._replace(weights=loud), **FACTS, dtype="float16")
    assert os.listdir(tmp_path) == []


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    save(path, make_params(), **FACTS)
    content = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        save(path, make_params(seed=1), **FACTS)
    assert os.listdir(tmp_path) == ["mine.safetensors"]
    assert path.read_bytes() == content


def test_describing_foreign_files(file):
    write_safetensors(file, "alexnet")
    described = describe_file(file)
    assert described["architecture"] == "alexnet"
    assert described["names"] == "torchvision's"
    assert described["format"] == "safetensors"
    assert set(described["ignored"]) == {
        "classifier.1.weight",
        "pre_logits.fc1.weight",
        "head.fc.bias",
    }
    assert provenance(file)["origin"] == "file"
    assert len(provenance(file)["source_sha256"]) == 64


# --- networks by name ----------------------------------------------------------------------------


def test_names(tmp_path, monkeypatch):
    monkeypatch.setenv("RMACJAX_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"get it with `rmacjax weights fetch vgg16`$"):
        load("vgg16")
    with pytest.raises(FileNotFoundError, match=r"rmacjax weights convert SOURCE .*alexnet-caffe"):
        load("alexnet-caffe")
    with pytest.raises(FileNotFoundError, match=r"no file of weights vgg19, .*default, vgg16"):
        load("vgg19")
    save(tmp_path / "squeezenet1_1.safetensors", make_params(), **FACTS)
    assert load("squeezenet1_1").network.name == "squeezenet1_1"
    monkeypatch.delenv("RMACJAX_WEIGHTS")
    assert weights_folder().is_absolute()
    assert "rmacjax" in str(weights_folder())


def test_default_lies_in_the_package_or_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "rmacjax" / "weights" / "manifest.py"))
    with pytest.raises(FileNotFoundError, match="install rmacjax again"):
        load("default")
    for folder, seed in (("weights", 1), ("rmacjax/_weights", 2)):
        params = make_params(seed=seed)
        save(tmp_path / folder / "default.safetensors", params, **FACTS)
        found = load("default").weights["conv1.kernel"]
        np.testing.assert_array_equal(found, params.weights["conv1.kernel"])


# --- fetching ------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        cut = self.path.startswith("/cut")
        self.wfile.write(self.content[: len(self.content) // 2] if cut else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Serve a checkpoint on this machine, and publish it in the manifest."""
    file = tmp_path / "served" / "net.pth"
    file.parent.mkdir()
    write_legacy(file, "squeezenet1_1")
    content = file.read_bytes()
    monkeypatch.setattr(Handler, "content", content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    digits = hashlib.sha256(content).hexdigest()[:8]
    address = f"http://127.0.0.1:{server.server_port}"

    def publish(*paths, checksum=f"sha256:{digits}", architecture="squeezenet1_1"):
        entry = Published(architecture, tuple(address + p for p in paths), checksum, 1, "CC0-1.0")
        monkeypatch.setattr(fetching, "PUBLISHED", {"squeezenet1_1": entry})
        return address

    monkeypatch.setenv("RMACJAX_WEIGHTS", str(tmp_path / "kept"))
    yield publish
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_downloads_checks_and_converts(published, tmp_path):
    published("/net.pth")
    told = []
    path = fetch("squeezenet1_1", progress=lambda done, total: told.append((done, total)))
    assert path == tmp_path / "kept" / "squeezenet1_1.safetensors"
    assert os.listdir(path.parent) == [path.name]
    params = load("squeezenet1_1")
    kernel = random_weights("squeezenet1_1")["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params.weights["conv1.kernel"], kernel)
    size = len(Handler.content)
    assert told[-1] == (size, size)
    assert all(done <= total == size for done, total in told)
    described = describe_file(path)
    assert described["licence"] == "CC0-1.0"
    assert described["origin"].startswith("net.pth (http://127.0.0.1")


def test_fetch_tries_the_next_place(published, tmp_path):
    published("/missing/net.pth", "/cut/net.pth", "/net.pth")
    assert fetch("squeezenet1_1", tmp_path / "elsewhere").parent == tmp_path / "elsewhere"


def test_fetch_from_another_address(published):
    address = published("/missing")
    assert fetch("squeezenet1_1", url=f"{address}/net.pth").is_file()


def test_md5_is_checked_too(published):
    md5 = hashlib.md5(Handler.content).hexdigest()
    published("/net.pth", checksum=f"md5:{md5}")
    assert fetch("squeezenet1_1").is_file()


@pytest.mark.parametrize(
    ("paths", "checksum", "error", "message"),
    [
        (["/missing.pth"], None, OSError, "download failed, nothing was kept.*answered 404"),
        (["/cut.pth"], None, OSError, "download failed, nothing was kept.*broke off"),
        (["/net.pth"], "sha256:01234567", RuntimeError, "not the published squeezenet1_1 and was"),
        (["/net.pth"], "md5:" + "0" * 32, RuntimeError, "its md5 starts with"),
    ],
)
def test_failed_fetches_leave_nothing(published, tmp_path, paths, checksum, error, message):
    published(*paths, **({"checksum": checksum} if checksum else {}))
    with pytest.raises(error, match=message):
        fetch("squeezenet1_1")
    assert os.listdir(tmp_path / "kept") == []


def test_fetched_file_that_does_not_fit(published, tmp_path):
    published("/net.pth", architecture="alexnet")
    with pytest.raises(ValueError, match="does not fit alexnet"):
        fetch("squeezenet1_1")
    assert os.listdir(tmp_path / "kept") == []


def test_no_connection(published, tmp_path):
    published("/net.pth")
    with pytest.raises(OSError, match="no connection"):
        fetch("squeezenet1_1", url="http://127.0.0.1:1/net.pth")


def test_what_cannot_be_fetched(monkeypatch):
    for name in manifest.PACKAGED:
        with pytest.raises(ValueError, match=f"{name} ships with rmacjax"):
            fetch(name)
    for name in ("alexnet-caffe", "alexnet-2012", "resnet50-caffe"):
        with pytest.raises(ValueError, match="rmacjax weights convert"):
            fetch(name)
    with pytest.raises(ValueError, match="no network 'vgg19' can be fetched; there are vgg16,"):
        fetch("vgg19")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(RuntimeError, match="needs h5py"):
        fetch("vgg16")


def test_the_manifest():
    resnets = {"resnet18", "resnet34", "resnet50", "resnet101"}
    others = {"vgg16", "vgg16-torchvision", "alexnet", "squeezenet1_1"}
    assert set(manifest.PUBLISHED) == resnets | others
    for name, published in manifest.PUBLISHED.items():
        algorithm, _, digits = published.checksum.partition(":")
        assert all(url.startswith("https://") for url in published.urls)
        assert published.architecture in backbones.ARCHITECTURES
        if algorithm == "sha256":  # PyTorch writes it into the name
            assert f"-{digits}." in published.urls[0]
        else:
            assert (name, digits) == ("vgg16", "6d6bbae143d832006294945121d1f1fc")
        assert published.needs_h5py == published.urls[0].endswith(".h5")


def test_how_loud_a_network_is(monkeypatch):
    monkeypatch.setattr(calibration, "SIDE_PX", 72)
    monkeypatch.setattr(calibration, "PICTURES", 1)
    params = make_params("alexnet")
    scale = calibration.measure_activation_scale(params.network, params.weights)
    picture = calibration.generate_picture(0, 72)
    np.testing.assert_array_equal(picture, calibration.generate_picture(0, 72))
    maps, _ = forward(params.network, params.weights, jnp.asarray(picture)[None])
    assert np.asarray(maps).max((1, 2)).mean() * scale == pytest.approx(48, rel=1e-3)
    silent = jax.tree.map(jnp.zeros_like, params.weights)
    assert calibration.measure_activation_scale(params.network, silent) == 1.0


def test_resnets_are_measured_whatever_they_see(monkeypatch):
    monkeypatch.setattr(calibration, "SIDE_PX", 72)
    monkeypatch.setattr(calibration, "PICTURES", 1)
    network = backbones.Network("resnet18-layer3", False, CAFFE_CONVENTION)
    weights = backbones.initialize("resnet18-layer3", 0)
    scale = calibration.measure_activation_scale(network, weights)
    maps, _ = forward(network, weights, jnp.asarray(calibration.generate_picture(0, 72))[None])
    assert scale != 1.0
    assert np.asarray(maps).max((1, 2)).mean() * scale == pytest.approx(48, rel=1e-3)


def test_networks_in_the_papers_range_are_not_measured():
    again = backbones.InputConvention("RGB", 1 / 255, (0.4, 0.4, 0.4), (1 / 255,) * 3)
    for convention in (CAFFE_CONVENTION, again):
        network = backbones.Network("alexnet", True, convention)
        assert calibration.measure_activation_scale(network, {}) == 1.0
