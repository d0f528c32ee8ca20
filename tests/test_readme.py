"""The README does what it says: its Python runs, its commands run, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from rmacjax import scenes
from rmacjax.cli import main
from rmacjax.preprocessing import encode_jpeg

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the photos that the README speaks of, as the current one."""
    rng = np.random.default_rng(0)
    scene = scenes.render_scene(rng, (200, 240))
    (tmp_path / "query.jpg").write_bytes(encode_jpeg(scene, 90))
    for name, count in (("photos", 4), ("more", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            photo = scenes.render_scene(rng, (160, 200 + 40 * (i % 2)))
            if i == 1:
                photo[:150, :180] = scene[30:180, 40:220]
            (tmp_path / name / f"{i:04}.jpg").write_bytes(encode_jpeg(photo, 90))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run_one_after_the_other(folder, capsys):
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    first_hit = capsys.readouterr().out.splitlines()[0]
    assert "0001.jpg" in first_hit, "the photo that holds the query's object comes first"
    assert namespace["descriptors"].shape[0] == 3
    np.testing.assert_allclose(np.diag(namespace["similarities"]), 1, atol=1e-5)


def test_commands_run_in_the_order_they_stand(folder, capsys):
    commands = [
        line.partition(" #")[0]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("rmacjax ")
    ]
    assert len(commands) >= 5
    for command in commands:
        status = main(shlex.split(command)[1:])
        assert status == 0, f"{command}: {capsys.readouterr().err}"
    assert "0001.jpg" in (folder / "results.html").read_text()


def test_the_first_line_ends_in_a_page_of_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = blocks("bash")[0].splitlines()[0].split(" && ")[-1]
    assert command == ".venv/bin/rmacjax demo"
    assert main(["demo"]) == 0
    assert "8 outlined objects were searched for in 60 photos" in capsys.readouterr().out
    assert (tmp_path / "rmacjax-demo" / "index.html").is_file()


def test_every_command_that_is_named_exists(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    named = set(re.findall(r"`?rmacjax ([a-z]+)", README))
    assert named and all(re.search(rf"\b{name}\b", overview) for name in named)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document}: {target} is not there"


def test_ci_takes_the_two_commands_from_the_readme():
    first, second = blocks("bash")[0].splitlines()
    assert first.startswith("python3 -m venv .venv ")
    assert second.startswith("python3 -m venv .venv-test ")
    script = (ROOT / ".ci" / "run").read_text()
    for pattern in re.findall(r"readme_line '([^']+)'", script):
        assert len(re.findall(rf"^{pattern}", README, re.MULTILINE)) == 1
    assert script.count("readme_line '") == 2
