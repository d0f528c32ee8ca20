"""The parts of the training of the shipped network that can be checked without training."""

import argparse
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "weights" / "train_default.py"


@pytest.fixture(scope="module")
def training():
    spec = importlib.util.spec_from_file_location("train_default", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_contrast_is_the_mean_cross_entropy_of_finding_the_partner(training, rng):
    first, second, temperature = _unit(rng, 4, 6), _unit(rng, 4, 6), 0.3
    rows = np.concatenate([first, second])
    losses, found = [], []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scores = np.exp([rows[i] @ rows[j] / temperature for j in others])
        partner = others.index((i + 4) % 8)
        losses.append(-np.log(scores[partner] / scores.sum()))
        found.append(scores.argmax() == partner)
    loss, share = training.contrast(jnp.asarray(first), jnp.asarray(second), temperature)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(share, np.mean(found), rtol=1e-6)


def test_whitened_regions_have_identity_covariance(training, rng):
    regions = jnp.asarray(rng.normal(size=(50, 4, 6)) @ rng.normal(size=(6, 6)), jnp.float32)
    start = {"seen": jnp.zeros(()), "mean": jnp.zeros(6), "second": jnp.zeros((6, 6))}
    moments = training.follow(start, regions)
    white = np.asarray(training.whitened(moments, regions, ridge=0.0)).reshape(-1, 6)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=2e-3)
    again = training.follow(moments, regions)
    np.testing.assert_allclose(again["second"], moments["second"], rtol=1e-4, atol=1e-5)
    assert again["seen"] == 2


def test_stages_follow_the_part_of_the_run_that_is_over(training):
    stages = training.stages_of("0:96:40,0.5:128:20")
    looks = {"strength": 0.8, "gray": 0.15, "reach": (0.45, 1.5), "relatives": 4}
    options = argparse.Namespace(stages=stages, steps=10, minutes=0.0, **looks)
    sizes = [
        training.batch_of(options, training.progress(options, i, 0.0))[:2] for i in (0, 4, 5, 9)
    ]
    assert sizes == [(40, 96), (40, 96), (20, 128), (20, 128)]


def test_a_checkpoint_gives_the_state_back(training, tmp_path):
    state = {"weights": {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}, "seen": jnp.asarray(5)}
    training.save_checkpoint(tmp_path / "checkpoint.npz", state, 17)
    empty = jax.tree.map(jnp.zeros_like, state)
    back, step = training.load_checkpoint(tmp_path / "checkpoint.npz", empty)
    assert step == 17
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_batches_depend_on_seed_and_step_alone(training):
    one, again, other = (training.make_batch(0, i, 2, 40, {"strength": 0.8}) for i in (3, 3, 4))
    np.testing.assert_array_equal(one[0], again[0])
    assert (one[0] != other[0]).any()
