"""`rmacjax evaluate scenes`: generated on the spot, measured, and gone."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from rmacjax import scenes
from rmacjax.cli import main
from rmacjax.cli.generated import is_generated, rendered_truth
from rmacjax.preprocessing import load_image

SMALL = {"objects": 2, "views": 2, "distractors": 2, "size": (96, 128)}


def test_generated_scenes_are_measured_and_nothing_is_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "search_set", partial(scenes.search_set, **SMALL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--long-side", "128", "--rerank", "0", "--expand", "0", "--json", "-"]
    assert main(["evaluate", "scenes:3", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "generated scenes, seed 3" in json.dumps(found)
    assert not (tmp_path / "cache" / "rmacjax" / "evaluate").exists()
    assert main(["evaluate", "scenes", "--cache", str(tmp_path)]) == 2
    assert "leave --cache out" in capsys.readouterr().err
    assert main(["evaluate", "scenes", "--subset", "a"]) == 2
    assert "has no subsets" in capsys.readouterr().err


def test_the_truth_is_what_was_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "search_set", partial(scenes.search_set, **SMALL))
    truth, rendered = rendered_truth("scenes:3"), scenes.search_set(3)
    assert [Path(path).name for path in truth.paths] == rendered.names
    for query, (own, box) in zip(truth.queries, rendered.queries, strict=True):
        assert query.box_px == box and truth.paths.index(query.path) == own
        for index, there in query.boxes.items():
            assert rendered.labels[index] == rendered.labels[own]
            assert rendered.boxes[index] == there
    difference = load_image(truth.paths[0]).pixels.astype(int) - rendered.images[0]
    assert np.abs(difference).mean() < 8
    monkeypatch.chdir(tmp_path)
    assert is_generated("scenes") and is_generated("scenes:12") and not is_generated("scenes:a")
    (tmp_path / "scenes").mkdir()
    assert not is_generated("scenes"), "a folder of that name comes first"
