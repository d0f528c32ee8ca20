"""The demo: photos in, a page and honest figures out; a second run reuses the first."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rmacjax import demo
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.cli import main
from rmacjax.collection import AddReport, Hit, SearchResult
from rmacjax.datasets import GroundTruth, Query, read_ground_truth
from rmacjax.demo import DemoReport, Found, in_sentences, run_demo
from rmacjax.descriptors import Params
from rmacjax.preprocessing import read_size
from rmacjax.scenes import render_collection
from rmacjax.weights import save

SIZE = (96, 128)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    """The real renderer, asked for less."""
    less = partial(render_collection, objects=2, views=3, distractors=2, size=SIZE)
    monkeypatch.setattr(demo, "render_collection", less)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    network = Network("alexnet", last_pool=False, convention=TORCHVISION_CONVENTION)
    params = Params(network, initialize("alexnet", 0), None)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    return str(save(path, params, origin="random numbers", licence="none needed", dtype="float16"))


def test_generated_photos_are_searched_and_drawn(tmp_path, weights):
    out = tmp_path / "out"
    steps: list[str] = []
    report = run_demo(out=str(out), weights=weights, step=steps.append)
    assert (report.photos, report.queries) == (8, 2)
    assert [each.wanted for each in report.found] == [2, 2]
    assert sum(len(each.overlaps) for each in report.found) == 4
    page = Path(report.page).read_text("utf-8")
    assert page.count('class="ranking"') == 2 and page.count('class="card') == 2 * 8
    assert "object 2" in page and "where it is" in page
    height, width = read_size(report.sheet)
    assert width > height > 300
    names = {"photos", "collection", "ground_truth.json", "index.html", "contact-sheet.png"}
    assert {path.name for path in out.iterdir()} == names
    truth = read_ground_truth(out / "ground_truth.json")
    rendered = demo.render_collection()
    for query, (own, box) in zip(truth.queries, rendered.queries, strict=True):
        assert query.box_px == box and list(query.junk) == [own]
        assert all(rendered.labels[i] == rendered.labels[own] for i in query.positives)
        assert query.boxes == {int(i): rendered.boxes[i] for i in query.positives}
    assert any("rendering" in step for step in steps)

    # Once more: nothing is rendered or described again, other files are left alone.
    (out / "mine.txt").write_text("keep me")
    steps.clear()
    again = run_demo(out=str(out), weights=weights, step=steps.append)
    assert (again.added.added, again.added.replaced, again.added.unchanged) == (0, 0, 8)
    assert not any("rendering" in step for step in steps)
    assert [each.found for each in again.found] == [each.found for each in report.found]
    assert (out / "mine.txt").read_text() == "keep me"

    # With other settings the demo's own collection is begun anew.
    other = run_demo(out=str(out), weights=weights, long_side=96)
    assert other.added.added == 8

    # Its folder is a ground truth for `rmacjax evaluate`.
    assert main(["evaluate", str(out), "--weights", weights, "--rerank", "0"]) == 0


def test_own_folder_without_known_answers(tmp_path, weights, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    rendered = demo.render_collection()
    for name, pixels in zip(rendered.names[:4], rendered.images, strict=False):
        (photos / name).write_bytes(demo.encode_jpeg(pixels))
    (photos / "00 bad.jpg").write_bytes(b"no photo")
    out = tmp_path / "out"
    report = run_demo(str(photos), str(out), weights=weights)
    assert report.photos == 4 and report.found == [] and 1 <= report.queries <= demo.OWN_QUERIES
    assert [path for path, _ in report.added.skipped] == [str(photos / "00 bad.jpg")]
    page = Path(report.page).read_text("utf-8")
    assert "✗" not in page and "26 19 102 77" in page, "the middle of the photo is the query"

    # Through the command line, with a query of one's own. A photo that is gone is not searched.
    (photos / rendered.names[3]).unlink()
    query = str(photos / rendered.names[0])
    words = ["demo", str(photos), "--out", str(out), "--weights", weights]
    capsys.readouterr()
    assert main([*words, "--query", query, "--box", "10", "5", "60", "70", "--json", "-"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["photos"], told["queries"], told["found"]) == (3, 1, None)
    assert "10 5 60 70" in Path(told["page"]).read_text("utf-8")
    assert "1 photo could not be used" in captured.err

    # What the demo wrote is not taken for photos, even where it lies among them.
    inside = photos / "rmacjax-demo"
    assert run_demo(str(photos), str(inside), weights=weights).photos == 3
    assert run_demo(str(photos), str(inside), weights=weights).photos == 3


def test_what_is_no_collection_is_left_alone(tmp_path, weights):
    target = tmp_path / "collection"
    target.mkdir()
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(OSError):
        run_demo(out=str(tmp_path), weights=weights)
    assert (target / "mine.txt").read_text() == "keep me"


def test_folder_with_known_answers(tmp_path, weights, capsys):
    run_demo(out=str(tmp_path / "first"), weights=weights)
    report = run_demo(str(tmp_path / "first"), str(tmp_path / "second"), weights=weights)
    assert [each.wanted for each in report.found] == [2, 2]
    assert not (tmp_path / "second" / "photos").exists()


def test_the_museum_has_known_answers(shared, tmp_path):
    truth, known = demo._questions(
        str(shared / "data" / "museum"), tmp_path, None, None, lambda words: None
    )
    assert known and len(truth.queries) == demo.QUERIES and len(truth.paths) == 287


def test_refusals(tmp_path, weights, capsys):
    for options, sentence in (
        ({"box_px": (0, 0, 5, 5)}, "belongs to a query"),
        ({"query": "a.jpg"}, "needs a folder"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_demo(out=str(tmp_path / "out"), weights=weights, **options)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for folder, out, sentence in (
        (None, "file", "is a file"),
        ("empty", "out", "no photo"),
        ("nowhere", "out", "no photo"),
    ):
        source = None if folder is None else str(tmp_path / folder)
        with pytest.raises(OSError, match=sentence):
            run_demo(source, str(tmp_path / out), weights=weights)
    capsys.readouterr()
    assert main(["demo", str(tmp_path / "empty"), "--out", str(tmp_path / "file")]) == 1
    assert "is a file" in capsys.readouterr().err


def test_figures_by_hand():
    """Six photos; 1, 2, 3 show the object, 4 is junk, 0 is the query's own photo."""
    paths = [f"/{i}.jpg" for i in range(6)]
    truth = GroundTruth("six", paths, [])
    whole, half = (0, 0, 10, 10), (0, 0, 10, 5)
    positives, junk = np.asarray([1, 2, 3]), np.asarray([4, 0])
    query = Query(paths[0], whole, positives, junk, {1: whole, 2: whole}, "six")

    def result(*order):
        hits = []
        for i in order:
            box = half if i == 2 else whole
            hits.append(Hit(paths[i], 0.5, box, [box], 0.5, 0.5, 10, 10))
        return SearchResult(hits, paths[0], whole, (10, 10), len(paths), {})

    judged = demo._judge(result(0, 4, 1, 2, 5, 3), query, truth)
    assert judged == Found(3, 2, 2, [1.0, 0.5])
    assert demo._judge(result(5, 1, 0, 2, 4, 3), query, truth) == Found(3, 2, 0, [1.0, 0.5])
    assert demo._judge(result(3, 2, 1, 0, 4, 5), query, truth) == Found(3, 3, 3, [0.5, 1.0])

    nothing = AddReport(0, 0, 0, [], 0.0)
    report = DemoReport("p", "s", 6, 1, [judged], nothing, 0.1)
    words = " ".join(in_sentences(report))
    assert "Of the 3 other photos" in words and "2 are in the first places" in words
    assert "by 0.75 on average (1 of 2 by more than one half)" in words
    assert "1 queries" not in " ".join(in_sentences(report._replace(found=[])))
