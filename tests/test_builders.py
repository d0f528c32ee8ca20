"""The data sets as tensorflow-datasets: prepared from layouts, read at random, no TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from dataset_layouts import (
    BOXES,
    HEIGHT,
    NAMES,
    QUERIES,
    REVISITED_QUERIES,
    WIDTH,
    classic_content,
    holidays,
    photo,
    revisited_content,
    write_indexed,
    write_mat,
    write_texts,
)
from PIL import Image

from rmacjax.datasets import KNOWN, Counts, read_dataset
from rmacjax.datasets import builders as module
from rmacjax.preprocessing import encode_png, load_image

SMALL = Counts(5, 3)

pytestmark = [
    # Of the libraries below: array_record leaves its files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def prepared(name, folder, out, counts=None):
    builder = tfds.builder(name, folder=folder, counts=counts, data_dir=out)
    builder.download_and_prepare()
    return builder


def classic(root, name, suffix):
    for seed, each in enumerate(NAMES):
        photo(root / "jpg" / f"{each}.jpg", seed)
    if suffix == ".txt":
        write_texts(root / "gt_files_170407")
    else:
        write_indexed(root / f"gnd_{name}{suffix}", classic_content())


def check(source, truth):
    """What was prepared is what the reader says, in its order, at any position."""
    photos, queries = source["database"], source["queries"]
    assert (len(photos), len(queries)) == (len(truth.paths), len(truth.queries))
    for position in np.random.default_rng(0).permutation(len(truth.paths)).tolist():
        example = photos[position]
        assert example["index"] == position
        assert truth.paths[position].endswith(example["filename"].decode())
        np.testing.assert_array_equal(example["image"], load_image(truth.paths[position]).pixels)
        assert example["box"].tolist() == [0, 0, *example["image"].shape[:2]]
        assert all(example[key].size == 0 for key in ("positives", "hard", "junk", "boxes"))
    for position, query in reversed([*enumerate(truth.queries)]):
        example = queries[position]
        assert example["index"] == position
        assert example["name"].decode() == query.name
        np.testing.assert_array_equal(example["image"], load_image(query.path).pixels)
        assert example["box"].tolist() == list(query.box_px or (0, 0, HEIGHT, WIDTH))
        for key in ("positives", "hard", "junk"):
            assert example[key].dtype == np.int64
            assert example[key].tolist() == getattr(query, key).tolist()
        boxes = zip(example["boxed"].tolist(), example["boxes"].tolist(), strict=True)
        assert {number: tuple(box) for number, box in boxes} == query.boxes


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("oxford5k", ".txt"), ("oxford5k", ".pkl"), ("paris6k", ".mat"), ("paris6k", ".json")],
)
def test_classic(tmp_path, name, suffix):
    root = tmp_path / name
    classic(root, name, suffix)
    builder = prepared(name, root, tmp_path / "out", SMALL)
    source = builder.as_data_source()
    check(source, read_dataset(name, root, counts=SMALL))
    # Facts of the layout itself, not by the reader.
    example = source["queries"][1]
    assert example["box"].tolist() == list(BOXES["clock_2"])  # reached outside
    found = {source["database"][i]["filename"].decode() for i in example["positives"]}
    assert found == {f"{each}.jpg" for each in (*QUERIES[1][3], *QUERIES[1][4])}
    assert builder.info.metadata == {"protocol": "classic", "folder": str(root), "left_out": []}
    files = [file.name for file in Path(builder.data_dir).iterdir()]
    assert any("array_record" in file for file in files)
    assert not any("tfrecord" in file for file in files)


@pytest.mark.parametrize("suffix", [".pkl", ".mat"])
def test_revisited(tmp_path, suffix):
    root = tmp_path / "roxford5k"
    for seed, each in enumerate([*NAMES, *(query[0] for query in REVISITED_QUERIES)]):
        photo(root / "jpg" / f"{each}.jpg", seed)
    write_indexed(root / f"gnd_roxford5k{suffix}", revisited_content())
    counts = Counts(5, 2)
    builder = prepared("roxford5k", root, tmp_path / "out", counts)
    source = builder.as_data_source()
    check(source, read_dataset("roxford5k", root, counts=counts))
    assert builder.info.metadata["protocol"] == "revisited"
    hard = [NAMES[i] for i in source["queries"][0]["hard"]]
    assert hard == REVISITED_QUERIES[0][3]


def test_the_others(tmp_path):
    counts = Counts(8, 3)
    names = holidays(tmp_path / "holidays")
    source = prepared("holidays", tmp_path / "holidays", tmp_path / "o", counts).as_data_source()
    check(source, read_dataset("holidays", tmp_path / "holidays", counts=counts))
    assert [example["filename"].decode() for example in source["database"]] == [
        f"{name}.jpg" for name in names
    ]

    root = tmp_path / "instre"
    for seed, name in enumerate(["S1/a/1.jpg", "S1/a/2.jpg", "S2/b/1.jpg"]):
        photo(root / name, seed)
    gnd = [{"ok": [1], "bbx": [4, 6, 24, 36]}]
    content = {"imlist": ["S1/a/1.jpg", "S1/a/2.jpg"], "qimlist": ["S2/b/1.jpg"], "gnd": gnd}
    write_mat(root / "gnd_instre.mat", content, sized=True)
    source = prepared("instre", root, tmp_path / "o", Counts(2, 1)).as_data_source()
    check(source, read_dataset("instre", root, counts=Counts(2, 1)))
    assert source["database"][1]["filename"] == b"S1/a/2.jpg"


def test_with_distractors(tmp_path):
    """In the folder or beside it; a name with a plus is spelled with a line below."""
    classic(tmp_path / "oxford5k", "oxford5k", ".txt")
    for i in range(3):
        photo(tmp_path / "oxc1_100k" / "beach" / f"{i}.jpg", 50 + i)
    counts = SMALL._replace(distractors=3)
    source = prepared("oxford105k", tmp_path / "oxford105k", tmp_path / "out", counts)
    truth = read_dataset("oxford105k", tmp_path / "oxford105k", counts=counts)
    check(source.as_data_source(), truth)
    assert len(truth.paths) == 8
    # The same by the manual directory, in which both lie, but nothing of the larger set's name.
    builder = tfds.builder("oxford105k", counts=counts, data_dir=tmp_path / "again")
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=manual)
    check(builder.as_data_source(), truth)
    assert {cls.DATASET for cls in vars(module).values() if hasattr(cls, "DATASET")} == {
        *KNOWN,
        "image_folder",
        "",
    }
    assert tfds.builder_cls("rparis6k_1m").DATASET == "rparis6k+1m"
    assert tfds.builder_cls("roxford5k_1m").DATASET == "roxford5k+1m"


def own(folder):
    for i in range(4):
        photo(folder / f"{i}.jpg", i)
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:200])  # cut off
    (folder / "ground_truth.csv").write_text(
        "query,left,top,right,bottom,positives,junk\n"
        "0.jpg,-5,2,100,10,3.jpg;2.jpg,1.jpg\n"
        "2.jpg,,,,,3.jpg,\n"
        "3.jpg,,,,,,\n"
    )
    return folder


def test_photos_that_cannot_be_decoded_are_reported_and_left_out(tmp_path, caplog):
    builder = prepared("image_folder", own(tmp_path / "mine"), tmp_path / "out")
    source = builder.as_data_source()
    assert [example["filename"] for example in source["database"]] == [b"0.jpg", b"1.jpg", b"3.jpg"]
    first, absent = source["queries"]
    # Positions without the broken photo: 3.jpg is the third.
    assert (first["positives"].tolist(), sorted(first["junk"].tolist())) == ([2], [0, 1])
    assert first["box"].tolist() == [2, 0, 10, 40]
    assert (absent["positives"].tolist(), absent["junk"].tolist()) == ([], [2])
    assert absent["index"] == 1
    ((path, sentence),) = builder.info.metadata["left_out"]
    assert path == str(tmp_path / "mine" / "2.jpg")
    assert "2.jpg" in sentence
    assert "1 photos were left out" in caplog.text
    # What was prepared is found again, with its report, and each folder has its own.
    again = tfds.builder("image_folder", folder=tmp_path / "mine", data_dir=tmp_path / "out")
    assert again.info.metadata["left_out"] == [[path, sentence]]
    assert again.info.splits["database"].num_examples == 3
    other = tfds.builder("image_folder", folder=tmp_path, data_dir=tmp_path / "out")
    assert other.data_dir != again.data_dir
    # Photos that have changed are seen when it is prepared anew, and not before.
    photo(tmp_path / "mine" / "2.jpg", 2)
    again.download_and_prepare()
    assert len(again.as_data_source("database")) == 3
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    anew = tfds.download.DownloadConfig(download_mode=mode)
    again.download_and_prepare(download_config=anew)
    assert len(again.as_data_source("database")) == 4
    assert again.info.metadata["left_out"] == []


def test_files_are_stored_as_they_are_where_all_decoders_agree(tmp_path, rng):
    """Plain decoders go wrong with what is turned, transparent or CMYK: those become PNG."""
    folder = tmp_path / "mine"
    plain = Path(photo(folder / "a.jpg"))
    pixels = rng.integers(0, 256, (12, 20, 3), np.uint8)
    (folder / "b.png").write_bytes(encode_png(pixels))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "c.jpg", exif=turned)
    Image.fromarray(pixels[..., 0]).save(folder / "d.png")
    Image.fromarray(np.concatenate([pixels, pixels[..., :1]], 2)).save(folder / "e.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "f.jpg")
    builder = prepared("image_folder", folder, tmp_path / "out")
    raw = builder.as_data_source(split="database", decoders={"image": tfds.decode.SkipDecoding()})
    stored = [example["image"] for example in raw]
    assert stored[0] == plain.read_bytes()
    assert stored[1] == (folder / "b.png").read_bytes()
    assert stored[3] == (folder / "d.png").read_bytes()
    changed = [stored[2], *stored[4:]]
    for data, name in zip(changed, ("c.jpg", "e.png", "f.jpg"), strict=True):
        assert data.startswith(b"\x89PNG")
        assert data != (folder / name).read_bytes()
    shown = builder.as_data_source(split="database")
    assert shown[2]["image"].shape == (20, 12, 3)
    for example in shown:
        path = folder / example["filename"].decode()
        np.testing.assert_array_equal(example["image"], load_image(path).pixels)
        assert example["box"].tolist() == [0, 0, *example["image"].shape[:2]]
    assert list(builder.info.splits) == ["database"]  # there are no queries
    for file in folder.iterdir():
        file.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(OSError, match=r"None of 6 photos can be decoded; the first: .*a\.jpg"):
        prepared("image_folder", folder, tmp_path / "other")


def test_a_split_of_many_files_keeps_its_order(tmp_path, monkeypatch):
    """What is large is divided; nothing of it goes through the shuffling that wants TensorFlow."""
    for i in range(7):
        photo(tmp_path / "mine" / f"{i}.jpg", i)
    size = (tmp_path / "mine" / "0.jpg").stat().st_size
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * size + size // 2)
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 1)
    builder = prepared("image_folder", tmp_path / "mine", tmp_path / "out")
    assert builder.info.splits["database"].shard_lengths == [2, 2, 2, 1]
    source = builder.as_data_source("database")
    assert [example["filename"] for example in source] == [f"{i}.jpg".encode() for i in range(7)]
    assert [source[i]["index"] for i in (6, 0, 3)] == [6, 0, 3]
    # A photo larger than a file is to be has one to itself.
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    builder = prepared("image_folder", tmp_path / "mine", tmp_path / "other")
    assert builder.info.splits["database"].shard_lengths == [1] * 7


def test_each_folder_of_a_published_set_is_kept_apart(tmp_path):
    sources = []
    for number, place in enumerate(("a", "b")):
        classic(tmp_path / place, "oxford5k", ".txt")
        photo(tmp_path / place / "jpg" / f"{NAMES[0]}.jpg", 50 + number)
        builder = prepared("oxford5k", tmp_path / place, tmp_path / "out", SMALL)
        sources.append(builder.as_data_source("database"))
        truth = read_dataset("oxford5k", tmp_path / place, counts=SMALL)
        for example, path in zip(sources[-1], truth.paths, strict=True):
            np.testing.assert_array_equal(example["image"], load_image(path).pixels)


def test_where_photos_are_looked_for(tmp_path, monkeypatch):
    """The folder given, the manual directory of the configuration, RMACJAX_DATA: in this order."""
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "manual")
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "data"))

    def prepare(out):
        builder = tfds.builder("oxford5k", counts=SMALL, data_dir=tmp_path / out)
        builder.download_and_prepare(download_config=manual)
        return [path for path, _ in builder.info.metadata["left_out"]]

    with pytest.raises(FileNotFoundError, match=r"no folder .*data/oxford5k with .*: download oxb"):
        prepare("1")
    broken = b"\xff\xd8\xff"
    for place, spoiled in (("data", "sky_000001"), ("manual", "gate_000002")):
        classic(tmp_path / place / "oxford5k", "oxford5k", ".txt")
        file = tmp_path / place / "oxford5k" / "jpg" / f"{spoiled}.jpg"
        file.write_bytes(broken)
        assert prepare(place) == [str(file)]
    with pytest.raises(FileNotFoundError, match="holds 5 photos of Oxford5k where 5063 belong"):
        prepared("oxford5k", tmp_path / "data" / "oxford5k", tmp_path / "2")


def test_what_was_prepared_of_one_place_never_stands_for_another(tmp_path, monkeypatch):
    """Without a folder: it is found again, wherever it came from, until photos lie elsewhere."""
    for count, place in enumerate(("a", "b", "c"), 1):
        for number in range(count):
            photo(tmp_path / place / "image_folder" / f"{number}.jpg", number)
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "c")

    def count(config=None, **options):
        builder = tfds.builder("image_folder", data_dir=tmp_path / "out", **options)
        builder.download_and_prepare(download_config=config)
        return len(builder.as_data_source("database"))

    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "nowhere"))
    assert count(manual) == 3
    # The same, also without the configuration that led there: there are no others.
    assert (count(manual), count()) == (3, 3)
    assert len(tfds.builder("image_folder", data_dir=tmp_path / "out").as_data_source()) == 1
    (tmp_path / "link").symlink_to(tmp_path / "c")
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "link"))
    assert count() == 3
    elsewhere = rf"prepared from {tmp_path}/c/image_folder, and photos of .* lie in {tmp_path}/a/"
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "a"))
    with pytest.raises(ValueError, match=elsewhere):
        count()
    assert count(manual) == 3
    assert count(folder=tmp_path / "a" / "image_folder") == 1
    anew = tfds.download.DownloadConfig(download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS)
    assert (count(anew), count()) == (1, 1)
    with pytest.raises(ValueError, match=r"lie in .*/c/image_folder now: name that folder"):
        count(manual)
    # What lies in the manual directory that is looked into unasked counts as well.
    (tmp_path / "out" / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "b" / "image_folder").rename(tmp_path / "out/downloads/manual/image_folder")
    with pytest.raises(ValueError, match=r"lie in .*/manual/image_folder now"):
        count()


def test_prepared_data_that_do_not_say_whence_are_taken(tmp_path, monkeypatch):
    """As they were written before it was noted."""
    photo(tmp_path / "a" / "image_folder" / "0.jpg", 0)
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "a"))
    builder = tfds.builder("image_folder", data_dir=tmp_path / "out")
    builder.download_and_prepare()
    file = Path(builder.data_dir) / "metadata.json"
    facts = json.loads(file.read_text())
    assert facts.pop("folder") == str(tmp_path / "a" / "image_folder")
    file.write_text(json.dumps(facts))
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path / "b"))
    again = tfds.builder("image_folder", data_dir=tmp_path / "out")
    again.download_and_prepare()
    assert len(again.as_data_source("database")) == 1


SCRIPT = """
import importlib.machinery, json, sys
find = importlib.machinery.PathFinder.find_spec
def without(name, path=None, target=None):
    return None if name.partition(".")[0] == "tensorflow" else find(name, path, target)
importlib.machinery.PathFinder.find_spec = without
sys.modules["jax"] = None
import tensorflow_datasets as tfds
import rmacjax.datasets.builders
out, folder = sys.argv[1:]
photos = tfds.data_source(
    "image_folder", split="database", data_dir=out, builder_kwargs={"folder": folder}
)
queries = tfds.data_source(
    "image_folder", split="queries", data_dir=out, builder_kwargs={"folder": folder}
)
found = photos[int(queries[0]["positives"][0])]
shape = [int(size) for size in found["image"].shape]
print(json.dumps([len(photos), found["filename"].decode(), shape, "tensorflow" in sys.modules]))
"""


def test_in_two_lines_without_tensorflow_and_jax(tmp_path):
    folder = own(tmp_path / "mine")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == [3, "3.jpg", [HEIGHT, WIDTH, 3], False]
