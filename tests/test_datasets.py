"""Ground truth: each format in miniature and for real, boxes on the image, errors by sentence."""

import json
import math
import subprocess
import sys

import dataset_layouts
import numpy as np
import pytest

from rmacjax.datasets import (
    GroundTruth,
    Query,
    add_distractors,
    parse_oxford_text,
    read_csv,
    read_dataset,
    read_ground_truth,
    read_museum,
    read_museum_reversed,
    read_oxford_text,
    without_answers,
    write_ground_truth,
)
from rmacjax.datasets.distractors import read_distractors
from rmacjax.datasets.ground_truth import box_from_ltrb
from rmacjax.datasets.holidays import LIST_FILE, read_holidays
from rmacjax.preprocessing import encode_png, read_size

NONE = np.zeros(0, np.int64)


def picture(path, height=30, width=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.zeros((height, width, 3), np.uint8)))
    return str(path)


def same(a: GroundTruth, b: GroundTruth) -> bool:
    def plain(truth):
        return [
            (
                *(q.path, q.box_px, q.positives.tolist(), q.junk.tolist(), q.boxes, q.name),
                q.hard.tolist(),
            )
            for q in truth.queries
        ]

    return (a.name, a.paths, a.protocol, plain(a)) == (b.name, b.paths, b.protocol, plain(b))


def oxford(folder):
    """Two queries for one landmark, one for another, four photos of 40 x 30."""
    names = ["clock_000001", "clock_000002", "gate_000001", "sky_000001"]
    for name in names:
        picture(folder / "jpg" / f"{name}.png")
    texts = {
        "clock_1_query": "oxc1_clock_000001 3.2 4.9 20.1 25",
        "clock_1_good": "clock_000001\n",
        "clock_1_ok": "clock_000002\n",
        "clock_1_junk": "gate_000001\n",
        "clock_2_query": "oxc1_clock_000002 -5 0 99 30",
        "clock_2_good": "clock_000001\n",
        "clock_2_ok": "clock_000002\n",
        "clock_2_junk": "",
        "gate_1_query": "oxc1_gate_000001 1 2 3 4",
        "gate_1_good": "",
        "gate_1_ok": "sky_000001\n",
        "gate_1_junk": "",
    }
    (folder / "gt").mkdir()
    for name, text in texts.items():
        (folder / "gt" / f"{name}.txt").write_text(text)
    return folder


def museum(folder):
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / "gallery" / name)
    entries = []
    for i, (kind, box, painting) in enumerate(
        [
            ("qsd1_w1", [0.0, 0.0, 39.5, 29.6], "b.png"),
            ("qsd2_w2", [5.5, 2.0, 30.0, 20.0], "a.png"),
            ("qsd2_w2", [1.0, 1.0, 10.0, 20.0], "a.png"),
            ("qsd2_w2", [0.0, 0.0, 40.0, 30.0], "c.png"),
        ]
    ):
        picture(folder / "queries" / kind / f"{i}.png")
        image = f"{kind}/{i}.png"
        entries.append({"set": kind, "image": image, "box_px": box, "relevant": [painting]})
    (folder / "queries.json").write_text(json.dumps(entries))
    return folder


def test_oxford_text(tmp_path):
    truth = read_ground_truth(oxford(tmp_path / "towns"))
    assert truth.name == "towns"
    assert [path.rsplit("/", 1)[1] for path in truth.paths] == [
        "clock_000001.png",
        "clock_000002.png",
        "gate_000001.png",
        "sky_000001.png",
    ]
    first, second, gate = truth.queries
    assert (first.name, second.name, gate.name) == ("clock_1", "clock_2", "gate_1")
    assert first.path == truth.paths[0]
    # Left 3.2, top 4.9, right 20.1, bottom 25: outward; and clipped to 30 x 40.
    assert first.box_px == (4, 3, 25, 21)
    assert second.box_px == (0, 0, 30, 40)
    assert first.positives.tolist() == [0, 1]
    assert first.junk.tolist() == [2]
    # Each of the landmark's queries knows the other's box; the gate is not a clock.
    assert first.boxes == second.boxes == {0: (4, 3, 25, 21), 1: (0, 0, 30, 40)}
    assert gate.boxes == {}


def test_a_query_knows_its_own_box_best(tmp_path):
    folder = oxford(tmp_path)
    for kind in ("good", "ok", "junk"):
        text = (folder / "gt" / f"clock_1_{kind}.txt").read_text()
        (folder / "gt" / f"clock_3_{kind}.txt").write_text(text)
    # A second outline in the first query's photo.
    (folder / "gt" / "clock_3_query.txt").write_text("oxc1_clock_000001 1 2 3 4")
    by_name = {query.name: query for query in read_ground_truth(folder).queries}
    assert by_name["clock_1"].boxes[0] == by_name["clock_1"].box_px == (4, 3, 25, 21)
    assert by_name["clock_3"].boxes[0] == by_name["clock_3"].box_px == (2, 1, 4, 3)


def test_oxford_text_with_missing_photos(tmp_path):
    folder = oxford(tmp_path)
    (folder / "jpg" / "clock_000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 photos .* the first is clock_000002"):
        read_ground_truth(folder)
    truth = read_oxford_text(folder / "gt", folder / "jpg", present_only=True)
    assert [query.name for query in truth.queries] == ["clock_1", "gate_1"]
    assert truth.queries[0].positives.tolist() == [0]
    assert truth.queries[0].boxes == {0: (4, 3, 25, 21)}


def test_oxford_errors(tmp_path):
    folder = oxford(tmp_path)
    (folder / "gt" / "gate_1_ok.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"gate_1_ok\.txt is missing"):
        read_ground_truth(folder)
    (folder / "gt" / "gate_1_ok.txt").write_text("")
    for text in ("oxc1_gate_000001 1 2 3", "gate_000001 1 2 3 four", "gate_000001 1 2 3 nan"):
        (folder / "gt" / "gate_1_query.txt").write_text(text)
        with pytest.raises(ValueError, match=r"gate_1_query\.txt.* four numbers"):
            read_ground_truth(folder)
    (folder / "gt" / "gate_1_query.txt").write_text("gate_000001 50 2 60 4")
    with pytest.raises(ValueError, match=r"query gate_1: the box 50, 2, 60, 4 .* 40 wide"):
        read_ground_truth(folder)
    (folder / "gt" / "gate_1_query.txt").write_text("gate_000001 1 2 3 4")
    picture(folder / "jpg" / "more" / "gate_000001.png")
    with pytest.raises(ValueError, match=r"Two photos in .* are called gate_000001"):
        read_ground_truth(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no \*_query\.txt"):
        parse_oxford_text(folder)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read_oxford_text(folder / "gt", folder / "nowhere")


def test_museum(tmp_path):
    truth = read_ground_truth(museum(tmp_path), subset="qsd2_w2")
    assert truth.name == "museum qsd2_w2"
    assert len(truth.paths) == 3
    assert [query.box_px for query in truth.queries] == [(2, 5, 20, 30), (1, 1, 20, 10), None]
    assert [query.positives.tolist() for query in truth.queries] == [[0], [0], [2]]
    assert all(query.junk.size == 0 and not query.boxes for query in truth.queries)
    everything = read_ground_truth(tmp_path)
    assert len(everything.queries) == 4
    assert everything.queries[0].box_px is None  # 39.5 x 29.6 of 40 x 30: all of it


def test_museum_reversed(tmp_path):
    extra = picture(tmp_path / "extra.png")
    truth = read_museum_reversed(museum(tmp_path / "museum"), distractors=[extra])
    assert [path.rsplit("/", 1)[1] for path in truth.paths] == [
        "1.png",
        "2.png",
        "3.png",
        "extra.png",
    ]
    a, c = truth.queries
    assert (a.name, a.box_px, a.positives.tolist()) == ("a", None, [0, 1])
    assert a.path.endswith("gallery/a.png")
    assert a.boxes == {0: (2, 5, 20, 30), 1: (1, 1, 20, 10)}
    assert c.boxes == {2: (0, 0, 30, 40)}


def test_museum_errors(tmp_path):
    folder = museum(tmp_path)
    with pytest.raises(ValueError, match=r"no subset 'qsd3'; there are qsd1_w1, qsd2_w2\."):
        read_museum(folder, subset="qsd3")
    (folder / "queries" / "qsd2_w2" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .*1\.png"):
        read_museum_reversed(folder)
    (folder / "gallery" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png is not among the collection's 2 images"):
        read_museum(folder, subset="qsd1_w1")


def own(folder):
    for name in ("a.png", "b.png", "deep/c.png", "query.png"):
        picture(folder / name)
    paths = [str(folder / name) for name in ("a.png", "b.png", "deep/c.png")]
    boxes = {2: (1, 2, 10, 11), 0: (0, 0, 30, 40)}
    queries = [
        Query(
            str(folder / "query.png"), (3, 4, 20, 30), np.array([0, 2]), np.array([1]), boxes, "q"
        ),
        Query(paths[1], None, NONE, np.array([1]), {}, "b"),
    ]
    return GroundTruth("mine – ours", paths, queries)


def test_own_format_comes_back_as_it_went(tmp_path):
    truth = own(tmp_path)
    file = tmp_path / "ground_truth.json"
    write_ground_truth(truth, file)
    assert same(read_ground_truth(tmp_path), truth)
    assert same(read_ground_truth(file), truth)
    # The folder can be moved: names are relative to the file.
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["images"] == ["a.png", "b.png", "deep/c.png"]
    assert content["queries"][0]["box"] == [4, 3, 30, 20]  # left, top, right, bottom
    assert content["queries"][0]["boxes"]["deep/c.png"] == [2, 1, 11, 10]


def test_own_format_as_people_write_it(tmp_path):
    own(tmp_path)
    entry = {"image": "query.png", "positives": ["b.png"]}
    (tmp_path / "mine.json").write_text(
        json.dumps({"images": ["a.png", "b.png"], "queries": [entry]})
    )
    truth = read_ground_truth(tmp_path / "mine.json")
    (query,) = truth.queries
    assert truth.name == tmp_path.name
    assert (query.name, query.box_px, query.boxes) == ("query", None, {})
    assert (query.positives.tolist(), query.junk.tolist()) == ([1], [])


def test_a_query_that_finds_itself_proves_nothing(tmp_path):
    own(tmp_path)
    entries = [
        {"image": "./a.png", "positives": ["b.png"]},
        {"image": "a.png", "positives": ["a.png"]},
        {"image": "b.png", "positives": [], "junk": ["a.png", "b.png"]},
    ]
    (tmp_path / "mine.json").write_text(
        json.dumps({"images": ["a.png", "b.png"], "queries": entries})
    )
    queries = read_ground_truth(tmp_path / "mine.json").queries
    assert [query.junk.tolist() for query in queries] == [[0], [], [0, 1]]


@pytest.mark.parametrize("absolute_folder", [True, False])
@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("typed", ["a.png", "deep/../a.png", "{}/a.png"])
def test_however_a_folder_and_a_photo_are_typed(
    tmp_path, monkeypatch, absolute_folder, kind, typed
):
    own(tmp_path)
    typed = typed.format(tmp_path)
    if kind == "json":
        content = {"images": ["a.png", "b.png"]}
        content["queries"] = [{"image": typed, "positives": ["b.png"]}]
        (tmp_path / "ground_truth.json").write_text(json.dumps(content))
    else:
        (tmp_path / "ground_truth.csv").write_text(f"query,positives\n{typed},b.png\n")
    monkeypatch.chdir(tmp_path.parent)
    truth = read_ground_truth(tmp_path if absolute_folder else tmp_path.name)
    assert truth.queries[0].junk.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"images": None}, ValueError, "'images' should be a list"),
        ({"images": ["a.png", "a.png"]}, ValueError, r"lists the image a\.png twice"),
        ({"images": ["a.png", "./a.png"]}, ValueError, r"lists the image \./a\.png twice"),
        (
            {"queries": [{"image": "query.png", "positives": ["b.png"], "junk": ["b.png"]}]},
            ValueError,
            r"ground_truth\.json, query 0, query: .*/b\.png is both positive and junk",
        ),
        *(
            (
                {"queries": [{"image": "query.png", "positives": [], "box": box}]},
                ValueError,
                "query 0: a box is four numbers .*not " + said,
            )
            for box, said in (
                ([0, 0, 10**400, 5], r"\[0, 0, a number of many digits, 5\]\."),
                ("1234", "'1234'"),
                ({"1": 0, "2": 0, "3": 0, "4": 0}, "a dict of length 4"),
            )
        ),
        ({"images": ["a.png", "x.png"]}, FileNotFoundError, r"1 of 2 images .*/x\.png"),
        ({"queries": [{}]}, ValueError, "query 0 has no 'image'"),
        ({"queries": [5]}, ValueError, "query 0 has no 'image'"),
        ({"queries": [{"image": "query.png"}]}, ValueError, "query 0 has no 'positives'"),
        (
            {"queries": [{"image": "query.png", "positives": ["z.png"]}]},
            ValueError,
            r"query 0: z\.png is not among the collection's 2 images",
        ),
        (
            {"queries": [{"image": "query.png", "positives": [], "box": [1, 2, 3]}]},
            ValueError,
            "query 0: a box is four numbers",
        ),
        (
            {"queries": [{"image": "query.png", "positives": [], "box": [9, 2, 9, 8]}]},
            ValueError,
            "query 0: the box 9, 2, 9, 8 .* holds no pixel",
        ),
        ({"queries": [{"image": "w.png"}]}, FileNotFoundError, r"w\.png"),
    ],
)
def test_own_format_errors(tmp_path, change, error, sentence):
    own(tmp_path)
    content = {"images": ["a.png", "b.png"], "queries": []} | change
    (tmp_path / "ground_truth.json").write_text(json.dumps(content))
    with pytest.raises(error, match=sentence):
        read_ground_truth(tmp_path)


def test_own_format_in_the_revisited_protocol(tmp_path):
    truth = own(tmp_path)
    first, second = truth.queries
    truth = truth._replace(
        protocol="revisited", queries=[first._replace(hard=np.array([2])), second]
    )
    file = tmp_path / "ground_truth.json"
    write_ground_truth(truth, file)
    again = read_ground_truth(tmp_path)
    assert same(again, truth)
    assert again.queries[0].hard.tolist() == [2]
    content = json.loads(file.read_text(encoding="utf-8"))
    content["queries"][1]["hard"] = ["a.png"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="query 1: what is 'hard' should be among"):
        read_ground_truth(tmp_path)
    file.write_text(json.dumps(content | {"protocol": "hard", "queries": []}))
    with pytest.raises(ValueError, match="'classic' or 'revisited', not 'hard'"):
        read_ground_truth(tmp_path)


def sheet(folder, text, encoding="utf-8"):
    for name in ("a.png", "b.png", "deep/c d.png", "queries/q.png"):
        picture(folder / name)
    (folder / "ground_truth.csv").write_text(text, encoding=encoding)
    return folder


def test_a_mark_of_the_coding_at_the_start_is_no_part_of_a_text(tmp_path):
    picture(tmp_path / "a.png")
    file = tmp_path / "ground_truth.json"
    write_ground_truth(GroundTruth("mine", [str(tmp_path / "a.png")], []), file)
    plain = read_ground_truth(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert same(read_ground_truth(file), plain)
    folder = oxford(tmp_path / "towns")
    plain = read_ground_truth(folder)
    for text in (folder / "gt").iterdir():
        text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    assert same(read_ground_truth(folder), plain)
    names = [f"{name}.jpg" for name in dataset_layouts.holidays(tmp_path / "holidays")]
    plain = read_holidays(tmp_path / "holidays")
    (tmp_path / "holidays" / LIST_FILE).write_text("\n".join(names), "utf-8-sig")
    assert same(read_holidays(tmp_path / "holidays"), plain)
    listing = tmp_path / "holidays" / "jpg" / "jpg.txt"
    listing.write_text("\n".join(names[:3]), "utf-8-sig")
    found = read_distractors(tmp_path / "holidays" / "jpg")
    assert [path.rpartition("/")[2] for path in found] == names[:3]


def test_a_table_says_what_to_look_for(tmp_path):
    text = (
        "query,left,top,right,bottom,positives,junk\r\n"
        "queries/q.png,3.5,4,100,20.1,a.png; deep/c d.png,b.png\r\n"
        "a.png,,,,,b.png|deep/c d.png|b.png,\r\n"
        "b.png,,,,,,\r\n"
        ",,,,,,\r\n"
    )
    # As spreadsheets save it: with a mark of its coding at the start.
    truth = read_ground_truth(sheet(tmp_path / "mine", text, "utf-8-sig"))
    assert (truth.name, truth.protocol) == ("mine", "classic")
    names = [path.removeprefix(f"{tmp_path}/mine/") for path in truth.paths]
    assert names == ["a.png", "b.png", "deep/c d.png"]  # not those in queries
    apart, inside, absent = truth.queries
    assert apart.box_px == (4, 3, 21, 40)
    assert (apart.positives.tolist(), apart.junk.tolist(), apart.name) == ([0, 2], [1], "q")
    assert inside.box_px is None
    assert inside.positives.tolist() == [1, 2]
    assert inside.junk.tolist() == [0]  # to find itself again proves nothing
    assert (absent.positives.tolist(), absent.junk.tolist()) == ([], [1])
    assert same(read_csv(tmp_path / "mine" / "ground_truth.csv"), truth)
    assert same(read_ground_truth(tmp_path / "mine" / "ground_truth.csv"), truth)
    assert same(read_dataset("image_folder", tmp_path / "mine"), truth)


def test_a_table_with_names_and_what_is_hard(tmp_path):
    text = "name,query,positives,hard\nclock,queries/q.png,a.png;b.png,b.png\n"
    (query,) = read_ground_truth(sheet(tmp_path, text)).queries
    assert (query.name, query.hard.tolist(), query.positives.tolist()) == ("clock", [1], [0, 1])
    assert read_ground_truth(tmp_path).protocol == "revisited"
    # Where both formats are there, the JSON file counts.
    write_ground_truth(GroundTruth("json", [str(tmp_path / "a.png")], []), tmp_path / "x.json")
    (tmp_path / "x.json").rename(tmp_path / "ground_truth.json")
    assert read_ground_truth(tmp_path).name == "json"


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("", ValueError, "has no column 'query'"),
        ("query,junk\n", ValueError, "has no column 'positives'"),
        ("query,positives,box\n", ValueError, "each column once, of query, left.*it has .*box"),
        ("query,positives,query\n", ValueError, "each column once"),
        ("query,left,positives\n", ValueError, "has left; a box takes left, top, right, bottom"),
        ("query,positives\na.png\n", ValueError, "line 2 has not as many cells"),
        ("query,positives\na.png,b.png,b.png\n", ValueError, "line 2 has not as many cells"),
        ("query,positives\n,b.png\n", ValueError, "line 2 names no query"),
        ("query,positives\nx.png,b.png\n", FileNotFoundError, r"x\.png"),
        ("query,positives\na.png,x.png\n", ValueError, r"line 2: x\.png is not among"),
        ("query,positives\na.png,queries/q.png\n", ValueError, "is not among"),
        ("query,positives,hard\na.png,,b.png\n", ValueError, "hard should be among"),
        (
            "query,positives,junk\na.png,b.png,b.png\n",
            ValueError,
            r"line 2, a: .*b\.png is both positive and junk",
        ),
        (
            "query,left,top,right,bottom,positives\na.png,1,2,3,,b.png\n",
            ValueError,
            "line 2: a box is four numbers",
        ),
        (
            "query,left,top,right,bottom,positives\na.png,50,2,60,9,b.png\n",
            ValueError,
            "holds no pixel",
        ),
        ('query,positives\n"a.png,b.png\n', ValueError, "not a table in UTF-8"),
    ],
)
def test_table_errors(tmp_path, text, error, sentence):
    sheet(tmp_path, text)
    with pytest.raises(error, match=sentence):
        read_ground_truth(tmp_path)


def test_table_of_another_coding(tmp_path):
    sheet(tmp_path, "query,positives\nmüll.png,\n", "latin-1")
    with pytest.raises(ValueError, match=r"ground_truth\.csv is not a table in UTF-8"):
        read_ground_truth(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.csv"):
        read_csv(tmp_path / "other.csv")


def test_a_folder_of_photos_without_ground_truth(tmp_path):
    for name in ("b.png", "a.png"):
        picture(tmp_path / "mine" / name)
    truth = read_dataset("image_folder", tmp_path / "mine")
    assert truth.name == "mine"
    assert [path.rsplit("/", 1)[1] for path in truth.paths] == ["a.png", "b.png"]
    assert truth.queries == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no photo in .*empty"):
        read_dataset("image_folder", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: put photos there"):
        read_dataset("image_folder", tmp_path / "nowhere")


def test_without_answers(tmp_path):
    truth = own(tmp_path)
    first, second = truth.queries
    truth = truth._replace(queries=[first._replace(hard=np.array([2])), second])
    absent = without_answers(truth)
    assert absent.name == "mine – ours (absent)"
    assert absent.paths == truth.paths
    query = absent.queries[0]
    assert query.junk.tolist() == [0, 1, 2]
    assert (query.positives.size, query.hard.size, query.boxes) == (0, 0, {})
    assert (query.path, query.box_px, query.name) == (first.path, first.box_px, first.name)
    assert absent.queries[1].junk.tolist() == second.junk.tolist()
    assert truth.queries[0].positives.tolist() == [0, 2]  # left as it was
    assert GroundTruth("x", [], []).protocol == "classic"


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no ground truth; expected"):
        read_ground_truth(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read_ground_truth(tmp_path / "nowhere")
    (tmp_path / "ground_truth.json").write_text("{")
    with pytest.raises(ValueError, match=r"ground_truth\.json is not JSON"):
        read_ground_truth(tmp_path)
    (tmp_path / "ground_truth.json").write_text("[]")
    with pytest.raises(ValueError, match="an object at its top"):
        read_ground_truth(tmp_path)
    with pytest.raises(ValueError, match="leave out 'qsd1_w1'"):
        read_ground_truth(tmp_path, subset="qsd1_w1")


def test_distractors_keep_the_indices(tmp_path):
    truth = own(tmp_path)
    larger = add_distractors(truth, [tmp_path / "query.png"])
    assert larger.paths == [*truth.paths, str(tmp_path / "query.png")]
    assert larger.queries is truth.queries
    assert len(truth.paths) == 3
    with pytest.raises(ValueError, match=r"a\.png is in the collection .* already"):
        add_distractors(truth, [tmp_path / "deep" / ".." / "a.png"])


def test_real_oxford_text_has_55_queries(shared):
    folder = shared / "data" / "oxford5k_mini" / "gt_files_170407"
    queries = parse_oxford_text(folder)
    assert len(queries) == 55
    assert len({query.name.rsplit("_", 1)[0] for query in queries}) == 11
    first = next(query for query in queries if query.name == "all_souls_1")
    assert (first.image, first.box_ltrb) == ("all_souls_000013", (136.5, 34.1, 648.5, 955.7))
    # The same facts from the file that others made of them.
    facts = json.loads((folder.parent / "gnd_oxford5k.json").read_text())
    names = facts["imlist"]
    assert {name for query in queries for name in (*query.good, *query.ok)} <= set(names)


def test_real_oxford_mini_is_the_text_files_without_the_missing_photos(shared):
    folder = shared / "data" / "oxford5k_mini"
    truth = read_ground_truth(folder)
    assert (len(truth.paths), len(truth.queries)) == (110, 13)
    from_text = read_oxford_text(folder / "gt_files_170407", folder / "jpg", present_only=True)
    assert len(from_text.paths) == 110
    assert [q.name for q in from_text.queries] == sorted(q.name for q in truth.queries)
    by_name = {query.name: query for query in from_text.queries}
    for query in truth.queries:
        other = by_name[query.name]
        assert (query.path, query.box_px) == (other.path, other.box_px)
        for mine, theirs in ((query.positives, other.positives), (query.junk, other.junk)):
            assert {truth.paths[i] for i in mine} == {from_text.paths[i] for i in theirs}
        assert {truth.paths[i]: box for i, box in query.boxes.items()} == {
            from_text.paths[i]: box for i, box in other.boxes.items()
        }
        # The query's own photo is a positive with a known box, and the box is on the photo.
        own_index = truth.paths.index(query.path)
        assert own_index in query.positives
        assert query.boxes[own_index] == query.box_px
        height, width = read_size(query.path)
        top, left, bottom, right = query.box_px
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert not set(query.positives) & set(query.junk)
    assert sum(len(query.boxes) - 1 for query in truth.queries) == 3 * 2 + 5 * 4 + 5 * 4


def test_real_museum(shared):
    folder = shared / "data" / "museum"
    for subset in ("qsd1_w1", "qsd1_w3", "qsd2_w2"):
        truth = read_ground_truth(folder, subset=subset)
        assert (len(truth.paths), len(truth.queries)) == (287, 30)
        outlined = [query for query in truth.queries if query.box_px is not None]
        assert len(outlined) == (30 if subset == "qsd2_w2" else 0)
    walls = read_museum(folder, subset="qsd2_w2")
    for query, other in zip(without_answers(walls).queries, walls.queries, strict=True):
        assert query.positives.size == 0
        assert query.junk.tolist() == sorted(other.positives)
        assert query.junk.size > 0
    facts = json.loads((folder / "queries.json").read_text())
    walls = [fact for fact in facts if fact["set"] == "qsd2_w2"]
    distractors = sorted((shared / "data" / "distractors").iterdir())[:5]
    truth = read_museum_reversed(folder, distractors=distractors)
    assert len(truth.paths) == 35
    assert len(truth.queries) == len({fact["relevant"][0] for fact in walls})
    assert sorted(i for query in truth.queries for i in query.positives) == list(range(30))
    for query in truth.queries:
        for i, (top, left, bottom, right) in query.boxes.items():
            assert walls[i]["relevant"] == [query.path.rsplit("/", 1)[1]]
            height, width = read_size(truth.paths[i])
            x0, y0, x1, y1 = walls[i]["box_px"]
            assert (top, left) == (math.floor(y0), math.floor(x0))
            assert (bottom, right) == (min(math.ceil(y1), height), min(math.ceil(x1), width))


def test_runs_without_jax():
    code = (
        "import sys; sys.modules['jax'] = None; import rmacjax.datasets;"
        "sys.exit('tensorflow_datasets' in sys.modules)"  # half a second that only builders need
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_box_on_a_photo_that_cannot_be_read_is_taken_as_it_is(tmp_path):
    """Who decodes the photo says what is wrong with it; here is no reason to stop."""
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"no photo")
    assert box_from_ltrb(str(photo), (-3.5, 2.5, 10.2, 20), "here") == (2, 0, 20, 11)
    with pytest.raises(ValueError, match="here: the box"):
        box_from_ltrb(str(photo), (5, 2, -1, 20), "here")
    for folder in ("gallery", "queries"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8)))
    entry = {"set": "x", "image": "a.png", "box_px": [1, 2, 30, 40], "relevant": ["a.png"]}
    (tmp_path / "queries.json").write_text(json.dumps([entry]))
    assert read_museum(tmp_path).queries[0].box_px == (2, 1, 9, 9)
    (tmp_path / "queries" / "a.png").write_bytes(b"no photo")
    assert read_museum(tmp_path).queries[0].box_px == (2, 1, 40, 30)
