"""Ground truth as a table that people write in a spreadsheet: ``ground_truth.csv``.

::

    query,left,top,right,bottom,positives,junk
    clock.jpg,10,20,110,220,b.jpg;more/c.jpg,
    door.jpg,,,,,,

A row is a query: its photo, the box round its object in pixels (four empty cells: the whole photo),
and the photos that show it or count neither way, separated by ``;`` or ``|``. The second row's
object is in no photo. ``junk`` and the box may be left out, and there may be columns ``name`` and
``hard`` (those of the positives that are hard to find; the protocol is then the revisited one).

Names are relative to the file's folder. The collection is all photos in it and below, but for those
in a folder ``queries``. A query's photo that is in the collection and in neither list is junk: to
find it again proves nothing.
"""

import csv
import os
from pathlib import Path

import numpy as np

from rmacjax.datasets.ground_truth import (
    FileName,
    GroundTruth,
    Protocol,
    Query,
    box_from_ltrb,
    check_apart,
    check_present,
    four_numbers,
    look_up,
)
from rmacjax.preprocessing import find_images

__all__ = ["SHEET_FILE", "read_csv"]

SHEET_FILE = "ground_truth.csv"
"""The name under which a folder's table is found."""

_EDGES = ("left", "top", "right", "bottom")
_COLUMNS = ("query", *_EDGES, "positives", "junk", "hard", "name")


def read_csv(path: FileName) -> GroundTruth:
    """Read a ground truth from a table.

    Args:
        path: the CSV file, in UTF-8, with a head line.

    Returns:
        The photos beside the file and below, and the queries.

    Raises:
        FileNotFoundError: the file or a query's photo is missing.
        ValueError: the file is not as the format demands.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    folder = file.parent
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = [column.strip().lower() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(columns, file)
            rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a table in UTF-8 with commas: {error}.") from error
    apart = folder / "queries"
    paths = [found for found in find_images(folder).files if apart not in Path(found).parents]
    index = {Path(found).relative_to(folder).as_posix(): i for i, found in enumerate(paths)}
    places = {os.path.abspath(found): i for i, found in enumerate(paths)}
    queries = []
    for line, row in rows:
        query = _read_row(row, f"{file}, line {line}", file, index)
        check_apart(query, paths, f"{file}, line {line}")
        own = places.get(os.path.abspath(query.path))
        if own is not None and own not in query.positives and own not in query.junk:
            query = query._replace(junk=np.append(query.junk, own))
        queries.append(query)
    protocol: Protocol = "revisited" if "hard" in columns else "classic"
    return GroundTruth(folder.resolve().name, paths, queries, protocol)


def _check_columns(columns: list[str], file: Path) -> None:
    for column in ("query", "positives"):
        if column not in columns:
            raise ValueError(f"{file} has no column {column!r}; its first line names the columns.")
    unknown = [column for column in columns if column not in _COLUMNS]
    if unknown or len(set(columns)) < len(columns):
        raise ValueError(
            f"{file} should have each column once, of {', '.join(_COLUMNS)}; it has "
            f"{', '.join(columns)}."
        )
    edges = [edge for edge in _EDGES if edge in columns]
    if edges and len(edges) < len(_EDGES):
        raise ValueError(f"{file} has {', '.join(edges)}; a box takes {', '.join(_EDGES)}.")


def _read_row(row: dict[str, str], where: str, file: Path, index: dict[str, int]) -> Query:
    if None in row or None in row.values():
        raise ValueError(f"{where} has not as many cells as the first line.")
    name = row["query"].strip()
    if not name:
        raise ValueError(f"{where} names no query.")
    image = str(file.parent / name)
    check_present([image], file)
    cells = [row.get(edge, "").strip() for edge in _EDGES]
    box = box_from_ltrb(image, four_numbers(cells, where), where) if any(cells) else None
    positives, junk, hard = (
        look_up(_split(row.get(key, "")), index, where) for key in ("positives", "junk", "hard")
    )
    if not set(hard.tolist()) <= set(positives.tolist()):
        raise ValueError(f"{where}: what is hard should be among the positives.")
    called = row.get("name", "").strip() or Path(name).stem
    return Query(image, box, positives, junk, {}, called, hard)


def _split(cell: str) -> list[str]:
    names = [name.strip() for name in cell.replace("|", ";").split(";")]
    return [*dict.fromkeys(Path(name).as_posix() for name in names if name)]
