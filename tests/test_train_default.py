"""The parts of the training of the shipped network that can be checked without training."""

import argparse

import default_finish as finish
import default_losses as losses
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import train_default as training

from rmacjax.backbones import forward, initialize

LOOKS = {"strength": 0.8, "gray": 0.15, "reach": (0.45, 1.5), "relatives": 4}


def _unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_contrast_is_the_mean_cross_entropy_of_finding_the_partner(rng):
    first, second, temperature = _unit(rng, 4, 6), _unit(rng, 4, 6), 0.3
    rows = np.concatenate([first, second])
    terms, found = [], []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scores = np.exp([rows[i] @ rows[j] / temperature for j in others])
        partner = others.index((i + 4) % 8)
        terms.append(-np.log(scores[partner] / scores.sum()))
        found.append(scores.argmax() == partner)
    loss, share = losses.contrast(jnp.asarray(first), jnp.asarray(second), temperature)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(share, np.mean(found), rtol=1e-6)


def test_whitened_regions_have_identity_covariance(rng):
    regions = jnp.asarray(rng.normal(size=(50, 4, 6)) @ rng.normal(size=(6, 6)), jnp.float32)
    start = {"seen": jnp.zeros(()), "mean": jnp.zeros(6), "second": jnp.zeros((6, 6))}
    moments = losses.follow(start, [regions[:20], regions[20:]])
    white = np.asarray(losses.whitened(moments, regions, ridge=0.0)).reshape(-1, 6)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=2e-3)
    again = losses.follow(moments, [regions])
    np.testing.assert_allclose(again["second"], moments["second"], rtol=1e-4, atol=1e-5)
    assert again["seen"] == 2


def test_box_vectors_are_the_plain_maxima_of_each_maps_own_boxes(rng):
    maps = rng.random((3, 7, 5, 6)).astype(np.float32)
    boxes = np.array(
        [[[0, 0, 7, 5], [2, 1, 3, 4]], [[6, 4, 7, 5], [0, 2, 5, 3]], [[1, 1, 4, 4]] * 2]
    )
    found = np.asarray(losses.box_vectors(jnp.asarray(maps), jnp.asarray(boxes)))
    for i, row in enumerate(boxes):
        for j, (top, left, bottom, right) in enumerate(row):
            expected = maps[i, top:bottom, left:right].max((0, 1)).astype(np.float64)
            np.testing.assert_allclose(found[i, j], expected / np.linalg.norm(expected), rtol=1e-5)


def test_placed_is_the_cross_entropy_of_choosing_among_all_photos_boxes(rng):
    queries, boxes, overlaps = _unit(rng, 3, 6), _unit(rng, 3, 4, 6), rng.random((3, 4))
    terms, best = [], []
    for i, query in enumerate(queries):
        chances = np.exp(boxes @ query / 0.3)
        chances /= chances.sum()
        target = np.exp(overlaps[i] / 0.1) / np.exp(overlaps[i] / 0.1).sum()
        terms.append(-(target * np.log(chances[i])).sum())
        best.append(overlaps[i, chances[i].argmax()])
    loss, overlap = losses.placed(*map(jnp.asarray, (queries, boxes, overlaps)), 0.3)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(overlap, np.mean(best), rtol=1e-6)


def test_stages_follow_the_part_of_the_run_that_is_over():
    stages = training.stages_of("0:views:96:40,0.5:searches:128:20")
    options = argparse.Namespace(stages=stages, steps=10, minutes=0.0, **LOOKS)
    found = [
        training.batch_of(options, training.progress(options, i, 0.0))[0] for i in (0, 4, 5, 9)
    ]
    views, searches = (0.0, "views", 96, 40), (0.5, "searches", 128, 20)
    assert found == [views, views, searches, searches]
    with pytest.raises(argparse.ArgumentTypeError, match="neither"):
        training.stages_of("0:looks:96:40")


def test_a_checkpoint_gives_the_state_back(tmp_path):
    state = {"weights": {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}, "seen": jnp.asarray(5)}
    training.save_checkpoint(tmp_path / "checkpoint.npz", state, 17)
    empty = jax.tree.map(jnp.zeros_like, state)
    back, step = training.load_checkpoint(tmp_path / "checkpoint.npz", empty)
    assert step == 17
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


@pytest.mark.parametrize("kind", ["views", "searches"])
def test_batches_depend_on_seed_and_step_alone(kind):
    stage = training.Stage(0.0, kind, 60, 4)
    one, again, other = (training.make_batch(0, i, stage, LOOKS) for i in (3, 3, 4))
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
    assert one["second"].shape == other["second"].shape == (4, 60, 60, 3)
    assert (one["second"] != other["second"]).any()


def test_a_step_by_searches_lowers_both_losses_on_its_own_batch():
    options = argparse.Namespace(
        decay=0.0, levels=2, temperature=0.1, plain=0.2, boxes=1.0, box_temperature=0.07
    )
    step, state = training.make_step(options), training.initial_state(0)
    batch = training.in_cells(
        training.make_batch(0, 0, training.Stage(0.0, "searches", 96, 4), LOOKS)
    )
    facts = []
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
        for _ in range(6):
            state, now = step(state, batch, np.float32(1e-4))
            facts.append(np.asarray(now))
    assert np.isfinite(facts).all()
    assert facts[-1][0] < facts[0][0] and facts[-1][2] < facts[0][2]


def test_balancing_is_a_threshold_and_a_unit_for_each_channel(rng):
    weights = initialize("alexnet", 0)
    photos = rng.integers(0, 256, (3, 96, 96, 3), np.uint8)
    maxima = finish.region_maxima_of(weights, photos, 2)
    changed = finish.balanced(weights, maxima, 0.5)
    network, images = losses.network(), jnp.asarray(photos)
    before, after = (np.asarray(forward(network, w, images)[0]) for w in (weights, changed))
    threshold = np.quantile(maxima, 0.5, axis=0)
    loud = np.sqrt(np.mean(np.maximum(maxima - threshold, 0) ** 2, axis=0))
    factor = np.where(loud > 0, np.median(loud[loud > 0]) / np.where(loud > 0, loud, 1), 0)
    expected = np.maximum(before - threshold, 0) * factor
    np.testing.assert_allclose(after, expected, atol=1e-4 * expected.max())
    balanced = finish.region_maxima_of(changed, photos, 2)
    shares = (balanced > 0).mean(0)[loud > 0]  # regions may share their maximum, so "about"
    assert 0.4 < shares.mean() < 0.55


def test_the_faithful_scale_keeps_directions_best(rng):
    maxima = rng.gamma(1.0, 3.0, (50, 40)) * (rng.random((50, 40)) < 0.6)

    def fidelity(scale):
        levels = np.vectorize(oracles.quantize)(maxima, scale)
        return np.mean([oracles.cosine(a, b) for a, b in zip(levels, maxima, strict=True)])

    scale = finish.faithful_scale(maxima)
    assert fidelity(scale) > max(fidelity(scale * factor) for factor in (0.25, 0.5, 2, 4))
    assert fidelity(scale) > 0.98
