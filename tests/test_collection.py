"""A collection on disk: grows, shrinks, resumes, refuses what does not fit, and finds objects."""

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest

from rmacjax import activations, galleries, weights
from rmacjax import collection as collection_module
from rmacjax.augmentation import augment
from rmacjax.backbones import initialize
from rmacjax.collection import AddReport, Collection
from rmacjax.descriptors import Settings
from rmacjax.diffusion import diffuse, neighbour_graph
from rmacjax.preprocessing import encode_jpeg, encode_png
from rmacjax.regions import box_iou, rmac_regions
from rmacjax.retrieval import cut_query, describe_query
from rmacjax.scenes import render_collection

OBJECTS, VIEWS, DISTRACTORS = 3, 3, 6
SETTINGS = Settings(long_side=256)


@pytest.fixture(scope="module")
def params():
    return weights.load("default")


@pytest.fixture(scope="module")
def scenes():
    return render_collection(
        seed=3, objects=OBJECTS, views=VIEWS, distractors=DISTRACTORS, size=(192, 256)
    )


@pytest.fixture(scope="module")
def photos(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    paths = []
    for i, image in enumerate(scenes.images):
        paths.append(folder / ("more" if i % 2 else "") / f"{i:02d}.jpg")
        paths[-1].write_bytes(encode_jpeg(image, 92))
    return paths


@pytest.fixture(scope="module")
def collection(params, photos, tmp_path_factory):
    made = Collection.create(
        tmp_path_factory.mktemp("store") / "photos.lance", params, settings=SETTINGS
    )
    report = made.add(photos[0].parent)
    assert report[:4] == (len(photos), 0, 0, [])
    return made


def test_what_was_added_is_there_after_opening_again(collection, photos):
    again = Collection.open(collection.location)
    assert len(again) == len(photos)
    assert sorted(again.paths) == sorted(map(str, photos))
    assert again.settings == SETTINGS


def test_the_query_photo_is_found_first(collection, scenes, photos):
    for index, _ in scenes.queries:
        result = collection.search(photos[index], top=5, rerank=0)
        assert result[0].path == str(photos[index])
        assert result[0].score == pytest.approx(1, abs=1e-3)
        assert result[1].score < 0.99


def test_every_hit_has_a_score_and_a_box_inside_its_photo(collection, scenes, photos):
    for index, box in scenes.queries:
        result = collection.search(photos[index], tuple(int(b) for b in box), top=5)
        assert len(result) == 5
        scores = [hit.score for hit in result]
        assert scores == sorted(scores, reverse=True)
        for hit in result:
            top, left, bottom, right = hit.box_px
            assert 0 <= top < bottom <= hit.height_px and 0 <= left < right <= hit.width_px
        assert {"describe", "filter", "localize", "rerank", "expand"} <= set(result.timings)


def test_real_weights_find_and_box_real_paintings(shared, tmp_path):
    """Paintings are looked for in visitors' photos of walls; the true boxes are known."""
    network = weights.load(shared / "weights" / "squeezenet1_1_torchvision_fp16.npz")
    museum = shared / "data" / "museum"
    walls = json.loads((museum / "queries.json").read_text())
    walls = [wall for wall in walls if wall["set"] == "qsd2_w2"][:8]
    paths = [museum / "queries" / wall["image"] for wall in walls]
    c = Collection.create(tmp_path / "walls", network, settings=Settings(long_side=384))
    assert c.add(paths).added == len(walls)
    found, overlaps = [], []
    for wall, path in zip(walls, paths, strict=True):
        hits = c.search(museum / "gallery" / wall["relevant"][0], expand=0)
        found.append(hits[0].path == str(path))
        hit = next(hit for hit in hits if hit.path == str(path))
        left, top, right, bottom = wall["box_px"]
        overlaps.append(box_iou(np.asarray([hit.box_px]), np.asarray([[top, left, bottom, right]])))
    assert sum(found) >= 7
    assert np.mean(overlaps) > 0.55


def test_an_array_is_searched_like_its_file(collection, photos, scenes):
    from rmacjax.preprocessing import load_image

    index, box = scenes.queries[0]
    box = tuple(int(b) for b in box)
    from_file = collection.search(photos[index], box)
    from_array = collection.search(load_image(photos[index]).pixels, box)
    assert [hit.path for hit in from_file] == [hit.path for hit in from_array]
    assert from_array.query_path is None


def test_stages_can_be_left_out(collection, photos):
    plain = collection.search(photos[0], rerank=0)
    assert all(hit.box_px is None and hit.box_score is None for hit in plain)
    assert [hit.score for hit in plain] == [hit.filter_score for hit in plain]
    some = collection.search(photos[0], rerank=4, top=10)
    assert sum(hit.box_px is not None for hit in some) == 4
    assert len(some) == 10


def test_several_instances_give_separate_boxes(collection, photos):
    for hit in collection.search(photos[0], top=3, instances=3):
        assert 1 <= len(hit.boxes_px) <= 3
        assert hit.box_px == hit.boxes_px[0]
        for i, first in enumerate(hit.boxes_px):
            for second in hit.boxes_px[i + 1 :]:
                assert box_iou(np.asarray(first), np.asarray(second)) < 0.6


@pytest.fixture(scope="module")
def region_collection(params, photos, tmp_path_factory):
    made = Collection.create(
        tmp_path_factory.mktemp("regions") / "c", params, settings=SETTINGS, regions=True
    )
    assert made.add(photos[0].parent).added == len(photos)
    return made


def slow_regions(params, sources):
    """Region vectors in float64, from the activation maps and one region at a time."""
    for a1 in activations(params, sources, settings=SETTINGS):
        a1 = np.asarray(a1, np.float64)
        vectors = []
        for top, left, bottom, right in rmac_regions(*a1.shape[:2]):
            vector = a1[top:bottom, left:right].max(axis=(0, 1))
            vector /= np.linalg.norm(vector)
            if params.whitening is not None:
                vector = np.asarray(params.whitening.projection) @ (vector - params.whitening.mean)
                vector /= np.linalg.norm(vector)
            vectors.append(vector)
        yield vectors


def slow_region_scores(params, paths, query):
    """Of each of the query's regions the best partner in each photo, and their mean."""
    (asked,) = slow_regions(params, [query])
    return {
        path: np.mean([max(float(own @ part) for own in found) for part in asked])
        for path, found in zip(paths, slow_regions(params, paths), strict=True)
    }


def check_first_stage(c, photo, box=None):
    """Search by regions, and compare scores and order with the slow reference."""
    query, *_ = cut_query(photo, box, c.settings.long_side)
    wanted = slow_region_scores(c.params, c.paths, query)
    hits = c.search(photo, box, top=len(c), rerank=0, first_stage="regions").hits
    assert sorted(hit.path for hit in hits) == sorted(c.paths)
    for hit in hits:
        assert hit.score == hit.filter_score
        assert hit.score == pytest.approx(wanted[hit.path], abs=1e-3)  # float16 on the disk
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return hits


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_the_first_stage_by_regions_equals_brute_force(
    region_collection, scenes, photos, monkeypatch, kept_bytes
):
    """With the vectors kept in memory, and with none: then every search streams them."""
    if kept_bytes is not None:
        monkeypatch.setattr(galleries, "REGION_BYTES", kept_bytes)
    c = Collection.open(region_collection.location)
    assert c.regions
    for index, box in scenes.queries:
        check_first_stage(c, photos[index], tuple(int(b) for b in box))
    assert (c.gallery()._regions is None) == (kept_bytes == 0)
    again = c.search(photos[0], rerank=0, first_stage="regions")
    assert again.hits == c.search(photos[0], rerank=0, first_stage="regions").hits


def test_the_first_stage_only_chooses_what_is_reranked(region_collection, photos, scenes):
    index, box = scenes.queries[0]
    box = tuple(int(b) for b in box)
    every = [
        {
            hit.path: (hit.score, hit.box_px)
            for hit in region_collection.search(
                photos[index], box, top=len(photos), rerank="all", first_stage=first
            )
        }
        for first in ("descriptor", "regions")
    ]
    assert every[0].keys() == every[1].keys()
    for path, (score, found) in every[0].items():
        assert every[1][path][0] == pytest.approx(score, abs=1e-5)
        assert every[1][path][1] == found
    few = region_collection.search(photos[index], box, rerank=2, expand=0, first_stage="regions")
    first = check_first_stage(region_collection, photos[index], box)
    boxed = {hit.path for hit in few if hit.box_px is not None}
    assert boxed == {hit.path for hit in first[:2]}


def test_regions_follow_what_is_added_replaced_and_removed(params, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(collection_module, "COMMIT_IMAGES", 2)
    monkeypatch.setattr(collection_module, "COMPACT_FRAGMENTS", 2)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.png").write_bytes(encode_png(scenes.images[i]))
    c = Collection.create(tmp_path / "c", params, settings=SETTINGS, regions=True)
    c.add([folder / f"{i}.png" for i in range(3)])
    check_first_stage(c, scenes.images[0])
    c.remove(folder / "0.png")
    (folder / "1.png").write_bytes(encode_png(scenes.images[8][:, :150]))  # fewer regions
    c = Collection.open(tmp_path / "c")
    assert c.add(folder)[:3] == (5, 1, 1)  # and puts the table together
    assert len(c) == 7
    hits = check_first_stage(c, scenes.images[8][:, :150])
    assert hits[0].path == str(folder / "1.png")
    c.remove(c.paths)
    assert len(c.search(scenes.images[0], first_stage="regions")) == 0


@pytest.mark.parametrize("settings", [Settings(256, pool="mac"), Settings(256, pool="gem")])
def test_the_one_region_of_other_pools_is_the_photo(params, scenes, tmp_path, settings):
    (tmp_path / "a.png").write_bytes(encode_png(scenes.images[0]))
    (tmp_path / "b.png").write_bytes(encode_png(scenes.images[1]))
    c = Collection.create(tmp_path / "c", params, settings=settings, regions=True)
    c.add([tmp_path / "a.png", tmp_path / "b.png"])
    by_region, by_descriptor = (
        c.search(scenes.images[2], rerank=0, first_stage=first).hits
        for first in ("regions", "descriptor")
    )
    assert [hit.path for hit in by_region] == [hit.path for hit in by_descriptor]
    for one, other in zip(by_region, by_descriptor, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_a_collection_without_regions_says_how_to_get_them(collection, photos):
    assert not Collection.open(collection.location).regions
    with pytest.raises(ValueError, match=r"no region vectors.*index the photos again") as caught:
        collection.search(photos[0], first_stage="regions")
    assert "\n" not in str(caught.value) and "regions=True" in str(caught.value)


def test_adding_again_skips_and_replaces_only_what_changed(params, scenes, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encode_png(scenes.images[i]))
    c = Collection.create(tmp_path / "c", params, settings=SETTINGS)
    assert c.add(folder)[:3] == (3, 0, 0)
    assert c.add(folder)[:3] == (0, 0, 3)
    (folder / "1.png").write_bytes(encode_png(scenes.images[5]))
    (folder / "3.png").write_bytes(encode_png(scenes.images[6]))
    assert c.add([folder])[:3] == (1, 1, 2)
    assert len(c) == 4
    (hit,) = c.search(scenes.images[5], top=1, rerank=0)
    assert hit.path == str(folder / "1.png")


def test_removed_photos_are_not_found(params, scenes, tmp_path):
    paths = [tmp_path / f"{i} 'quoted'\n\U0001f600.png" for i in range(3)]
    for path, image in zip(paths, scenes.images, strict=False):
        path.write_bytes(encode_png(image))
    c = Collection.create(tmp_path / "c", params, settings=SETTINGS)
    c.add(paths)
    assert c.remove(paths[0]) == 1
    assert c.remove([paths[0]]) == 0
    assert sorted(c.paths) == sorted(map(str, paths[1:]))
    assert len(c.search(scenes.images[0])) == len(c) == 2


def test_bad_files_are_reported_by_name_and_the_rest_is_stored(params, scenes, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(encode_png(scenes.images[0]))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.jpg").write_bytes(encode_jpeg(scenes.images[0], 90)[:2000])
    (folder / "tiny.png").write_bytes(encode_png(np.zeros((1, 1, 3), np.uint8)))
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    seen = []
    c = Collection.create(tmp_path / "c", params, settings=SETTINGS)
    report = c.add(folder, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(report, AddReport) and report.added == 1
    names = {os.path.basename(path) for path, _ in report.skipped}
    assert names == {"empty.jpg", "text.jpg", "cut.jpg", "tiny.png", "link.jpg"}
    assert all(reason and "\n" not in reason for _, reason in report.skipped)
    assert seen[-1][0] == seen[-1][1]


def test_other_weights_are_refused_with_a_sentence(collection, params):
    other = params._replace(weights=initialize("alexnet", 1))
    with pytest.raises(ValueError, match="made with other weights"):
        Collection.open(collection.location, other)


def test_opening_nothing_and_creating_twice_are_refused(collection, params, tmp_path):
    with pytest.raises(FileNotFoundError):
        Collection.open(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        Collection.create(collection.location, params)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top": 0}, "top"),
        ({"rerank": -1}, "rerank"),
        ({"rerank": "ALL"}, 'rerank is a number of photos or "all"'),
        ({"instances": 0}, "instances"),
        ({"min_score": "automatic"}, 'min_score is a score or "auto", not'),
        ({"fusion": 1.5}, "fusion is a share"),
        (
            {"first_stage": "region"},
            'first_stage is "descriptor", "regions" or "diffusion", not \'region\'',
        ),
    ],
)
def test_wrong_numbers_are_refused(collection, photos, options, sentence):
    search = inspect.unwrap(Collection.search)  # as it is where no types are checked
    with pytest.raises(ValueError, match=sentence):
        search(collection, photos[0], **options)


@pytest.mark.parametrize("options", [{"expand_alpha": -1.0}, {"augment": -1}])
def test_wrong_numbers_of_friends_are_refused(collection, photos, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        collection.search(photos[0], **options)


def test_augmented_descriptors_rank_as_the_function_says(collection, photos):
    gallery = collection.gallery()
    drawn = augment(gallery.snapshot.descriptors, neighbours=3)
    query = describe_query(collection.params, photos[1], settings=SETTINGS)
    wanted = drawn @ query.descriptor
    hits = collection.search(photos[1], top=len(collection), rerank=0, augment=3)
    assert [hit.path for hit in hits] == [collection.paths[i] for i in np.argsort(-wanted)]
    np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-wanted), atol=1e-5)
    assert collection.gallery(augment=3) is collection.gallery(augment=3)
    assert collection.gallery(augment=0) is gallery
    with pytest.raises(ValueError, match="another first stage"):
        collection.search(photos[1], augment=3, first_stage="regions")


def test_a_first_stage_by_diffusion_is_the_functions(collection, scenes, photos):
    gallery = collection.gallery()
    assert gallery.graph() is gallery.graph()
    stored = np.asarray(gallery.snapshot.descriptors, np.float32)
    index, _ = scenes.queries[0]
    query = describe_query(collection.params, photos[index], settings=SETTINGS)
    wanted = diffuse(neighbour_graph(stored, neighbours=5), stored @ query.descriptor)
    hits = collection.search(photos[index], top=8, rerank=0, first_stage="diffusion")
    assert [hit.path for hit in hits] == [collection.paths[i] for i in np.argsort(-wanted)[:8]]
    np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-wanted)[:8], rtol=1e-3)
    assert hits.scored_by == "filter first_stage=diffusion long_side=256"
    reranked = collection.search(photos[index], first_stage="diffusion", rerank=4)
    assert [hit.box_px is not None for hit in reranked].count(True) == 4


def test_what_is_computed_from_all_photos_is_kept_until_they_change(
    params, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(galleries, "KEPT_FROM", 3)
    made = Collection.create(tmp_path / "c", params, settings=SETTINGS)
    made.add(photos[:5])
    calls = []
    for name in ("augment", "neighbour_graph"):
        compute = getattr(galleries, name)

        def counted(*rows, compute=compute, name=name, **options):
            calls.append((name, *options.values()))
            return compute(*rows, **options)

        monkeypatch.setattr(galleries, name, counted)

    def again(count):
        c = Collection.open(tmp_path / "c", params)
        gallery, drawn = c.gallery(), c.gallery(augment=2)
        assert len(c) == count and len(drawn.descriptors) >= count
        found = [gallery.graph(), drawn.graph(), np.asarray(drawn.descriptors)[:count]]
        asked, calls[:] = calls.copy(), []
        return found, asked, [hit[:2] for hit in c.search(photos[0], augment=2, top=count)]

    first, computed, hits = again(5)
    assert computed == [("augment", 2), ("neighbour_graph", 5), ("neighbour_graph", 5)]
    plain = first[0]
    expected = neighbour_graph(made.gallery().snapshot.descriptors, neighbours=5)
    for one, other in zip(plain, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    second, computed, same = again(5)
    assert computed == [] and same == hits
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(a.dtype == b.dtype and (a == b).all() for a, b in zip(one, other, strict=True))
    np.testing.assert_array_equal(first[2], second[2])
    # Another photo, and all is computed anew; then the damaged file alone.
    made.add(photos[5:6])
    assert len(again(6)[1]) == 3 and again(6)[1] == []
    damaged = tmp_path / "c" / "derived" / "augmented-2.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    assert again(6)[1] == [("augment", 2)] and again(6)[1] == []
    made._table.compact(keep_seconds=0)
    assert again(6)[1] == []
    made.remove(photos[5])
    assert len(again(5)[1]) == 3
    # What is small is not kept.
    monkeypatch.setattr(galleries, "KEPT_FROM", 6)
    assert len(again(5)[1]) == 3 and len(again(5)[1]) == 3


def test_a_least_score_leaves_out_what_is_below(collection, photos):
    everything = collection.search(photos[2], top=10)
    line = everything[3].score
    some = collection.search(photos[2], top=10, min_score=line)
    assert some.hits == [hit for hit in everything.hits if hit.score >= line]
    assert some.min_score == line and some.best_score == everything[0].score
    assert all(hit.found is None for hit in everything) and everything.threshold is None
    none = collection.search(photos[2], min_score=9.0)
    assert len(none) == 0 and none.best_score == everything[0].score
    with pytest.raises(ValueError, match="no least score was learned"):
        collection.search(photos[2], min_score="auto")


def test_learned_thresholds_judge_each_score_by_its_kind(collection, params, photos):
    """The weights' thresholds are no part of what a descriptor is: the collection still opens."""
    plain = collection.search(photos[2], top=10, rerank=4, expand=0)
    lines = {"rerank": plain[1].score, "filter": plain[5].score}

    def learned(suffix: str) -> Collection:
        thresholds = tuple((f"{stage}{suffix}", line) for stage, line in lines.items())
        network = replace(params.network, thresholds=thresholds)
        return Collection.open(collection.location, params._replace(network=network))

    # What was learned with photos of another size says nothing of these.
    elsewhere = learned("").search(photos[2], top=10, rerank=4, expand=0)
    assert [hit.found for hit in elsewhere] == [None] * 10 and elsewhere.threshold is None
    c = learned(" long_side=256")
    judged = c.search(photos[2], top=10, rerank=4, expand=0)
    assert [hit._replace(found=None) for hit in judged] == plain.hits
    assert judged.judged_by == judged.scored_by and judged.best_judged == judged.best_score
    found = [hit.score >= lines["filter" if hit.box_px is None else "rerank"] for hit in judged]
    assert [hit.found for hit in judged] == found
    assert found[:4] == [True, True, False, False] and any(found[4:])
    assert (judged.scored_by, judged.threshold) == ("rerank long_side=256", lines["rerank"])
    only = c.search(photos[2], top=10, rerank=4, expand=0, min_score="auto")
    assert only.hits == [hit for hit in judged if hit.found]
    # Expansion changes scores and order, and not what counts as found.
    expanded = c.search(photos[2], top=10, rerank=4, expand=2)
    assert [hit.score for hit in expanded[:4]] != [hit.score for hit in judged[:4]]
    assert {hit.path: hit.found for hit in expanded} == {hit.path: hit.found for hit in judged}
    before = {hit.path: hit.score for hit in judged[:4]}
    assert {hit.path: hit.rerank_score for hit in expanded[:4]} == before
    assert [hit.rerank_score for hit in expanded[4:]] == [None] * 6
    assert expanded.scored_by == "expand expand=2 long_side=256"
    assert (expanded.judged_by, expanded.threshold) == (judged.scored_by, judged.threshold)
    assert expanded.best_judged == judged[0].score
    # However few are asked for, they are looked for in the whole ranking.
    every = [hit for hit in expanded if hit.found]
    for top in (1, 2, 10):
        few = c.search(photos[2], top=top, rerank=4, expand=2, min_score="auto")
        assert few.hits == every[:top]


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (50, 10, 10, 50), (0, 0, 193, 256)])
def test_a_box_that_is_none_is_refused(collection, photos, box):
    with pytest.raises(ValueError, match="box"):
        collection.search(photos[0], box)


def test_what_was_described_is_soon_committed_and_long_runs_commit_rarely(
    params, photos, tmp_path, monkeypatch
):
    """A photo a second: the first wait is two seconds, the second four, then eight."""
    c = Collection.create(tmp_path / "c", params, settings=SETTINGS)
    seconds, kept = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])

    def progress(done, total):
        kept.append(len(c))
        seconds[0] += 1

    assert c.add(photos[0].parent, progress=progress).added == len(photos) == 15
    assert kept == [0] * 3 + [4] * 6 + [10] * 6
    assert len(c) == 15


def test_an_interrupted_add_keeps_what_it_described_and_goes_on(params, photos, tmp_path):
    """Killed by a signal in the middle, the table opens, holds whole commits, and add resumes."""
    script = textwrap.dedent("""
        import sys, rmacjax.collection as m
        from rmacjax.weights import load
        m.COMMIT_IMAGES = 2
        c = m.Collection.open(sys.argv[1])
        c.add(sys.argv[2], progress=lambda done, total: print(done, flush=True))
    """)
    Collection.create(tmp_path / "c", params, settings=SETTINGS)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "c"), str(photos[0].parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if int(line) == 7:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    c = Collection.open(tmp_path / "c")
    kept = len(c)
    assert 6 <= kept <= len(photos)
    report = c.add(photos[0].parent)
    assert (report.added, report.unchanged) == (len(photos) - kept, kept)
    assert len(c) == len(photos)
