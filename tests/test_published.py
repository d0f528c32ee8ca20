"""Data sets as they are distributed: every layout in miniature, counts, what is said of gaps."""

import os
from pathlib import Path

import numpy as np
import pytest
from dataset_layouts import (
    BOXES,
    NAMES,
    QUERIES,
    REVISITED_QUERIES,
    classic_content,
    holidays,
    photo,
    revisited_content,
    write_indexed,
    write_mat,
    write_texts,
)

from rmacjax.datasets import (
    CORRUPTED_PARIS,
    KNOWN,
    Counts,
    default_folder,
    parse_indexed,
    parse_oxford_text,
    read_dataset,
    read_distractors,
    read_ground_truth,
)
from rmacjax.datasets.known import lies_in
from rmacjax.preprocessing import encode_png

SMALL = Counts(5, 3)
REVISITED = Counts(5, 2)


def stem(path):
    return Path(path).stem.removeprefix("oxc1_")


def named(truth, numbers):
    return sorted(stem(truth.paths[i]) for i in numbers)


def check_classic(truth):
    """Whatever the layout: the facts of `QUERIES`, boxes outward and on the photo."""
    assert sorted(map(stem, truth.paths)) == sorted(NAMES)
    assert truth.protocol == "classic"
    assert len(truth.queries) == len(QUERIES)
    for query, (name, image, _, good, ok, junk) in zip(truth.queries, QUERIES, strict=True):
        assert query.name in (name, image)
        assert stem(query.path) == image
        assert os.path.isfile(query.path)
        assert query.box_px == BOXES[name]
        assert named(truth, query.positives) == sorted([*good, *ok])
        assert named(truth, query.junk) == sorted(junk)
        assert query.hard.size == 0
        # Its own photo is a positive, with the query's box.
        own = truth.paths.index(query.path)
        assert own in query.positives
        assert query.boxes[own] == query.box_px
    first, second, gate = truth.queries
    assert first.boxes == second.boxes  # each knows the other's
    assert len(first.boxes) == 2
    assert len(gate.boxes) == 1


def flat(root, folder=""):
    for seed, name in enumerate(NAMES):
        photo(root / folder / f"{name}.jpg", seed)


def texts_in(place):
    def write(root):
        flat(root)
        write_texts(root / place)

    return write


def jpg_with_texts(root):
    flat(root, "jpg")
    write_texts(root / "gt_files_170407")


def deep_texts(root):
    flat(root, "jpg")
    write_texts(root / "data" / "gt_files_170407")


def landmarks(root):
    for seed, name in enumerate(NAMES):
        photo(root / "paris" / name.split("_")[0] / f"{name}.jpg", seed)
    write_texts(root / "paris_120310", prefix="")


def blurred(root):
    flat(root, "oxbuild_images-v1")
    write_texts(root / "gt_files_170407")


def prefixed(root):
    for seed, name in enumerate(NAMES):
        photo(root / "jpg" / f"oxc1_{name}.jpg", seed)
    write_texts(root / "lab")


def indexed(suffix, *, beside=False):
    def write(root, name):
        flat(root, "jpg")
        write_indexed((root.parent if beside else root) / f"gnd_{name}{suffix}", classic_content())

    return write


@pytest.mark.parametrize("name", ["oxford5k", "paris6k"])
@pytest.mark.parametrize(
    "write",
    [
        texts_in("gt_files_170407"),
        texts_in("."),
        jpg_with_texts,
        deep_texts,
        landmarks,
        blurred,
        prefixed,
    ],
)
def test_classic_in_text_layouts(tmp_path, name, write):
    root = tmp_path / name
    write(root)
    truth = read_dataset(name, root, counts=SMALL)
    assert truth.name == name
    check_classic(truth)
    check_classic(read_ground_truth(root))


@pytest.mark.parametrize("suffix", [".pkl", ".mat", ".json"])
@pytest.mark.parametrize("beside", [False, True])
def test_classic_in_one_file(tmp_path, suffix, beside):
    root = tmp_path / "oxford5k"
    indexed(suffix, beside=beside)(root, "oxford5k")
    photo(root / "jpg" / "stranger.jpg")  # not in imlist
    truth = read_dataset("oxford5k", root, counts=SMALL)
    check_classic(truth)
    assert [stem(path) for path in truth.paths] == NAMES  # the file's order
    if not beside:
        check_classic(read_ground_truth(root))
        check_classic(read_ground_truth(root / f"gnd_oxford5k{suffix}"))


@pytest.mark.parametrize("suffix", [".pkl", ".mat", ".json"])
def test_revisited(tmp_path, suffix):
    root = tmp_path / "roxford5k"
    flat(root, "jpg")
    for seed, (image, *_) in enumerate(REVISITED_QUERIES):
        photo(root / "jpg" / f"{image}.jpg", 100 + seed)
    write_indexed(root / f"gnd_roxford5k{suffix}", revisited_content())
    truth = read_dataset("roxford5k", root, counts=REVISITED)
    assert (truth.name, truth.protocol) == ("roxford5k", "revisited")
    assert [stem(path) for path in truth.paths] == NAMES  # the queries' photos are not among them
    for query, (image, _, easy, hard, junk) in zip(truth.queries, REVISITED_QUERIES, strict=True):
        assert stem(query.path) == image
        assert query.path not in truth.paths
        assert named(truth, query.positives) == sorted([*easy, *hard])
        assert named(truth, query.hard) == sorted(hard)
        assert named(truth, query.junk) == sorted(junk)
        assert query.boxes == {}
    assert [query.box_px for query in truth.queries] == [(4, 3, 25, 21), (0, 0, 30, 40)]
    assert read_ground_truth(root).protocol == "revisited"
    # The photos are those of Oxford5k, and may be there once for both.
    (root).rename(tmp_path / "oxford5k")
    again = read_dataset("roxford5k", root, counts=REVISITED)
    assert [query.name for query in again.queries] == [query.name for query in truth.queries]
    assert again.paths[0] == str(tmp_path / "oxford5k" / "jpg" / f"{NAMES[0]}.jpg")


def test_instre(tmp_path):
    """Photos by path, numbers from 1, boxes as left, top, width, height; queries apart."""
    root = tmp_path / "instre"
    names = ["INSTRE-S1/01a_book/001.jpg", "INSTRE-S1/01a_book/002.jpg", "INSTRE-M/3/001.jpg"]
    for seed, name in enumerate([*names, "INSTRE-S2/05_cup/007.jpg"]):
        photo(root / name, seed)
    gnd = [{"ok": [0, 2], "bbx": [4, 6, 24, 36]}]
    content = {"imlist": names, "qimlist": ["INSTRE-S2/05_cup/007.jpg"], "gnd": gnd}
    write_mat(root / "gnd_instre.mat", content, sized=True)
    truth = read_dataset("instre", root, counts=Counts(3, 1))
    assert truth.paths == [str(root / name) for name in names]
    (query,) = truth.queries
    assert query.path.endswith("05_cup/007.jpg")
    assert query.box_px == (6, 4, 30, 24)  # 36 reaches beyond the 30 rows
    assert (query.positives.tolist(), query.junk.tolist()) == ([0, 2], [])
    assert truth.protocol == "classic"
    assert len(read_ground_truth(root).queries) == 1


def test_holidays(tmp_path):
    names = holidays(tmp_path)
    truth = read_dataset("holidays", tmp_path, counts=Counts(8, 3))
    assert [stem(path) for path in truth.paths] == names
    assert [query.positives.tolist() for query in truth.queries] == [[1, 2, 3], [5], [7]]
    # Each query is in the collection and taken out of its own ranking.
    assert [query.junk.tolist() for query in truth.queries] == [[0], [4], [6]]
    assert [truth.paths[int(query.junk[0])] for query in truth.queries] == [
        query.path for query in truth.queries
    ]
    assert all(query.box_px is None for query in truth.queries)
    assert len(read_ground_truth(tmp_path).queries) == 3
    (tmp_path / "holidays_images.dat").write_text("\n".join(f"{name}.jpg" for name in names))
    (tmp_path / "jpg" / "100101.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 .*the first is 100101; download jpg1"):
        read_dataset("holidays", tmp_path, counts=Counts(8, 3))
    (tmp_path / "holidays_images.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds 7 photos of INRIA Holidays where 8 belong"):
        read_dataset("holidays", tmp_path, counts=Counts(8, 3))
    (tmp_path / "jpg" / "149900.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="the first is 149900"):
        read_dataset("holidays", tmp_path)
    photo(tmp_path / "jpg" / "me.jpg")
    with pytest.raises(ValueError, match=r"me\.jpg is no photo of Holidays"):
        read_dataset("holidays", tmp_path)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["oxford105k", "paris106k"])
def test_hundred_thousand_distractors(tmp_path, name, inside):
    """The distractors and the data set lie in the folder, or beside it."""
    root = tmp_path / name
    base = KNOWN[name].base
    place = root if inside else tmp_path
    jpg_with_texts(place / base)
    for seed, tag in enumerate(["animals", "beach/more", "beach"]):
        photo(place / "oxc1_100k" / tag / f"{seed}.jpg", seed)
    truth = read_dataset(name, root, counts=SMALL._replace(distractors=3))
    assert truth.name == name
    assert len(truth.paths) == 8
    assert all("oxc1_100k" in path for path in truth.paths[5:])
    check_classic(truth._replace(paths=truth.paths[:5]))
    photo(place / "oxc1_100k" / "x.jpg")
    with pytest.raises(FileNotFoundError, match="holds 4 distractors where 3 belong"):
        read_dataset(name, root, counts=SMALL._replace(distractors=3))


def test_distractors_among_the_photos_are_not_taken_for_them(tmp_path):
    """All in one folder: the photos flat, the distractors in theirs, one of the same name."""
    root = tmp_path / "oxford105k"
    texts_in("gt_files_170407")(root)
    photo(root / "oxc1_100k" / "beach" / "clock_000001.jpg")
    truth = read_dataset("oxford105k", root, counts=SMALL._replace(distractors=1))
    assert len(truth.paths) == 6
    check_classic(truth._replace(paths=truth.paths[:5]))


def test_a_million_distractors(tmp_path):
    root = tmp_path / "roxford5k+1m"
    flat(tmp_path / "roxford5k", "jpg")
    for image, *_ in REVISITED_QUERIES:
        photo(tmp_path / "roxford5k" / "jpg" / f"{image}.jpg")
    write_indexed(tmp_path / "roxford5k" / "gnd_roxford5k.pkl", revisited_content())
    counts = REVISITED._replace(distractors=3)
    with pytest.raises(FileNotFoundError, match=r"needs revisitop1m, .*download revisitop1m\.1\."):
        read_dataset("roxford5k+1m", root, counts=counts)
    names = ["b/c/9.jpg", "a/c/7.jpg", "a/d/8.jpg"]
    for name in names:
        photo(tmp_path / "revisitop1m" / "jpg" / name)
    truth = read_dataset("roxford5k+1m", root, counts=counts)
    assert (len(truth.paths), truth.protocol, truth.name) == (8, "revisited", "roxford5k+1m")
    # The list, which may begin at either folder, gives the order and is complete.
    for start in ("", "jpg/"):
        listing = tmp_path / "revisitop1m" / "revisitop1m.txt"
        listing.write_text("\n".join(start + name for name in names))
        found = read_distractors(tmp_path / "revisitop1m")
        assert [Path(path).name for path in found] == ["9.jpg", "7.jpg", "8.jpg"]
    (tmp_path / "revisitop1m" / "jpg" / "a" / "c" / "7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 .*the first is jpg/a/c/7\.jpg"):
        read_dataset("roxford5k+1m", root, counts=counts)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere of distractors"):
        read_distractors(tmp_path / "nowhere")


def test_corrupted_photos_of_paris_are_reported_and_left_out(tmp_path):
    """They lie among the photos and even in the lists, and belong to neither."""
    broken = "paris_louvre_000136"
    assert broken in CORRUPTED_PARIS
    for write in (landmarks, jpg_with_texts):
        root = tmp_path / write.__name__
        write(root)
        place = root / "paris" / "louvre" if write is landmarks else root / "jpg"
        place.mkdir(exist_ok=True)
        (place / f"{broken}.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
        for file in root.rglob("clock_1_ok.txt"):
            file.write_text(f"clock_000002\n{broken}\nparis_pompidou_000195\n")
        truth = read_dataset("paris6k", root, counts=SMALL)
        check_classic(truth)
        assert [path for path, _ in truth.left_out] == [str(place / f"{broken}.jpg")]
        assert "broken as distributed" in truth.left_out[0][1]
    assert len(CORRUPTED_PARIS) == 20


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    root = tmp_path / "oxford5k"
    oxford = r"download oxbuild_images-v1\.tgz .*https://www\.robots\.ox\.ac\.uk/.*unpack them in "
    with pytest.raises(FileNotFoundError, match=rf"^There is no folder .*: {oxford}.*oxford5k\.$"):
        read_dataset("oxford5k", root)
    flat(root)
    with pytest.raises(FileNotFoundError, match=rf"holds no ground truth of Oxford5k: {oxford}"):
        read_dataset("oxford5k", root)
    write_texts(root)
    with pytest.raises(FileNotFoundError, match=r"holds 5 photos of Oxford5k where 5063 belong"):
        read_dataset("oxford5k", root)
    with pytest.raises(FileNotFoundError, match=r"holds 3 queries of Oxford5k where 4 belong"):
        read_dataset("oxford5k", root, counts=Counts(5, 4))
    (root / "gate_000001.jpg").unlink()
    (root / "sky_000001.jpg").unlink()
    missing = rf"2 of 5 photos .* the first are gate_000001, sky_000001; {oxford}"
    with pytest.raises(FileNotFoundError, match=missing):
        read_dataset("oxford5k", root, counts=SMALL)
    with pytest.raises(ValueError, match=r"no data set 'oxford'; there are oxford5k, paris6k, .*"):
        read_dataset("oxford")


def test_what_is_missing_of_an_indexed_set_is_named(tmp_path):
    root = tmp_path / "roxford5k"
    flat(root, "jpg")
    with pytest.raises(FileNotFoundError, match=r"gnd_roxford5k\.pkl from http://cmp"):
        read_dataset("roxford5k", root)
    write_indexed(root / "gnd_roxford5k.pkl", revisited_content())
    with pytest.raises(FileNotFoundError, match=r"2 of 7 .*first are all_000008, all_000009; down"):
        read_dataset("roxford5k", root, counts=REVISITED)
    photo(root / "jpg" / "twice" / "clock_000001.jpg")
    with pytest.raises(ValueError, match=r"Two photos in .* are called clock_000001"):
        read_dataset("roxford5k", root, counts=REVISITED)


def test_two_ground_truths_in_a_folder(tmp_path):
    flat(tmp_path, "jpg")
    for name in ("oxford5k", "other"):
        write_indexed(tmp_path / f"gnd_{name}.json", classic_content())
    with pytest.raises(ValueError, match=r"several ground truths: give the file, such as .*other"):
        read_ground_truth(tmp_path)
    check_classic(read_dataset("oxford5k", tmp_path, counts=SMALL))


@pytest.mark.parametrize(
    ("name", "place", "there"),
    [
        ("oxford5k", "oxford5k/jpg/a.jpg", True),
        ("oxford5k", "paris6k/jpg/a.jpg", False),
        ("roxford5k", "oxford5k/gnd_roxford5k.pkl", True),
        ("roxford5k", "oxford5k/gnd_oxford5k.pkl", False),
        ("roxford5k+1m", "oxford5k/gnd_roxford5k.mat", True),
        ("oxford105k", "oxford5k/jpg/a.jpg", True),
        ("image_folder", "image_folder/a.jpg", True),
    ],
)
def test_where_a_data_set_lies(tmp_path, name, place, there):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    assert lies_in(name, tmp_path) == there


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RMACJAX_DATA", str(tmp_path))
    assert default_folder("oxford5k") == tmp_path / "oxford5k"
    jpg_with_texts(tmp_path / "oxford5k")
    check_classic(read_dataset("oxford5k", counts=SMALL))
    monkeypatch.delenv("RMACJAX_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    manual = tmp_path / "tensorflow_datasets" / "downloads" / "manual"
    assert default_folder("rparis6k+1m") == manual / "rparis6k+1m"
    assert set(KNOWN) == {
        *("oxford5k", "paris6k", "roxford5k", "rparis6k", "oxford105k", "paris106k"),
        *("roxford5k+1m", "rparis6k+1m", "holidays", "instre"),
    }


def facts(truth):
    """A ground truth by names, in an order of its own."""
    rows = [
        (
            stem(query.path),
            query.box_px,
            named(truth, query.positives),
            named(truth, query.junk),
            sorted((stem(truth.paths[i]), box) for i, box in query.boxes.items()),
        )
        for query in truth.queries
    ]
    return sorted(rows)


@pytest.mark.parametrize("name", ["oxford5k", "paris6k"])
def test_all_of_the_real_ground_truth(shared, tmp_path, name):
    """Every form says the same of all 5063 and 6392 photos; the photos themselves are stand-ins."""
    source = shared / "data" / "oxford5k_mini"
    photos, queries, *_ = KNOWN[name].counts
    from_json = parse_indexed(source / f"gnd_{name}.json")
    from_mat = parse_indexed(source / f"gnd_{name}.mat")
    assert from_mat == from_json
    assert (len(from_json.names), len(from_json.queries)) == (photos, queries)
    assert not CORRUPTED_PARIS & set(from_json.names)
    assert from_json.protocol == "classic"

    root = tmp_path / name
    (root / "jpg").mkdir(parents=True)
    stand_in = tmp_path / "stand_in.png"
    stand_in.write_bytes(encode_png(np.zeros((1024, 1024, 3), np.uint8)))
    names = [*from_json.names, *(CORRUPTED_PARIS if name == "paris6k" else ())]
    assert len(names) == {"oxford5k": 5063, "paris6k": 6412}[name]
    for each in names:
        os.link(stand_in, root / "jpg" / f"{each}.png")
    for suffix in (".json", ".mat"):
        os.symlink(source / f"gnd_{name}{suffix}", root / f"gnd_{name}{suffix}")
    truth = read_dataset(name, root)  # checks the published counts
    (root / f"gnd_{name}.mat").unlink()
    assert facts(read_dataset(name, root)) == facts(truth)
    (root / f"gnd_{name}.json").unlink()
    if name == "oxford5k":
        texts = source / "gt_files_170407"
        from_text = parse_oxford_text(texts)
        for mine, theirs in zip(from_text, from_json.queries, strict=True):
            assert mine.image == theirs.image
            assert mine.box_ltrb == theirs.box_ltrb
            # One photo is listed twice, in all_souls_1_good.txt.
            assert len({*mine.good, *mine.ok}) == len(theirs.ok)
            assert len({*mine.junk}) == len(theirs.junk)
        os.symlink(texts, root / "gt_files_170407")
    else:
        rows = [
            (f"landmark{i // 5}_{i % 5 + 1}", query.image, query.box_ltrb, [], query.ok, query.junk)
            for i, query in enumerate(from_json.queries)
        ]
        write_texts(root / "paris_120310", prefix="", queries=rows)
    again = read_dataset(name, root)
    assert facts(again) == facts(truth)
    assert len(again.left_out) == len(names) - photos
    assert all(len(query.boxes) == 5 for query in truth.queries)  # a landmark's five queries
