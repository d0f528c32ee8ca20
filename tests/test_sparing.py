"""Sparing groups of boxes: their geometry, their bounds, and the same best box as without them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmacjax.localization import exhaustive, localize
from rmacjax.localization.groups import covered, line_order, lines, shared, spans
from rmacjax.localization.scoring import check_inputs, pooling, unit_query
from rmacjax.localization.sparing import _boxes, _edges, _may_reach, _pieces

KINDS = ("planted", "noise", "few levels", "floats", "one bright cell", "rows", "flat")
CHANNELS = 24


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def some_map(rng, kind, h=16, w=18):
    a = rng.integers(0, 9, (h, w, CHANNELS)) * (rng.random((h, w, CHANNELS)) < 0.15)
    if kind == "planted":
        a[4:11, 5:13] = rng.integers(0, 9, (7, 8, CHANNELS))
        a[..., ::2] *= 2
    if kind == "few levels":
        a = np.minimum(a, 1)
    if kind == "floats":
        return (a * rng.random(a.shape)).astype(np.float32)
    if kind == "one bright cell":
        a[:] = 0
        a[h - 3, 2] = rng.integers(1, 9, CHANNELS)
    if kind == "rows":
        a = np.repeat(a[:, :1], w, axis=1)
    if kind == "flat":
        a[:] = 3
    return a.astype(np.uint8)


def by_force(a, query, ratio=None, most=None):
    """All boxes in float64: the best score, and the least of the boxes that have it."""
    a, found = a.astype(np.float64), []
    for top in range(a.shape[0]):
        band = np.zeros(a.shape[1:])
        for bottom in range(top + 1, a.shape[0] + 1):
            band = np.maximum(band, a[bottom - 1])
            for left in range(a.shape[1]):
                vectors = np.maximum.accumulate(band[left:])
                norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
                scores = vectors @ query / np.where(norms > 0, norms, 1)
                for width, score in enumerate(scores, start=1):
                    shape = (bottom - top) / width
                    if most is None or abs(np.log(ratio / shape)) <= np.log(most) + 1e-6:
                        key = ((bottom - top) * width, top, left, bottom)
                        found.append((score, key, (top, left, bottom, left + width)))
    best = max(score for score, _, _ in found)
    equal = [(key, box) for score, key, box in found if score >= best - 4e-7]
    margin = [best - score for score, _, _ in found if best - 1e-6 < score < best - 1e-7]
    return best, min(equal)[1], not margin


@pytest.mark.parametrize("length", [2, 4, 6, 16])
def test_every_interval_is_in_one_group(length):
    groups = spans(length)
    found = []
    for group in zip(*groups, strict=True):
        edges = _edges(jnp.asarray(group), jnp.asarray([0, 1, 0, 1]))
        found += {(int(t), int(b)) for t, b in zip(edges.top, edges.bottom, strict=True)}
    every = [(i, j) for i in range(length) for j in range(i + 1, length + 1)]
    assert sorted(found) == every


@pytest.mark.parametrize(("h", "w"), [(2, 4), (4, 2), (8, 6)])
def test_groups_are_pooled_by_what_they_cover_and_share(rng, h, w):
    x = rng.integers(0, 200, (h, w, 3)).astype(np.uint8)
    for axis, length in ((0, h), (1, w)):
        groups, turned = spans(length), np.moveaxis(x, axis, 0)
        for pooled, (firsts, lasts) in (
            (covered(jnp.asarray(x), axis), groups[:2]),
            (shared(jnp.asarray(x), axis), groups[2:]),
        ):
            expected = [turned[i:j].max(axis=0) for i, j in zip(firsts, lasts, strict=True)]
            np.testing.assert_array_equal(np.moveaxis(np.asarray(pooled), axis, 0), expected)
    order, starts, added = line_order(h)
    bands, every = [np.zeros((w, 3), np.uint8)] * 2, np.asarray(lines(jnp.asarray(x)))
    for group, new, adds in zip(order, starts, added, strict=True):
        for k in (0, 1):
            bands[k] = every[adds[k]] if new[k] else np.maximum(bands[k], every[adds[k]])
        first, last, inner_first, inner_last = (int(edge[group]) for edge in spans(h))
        np.testing.assert_array_equal(bands[0], x[first:last].max(axis=0))
        np.testing.assert_array_equal(bands[1], x[inner_first:inner_last].max(axis=0))


def test_a_groups_boxes_are_its_boxes(rng):
    x = rng.integers(0, 200, (8, 10, 5)).astype(np.uint8)

    @jax.jit
    def boxes_of(low, center, row, column):
        return _boxes(_pieces(jnp.asarray(x), low, center, row, column)), _edges(row, column)

    for row in np.stack(spans(8), axis=1):
        for column in np.stack(spans(10), axis=1)[::3]:
            low = x[row[2] : row[3]].max(axis=0)
            vectors, edges = boxes_of(low, low[column[2] : column[3]].max(axis=0), row, column)
            for vector, box in zip(np.asarray(vectors), np.stack(edges, axis=1), strict=True):
                top, left, bottom, right = box
                np.testing.assert_array_equal(vector, x[top:bottom, left:right].max((0, 1)))


def test_no_vector_of_a_spared_group_reaches_the_score(rng):
    spared = 0
    for _ in range(40):
        query = np.abs(rng.normal(size=CHANNELS)).astype(np.float32) ** rng.uniform(0.2, 3)
        query /= np.linalg.norm(query)
        high = (query + rng.exponential(0.4, (30, CHANNELS))).astype(np.float32)
        low = (high * rng.uniform(0.3, 1, (30, CHANNELS))).astype(np.float32)
        score = np.float32(rng.uniform(0.5, 0.99))
        steepest = np.linalg.norm(high, axis=1).max() / score
        given = map(jnp.asarray, (low, high, query, score, np.float32(steepest)))
        kept = np.asarray(_may_reach(*given))
        for s in np.geomspace(0.05, 50, 400):  # among these is nearly the best vector there is
            vectors = np.clip(s * query, low, high).astype(np.float64)
            cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
            assert kept[cosines >= score].all()
        spared += np.sum(~kept)
    assert spared > 200


@pytest.fixture(scope="module")
def search():
    """The search that spares boxes, whatever the map's size, for no limit, 1.3 and a traced one."""

    @partial(jax.jit, static_argnames="limit")
    def find(a, query, ratio=None, most=None, size=None, *, limit=None):
        inputs = check_inputs(a, query, ratio, size)
        inputs = inputs._replace(query=unit_query(inputs))
        box, exists = exhaustive.best_box(inputs, most, limit=limit)
        pooled = pooling(inputs.a1, inputs.size)
        return box, exists, exhaustive.cosines(pooled.of_box(box)[None], inputs.query)[0]

    return find


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_brute_force(rng, search, kind):
    decided = 0
    every = [(None, None, None), (1.7, 1.3, None), (0.6, None, 1.2)]
    for ratio, limit, most in every[:1] if kind == "floats" else every:
        a = some_map(rng, kind, 11, 13)
        query = (a.reshape(-1, CHANNELS).max(0) * rng.random(CHANNELS)).astype(np.float32)
        if kind == "planted":
            query = a[4:11, 5:13].max((0, 1)).astype(np.float32)
        given = () if ratio is None else (np.float32(ratio),)
        traced = () if most is None else (np.float32(most),)
        box, exists, score = search(a, query, *given, *traced, limit=limit)
        best, expected, sure = by_force(a, query, ratio, limit or most)
        assert exists and float(score) == pytest.approx(best, abs=1e-6)
        if sure:
            assert box.tolist() == list(expected)
            decided += 1
    assert decided


def test_padding_and_dark_maps_and_impossible_shapes_change_nothing(rng, search):
    query = rng.random(CHANNELS).astype(np.float32)
    padded = np.full((11, 13, CHANNELS), 250, np.uint8)
    for h, w in [(10, 13), (7, 8), (1, 1)]:
        padded[:h, :w] = a = some_map(rng, "noise", h, w)
        box, _, score = search(padded, query, size=np.int32([h, w]))
        best, expected, sure = by_force(a, query)
        assert float(score) == pytest.approx(best, abs=1e-6)
        assert not sure or box.tolist() == list(expected)
    dark = np.zeros((11, 13, CHANNELS), np.uint8)
    assert search(dark, query)[0].tolist() == [0, 0, 1, 1]
    assert not search(dark + np.uint8(1), query, np.float32(40), limit=1.3)[1]


def test_localize_spares_and_maps_and_differentiates_as_it_did(rng, monkeypatch):
    shape = (16, 18)
    maps = np.stack([some_map(rng, kind, *shape) for kind in ("planted", "noise", "flat")])
    query = maps[0][4:11, 5:13].max((0, 1)).astype(np.float32)
    monkeypatch.setattr(exhaustive, "MANY_BOXES", 30_000)
    assert not exhaustive.pays(maps.shape[1:])
    expected = [localize(a, query) for a in maps]
    monkeypatch.setattr(exhaustive, "MANY_BOXES", 1)
    assert exhaustive.pays(maps.shape[1:])
    exhaustive._localize.clear_cache()
    found = jax.vmap(localize, in_axes=(0, None))(maps, query)
    assert found.box.tolist() == [one.box.tolist() for one in expected]
    np.testing.assert_allclose(found.score, [one.score for one in expected], atol=1e-6)
    a = maps[0].astype(np.float32)
    gradient = jax.grad(lambda x: localize(x, query).score)(a)
    top, left, bottom, right = expected[0].box.tolist()

    def score(x):
        vector = x[top:bottom, left:right].max((0, 1))
        return vector @ query / jnp.linalg.norm(vector) / np.linalg.norm(query)

    np.testing.assert_allclose(gradient, jax.grad(score)(jnp.asarray(a)), atol=1e-6)
    assert np.any(gradient)
    exhaustive._localize.clear_cache()


def test_double_precision_finds_the_same_box(rng):
    """A map large enough for bounds, with and without 64-bit types."""
    levels = rng.integers(0, 9, (16, 18, 8)).astype(np.uint8)
    query = rng.random(8).astype(np.float32)
    single = localize(levels, query)
    with jax.enable_x64(True):
        double = localize(levels, query)
    assert single.box.tolist() == double.box.tolist()
    np.testing.assert_allclose(single.score, double.score, rtol=1e-6)
