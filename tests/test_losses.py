"""Every loss against loops over its paper's equation, in float64, and its gradient."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rmacjax.evaluation import mean_precision_at
from rmacjax.losses import (
    box_cosines,
    contrastive,
    info_nce,
    latent_boxes,
    localized,
    multi_similarity,
    pair_masks,
    placed,
    smooth_ap,
    triplet,
)
from rmacjax.losses.pairs import participants, rows_at_once
from rmacjax.normalization import l2_normalize

# The losses, pair by pair.


def others(mask, i):
    return [j for j in range(len(mask)) if mask[i, j]]


def average(values):
    return sum(values) / len(values) if values else 0.0


def distance(a, b):
    return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))


def slow_contrastive(x, near, far, margin=0.7):
    n = range(len(x))
    pulled = [distance(x[i], x[j]) ** 2 / 2 for i in n for j in others(near, i)]
    gaps = [margin - distance(x[i], x[j]) for i in n for j in others(far, i)]
    return average(pulled) + average([gap**2 / 2 for gap in gaps if gap > 0])


def slow_triplet(x, near, far, margin=0.1):
    costs = [
        distance(x[i], x[p]) ** 2 - distance(x[i], x[q]) ** 2 + margin
        for i in range(len(x))
        for p in others(near, i)
        for q in others(far, i)
    ]
    return average([cost for cost in costs if cost > 0])


def slow_multi_similarity(x, near, far, alpha=2, beta=50, base=0.5, epsilon=0.1):
    costs = []
    for i in range(len(x)):
        mine = [float(x[i] @ x[j]) for j in others(near, i)]
        wrong = [float(x[i] @ x[j]) for j in others(far, i)]
        if not mine or not wrong:
            continue
        kept_mine = [s for s in mine if s < max(wrong) + epsilon]
        kept_wrong = [s for s in wrong if s > min(mine) - epsilon]
        costs.append(
            math.log(1 + sum(math.exp(-alpha * (s - base)) for s in kept_mine)) / alpha
            + math.log(1 + sum(math.exp(beta * (s - base)) for s in kept_wrong)) / beta
        )
    return average(costs)


def slow_info_nce(x, near, far, temperature=0.05):
    return slow_entropy(x @ x.T, near, far, temperature)


def slow_entropy(alike, near, far, temperature):
    rows = []
    for row, mine, wrong in zip(alike, near, far, strict=True):
        against = sum(math.exp(s / temperature) for s in row[wrong])
        hits = [math.exp(s / temperature) for s in row[mine]]
        if hits:
            rows.append(average([-math.log(hit / (hit + against)) for hit in hits]))
    return average(rows)


def slow_smooth_ap(x, near, far, temperature=0.01):
    def step(u):
        u = u / temperature
        return 1 / (1 + math.exp(-u)) if u > 0 else math.exp(u) / (1 + math.exp(u))

    losses = []
    for i in range(len(x)):
        mine, wrong = others(near, i), others(far, i)
        terms = []
        for j in mine:
            ahead = [step(float(x[i] @ x[k] - x[i] @ x[j])) for k in mine if k != j]
            behind = [step(float(x[i] @ x[k] - x[i] @ x[j])) for k in wrong]
            terms.append((1 + sum(ahead)) / (1 + sum(ahead) + sum(behind)))
        if terms:
            losses.append(1 - average(terms))
    return average(losses)


LOSSES = {
    contrastive: slow_contrastive,
    triplet: slow_triplet,
    multi_similarity: slow_multi_similarity,
    info_nce: slow_info_nce,
    smooth_ap: slow_smooth_ap,
}
EACH = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
OPTIONS = {
    contrastive: {"margin": 1.3},
    triplet: {"margin": 0.8},
    multi_similarity: {"alpha": 3.0, "beta": 11.0, "base": 0.3, "epsilon": 0.3},
    info_nce: {"temperature": 0.4},
    smooth_ap: {"temperature": 0.2},
}


def unit_rows(rng, *shape):
    return np.apply_along_axis(oracles.unit, -1, rng.normal(size=shape))


def random_masks(rng, n):
    """Any two masks that do not overlap, and need not be symmetric; rows may have none."""
    drawn = rng.integers(0, 3, (n, n))
    drawn[np.eye(n, dtype=bool)] = 2
    drawn[rng.random(n) < 0.2] = 2
    return drawn == 0, drawn == 1


def labelled(rng, n=8):
    masks = pair_masks(np.arange(n) // 2, np.arange(n) // 2)
    return unit_rows(rng, n, 5), *map(np.asarray, masks)


@EACH
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), given_options=st.booleans())
def test_each_is_its_papers_equation(loss, seed, given_options):
    rng = np.random.default_rng(seed)
    x, (near, far) = unit_rows(rng, 7, 4), random_masks(rng, 7)
    options = OPTIONS[loss] if given_options else {}
    with jax.enable_x64(True):
        found = loss(x, near, far, **options)
        assert found.dtype == np.float64
    expected = LOSSES[loss](x, near, far, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@EACH
def test_float32_stays_and_lower_precision_is_computed_in_it(loss, rng):
    x, near, far = labelled(rng)
    found = loss(x.astype(np.float32), near, far, **OPTIONS[loss])
    assert found.dtype == np.float32 and found.shape == ()
    np.testing.assert_allclose(found, LOSSES[loss](x, near, far, **OPTIONS[loss]), rtol=1e-4)
    assert loss(jnp.asarray(x, jnp.bfloat16), near, far).dtype == np.float32


@EACH
def test_gradients_are_right_through_normalization_too(loss, rng):
    x, near, far = labelled(rng)
    with jax.enable_x64(True):
        rows = jnp.asarray(3 * x)
        floats = {name: jnp.float64(value) for name, value in OPTIONS[loss].items()}
        chain = jax.jit(lambda x, options: loss(l2_normalize(x), near, far, **options))
        check_grads(chain, (rows, floats), order=1, modes=["rev"], atol=1e-5, rtol=1e-4, eps=1e-6)


@EACH
def test_zeros_ties_and_strangers_give_finite_values_and_gradients(loss, rng):
    slope = jax.jit(jax.value_and_grad(loss))
    x, near, far = labelled(rng)
    x = x.astype(np.float32)
    none = np.zeros_like(near)
    half = x.copy()
    half[3:5] = 0
    twice = np.repeat(x[:1], len(x), axis=0)
    for rows in (x, half, np.zeros_like(x), twice, np.tile(x[:4], (2, 1))):
        for masks in ((near, far), (near, none), (none, far), (none, none)):
            value, gradient = slope(rows, *masks)
            assert np.isfinite(value) and np.isfinite(gradient).all()
            assert np.abs(gradient).max() < 1e3
    for rows in (x, twice):
        assert slope(rows, none, none)[0] == 0
        if loss is not contrastive:
            assert slope(rows, none, far)[0] == 0
    nobody = pair_masks(np.full(8, -1), np.full(8, -1))
    value, gradient = slope(x, *nobody)
    assert value == 0 and not np.any(gradient)


@EACH
def test_rows_that_take_no_part_may_hold_anything(loss, rng):
    x, _, _ = labelled(rng)
    labels = np.array([0, 0, 1, 1, -1, 2, 2, -1])
    masks = pair_masks(labels, labels)
    slope = jax.value_and_grad(loss)
    clean = slope(x.astype(np.float32), *masks)
    x[labels < 0] = np.nan
    dirty = slope(x.astype(np.float32), *masks)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    np.testing.assert_array_equal(dirty[1][labels < 0], 0)
    x[0, 0] = np.nan
    assert np.isnan(loss(x.astype(np.float32), *masks))


@EACH
def test_order_compilation_and_mapping_change_nothing(loss, rng):
    batches = [labelled(rng) for _ in range(3)]
    stacked = [np.stack(part) for part in zip(*batches, strict=True)]
    stacked[0] = stacked[0].astype(np.float32)
    run = jax.jit(partial(loss, **OPTIONS[loss]))
    alone = [float(run(*batch)) for batch in zip(*stacked, strict=True)]
    eager = [float(loss(*batch, **OPTIONS[loss])) for batch in zip(*stacked, strict=True)]
    np.testing.assert_allclose(alone, eager, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(run)(*stacked), alone, rtol=1e-5)
    order = rng.permutation(8)
    x, near, far = (part[0] for part in stacked)
    mixed = run(x[order], near[np.ix_(order, order)], far[np.ix_(order, order)])
    np.testing.assert_allclose(mixed, alone[0], rtol=1e-5)


def test_the_masks_follow_labels_and_clusters():
    labels, clusters = np.array([4, 4, 9, -1, 9, 2]), np.array([0, 0, 0, 1, 0, 2])
    near, far = pair_masks(labels, clusters)
    for i in range(6):
        for j in range(6):
            there = labels[i] >= 0 and labels[j] >= 0
            assert near[i, j] == (there and i != j and labels[i] == labels[j])
            assert far[i, j] == (there and clusters[i] != clusters[j])


def test_triplets_equal_torch(rng):
    torch = pytest.importorskip("torch")
    x, near, far = labelled(rng)
    rows = torch.tensor(x)
    single = torch.nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: ((a - b) ** 2).sum(-1), margin=0.9, reduction="none"
    )
    costs = [
        float(single(rows[i : i + 1], rows[p : p + 1], rows[q : q + 1]))
        for i in range(8)
        for p in others(near, i)
        for q in others(far, i)
    ]
    expected = average([cost for cost in costs if cost > 0])
    np.testing.assert_allclose(triplet(x, near, far, margin=0.9), expected, rtol=1e-5)


def test_info_nce_equals_torchs_cross_entropy(rng):
    torch = pytest.importorskip("torch")
    x, near, far = labelled(rng)
    logits = torch.tensor(np.where(near | far, x @ x.T / 0.3, -1e9))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(near.argmax(1)))
    np.testing.assert_allclose(info_nce(x, near, far, temperature=0.3), expected, rtol=1e-5)


def test_at_temperature_zero_smooth_ap_is_average_precision(rng):
    x = unit_rows(rng, 12, 6)
    near, far = random_masks(rng, 12)
    expected = []
    for i in range(12):
        mine = others(near, i)
        if mine:
            ranking = sorted(others(near | far, i), key=lambda j: -(x[i] @ x[j]))
            column = np.array(ranking)[:, None]
            # Precision where each positive stands: the rectangles of average precision.
            heights = [mean_precision_at(column, [mine], [[]], ranking.index(j) + 1) for j in mine]
            expected.append(1 - average(heights))
    with jax.enable_x64(True):
        found = smooth_ap(x, near, far, temperature=1e-7)
    np.testing.assert_allclose(found, average(expected), rtol=1e-6)


@pytest.mark.parametrize("loss", [triplet, smooth_ap])
def test_naming_the_most_positives_saves_work_and_changes_nothing(loss, rng):
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
    x, masks = unit_rows(rng, 9, 5), pair_masks(labels, labels)
    expected = loss(x, *masks, **OPTIONS[loss])
    for most in (2, 5, 100):
        found = loss(x, *masks, most_positives=most, **OPTIONS[loss])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    fewer = loss(x, *masks, most_positives=1, **OPTIONS[loss])
    assert abs(float(fewer) - float(expected)) > 1e-4
    assert [rows_at_once(n, most) for n, most in ((10, None), (4096, None), (4096, 4))] == [
        10,
        1,
        256,
    ]


def test_bad_options_are_refused_with_a_sentence(rng):
    x, near, far = labelled(rng)
    with pytest.raises(ValueError, match=r"positives has shape \(7, 8\)"):
        inspect.unwrap(participants)(x, near[:7], far)
    for loss, option in (
        (contrastive, "margin"),
        (triplet, "margin"),
        (multi_similarity, "beta"),
        (info_nce, "temperature"),
        (smooth_ap, "temperature"),
    ):
        with pytest.raises(ValueError, match=f"{option} is 0, but it lies above 0"):
            loss(x, near, far, **{option: 0})
    with pytest.raises(ValueError, match="most_positives is 0"):
        smooth_ap(x, near, far, most_positives=0)


# Boxes.


def some_maps(rng, m=3, h=5, w=6, c=4):
    maps = rng.random((m, h, w, c)) ** 4
    sizes = np.array([[h, w], [h - 1, w - 2], [h, w - 1]], np.int32)[:m]
    queries = np.stack([maps[i, 1:3, 1:4].max((0, 1)) for i in range(m)])
    return np.apply_along_axis(oracles.unit, 1, queries)[:2], maps, sizes


@pytest.mark.parametrize("alpha", [None, 10, 2.5])
def test_box_cosines_are_those_of_the_boxes_that_localization_finds(rng, alpha):
    queries, maps, sizes = some_maps(rng)
    ratios = np.float32([2 / 3, 1.0])
    with jax.enable_x64(True):
        boxes = np.asarray(latent_boxes(queries, maps, sizes, ratios, alpha=alpha))
        found = box_cosines(5 * queries, maps, sizes, ratios, alpha=alpha)
        assert found.dtype == np.float64 and found.shape == (2, 3)
    for i, query in enumerate(queries):
        for j, (h, w) in enumerate(sizes):
            _, box, margin = oracles.aml(maps[j, :h, :w], query, ratios[i], alpha)
            assert margin < 1e-6 or tuple(boxes[i, j]) == box
            pool = oracles.box_maximum if alpha is None else oracles.box_generalized_mean
            vector = pool(maps[j], boxes[i, j], *([] if alpha is None else [alpha]))
            np.testing.assert_allclose(found[i, j], oracles.cosine(vector, query), rtol=1e-9)


@pytest.mark.parametrize("ratios", [None, np.float32([0.7, 1.0])])
def test_with_every_box_none_is_better(rng, ratios):
    queries, maps, sizes = some_maps(rng)
    found = box_cosines(
        queries.astype(np.float32), maps.astype(np.float32), sizes, ratios,
        max_ratio=1.5, every_box=True,
    )  # fmt: skip
    for i, query in enumerate(queries):
        for j, (h, w) in enumerate(sizes):
            limits = (None, None) if ratios is None else (ratios[i], 1.5)
            best, _ = oracles.localize_instances(maps[j, :h, :w], query, *limits)
            np.testing.assert_allclose(found[i, j], best[0][0], atol=1e-6)


@pytest.mark.parametrize("alpha", [None, 10])
def test_gradients_of_localized_are_right_with_the_box_as_it_is(rng, alpha):
    queries, maps, sizes = some_maps(rng)
    near = np.array([[True, False, False], [False, True, False]])

    def loss(queries, maps):
        cosines = box_cosines(l2_normalize(queries), maps, sizes, alpha=alpha)
        return localized(cosines, near, ~near, temperature=0.3)

    with jax.enable_x64(True):
        arrays = (jnp.asarray(2 * queries), jnp.asarray(maps + 0.01))
        check_grads(jax.jit(loss), arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-5, eps=1e-6)
    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    single = [part.astype(np.float32) for part in (queries, maps)]
    for q, a in (
        (single[0], np.zeros_like(single[1])),
        (np.zeros_like(single[0]), single[1]),
        (single[0], np.ones_like(single[1])),
    ):
        for gradient in slope(q, a):
            assert np.isfinite(gradient).all()
    padding = np.asarray(slope(*single)[1])[1, 4:]
    np.testing.assert_array_equal(padding, 0)


def test_box_cosines_take_levels_and_mapping(rng):
    queries, maps, sizes = some_maps(rng)
    levels = (maps * 8).astype(np.uint8)
    queries = queries.astype(np.float32)
    compiled = jax.jit(box_cosines)(queries, levels, sizes)
    np.testing.assert_allclose(box_cosines(queries, levels, sizes), compiled, atol=1e-6)
    each = jax.vmap(lambda q: box_cosines(q[None], levels, sizes)[0])(queries)
    np.testing.assert_allclose(each, compiled, atol=1e-6)


def test_localized_is_the_cross_entropy_of_any_cosines(rng):
    alike = rng.uniform(-1, 1, (4, 6))
    drawn = rng.integers(0, 3, (4, 6))
    near, far = drawn == 0, drawn == 1
    expected = slow_entropy(alike, near, far, 0.2)
    alike[drawn == 2] = np.nan
    value, gradient = jax.value_and_grad(localized)(
        alike.astype(np.float32), near, far, temperature=0.2
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"negatives has shape \(4, 5\)"):
        inspect.unwrap(localized)(alike, near, far[:, :5])


def test_placed_is_the_cross_entropy_of_choosing_among_all_photos_boxes(rng):
    queries, boxes, overlaps = unit_rows(rng, 3, 6), unit_rows(rng, 3, 4, 6), rng.random((3, 4))
    terms, best = [], []
    for i, query in enumerate(queries):
        chances = np.exp(boxes @ query / 0.3)
        chances /= chances.sum()
        target = np.exp(overlaps[i] / 0.1) / np.exp(overlaps[i] / 0.1).sum()
        terms.append(-(target * np.log(chances[i])).sum())
        best.append(overlaps[i, chances[i].argmax()])
    loss, overlap = placed(queries, boxes, overlaps, temperature=0.3)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(overlap, np.mean(best), rtol=1e-6)
    with jax.enable_x64(True):

        def of_raw(q, b):
            return placed(l2_normalize(q), l2_normalize(b), overlaps, temperature=0.3)[0]

        check_grads(jax.jit(of_raw), (queries, boxes), order=1, modes=["rev"], atol=1e-6, rtol=1e-5)
    dark = jax.grad(lambda q: placed(l2_normalize(q), boxes, overlaps)[0])(jnp.zeros((3, 6)))
    assert np.isfinite(dark).all()
    with pytest.raises(ValueError, match="sharpness is 0"):
        placed(queries, boxes, overlaps, sharpness=0)
