"""Pictures: the page asks nobody for anything, shows any name safely, and draws boxes in place."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from rmacjax import pictures
from rmacjax.pictures import Picture, Ranking, contact_sheet, printable, ranking, result_page
from rmacjax.preprocessing import decode_image, encode_jpeg, save_png

EVIL = [
    '<script>alert("x")</script>.jpg',
    "\"><img src=x onerror=alert(1)> '&amp;.jpg",
    "two\nlines\r.jpg",
    "🎨 café ‮gpj.jpg",
    "not utf-8 \udcff.jpg",
    "[bold red]markup[/] $title ${style}.jpg",
    "\x1b[2Jescape.jpg",
]

Pixels = np.ndarray


class Elements(HTMLParser):
    """All start tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(name: str = "", size=(30, 40), box=(5, 10, 20, 35), **facts) -> Picture:
    height, width = size
    pixels = np.full((height, width, 3), 90, np.uint8)
    return Picture(pixels, height, width, () if box is None else (box,), name=name, **facts)


def one(*results: Picture, **facts) -> Ranking:
    return Ranking(picture("the query"), list(results), **facts)


def test_page_is_one_file_that_requests_nothing():
    page = result_page([one(picture("a", score=0.5)), one(picture("b"))], title="Found")
    parsed = Elements(page)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes), "inline handler"
        assert "style" not in attributes
    assert "@import" not in page and "url(" not in page
    (policy,) = [m["content"] for m in parsed.named("meta") if "http-equiv" in m]
    assert policy is not None and "default-src 'none'" in policy and "img-src data:" in policy


def test_policy_admits_exactly_the_script_and_style_of_the_page():
    page = result_page([one(picture())], title="Found")
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page


@pytest.mark.parametrize("name", EVIL)
def test_names_are_text_wherever_they_appear(name):
    plain = Elements(result_page([one(picture("plain", score=1.0))] * 2, title="plain", lead="x"))
    ranked = Ranking(picture(name), [picture(name, score=1.0)], {name: 1.0}, name)
    page = result_page([ranked] * 2, title=name, lead=name, facts={name: name})
    parsed = Elements(page)
    page.encode("utf-8")
    extra = {"dl", "div", "dt", "dd", "p", "ul", "li", "svg", "rect"}
    tags = {tag for tag, _ in parsed.tags}
    assert tags <= {tag for tag, _ in plain.tags} | extra
    assert len(parsed.named("script")) == 1 and len(parsed.named("img")) == len(plain.named("img"))
    assert printable(name) in parsed.words
    assert printable(name) in "".join(
        b["data-text"] or "" for b in parsed.named("button") if "data-text" in b
    )
    assert "\x1b" not in page and "\u202e" not in page


def test_files_that_went_away_leave_a_sentence(tmp_path):
    gone = Picture(str(tmp_path / EVIL[0].replace("/", "_")), 10, 10, ((1, 1, 5, 5),), 0.5)
    page = result_page([one(gone)], title="Found")
    assert "could not be read" in page and "alert(&quot;x&quot;)" in page
    assert contact_sheet([one(gone)]).ndim == 3


def test_boxes_lie_in_pixels_of_the_original():
    wide = Picture(np.zeros((300, 1200, 3), np.uint8), 300, 1200, ((30, 100, 90, 700),), 0.75)
    parsed = Elements(result_page([one(wide)], title="Found", thumbnail_px=480))
    overlays = [svg for svg in parsed.named("svg") if svg.get("class") == "boxes"]
    assert overlays[1]["viewbox"] == "0 0 1200 300"
    drawn = [r for r in parsed.named("rect") if r.get("class") == "box"][1]
    assert [drawn[side] for side in ("x", "y", "width", "height")] == ["100", "30", "600", "60"]
    source = parsed.named("img")[1]["src"] or ""
    thumbnail = decode_image(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
    assert thumbnail.shape == (120, 480, 3)


def test_page_says_rank_score_box_time_and_truth():
    right = picture("right.jpg", score=0.8125, truth_px=(5, 10, 20, 35), correct=True)
    wrong = picture("wrong.jpg", score=0.4, correct=False)
    timings = {"describe": 0.02, "localize": 0.75, "open": 0.0}
    page = result_page(
        [one(right, wrong, timings=timings, verdict="Both were found.")],
        title="Found",
        facts={"Photos searched": "1,234"},
    )
    words = " ".join(Elements(page).words.split())
    for expected in (
        "0.812",
        "10 5 35 20",
        "overlap 1.00",
        "✓ right",
        "✗ another",
        "Both were found.",
    ):
        assert expected in words
    for expected in ("find the object 750 ms", "describe the query 20 ms", "1,234", "770 ms"):
        assert expected in words
    assert "open the collection" not in words
    assert 'data-copy="10 5 35 20"' in page
    alts = [image["alt"] or "" for image in Elements(page).named("img")]
    assert alts[1].startswith(
        "Result 1: right.jpg, score 0.812, box (left top right bottom) 10 5 35 20"
    )


def test_page_without_results_or_boxes():
    page = result_page([Ranking(picture("q", box=None), [])], title="Found")
    assert "Nothing found." in page
    assert 'class="boxes"' not in page
    with_nothing = result_page([], title="Found")
    assert "</html>" in with_nothing


def test_ranking_of_a_search_result(tmp_path):
    hits = [
        SimpleNamespace(
            path=f"/{name}.jpg",
            score=np.float32(0.5),
            box_px=(1, 2, 3, 4),
            boxes_px=[(1, 2, 3, 4), (5, 6, 7, 8)],
            height_px=10,
            width_px=20,
        )
        for name in "abc"
    ]

    class Result(list):
        query_path: str | None = "/q.jpg"
        query_box_px = (0, 0, 50, 60)
        query_size_px = (50, 60)
        timings: ClassVar = {"filter": 0.1}

    shown = ranking(
        Result(hits), truths={"/a.jpg": (1, 2, 3, 4), "/b.jpg": None}, ignored={"/b.jpg"}
    )
    assert shown.query.boxes_px == (), "the whole photo needs no outline"
    assert [p.correct for p in shown.results] == [True, None, False]
    assert shown.results[0].truth_px == (1, 2, 3, 4) and shown.results[2].truth_px is None
    assert shown.results[0].boxes_px == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert [p.correct for p in ranking(Result(hits)).results] == [None] * 3
    Result.query_path = None
    with pytest.raises(ValueError, match="image="):
        ranking(Result(hits))
    pixels = np.zeros((50, 60, 3), np.uint8)
    assert ranking(Result(hits), image=pixels).query.image is pixels


def test_contact_sheet_draws_each_mark_where_it_belongs():
    red = np.zeros((100, 100, 3), np.uint8)
    red[..., 0] = 255
    results = [
        Picture(red, 1000, 1000, ((250, 250, 750, 750),), 0.9, correct=True),
        Picture(red, 1000, 1000, (), 0.5, truth_px=(250, 250, 750, 750), correct=False),
    ]
    sheet = contact_sheet([Ranking(Picture(red, 1000, 1000), results)], columns=2, cell_px=100)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    box, truth, good, bad = (
        np.argwhere((sheet == color).all(-1))
        for color in (
            pictures.sheet.BOX,
            pictures.sheet.TRUTH,
            pictures.sheet.GOOD,
            pictures.sheet.BAD,
        )
    )
    # A cell is 100 wide: half of it is the box, and the frame goes all round.
    for marks, side in ((box, 50), (truth, 50), (good, 100), (bad, 100)):
        assert np.abs(np.ptp(marks, axis=0) + 1 - side).max() <= 4
    assert box[:, 1].max() < truth[:, 1].min(), "the first result stands left of the second"
    assert np.abs(box.mean(0) - good.mean(0)).max() < 3, "the box lies in the middle of its photo"


def test_contact_sheet_breaks_rows_and_refuses_nonsense():
    many = Ranking(picture("q"), [picture(f"long name {i}" * 9, score=0.1) for i in range(7)])
    sheets = [contact_sheet([many], columns=n, cell_px=40) for n in (7, 3)]
    assert sheets[1].shape[0] > 2 * sheets[0].shape[0] and sheets[1].shape[1] < sheets[0].shape[1]
    assert contact_sheet([many, many], cell_px=40).shape[0] > sheets[0].shape[0]
    with pytest.raises(ValueError, match="at least 1 column"):
        contact_sheet([many], columns=0)


def test_contact_sheet_tells_times_and_what_its_colours_mean(monkeypatch):
    written = []
    draw = pictures.sheet.preprocessing.draw_text

    def noted(pixels, text, *rest):
        written.append(text)
        return draw(pixels, text, *rest)

    monkeypatch.setattr(pictures.sheet.preprocessing, "draw_text", noted)
    shown = picture("a", score=0.5)._replace(correct=True, truth_px=np.array([1, 2, 9, 9]))
    contact_sheet([Ranking(picture("q"), [shown] * 6, {"filter": 0.002, "localize": 0.12})])
    assert "query q   122 ms" in written
    assert written[-1].startswith("orange box: found;  blue: true;  green frame: shows")
    assert written[-1].endswith("a search: filter 2.0 ms, localize 120 ms")


def test_photos_are_read_from_files(tmp_path):
    gradient = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    file = tmp_path / "photo.png"
    save_png(file, gradient)
    page = result_page([one(Picture(str(file), 100, 200, ((0, 0, 50, 100),), 0.5))], title="Found")
    source = Elements(page).named("img")[1]["src"] or ""
    seen = decode_image(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
    assert np.abs(seen.astype(int) - gradient).mean() < 4
    assert "photo.png" in page and io.BytesIO(encode_jpeg(gradient)).read(2) == b"\xff\xd8"


def test_printable_keeps_what_can_be_shown():
    assert printable("straße 日本 😀.jpg") == "straße 日本 😀.jpg"
    assert printable("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"
    assert printable(b"caf\xe9") == "caf\\udce9"


def test_durations_and_boxes_in_words():
    assert [pictures.duration(t) for t in (0.0004, 0.25, 0.9996, 61, 7260)] == [
        "0.4 ms",
        "250 ms",
        "1.0 s",
        "1 min 1 s",
        "2 h 1 min",
    ]
    assert pictures.box_for_people((1.4, 2.6, 3, 4)) == "3 1 4 3"


def test_a_list_of_pages_leads_to_each_and_trusts_no_name():
    rows = [("query-0001.html", "<b>one</b>", ["0.5", "-"]), ("a&b.html", "two", ["1", "<i>"])]
    page = pictures.contents_page(rows, title="All <x>", lead="worst first", headings="abc")
    elements = Elements(page)
    assert [each["href"] for each in elements.named("a")] == ["query-0001.html", "a&b.html"]
    assert len(elements.named("th")) == 3 and len(elements.named("td")) == 6
    assert not elements.named("b") and not elements.named("i") and not elements.named("script")
