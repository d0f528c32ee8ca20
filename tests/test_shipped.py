"""The networks that ship are those that are told of, and tell generated scenes apart."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import rmacjax
from rmacjax.backbones import initialize
from rmacjax.scenes import training_batch
from rmacjax.weights.manifest import PACKAGED, find_named

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_network_that_ships_is_the_one_told_of(name):
    told = (ROOT / "weights" / "README.md").read_text().split(f"`{name}.safetensors`, loaded by")[1]
    sha256 = hashlib.sha256(find_named(name).read_bytes()).hexdigest()
    assert re.search(r"sha256 of the file \| `(\w+)`", told)[1] == sha256
    network = rmacjax.load(name).network
    assert (network.name, network.source) == (name, name)
    packed = f'"weights/{name}.safetensors" = "rmacjax/_weights/{name}.safetensors"'
    assert packed in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", PACKAGED)
def test_a_network_that_ships_tells_generated_scenes_apart(name):
    views = training_batch(np.random.default_rng(13), 16, 160, strength=0.4, reach=(0.7, 1.2))

    def found(params):
        first, second = (np.asarray(rmacjax.describe(params, list(view))) for view in views)
        return np.mean((first @ second.T).argmax(1) == np.arange(16))

    params = rmacjax.load(name)
    untrained = initialize(params.network.architecture, 0)
    assert found(params) > 0.6
    assert found(params) > found(params._replace(weights=untrained, whitening=None)) + 0.2
