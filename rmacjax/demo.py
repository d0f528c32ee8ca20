"""The demo: photos in, a page of found objects out, with figures where the truth is known.

Without a folder it renders a small collection (`rmacjax.scenes`), so that it shows and measures the
whole way, from files to boxes, on any machine. With a folder it does the same with your photos. All
that it writes lies in one output folder, and a second run reuses what the first one left there.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmacjax import __version__
from rmacjax.collection import AddReport, Collection, SearchResult
from rmacjax.datasets import GroundTruth, Query, read_ground_truth, write_ground_truth
from rmacjax.descriptors import Settings
from rmacjax.pictures import Ranking, contact_sheet, ranking, result_page, settings_in_words
from rmacjax.preprocessing import encode_jpeg, find_images, read_size, save_png
from rmacjax.regions import box_iou
from rmacjax.scenes import SceneCollection, render_collection
from rmacjax.storage import Table
from rmacjax.weights import load

QUERIES = 8
"""Of a ground truth with more queries, the first so many are searched for."""

OWN_QUERIES = 3
"""So many photos of a folder without known answers are searched for, spread evenly over it."""

MIDDLE = 0.6
"""Nobody outlined anything there: the query is the middle of the photo, this part of each side."""

ON_PAGE = 12
"""Results shown per query on the page."""

ON_SHEET = (5, 6)
"""Queries, and results of each, on the contact sheet."""

JPEG_QUALITY = 92

Step = Callable[[str], None]
Progress = Callable[[int, int], None]


class Found(NamedTuple):
    """How one query went, where the truth is known.

    Attributes:
        wanted: photos of the collection that show the object, the query's own not counted.
        found: how many of them are among the first `wanted` places.
        ahead: how many of them come before every other photo.
        overlaps: intersection over union of the boxes found in them with the true ones.
    """

    wanted: int
    found: int
    ahead: int
    overlaps: list[float]


class DemoReport(NamedTuple):
    """What the demo did.

    Attributes:
        page: the HTML file.
        sheet: the PNG file.
        photos: number of photos searched.
        queries: number of queries.
        found: one entry per query, or empty where the truth is not known.
        added: what indexing did.
        seconds_per_search: median of the queries, the compilation before the first one left out.
    """

    page: str
    sheet: str
    photos: int
    queries: int
    found: list[Found]
    added: AddReport
    seconds_per_search: float


def run_demo(
    folder: str | None = None,
    out: str = "rmacjax-demo",
    *,
    query: str | None = None,
    box_px: tuple[int, int, int, int] | None = None,
    weights: str = "default",
    long_side: int = 1024,
    step: Step = lambda words: None,
    progress: Progress | None = None,
) -> DemoReport:
    """Index a folder, search for a few objects, draw what was found.

    The queries are: the one given; or the first ones of a ground truth that
    `rmacjax.datasets.read_ground_truth` finds in the folder; or else the middle part of three
    photos spread evenly over the folder.

    Args:
        folder: photos to search, or None to render some.
        out: where everything is written; made if missing.
        query: a photo to search for, from the folder or not.
        box_px: the object in it, (top, left, bottom, right) in pixels; None for all of it.
        weights: what `rmacjax.load` takes.
        long_side: photos are shrunk to this long side.
        step: called with a sentence when a new step begins.
        progress: called with (done, total) photos while they are described.

    Raises:
        ValueError: a box without a query photo, or a query without a folder.
        OSError: there are no photos, or the output cannot be written.
    """
    if box_px is not None and query is None:
        raise ValueError("a box belongs to a query photo: give both, or neither")
    if query is not None and folder is None:
        raise ValueError("a query needs a folder of photos to search in: give both, or neither")
    if query is not None:
        read_size(query)  # Better now than after all photos have been described.
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{out!r} is a file: name a folder for the demo to write into")
    target.mkdir(parents=True, exist_ok=True)
    truth, known = _questions(folder, target, query, box_px, step)
    step("loading the network")
    collection = _collection(target / "collection", weights, Settings(long_side=long_side))
    step(f"describing {len(truth.paths)} photos")
    added = _make_equal(collection, truth.paths, progress)
    if not len(collection):
        raise OSError(f"none of the photos in {folder!r} could be used")
    if not truth.queries:
        truth = truth._replace(queries=_middles(sorted(collection.paths)))
    step(f"searching for {len(truth.queries)} objects")
    results = _search(collection, truth.queries)
    found = (
        [_judge(*pair, truth) for pair in zip(results, truth.queries, strict=True)] if known else []
    )
    seconds = float(np.median([sum(result.timings.values()) for result in results]))
    step("drawing")
    rankings = [
        _shown(result, asked, truth, found[i] if known else None)
        for i, (result, asked) in enumerate(zip(results, truth.queries, strict=True))
    ]
    page, sheet = target / "index.html", target / "contact-sheet.png"
    report = DemoReport(
        str(page), str(sheet), len(collection), len(truth.queries), found, added, seconds
    )
    facts = {"Photos": truth.name} | settings_in_words(collection)
    html = result_page(
        rankings, title="Found again", lead=" ".join(in_sentences(report)), facts=facts
    )
    page.write_text(html, encoding="utf-8", newline="\n")
    count, columns = ON_SHEET
    short = [each._replace(results=each.results[:columns]) for each in rankings[:count]]
    save_png(sheet, contact_sheet(short, columns=columns))
    return report


def in_sentences(report: DemoReport) -> list[str]:
    """What the demo found, in words."""
    wanted = sum(each.wanted for each in report.found)
    asked = (
        "One outlined object was"
        if report.queries == 1
        else f"{report.queries} outlined objects were"
    )
    sentences = [f"{asked} searched for in {report.photos:,} photos."]
    if not wanted:
        return sentences
    found = sum(each.found for each in report.found)
    ahead = sum(each.ahead for each in report.found)
    sentences.append(
        f"Of the {wanted} other photos that show them, {found} are in the first places, "
        f"{ahead} of them ahead of every photo of something else."
    )
    overlaps = [overlap for each in report.found for overlap in each.overlaps]
    if overlaps:
        good = sum(overlap > 0.5 for overlap in overlaps)
        sentences.append(
            f"The boxes overlap the true ones by {np.mean(overlaps):.2f} on average "
            f"({good} of {len(overlaps)} by more than one half)."
        )
    return sentences


def _questions(
    folder: str | None,
    target: Path,
    query: str | None,
    box_px: tuple[int, int, int, int] | None,
    step: Step,
) -> tuple[GroundTruth, bool]:
    """The photos and the queries, and whether the answers are known."""
    if folder is None:
        return _generated(target, step), True
    if query is None:
        with contextlib.suppress(FileNotFoundError):  # A folder of photos alone will do.
            truth = read_ground_truth(folder)
            return truth._replace(queries=truth.queries[:QUERIES]), True
    own = str(target.resolve()) + os.sep
    paths = [path for path in find_images(folder).files if not _lies_in(path, own)]
    if not paths:
        raise OSError(f"there is no photo in {folder!r}: give a folder with some")
    name = os.path.basename(os.path.abspath(folder))
    return GroundTruth(name, paths, [] if query is None else [_unknown(query, box_px)]), False


def _lies_in(path: str, folder: str) -> bool:
    """Whether a photo is one that the demo itself wrote."""
    return os.path.realpath(path).startswith(folder)


def _unknown(path: str, box_px: tuple[int, int, int, int] | None) -> Query:
    none = np.zeros(0, np.int64)
    return Query(path, box_px, none, none, {}, os.path.basename(path))


def _middles(paths: Sequence[str]) -> list[Query]:
    """The middle parts of a few photos, spread evenly."""
    count = min(OWN_QUERIES, len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return [_unknown(path, _middle(path)) for path in chosen]


def _middle(path: str) -> tuple[int, int, int, int]:
    height, width = read_size(path)
    top, left = round(height * (1 - MIDDLE) / 2), round(width * (1 - MIDDLE) / 2)
    return top, left, max(height - top, top + 1), max(width - left, left + 1)


def _generated(target: Path, step: Step) -> GroundTruth:
    """The rendered photos with their truth; those of an earlier run are taken as they are."""
    name = f"generated photos, rmacjax {__version__}"
    file = target / "ground_truth.json"
    if file.exists():
        with contextlib.suppress(OSError, ValueError):  # What was left half done is rendered again.
            truth = read_ground_truth(file)
            if truth.name == name:
                return truth
    step("rendering photos of 8 objects")
    return write_scenes(render_collection(), target, name)


def write_scenes(scenes: SceneCollection, target: Path, name: str) -> GroundTruth:
    """Write generated photos and what is true of them, as `rmacjax evaluate` reads it.

    Each object's own photo asks for it and counts neither way.

    Args:
        scenes: from `rmacjax.scenes.render_collection`.
        target: a folder; the photos go into its folder ``photos``.
        name: what the ground truth is called.

    Returns:
        The ground truth, as it was written to ``ground_truth.json``.
    """
    photos = target / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    paths = [str(photos / each) for each in scenes.names]
    for path, pixels in zip(paths, scenes.images, strict=True):
        Path(path).write_bytes(encode_jpeg(pixels, JPEG_QUALITY))
    queries = []
    for label, (own, box) in enumerate(scenes.queries):
        others = [i for i, each in enumerate(scenes.labels) if each == label and i != own]
        boxes = {i: there for i in others if (there := scenes.boxes[i]) is not None}
        junk = np.asarray([own], np.int64)
        words = f"object {label + 1}"
        queries.append(Query(paths[own], box, np.asarray(others, np.int64), junk, boxes, words))
    truth = GroundTruth(name, paths, queries)
    write_ground_truth(truth, target / "ground_truth.json")
    return truth


def _collection(path: Path, weights: str, settings: Settings) -> Collection:
    """The demo's own collection, begun anew where network or settings are others than last time.

    Raises:
        ValueError: something lies there that is no collection; it is left alone.
    """
    params = load(weights)
    try:
        Table.open(path)
    except FileNotFoundError:
        return Collection.create(path, params, settings=settings)
    with contextlib.suppress(ValueError):
        collection = Collection.open(path, params)
        if collection.settings == settings:
            return collection
    shutil.rmtree(path)
    return Collection.create(path, params, settings=settings)


def _make_equal(
    collection: Collection, paths: Sequence[str], progress: Progress | None
) -> AddReport:
    wanted = {os.path.abspath(path) for path in paths}
    gone = [path for path in collection.paths if path not in wanted]
    if gone:
        collection.remove(gone)
    return collection.add(paths, progress=progress)


def _search(collection: Collection, queries: Sequence[Query]) -> list[SearchResult]:
    """All photos ranked for each query. The first query goes twice: the first time, it compiles."""
    results = [
        collection.search(query.path, query.box_px, top=len(collection))
        for query in (queries[0], *queries)
    ]
    return results[1:]


def _truths(query: Query, truth: GroundTruth) -> dict[str, tuple[int, int, int, int] | None]:
    """Stored path -> true box, of the photos that show the query's object."""
    return {os.path.abspath(truth.paths[i]): query.boxes.get(int(i)) for i in query.positives}


def _ignored(query: Query, truth: GroundTruth, truths: Mapping[str, object]) -> set[str]:
    """What counts neither way: junk, and the query's own photo."""
    own = os.path.abspath(query.path)
    return {os.path.abspath(truth.paths[i]) for i in query.junk} | ({own} - set(truths))


def _judge(result: SearchResult, query: Query, truth: GroundTruth) -> Found:
    truths = _truths(query, truth)
    ignored = _ignored(query, truth, truths) | {os.path.abspath(query.path)}
    truths = {path: box for path, box in truths.items() if path not in ignored}
    hits = [hit for hit in result if hit.path not in ignored]
    right = [hit.path in truths for hit in hits]
    ahead = right.index(False) if False in right else len(right)
    overlaps = [
        float(box_iou(np.asarray([hit.box_px]), np.asarray([truths[hit.path]]))[0])
        for hit in hits
        if truths.get(hit.path) is not None and hit.box_px is not None
    ]
    return Found(len(truths), sum(right[: len(truths)]), ahead, overlaps)


def _shown(result: SearchResult, query: Query, truth: GroundTruth, found: Found | None) -> Ranking:
    if found is None:
        whole = ranking(result, name=query.name)
    else:
        truths = _truths(query, truth)
        ignored = _ignored(query, truth, truths)
        verdict = f"{found.found} of {found.wanted} in the first {found.wanted} places"
        if found.wanted == 1:
            verdict = "in the first place" if found.found else "not in the first place"
        if found.overlaps:
            verdict += f", mean overlap {np.mean(found.overlaps):.2f}"
        verdict = verdict[0].upper() + verdict[1:] + "."
        whole = ranking(result, truths=truths, ignored=ignored, name=query.name, verdict=verdict)
    return whole._replace(results=whole.results[:ON_PAGE])
