"""What to learn from: layouts are recognised, labels are right, plans keep their word."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from dataset_layouts import photo
from PIL import Image

from rmacjax.datasets import labelled
from rmacjax.finetune.making import Order, make
from rmacjax.finetune.sources import (
    FolderOfFolders,
    GeneratedScenes,
    PhotoViews,
    RetrievalSfm,
    Stage,
    open_source,
    plan_epoch,
)
from rmacjax.finetune.sources.opening import _name_and_split
from rmacjax.finetune.sources.prepared import Prepared
from rmacjax.preprocessing import encode_png, load_image
from rmacjax.scenes import search_batch, texture_bank

pytestmark = [
    # Of the libraries below: array_record leaves its files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three objects, one of them with a single photo, and two photos without a label."""
    root = tmp_path_factory.mktemp("folders")
    for seed, (folder, name) in enumerate(
        [("bee", "1"), ("bee", "2"), ("ant", "1"), ("ant", "deep/2"), ("ant", "3"), ("cow", "1")]
    ):
        photo(root / folder / f"{name}.jpg", seed, 80, 90)
    for seed in (10, 11):
        photo(root / f"loose{seed}.jpg", seed, 80, 90)
    return root


def test_a_folders_name_is_the_label_of_the_photos_below_it(folders):
    source = open_source(folders, long_side=45)
    assert isinstance(source, FolderOfFolders)
    names = [source.name_of(i).removeprefix(f"{folders}/") for i in range(len(source))]
    labels = {name: source.label_of(i) for i, name in enumerate(names)}
    assert labels == {
        "ant/1.jpg": "ant",
        "ant/3.jpg": "ant",
        "ant/deep/2.jpg": "ant",
        "bee/1.jpg": "bee",
        "bee/2.jpg": "bee",
        "cow/1.jpg": "cow",
        "loose10.jpg": "",
        "loose11.jpg": "",
    }
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2, -1, -1]
    assert source.pairs is None
    pixels = source.read(3)
    assert pixels.shape == (40, 45, 3)
    np.testing.assert_array_equal(pixels, load_image(folders / "bee" / "1.jpg", 45).pixels)


def test_a_folder_that_nobody_may_read_is_not_called_empty(folders, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(OSError, match="No permission"):
        open_source(folders)


@pytest.mark.parametrize("shape", [(1, 1), (8, 3000), (3000, 8)])
def test_what_is_too_narrow_for_views_is_named_and_left_out(tmp_path, shape):
    for seed in range(3):
        photo(tmp_path / f"{seed}.png", seed, 80, 90)
    Image.fromarray(np.full((*shape, 3), 99, np.uint8)).save(tmp_path / "narrow.png")
    source = PhotoViews(tmp_path, n=4, size=64)
    drawing = source.draw(0, 0)
    (sentence,) = drawing.unreadable
    assert "narrow.png" in sentence and "leave it out" in sentence
    assert sorted(drawing.labels.tolist()) == [-1, 0, 1, 2]


@pytest.mark.parametrize("kind", [FolderOfFolders, PhotoViews])
def test_a_folder_that_cannot_be_looked_into_is_told_of(folders, monkeypatch, kind):
    real, closed = os.scandir, str(folders / "ant")

    def forbidden(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    assert kind(folders).problems == []
    monkeypatch.setattr(os, "scandir", forbidden)
    source = kind(folders)
    (sentence,) = source.problems
    assert repr(closed) in sentence and "No permission" in sentence
    files = [source.name_of(i) for i in range(len(source))]
    assert len(files) == 5 and not any(closed in file for file in files)


class Shelf(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A data set with labels as tests prepare it: number i shows colour i, of class i % 3."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    FEATURES = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(type(self).FEATURES),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, _):
        def examples():
            for i in range(7):
                values = {"photo": encode_png(np.full((48, 64, 3), 30 * i, np.uint8))}
                for key in type(self).FEATURES:
                    if key != "photo":
                        values[key] = i % 2 if key == "kind" else i % 3
                yield i, values

        return {"train": [examples], "test": [examples]}


def shelf(name, out, **features):
    kinds = {"photo": tfds.features.Image(shape=(None, None, 3)), **features}
    made = type(name, (Shelf,), {"FEATURES": kinds, "name": name.lower()}, skip_registration=True)
    builder = made(data_dir=out, file_format="array_record")
    builder.download_and_prepare()
    return name.lower()


def test_a_prepared_data_set_gives_its_finest_classes_and_files_at_random(tmp_path):
    classes = {
        "kind": tfds.features.ClassLabel(num_classes=2),
        "thing": tfds.features.ClassLabel(names=["ape", "bat", "cat"]),
    }
    source = Prepared(shelf("Shelf1", tmp_path, **classes), folder=tmp_path, long_side=32)
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [source.label_of(i) for i in (0, 1, 5)] == ["ape", "bat", "cat"]
    assert "image 4" in source.name_of(4)
    there = pickle.loads(pickle.dumps(source))
    for each in (source, there):
        for i in (6, 0, 3):
            assert each.read(i).shape == (24, 32, 3)
            np.testing.assert_allclose(each.read(i).astype(int), 30 * i, atol=3)


def test_a_whole_number_that_is_called_a_label_is_one(tmp_path):
    name = shelf("Shelf2", tmp_path, index=np.int64, landmark_id=np.int64)
    source = Prepared(name, "test", folder=tmp_path)
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert source.label_of(2) == "2"


@pytest.mark.parametrize(
    ("name", "label"), [("cars196", "label"), ("stanford_online_products", "class_id")]
)
def test_published_sets_have_their_labels_where_they_are_looked_for(name, label, tmp_path):
    features = tfds.builder(name, data_dir=tmp_path).info.features
    assert labelled._image_key(features, name) == "image"
    assert labelled._label_key(features, name) == label


def test_what_cannot_be_learned_from_is_said_in_a_sentence(tmp_path):
    name = shelf("Shelf3", tmp_path, index=np.int64)
    with pytest.raises(ValueError, match="has no labels, only index, photo"):
        Prepared(name, folder=tmp_path)
    with pytest.raises(ValueError, match="no split 'validation'; it has"):
        Prepared(name, "validation", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cars196 is not prepared in .*prepare it once"):
        Prepared("cars196", folder=tmp_path)
    with pytest.raises(ValueError, match="cannot open 'no_such_set'") as error:
        Prepared("no_such_set", folder=tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="names no data set"):
        open_source("tfds:")
    with pytest.raises(FileNotFoundError, match=r"nothing to learn from at .*'scenes'"):
        open_source(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no photo in"):
        open_source(empty)
    file = tmp_path / "list.txt"
    file.write_text("a")
    with pytest.raises(ValueError, match="is a file"):
        open_source(file)
    alone = tmp_path / "alone"
    photo(alone / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"has too few photos \(1\)"):
        open_source(alone)
    with pytest.raises(ValueError, match=r"none has a label.*views:"):
        FolderOfFolders(alone)


def test_names_of_data_sets_are_taken_apart_at_the_split():
    assert _name_and_split("cars196", "train") == ("cars196", "train")
    assert _name_and_split("cars196:test", "train") == ("cars196", "test")
    assert _name_and_split("a/b:1.0.0", "train") == ("a/b:1.0.0", "train")
    assert _name_and_split("a/b:1.*.*:all", "train") == ("a/b:1.*.*", "all")


@pytest.fixture
def geometry(tmp_path):
    """Seven photos of three landmarks, laid out as retrieval-SfM is."""
    cids = [f"{i:02d}abcdef{i:02d}" for i in range(7)]
    content = {
        "train": {
            "cids": cids,
            "cluster": [5, 5, 5, 8, 8, 9, 9],
            "qidxs": np.array([0, 3, 5]),
            "pidxs": np.array([2, 4, 6]),
        },
        "val": {"cids": cids[:2], "cluster": [1, 1], "qidxs": [0], "pidxs": [1]},
    }
    for i, cid in enumerate(cids):
        photo(tmp_path / "ims" / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid, i, 70, 80)
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(content))
    return tmp_path


def test_retrieval_sfm_has_pairs_and_clusters(geometry):
    source = open_source(geometry)
    assert isinstance(source, RetrievalSfm)
    assert source.pairs.tolist() == [[0, 2], [3, 4], [5, 6]]
    assert source.clusters.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert [source.label_of(i) for i in (0, 4, 6)] == ["landmark 5", "landmark 8", "landmark 9"]
    assert source.name_of(3).endswith("ims/03/ef/cd/03abcdef03")
    assert source.read(3).shape == (70, 80, 3)
    val = open_source(geometry, part="val")
    assert len(val) == 2 and val.pairs.tolist() == [[0, 1]]


def test_a_list_that_is_not_as_it_should_be_is_refused(geometry):
    file = geometry / "retrieval-SfM-120k.pkl"
    content = pickle.loads(file.read_bytes())
    content["train"]["qidxs"] = [0, 3, 7]
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="name photos that are not in its list"):
        open_source(geometry)
    named = content["train"]["cids"]
    content["train"]["cids"] = ["../../etc/passwd", *named[1:]]
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="no name of a photo"):
        open_source(geometry)
    for dtype in (np.uint8, np.int32, np.uint64):
        fine = {key: np.asarray(content["train"][key], dtype) for key in ("cluster", "pidxs")}
        lists = content["train"] | {"cids": named, "qidxs": [0, 3, 5]} | fine
        file.write_bytes(pickle.dumps({"train": lists}))
        assert open_source(geometry).pairs.tolist() == [[0, 2], [3, 4], [5, 6]]
    for key, value, words in (
        ("cids", np.asarray("name"), "has no list of the names of its photos"),
        ("cids", 5, "has no list of the names of its photos"),
        ("cids", None, "has no list of the names of its photos"),
        ("cids", [b"\xff\xfe\xfd\xfc\xfb\xfa"] * 7, "no name of a photo"),
        ("cluster", [[1, 2], [3]], "'cluster' is no list of whole numbers"),
    ):
        file.write_bytes(pickle.dumps({"train": content["train"] | {"cids": named, key: value}}))
        with pytest.raises(ValueError, match=words) as refused:
            open_source(geometry)
        assert str(file) in str(refused.value)
    file.write_bytes(pickle.dumps({"train": {"cids": []}}))
    with pytest.raises(ValueError, match="has no part 'train' with cids, cluster"):
        open_source(geometry)


def test_landmarks_of_any_number_are_trained_on(geometry):
    file = geometry / "retrieval-SfM-120k.pkl"
    content = pickle.loads(file.read_bytes())
    content["train"]["cluster"] = [5, 5, 5, 2**40, 2**40, 2**62, -2]
    file.write_bytes(pickle.dumps(content))
    source = open_source(geometry)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2, -1]
    assert [source.label_of(i) for i in (3, 6)] == [f"landmark {2**40}", ""]
    (planned,) = plan_epoch(source, np.random.default_rng(0), objects=3)
    made = make(source, Order(0, planned=planned))
    assert made.labels.dtype == made.clusters.dtype == np.int32
    assert len(np.unique(made.clusters)) == 4


def as_pairs(planned):
    """The positives of a step, by brute force."""
    rows = range(len(planned.indices))
    return {
        frozenset((planned.indices[i], planned.indices[j]))
        for i in rows
        for j in rows
        if i < j and planned.labels[i] == planned.labels[j]
    }


class Many:
    """Labels without photos; every eleventh image has none."""

    name, pairs = "many", None

    def __init__(self, m=500, objects=60):
        numbers = np.random.default_rng(0).integers(0, objects, m)
        self.labels = np.where(np.arange(m) % 11 == 0, -1, numbers)
        self.clusters = self.labels

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        raise OSError(f"there is no image {index}")

    def label_of(self, index):
        return str(self.labels[index])

    def name_of(self, index):
        return str(index)


def test_a_plan_has_every_object_once_and_only_true_positives():
    source = Many()
    negatives = np.random.default_rng(1).integers(-1, 500, (500, 3))
    plan = plan_epoch(source, np.random.default_rng(5), objects=7, images=3, negatives=negatives)
    seen = set()
    for planned in plan:
        assert len(planned.indices) == len(set(planned.indices)) == 7 * (3 + 3)
        first = planned.indices[0]
        mined = [i for i in negatives[first].tolist() if i >= 0 and i not in planned.indices]
        assert not mined, "hard negatives of the first image are missing"
        for i, index in enumerate(planned.indices):
            for j, other in enumerate(planned.indices[:i]):
                same = source.labels[index] == source.labels[other] >= 0
                assert (planned.labels[i] == planned.labels[j]) == same
                assert (planned.clusters[i] == planned.clusters[j]) == same
        seen |= {int(source.labels[i]) for i in planned.indices[: 7 * 3]} - {-1}
    assert seen == set(source.labels.tolist()) - {-1}
    assert len(plan) == -(-60 // 7)
    again = plan_epoch(source, np.random.default_rng(5), objects=7, images=3, negatives=negatives)
    other = plan_epoch(source, np.random.default_rng(6), objects=7, images=3, negatives=negatives)
    assert again == plan and other[0] != plan[0]


def test_images_without_a_label_come_first_where_negatives_are_missing():
    source = Many()
    none = np.full((500, 3), -1)
    planned = plan_epoch(source, np.random.default_rng(0), objects=2, negatives=none)[0]
    assert [int(source.labels[i]) for i in planned.indices[4:]] == [-1] * 6
    assert len(set(planned.labels[4:])) == 6 and not set(planned.labels[4:]) & set(
        planned.labels[:4]
    )
    assert min(planned.labels) >= 0, "they take part"


def test_pairs_alone_are_positives_where_geometry_says_so(geometry):
    source = open_source(geometry)
    none = np.full((len(source), 1), -1)
    plan = plan_epoch(source, np.random.default_rng(0), objects=2, negatives=none)
    found = set().union(*map(as_pairs, plan))
    assert found == {frozenset(pair) for pair in source.pairs.tolist()}
    for planned in plan:
        assert planned.clusters == tuple(source.clusters[list(planned.indices)])


def test_a_small_source_is_filled_up_and_a_hopeless_one_refused(folders):
    source = open_source(folders)
    plan = plan_epoch(source, np.random.default_rng(0), objects=3, images=2)
    assert {len(planned.indices) for planned in plan} == {6}
    ants_and_bees = {frozenset(pair) for pair in [(0, 1), (0, 2), (1, 2), (3, 4)]}
    assert set().union(*map(as_pairs, plan)) <= ants_and_bees
    with pytest.raises(ValueError, match="has 8 images, and a step takes 16"):
        plan_epoch(source, np.random.default_rng(0))
    with pytest.raises(ValueError, match="images >= 2"):
        plan_epoch(source, np.random.default_rng(0), images=1)
    with pytest.raises(ValueError, match="a row for each of 8 images"):
        plan_epoch(source, np.random.default_rng(0), negatives=np.zeros((3, 1), int))
    single = Many(20, 1)
    single.labels = single.clusters = np.arange(20)
    with pytest.raises(ValueError, match="one object without negatives"):
        plan_epoch(single, np.random.default_rng(0), objects=1)
    one = Many(20, 1)
    one.labels = one.clusters = np.zeros(20, int)
    with pytest.raises(ValueError, match="all 20 images of many belong to one object"):
        plan_epoch(one, np.random.default_rng(0), objects=2)
    with pytest.raises(ValueError, match="no two images that match"):
        plan_epoch(single, np.random.default_rng(0), objects=2)


def test_views_of_photos_share_what_they_show_and_skip_what_cannot_be_read(tmp_path):
    y, x = np.mgrid[:240, :320]
    for i in range(5):
        pixels = np.stack([y * 255 // 239, x * 255 // 319, np.full_like(x, 40 * i)], -1)
        (tmp_path / f"{i}.png").write_bytes(encode_png(pixels.astype(np.uint8)))
    source = open_source(tmp_path, n=5, size=64)
    assert isinstance(source, PhotoViews)
    plain = PhotoViews(tmp_path, n=5, size=64, strength=0.0)
    drawing = plain.draw(0, 0)
    assert drawing.first.shape == drawing.second.shape == (5, 64, 64, 3)
    assert sorted(drawing.labels.tolist()) == [0, 1, 2, 3, 4]
    for first, second in zip(drawing.first, drawing.second, strict=True):
        means = [view.astype(float).mean((0, 1)) for view in (first, second)]
        assert abs(means[0][2] - means[1][2]) < 4, "views of another photo"
        assert abs(first.astype(int) - second).mean() > 2, "the same view twice"
        places = [
            [(view[..., c].min(), view[..., c].max()) for c in (0, 1)] for view in (first, second)
        ]
        for (low, high), (lower, higher) in zip(*places, strict=True):
            assert max(low, lower) < min(high, higher), "views share nothing"
    again = PhotoViews(tmp_path, n=5, size=64, strength=0.0).draw(0, 0)
    np.testing.assert_array_equal(again.second, drawing.second)
    assert (source.draw(0, 1).first != source.draw(1, 1).first).any()
    (tmp_path / "2.png").write_bytes(b"no photo")
    broken = source.draw(0, 3)
    row = broken.labels.tolist().index(-1)
    assert broken.files[row].endswith("2.png") and "2.png" in broken.unreadable[0]
    assert not broken.first[row].any()
    with pytest.raises(ValueError, match="take two a step, not 1"):
        PhotoViews(tmp_path, n=1)


def test_every_photo_is_seen_once_before_any_is_seen_again(tmp_path):
    for i in range(6):
        photo(tmp_path / f"{i}.jpg", i)
    source = PhotoViews(tmp_path, n=2, size=16)
    for first in (0, 3):
        labels = [label for step in range(3) for label in source._chosen(7, first + step)]
        assert sorted(labels) == [0, 1, 2, 3, 4, 5]


def test_views_of_photos_that_are_hard_to_tell_apart_share_a_step(tmp_path):
    for i in range(9):
        photo(tmp_path / f"{i}.jpg", i)
    source = PhotoViews(tmp_path, n=2, size=16)
    hard = np.asarray([[(i + 1) % 9, -1 if i % 3 == 0 else (i + 4) % 9] for i in range(9)])
    plan = source.plan(np.random.default_rng(3), hard)
    first = [index for planned in plan for index in planned.indices[:2]]
    assert len(plan) == 4 and len(set(first)) == 8
    for planned in plan:
        assert len(set(planned.indices)) == 6 and planned.labels == planned.indices
        mined = set(hard[list(planned.indices[:2])].ravel().tolist()) - {-1}
        assert mined <= set(planned.indices)
    drawing = source.draw(7, 5, plan[0].indices)
    assert drawing.labels.tolist() == list(plan[0].indices)
    assert drawing.files == tuple(source.files[i] for i in plan[0].indices)
    with pytest.raises(ValueError, match="has 9 photos, and a step takes 10"):
        source.plan(np.random.default_rng(3), np.full((9, 4), -1))


def test_generated_scenes_go_through_their_stages():
    source = GeneratedScenes((Stage(2, "views", 48, 2), Stage(1, "searches", 96, 2)))
    assert source.draw(0, 1).first.shape == (2, 48, 48, 3)
    assert source.draw(0, 1).boxes_px is None
    for step in (2, 5):  # The last stage goes on.
        drawing = source.draw(0, step)
        assert drawing.second.shape == (2, 96, 96, 3)
        assert drawing.labels.tolist() == [0, 1]
    wanted = search_batch(
        np.random.default_rng([0, 5]),
        2,
        (80, 48),
        (96, 96),
        strength=0.8,
        gray=0.4,
        textures=texture_bank(0, 96),
        extreme=0.15,
        several=0.3,
        prints=0.25,
        mishaps=0.4,
    )
    np.testing.assert_array_equal(drawing.second, wanted.photos)
    np.testing.assert_array_equal(drawing.boxes_px, wanted.boxes)
    np.testing.assert_array_equal(drawing.overlaps, wanted.overlaps)
    assert isinstance(open_source("scenes"), GeneratedScenes)
    with pytest.raises(ValueError, match="'views' or 'searches'"):
        GeneratedScenes((Stage(2, "walks", 48, 2),))
    with pytest.raises(ValueError, match="one stage"):
        GeneratedScenes(())


def test_sources_need_neither_jax_nor_tensorflow():
    code = (
        "import sys; sys.modules['jax'] = None; sys.modules['jaxlib'] = None;"
        "sys.modules['tensorflow'] = None;"
        "import rmacjax.finetune.sources.prepared, rmacjax.finetune.making"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
