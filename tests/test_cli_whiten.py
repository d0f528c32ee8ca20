"""`rmacjax whiten` for every pool and from pairs, and the options of `index` that go with it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import oracles_whitening
import pytest

from rmacjax import activations, describe, rmac_regions
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.cli import learning, main
from rmacjax.cli.describing import PoolName, chosen_settings, stored_settings
from rmacjax.cli.pairs import Pair, View, pairs_of, read_pairs
from rmacjax.collection import Collection
from rmacjax.datasets import read_ground_truth
from rmacjax.descriptors import POOLS, Params, Settings
from rmacjax.preprocessing import encode_png
from rmacjax.weights import describe_file, load, save
from rmacjax.weights.calibration import measure_activation_scale

SIDE = 96


def photo(seed: int) -> np.ndarray:
    """Coarse random blocks under fine noise."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((SIDE // 6, SIDE // 6, 1)))
    return np.clip(blocks + random.normal(0, 25, blocks.shape), 0, 255).astype(np.uint8)


def twin(seed: int) -> np.ndarray:
    """The same blocks, darker and with other noise."""
    noise = np.random.default_rng(seed + 1000).normal(0, 25, (SIDE, SIDE, 3))
    return np.clip(photo(seed) * 0.8 + noise, 0, 255).astype(np.uint8)


pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A small random network that was made for GeM with an exponent of its own."""
    numbers = initialize("alexnet", 0)
    network = Network("alexnet", False, TORCHVISION_CONVENTION, gem_p=2.5)
    scale = measure_activation_scale(network, numbers)
    network = replace(network, activation_scale=scale, thresholds=(("filter", 0.5),))
    path = tmp_path_factory.mktemp("weights") / "gem.safetensors"
    return str(
        save(
            path,
            Params(network, numbers),
            origin="random numbers",
            licence="none needed",
            settings={"pool": "gem"},
        )
    )


@pytest.fixture(scope="module")
def params(weights) -> Params:
    return load(weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six photos, a darker twin of each, pairs of them, and a ground truth that says the same."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(6):
        (root / f"{i}.png").write_bytes(encode_png(photo(i)))
        (root / f"{i}_twin.png").write_bytes(encode_png(twin(i)))
    queries = [
        {
            "image": f"{i}.png",
            "box": [0, 0, 80, 80],
            "positives": [f"{i}.png", f"{i}_twin.png"],
            "boxes": {f"{i}_twin.png": [8, 8, 96, 96]} if i == 2 else {},
        }
        for i in (0, 2, 5)
    ]
    images = [f"{i}{tail}.png" for i in range(6) for tail in ("", "_twin")]
    truth = {"name": "twins", "images": images, "queries": queries}
    (root / "ground_truth.json").write_text(json.dumps(truth))
    lines = [f"{i}.png, {i}_twin.png" for i in range(6)]
    (root / "pairs.csv").write_text("query,positive\n" + "\n".join(lines) + "\n")
    return root


def run(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def project(learned, vectors):
    return (np.asarray(vectors, np.float64) - np.asarray(learned.mean)) @ np.asarray(
        learned.projection
    ).T


def test_the_command_line_knows_the_pools():
    assert get_args(PoolName) == POOLS


# Learning.


@pytest.mark.parametrize("pool", ["crow", "gem"])
def test_pools_without_regions_learn_on_whole_photos(params, folder, pool):
    settings = Settings(pool=pool, scales=(1.0, 0.7))
    learned, moments = learning.learn(params, str(folder), settings, dimensions=6, shrinkage=0.4)
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    vectors = np.asarray(describe(params, paths, settings=settings))
    assert moments.total == len(vectors) == 12
    mean, projection = oracles_whitening.pca_whitening(vectors, 6, 0.4)
    np.testing.assert_allclose(learned.mean, mean, atol=1e-6)
    np.testing.assert_allclose(learned.projection, projection, rtol=1e-2, atol=1e-2)
    by_list, _ = learning.learn(params, paths, settings, dimensions=6, shrinkage=0.4)
    np.testing.assert_allclose(by_list.projection, learned.projection, rtol=1e-2, atol=1e-2)


def test_pools_with_regions_learn_on_regions_of_the_levels_asked_for(params, folder):
    _, moments = learning.learn(params, str(folder), Settings(pool="rgem", levels=2))
    rows = []
    for a1 in activations(params, [str(path) for path in sorted(folder.glob("*.png"))]):
        a1 = np.asarray(a1, np.float64)
        for top, left, bottom, right in rmac_regions(*a1.shape[:2], 2):
            rows.append(((a1[top:bottom, left:right] ** 2.5).mean((0, 1))) ** (1 / 2.5))
    rows = [row / np.linalg.norm(row) for row in rows]
    assert moments.total == len(rows)
    np.testing.assert_allclose(moments.mean, np.mean(rows, axis=0), atol=1e-6)
    covariance = np.cov(np.transpose(rows), bias=True)
    np.testing.assert_allclose(moments.scatter / moments.total, covariance, atol=1e-7)


def test_pairs_of_whole_photos_equal_the_oracle(params, folder, monkeypatch):
    """However few photos' vectors are kept, and however few pairs are described at a time."""
    settings = Settings(pool="gem")
    pairs = read_pairs(str(folder / "pairs.csv"), str(folder))
    names = [view.path for pair in pairs for view in pair]
    assert len(set(names)) == 12
    vectors = np.asarray(describe(params, names, settings=settings))
    channels = vectors.shape[1]
    differences = vectors[0::2].astype(np.float64) - vectors[1::2]
    for kept, at_once in ((1024, 64), (2, 2)):
        monkeypatch.setattr(learning, "KEPT_VIEWS", kept)
        monkeypatch.setattr(learning, "PAIRS", at_once)
        learned, moments, found, used = learning.learn_from_pairs(
            params, str(folder), pairs, settings
        )
        assert used == len(pairs)
        assert (moments.total, found.total) == (12, 6)
        np.testing.assert_allclose(found.scatter, differences.T @ differences, atol=1e-6)
        np.testing.assert_allclose(found.mean, vectors[0::2].mean(0), atol=1e-6)
        covariance = np.cov(vectors.T.astype(np.float64), bias=True)
        np.testing.assert_allclose(moments.scatter / 12, covariance, atol=1e-7)
        assert learned.projection.shape == (channels, channels)


def test_what_differs_within_pairs_becomes_quiet(params, folder):
    settings = Settings(pool="crow")
    pairs = read_pairs(str(folder / "pairs.csv"), str(folder))
    by_pairs, *_ = learning.learn_from_pairs(params, str(folder), pairs, settings, dimensions=5)
    names = [view.path for pair in pairs for view in pair]
    vectors = np.asarray(describe(params, names, settings=settings), np.float64)

    def contrast(rows):
        within = np.linalg.norm(rows[0::2] - rows[1::2], axis=1).mean()
        between = np.linalg.norm(rows[0::2][:, None] - rows[1::2][None], axis=2).mean()
        return between / within

    assert contrast(project(by_pairs, vectors)) > 1.5 * contrast(vectors)


def test_regions_are_paired_with_those_most_like_them(params, folder):
    pairs = [Pair(View(str(folder / "0.png")), View(str(folder / "0_twin.png")))]
    _, _, found, used = learning.learn_from_pairs(
        params, str(folder), pairs, Settings(), dimensions=5
    )
    assert used == len(pairs) < found.total
    regions = []
    for view in pairs[0]:
        a1 = np.asarray(activations(params, [view.path])[0], np.float64)
        rows = [
            a1[top:bottom, left:right].max((0, 1))
            for top, left, bottom, right in rmac_regions(*a1.shape[:2])
        ]
        regions.append([row / np.linalg.norm(row) for row in rows])
    scatter = 0
    for mine in regions[0]:
        best = max(regions[1], key=lambda other: float(mine @ other))
        scatter = scatter + np.outer(mine - best, mine - best)
    assert found.total == len(regions[0])
    np.testing.assert_allclose(found.scatter, scatter, atol=1e-5)


def test_pairs_of_a_ground_truth_are_outlined_objects(folder):
    truth = read_ground_truth(folder)
    found = pairs_of(truth)
    box = (0, 0, 80, 80)
    assert [os.path.basename(pair.positive.path) for pair in found] == [
        "0_twin.png",
        "2_twin.png",
        "5_twin.png",
    ]
    assert all(pair.query.box_px == box for pair in found)
    assert [pair.positive.box_px for pair in found] == [None, (8, 8, 96, 96), None]
    lonely = truth._replace(
        queries=[query._replace(positives=np.int64([])) for query in truth.queries]
    )
    with pytest.raises(ValueError, match="no pairs to learn from"):
        pairs_of(lonely)


def test_the_same_pairs_from_json(folder, tmp_path):
    rows = [[f"{i}.png", f"{i}_twin.png"] for i in range(6)]
    (tmp_path / "p.json").write_text(json.dumps(rows), "utf-8-sig")  # as some editors save it
    assert read_pairs(str(tmp_path / "p.json"), str(folder)) == read_pairs(
        str(folder / "pairs.csv"), str(folder)
    )


@pytest.mark.parametrize(
    ("name", "text", "error", "sentence"),
    [
        ("p.csv", "0.png\n", ValueError, r"line 1: a pair is two names, not 1"),
        ("p.csv", "query,positive\n", ValueError, "names no pair"),
        ("p.csv", "0.png,nothing.png\n", OSError, r"1 of the 2 photos .*nothing\.png"),
        ("p.json", "{}", ValueError, "a list of pairs"),
        ("p.json", '[["0.png"]]', ValueError, "pair 1: a pair is a list of two names"),
        ("p.json", "[[", ValueError, "is not JSON"),
    ],
)
def test_pairs_that_are_none_are_refused(folder, tmp_path, name, text, error, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=sentence):
        read_pairs(str(tmp_path / name), str(folder))


# The command.


def test_whiten_writes_what_it_learned_for(capsys, folder, weights, tmp_path):
    out = tmp_path / "mine.safetensors"
    (tmp_path / "bad.jpg").write_text("no photo")
    words = [folder, out, "--weights", weights, "--dimensions", 5, "--pairs", folder / "pairs.csv"]
    code, text, err = run(capsys, "whiten", *words, "--json", "-")
    assert code == 0, err
    report = json.loads(text)
    assert (report["vectors"], report["pairs"], report["dimensions"]) == (12, 6, 5)
    assert "Pooling by gem" in err and report["settings"] == {"pool": "gem", "long_side": 1024}
    assert "dimensions apart" not in err
    shown = json.loads(run(capsys, "weights", "show", out, "--json", "-")[1])
    assert "6 pairs" in shown["whitening"]["origin"] and "gem" in shown["whitening"]["origin"]
    assert folder.name in shown["whitening"]["origin"]
    assert shown["settings"] == report["settings"] == stored_settings(str(out))
    # Scores by another whitening are no measure for this one.
    assert load(weights).network.thresholds and load(out).network.thresholds == ()
    assert load(out).network.gem_p == 2.5


def test_whiten_from_a_ground_truth_and_by_regions(capsys, folder, weights, tmp_path):
    out = tmp_path / "mine.safetensors"
    words = [folder, out, "--weights", weights, "--pool", "rmac", "--levels", 2, "--truth"]
    code, text, err = run(capsys, "whiten", *words, "--dimensions", 8, "--json", "-")
    assert code == 0, err
    report = json.loads(text)
    assert report["pairs"] == 3 < report["region_matches"]
    assert report["regions"] == report["vectors"] > 12
    assert f"3 pairs ({report['region_matches']} pairs of regions) and" in report["origin"]
    assert report["settings"]["levels"] == 2 and "Pooling by" not in err
    assert "dimensions apart" not in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shrinkage", "0.9"], "exponent lies between 0"),
        (["--dimensions", "999"], "1..256"),
        (["--levels", "2"], "which gem has not"),
        (["--truth", "--pairs", "x.csv"], "exclude each other"),
        (["--pool", "rmac", "--scales", "1", "0.5"], "belong to pools without regions"),
        (["--truth", "--shrinkage", "0.3"], "pairs are always whitened fully"),
        (["--truth", "--dimensions", "0"], "1..256"),
    ],
)
def test_what_cannot_be_is_refused_before_a_photo_is_described(
    capsys, folder, weights, tmp_path, monkeypatch, options, sentence
):
    from rmacjax import extraction

    def never(*args, **options):
        raise AssertionError("a photo was described")

    monkeypatch.setattr(extraction, "extract", never)
    out = tmp_path / "out.safetensors"
    code, _, err = run(capsys, "whiten", folder, out, "--weights", weights, *options)
    assert code == 2 and sentence in err and not out.exists()


def test_bad_photos_are_named_and_left_out(capsys, folder, weights, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in folder.glob("*.png"):
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "3.png").write_bytes(b"no photo")
    (photos / "other.png").write_bytes(b"no photo either")
    out = tmp_path / "mine.safetensors"
    words = [photos, out, "--weights", weights, "--pairs", folder / "pairs.csv", "--json", "-"]
    code, text, err = run(capsys, "whiten", *words)
    assert code == 0, err
    report = json.loads(text)
    assert (report["vectors"], report["pairs"]) == (11, 5)
    assert "11 vectors cannot tell 256 dimensions apart: give more photos" in err
    assert err.count("3.png'") == 1 and "2 photos could not be used" in err
    names = {os.path.basename(entry["path"]) for entry in report["skipped"]}
    assert names == {"3.png", "other.png"}
    for path in photos.iterdir():
        path.write_bytes(b"no photo")
    code, _, err = run(capsys, "whiten", *words)
    assert code == 1 and "not one pair" in err


def test_interrupted_it_ends_cleanly(folder, weights, tmp_path):
    """Ctrl-C in the middle: one sentence, no file, no traceback."""
    program = (
        "import os, signal, sys, threading; import rmacjax.whitening as w; "
        # A shell that runs the tests in the background has this signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "real = w.update_moments; "
        "w.update_moments = lambda *a: (os.kill(os.getpid(), signal.SIGINT), real(*a))[1]; "
        "from rmacjax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out.safetensors"
    words = ["whiten", str(folder), str(out), "--weights", weights]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "Nothing was written" in done.stderr and "Traceback" not in done.stderr
    # Programs that were slow to compile may be kept.
    assert {path.name for path in tmp_path.iterdir()} <= {"compiled"}


# What index makes of it.


def test_index_pools_as_asked_and_the_rest_follows(capsys, folder, weights, tmp_path):
    target = tmp_path / "c"
    options = ["--weights", weights, "--pool", "crow", "--scales", "1", "0.7", "--no-whiten"]
    code, _, err = run(capsys, "index", folder / "0.png", folder / "1.png", target, *options)
    assert code == 0 and "Pooling by" not in err, err
    collection = Collection.open(target)
    assert collection.settings == Settings(pool="crow", scales=(1.0, 0.7), whiten=False)
    assert run(capsys, "add", target, folder / "2_twin.png")[0] == 0
    names = [str(folder / name) for name in ("0.png", "1.png", "2_twin.png")]
    expected = np.asarray(describe(load(weights), names, settings=collection.settings))
    collection = Collection.open(target)
    order = [collection.paths.index(name) for name in names]
    stored = np.asarray(collection.gallery().descriptors, np.float32)[order]
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    query = str(folder / "2.png")
    code, text, _ = run(capsys, "search", target, query, "--rerank", 0, "--json", "-")
    hits = json.loads(text)["hits"]
    scores = (
        expected @ np.asarray(describe(load(weights), [query], settings=collection.settings))[0]
    )
    assert [hit["path"] for hit in hits] == [names[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-3)
    for extra, sentence in (
        (["--pool", "rmac"], "--pool crow"),
        (["--scales", "1"], "--scales 1.0 0.7"),
        (["--levels", "2"], "--levels 3"),
    ):
        code, _, err = run(capsys, "index", folder / "3.png", target, *extra)
        assert code == 2 and sentence in err and "described alike" in err
    assert run(capsys, "index", folder / "3.png", target, "--pool", "crow", "--no-whiten")[0] == 0


def test_index_takes_the_pool_that_weights_were_made_for_and_says_so(
    capsys, folder, weights, tmp_path
):
    code, _, err = run(capsys, "index", folder / "0.png", tmp_path / "c", "--weights", weights)
    assert code == 0 and "Pooling by gem" in err and "--pool" in err
    assert Collection.open(tmp_path / "c").settings == Settings(pool="gem")
    # Boxes are described by the network's own exponent too: a photo's whole box is the photo.
    hit = Collection.open(tmp_path / "c").search(folder / "0.png", expand=0).hits[0]
    assert hit.box_px is not None and hit.score > 0.8


def test_another_pool_than_the_whitening_was_learned_for_is_told(capsys, folder, weights, tmp_path):
    mine = tmp_path / "mine.safetensors"
    words = [folder, mine, "--weights", weights, "--pool", "rgem", "--levels", 2]
    assert run(capsys, "whiten", *words, "--dimensions", 8)[0] == 0
    settings = chosen_settings(str(mine))
    assert (settings.pool, settings.levels) == ("rgem", 2)
    for number, (options, told) in enumerate(
        ((["--pool", "spoc"], True), ([], False), (["--pool", "spoc", "--no-whiten"], False))
    ):
        words = [folder / "0.png", tmp_path / f"c{number}", "--weights", mine, *options]
        code, _, err = run(capsys, "index", *words)
        assert code == 0
        assert ("was learned on vectors of rgem, not of spoc" in err) == told


def keep(weights, path, *, settings, dtype="float32") -> str:
    return str(
        save(path, load(weights), origin="x", licence="none needed", settings=settings, dtype=dtype)
    )


def test_settings_stored_with_weights_are_taken_and_told(capsys, weights, tmp_path):
    stored = {"pool": "rgem", "levels": 2, "with_global": True, "long_side": 512}
    mine = keep(weights, tmp_path / "regions.safetensors", settings=stored)
    taken = Settings(pool="rgem", levels=2, with_global=True)
    capsys.readouterr()
    assert chosen_settings(mine) == chosen_settings(mine, pool="rgem") == taken
    first, side, again, _ = capsys.readouterr().err.strip().splitlines()
    assert "Pooling by rgem, 2 levels and the whole photo as one more region" in first
    assert "With 2 levels and the whole photo" in again and "512 pixels" in side
    assert chosen_settings(mine, levels=4, long_side=512) == replace(taken, levels=4, long_side=512)
    assert "512" not in (told := capsys.readouterr().err) and "levels" not in told
    assert chosen_settings(mine, pool="rmac") == Settings()
    whole = keep(
        weights, tmp_path / "whole.safetensors", settings={"pool": "gem", "scales": [1.0, 0.5]}
    )
    capsys.readouterr()
    assert chosen_settings(whole).scales == (1.0, 0.5)
    assert "Pooling by gem and scales 1 0.5" in capsys.readouterr().err
    assert chosen_settings(whole, scales=(1.0,)).scales == (1.0,)
    assert chosen_settings(whole, pool="mac").scales == (1.0,)


def test_whiten_keeps_half_precision_and_whitens_regions_at_one_scale(
    capsys, folder, weights, tmp_path
):
    stored = {"pool": "rgem", "scales": [1.0, 0.5]}
    half = keep(weights, tmp_path / "half.safetensors", settings=stored, dtype="float16")
    out = tmp_path / "out.safetensors"
    words = [folder, out, "--weights", half, "--dimensions", 4]
    code, _, err = run(capsys, "whiten", *words)
    assert code == 0 and "at scale 1 alone" in err, err
    assert describe_file(out)["dtype"] == "float16"
    assert "scales" not in stored_settings(str(out))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--scales", "1", "1.4"], "never enlarged"),
        (["--scales", "big"], "scales are numbers"),
        (["--pool", "mac", "--levels", "2"], "which mac has not"),
        (["--levels", "0"], "levels must be at least 1"),
        (["--levels", "21"], "levels must be at most 20"),
        (["--pool", "max"], "spoc_centre"),
    ],
)
def test_index_refuses_what_cannot_be(capsys, folder, tmp_path, options, sentence):
    code, _, err = run(capsys, "index", folder / "0.png", tmp_path / "c", *options)
    assert code == 2 and sentence in err and not (tmp_path / "c").exists()
