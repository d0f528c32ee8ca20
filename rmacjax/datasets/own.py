"""This package's own format: one JSON file beside the images.

::

    {"name": "my photos",
     "images": ["a.jpg", "b.jpg"],
     "queries": [{"name": "clock", "image": "a.jpg", "box": [10, 20, 110, 220],
                  "positives": ["b.jpg"], "junk": [], "boxes": {"b.jpg": [30, 5, 90, 150]}}]}

Image names are relative to the file's folder; a query's image need not be one of ``images``.
``box`` outlines the object in the query's image (without it: the whole image), ``boxes`` in images
of the collection, as far as known; all as left, top, right, bottom in pixels. ``positives`` may be
an empty list: an object that is in no image. A query's image that is among ``images`` and in
neither list is junk, as in a table: to find it again proves nothing. ``name``, ``box``, ``junk``
and ``boxes`` may be left out. With ``"protocol": "revisited"`` at the top, a query's ``hard`` lists
those of its positives that are hard to find.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from rmacjax.datasets.ground_truth import (
    NONE,
    Box,
    FileName,
    GroundTruth,
    Query,
    box_from_ltrb,
    check_apart,
    check_present,
    four_numbers,
    look_up,
    names_at,
    quoted,
    read_json,
    value_at,
)
from rmacjax.datasets.sheets import SHEET_FILE, read_csv
from rmacjax.preprocessing import find_images

__all__ = ["GROUND_TRUTH_FILE", "read_image_folder", "read_own", "write_ground_truth"]

GROUND_TRUTH_FILE = "ground_truth.json"
"""The name under which a folder's ground truth is found."""


def read_own(path: FileName) -> GroundTruth:
    """Read a ground truth in this package's own format.

    Args:
        path: the JSON file.

    Returns:
        The collection's images and the queries.

    Raises:
        FileNotFoundError: the file or images are missing.
        ValueError: the file is not as the format demands.
    """
    file = Path(path)
    content = read_json(file, dict)
    names = names_at(content, "images", str(file))
    paths = [str(file.parent / name) for name in names]
    index: dict[str, int] = {}
    places: dict[str, int] = {}  # a file has one absolute path, however it is named
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        if places.setdefault(os.path.abspath(path), i) != i:
            raise ValueError(f"{file} lists the image {name} twice; name each image once.")
        index[name] = i
    check_present(paths, file)
    queries = [
        _without_itself(_read_query(entry, f"{file}, query {number}", file, paths, index), places)
        for number, entry in enumerate(value_at(content, "queries", list, str(file)))
    ]
    protocol = content.get("protocol", "classic")
    if protocol not in ("classic", "revisited"):
        raise ValueError(f"{file}: 'protocol' is 'classic' or 'revisited', not {quoted(protocol)}.")
    name = str(content.get("name", file.parent.resolve().name))
    return GroundTruth(name, paths, queries, protocol)


def read_image_folder(folder: FileName) -> GroundTruth:
    """Read photos of one's own, with a ground truth if there is one.

    Args:
        folder: the photos; ``ground_truth.json`` (`read_own`) or ``ground_truth.csv`` (`read_csv`)
            in it says what to look for. Where both are there, the first counts.

    Returns:
        The collection; without such a file, all photos in the folder and below, and no queries.

    Raises:
        FileNotFoundError: there is no such folder, no photo in it, or photos are missing.
        ValueError: the ground truth is not as its format demands.
    """
    root = Path(folder)
    if (root / GROUND_TRUTH_FILE).is_file():
        return read_own(root / GROUND_TRUTH_FILE)
    if (root / SHEET_FILE).is_file():
        return read_csv(root / SHEET_FILE)
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}: put photos there, and {GROUND_TRUTH_FILE} or {SHEET_FILE} "
            "if you know what they show."
        )
    paths = find_images(root).files
    if not paths:
        raise FileNotFoundError(f"There is no photo in {root}.")
    return GroundTruth(root.resolve().name, paths, [])


def write_ground_truth(ground_truth: GroundTruth, path: FileName) -> None:
    """Write a ground truth in this package's own format, names relative to the file's folder.

    Args:
        ground_truth: what to write.
        path: the file; called ``ground_truth.json``, it is found when its folder is read.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(path)
    names = [_relative(image, file.parent) for image in ground_truth.paths]
    queries = []
    for query in ground_truth.queries:
        entry: dict[str, Any] = {"name": query.name, "image": _relative(query.path, file.parent)}
        if query.box_px is not None:
            entry["box"] = _to_ltrb(query.box_px)
        entry["positives"] = [names[i] for i in query.positives]
        entry["junk"] = [names[i] for i in query.junk]
        if ground_truth.protocol == "revisited":
            entry["hard"] = [names[i] for i in query.hard]
        entry["boxes"] = {names[i]: _to_ltrb(box) for i, box in query.boxes.items()}
        queries.append(entry)
    content: dict[str, Any] = {"name": ground_truth.name}
    if ground_truth.protocol != "classic":
        content["protocol"] = ground_truth.protocol
    content |= {"images": names, "queries": queries}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_query(
    entry: Any, where: str, file: Path, paths: list[str], index: dict[str, int]
) -> Query:
    image = str(file.parent / value_at(entry, "image", str, where))
    check_present([image], file)
    box = None
    if entry.get("box") is not None:
        box = box_from_ltrb(image, four_numbers(entry["box"], where), where)
    outlines = value_at({"boxes": {}} | entry, "boxes", dict, where)
    boxes = {}
    for i, ltrb in zip(look_up(list(outlines), index, where), outlines.values(), strict=True):
        boxes[int(i)] = box_from_ltrb(paths[i], four_numbers(ltrb, where), where)
    positives = look_up(names_at(entry, "positives", where), index, where)
    hard = look_up(names_at({"hard": []} | entry, "hard", where), index, where)
    if not set(hard.tolist()) <= set(positives.tolist()):
        raise ValueError(f"{where}: what is 'hard' should be among the 'positives'.")
    junk = look_up(names_at({"junk": []} | entry, "junk", where), index, where)
    called = str(entry.get("name", Path(image).stem))
    query = Query(image, box, positives, junk, boxes, called, hard if hard.size else NONE)
    check_apart(query, paths, where)
    return query


def _without_itself(query: Query, places: dict[str, int]) -> Query:
    """Make junk of a query's own image, where it is in the collection and neither list has it."""
    own = places.get(os.path.abspath(query.path))
    if own is None or own in query.positives or own in query.junk:
        return query
    return query._replace(junk=np.append(query.junk, own))


def _to_ltrb(box: Box) -> list[int]:
    top, left, bottom, right = (int(edge) for edge in box)
    return [left, top, right, bottom]


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
