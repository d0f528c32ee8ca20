"""Measurement: rows beside plain loops, and scores of objects that are not there."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest

import rmacjax
from rmacjax import measurement, recipes
from rmacjax.augmentation import augment
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.cli import main
from rmacjax.cli.comparisons import compared_ways
from rmacjax.cli.published import compared, departures, recipes_weights
from rmacjax.cli.scores import may_be_found
from rmacjax.datasets import GroundTruth, Query
from rmacjax.descriptors import Params, Settings
from rmacjax.evaluation import revisited_protocol, threshold_at
from rmacjax.measurement import Row, Score, Way, measure, searches, trust
from rmacjax.preprocessing import encode_jpeg
from rmacjax.recipes import RECIPES
from rmacjax.weights import describe_file, load, save
from rmacjax.weights.calibration import measure_activation_scale
from rmacjax.whitening import Whitening

NONE = np.zeros(0, np.int64)
SETTINGS = Settings(long_side=128)


def picture(thing: int, seed: int) -> np.ndarray:
    """A patterned square, of so many patterns, somewhere on a noisy ground."""
    rng = np.random.default_rng([thing, seed])
    ground = np.kron(rng.integers(0, 90, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pattern = np.random.default_rng(thing).integers(0, 256, (7, 7, 3), np.uint8)
    top, left = rng.integers(0, 96 - 63), rng.integers(0, 128 - 63)
    ground[top : top + 63, left : left + 63] = np.kron(pattern, np.ones((9, 9, 1), np.uint8))
    return ground


@pytest.fixture(scope="module")
def params() -> Params:
    numbers = initialize("alexnet", 0)
    network = Network("alexnet", last_pool=False, convention=TORCHVISION_CONVENTION)
    scale = measure_activation_scale(network, numbers)
    return Params(dataclasses.replace(network, activation_scale=scale), numbers, None)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> GroundTruth:
    """Four things in three photos each; the first of each asks, one thing is nowhere else."""
    folder = tmp_path_factory.mktemp("things")
    paths = []
    for thing in range(4):
        for seed in range(3):
            paths.append(str(folder / f"{thing}-{seed}.jpg"))
            (folder / f"{thing}-{seed}.jpg").write_bytes(encode_jpeg(picture(thing, seed)))
    lone = folder / "query.jpg"
    lone.write_bytes(encode_jpeg(picture(9, 0)))
    queries = [
        Query(
            paths[3 * thing],
            (0, 0, 80, 100),
            np.asarray([3 * thing + 1, 3 * thing + 2]),
            np.asarray([3 * thing]),
            {3 * thing + 1: (0, 0, 63, 63)},
            f"thing {thing}",
        )
        for thing in range(4)
    ]
    queries.append(Query(str(lone), None, NONE, NONE, {}, "nowhere"))
    return GroundTruth("things", paths, queries)


@pytest.fixture(scope="module")
def collection(truth, params, tmp_path_factory) -> rmacjax.Collection:
    place = tmp_path_factory.mktemp("measured") / "collection"
    made = rmacjax.Collection.create(place, params, settings=SETTINGS, regions=True)
    made.add(truth.paths)
    return made


def searched(collection, truth, query, **options) -> list[int]:
    """The ranking as a user gets it."""
    hits = collection.search(query.path, query.box_px, top=len(collection), **options)
    return [truth.paths.index(hit.path) for hit in hits]


def precisions(collection, truth, **options) -> list[float]:
    """Average precisions by the oracle; nan where nothing is right."""
    found = [
        oracles.average_precision(
            searched(collection, truth, query, **options),
            set(query.positives.tolist()),
            set(query.junk.tolist()),
        )
        for query in truth.queries
    ]
    return [float("nan") if value is None else value for value in found]


def test_rows_equal_searches_scored_by_the_oracle(collection, truth):
    ways = [
        Way(expand=2),
        Way(("regions", "r + AML", None), first_stage="regions", rerank=3, expand=0),
        Way((None, "fused", "fused + QE"), fusion=0.5, expand=2),
        Way((None, None, "alpha"), expand=2, expand_alpha=3.0),
    ]
    rows = {row.name: row for row in measure(collection, truth, ways).rows}
    expected = {
        "filter": {"rerank": 0, "expand": 0},
        "+ AML": {"expand": 0},
        "+ AML + QE": {"expand": 2},
        "regions": {"rerank": 0, "expand": 0, "first_stage": "regions"},
        "r + AML": {"rerank": 3, "expand": 0, "first_stage": "regions"},
        "fused": {"fusion": 0.5, "expand": 0},
        "fused + QE": {"fusion": 0.5, "expand": 2},
        "alpha": {"expand": 2, "expand_alpha": 3.0},
    }
    assert list(rows) == list(expected)
    for name, options in expected.items():
        score = rows[name].scores["mAP"]
        np.testing.assert_allclose(
            score.per_query, precisions(collection, truth, **options), atol=1e-12, err_msg=name
        )
        assert score.mean == pytest.approx(np.nanmean(score.per_query))
        assert score.low <= score.mean <= score.high
        first = [searched(collection, truth, query, **options) for query in truth.queries]
        right = [
            float("nan")
            if not len(query.positives)
            else next(i for i in ranking if i not in query.junk) in query.positives
            for ranking, query in zip(first, truth.queries, strict=True)
        ]
        np.testing.assert_array_equal(rows[name].scores["first place"].per_query, right)
    assert rows["filter"].boxes == 0 and rows["+ AML"].boxes == 4
    assert 0 < rows["+ AML"].overlap <= 1


def test_an_augmented_and_a_diffused_database_are_ranked_by_what_they_become(collection, truth):
    ways = [
        Way(rerank=0, expand=0),
        Way(("DBA", None, None), rerank=0, expand=0, augment=3),
        Way(("diffusion", None, None), first_stage="diffusion"),
    ]
    rows = {row.name: row for row in measure(collection, truth, ways).rows}
    stored = [truth.paths.index(path) for path in collection.paths]
    plain = np.asarray(collection.gallery().descriptors)[: len(stored)].astype(np.float32)
    joined = np.asarray(augment(plain, neighbours=3))
    for number, query in enumerate(truth.queries[:4]):
        asked = rmacjax.describe(
            collection.params,
            [rmacjax.preprocessing.load_image(query.path, 128, box_px=query.box_px).pixels],
            settings=SETTINGS,
        )[0]
        order = [stored[i] for i in np.argsort(-(joined @ np.asarray(asked)), kind="stable")]
        wanted = set(query.positives.tolist()), set(query.junk.tolist())
        expected = oracles.average_precision(order, *wanted)
        assert rows["DBA"].scores["mAP"].per_query[number] == pytest.approx(expected, abs=1e-9)
    spread = precisions(collection, truth, rerank=0, expand=0, first_stage="diffusion")
    np.testing.assert_allclose(rows["diffusion"].scores["mAP"].per_query, spread, atol=1e-12)


def test_the_revisited_protocol_has_its_columns(collection, truth):
    queries = [query._replace(hard=query.positives[1:]) for query in truth.queries]
    revisited = truth._replace(queries=queries, protocol="revisited")
    (row,) = measure(collection, revisited, [Way(rerank=0)]).rows
    ranks = np.stack([searched(collection, truth, q, rerank=0, expand=0) for q in queries], axis=1)
    easy = [query.positives[:1] for query in queries]
    hard = [query.hard for query in queries]
    expected = revisited_protocol(ranks, easy, hard, [query.junk for query in queries])
    for letter, difficulty in zip("EMH", expected, strict=True):
        assert row.scores[f"mAP {letter}"].mean == pytest.approx(difficulty.map)
        for k, precision in difficulty.precision_at.items():
            assert row.scores[f"mP@{k} {letter}"].mean == pytest.approx(precision)


def test_absent_objects_are_looked_for_where_they_never_were(collection, truth, params, tmp_path):
    found = {each.stage: each for each in trust(collection, truth, Way(expand=2))}
    assert list(found) == list(measurement.STAGES)
    options = {"filter": {"rerank": 0}, "rerank": {"expand": 0}, "expand": {"expand": 2}}
    for number, query in enumerate(truth.queries):
        hidden = {*query.positives.tolist(), *query.junk.tolist()}
        rest = rmacjax.Collection.create(tmp_path / f"{number}", params, settings=SETTINGS)
        rest.add([path for i, path in enumerate(truth.paths) if i not in hidden])
        for stage, asked in options.items():
            best = rest.search(query.path, query.box_px, top=1, **{"expand": 0} | asked)[0]
            assert found[stage].absent[number] == pytest.approx(best.score, abs=2e-6), stage
    # The object that is nowhere is only asked for where it is not.
    assert all(len(each.absent) == 5 and len(each.present) == 4 for each in found.values())
    for each in found.values():
        assert np.mean(each.absent >= each.threshold) <= 0.01
        assert each.hits == np.mean(each.present >= each.threshold)


def test_a_gallery_without_anything_left_out_is_the_gallery(collection):
    gallery = collection.gallery()
    rest = searches.Without(gallery, [])
    for one, other in zip(rest.graph(), gallery.graph(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    fewer = searches.Without(gallery, [0, 5])
    assert fewer.graph().size == len(fewer.kept) == len(gallery.map_sizes) - 2


def test_objects_that_are_nowhere_suffice_for_a_threshold(collection, truth):
    lone = truth._replace(queries=truth.queries[4:])
    for each in trust(collection, lone):
        assert len(each.absent) == 1 and each.curve is None and np.isnan(each.hits)
        assert each.absent[0] < each.threshold
    everything = truth.queries[0]._replace(positives=np.arange(12), junk=NONE)
    with pytest.raises(ValueError, match="no photo of things is left"):
        trust(collection, truth._replace(queries=[everything]))


def test_what_a_stage_never_came_to_is_missed(collection, truth):
    far = truth._replace(queries=[truth.queries[0]._replace(positives=np.asarray([11]))])
    order = searched(collection, truth, far.queries[0], rerank=0, expand=0)
    depth = [i for i in order if i != 0].index(11)
    assert depth > 0
    found = {each.stage: each for each in trust(collection, far, Way(rerank=depth))}
    assert found["rerank"].present[0] == found["expand"].present[0] == measurement.MISSED
    assert found["filter"].present[0] > measurement.MISSED


def test_what_is_there_and_cannot_be_read_betters_no_figure_of_presence(collection, truth):
    """An object whose only photo is not in the collection is there, and is not found."""
    longer = truth._replace(paths=[*truth.paths, "/nowhere/gone.jpg"])
    lost = truth.queries[0]._replace(positives=np.asarray([12]))
    for each in trust(collection, longer._replace(queries=[lost])):
        assert each.present.tolist() == [measurement.MISSED] and each.hits == 0
    alone = trust(collection, truth._replace(queries=truth.queries[1:3]))
    both = trust(collection, longer._replace(queries=[*truth.queries[1:3], lost]))
    for each, before in zip(both, alone, strict=True):
        assert sorted(each.present) == sorted([*before.present, measurement.MISSED])
        assert each.hits == np.mean(each.present >= each.threshold)


def test_the_querys_own_photo_has_no_part_in_the_overlap(collection, truth):
    query = truth.queries[0]
    assert query.box_px is not None
    own = query._replace(boxes={0: query.box_px, **query.boxes})
    plain, more = (measure(collection, truth._replace(queries=[q])).rows for q in (query, own))
    assert [(row.overlap, row.boxes) for row in more[1:]] == [(row.overlap, 1) for row in plain[1:]]
    only = measure(collection, truth._replace(queries=[query._replace(boxes={0: query.box_px})]))
    assert only.rows[1].boxes == 0 and np.isnan(only.rows[1].overlap)


def test_scores_of_other_boxes_have_another_name(collection, truth):
    found = collection.search(truth.paths[0], alpha=2.0)
    assert found.judged_by == "rerank alpha=2 long_side=128"
    assert found.scored_by == "expand alpha=2 long_side=128"


@pytest.mark.parametrize("wrong", [{"rerank": -1}, {"expand": -3}, {"fusion": 2.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Way(**wrong)


# The command.


@pytest.fixture(scope="module")
def folder(truth, tmp_path_factory):
    """The photos' folder with the ground truth beside them, and the network in a file."""
    from rmacjax.datasets import write_ground_truth

    place = os.path.dirname(truth.paths[0])
    write_ground_truth(truth, os.path.join(place, "ground_truth.json"))
    return place


@pytest.fixture(scope="module")
def weights(params, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("network") / "random.safetensors"
    return str(save(path, params, origin="random numbers", licence="none needed"))


def evaluated(capsys, *words) -> dict:
    capsys.readouterr()
    code = main(["evaluate", *map(str, words), "--long-side", "128", "--json", "-"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_interrupted_and_run_again_it_gives_the_same_table(
    capsys, folder, weights, tmp_path, monkeypatch
):
    words = [folder, "--weights", weights, "--whiten", folder, "--cache"]
    whole = evaluated(capsys, *words, tmp_path / "whole")
    assert whole["photos_described"] == 12
    # The first time, it is interrupted when five photos have been described.
    add = rmacjax.Collection.add

    def interrupted(self, paths, *, progress=None):
        def stop(done, total):
            if done == 5:
                raise KeyboardInterrupt

        return add(self, paths, progress=stop)

    monkeypatch.setattr(rmacjax.Collection, "add", interrupted)
    command = ["evaluate", *words, str(tmp_path / "cut"), "--long-side", "128"]
    assert main([str(word) for word in command]) == 130
    monkeypatch.undo()
    rest = evaluated(capsys, *words, tmp_path / "cut")
    assert 0 < rest["photos_described"] < 12
    again = evaluated(capsys, *words, tmp_path / "cut")
    assert again["photos_described"] == 0
    assert whole["rows"] == rest["rows"] == again["rows"]
    assert whole["fingerprint"] == again["fingerprint"]
    assert {"rmacjax", "jax", "numpy", "python"} <= set(whole["versions"])
    assert len(whole["weights_sha256"]) == 64 and whole["options"]["whiten_on"] == folder


def test_a_photo_that_became_unreadable_is_forgotten(capsys, truth, weights, tmp_path):
    from rmacjax.datasets import write_ground_truth

    photos = tmp_path / "photos"
    photos.mkdir()
    paths = [str(shutil.copy(path, photos)) for path in truth.paths]
    queries = [query._replace(path=paths[3 * i]) for i, query in enumerate(truth.queries[:4])]
    write_ground_truth(truth._replace(paths=paths, queries=queries), photos / "ground_truth.json")
    words = [photos, "--weights", weights, "--rerank", "0"]
    whole = evaluated(capsys, *words, "--cache", tmp_path / "cache")
    content = (photos / "2-1.jpg").read_bytes()
    (photos / "2-1.jpg").write_bytes(content[: len(content) // 2])
    cached = evaluated(capsys, *words, "--cache", tmp_path / "cache")
    fresh = evaluated(capsys, *words, "--no-cache")
    assert cached["rows"] == fresh["rows"] != whole["rows"]
    assert cached["photos"] == 11 and "2-1.jpg" in cached["skipped"][0][0]


def test_what_cannot_be_read_counts_as_missed_and_is_told(capsys, truth, weights, tmp_path):
    """A positive, and a query with a box, whose file is not even an image any more."""
    from rmacjax.datasets import write_ground_truth

    photos = tmp_path / "photos"
    photos.mkdir()
    paths = [str(shutil.copy(path, photos)) for path in truth.paths]
    lone = str(shutil.copy(truth.paths[0], photos / "lone.jpg"))
    queries = [query._replace(path=paths[3 * i]) for i, query in enumerate(truth.queries[:4])]
    queries[3] = queries[3]._replace(path=lone, junk=NONE)
    write_ground_truth(truth._replace(paths=paths, queries=queries), photos / "ground_truth.json")
    words = [photos, "--weights", weights, "--no-cache", "--trust"]
    whole = evaluated(capsys, *words)
    assert whole["positives_missed"] == 0 and whole["queries_unusable"] == []
    (photos / "1-1.jpg").write_bytes(b"no photo")
    (photos / "lone.jpg").write_bytes(b"no photo")
    pages, table = tmp_path / "pages", tmp_path / "table.md"
    found = evaluated(capsys, *words, "--markdown", table, "--html", pages)
    for sentence in (
        "1 positive of 1 query could not be used as photos: they count as missed",
        "1 query could not be used: what they ask for counts as not found",
    ):
        assert sentence in table.read_text()
    assert found["positives_missed"] == 1
    ((path, why),) = found["queries_unusable"]
    assert path == lone and lone in why
    for row, before in zip(found["rows"], whole["rows"], strict=True):
        # One of two positives can at best be found first; whose photo is not there finds nothing.
        assert row["per_query"][1] <= 0.5 and row["per_query"][3] == 0
        assert row["per_query"][1] <= before["per_query"][1]
        assert row["scores"]["first place"]["per_query"][3] == 0
    for each, before in zip(found["trust"], whole["trust"], strict=True):
        assert len(each["present"]) == len(before["present"])
        assert each["present"].count(measurement.MISSED) >= 1
        assert len(each["absent"]) == len(before["absent"]) - 1
    assert "lone.jpg" in (pages / "query-0004.html").read_text()


def test_help_and_builders_say_what_becomes_of_photos_that_cannot_be_read(capsys):
    from rmacjax.datasets import builders

    assert main(["evaluate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "cannot be read counts as missed" in said and "builders) leave both out" in said
    assert "counts as missed and such a query finds nothing" in " ".join(builders.__doc__.split())


def test_without_one_query_that_can_be_read_nothing_is_measured(collection, truth, tmp_path):
    gone = truth.queries[0]._replace(path=str(tmp_path / "gone.jpg"))
    with pytest.raises(OSError, match=r"none of the queries of things .*gone\.jpg"):
        measure(collection, truth._replace(queries=[gone, gone]))
    both = measure(collection, truth._replace(queries=[gone, truth.queries[0], gone]))
    alone = measure(collection, truth._replace(queries=[truth.queries[0]]))
    assert list(both.unusable) == [0, 2]
    for row, other in zip(both.rows, alone.rows, strict=True):
        value = other.scores["mAP"].mean
        np.testing.assert_allclose(row.scores["mAP"].per_query, [0, value, 0])
    # A box that is not on the photo is no reason to stop either.
    outside = truth.queries[1]._replace(box_px=(0, 0, 5000, 5000))
    found = measure(collection, truth._replace(queries=[truth.queries[0], outside]))
    assert "5000" in found.unusable[1]


@pytest.mark.skipif(sys.platform == "win32", reason="files in use cannot be shared there anyway")
def test_a_cache_serves_one_evaluation_at_a_time(capsys, folder, weights, tmp_path):
    import fcntl

    with open(tmp_path / "in-use", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = ["evaluate", folder, "--weights", weights, "--cache", str(tmp_path)]
        assert main(words) == 1
    assert "another evaluation" in capsys.readouterr().err


def test_whitening_goes_on_where_it_was_interrupted(truth, params, tmp_path, monkeypatch):
    from rmacjax.cli import learning

    monkeypatch.setattr(learning, "KEPT_PHOTOS", 5)
    kept = str(tmp_path / "sums.npz")
    whole, moments = learning.learn(params, truth.paths, SETTINGS)
    add, calls = learning._add_all, []

    def interrupted(*arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*arguments)

    monkeypatch.setattr(learning, "_add_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learning.learn(params, truth.paths, SETTINGS, kept=kept)
    assert os.path.exists(kept)
    resumed, again = learning.learn(params, truth.paths, SETTINGS, kept=kept)
    assert calls == [5, 5, 5, 2] and again.total == moments.total
    np.testing.assert_allclose(resumed.projection, whole.projection, rtol=1e-4, atol=1e-4)
    assert not os.path.exists(kept)


def damaged(content: bytes) -> list[bytes]:
    return [b"", content[: len(content) // 2], b"no archive" * 9, content.replace(b"mean", b"lean")]


def test_damaged_sums_begin_anew(capsys, truth, params, tmp_path):
    from rmacjax.cli import learning

    kept = tmp_path / "sums.npz.begun"
    whole, _ = learning.learn(params, truth.paths[:4], SETTINGS)
    _, moments = learning.learn(params, truth.paths[:2], SETTINGS)
    learning._keep(str(kept), moments, 2)
    for content in damaged(kept.read_bytes()):
        kept.write_bytes(content)
        capsys.readouterr()
        again, _ = learning.learn(params, truth.paths[:4], SETTINGS, kept=str(kept))
        assert capsys.readouterr().err.count("is damaged, and made anew") == 1
        np.testing.assert_array_equal(again.projection, whole.projection)


@pytest.mark.parametrize("why", ["Permission denied", "Is a directory"])
def test_what_cannot_be_opened_is_not_called_damaged(
    capsys, truth, params, tmp_path, monkeypatch, why
):
    from rmacjax.cli import learning

    kept = tmp_path / "sums.npz.begun"
    if why == "Is a directory":
        kept.mkdir()
    else:
        kept.write_bytes(b"numbers")

        def refused(path):
            raise PermissionError(13, why, str(path))

        monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(OSError, match=rf"{kept}'.* cannot be read: {why}; make it readable"):
        learning.learn(params, truth.paths[:2], SETTINGS, kept=str(kept))
    assert kept.exists() and "damaged" not in capsys.readouterr().err


def test_what_is_damaged_in_the_cache_is_made_anew(capsys, folder, weights, tmp_path):
    words = [folder, "--weights", weights, "--whiten", folder, "--rerank", "0", "--cache", tmp_path]
    words = ["evaluate", *map(str, words), "--long-side", "128", "--json", "-"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    (kept,) = tmp_path.glob("whitening-*.npz")
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())

    def made_anew(path) -> None:
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.err.count(f"{str(path)!r} is damaged, and made anew") == 1
        assert json.loads(captured.out)["rows"] == whole["rows"]

    for content in damaged(kept.read_bytes()):
        kept.write_bytes(content)
        made_anew(kept)
    shutil.rmtree(place)
    place.mkdir()
    made_anew(place)
    for files in ("_versions", "data"):  # one after the other, each time all of them
        for file in (place / files).iterdir():
            file.write_bytes(b"")
        made_anew(place)
    assert main(words) == 0 and "damaged" not in capsys.readouterr().err


DAMAGE = {
    "overwritten": lambda content: content[:60] + bytes(8) + content[68:],
    "with another word": lambda content: content.replace(b"pool", b"poom").replace(b"p0", b"p1"),
    "overwritten at its end": lambda content: content[:-40] + b"\x7c" * 8 + content[-32:],
    "of zeroes": lambda content: bytes(len(content)),
    "cut off": lambda content: content[: len(content) // 2],
    "gone": None,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_whatever_is_damaged_in_a_kept_collection_is_made_anew(
    capsys, folder, weights, tmp_path, how
):
    words = ["evaluate", folder, "--weights", weights, "--cache", str(tmp_path)]
    words += ["--long-side", "128", "--also", "regions", "--trust", "--json", "-"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in ("data", "_versions"):
        file = max((place / name).glob("*.[lm]*"), key=lambda file: file.stat().st_size)
        change = DAMAGE[how]
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(file.read_bytes()))
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.err.count(f"{str(place)!r} is damaged, and made anew") == 1
        assert json.loads(captured.out)["rows"] == whole["rows"]
        assert json.loads(captured.out)["trust"] == whole["trust"]
    assert main(words) == 0 and "damaged" not in capsys.readouterr().err


def test_a_damaged_map_is_found_without_a_seal_too(capsys, folder, weights, tmp_path):
    words = ["evaluate", folder, "--weights", weights, "--cache", str(tmp_path)]
    words += ["--long-side", "128", "--rerank", "2", "--json", "-"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (seal,) = tmp_path.glob("*.seal")
    stored = bytes(rmacjax.Collection.open(place).gallery().read_levels([3])[0]._body)
    for content in (
        "gone",
        "",
        "[" * 100_000,
        "[1]",
        seal.read_text().replace("data/", "datb/", 1),
    ):
        overwritten = 0
        for file in (place / "data").iterdir():
            kept = file.read_bytes()
            if stored in kept:
                middle = stored[:20] + b"\x7c" * 8 + stored[28:]
                file.write_bytes(kept.replace(stored, middle))
                overwritten += 1
        assert overwritten == 1
        seal.unlink() if content == "gone" else seal.write_text(content)
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.err.count(f"{str(place)!r} is damaged, and made anew") == 1
        assert json.loads(captured.out)["rows"] == whole["rows"]


def test_a_kept_collection_that_grew_or_was_left_unfinished_is_not_damaged(
    capsys, folder, weights, tmp_path
):
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    shutil.copytree(folder, photos)
    words = ["evaluate", str(photos), "--weights", weights, "--cache", str(cache)]
    words += ["--long-side", "128", "--rerank", "0", "--json", "-"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)["rows"]
    one = min(photos.glob("*.jpg"))
    os.utime(one, (1, 1))  # as another photo under its name
    for step in ("grown", "as it was", "killed while it grew"):
        if step.startswith("killed"):
            (seal,) = cache.glob("*.seal")
            seal.unlink()
        assert main(words) == 0
        captured = capsys.readouterr()
        assert "damaged" not in captured.err
        assert json.loads(captured.out)["rows"] == whole
    assert len(list(cache.glob("*.seal"))) == 1


@pytest.mark.parametrize("place", ["pages", "pages/deeper", "dangling", ""])
def test_pages_want_a_folder(capsys, folder, weights, tmp_path, place):
    (tmp_path / "pages").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    pages = str(tmp_path / place) if place else ""
    assert main(["evaluate", folder, "--weights", weights, "--html", pages]) == 2
    err = capsys.readouterr().err
    assert f"--html names a folder for the pages, and {pages!r} cannot be one: " in err
    assert "Describ" not in err and "photos" not in err


def test_a_report_says_what_was_used(capsys, truth, params, tmp_path):
    """Whitening left out, a pool without regions, two scales, one query without a box."""
    from rmacjax.datasets import write_ground_truth

    identity = Whitening(np.zeros(256, np.float32), np.eye(256, dtype=np.float32))
    file = save(
        tmp_path / "w.safetensors", params._replace(whitening=identity), origin="", licence=""
    )
    write_ground_truth(truth, tmp_path / "ground_truth.json")
    words = [tmp_path, "--weights", file, "--no-cache", "--rerank", "0"]
    words += ["--markdown", tmp_path / "t.md"]
    found = evaluated(capsys, *words, "--no-whiten", "--scales", "1", "0.5", "--pool", "gem")
    text = (tmp_path / "t.md").read_text()
    assert found["whitening"] == "none" and "whitening none, pool gem, scales 1 0.5" in text
    assert "levels" not in text and "queries 5, 4 of them cropped" in text
    assert "last pool no" in text and found["weights_sha256"][:12] in text
    assert f"rmacjax {rmacjax.__version__}" in text and "jax " in text and "device " in text
    whole = [query._replace(box_px=None) for query in truth.queries]
    write_ground_truth(truth._replace(queries=whole), tmp_path / "ground_truth.json")
    found = evaluated(capsys, *words)
    text = (tmp_path / "t.md").read_text()
    assert found["whitening"] == "that of the weights" and "queries 5 whole" in text
    assert "pool rmac, levels 3, scales 1," in text


def test_other_ways_are_compared_and_pages_written(capsys, folder, weights, tmp_path):
    words = ["--also", "regions", "fused", "alpha-qe", "dba", "diffusion", "--trust"]
    words += ["--html", tmp_path / "pages", "--markdown", tmp_path / "t.md", "--no-cache"]
    found = evaluated(capsys, folder, "--weights", weights, *words)
    names = [row["search"] for row in found["rows"]]
    assert names == [
        "filter",
        "+ AML",
        "+ AML + QE",
        "regions",
        "+ AML, fused",
        "+ AML + QE, fused",
        "+ AML + alpha-QE",
        "DBA",
        "diffusion",
    ]
    assert {each["search"] for each in found["differences"]} == set(names[1:])
    assert [each["stage"] for each in found["trust"]] == ["filter", "rerank", "expand"]
    text = (tmp_path / "t.md").read_text()
    assert text.count("\n| ") == len(names) and "beside 'filter'" in text
    index = (tmp_path / "pages" / "index.html").read_text()
    order = [index.index(f"query-{n:04}.html") for n in range(1, 6)]
    scores = found["rows"][0]["per_query"]
    ranked = sorted(range(5), key=lambda n: order[n])
    known = [scores[n] for n in ranked if scores[n] is not None]
    assert known == sorted(known) and ranked[-1] == 4  # without an answer, without a score
    page = (tmp_path / "pages" / "query-0001.html").read_text()
    assert "thing 0" in page and "✓ right" in page and "✗ another" in page


@pytest.mark.parametrize("photos", [12, 2000])
@pytest.mark.parametrize("first_stage", ["descriptor", "regions", "diffusion"])
def test_rows_of_dba_are_those_that_it_changes(photos, first_stage):
    options = {"rerank": 1000, "expand": 5, "first_stage": first_stage}
    first, *ways = compared_ways(photos, ["dba"], fusion=0.5, **options)
    start = None if first_stage == "regions" else "DBA"
    rows = (start, "DBA + AML", "DBA + AML + QE")
    assert ways == [dataclasses.replace(first, rows=rows, augment=10)]
    if first_stage != "regions":
        first, way = compared_ways(photos, ["dba"], fusion=0.0, **options)
        depth = {"rerank": 0, "expand": 0} if photos == 12 else {}
        rows = ("DBA", None, None) if photos == 12 else rows
        assert way == dataclasses.replace(first, rows=rows, augment=10, **depth)


def test_dba_counts_where_whole_photos_do(capsys, folder, weights):
    words = ["--also", "dba", "--first-stage", "regions", "--no-cache", "--weights", weights]
    rows = evaluated(capsys, folder, *words, "--fusion", "0.8")["rows"]
    named = {row["search"]: row["per_query"] for row in rows}
    assert list(named) == ["filter", "+ AML", "+ AML + QE", "DBA + AML", "DBA + AML + QE"]
    assert named["DBA + AML"] != named["+ AML"]


def test_whole_queries_are_told(capsys, folder, weights, tmp_path):
    words = ["evaluate", folder, "--weights", weights, "--no-cache", "--queries", "whole"]
    assert main([*words, "--long-side", "128", "--rerank", "0"]) == 0
    assert "not comparable" in capsys.readouterr().err


def test_options_without_effect_are_told(capsys, truth, weights, tmp_path):
    from rmacjax.datasets import write_ground_truth

    whole = [query._replace(box_px=None) for query in truth.queries[:2]]
    write_ground_truth(truth._replace(queries=whole), tmp_path / "ground_truth.json")
    words = ["evaluate", str(tmp_path), "--weights", weights, "--no-cache", "--long-side", "128"]
    words += ["--rerank", "0", "--no-whiten", "--queries", "whole"]
    assert main(words) == 0
    assert "expanded" not in capsys.readouterr().err  # nobody asked for it
    assert main([*words, "--expand", "5"]) == 0
    said = capsys.readouterr().err
    for sentence in ("--no-whiten changes nothing", "--queries whole changes", "was expanded"):
        assert sentence in said


def test_thresholds_are_saved_with_the_weights(capsys, folder, truth, weights, tmp_path):
    from rmacjax.datasets import write_ground_truth

    out = tmp_path / "sure.safetensors"
    words = [folder, "--queries", "whole", "--no-cache", "--save-thresholds", out, "--weights"]
    found = evaluated(capsys, *words, weights)
    kinds = {each["stage"]: (each["kind"], each["threshold"]) for each in found["trust"]}
    assert all(each["hits"] >= 0.1 for each in found["trust"])
    # Nothing is judged by what it scores after expansion.
    learned = dict([kinds["filter"], kinds["rerank"]])
    assert all(kind.endswith("long_side=128") for kind in learned)
    assert dict(load(out).network.thresholds) == pytest.approx(learned)
    sources = describe_file(out)["settings"]["thresholds learned on"]
    assert sources == dict.fromkeys(learned, "things, 5 absent")
    # A second way of searching joins the first one's thresholds, learned on other searches.
    write_ground_truth(truth._replace(name="others"), tmp_path / "ground_truth.json")
    words[0] = str(tmp_path)
    command = ["evaluate", *map(str, words), str(out), "--fusion", "0.5", "--long-side", "128"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "learned from 5 searches for what is not there" in said
    assert said.count("of other absent objects, 45% may count as found") == 1
    assert "of so few, 45% of others may" in said
    more = dict(load(out).network.thresholds)
    assert set(learned) < set(more) and any("fusion=0.5" in kind for kind in more)
    sources = describe_file(out)["settings"]["thresholds learned on"]
    assert set(sources) == set(more)
    for kind, source in sources.items():
        filtered = kind.startswith("filter")  # learned again, the same way
        assert source == f"{'others' if filtered or 'fusion' in kind else 'things'}, 5 absent"
    # Files of old have one name for all lines: it stays with those that are not learned again.
    facts = {"origin": "x", "licence": "none needed"}
    save(out, load(out), **facts, settings={"thresholds learned on": "long ago"})
    evaluated(capsys, *words, out, "--fusion", "0.5")
    sources = describe_file(out)["settings"]["thresholds learned on"]
    assert sources[kinds["rerank"][0]] == "long ago"
    assert sources[kinds["filter"][0]] == "others, 5 absent"


@pytest.mark.parametrize("pool", ["rmac", "gem"])
def test_thresholds_say_what_a_new_whitening_belongs_to(capsys, folder, weights, tmp_path, pool):
    """The file that it started from had been made for another pool."""
    start, out = tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    save(start, load(weights), origin="", licence="", settings={"pool": "mac", "long_side": 64})
    words = ["evaluate", folder, "--weights", str(start), "--whiten", folder, "--pool", pool]
    words += ["--long-side", "128", "--rerank", "0", "--no-cache", "--save-thresholds", str(out)]
    assert main(words) == 0
    assert (
        "12 of the 13 photos that whitening is learned on are searched" in capsys.readouterr().err
    )
    told = describe_file(out)
    of = "regions of the photos" if pool == "rmac" else "whole photos"
    assert told["whitening"]["origin"] == (
        f"PCA, learned on the {of} in {os.path.basename(folder)!r}, pooled by {pool}"
    )
    grid = {"levels": 3, "with_global": False} if pool == "rmac" else {}
    settings = {"pool": pool, "long_side": 128} | grid
    assert {name: told["settings"].get(name) for name in settings} == settings
    assert set(told["settings"]) == {*settings, "thresholds learned on"}


@pytest.mark.parametrize("count", [1, 5, 29])
def test_the_share_that_is_told_is_that_of_the_threshold(rng, count):
    """Of lines learned from so many scores, one in twenty lets in more of all others."""
    lines = [threshold_at(scores) for scores in rng.random((20_000, count))]
    let_in = 1 - np.asarray(lines)
    assert np.mean(let_in > may_be_found(count)) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "no-such"], "paper-oxford5k"),
        (["--recipe", "paper-oxford5k", "--levels", "4"], "--levels"),
        (["--recipe", "paper-oxford5k", "--expand", "4"], "--expand"),
        (["--recipe", "paper-oxford5k", "--no-last-pool"], "--no-last-pool"),
        (["--recipe", "paper-oxford5k-mac", "--levels", "3"], "--levels"),
        (["--recipe", "revisited-roxford5k", "--expand", "5"], "--expand"),
        (["somewhere", "--recipe", "paper-oxford5k"], "what is searched"),
        (["--recipe", "sfm-gem-oxford5k"], "--weights"),
        ([], "dataset"),
        (["x", "--cache", "y", "--no-cache"], "--no-cache"),
        (["x", "--fusion", "0.5", "--rerank", "0"], "looks for none"),
        (["x", "--data-dir", "y"], "leave it out"),
        ([".", "--also", "fused", "--fusion", "0.5"], "once more"),
        ([".", "--also", "regions", "--first-stage", "regions"], "once more"),
        ([".", "--also", "diffusion", "--first-stage", "diffusion"], "once more"),
        ([".", "--also", "dba", "--first-stage", "regions"], "ranks them by others"),
    ],
)
def test_what_contradicts_itself_is_refused(capsys, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["evaluate", *words])
    captured = capsys.readouterr()
    assert code in (1, 2) and captured.out == "" and said in captured.err
    assert "Traceback" not in captured.err


def test_a_recipe_gives_no_verdict_on_another_run(capsys, folder, weights, tmp_path, monkeypatch):
    """Folders of the sets' names, with photos of our own, and weights of another network."""
    monkeypatch.chdir(tmp_path)
    for name in ("oxford5k", "paris6k"):
        shutil.copytree(folder, name)
    words = ["--recipe", "paper-oxford5k-mac", "--no-cache", "--weights", weights]
    capsys.readouterr()
    with_pool = dataclasses.replace(RECIPES["paper-oxford5k-mac"], last_pool=None)
    monkeypatch.setattr(recipes, "RECIPES", {"paper-oxford5k-mac": with_pool})
    assert main(["evaluate", *words, "--json", "-", "--markdown", "table.md"]) == 0
    found = json.loads(capsys.readouterr().out)
    (sentence,) = found["compared_with_published"]
    assert sentence.startswith("No verdict") and sentence in (tmp_path / "table.md").read_text()
    for part in ("+ AML + QE, mAP 74.2", "network alexnet where vgg16 is due", "12 photos where"):
        assert part in sentence
    assert len(found["unlike_the_recipe"]) == 3


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("paper-oxford5k", ["--expand", "5", "--rerank", "1000", "--long-side", "1024"]),
        ("paper-oxford5k", ["--whiten", "paris6k", "--pool", "rmac", "--levels", "3"]),
        ("paper-oxford5k", ["oxford5k", "--last-pool", "--scales", "1"]),
        ("revisited-roxford5k", ["--rerank", "0", "--expand", "0"]),
        ("sfm-gem-oxford5k", ["--pool", "gem", "--scales", "1", str(0.5**0.5), "0.5"]),
    ],
)
def test_a_recipe_may_be_told_what_it_decides(capsys, tmp_path, recipe, words):
    words = [*words, "--recipe", recipe, "--weights", "default", "--data-dir", str(tmp_path)]
    assert main(["evaluate", *words, "--no-cache"]) == 1  # for want of photos
    assert str(tmp_path / RECIPES[recipe].dataset) in capsys.readouterr().err


def test_a_recipes_network_is_taken_where_none_was_named(capsys, tmp_path):
    paper, tuned = RECIPES["paper-oxford5k"], RECIPES["sfm-gem-oxford5k"]
    assert recipes_weights(None, paper, "x") == "vgg16"
    assert recipes_weights("default", paper, "x") == "default"
    with pytest.raises(ValueError, match="needs its network"):
        recipes_weights(None, tuned, "x")
    # Named, `default` is one: what is lacking then are the photos.
    words = ["--recipe", "sfm-gem-oxford5k", "--weights", "default", "--data-dir", str(tmp_path)]
    assert main(["evaluate", *words, "--no-cache"]) == 1
    assert str(tmp_path / "oxford5k") in capsys.readouterr().err


def test_in_what_a_run_departs_from_its_recipe(params, truth, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("RMACJAX_WEIGHTS", str(tmp_path))
    paris = GroundTruth("paris6k", ["x"] * 6392, truth.queries[:1] * 55)
    identity = Whitening(np.zeros(256, np.float32), np.eye(256, dtype=np.float32))
    whitened = params._replace(whitening=identity)
    save(tmp_path / "alexnet.safetensors", params, origin="random", licence="none needed")
    published = RECIPES["paper-paris6k-alexnet"]
    recipe = dataclasses.replace(published, weights="alexnet", architecture="alexnet")
    usual = Settings()

    def told(recipe=recipe, weights=weights, params=whitened, settings=usual, skipped=0):
        return departures(recipe, weights, params, settings, paris, skipped)

    assert told() == told(weights="alexnet") == []
    assert told(published) == ["the network alexnet where alexnet-caffe is due"]
    louder = {name: 2 * array for name, array in params.weights.items()}
    assert told(params=whitened._replace(weights=louder)) == [f"weights {weights!r}"]
    assert told(params=params) == ["no whitening"]
    assert told(settings=Settings(levels=2)) == ["levels 2 where 3 is due"]
    assert "with_global" in told(settings=Settings(with_global=True))[0]
    assert told(skipped=2) == ["2 photos that could not be used"]
    assert len(told(settings=Settings(512, "gem", scales=(0.5,)))) == 3
    # A network that is given as a file is known by what it was made of.
    file = tmp_path / "fine-tuned.safetensors"
    facts = {"origin": "x", "licence": "none needed", "whitening_origin": "a, multi scale, of x"}
    save(file, whitened, source_sha256="12ab", **facts)
    given = dataclasses.replace(recipe, weights=None, source_sha256="12a", whitening_origin="a, mu")
    assert told(given, str(file)) == []
    assert "published file" in told(dataclasses.replace(given, source_sha256="1b"), str(file))[0]
    other = dataclasses.replace(given, whitening_origin="a, single")
    assert "'a, multi scale, of x'" in told(other, str(file))[0]
    rows = measure_rows(0.9)
    recipe = dataclasses.replace(recipe, expected={"filter": {"mAP": 91.0}}, tolerance=1.5)
    assert compared(rows, recipe, [])[0].endswith(": as published")
    assert compared(measure_rows(0.89), recipe, [])[0].endswith("NOT as published")
    assert compared(rows, recipe, ["x"])[0].endswith("this run has x")


def measure_rows(mean: float) -> list[Row]:
    return [Row("filter", {"mAP": Score(mean, mean, mean, np.asarray([mean]))}, float("nan"), 0)]


def test_a_recipe_without_its_photos_says_what_to_get(capsys, tmp_path, weights):
    words = ["--recipe", "paper-oxford5k", "--weights", weights, "--data-dir", str(tmp_path)]
    assert main(["evaluate", *words, "--no-cache"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "oxford5k") in said and "http" in said and said.count("\n") == 1
