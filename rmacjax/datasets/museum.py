"""The museum: 287 paintings (``gallery``) and visitors' photos of some of them (``queries``).

``queries.json`` lists the photos, each with its set, the painting in it and that painting's box.
Read one way, the photos are queries and the paintings the collection; the other way round, a
painting is to be found on the visitors' walls, and its true outline there is known.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmacjax.datasets.ground_truth import (
    Box,
    FileName,
    GroundTruth,
    Query,
    add_distractors,
    box_from_ltrb,
    check_present,
    four_numbers,
    look_up,
    names_at,
    read_json,
    value_at,
)
from rmacjax.preprocessing import find_images, read_size

__all__ = ["read_museum", "read_museum_reversed"]


class _Visit(NamedTuple):
    name: str
    path: str
    size: tuple[int, int]
    box: Box
    paintings: list[str]


def read_museum(folder: FileName, *, subset: str | None = None) -> GroundTruth:
    """Read the museum with visitors' photos as queries and the paintings as the collection.

    Args:
        folder: holds queries.json, gallery and queries.
        subset: qsd1_w1 (photos cropped to the painting), qsd1_w3 (cropped, some distorted) or
            qsd2_w2 (paintings on the wall); None: all of them.

    Returns:
        One positive per query. Boxes outline the painting in the photo, None where it fills it. A
        painting fills its own image, so the queries' `boxes` are empty.

    Raises:
        FileNotFoundError: the file or images are missing.
        ValueError: the file is not as it should be, or has no such subset.
    """
    root = Path(folder)
    paths, index = _read_gallery(root)
    queries = [
        Query(
            visit.path,
            None if visit.box == (0, 0, *visit.size) else visit.box,
            look_up(visit.paintings, index, f"{root / 'queries.json'}, {visit.name}"),
            np.zeros(0, np.int64),
            {},
            visit.name,
        )
        for visit in _read_visits(root, subset)
    ]
    return GroundTruth(f"museum {subset}" if subset else "museum", paths, queries)


def read_museum_reversed(
    folder: FileName, *, subset: str = "qsd2_w2", distractors: Iterable[FileName] = ()
) -> GroundTruth:
    """Read the museum the other way round: paintings to be found in visitors' photos.

    Args:
        folder: holds queries.json, gallery and queries.
        subset: the photos that make the collection; qsd2_w2 are those of walls.
        distractors: more images for the collection.

    Returns:
        One query, a whole image, for each painting that is in a photo; the queries' `boxes` are its
        true outlines.

    Raises:
        FileNotFoundError: the file or images are missing.
        ValueError: the file is not as it should be, or has no such subset.
    """
    root = Path(folder)
    paintings, index = _read_gallery(root)
    visits = _read_visits(root, subset)
    shown: dict[int, dict[int, Box]] = {}
    for at, visit in enumerate(visits):
        where = f"{root / 'queries.json'}, {visit.name}"
        for painting in look_up(visit.paintings, index, where):
            shown.setdefault(int(painting), {})[at] = visit.box
    queries = []
    for painting, boxes in sorted(shown.items()):
        path = paintings[painting]
        positives = np.array(list(boxes), np.int64)
        junk = np.zeros(0, np.int64)
        queries.append(Query(path, None, positives, junk, boxes, Path(path).stem))
    walls = GroundTruth(f"museum {subset} reversed", [visit.path for visit in visits], queries)
    return add_distractors(walls, distractors)


def _read_gallery(root: Path) -> tuple[list[str], dict[str, int]]:
    if not (root / "gallery").is_dir():
        raise FileNotFoundError(f"{root} has no folder gallery with the paintings.")
    paths = find_images(root / "gallery").files
    return paths, {Path(path).name: i for i, path in enumerate(paths)}


def _read_visits(root: Path, subset: str | None) -> list[_Visit]:
    file = root / "queries.json"
    entries = read_json(file, list)
    sets = [value_at(entry, "set", str, f"{file}, query {i}") for i, entry in enumerate(entries)]
    if subset is not None and subset not in sets:
        raise ValueError(
            f"{file} has no subset {subset!r}; there are {', '.join(sorted(set(sets)))}."
        )
    visits = []
    for number, (entry, belongs_to) in enumerate(zip(entries, sets, strict=True)):
        if subset is not None and belongs_to != subset:
            continue
        where = f"{file}, query {number}"
        name = value_at(entry, "image", str, where)
        path = str(root / "queries" / name)
        check_present([path], file)
        ltrb = four_numbers(value_at(entry, "box_px", list, where), where)
        box = box_from_ltrb(path, ltrb, where)
        try:
            size = read_size(path)
        except OSError:  # who decodes the photo will say so
            size = (0, 0)
        visits.append(_Visit(name, path, size, box, names_at(entry, "relevant", where)))
    return visits
