"""Oxford5k and Paris6k: landmarks, five outlined queries each, in four text files per query.

``NAME_query.txt`` names a photo (Oxford5k's with ``oxc1_`` before it) and a box;
``NAME_good.txt``, ``NAME_ok.txt`` and ``NAME_junk.txt`` list photos that show the landmark clearly,
more than a quarter of it, or less. Good and ok photos are positive, junk counts neither way, and
the query's own photo is part of the collection. ``gnd_mini.json`` says the same of a few photos of
Oxford5k in one file.

References:
    Philbin et al. 2007 (Oxford5k) and 2008 (Paris6k).
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from rmacjax.datasets.ground_truth import (
    Box,
    FileName,
    GroundTruth,
    Query,
    box_from_ltrb,
    check_present,
    four_numbers,
    look_up,
    names_at,
    read_json,
    value_at,
)
from rmacjax.preprocessing import find_images

__all__ = ["NamedQuery", "parse_oxford_text", "read_oxford_mini", "read_oxford_text"]

OXFORD_PREFIX = "oxc1_"
"""What Oxford5k's query files put before the name of the photo."""


class NamedQuery(NamedTuple):
    """A query as the files put it: photos by name without suffix, the box with fractions.

    Attributes:
        name: landmark and number, such as ``all_souls_1``.
        image: the photo that the box is in.
        box_ltrb: left, top, right, bottom, pixels.
        good: photos that show the landmark clearly.
        ok: photos that show more than a quarter of it.
        junk: photos that show less.
    """

    name: str
    image: str
    box_ltrb: tuple[float, float, float, float]
    good: list[str]
    ok: list[str]
    junk: list[str]


def read_oxford_text(
    folder: FileName, images: FileName, *, present_only: bool = False
) -> GroundTruth:
    """Read Oxford5k or Paris6k from the text files.

    Where a positive is itself the photo of a query for the same landmark, its box is known.

    Args:
        folder: the text files.
        images: the folder of the photos; all in it are the collection.
        present_only: leave out photos that are not there, and the queries of those; otherwise a
            missing photo is an error.

    Returns:
        The photos by name, and the queries.

    Raises:
        FileNotFoundError: text files or photos are missing.
        ValueError: a text file is not as it should be, or two photos have the same name.
    """
    queries = parse_oxford_text(folder)
    if not Path(images).is_dir():
        raise FileNotFoundError(f"There is no folder {images} with the photos of {folder}.")
    paths = find_images(images).files
    present = {Path(path).stem for path in paths}
    if len(present) < len(paths):
        stems = [Path(path).stem for path in paths]
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(f"Two photos in {images} are called {twice}; the ground truth knows one.")
    if present_only:
        queries = [_only(query, present) for query in queries if query.image in present]
    named = {n for query in queries for n in (query.image, *query.good, *query.ok, *query.junk)}
    if missing := sorted(named - present):
        raise FileNotFoundError(
            f"{len(missing)} of {len(named)} photos that {folder} names are not in {images}, the "
            f"first is {missing[0]}."
        )
    name = Path(images).resolve().parent.name
    return GroundTruth(name, paths, _resolve(queries, paths, str(folder)))


def read_oxford_mini(folder: FileName) -> GroundTruth:
    """Read ``gnd_mini.json``: some photos of Oxford5k and the queries that they allow.

    Scores on it are not comparable with those on Oxford5k.

    Args:
        folder: holds gnd_mini.json and jpg.

    Returns:
        The photos as the file orders them, and the queries, as `read_oxford_text` gives them.

    Raises:
        FileNotFoundError: the file or photos are missing.
        ValueError: the file is not as it should be.
    """
    file = Path(folder) / "gnd_mini.json"
    content = read_json(file, dict)
    queries = []
    for number, entry in enumerate(value_at(content, "queries", list, str(file))):
        where = f"{file}, query {number}"
        queries.append(
            NamedQuery(
                value_at(entry, "query", str, where),
                value_at(entry, "image", str, where),
                four_numbers(value_at(entry, "bbox_xyxy", list, where), where),
                names_at(entry, "good", where),
                names_at(entry, "ok", where),
                names_at(entry, "junk", where),
            )
        )
    names = names_at(content, "imlist", str(file))
    paths = [str(Path(folder) / "jpg" / f"{name}.jpg") for name in names]
    check_present(paths, file)
    return GroundTruth("Oxford5k-mini", paths, _resolve(queries, paths, str(file)))


def parse_oxford_text(folder: FileName) -> list[NamedQuery]:
    """Read the text files of Oxford5k or Paris6k without looking for photos.

    Args:
        folder: the text files.

    Returns:
        The queries by name; 55 in either.

    Raises:
        FileNotFoundError: no query files, or one of a query's other three is missing.
        ValueError: a query file that does not hold a name and four numbers.
    """
    found = sorted(Path(folder).glob("*_query.txt"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no *_query.txt files; give the folder that does.")
    queries = []
    for file in found:
        words = file.read_text(encoding="utf-8").split()
        if len(words) != 5:
            raise ValueError(f"{file} should hold a photo's name and four numbers.")
        name = file.name.removesuffix("_query.txt")
        good, ok, junk = (
            _read_names(file.with_name(f"{name}_{kind}.txt")) for kind in ("good", "ok", "junk")
        )
        image = words[0].removeprefix(OXFORD_PREFIX)
        queries.append(NamedQuery(name, image, four_numbers(words[1:], str(file)), good, ok, junk))
    return queries


def _read_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, though its query file is there.")
    return file.read_text(encoding="utf-8").split()


def _only(query: NamedQuery, present: Collection[str]) -> NamedQuery:
    return query._replace(
        good=[name for name in query.good if name in present],
        ok=[name for name in query.ok if name in present],
        junk=[name for name in query.junk if name in present],
    )


def _resolve(queries: Sequence[NamedQuery], paths: Sequence[str], source: str) -> list[Query]:
    """Put indices for names, and add the boxes that queries of one landmark know of each other."""
    index = {Path(path).stem: i for i, path in enumerate(paths)}
    own: list[Box] = []
    known: dict[str, dict[int, Box]] = {}
    for query in queries:
        where = f"{source}, query {query.name}"
        at = int(look_up([query.image], index, where)[0])
        own.append(box_from_ltrb(paths[at], query.box_ltrb, where))
        known.setdefault(_landmark(query), {})[at] = own[-1]
    resolved = []
    for query, box in zip(queries, own, strict=True):
        where = f"{source}, query {query.name}"
        at = index[query.image]
        positives = look_up([*query.good, *query.ok], index, where)
        outlines = known[_landmark(query)] | {at: box}
        boxes = {int(i): outlines[int(i)] for i in positives if int(i) in outlines}
        junk = look_up(query.junk, index, where)
        resolved.append(Query(paths[at], box, positives, junk, boxes, query.name))
    return resolved


def _landmark(query: NamedQuery) -> str:
    return re.sub(r"_\d+$", "", query.name)
