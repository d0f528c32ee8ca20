"""Seals of kept collections: what counts as damage, and what does not."""

import os

import pytest

from rmacjax.cli import seals


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "kept"
    for name in ("data/a.lance", "data/a/b.blob", "_deletions/1.arrow", "_versions/1.manifest"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "_versions" / "hint.json").write_text("1")
    seals.seal(str(folder))
    return folder


def test_what_is_as_it_was_is_sound(place):
    assert seals.is_sealed(str(place)) and seals.damaged_file(str(place)) is None


@pytest.mark.parametrize(
    "name", ["data/a.lance", "data/a/b.blob", "_deletions/1.arrow", "_versions/1.manifest"]
)
def test_what_was_changed_or_is_gone_is_named(place, name):
    file = place / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    assert seals.damaged_file(str(place)) == name
    file.unlink()
    assert seals.damaged_file(str(place)) == name
    file.write_bytes(content)
    assert seals.damaged_file(str(place)) is None


def test_what_belongs_to_others_is_not_looked_at(place):
    strays = [".DS_Store", "data/.nfs0001", "_versions/Thumbs.db", "derived/graph.npz"]
    for name in strays:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("one")
    seals.seal(str(place))
    (place / strays[0]).write_text("other")
    (place / strays[1]).unlink()
    (place / "_versions" / "hint.json").write_text("2")
    assert seals.damaged_file(str(place)) is None


def test_later_versions_may_have_merged_files_but_not_changed_them(place):
    (place / "data" / "a.lance").unlink()
    (place / "data" / "c.lance").write_text("merged")
    assert seals.damaged_file(str(place)) == "data/a.lance"
    (place / "_versions" / "2.manifest").write_text("merged")
    assert seals.damaged_file(str(place)) is None
    (place / "data" / "a" / "b.blob").write_text("other")
    assert seals.damaged_file(str(place)) == "data/a/b.blob"


def test_what_cannot_be_read_is_no_damage(place, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(seals, "_digest", refused)
    with pytest.raises(PermissionError):
        seals.damaged_file(str(place))


def test_a_seal_is_written_only_where_there_is_something_new(place):
    file = place.parent / "kept.seal"
    os.utime(file, (1, 1))
    seals.seal(str(place))
    assert file.stat().st_mtime == 1
    (place / "data" / "c.lance").write_text("new")
    seals.seal(str(place))
    assert file.stat().st_mtime != 1 and seals.damaged_file(str(place)) is None
    (place / "data" / "c.lance").write_text("old")
    assert seals.damaged_file(str(place)) == "data/c.lance"


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"files": 3}', "[1, 2]", None])
def test_a_seal_that_is_damaged_says_nothing(place, content):
    file = place.parent / "kept.seal"
    text = file.read_text().replace("_deletions", "_deletion5") if content is None else content
    file.write_text(text)
    assert not seals.is_sealed(str(place)) and seals.damaged_file(str(place)) is None
    seals.unseal(str(place))
    assert not file.exists()
