"""The whole search against a slow transcription of the paper's sections 4 to 6 in float64 NumPy."""

import math

import numpy as np
import pytest
from oracles import average_precision, mean

from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.descriptors import Params, Settings, fingerprint
from rmacjax.diffusion import neighbour_graph
from rmacjax.evaluation import mean_average_precision
from rmacjax.preprocessing import encode_png
from rmacjax.regions import rmac_regions
from rmacjax.retrieval import (
    Query,
    batches,
    boxes_in_pixels,
    describe_query,
    map_side,
    retrieve,
    searching,
)
from rmacjax.storage import PackedLevels, pack_levels
from rmacjax.whitening import Whitening

SETTINGS = Settings(long_side=256)
SIZES = [(6, 8), (8, 6), (7, 7), (5, 9), (1, 1), (3, 12), (8, 8), (6, 8), (9, 4), (2, 2)]
CHANNELS, DIMENSIONS = 24, 10


class Arrays:
    """A gallery in memory; it notes what is read."""

    def __init__(self, descriptors, levels, regions=None):
        self.descriptors = descriptors
        self.regions = regions
        self.levels = levels
        self.map_sizes = np.asarray([level.shape[:2] for level in levels], np.int32)
        self.read = []

    def read_levels(self, indices):
        self.read += indices
        return [self.levels[i] for i in indices]

    def graph(self):
        return neighbour_graph(self.descriptors, neighbours=4)

    def region_scores(self, regions):
        if self.regions is None:
            raise ValueError("no region vectors")
        scores = [np.mean([max(own @ part) for part in regions]) for own in self.regions]
        return np.asarray(scores, np.float32)


def unit(x):
    length = np.linalg.norm(x)
    return x / length if length > 0 else x


def slow_rmac(box_map, mean, projection):
    """Section 3: region maxima, l2, whitening, l2, sum, l2."""
    total = np.zeros(len(projection))
    for top, left, bottom, right in rmac_regions(*box_map.shape[:2]):
        vector = unit(box_map[top:bottom, left:right].max(axis=(0, 1)).astype(np.float64))
        if vector.any():
            total += unit(projection @ (vector - mean))
    return unit(total)


def slow_aml(levels, query, ratio, alpha):
    """Section 4: all candidates of about the query's shape, then greedy refinement of the best."""
    h, w, _ = levels.shape
    x = levels.astype(np.float64)

    def score(box):
        part = x[box[0] : box[2], box[1] : box[3]]
        if alpha is None:
            return float(unit(part.max(axis=(0, 1))) @ query)
        return float(unit((part**alpha).sum(axis=(0, 1)) ** (1 / alpha)) @ query)

    box, best = [0, 0, h, w], None
    for y1 in range(0, h - 1, 3):
        for y2 in range(y1 + 2, h + 1, 3):
            for x1 in range(0, w - 1, 3):
                for x2 in range(x1 + 2, w + 1, 3):
                    shape = (y2 - y1) / (x2 - x1)
                    if abs(math.log(ratio / shape)) > math.log(1.1) + 1e-6:
                        continue
                    s = score((y1, x1, y2, x2))
                    if best is None or s > best + 1e-6:
                        box, best = [y1, x1, y2, x2], s
    best = score(box) if best is None else best
    for step in (3, 2, 1):
        for _ in range(5):
            changed = False
            for side in range(4):
                for sign in (-1, 1):
                    moved = list(box)
                    moved[side] += sign * step
                    if not (0 <= moved[0] < moved[2] <= h and 0 <= moved[1] < moved[3] <= w):
                        continue
                    s = score(moved)
                    if s > best + 1e-6:
                        box, best, changed = moved, s, True
            if not changed:
                break
    return box, best


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(11)
    levels = []
    for i, (h, w) in enumerate(SIZES * 2):
        sparse = random.random((h, w, CHANNELS)) < 0.4
        level = np.where(sparse, random.integers(1, 9, (h, w, CHANNELS)), 0).astype(np.uint8)
        if i == 13:
            level[:] = 0
        levels.append(level)
    whitening = Whitening(
        (random.random(CHANNELS) / CHANNELS).astype(np.float32),
        random.standard_normal((DIMENSIONS, CHANNELS)).astype(np.float32),
    )
    descriptors = np.stack(
        [slow_rmac(level, whitening.mean, whitening.projection) for level in levels]
    )
    descriptor = unit(random.standard_normal(DIMENSIONS)).astype(np.float32)
    query = Query(
        descriptor,
        descriptor[None],
        unit(random.random(CHANNELS)).astype(np.float32),
        0.75,
        (0, 0, 30, 40),
        30,
        40,
    )
    return levels, whitening, descriptors.astype(np.float32), query


@pytest.mark.parametrize(
    ("alpha", "rerank", "fusion"), [(None, 14, 0.0), (10, 14, 0.0), (None, "all", 0.3)]
)
def test_every_stage_equals_the_transcription(world, alpha, rerank, fusion):
    levels, whitening, descriptors, query = world
    gallery = Arrays(descriptors, levels)
    found = retrieve(
        query,
        gallery,
        whitening=whitening,
        settings=SETTINGS,
        keep=3,
        rerank=rerank,
        expand=4,
        alpha=alpha,
        fusion=fusion,
    )
    depth = len(levels) if rerank == "all" else rerank

    first = np.argsort(-(descriptors @ query.descriptor), kind="stable")
    first = first[:depth]
    assert found.filtered.indices.tolist() == first.tolist()

    vectors, fused = {}, {}
    for i in first:
        box, score = slow_aml(levels[i], query.mac.astype(np.float64), query.ratio, alpha)
        assert found.boxes[i][0].tolist() == box, (i, levels[i].shape)
        assert found.box_scores[i][0] == pytest.approx(score, abs=2e-6)
        part = levels[i][box[0] : box[2], box[1] : box[3]]
        vectors[i] = slow_rmac(part, whitening.mean, whitening.projection)
        fused[i] = (1 - fusion) * vectors[i] + fusion * descriptors[i]
    assert sorted(found.boxes) == sorted(gallery.read) == sorted(first.tolist())

    def order(vector):
        return sorted(first, key=lambda i: -float(fused[i] @ vector))

    second = order(query.descriptor)
    assert found.reranked.indices.tolist() == second
    expanded = unit(np.mean([query.descriptor, *(vectors[i] for i in second[:4])], axis=0))
    assert found.ranking.indices.tolist() == order(expanded)
    scores = [float(fused[i] @ expanded) for i in order(expanded)]
    np.testing.assert_allclose(found.ranking.scores, scores, atol=1e-5)


def slow_search(query, levels, descriptors, whitening, alpha, depth, expand):
    """Sections 4 to 6: three rankings of all images, and the boxes of those that are re-ranked."""
    first = sorted(range(len(levels)), key=lambda i: -float(descriptors[i] @ query.descriptor))
    vectors, boxes = {}, {}
    for i in first[:depth]:
        box, _ = slow_aml(levels[i], query.mac.astype(np.float64), query.ratio, alpha)
        boxes[i] = box
        part = levels[i][box[0] : box[2], box[1] : box[3]]
        vectors[i] = slow_rmac(part, whitening.mean, whitening.projection)

    def order(vector):
        return sorted(first[:depth], key=lambda i: -float(vectors[i] @ vector)) + first[depth:]

    second = order(query.descriptor)
    expanded = unit(np.mean([query.descriptor, *(vectors[i] for i in second[:expand])], axis=0))
    return (first, second, order(expanded)), boxes


@pytest.mark.parametrize("alpha", [10, None])
def test_rankings_boxes_and_map_equal_the_transcription_end_to_end(world, alpha):
    """Several queries, by the published exponent and by exact maxima, scored stage by stage."""
    levels, whitening, descriptors, query = world
    random = np.random.default_rng(5)
    kinds = random.choice(3, size=(4, len(levels)), p=(0.3, 0.2, 0.5))
    positives = [np.flatnonzero(own == 0) for own in kinds]
    junk = [np.flatnonzero(own == 1) for own in kinds]
    ours, theirs = [], []
    for ratio in (0.5, 0.75, 1.0, 1.6):
        descriptor = unit(random.standard_normal(DIMENSIONS)).astype(np.float32)
        mac = unit(random.random(CHANNELS)).astype(np.float32)
        asked = query._replace(descriptor=descriptor, mac=mac, ratio=ratio)
        found = retrieve(
            asked,
            Arrays(descriptors, levels),
            whitening=whitening,
            settings=SETTINGS,
            keep=len(levels),
            rerank=12,
            alpha=alpha,
        )
        rankings, boxes = slow_search(asked, levels, descriptors, whitening, alpha, 12, 5)
        assert {i: found.boxes[i][0].tolist() for i in found.boxes} == boxes
        ours.append([s.indices for s in (found.filtered, found.reranked, found.ranking)])
        theirs.append(rankings)
        for stage, ranking in zip(ours[-1], rankings, strict=True):
            assert stage.tolist() == ranking
    scores = []
    for stage in range(3):
        ranks = np.stack([rankings[stage] for rankings in ours], axis=1)
        got = mean_average_precision(ranks, positives, junk)
        wanted = [
            average_precision(rankings[stage], set(p.tolist()), set(j.tolist()))
            for rankings, p, j in zip(theirs, positives, junk, strict=True)
        ]
        np.testing.assert_allclose(got.per_query, wanted, rtol=0, atol=1e-9)
        assert got.map == pytest.approx(mean(wanted), abs=1e-9)
        scores.append(got.map)
    assert len(set(scores)) == 3, "stages that rank alike compare nothing"


@pytest.mark.parametrize("expand_alpha", [0.0, 3.0])
def test_boxes_join_the_query_by_the_power_of_their_cosine(world, expand_alpha):
    levels, whitening, descriptors, query = world
    options = {"whitening": whitening, "settings": SETTINGS, "expand": 4}
    gallery = Arrays(descriptors, levels)
    found = retrieve(query, gallery, expand_alpha=expand_alpha, **options)
    vectors = {}
    for i, ((top, left, bottom, right),) in found.boxes.items():
        part = levels[i][top:bottom, left:right]
        vectors[i] = slow_rmac(part, whitening.mean, whitening.projection)
    best = sorted(vectors, key=lambda i: -float(vectors[i] @ query.descriptor))[:4]
    weights = [max(float(vectors[i] @ query.descriptor), 0) ** expand_alpha for i in best]
    expanded = query.descriptor + sum(w * vectors[i] for w, i in zip(weights, best, strict=True))
    wanted = sorted((-float(vectors[i] @ unit(expanded)), i) for i in vectors)
    assert found.ranking.indices.tolist() == [i for _, i in wanted]
    np.testing.assert_allclose(found.ranking.scores, [-s for s, _ in wanted], atol=1e-5)
    alike = retrieve(query, gallery, **options)
    same = np.allclose(alike.ranking.scores, found.ranking.scores, atol=1e-6)
    assert same == (expand_alpha == 0)


def test_a_first_stage_by_diffusion_equals_the_direct_solution(world):
    levels, whitening, descriptors, query = world
    gallery = Arrays(descriptors, levels)
    options = {"whitening": whitening, "settings": SETTINGS, "rerank": 0, "keep": 8}
    found = retrieve(query, gallery, first_stage="diffusion", **options).filtered
    graph = gallery.graph()
    s = np.zeros((len(levels), len(levels)))
    for row in range(len(levels)):
        edges = slice(graph.starts[row], graph.starts[row + 1])
        s[row, graph.indices[edges]] = graph.weights[edges]
    near = descriptors.astype(np.float64) @ query.descriptor
    y = np.zeros(len(levels))
    for i in np.argsort(-near)[:10]:
        y[i] = max(near[i], 0) ** 3
    reached = np.linalg.solve(np.eye(len(levels)) - 0.99 * s, y)
    wanted = sorted(range(len(levels)), key=lambda i: (-round(reached[i], 9), -near[i]))[:8]
    assert found.indices.tolist() == wanted
    np.testing.assert_allclose(found.scores, reached[wanted], rtol=1e-3, atol=1e-6)
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize(("at_once", "ahead", "packed"), [(1, 512, True), (8, 2, True), (2, 7, 0)])
def test_results_do_not_depend_on_order_or_batches(world, monkeypatch, at_once, ahead, packed):
    levels, whitening, descriptors, query = world
    options = {"whitening": whitening, "settings": SETTINGS, "expand": 3}
    whole = retrieve(query, Arrays(descriptors, levels), **options)
    order = np.random.default_rng(1).permutation(len(levels))
    monkeypatch.setitem(batches.MAPS_PER_BATCH, "cpu", 3)
    monkeypatch.setattr(batches, "AT_ONCE", at_once)
    monkeypatch.setattr(searching, "AT_ONCE", at_once)
    monkeypatch.setattr(batches, "READ_AHEAD", ahead)
    gallery = Arrays(descriptors[order], [levels[i] for i in order])
    if packed:
        gallery.levels = [PackedLevels(pack_levels(level)) for level in gallery.levels]
    shuffled = retrieve(query, gallery, **options)
    assert order[shuffled.ranking.indices].tolist() == whole.ranking.indices.tolist()
    np.testing.assert_allclose(shuffled.ranking.scores, whole.ranking.scores, atol=1e-6)
    for new, old in enumerate(order):
        np.testing.assert_array_equal(shuffled.boxes[new], whole.boxes[old])


def test_scores_do_not_depend_on_the_places_that_the_filter_gave(world):
    """To the bit, though BLAS rounds the last rows of a product otherwise on some processors."""
    levels, whitening, descriptors, query = world
    options = {"whitening": whitening, "settings": SETTINGS, "expand": 3}
    found = []
    for turned in range(4):  # maps stay, so what is found in them is the same
        gallery = Arrays(np.roll(descriptors, turned, axis=0), levels)
        ranking = retrieve(query, gallery, **options).ranking
        found.append(dict(zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True)))
    assert all(scores == found[0] for scores in found)
    rows = np.random.default_rng(2).normal(size=(11, 50)).astype(np.float32)
    whole = searching._products(rows, rows[0])
    for count in range(1, 12):
        np.testing.assert_array_equal(searching._products(rows[:count], rows[0]), whole[:count])


def test_the_share_of_the_whole_image_may_be_any_float(world):
    levels, whitening, descriptors, query = world
    options = {"whitening": whitening, "settings": SETTINGS}
    gallery = Arrays(descriptors, levels)
    plain, numpys = (
        retrieve(query, gallery, fusion=share, **options).ranking
        for share in (0.3, np.float64(0.3))
    )
    assert numpys.indices.tolist() == plain.indices.tolist()
    np.testing.assert_allclose(numpys.scores, plain.scores, atol=1e-6)
    assert numpys.scores.dtype == np.float32


def test_a_map_that_cannot_be_unpacked_ends_the_search(world, monkeypatch):
    levels, whitening, descriptors, query = world
    monkeypatch.setitem(batches.MAPS_PER_BATCH, "cpu", 2)
    gallery = Arrays(descriptors, levels)
    data = b"\1" + pack_levels(levels[5])[1:13] + b"no zstd"  # the earlier format had no checksum
    gallery.levels = [*levels[:5], PackedLevels(data), *levels[6:]]
    with pytest.raises(ValueError, match="damaged"):
        retrieve(query, gallery, whitening=whitening, settings=SETTINGS)


def test_stages_are_left_out_where_asked(world):
    levels, whitening, descriptors, query = world
    gallery = Arrays(descriptors, levels)
    options = {"whitening": whitening, "settings": SETTINGS}
    plain = retrieve(query, gallery, rerank=0, **options)
    assert plain.reranked is None and not plain.boxes and not gallery.read
    assert plain.ranking is plain.filtered
    short = retrieve(query, gallery, keep=3, rerank=2, expand=0, **options)
    assert len(short.ranking.indices) == 3 and len(short.boxes) == 2
    assert short.ranking is short.reranked
    filtered = retrieve(query, gallery, fusion=1.0, expand=0, **options)
    assert filtered.ranking.indices.tolist() == filtered.filtered.indices.tolist()


def test_a_region_finds_what_drowns_in_the_sum(world):
    """One region of the last image is the query itself, four show other things."""
    levels, whitening, _, query = world
    basis = np.linalg.qr(
        np.stack([query.descriptor, *np.eye(DIMENSIONS)[: DIMENSIONS - 1]], axis=1)
    )[0].T.astype(np.float32)
    basis[0] = query.descriptor
    rival = (0.6 * basis[0] + 0.8 * basis[6])[None]
    regions = [rival] * (len(levels) - 1) + [basis[:5]]
    descriptors = np.stack([unit(own.sum(axis=0)) for own in regions])
    gallery = Arrays(descriptors, levels, regions)
    options = {"whitening": whitening, "settings": SETTINGS, "keep": 3, "expand": 0}
    published = retrieve(query, gallery, rerank=0, **options).filtered
    assert len(levels) - 1 not in published.indices
    found = retrieve(query, gallery, rerank=0, first_stage="regions", **options).filtered
    assert found.indices.tolist() == [len(levels) - 1, 0, 1]
    np.testing.assert_allclose(found.scores, [1, 0.6, 0.6], atol=1e-6)
    assert found.scores.dtype == np.float32
    for fusion in (0.0, 0.5):  # of all images, the first stage decides nothing but the order
        one = retrieve(query, gallery, rerank="all", fusion=fusion, **options)
        other = retrieve(
            query, gallery, rerank="all", fusion=fusion, first_stage="regions", **options
        )
        scores = dict(zip(one.ranking.indices.tolist(), one.ranking.scores, strict=True))
        for index, score in zip(other.ranking.indices.tolist(), other.ranking.scores, strict=True):
            assert score == pytest.approx(scores[index], abs=1e-6)
    with pytest.raises(ValueError, match="no region vectors"):
        retrieve(query, Arrays(descriptors, levels), first_stage="regions", **options)


def test_an_empty_gallery_gives_an_empty_ranking(world):
    _, whitening, _, query = world
    gallery = Arrays(np.zeros((0, DIMENSIONS), np.float32), [])
    gallery.map_sizes = np.zeros((0, 2), np.int32)
    found = retrieve(query, gallery, whitening=whitening, settings=SETTINGS)
    assert len(found.ranking.indices) == 0
    gallery.regions = []
    found = retrieve(query, gallery, whitening=whitening, settings=SETTINGS, first_stage="regions")
    assert len(found.ranking.indices) == 0


@pytest.mark.parametrize("pool", ["mac", "spoc", "gem"])
def test_other_pools_describe_the_box_they_found(world, pool):
    levels, _, _, query = world
    descriptors = np.stack([unit(level.max(axis=(0, 1)).astype(np.float32)) for level in levels])
    query = query._replace(descriptor=query.mac)
    settings = Settings(pool=pool)
    found = retrieve(query, Arrays(descriptors, levels), settings=settings, expand=0)
    for index, score in zip(found.ranking.indices, found.ranking.scores, strict=True):
        top, left, bottom, right = found.boxes[index][0]
        part = levels[index][top:bottom, left:right].astype(np.float64)
        vector = {
            "mac": part.max(axis=(0, 1)),
            "spoc": part.mean(axis=(0, 1)),
            "gem": (part**3).mean(axis=(0, 1)) ** (1 / 3),
        }[pool]
        assert score == pytest.approx(float(unit(vector) @ query.descriptor), abs=1e-5)


def test_boxes_in_pixels_cover_the_original(world):
    levels, whitening, descriptors, query = world
    found = retrieve(query, Arrays(descriptors, levels), whitening=whitening, settings=SETTINGS)
    for index, level in enumerate(levels):
        h, w = level.shape[:2]
        ((top, left, bottom, right),) = boxes_in_pixels(found, index, (h, w), (h * 100, w * 50))
        cells = found.boxes[index][0] * np.asarray([100, 50, 100, 50])
        assert [top, left, bottom, right] == cells.tolist()


def test_the_query_is_the_crop_of_the_image(tmp_path):
    params = Params(
        Network("alexnet", False, TORCHVISION_CONVENTION), initialize("alexnet", 0), None
    )
    image = np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)
    path = tmp_path / "query.png"
    path.write_bytes(encode_png(image))
    box = (20, 40, 110, 150)
    from_file = describe_query(params, path, box, settings=SETTINGS)
    from_array = describe_query(params, image, box, settings=SETTINGS)
    alone = describe_query(params, image[20:110, 40:150], settings=SETTINGS)
    np.testing.assert_allclose(from_file.descriptor, from_array.descriptor, atol=1e-6)
    np.testing.assert_allclose(alone.descriptor, from_array.descriptor, atol=1e-6)
    assert from_file.ratio == pytest.approx(90 / 110)
    assert (from_file.box_px, from_file.height_px, from_file.width_px) == (box, 120, 160)
    assert alone.box_px == (0, 0, 90, 110)
    with pytest.raises(ValueError, match="too small"):
        describe_query(params, image, (0, 0, 10, 10), settings=SETTINGS)


def test_rare_shapes_join_others(monkeypatch):
    monkeypatch.setattr(batches, "OWN_SHAPE", 3)
    shapes = [(8, 8)] * 3 + [(12, 16)] * 4 + [(16, 24)] * 3
    rare = [(4, 8), (8, 12), (12, 24), (24, 8), (2, 32)]
    grouped = batches.by_shape([*shapes, *rare])
    assert grouped == {
        (8, 8): [0, 1, 2, 10],  # the smallest that holds them
        (12, 16): [3, 4, 5, 6, 11],
        (16, 24): [7, 8, 9, 12],
        (24, 32): [13, 14],  # what fits nowhere, together
    }
    assert batches.by_shape([(4, 4)]) == {(4, 4): [0]}


def test_map_sides_waste_little():
    for side in range(1, 200):
        assert side <= map_side(side) <= max(2 * side, side + 31)
    assert len({map_side(side) for side in range(1, 65)}) == len(batches.MAP_SIDES)


def test_the_fingerprint_names_what_decides_a_descriptor():
    params = Params(Network("alexnet", False, TORCHVISION_CONVENTION), initialize("alexnet", 0))
    whitening = Whitening(np.zeros(256, np.float32), np.eye(256, dtype=np.float32))
    first = fingerprint(params, SETTINGS)
    assert first == fingerprint(params, Settings(long_side=256))
    renamed = params._replace(
        network=Network("alexnet", False, TORCHVISION_CONVENTION, name="x", source="y")
    )
    assert first == fingerprint(renamed, SETTINGS)
    others = {
        fingerprint(params._replace(weights=initialize("alexnet", 1)), SETTINGS),
        fingerprint(params._replace(whitening=whitening), SETTINGS),
        fingerprint(params, Settings(long_side=257)),
        fingerprint(
            params._replace(network=Network("alexnet", True, TORCHVISION_CONVENTION)), SETTINGS
        ),
    }
    assert len(others | {first}) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"long_side": 0}, "long_side"),
        ({"pool": "max"}, "pool"),
        ({"levels": 0}, "levels"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.5,)}, "scales"),
    ],
)
def test_wrong_settings_are_refused(options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        Settings(**options)
