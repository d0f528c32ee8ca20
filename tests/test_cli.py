"""The command line: what it writes where, with which exit code, and what it says."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmacjax import cli
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.cli import main
from rmacjax.descriptors import Params
from rmacjax.preprocessing import encode_jpeg
from rmacjax.weights import save
from rmacjax.weights.calibration import measure_activation_scale

SIDE = 128


def photo(seed: int) -> np.ndarray:
    """Coarse random blocks: different photos for different seeds, alike after JPEG."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.kron(blocks, np.ones((SIDE // 8, SIDE // 8, 1), np.uint8))


def fill(folder: Path, seeds) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{seed:02d}.jpg" for seed in seeds]
    for path, seed in zip(paths, seeds, strict=True):
        if not path.exists():
            path.write_bytes(encode_jpeg(photo(seed)))
    return paths


pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A small random network in a file, as loud as four bits ask for."""
    numbers = initialize("alexnet", 0)
    network = Network("alexnet", last_pool=False, convention=TORCHVISION_CONVENTION)
    scale = measure_activation_scale(network, numbers)
    params = Params(replace(network, activation_scale=scale), numbers, None)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    return str(save(path, params, origin="random numbers", licence="none needed", dtype="float16"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights) -> tuple[str, list[Path]]:
    """A collection of five photos, not to be changed, and the photos."""
    root = tmp_path_factory.mktemp("made")
    paths = fill(root / "photos", range(5))
    target = str(root / "collection")
    assert main(["index", str(root / "photos"), target, "--weights", weights]) == 0
    return target, paths


def run(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(text: str) -> dict:
    """The one JSON document that stdout must be."""
    return json.loads(text)


# Help and what is not a command.


def test_help_lists_every_command_and_imports_no_jax():
    program = (
        "import sys; from rmacjax.cli import main; "
        "[main(w.split() + ['--help']) for w in sys.argv[1].split(',')]; main(['--help']); "
        "heavy = {'jax', 'numpy', 'lance', 'flax', 'PIL', 'rich.progress'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    names = ",".join(cli.MODULES)
    done = subprocess.run([sys.executable, "-c", program, names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.SUMMARIES)


@pytest.mark.parametrize("name", cli.MODULES)
def test_help_teaches_by_example(capsys, name):
    code, out, _ = run(capsys, *name.split(), "--help")
    assert code == 0
    assert out.count(f"  rmacjax {name}") >= 2, "examples"
    assert "--json FILE" in out
    (usage, summary) = out.split("\n\n")[:2]
    assert usage.startswith(f"usage: rmacjax {name}")
    listed = cli.WEIGHTS_SUMMARIES | cli.SUMMARIES
    assert summary.split("\n")[0].startswith(listed[name.split()[-1]].split(".")[0])


@pytest.mark.parametrize("name", cli.MODULES)
def test_examples_parse(capsys, name):
    """Every example of every help page is a call that the command line takes."""
    import tyro

    function = cli.function_of(name)
    examples = re.findall(r"^\s+rmacjax (.+)$", function.__doc__ or "", re.MULTILINE)
    for example in examples:
        words = example.split()
        called = " ".join(words[:2]) if words[0] == "weights" else words[0]
        tyro.cli(
            _without_body(cli.function_of(called)),
            args=words[len(called.split()) :],
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def _without_body(function):
    import functools

    @functools.wraps(function)
    def nothing(*args, **options):
        return None

    return nothing


def test_nothing_shows_the_overview(capsys):
    assert run(capsys)[:2] == run(capsys, "--help")[:2]
    assert "convert" in run(capsys, "weights")[1]
    assert run(capsys, "--version")[1].startswith("rmacjax ")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["serch", "c", "q"], "Did you mean: rmacjax search"),
        (["weights", "fetsh"], "Did you mean: rmacjax weights fetch"),
        (["xyzzy"], "Commands: demo, index"),
    ],
)
def test_unknown_commands_get_advice(capsys, words, advice):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert advice in err


def test_unknown_options_get_a_suggestion(capsys):
    code, out, err = run(capsys, "search", "c", "q", "--rerankk", "3")
    assert code == 2 and "--rerank" in err + out


def test_command_line_defaults_are_the_functions_defaults():
    import inspect

    from rmacjax import demo, pictures
    from rmacjax.cli import effects
    from rmacjax.collection import Collection
    from rmacjax.descriptors import Settings
    from rmacjax.whitening import fit_pca_whitening

    def default(function, name):
        return inspect.signature(function).parameters[name].default

    both = ["top", "rerank", "instances", "fusion", "first_stage"]
    assert default(Collection.search, "expand") == effects.PUBLISHED_EXPANSION
    for name in (*both, "expand_alpha", "augment", "min_score"):
        assert default(cli.function_of("search"), name) == default(Collection.search, name)
    for name in ("rerank", "fusion", "first_stage"):
        assert default(cli.function_of("evaluate"), name) == default(Collection.search, name)
    for name in ("rerank", "expand", "fusion", "first_stage", "expand_alpha", "augment"):
        assert default(pictures.settings_in_words, name) == default(Collection.search, name)
    assert default(cli.function_of("whiten"), "shrinkage") == default(
        fit_pca_whitening, "shrinkage"
    )
    assert default(cli.function_of("whiten"), "long_side") == Settings().long_side
    for name in ("out", "weights", "long_side"):
        assert default(cli.function_of("demo"), name) == default(demo.run_demo, name)
    assert default(cli.function_of("demo"), "long_side") == Settings().long_side


# Into and out of a collection.


def test_index_goes_on_where_it_was(capsys, tmp_path, weights):
    fill(tmp_path / "photos", range(3))
    target = tmp_path / "c"
    code, out, _ = run(capsys, "index", tmp_path / "photos", target, "--weights", weights)
    assert code == 0 and "3 photos added" in out and f"3 photos in {str(target)!r}" in out
    fill(tmp_path / "photos", range(4))
    report = document(run(capsys, "index", tmp_path / "photos", target, "--json", "-")[1])
    assert (report["added"], report["unchanged"], report["replaced"], report["photos"]) == (
        1,
        3,
        0,
        4,
    )
    assert report["skipped"] == []


def test_index_lists_what_it_could_not_use(capsys, tmp_path, weights):
    fill(tmp_path, [1])
    names = ["bad [red].jpg", "line\nbreak.jpg", "ansi\x1b[31m.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"no photo")
    code, out, err = run(capsys, "index", tmp_path, tmp_path / "c", "--weights", weights)
    assert code == 0 and "1 photo added, 3 skipped" in out
    assert "3 photos could not be used" in err and "bad [red].jpg" in err
    assert "line\\nbreak.jpg" in err and "\x1b" not in err + out
    report = document(run(capsys, "add", tmp_path / "c", tmp_path, "--json", "-")[1])
    assert {Path(each["path"]).name for each in report["skipped"]} == set(names)
    assert all(each["reason"] for each in report["skipped"])


@pytest.mark.parametrize("missing", [False, True])
def test_index_without_any_photo_fails_and_leaves_nothing(capsys, tmp_path, weights, missing):
    folder = tmp_path / "folder"
    if not missing:
        folder.mkdir()
        (folder / "notes.txt").write_text("no photo")
    code, out, err = run(capsys, "index", folder, tmp_path / "c", "--weights", weights)
    assert (code, out) == (1, "")
    assert "no photo that could be used" in err and "'" in err
    assert not (tmp_path / "c").exists()


def test_index_of_broken_photos_only_fails(capsys, tmp_path, weights):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    code, _, err = run(capsys, "index", tmp_path, tmp_path / "c", "--weights", weights)
    assert code == 1 and "1 photo could not be used" in err and "bad.jpg" in err


def test_index_refuses_other_settings_for_the_same_collection(capsys, made, weights):
    target, paths = made
    code, _, err = run(capsys, "index", paths[0], target, "--long-side", 99)
    assert code == 2 and "--long-side 1024" in err
    code, _, err = run(capsys, "index", paths[0], target, "--weights", weights, "--last-pool")
    assert code == 2 and "other weights" in err
    code, _, err = run(capsys, "index", paths[0], target, "--last-pool", "--no-last-pool")
    assert code == 2 and "exclude each other" in err


def test_add_and_remove(capsys, tmp_path, weights):
    paths = fill(tmp_path / "photos", range(2))
    target = tmp_path / "c"
    run(capsys, "index", paths[0], target, "--weights", weights)
    assert document(run(capsys, "add", target, paths[1], "--json")[1])["photos"] == 2
    code, out, err = run(capsys, "remove", target, paths[0], tmp_path / "other.jpg")
    assert code == 0 and "1 photo removed, 1 photo left" in out
    assert "other.jpg" in err and "not in the collection" in err
    code, _, err = run(capsys, "remove", target, tmp_path / "other.jpg")
    assert code == 1 and "nothing was removed" in err
    paths[1].unlink()
    report = document(run(capsys, "remove", target, tmp_path / "photos", "--json", "-")[1])
    assert report == {"removed": 1, "photos": 0, "not_there": []}
    code, _, err = run(capsys, "search", target, paths[0])
    assert code == 1 and "is empty" in err


@pytest.mark.parametrize(
    "words", [["add", "X", "a.jpg"], ["remove", "X", "a.jpg"], ["search", "X", "a.jpg"]]
)
def test_commands_need_a_collection_that_is_there(capsys, tmp_path, words):
    words = [str(tmp_path / "nowhere") if word == "X" else word for word in words]
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert "there is no collection at" in err and "rmacjax index" in err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "words", [["index"], ["index", "a"], ["add", "c"], ["remove", "c"], ["search"]]
)
def test_too_few_words(capsys, words):
    code, out, _ = run(capsys, *words)
    assert (code, out) == (2, "")


# Search.


def test_search_prints_one_document(capsys, made):
    target, paths = made
    box = (16, 0, 112, 96)
    code, out, _ = run(capsys, "search", target, paths[2], "--box", *box, "--top", 3, "--json", "-")
    found = document(out)
    assert code == 0 and len(found["hits"]) == 3
    assert found["query"]["box"] == dict(zip(("left", "top", "right", "bottom"), box, strict=True))
    assert found["query"]["box_px"] == [0, 16, 96, 112], "top, left, bottom, right"
    first = found["hits"][0]
    assert first["rank"] == 1 and first["path"] in [str(path) for path in paths]
    top, left, bottom, right = first["box_px"]
    assert first["box"] == {"left": left, "top": top, "right": right, "bottom": bottom}
    assert 0 <= top < bottom <= SIDE and 0 <= left < right <= SIDE
    assert [hit["score"] for hit in found["hits"]] == sorted(
        (hit["score"] for hit in found["hits"]), reverse=True
    )
    assert found["photos"] == 5 and found["seconds"]["describe"] > 0


def test_search_equals_the_library(capsys, made):
    from rmacjax.collection import Collection

    target, paths = made
    found = document(run(capsys, "search", target, paths[1], "--json", "-")[1])
    hits = Collection.open(target).search(str(paths[1]))
    assert [hit["path"] for hit in found["hits"]] == [hit.path for hit in hits]
    assert [hit["box_px"] for hit in found["hits"]] == [list(hit.box_px or ()) for hit in hits]
    np.testing.assert_allclose(
        [hit["score"] for hit in found["hits"]], [hit.score for hit in hits], rtol=1e-6
    )


def test_search_prints_a_table(capsys, made):
    target, paths = made
    code, out, err = run(capsys, "search", target, paths[0], "--top", 2)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and lines[0] == ["rank", "score", "left top right bottom", "photo"]
    assert [line[0] for line in lines[1:]] == ["1", "2"]
    assert re.fullmatch(r"\d+ \d+ \d+ \d+", lines[1][2])
    assert "5 photos searched in" in err
    _, without, said = run(capsys, "search", target, paths[0], "--top", 1, "--rerank", 0)
    assert "Nothing was expanded" not in said  # nobody asked for it
    quiet = run(capsys, "search", target, paths[0], "--rerank", 0, "--expand", 0)[2]
    assert "expanded" not in quiet + err
    assert without.splitlines()[1].split("\t") == ["1", "1.000", "-", str(paths[0])]


def test_search_writes_page_and_picture(capsys, made, tmp_path):
    from rmacjax.preprocessing import read_size

    target, paths = made
    page, sheet, data = tmp_path / "p.html", tmp_path / "p.png", tmp_path / "p.json"
    words = ["search", target, paths[0], "--box", 0, 0, 64, 64, "--instances", 2]
    words += ["--rerank", "all", "--fusion", 0.25]
    code, _, err = run(capsys, *words, "--html", page, "--png", sheet, "--json", data)
    assert code == 0 and err.count("Wrote ") == 3
    text = page.read_text("utf-8")
    assert text.count('class="card') == 5 and "Photos searched" in text and "0 0 64 64" in text
    assert "every photo, by 75% box, 25% whole photo" in text
    assert read_size(sheet)[1] > 500
    assert len(json.loads(data.read_text())["hits"][0]["boxes_px"]) >= 1


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--box", "0", "0", "500", "500"], 2, "128"),
        (["--box", "50", "0", "20", "60"], 2, "LEFT TOP RIGHT BOTTOM"),
        (["--box", "1", "2", "3"], 2, "4"),
        (["--box", "a", "2", "3", "4"], 2, "whole number"),
        (["--top", "0"], 2, "top"),
        (["--rerank", "-1"], 2, "rerank"),
        (["--rerank", "some"], 2, "rerank"),
        (["--expand-alpha", "-1"], 2, "exponent"),
        (["--augment", "-1"], 2, "augment"),
        (["--augment", "2", "--first-stage", "regions"], 2, "another first stage"),
        (["--expand-alpha", "3", "--expand", "0"], 2, "with --expand 0 none do"),
        (["--expand-alpha", "3", "--rerank", "0"], 2, "with --rerank 0 none do"),
        (["--fusion", "0.5", "--rerank", "0"], 2, "--rerank 0 looks for none"),
        (["--instances", "2", "--rerank", "0"], 2, "--rerank 0 looks for none"),
        (["--augment", "2", "--rerank", "all"], 2, "every one is"),
        (["--first-stage", "diffusion", "--rerank", "all"], 2, "every one is"),
        (["--min-score", "high"], 2, "min-score"),
        (["--min-score", "auto"], 2, "evaluate --save-thresholds"),
        (["--fusion", "1.5"], 2, "0..1"),
        (["--html", "no/such/folder/page.html"], 1, "no/such/folder"),
        (["--json", "."], 1, "is a folder"),
    ],
)
def test_search_refuses(capsys, made, options, code, sentence):
    target, paths = made
    found, out, err = run(capsys, "search", target, paths[0], *options)
    assert (found, out) == (code, "")
    assert sentence in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (["--augment", 2], "--augment 2 changed nothing in the order: all 5 photos"),
        (["--first-stage", "diffusion"], "diffusion changed nothing in the order: all 5 photos"),
        (["--expand-alpha", 0], "--expand-alpha 0 counts all finds alike"),
        (["--augment", 2, "--rerank", 2], None),
        (["--augment", 2, "--fusion", 0.5], None),
        (["--first-stage", "diffusion", "--rerank", 0, "--expand", 0], None),
    ],
)
def test_options_that_change_nothing_are_told_and_change_nothing(capsys, made, options, idle):
    target, paths = made
    words = ["search", target, paths[0]]
    code, _, err = run(capsys, *words, *options)
    told = "changed nothing" in err or "all finds alike" in err
    assert code == 0 and told == (idle is not None)
    if idle is not None:
        assert idle in err
        plain, other = (
            [(hit["path"], hit["score"]) for hit in document(run(capsys, *all_)[1])["hits"]]
            for all_ in ([*words, "--json", "-"], [*words, *options, "--json", "-"])
        )
        assert plain == other


def test_expansion_is_missed_only_where_it_was_asked_for(capsys, made):
    target, paths = made
    words = ["search", target, paths[0], "--rerank", 0]
    for options, told in (([], False), (["--expand", 0], False), (["--expand", 5], True)):
        code, _, err = run(capsys, *words, *options)
        assert code == 0 and ("Nothing was expanded" in err) == told


def test_not_found_is_an_answer(capsys, made, tmp_path):
    target, paths = made
    words = ["search", target, paths[0], "--rerank", 0, "--expand", 0]
    code, out, _ = run(capsys, *words, "--min-score", 1.5)
    assert code == 0
    assert out == "Not found: the best of 5 photos scores 1.000, and at least 1.500 is asked for\n"
    page, sheet = tmp_path / "p.html", tmp_path / "p.png"
    code, out, _ = run(
        capsys, *words, "--min-score", 1.5, "--json", "-", "--html", page, "--png", sheet
    )
    found = document(out)
    assert code == 0 and found["hits"] == [] and sheet.exists()
    assert "at least 1.500 is asked for." in page.read_text("utf-8")
    assert (found["min_score"], found["threshold"]) == (1.5, None)
    assert found["best_score"] == pytest.approx(1, abs=1e-3)
    some = document(run(capsys, *words, "--min-score", 0.999, "--json", "-")[1])
    assert [hit["path"] for hit in some["hits"]] == [str(paths[0])]
    assert some["hits"][0]["found"] is None and some["scored_by"] == "filter"


@pytest.fixture(scope="module")
def judged(tmp_path_factory, weights) -> tuple[str, list[Path]]:
    """A collection whose weights have learned where to draw the line between filter scores."""
    from rmacjax.weights import load

    root = tmp_path_factory.mktemp("judged")
    params = load(weights)
    network = replace(params.network, thresholds=(("filter", 0.9995), ("rerank", 2.0)))
    file = save(root / "w.safetensors", params._replace(network=network), origin="a", licence="b")
    paths = fill(root / "photos", range(4))
    assert main(["index", str(root / "photos"), str(root / "c"), "--weights", str(file)]) == 0
    return str(root / "c"), paths


def test_found_is_told_by_scores_before_expansion(capsys, judged, weights, tmp_path):
    from rmacjax.weights import load

    _, paths = judged
    target = str(tmp_path / "c")
    params = load(weights)
    network = replace(params.network, thresholds=(("rerank", 0.9),))
    file = save(tmp_path / "w.safetensors", params._replace(network=network), origin="", licence="")
    assert main(["index", *map(str, paths), target, "--weights", str(file)]) == 0
    code, out, err = run(capsys, "search", target, paths[1])
    assert code == 0 and out.splitlines()[1].split("\t")[3] == "yes"
    assert "scored at least 0.900 before the query was expanded" in err


def test_what_was_learned_marks_every_hit(capsys, judged):
    target, paths = judged
    words = ["search", target, paths[1], "--rerank", 0, "--expand", 0]
    code, out, _ = run(capsys, *words)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and lines[0][3:] == ["found", "photo"]
    assert [line[3] for line in lines[1:]] == ["yes", "no", "no", "no"]
    found = document(run(capsys, *words, "--json", "-")[1])
    assert [hit["found"] for hit in found["hits"]] == [True, False, False, False]
    assert found["threshold"] == 0.9995 and found["min_score"] is None
    only = document(run(capsys, *words, "--min-score", "auto", "--json", "-")[1])
    assert only["hits"] == found["hits"][:1] and only["min_score"] == 0.9995
    # What is re-ranked has a line of its own, for scores before expansion, which nothing reaches;
    # what is not re-ranked has the filter's.
    code, out, err = run(capsys, "search", target, paths[1], "--rerank", 2)
    assert code == 0 and "Not found: the best of 4 photos" in err
    assert [line.split("\t")[3] for line in out.splitlines()[1:]] == ["no"] * 4
    code, out, _ = run(capsys, "search", target, paths[1], "--min-score", "auto")
    assert (code, out.startswith("Not found: ")) == (0, True)
    other = document(run(capsys, "search", target, paths[1], "--expand", 3, "--json", "-")[1])
    assert {hit["found"] for hit in other["hits"]} == {False}
    assert (other["scored_by"], other["judged_by"]) == ("expand expand=3", "rerank")
    assert f"scores {other['best_judged']:.3f}, and at least 2.000 was learned" in out
    assert "before the query was expanded" not in run(capsys, *words)[2]
    # Scores of other kinds have none.
    words = ["search", target, paths[1], "--fusion", 0.5]
    other = document(run(capsys, *words, "--json", "-")[1])
    assert {hit["found"] for hit in other["hits"]} == {None}
    code, _, err = run(capsys, *words, "--min-score", "auto")
    assert code == 2 and 'kind "rerank fusion=0.5" (only for "filter", "rerank")' in err


@pytest.mark.parametrize(
    "options",
    [["--first-stage", "diffusion"], ["--augment", 2], ["--expand-alpha", 3, "--expand", 4]],
)
def test_search_with_friends(capsys, made, options):
    target, paths = made
    found = document(run(capsys, "search", target, paths[3], *options, "--json", "-")[1])
    assert len(found["hits"]) == 5 and found["hits"][0]["path"] == str(paths[3])


@pytest.fixture(scope="module")
def made_with_regions(tmp_path_factory, made, weights) -> str:
    """The same photos, with their regions' vectors."""
    target = str(tmp_path_factory.mktemp("regions") / "collection")
    folder = made[1][0].parent
    assert main(["index", str(folder), target, "--weights", weights, "--regions"]) == 0
    return target


def test_search_by_regions(capsys, made, made_with_regions, tmp_path):
    from rmacjax.collection import Collection

    paths = made[1]
    words = ["search", made_with_regions, paths[3], "--box", 32, 32, 96, 96]
    options = ["--first-stage", "regions", "--json", "-"]
    code, out, _ = run(capsys, *words, *options, "--rerank", 0)
    hits = document(out)["hits"]
    library = Collection.open(made_with_regions).search(
        str(paths[3]), (32, 32, 96, 96), rerank=0, first_stage="regions"
    )
    assert code == 0 and [hit["path"] for hit in hits] == [hit.path for hit in library]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in library])
    assert all(hit["score"] == hit["filter_score"] for hit in hits)
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, *words, *options, "--html", page)
    again = {hit["path"]: hit["filter_score"] for hit in document(out)["hits"]}
    assert code == 0 and again == {hit["path"]: hit["score"] for hit in hits}
    assert "by regions, part by part" in page.read_text("utf-8")
    by_photo = document(run(capsys, *words, "--rerank", 0, "--json", "-")[1])["hits"]
    assert [hit["score"] for hit in by_photo] != [hit["score"] for hit in hits]


def test_search_by_regions_needs_a_collection_that_has_them(capsys, made):
    target, paths = made
    code, out, err = run(capsys, "search", target, paths[0], "--first-stage", "regions")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "--regions" in err and "index the photos again" in err
    code, out, err = run(capsys, "search", target, paths[0], "--first-stage", "region")
    assert (code, out) == (2, "") and "descriptor" in err


def test_index_goes_on_with_or_without_regions_as_it_began(
    capsys, made, made_with_regions, tmp_path
):
    target, paths = made
    code, out, err = run(capsys, "index", paths[0], target, "--regions")
    assert (code, out) == (2, "") and "was made without --regions" in err
    more = fill(tmp_path, [30])
    for words in (["index", more[0], made_with_regions], ["add", made_with_regions, more[0]]):
        assert document(run(capsys, *words, "--json", "-")[1])["photos"] == 6
    words = ["search", made_with_regions, more[0], "--first-stage", "regions", "--json", "-"]
    found = document(run(capsys, *words)[1])["hits"]
    assert len(found) == 6 and str(more[0]) in [hit["path"] for hit in found]
    code, _, _ = run(capsys, "remove", made_with_regions, more[0])
    assert code == 0 and len(document(run(capsys, *words)[1])["hits"]) == 5


def test_search_for_a_missing_or_broken_photo(capsys, made, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    for name in ("bad.jpg", "missing.jpg"):
        code, out, err = run(capsys, "search", made[0], tmp_path / name)
        assert (code, out) == (1, "") and name in err


# Measuring, whitening, weights.


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Path:
    """Five photos; two queries whose answers, and one box, are known."""
    root = tmp_path_factory.mktemp("known")
    fill(root, range(5))
    truth = {
        "name": "blocks",
        "images": [f"{i:02d}.jpg" for i in range(5)],
        "queries": [
            {
                "image": f"{i:02d}.jpg",
                "box": [0, 0, 128, 128],
                "positives": [f"{i:02d}.jpg"],
                "boxes": {f"{j:02d}.jpg": [0, 0, 128, 128] for j in (i, i + 1)},
            }
            for i in (1, 3)
        ],
    }
    (root / "ground_truth.json").write_text(json.dumps(truth))
    return root


def test_evaluate_scores_each_stage(capsys, known, weights, tmp_path):
    more = tmp_path / "more"
    fill(more, [20, 21])
    options = ["--weights", weights, "--distractors", more, "--markdown", tmp_path / "t.md"]
    code, out, err = run(capsys, "evaluate", known, *options, "--json", "-")
    scores = document(out)
    assert code == 0, err
    assert [row["search"] for row in scores["rows"]] == ["filter", "+ AML", "+ AML + QE"]
    assert scores["photos"] == 7 and scores["queries"] == 2 and scores["distractors"] == 2
    # Each query's own photo is its only positive, and nothing is more alike.
    assert scores["rows"][0]["map"] == scores["rows"][1]["map"] == 1.0
    assert scores["rows"][0]["overlap"] is None and 0 < scores["rows"][1]["overlap"] <= 1
    assert scores["rows"][1]["true_boxes"] == 2  # those in the other photos
    assert (tmp_path / "t.md").read_text().count("\n|") >= 4
    few = document(run(capsys, "evaluate", known, *options[:2], "--rerank", 0, "--json", "-")[1])
    assert [row["search"] for row in few["rows"]] == ["filter"]
    table = run(capsys, "evaluate", known, *options[:2], "--expand", 0)[1].splitlines()
    assert [line.split("\t")[0] for line in table] == ["search", "filter", "+ AML"]


@pytest.mark.parametrize("first_stage", ["descriptor", "regions", "diffusion"])
def test_evaluate_says_which_first_stage_it_used(capsys, known, weights, tmp_path, first_stage):
    words = ["evaluate", known, "--weights", weights, "--first-stage", first_stage, "--rerank", 0]
    markdown = tmp_path / "t.md"
    code, out, err = run(capsys, *words, "--json", "-", "--markdown", markdown)
    scores = document(out)
    assert code == 0, err
    assert scores["first_stage"] == first_stage
    assert [row["search"] for row in scores["rows"]] == ["filter"]
    assert f"first stage {first_stage}" in markdown.read_text()
    assert first_stage in run(capsys, *words)[2]


def test_evaluate_needs_a_ground_truth(capsys, tmp_path, weights):
    code, out, err = run(capsys, "evaluate", tmp_path, "--weights", weights)
    assert (code, out) == (1, "") and "ground truth" in err


def test_whiten_writes_weights_that_load(capsys, tmp_path, weights):
    from rmacjax.weights import load

    fill(tmp_path / "photos", range(8))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    out = tmp_path / "mine.safetensors"
    words = ["whiten", tmp_path / "photos", out, "--weights", weights, "--dimensions", 16]
    code, text, err = run(capsys, *words, "--json", "-")
    report = document(text)
    assert code == 0 and "1 photo could not be used" in err
    # 128 pixels make a map of 7 x 7 cells without the last pool: 14 regions each.
    assert (report["regions"], report["dimensions"], report["channels"]) == (8 * 14, 16, 256)
    params = load(out)
    assert params.whitening is not None and params.whitening.projection.shape == (16, 256)
    shown = document(run(capsys, "weights", "show", out, "--json", "-")[1])
    assert shown["whitening"]["dimensions"] == 16 and "112 regions" in shown["whitening"]["origin"]
    assert shown["origin"] == "random numbers"
    code, _, err = run(
        capsys, "whiten", tmp_path / "photos", out, "--weights", weights, "--dimensions", 999
    )
    assert code == 2 and "256" in err
    # A collection made with that file finds it again by itself.
    assert run(capsys, "index", tmp_path / "photos", tmp_path / "c", "--weights", out)[0] == 0
    assert run(capsys, "search", tmp_path / "c", tmp_path / "photos" / "00.jpg")[0] == 0


def test_whitening_is_what_the_regions_say(tmp_path, weights):
    """The command's whitening makes the covariance of its own regions the identity."""
    from rmacjax import activations, rmac_regions
    from rmacjax.cli.learning import learn
    from rmacjax.descriptors import Settings
    from rmacjax.weights import load

    params = load(weights)
    paths = fill(tmp_path / "photos", range(6))
    learned, moments = learn(params, str(tmp_path / "photos"), Settings(), dimensions=5)
    rows = []
    for a1 in map(np.asarray, activations(params, [str(path) for path in paths])):
        for top, left, bottom, right in rmac_regions(*a1.shape[:2]):
            cells = a1[top:bottom, left:right].reshape(-1, a1.shape[2])
            rows.append([np.sort(cells, axis=0)[-1]])
    vectors = np.concatenate(rows)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert moments.total == len(vectors)
    white = (vectors - np.asarray(learned.mean)) @ np.asarray(learned.projection).T
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(5), atol=2e-3)


def test_weights_convert_and_show(capsys, tmp_path):
    from rmacjax.backbones import weight_shapes

    rng = np.random.default_rng(0)
    places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    arrays = {}
    for name, shape in weight_shapes("alexnet").items():
        layer, kind = name.split(".")
        value = rng.normal(size=shape).astype(np.float32) * 0.05
        theirs = f"features.{places[layer]}.{'weight' if kind == 'kernel' else 'bias'}"
        arrays[theirs] = value.transpose(3, 2, 0, 1) if kind == "kernel" else value
    np.savez(tmp_path / "theirs.npz", **arrays)
    out = tmp_path / "ours.safetensors"
    code, text, err = run(
        capsys, "weights", "convert", tmp_path / "theirs.npz", out, "--half", "--licence", "free"
    )
    assert code == 0 and "architecture" in text and "alexnet" in text and "free" in text
    assert document(run(capsys, "weights", "show", out, "--json", "-")[1])["channels"] == 256
    before = (tmp_path / "theirs.npz").read_bytes()
    again = tmp_path / "other name.npz"
    again.symlink_to("theirs.npz")
    code, _, err = run(capsys, "weights", "convert", tmp_path / "theirs.npz", again)
    assert code == 2 and "is the file to convert" in err
    assert (tmp_path / "theirs.npz").read_bytes() == before
    code, _, err = run(capsys, "weights", "convert", out, tmp_path / "twice.safetensors")
    assert code == 2 and "is one of rmacjax's own files already" in err
    assert not (tmp_path / "twice.safetensors").exists()
    code, _, err = run(capsys, "weights", "show", tmp_path / "no.safetensors")
    assert code == 1 and "no.safetensors" in err
    code, _, err = run(capsys, "weights", "fetch", "resnet")
    assert code == 2 and "squeezenet1_1" in err


# The rim.

COMPILING = """
import os, sys, warnings
from rmacjax.cli.terminal import prepare
warnings.simplefilter("error")
prepare()
import jax, numpy as np
from jax._src import monitoring
seen = []
monitoring.register_event_listener(lambda event, **_: seen.append(event))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # however fast this machine is
x = jax.jit(lambda x: jax.lax.top_k(jax.numpy.sort(x @ x.T, axis=0), 5)[0].sum())(np.eye(64))
print(float(x), sum(event.endswith("/cache_hits") for event in seen))
"""


def compiling(**environment) -> list[str]:
    """What a fresh program says: the result, and how many programs were compiled before."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "HOME")}
    kept |= {"XDG_CACHE_HOME": "", "PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", COMPILING]
    done = subprocess.run(command, capture_output=True, text=True, env=kept)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="cache folders lie elsewhere")
def test_what_was_compiled_is_kept_for_the_next_command(tmp_path):
    home = str(tmp_path)
    answer, hits = compiling(HOME=home)
    kept = list((tmp_path / ".cache" / "rmacjax" / "compiled").iterdir())
    assert kept and hits == "0"
    again, hits = compiling(HOME=home)
    assert again == answer and int(hits) >= 1
    assert compiling(HOME=home, JAX_ENABLE_COMPILATION_CACHE="0") == [answer, "0"]
    for file in kept:  # what can neither be read nor written
        file.unlink()
        file.mkdir()
    assert compiling(HOME=home) == [answer, "0"]
    (tmp_path / "file").write_text("no folder")
    assert compiling(HOME=str(tmp_path / "file")) == [answer, "0"]


def test_interrupted_says_what_is_kept(capsys, made, monkeypatch):
    from rmacjax.collection import Collection

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Collection, "add", stop)
    code, out, err = run(capsys, "add", made[0], made[1][0])
    assert (code, out) == (130, "")
    assert "kept" in err and "same command" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("pressed", "later"), [("tyro", "rmacjax.cli.demo"), ("jaxlib", "jax.numpy")]
)
def test_ctrl_c_waits_for_libraries(tmp_path, pressed, later):
    """Half imported, some crash; a command that began says what it kept."""
    asked = f"""
import signal, sys
from rmacjax import cli

class Finder:
    def find_spec(name, path=None, target=None):
        if name == {pressed!r}:
            signal.raise_signal(signal.SIGINT)
        elif name == {later!r}:
            print("later")

sys.meta_path.insert(0, Finder)
sys.argv = ["rmacjax", "demo", "photos"]
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "later\n"), done.stderr
    assert done.stderr.startswith("Interrupted. Photos") and "Traceback" not in done.stderr


def test_ctrl_c_outside_of_a_command_is_no_traceback(capsys, monkeypatch):
    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_complete", stop)
    assert run(capsys, "--tyro-print-completion", "bash") == (130, "", "Interrupted.\n")


def test_shells_that_nothing_is_completed_in_are_refused(capsys, monkeypatch):
    for option in ("--tyro-print-completion", "--tyro_print_completion"):
        for command in ([], ["finetune"], ["weights", "show"]):
            code, out, err = run(capsys, *command, option, "foo")
            assert (code, out) == (2, "") and "bash" in err and "Traceback" not in err, err
    # With a package of its own only.
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = run(capsys, "--tyro-print-completion", "tcsh")
    assert (code, out) == (2, "") and err.startswith("rmacjax: shtab is required"), err
    nowhere = "/no/such/folder/file"
    code, out, err = run(capsys, "--tyro-write-completion", "bash", nowhere)
    assert (code, out) == (1, "") and nowhere in err, err
    with pytest.raises(SystemExit) as done:
        main(["--tyro-print-completion", "bash"])
    out, err = capsys.readouterr()
    assert not done.value.code and "finetune" in out and err == ""

    def wrong(_):
        raise AssertionError("a mistake of ours")

    # Mistakes of ours are none of the user's.
    monkeypatch.setattr(cli, "_dispatch", wrong)
    with pytest.raises(AssertionError, match="of ours"):
        main(["demo"])


def test_ctrl_c_is_heard_even_where_python_drops_it(tmp_path):
    """In a callback of the garbage collector, such as JAX has one."""
    asked = """
import gc, signal, sys, time
from rmacjax import cli

def callback(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)

def demo():
    gc.callbacks.append(callback)
    gc.collect()
    begun = time.monotonic()
    try:
        time.sleep(30)
    finally:
        if time.monotonic() > begun + 20:
            print("waited")

cli.function_of = lambda name: demo
sys.argv = ["rmacjax", "demo"]
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert "waited" not in done.stdout, "the wait was not ended"
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("Interrupted.") and "Traceback" not in done.stderr


def test_traceback_only_on_demand(capsys, tmp_path, monkeypatch):
    assert "Traceback" not in run(capsys, "search", tmp_path, "q.jpg")[2]
    monkeypatch.setenv("RMACJAX_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["search", str(tmp_path), "q.jpg"])


def test_progress_is_a_line_every_ten_seconds_where_no_terminal_is(capsys, monkeypatch):
    from rmacjax.cli import terminal

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with terminal.progress("photos") as update:
        for done in range(41):
            clock[0] = done * 1.0
            update(done, 80)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[0] == "10 of 80 photos, 1.0 per second, 1 min 10 s left"


def test_module_runs_as_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "rmacjax", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("rmacjax ")


@pytest.mark.skipif(os.name != "posix", reason="pipes close like this on POSIX")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("index --help", 0),
        ("--help", 0),
        ("--version", 0),
        ("index", 2),
        ("search c q --rerankk 3", 2),
        ("search c q --box 50 0 20 60", 2),
        ("serch", 2),
        ("remove no-such-collection a.jpg", 1),
    ],
)
def test_a_closed_pipe_says_nothing_and_changes_no_exit_code(words, code):
    """Both streams go where nobody reads any more, as in `rmacjax ... 2>&1 | true`."""
    program = (
        "import os, sys; r, w = os.pipe(); os.close(r); kept = os.dup(2); os.dup2(w, 1); "
        "os.dup2(w, 2); from rmacjax.cli import main; code = main(sys.argv[1:]); "
        "os.write(kept, str(code).encode()); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, str(code))
