"""`rmacjax finetune`: what it says, refuses and writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from rmacjax import scenes
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.cli import generated, main
from rmacjax.cli.training import Made
from rmacjax.descriptors import Params
from rmacjax.finetune.sources import GeneratedScenes
from rmacjax.weights import describe_file, load, save
from rmacjax.whitening import Whitening


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Five objects, each seen twice."""
    folder = tmp_path_factory.mktemp("objects")
    first, second = scenes.training_batch(
        np.random.default_rng(0), 5, 64, textures=scenes.texture_bank(0, 8)
    )
    for number, views in enumerate(zip(first, second, strict=True)):
        (folder / f"object{number}").mkdir()
        for place, view in enumerate(views):
            Image.fromarray(view).save(folder / f"object{number}" / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    """An untrained network with a whitening of its own."""
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    network = Network("alexnet", False, TORCHVISION_CONVENTION, gem_p=4.0)
    rng = np.random.default_rng(1)
    turned, _ = np.linalg.qr(rng.normal(size=(256, 32)))
    whitening = Whitening(np.full(256, 0.05, np.float32), turned.T.astype(np.float32))
    save(path, Params(network, initialize("alexnet", 0), whitening), origin="made", licence="CC0")
    return path


def run(capsys, *words):
    code = main(["finetune", *map(str, words)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_the_whitening_is_trained_with_the_rest_and_the_result_serves(
    capsys, objects, whitened, tmp_path
):
    out = tmp_path / "run"
    words = ["--data", objects, "--weights", whitened, "--long-side", 64, "--objects", 2]
    words += ["--steps", 4, "--workers", 0, "--learn-exponent", "--describe-as", "rmac"]
    words += ["--rate", "1e-3", "--validate", 0.4, "--validate-every", 2, "--json", "-"]
    code, text, err = run(capsys, out, *words)
    assert code == 0, err
    report = json.loads(text)
    assert report["steps"] == 4 and 0 <= report["score"] <= 1
    assert report["files"] == [str(out / "best.safetensors"), str(out / "last.safetensors")]
    before, after = load(whitened), load(out / "last.safetensors")
    assert not np.array_equal(before.whitening.projection, after.whitening.projection)
    assert not np.array_equal(before.whitening.mean, after.whitening.mean)
    assert not np.array_equal(before.weights["conv1.kernel"], after.weights["conv1.kernel"])
    assert 1e-4 < abs(after.network.gem_p - 10.0) < 1
    told = describe_file(out / "last.safetensors")
    assert told["settings"] == {"pool": "rmac", "levels": 3}
    assert told["licence"] == "CC0 for what it began with, then as its photos allow"
    assert "4 steps" in told["origin"]
    assert main(["index", str(objects), str(tmp_path / "c"), "--weights", report["files"][1]]) == 0
    assert "after step 4: recall@1" in err


def test_ctrl_c_leaves_a_network_and_a_run_that_goes_on(capsys, monkeypatch, tmp_path):
    words = ["--data", "scenes", "--stages", "views:64:4:9", "--weights", "untrained:alexnet"]
    words += ["--whitening", "none", "--workers", "0"]
    draw = GeneratedScenes.draw
    with monkeypatch.context() as patch:

        def interrupted(self, seed, step):
            if step == 3:
                raise KeyboardInterrupt
            return draw(self, seed, step)

        patch.setattr(GeneratedScenes, "draw", interrupted)
        code, _, err = run(capsys, tmp_path / "run", *words)
    path = tmp_path / "run" / "last.safetensors"
    assert code == 130 and f"Wrote {path}: what was learned so far" in err, err
    assert "for 3 steps" in describe_file(path)["origin"]
    code, _, err = run(capsys, tmp_path / "run", *words)
    assert code == 0 and "Going on after step 3" in err, err
    assert "for 9 steps" in describe_file(path)["origin"], "the steps of all stages"


def test_ctrl_c_again_while_networks_are_written_leaves_nothing_unsaid(
    capsys, monkeypatch, tmp_path
):
    words = ["--data", "scenes", "--stages", "views:64:4:3", "--weights", "untrained:alexnet"]
    words += ["--whitening", "none", "--workers", "0"]
    draw, write = GeneratedScenes.draw, Made.write

    def interrupted(self, seed, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return draw(self, seed, step)

    def pressed(self, *arguments):
        path = write(self, *arguments)
        signal.raise_signal(signal.SIGINT)
        return path

    monkeypatch.setattr(GeneratedScenes, "draw", interrupted)
    monkeypatch.setattr(Made, "write", pressed)
    code, _, err = run(capsys, tmp_path / "run", *words)
    path = tmp_path / "run" / "last.safetensors"
    assert code == 130 and f"Wrote {path}: what was learned so far" in err, err
    assert "for 1 steps" in describe_file(path)["origin"]


def test_generated_photos_are_measured_on_and_leave_nothing(capsys, objects, monkeypatch, tmp_path):
    few = partial(scenes.search_set, objects=2, views=2, distractors=1)
    monkeypatch.setattr(scenes, "search_set", few)
    words = ["--data", objects, "--weights", "untrained:alexnet", "--long-side", 64, "--steps", 1]
    words += ["--objects", 2, "--workers", 0, "--validate", "scenes:3"]
    code, _, err = run(capsys, tmp_path / "run", *words)
    assert code == 0 and "after step 1: filter mAP" in err, err
    left = generated._FOLDERS[-1]
    assert os.path.isdir(left)
    generated.forget()
    assert not os.path.exists(left) and not generated._FOLDERS


def test_a_dry_run_does_nothing_and_says_what_it_would_take(capsys, objects, tmp_path):
    words = ["--data", objects, "--weights", "untrained:alexnet", "--long-side", 64]
    words += ["--objects", 2, "--negatives", 1, "--dry-run", "--chunk", 3]
    code, text, err = run(capsys, tmp_path / "run", *words)
    assert code == 0, err
    assert not (tmp_path / "run").exists()
    assert "6 x 64 x 64 x 3 uint8" in text and "images per step   6, 3 at once" in text
    for word in ("parameters", "memory", "one step", "all steps", "checkpoints"):
        assert word in text
    assert "3 per epoch" in text


def test_a_dry_run_says_what_the_run_would(capsys, objects, tmp_path):
    data = shutil.copytree(objects, tmp_path / "data")
    (data / "object1" / "0.png").write_bytes(b"no photo")
    words = ["--data", data, "--weights", "untrained:alexnet", "--long-side", 64, "--workers", 0]
    words += ["--objects", 2, "--steps", 3]
    code, _, err = run(capsys, tmp_path / "run", *words, "--dry-run")
    assert code == 0 and err.count("Skipped: ") == 1 and "0.png" in err, err
    assert run(capsys, tmp_path / "run", *words)[0] == 0
    assert run(capsys, tmp_path / "run", *words, "--dry-run")[0] == 0
    code, text, err = run(capsys, tmp_path / "run", *words, "--dry-run", "--rate", "1e-3")
    assert code == 2 and not text and "made with other options" in err, err


def test_a_report_may_lie_in_the_folder_that_the_run_makes(capsys, objects, tmp_path):
    words = ["--data", objects, "--weights", "untrained:alexnet", "--long-side", 64, "--workers", 0]
    words += ["--objects", 2, "--steps", 1, "--json", tmp_path / "run" / "report.json"]
    code, _, err = run(capsys, tmp_path / "run", *words, "--dry-run")
    assert code == 1 and "make it first" in err and not (tmp_path / "run").exists(), err
    code, _, err = run(capsys, tmp_path / "other", *words)
    assert code == 1 and "make it first" in err and not list(tmp_path.iterdir()), err
    assert run(capsys, tmp_path / "run", *words)[0] == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["steps"] == 1


def test_networks_of_another_run_are_not_replaced(capsys, objects, tmp_path, monkeypatch):
    words = ["--data", objects, "--weights", "untrained:alexnet", "--long-side", 64]
    words += ["--objects", 2, "--steps", 1, "--workers", 0]
    out = tmp_path / "run"
    out.mkdir()
    (out / "steps.csv").write_text("step,loss\n1,2\n", encoding="utf-8")
    code, _, err = run(capsys, out, *words)
    assert code == 0, f"killed before its first checkpoint: {err}"
    written = (out / "last.safetensors").read_bytes()
    assert run(capsys, out, *words)[0] == 0, "its own"
    shutil.rmtree(out / "checkpoints")
    words[3] = out / "last.safetensors"
    for more in ([], ["--dry-run"]):
        code, _, err = run(capsys, out, *words, *more)
        assert code == 2 and "last.safetensors' would be replaced" in err, err
    assert (out / "last.safetensors").read_bytes() == written
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "", *words)
    assert code == 2 and "OUT is empty" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "nothing to learn from at 'nowhere'"),
        (["--data", "OBJECTS", "--boxes", "known"], "only generated images come with known boxes"),
        (["--data", "OBJECTS", "--stages", "views:64:2:1"], "--stages changes nothing here"),
        (["--data", "OBJECTS", "--margin", "nan"], "margin must lie above 0"),
        (["--data", "OBJECTS", "--plain", "-1"], "plain is a weight, 0 or more"),
        (["--data", "OBJECTS", "--temperature", "0.1"], "--temperature changes nothing here"),
        (["--data", "OBJECTS", "--box-weight", "2"], "--box-weight changes nothing here"),
        (["--data", "OBJECTS", "--patience", "2"], "there is no --validate"),
        (["--data", "OBJECTS", "--warmup", "2"], "the rate would still rise after 2 steps"),
        (["--data", "OBJECTS", "--steps", "0"], "--steps is at least 1, not 0"),
        (["--data", "scenes", "--images", "3"], "what is learned from comes in pairs"),
        (["--data", "VIEWS", "--images", "3"], "what is learned from comes in pairs"),
        (["--data", "scenes", "--negatives", "3"], "images are made, not found"),
        (["--data", "VIEWS", "--negatives", "5"], "has 10 photos, and a step takes 12"),
        (["--data", "OBJECTS", "--margin", "3"], "at most 2"),
        (["--data", "OBJECTS", "--seed", "-1"], "--seed lies in 0 to 4294967295, but is -1"),
        (["--data", "OBJECTS", "--seed", "9223372036854775808"], "--seed lies in 0 to 4294967295"),
        (["--data", "OBJECTS", "--images", "1"], "images >= 2"),
        (["--data", "scenes", "--boxes", "known", "--stages", "views:64:2:9"], "has no searches"),
        (["--data", "scenes", "--stages", "views:64:2:1,searches:56:2:9"], "28 x 46 pixels"),
        (["--data", "OBJECTS", "--rate", "inf"], "rate must be finite and above 0, but is inf"),
        (["--data", "OBJECTS", "--average", "1"], "average must be at least 0 and below 1, but"),
        (["--data", "OBJECTS", "--decay", "-1"], "decay must be finite and at least 0, but is -1"),
        (["--data", "OBJECTS", "--clip", "0"], "clip must be above 0, but is 0.0"),
        (["--data", "OBJECTS", "--long-side", "8"], "--long-side 8 is too short: untrained"),
        (["--data", "VIEWS", "--objects", "1"], "take two a step, not 1"),
        (
            ["--data", "OBJECTS", "--validate", "0.5", "--validate-every", "0"],
            "--validate-every is at least 1",
        ),
        (["--data", "scenes", "--stages", "views:64"], "'views:64' is no stage"),
        (["--data", "scenes", "--validate", "0.5"], "no labels to hold a share of out"),
        (["--data", "OBJECTS", "--validate", "0.01"], "hold out another share"),
        (["--data", "OBJECTS", "--objects", "50"], "choose fewer objects"),
        (["--data", "OBJECTS", "--rate", "0"], "rate must be finite and above 0, but is 0.0"),
        (["--data", "OBJECTS", "--exponent", "-1"], "--exponent is at least 1"),
        (["--data", "OBJECTS", "--weights", "untrained:lenet"], "unknown architecture 'lenet'"),
        (["--data", "OBJECTS", "--whitening", "layer"], "the weights hold none"),
        (["--data", "OBJECTS", "--chunk", "3"], "whole chunks of 3"),
        (["--data", "OBJECTS", "--chunk", "0"], "--chunk is at least 1"),
        (
            ["--data", "OBJECTS", "--boxes", "latent", "--box-weight", "-1"],
            "--box-weight is 0 or more, not -1.0",
        ),
        (["--data", "OBJECTS", "--save-every", "0"], "--save-every is at least 1"),
        (["--data", "OBJECTS", "--rate", "1e38", "--warmup", "0"], "nothing can be learned from"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, objects, tmp_path, words, message):
    places = {"OBJECTS": str(objects), "VIEWS": f"views:{objects}"}
    words = [places.get(word, word) for word in words]
    if "--weights" not in words:
        words += ["--weights", "untrained:alexnet"]
    if "--objects" not in words and "scenes" not in words:
        words += ["--objects", "2"]
    options = ["--workers", "0"]
    options += [] if "--long-side" in words else ["--long-side", "64"]
    options += [] if "--steps" in words else ["--steps", "2"]
    code, _, err = run(capsys, tmp_path / "run", *words, *options)
    assert code in (1, 2) and message in err and "Traceback" not in err, err


def test_without_the_extra_it_says_what_to_install(objects, tmp_path):
    program = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'grain' else real(name, *a); "
        "from rmacjax.cli import main; "
        "sys.exit(main(['finetune', sys.argv[1], '--data', sys.argv[2]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), str(objects)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "training needs grain: install it with pip install 'rmacjax[train]'" in done.stderr
