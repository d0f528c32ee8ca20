"""AML against the published loops, all boxes against brute force, and the laws of both."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from rmacjax.integral import quantize
from rmacjax.localization import (
    Localization,
    aml,
    aml_batch,
    aml_instances,
    localize,
    localize_instances,
)
from rmacjax.localization.approximate import _aml
from rmacjax.localization.exhaustive import _localize
from rmacjax.pooling import mac, region_maxima
from rmacjax.regions import box_iou

RATIOS = [0.45, 0.8, 1.0, 1.4, 30.0]
DECIDED = 3e-7
"""Comparisons closer than this may fall either way in float32."""


def activations(rng, h, w, c=6):
    """Sparse maps whose neighbouring cells resemble each other, as activations do."""
    x = rng.normal(size=(h + 2, w + 2, c))
    x = x[1:-1, 1:-1] + 0.7 * (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:])
    return np.maximum(60 * x - 20, 0).astype(np.float32)


def some_query(rng, a):
    """The MAC of a part of the map, disturbed."""
    h, w, c = a.shape
    top, left = rng.integers(0, h), rng.integers(0, w)
    part = a[top : top + 1 + h // 3, left : left + 1 + w // 3]
    return (part.max((0, 1)) + 10 * rng.random(c)).astype(np.float32)


def as_kind(a, kind):
    return np.asarray(quantize(a)) if kind == "levels" else a


def cosine_of(a, box, query):
    return oracles.cosine(oracles.box_maximum(a, box), query)


def assert_found(found, score, box, margin):
    """The same box wherever float32 can tell; say whether it can."""
    if margin <= DECIDED:
        return False
    assert found.box.tolist() == list(box)
    assert float(found.score) == pytest.approx(score, abs=1e-6)
    return True


# AML.


@pytest.mark.parametrize(("kind", "alpha"), [("levels", None), ("floats", 10)])
@pytest.mark.parametrize(
    ("h", "w"), [(1, 1), (1, 9), (2, 6), (13, 7), (12, 17), (24, 32), (64, 64)]
)
def test_aml_is_the_published_search(rng, h, w, kind, alpha):
    decided = []
    for ratio in RATIOS:
        a = as_kind(activations(rng, h, w), kind)
        query = some_query(rng, a)
        found = aml(a, query, ratio, alpha=alpha)
        assert found.score.dtype == jnp.float32 and found.box.dtype == jnp.int32
        decided.append(assert_found(found, *oracles.aml(a, query, ratio, alpha)))
    assert np.mean(decided) >= 0.6


@pytest.mark.parametrize(("kind", "alpha"), [("levels", 10), ("floats", None), ("floats", 2.5)])
def test_aml_without_a_limit_of_the_ratio(rng, kind, alpha):
    decided = []
    for _ in range(5):
        a = as_kind(activations(rng, 10, 13), kind)
        query = some_query(rng, a)
        found = aml(a, query, alpha=alpha)
        decided.append(assert_found(found, *oracles.aml(a, query, None, alpha)))
    assert np.mean(decided) >= 0.6


@pytest.mark.parametrize(
    "options",
    [
        {"refine_steps": ()},
        {"refine_steps": (2,), "passes": 1},
        {"refine_steps": (1,), "passes": 2},
        {"step": 1, "max_ratio": 1.5},
        {"step": 4, "max_ratio": 1.0, "refine_steps": (1, 5), "passes": 3},
    ],
    ids=str,
)
def test_the_options_do_what_they_do_in_the_published_search(rng, options):
    theirs = {"steps" if key == "refine_steps" else key: options[key] for key in options}
    decided = []
    for ratio in RATIOS:
        a = activations(rng, 11, 14)
        query = some_query(rng, a)
        found = aml(a, query, ratio, alpha=None, **options)
        decided.append(assert_found(found, *oracles.aml(a, query, ratio, None, **theirs)))
    assert np.mean(decided) >= 0.6


def test_the_candidates_are_those_of_the_paper():
    # Without refinement, a map that is bright in one candidate's corners only gives it back.
    assert len(oracles.candidates(24, 32)) == 2376
    search = partial(aml, alpha=None, refine_steps=())
    for box in [(0, 0, 2, 2), (3, 9, 8, 11), (21, 30, 23, 32), (0, 0, 23, 32), (9, 6, 20, 17)]:
        top, left, bottom, right = box
        a = np.zeros((24, 32, 3), np.float32)
        a[:, :, 2] = 1
        a[top:bottom, left:right, 2] = 0
        a[top, left], a[bottom - 1, right - 1] = [1, 0, 0], [0, 1, 0]
        found = search(a, np.float32([1, 1, 0]))
        assert found.box.tolist() == list(box)
        assert float(found.score) == pytest.approx(1, abs=1e-6)


def test_the_first_of_equal_candidates_wins_by_top_bottom_left_right():
    a = np.zeros((13, 17, 1), np.float32)
    a[4, 7] = 1
    search = partial(aml, query=np.ones(1, np.float32), alpha=None, refine_steps=())
    # (0, 3, 5, 8) ends above (0, 0, 8, 8), although that one begins further left.
    assert search(a, ratio=1.0).box.tolist() == [0, 3, 5, 8]
    assert search(a).box.tolist() == [0, 0, 5, 8]
    a[1, 7] = 1
    assert search(a, ratio=1.0).box.tolist() == [0, 6, 2, 8]


def test_a_candidate_on_the_limit_of_the_ratio_is_within_it():
    a = np.ones((20, 20, 1), np.float32)
    search = partial(aml, query=np.ones(1, np.float32), alpha=None, refine_steps=())
    # The first candidate of the shape 8 : 5, at the limit, and none of it just beyond.
    for ratio in (8 / 5 * 1.1, 8 / 5 / 1.1):
        assert search(a, ratio=ratio).box.tolist() == [0, 0, 8, 5]
        beyond = ratio * 1.0001 if ratio > 8 / 5 else ratio / 1.0001
        assert search(a, ratio=beyond).box.tolist() != [0, 0, 8, 5]


def test_without_a_candidate_the_whole_map_is_refined(rng):
    a = activations(rng, 7, 9)
    query = np.ones(6, np.float32)
    found = aml(a, query, 50.0, alpha=None, refine_steps=())
    assert found.box.tolist() == [0, 0, 7, 9]
    assert float(found.score) == pytest.approx(cosine_of(a, (0, 0, 7, 9), query), abs=1e-6)
    column = activations(rng, 9, 1)
    assert_found(aml(column, query), *oracles.aml(column, query))


def test_the_exact_maximum_is_the_limit_of_the_generalized_mean(rng):
    a = rng.uniform(0.3, 1, (7, 9, 6)).astype(np.float32)
    query = some_query(rng, a)
    exact, mean = (aml(a, query, alpha=alpha, refine_steps=()) for alpha in (None, 100))
    assert float(mean.score) == pytest.approx(float(exact.score), abs=3e-3)


def test_the_score_of_exact_maxima_is_the_cosine_of_the_boxes_mac(rng):
    a = activations(rng, 10, 13)
    query = some_query(rng, a)
    for found in (aml(a, query, 1.0, alpha=None), localize(a, query)):
        vector = np.asarray(region_maxima(a, found.box[None])[0], np.float64)
        expected = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
        assert float(found.score) == pytest.approx(expected, abs=1e-6)


# All boxes.


@pytest.mark.parametrize("kind", ["levels", "floats"])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 9), (2, 6), (9, 7), (7, 9)])
def test_localize_is_brute_force(rng, h, w, kind):
    decided = []
    for ratio in [None, *RATIOS]:
        a = as_kind(activations(rng, h, w), kind)
        query = some_query(rng, a)
        limits = () if ratio is None else (ratio, 1.3)
        found = localize(a, query, *limits)
        [(score, box)], margin = oracles.localize_instances(a, query, *limits)
        decided.append(assert_found(found, score, box, margin))
    assert np.mean(decided) >= 0.6


def test_of_equal_boxes_the_smallest_topmost_leftmost_widest_wins():
    a = np.zeros((6, 7, 2), np.float32)
    query = np.float32([1, 1])
    assert localize(a, query).box.tolist() == [0, 0, 1, 1]
    a[2, 3], a[4, 3], a[2, 5] = [1, 1], [2, 2], [3, 3]
    assert localize(a, query).box.tolist() == [2, 3, 3, 4]
    a[:] = 0
    a[1, 2], a[2, 4] = [1, 0], [0, 1]
    a[4, 1], a[5, 3] = [0, 1], [1, 0]
    assert localize(a, query).box.tolist() == [1, 2, 3, 5]
    a[:] = 1
    assert localize(a, query, 4.0, 1.0).box.tolist() == [0, 0, 4, 1]
    # Six cells in two shapes at the same corner: the wider.
    a[:] = 0
    a[0, 0], a[1, 2], a[2, 1] = [1, 0], [0, 1], [0, 1]
    assert localize(a, query, 1.0, 1.5).box.tolist() == [0, 0, 2, 3]


def test_equal_vectors_score_equally_wherever_they_are(rng):
    # All boxes around one bright row of many channels have the same maxima; rounding must not show.
    for _ in range(3):
        a = np.zeros((9, 11, 300), np.float32)
        a[4, 5] = rng.random(300)
        assert localize(a, rng.random(300).astype(np.float32)).box.tolist() == [4, 5, 5, 6]
    found = aml(a, np.ones(300, np.float32), alpha=None, refine_steps=())
    assert found.box.tolist() == [0, 0, 5, 8]


def test_no_search_beats_brute_force(rng):
    for _ in range(4):
        a = activations(rng, 10, 13)
        query = some_query(rng, a)
        best = float(localize(a, query).score)
        assert float(aml(a, query, alpha=None).score) <= best + 1e-6
        assert float(aml(a, query, 1.0, alpha=None).score) <= best + 1e-6
        assert float(localize(a, query, 1.0, 1.3).score) <= best + 1e-6
        assert cosine_of(a, (0, 0, 10, 13), query) <= best + 1e-6


def test_a_flipped_map_has_the_flipped_best_box(rng):
    a = activations(rng, 7, 9)
    query = some_query(rng, a)
    found = localize(a, query)
    top, left, bottom, right = found.box.tolist()
    # Exact activations are all different, so the best maxima belong to one smallest box.
    for axis, box in [
        (0, (7 - bottom, left, 7 - top, right)),
        (1, (top, 9 - right, bottom, 9 - left)),
    ]:
        flipped = localize(np.flip(a, axis), query)
        assert flipped.box.tolist() == list(box)
        assert float(flipped.score) == pytest.approx(float(found.score), abs=1e-6)


def test_a_moved_object_is_found_where_it_moved(rng):
    a = np.zeros((7, 9, 6), np.float32)
    a[1:4, 2:6] = 1 + rng.random((3, 4, 6))
    query = np.asarray(mac(a))
    a[6:, 8:] = [5, 0, 0, 0, 0, 0]
    found = localize(a, query)
    assert float(found.score) == pytest.approx(1, abs=1e-6)
    a[:6, :8] = np.roll(a[:6, :8], (2, 2), axis=(0, 1))
    moved = localize(a, query)
    assert (moved.box - found.box).tolist() == [2, 2, 2, 2]


# Several instances.


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_instances_are_greedy(rng, overlap):
    decided = []
    for _ in range(3):
        a = activations(rng, 7, 9)
        query = some_query(rng, a)
        for search, oracle in [
            (partial(aml_instances, alpha=None), partial(oracles.aml_instances, alpha=None)),
            (localize_instances, oracles.localize_instances),
        ]:
            scores, boxes = search(a, query, instances=4, overlap=overlap)
            found, margin = oracle(a, query, instances=4, overlap=overlap)
            count = len(found)
            assert scores[count:].tolist() == [-1] * (4 - count)
            assert boxes[count:].tolist() == [[0] * 4] * (4 - count)
            if margin > DECIDED:
                assert boxes[:count].tolist() == [list(box) for _, box in found]
                np.testing.assert_allclose(scores[:count], [s for s, _ in found], atol=1e-6)
            decided.append(margin > DECIDED)
            iou = box_iou(np.asarray(boxes)[:count, None], np.asarray(boxes)[None, :count])
            assert (iou[~np.eye(count, dtype=bool)] <= overlap + 1e-6).all()
    assert np.mean(decided) >= 0.5


def test_the_first_instance_is_the_one(rng):
    a = activations(rng, 10, 13)
    query = some_query(rng, a)
    pairs = {
        partial(aml, ratio=1.2): partial(aml_instances, ratio=1.2),
        localize: localize_instances,
    }
    for one, many in pairs.items():
        single, several = one(a, query), many(a, query, instances=2)
        assert several.box[0].tolist() == single.box.tolist()
        assert several.score.shape == (2,) and several.box.shape == (2, 4)
        assert float(several.score[0]) == float(single.score)


def test_a_map_has_no_more_instances_than_boxes():
    a = np.ones((1, 2, 1), np.float32)
    scores, boxes = localize_instances(a, np.ones(1, np.float32), instances=5, overlap=0)
    assert scores.tolist() == [1, 1, -1, -1, -1]
    assert boxes.tolist() == [[0, 0, 1, 1], [0, 1, 1, 2]] + [[0] * 4] * 3
    scores, boxes = aml_instances(a, np.ones(1, np.float32), instances=2)
    assert scores.tolist() == [1, -1]
    assert boxes.tolist() == [[0, 0, 1, 2], [0] * 4]


# What is no activation, no query, no cell.


@pytest.mark.parametrize("search", [aml, partial(aml, alpha=None), localize])
def test_zero_maps_and_zero_queries_score_zero(rng, search):
    a = activations(rng, 7, 9)
    for map_, query in [(a * 0, np.ones(6, np.float32)), (a, np.zeros(6, np.float32))]:
        found = search(map_, query, 1.0)
        assert float(found.score) == 0
        top, left, bottom, right = found.box.tolist()
        assert (top, left) == (0, 0) and 0 < bottom <= 7 and 0 < right <= 9


@pytest.mark.parametrize("search", [aml, partial(aml, alpha=None), localize])
def test_what_is_no_activation_counts_as_zero(rng, search):
    a = activations(rng, 7, 9)
    query = some_query(rng, a)
    a[2, 3, :4] = a[5, 5, 1] = 0
    clean_query = query.copy()
    clean_query[0] = 0
    expected = search(a, clean_query)
    a[2, 3, :4], a[5, 5, 1], query[0] = [np.nan, np.inf, -np.inf, -5], -1e30, np.nan
    found = search(a, query)
    assert found.box.tolist() == expected.box.tolist()
    assert float(found.score) == float(expected.score)


@pytest.mark.parametrize("search", [aml, partial(aml, alpha=None), localize])
def test_the_units_of_map_and_query_do_not_matter(rng, search):
    a = activations(rng, 7, 9)
    query = some_query(rng, a)
    expected = search(a, query)
    for x in (a, query):
        x /= x.max()  # the brightest that is told apart is 2^125
    for scale in (np.float32(2) ** 125, np.float32(2) ** -100):
        for found in (search(a * scale, query), search(a, query * scale)):
            assert found.box.tolist() == expected.box.tolist()
            assert float(found.score) == pytest.approx(float(expected.score), abs=1e-6)


@pytest.mark.parametrize("search", [partial(aml, alpha=None), localize])
def test_levels_of_any_type_give_the_same_box(rng, search):
    levels = as_kind(activations(rng, 7, 9), "levels")
    query = some_query(rng, levels)
    expected = search(levels, query)
    for dtype in (np.int32, np.float16, jnp.bfloat16):
        found = search(levels.astype(dtype), query)
        assert found.box.tolist() == expected.box.tolist()
        assert float(found.score) == float(expected.score)
        assert found.score.dtype == jnp.float32


# Padding, transformations, compilations.


@pytest.mark.parametrize("alpha", [None, 10, 40])
def test_what_lies_beyond_the_size_does_not_matter(rng, alpha):
    a, query = rng.random((9, 12, 5), np.float32), rng.random(5, np.float32)
    padded = np.full((12, 16, 5), 1e12, np.float32)
    padded[:9, :12] = a
    alone, size = aml(a, query, 1.0, alpha=alpha), np.int32([9, 12])
    batch = aml_batch(padded[None], size[None], query, 1.0, alpha=alpha)
    for found in (
        aml(padded, query, 1.0, alpha=alpha, size=size),
        Localization(batch.score[0, 0], batch.box[0, 0]),
    ):
        assert found.box.tolist() == alone.box.tolist()
        assert float(found.score) == pytest.approx(float(alone.score), abs=1e-6)
    exact, best = localize(padded, query, size=size), localize(a, query)
    assert exact.box.tolist() == best.box.tolist()
    assert float(exact.score) == pytest.approx(float(best.score), abs=1e-6)


@pytest.mark.parametrize(
    "search", [aml, partial(aml, alpha=None), partial(localize, max_ratio=1.4)]
)
def test_a_padded_map_with_its_size_is_the_map_alone(rng, search):
    padded_search = jax.jit(lambda a, query, size: search(a, query, 0.8, size=size))
    for h, w in [(6, 13), (9, 1), (7, 9)]:
        a = activations(rng, h, w)
        query = some_query(rng, a)
        padded = np.zeros((9, 13, 6), np.float32)
        padded[:h, :w] = a
        found, expected = padded_search(padded, query, np.int32([h, w])), search(a, query, 0.8)
        assert found.box.tolist() == expected.box.tolist()
        assert float(found.score) == pytest.approx(float(expected.score), abs=1e-6)
    assert padded_search._cache_size() == 1


@pytest.mark.parametrize("search", [aml, partial(aml, alpha=None), localize])
def test_mapped_over_maps_it_is_the_loop(rng, search):
    maps = np.stack([activations(rng, 7, 9) for _ in range(4)])
    query = some_query(rng, maps[2])
    together = jax.vmap(search, in_axes=(0, None, None))(maps, query, 1.2)
    for index, a in enumerate(maps):
        alone = search(a, query, 1.2)
        assert together.box[index].tolist() == alone.box.tolist()
        assert float(together.score[index]) == pytest.approx(float(alone.score), abs=1e-6)
    ratios = jnp.asarray(RATIOS)
    by_ratio = jax.vmap(search, in_axes=(None, None, 0))(maps[0], query, ratios)
    for index, ratio in enumerate(RATIOS):
        assert by_ratio.box[index].tolist() == search(maps[0], query, ratio).box.tolist()


@pytest.mark.parametrize("alpha", [None, 10])
@pytest.mark.parametrize(("scored", "refined"), [(None, None), (2, None), (3, 4)])
def test_a_batch_is_one_map_after_the_other(rng, alpha, scored, refined):
    sizes = np.int32([(7, 13), (9, 6), (1, 1), (9, 13), (3, 12)])
    maps = np.zeros((5, 9, 13, 6), np.float32)
    for a, (h, w) in zip(maps, sizes, strict=True):
        a[:h, :w] = activations(rng, h, w)
    query = some_query(rng, maps[3])
    found = aml_batch(
        maps,
        sizes,
        query,
        0.8,
        instances=2,
        alpha=alpha,
        side_by_side=scored,
        refine_side_by_side=refined,
    )
    for index, (a, (h, w)) in enumerate(zip(maps, sizes, strict=True)):
        alone = aml_instances(a[:h, :w], query, 0.8, instances=2, alpha=alpha)
        assert found.box[index].tolist() == alone.box.tolist()
        np.testing.assert_allclose(found.score[index], alone.score, atol=1e-6)


@pytest.mark.parametrize(
    ("search", "alpha"),
    [(partial(aml, alpha=None), None), (aml, 10), (partial(aml, alpha=2.5), 2.5), (localize, None)],
)
def test_the_gradient_of_a_score_is_that_of_the_found_box(rng, search, alpha):
    a, query = activations(rng, 8, 11) / 60, rng.random(6).astype(np.float32)
    top, left, bottom, right = search(a, query, 0.8).box.tolist()

    def score(x, q):
        part = x[top:bottom, left:right].reshape(-1, 6)
        vector = part.max(0) if alpha is None else (part**alpha).sum(0) ** (1 / alpha)
        return vector @ q / np.linalg.norm(vector) / np.linalg.norm(q)

    gradients = jax.grad(lambda x, q: search(x, q, 0.8).score, argnums=(0, 1))(a, query)
    inputs = [a.astype(np.float64), query.astype(np.float64)]
    assert np.any(gradients[0]) and not np.any(np.delete(gradients[0], range(top, bottom), axis=0))
    for k, gradient in enumerate(gradients):
        expected = np.zeros(inputs[k].shape)
        for place in np.ndindex(expected.shape):
            ends = []
            for sign in (-1, 1):
                moved = [x.copy() for x in inputs]
                if moved[k][place] > 0:  # at 0 there is nothing below
                    moved[k][place] += sign * 1e-6
                ends.append(score(*moved))
            expected[place] = (ends[1] - ends[0]) / 2e-6
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


def test_a_thousand_ratios_are_one_compilation(rng):
    maps = np.stack([activations(rng, 6, 7) for _ in range(2)])
    query = some_query(rng, maps[0])
    search = jax.vmap(aml, in_axes=(0, None, None))
    before = _aml._cache_size(), _localize._cache_size()
    for ratio in [
        1,
        2.5,
        np.float32(0.3),
        np.asarray(3),
        jnp.asarray(0.7),
        *rng.uniform(0.2, 5, 9),
    ]:
        aml(maps[0], query, ratio)
        # Spelled out or left out, the defaults are the same program.
        aml(maps[0], query, ratio, alpha=10.0, size=np.int32([6, 7]), refine_steps=[3, 2, 1])
        localize(maps[0], query, ratio, 1.3)
    assert (_aml._cache_size(), _localize._cache_size()) == (before[0] + 1, before[1] + 1)
    traced = []

    def count(a, query, ratio):
        traced.append(1)
        return search(a, query, ratio)

    compiled = jax.jit(count)
    for ratio in np.linspace(0.2, 5, 1000):
        compiled(maps, query, float(ratio))
    assert len(traced) == 1


def test_a_traced_limit_of_the_ratio_gives_what_a_fixed_one_does(rng):
    a = activations(rng, 8, 11)
    query = some_query(rng, a)
    traced = jax.jit(partial(localize_instances, instances=3))
    for ratio, most in [(0.5, 1.0), (0.5, 1.1), (1.3, 1.6), (30.0, 1.1)]:
        fixed = localize_instances(a, query, ratio, most, instances=3)
        found = traced(a, query, jnp.float32(ratio), jnp.float32(most))
        assert found.box.tolist() == fixed.box.tolist()
        np.testing.assert_allclose(found.score, fixed.score, atol=1e-6)


def test_with_double_precision_on_it_gives_the_same(rng):
    a = activations(rng, 7, 9)
    query = some_query(rng, a)
    expected = [aml(a, query, 1.0), localize(a, query, 1.0, 1.3)]
    with jax.enable_x64(True):
        found = [aml(a, query, 1.0), localize(a.astype(np.float64), query, 1.0, 1.3)]
    for one, other in zip(found, expected, strict=True):
        assert one.box.tolist() == other.box.tolist()
        assert one.score.dtype == jnp.float32 and one.box.dtype == jnp.int32


# Errors.


def test_numbers_in_arrays_are_checked_like_numbers():
    a, query = np.ones((4, 5, 3), np.float32), np.ones(3, np.float32)
    for one in (float, np.float32, jnp.float32, np.asarray):
        with pytest.raises(ValueError, match=r"max_ratio is 0\.5, but it is at least 1"):
            localize(a, query, 1.0, one(0.5))
        for search in (aml, localize):
            with pytest.raises(ValueError, match="height / width of the query lies above 0"):
                search(a, query, one(-1.0))
    assert localize(a, query, 1.0, 1e200).box.tolist() == localize(a, query).box.tolist()
    assert aml(a, query, 1.0, max_ratio=math.inf).box.tolist() == aml(a, query).box.tolist()


def test_bad_arguments_are_refused_with_a_sentence():
    a, query = np.ones((4, 5, 3), np.float32), np.ones(3, np.float32)
    for search in (aml_instances, localize_instances):
        bare = inspect.unwrap(search)
        with pytest.raises(ValueError, match=r"query has shape \(2,\) but the map has 3 channels"):
            bare(a, query[:2])
        with pytest.raises(ValueError, match=r"one activation map \(h, w, c\)"):
            bare(a[None], query)
        with pytest.raises(ValueError, match="at least 1 x 1 cells"):
            bare(a[:0], query)
        for ratio in (0, -1.5, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"ratio is {ratio}, but height / width"):
                search(a, query, ratio)
    for search in (aml, partial(localize, ratio=1.0)):
        with pytest.raises(ValueError, match=r"max_ratio is 0.9, but it is at least 1"):
            search(a, query, max_ratio=0.9)
    for name in ("step", "passes"):
        with pytest.raises(ValueError, match=f"{name} is 0, but it is at least 1"):
            aml(a, query, **{name: 0})
    with pytest.raises(ValueError, match=r"refine_steps is \(3, 0\), but a side moves by at least"):
        aml(a, query, refine_steps=(3, 0))
    with pytest.raises(ValueError, match=r"alpha is 0.5, .* None takes exact maxima"):
        aml(a, query, alpha=0.5)
    with pytest.raises(ValueError, match="max_ratio was given without a ratio"):
        localize(a, query, max_ratio=1.5)
    for search in (aml_instances, localize_instances):
        with pytest.raises(ValueError, match="instances is 0, but it is at least 1"):
            search(a, query, instances=0)
        with pytest.raises(
            ValueError, match=r"overlap is 1\.5, but intersection over union lies in"
        ):
            search(a, query, overlap=1.5)


@pytest.mark.parametrize("search", [partial(aml, alpha=None), localize])
def test_devices_share_maps(rng, search):
    mesh = jax.make_mesh((2,), ("maps",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.sharding.PartitionSpec(name) for name in ("maps", None))
    maps = jnp.stack([jnp.asarray(activations(rng, 7, 9)) for _ in range(4)])
    query = jnp.asarray(some_query(rng, np.asarray(maps[0])))

    def many(maps, query):
        return jax.vmap(lambda a1: search(a1, query, 1.0, max_ratio=1.5))(maps)

    expected = many(maps, query)
    shard = partial(jax.shard_map, mesh=mesh, out_specs=split, check_vma=False)
    laid_out = jax.device_put(maps, jax.sharding.NamedSharding(mesh, split))
    for found in (
        jax.jit(shard(many, in_specs=(split, whole)))(maps, query),
        jax.jit(many)(laid_out, query),
    ):
        assert found.box.tolist() == expected.box.tolist()
        assert np.asarray(found.score) == pytest.approx(np.asarray(expected.score), abs=1e-6)
