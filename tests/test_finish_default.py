"""What is done to a network that ships after its training, in parts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import finish_default as finish
import numpy as np
import oracles
import pytest

import rmacjax
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.descriptors import Params
from rmacjax.regions import rmac_regions


@pytest.fixture(scope="module")
def params():
    return Params(Network("alexnet", False, TORCHVISION_CONVENTION), initialize("alexnet", 0), None)


@pytest.mark.parametrize("architecture", ["alexnet", "vgg16"])
def test_answers_are_the_map_before_its_relu(architecture, rng):
    network = Network(architecture, False, TORCHVISION_CONVENTION)
    params = Params(network, initialize(architecture, 0), None)
    photos = list(rng.integers(0, 256, (3, 96, 128, 3), np.uint8))
    maps = np.asarray(rmacjax.activations(params, photos))
    found = np.stack(finish.answers(params, photos)).reshape(maps.shape)
    assert 0.2 < (found < 0).mean() < 0.8
    np.testing.assert_allclose(np.maximum(found, 0), maps, atol=1e-5 * maps.max())
    name = f"{finish.last_convolution(network)}.bias"
    bias = np.array(params.weights[name])
    bias[3] = -50 * maps.max()
    low = params._replace(weights={**params.weights, name: bias})
    lower = np.stack(finish.answers(low, photos)).reshape(maps.shape)
    np.testing.assert_allclose(lower[..., 3], found[..., 3] + bias[3], atol=1e-4 * maps.max())
    np.testing.assert_allclose(lower[..., 4:], found[..., 4:], atol=1e-4 * maps.max())
    bias[3] = np.nan
    with pytest.raises(ValueError, match="no finite numbers"):
        finish.answers(params._replace(weights={**params.weights, name: bias}), photos)


def test_balanced_channels_are_as_loud_as_each_other_and_none_is_thin(params, rng):
    photos = list(rng.integers(0, 256, (6, 160, 160, 3), np.uint8))
    before = np.asarray(rmacjax.activations(params, photos))
    changed = finish.balanced(params, photos, 0.6)
    after = np.asarray(rmacjax.activations(changed, photos))
    often = (before > 0).mean((0, 1, 2))
    assert (often < 0.6).any() and (often > 0.6).any()
    np.testing.assert_allclose((after > 0).mean((0, 1, 2)), np.maximum(often, 0.6), atol=0.01)
    regions = rmac_regions(*after.shape[1:3], 3)
    maxima = [[oracles.box_maximum(map_, box) for box in regions] for map_ in after]
    np.testing.assert_allclose(np.sqrt(np.square(maxima).mean((0, 1))), 1, rtol=1e-3)
    # The same answers but for a threshold and a unit: where two cells are above, so is their order.
    for channel in (0, 100, 255):
        old, new = before[..., channel].ravel(), after[..., channel].ravel()
        both = (old > 0) & (new > 0)
        slope, start = np.polyfit(old[both], new[both], 1)
        np.testing.assert_allclose(new[both], slope * old[both] + start, atol=1e-4)


def test_a_channel_that_says_nothing_is_made_mute(params, rng):
    kernel = np.array(params.weights["conv5.kernel"])
    kernel[..., 3] = 0
    dull = params._replace(weights={**params.weights, "conv5.kernel": kernel})
    photos = list(rng.integers(0, 256, (2, 96, 96, 3), np.uint8))
    maps = np.asarray(rmacjax.activations(finish.balanced(dull, photos, 0.1), photos))
    assert np.isfinite(maps).all() and maps[..., 3].max() == 0 < maps[..., 4].max()
    silent = params._replace(weights={**params.weights, "conv5.kernel": np.zeros_like(kernel)})
    with pytest.raises(ValueError, match="No channel of conv5 answers"):
        finish.balanced(silent, photos, 0.1)


def test_patches_are_what_the_last_convolution_looks_at(params, rng):
    photo = rng.integers(0, 256, (96, 112, 3), np.uint8)
    rows = finish.patches(params, [photo], 400, 2)
    assert rows.shape == (400, 9 * 256)
    high, wide = rmacjax.activations(params, [photo])[0].shape[:2]
    assert len(np.unique(rows.round(6), axis=0)) == (high - 2) * (wide - 2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    # A channel's answer there is its kernel's product with one of them, but for the patch's length.
    kernel = np.asarray(params.weights["conv5.kernel"], np.float64).reshape(-1, 256)
    found = rows @ kernel
    answers = finish.answers(params, [photo])[0]
    directions = answers / np.linalg.norm(answers, axis=1, keepdims=True)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose((found @ directions.T).max(1), 1, atol=1e-5)


def _told_apart(rows, groups, kernels):
    """Whether the loudest of three kernels tells which of three groups a row is from."""
    nearest = ((rows - rows.mean(0)) @ kernels).argmax(1)
    kinds = [set(nearest[groups == group]) for group in range(3)]
    return sorted(map(len, kinds)) == [1, 1, 1] and len(set.union(*kinds)) == 3


def test_centroids_tell_groups_of_rows_apart(rng):
    groups = rng.permutation(np.repeat(np.arange(3), 200))
    rows = 5 * np.eye(3, 60)[groups] + rng.normal(0, 0.3, (600, 60))
    for seed in range(40):
        begun = _told_apart(rows, groups, finish.centroids(rows, 3, seed, rounds=0))
        if not begun and _told_apart(rows, groups, finish.centroids(rows, 3, seed)):
            break
    else:
        pytest.fail("moving the centroids never told apart what the first ones did not")
    # What is loud in rows of all groups is whitened away: without that it is all there is to see.
    loud = rows + 40 * rng.normal(size=(600, 1)) * np.eye(1, 60, 50)
    assert any(_told_apart(loud, groups, finish.centroids(loud, 3, seed)) for seed in range(40))


def test_channels_that_say_nothing_are_renewed_and_the_others_stay(params, rng):
    photos = list(rng.integers(0, 256, (3, 128, 128, 3), np.uint8))
    bias = np.array(params.weights["conv5.bias"])
    seen = np.concatenate(finish.answers(params, photos))
    bias += np.quantile(-seen, 0.25, axis=0)  # each channel answers in a quarter of the cells
    bias[[3, 7]] -= 50
    bias[[5, 9, 11]] += 50
    partly = params._replace(weights={**params.weights, "conv5.bias": bias})
    made = finish.renewed(partly, photos, 0.2, 0.3, 1)
    before, after = (np.asarray(rmacjax.activations(p, photos)) for p in (partly, made))
    idle = np.isin(np.arange(256), [3, 5, 7, 9, 11])
    np.testing.assert_allclose((after > 0).mean((0, 1, 2))[idle], 0.2, atol=0.02)
    np.testing.assert_array_equal(after[..., ~idle], before[..., ~idle])
    again = np.asarray(rmacjax.activations(finish.renewed(partly, photos, 0.2, 0.3, 1), photos))
    np.testing.assert_array_equal(after, again)
    kernel = made.weights["conv5.kernel"][..., idle]
    wanted = finish.centroids(finish.patches(partly, photos, 200, 1), 5, 1)
    np.testing.assert_allclose(kernel, wanted.reshape(kernel.shape), rtol=1e-5, atol=1e-6)
    # Where channels may answer anywhere, the mute ones alone.
    fewer = np.asarray(rmacjax.activations(finish.renewed(partly, photos, 0.2, 1.0, 1), photos))
    mute = np.isin(np.arange(256), [3, 7])
    np.testing.assert_array_equal(fewer[..., ~mute], before[..., ~mute])
    assert (fewer[..., mute] > 0).any((0, 1, 2)).all()
    talkative = finish.balanced(params, photos, 0.5)
    assert finish.renewed(talkative, photos, 0.2, 1.0, 1) is talkative


def test_the_faithful_scale_keeps_directions_best(rng):
    maxima = rng.gamma(1.0, 3.0, (50, 40)) * (rng.random((50, 40)) < 0.6)

    def fidelity(scale):
        levels = np.vectorize(oracles.quantize)(maxima, scale)
        return np.mean([oracles.cosine(a, b) for a, b in zip(levels, maxima, strict=True)])

    scale = finish.faithful_scale(maxima)
    assert fidelity(scale) > max(fidelity(scale * factor) for factor in (0.25, 0.5, 2, 4))
    assert fidelity(scale) > 0.98


def test_the_file_that_is_written_is_a_whole_network(params, file, tmp_path):
    judging = replace(params.network, thresholds=(("filter", 0.5),))
    start = params._replace(network=judging)
    rmacjax.weights.save(file, start, origin="untrained", licence="Apache-2.0")
    finish.finish(str(file), tmp_path / "mine.safetensors", photos=14)
    made = rmacjax.load(tmp_path / "mine.safetensors")
    assert made.network.name == "mine" and made.network.activation_scale > 0
    assert made.whitening is not None and made.network.thresholds == ()
    described = rmacjax.describe(made, [finish.photo_of(0, 3), finish.photo_of(1, 5)])
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1, atol=1e-5)


def test_what_it_cannot_finish_is_refused(params, file, tmp_path):
    def refused(words, network=params.network, weights=params.weights, **options):
        changed = params._replace(network=network, weights=weights)
        rmacjax.weights.save(file, changed, origin="untrained", licence="Apache-2.0")
        with pytest.raises(ValueError, match=words):
            finish.finish(str(file), tmp_path / "default.safetensors", **options)
        assert not (tmp_path / "default.safetensors").exists()

    refused("ends with something else than a conv", replace(params.network, last_pool=True))
    grouped = Network("alexnet-caffe", False, TORCHVISION_CONVENTION, name="alexnet-caffe")
    refused("alexnet-caffe ends with something", grouped, initialize("alexnet-caffe", 0))
    other = Network("squeezenet1_1", False, TORCHVISION_CONVENTION, name="squeezenet1_1")
    refused("squeezenet1_1 ends with something", other, initialize("squeezenet1_1", 0))
    refused("--photos must be at least 14, not 13", photos=13)
    refused("--share must lie between 0 and 1", share=1.0)
    refused("--seed must be at least 0, not -1", seed=-1)
    with pytest.raises(ValueError, match="is a folder: name the file"):
        finish.finish(str(file), tmp_path)
    with pytest.raises(OSError, match=r"there is no folder .*: make it first"):
        finish.finish(str(file), tmp_path / "none" / "out.safetensors")
    refused("--most must lie between --share and 1, not at 0.1", most=0.1)


def test_wrong_numbers_are_a_wrong_call_and_a_missing_file_is_a_failure(file, tmp_path):
    script = Path(finish.__file__)
    for trained, words, code in ((file, ("--photos", "3"), 2), (tmp_path / "none", (), 1)):
        done = subprocess.run(
            [sys.executable, script, trained, tmp_path / "out.safetensors", *words],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("finish_default.py: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_generated_photos_are_of_several_kinds_and_repeat():
    photos = [finish.photo_of(3, number) for number in range(7)]
    for number, photo in enumerate(photos):
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.std() > 5
        np.testing.assert_array_equal(photo, finish.photo_of(3, number))
        assert all(not np.array_equal(photo, other) for other in photos[:number])
