"""Pairs of photos that show the same thing, from a file or from a ground truth."""

import csv
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rmacjax.datasets import GroundTruth

NAMES_OF_COLUMNS = ["query", "positive"]
"""A first line of a CSV file that says this is a heading."""


class View(NamedTuple):
    """A photo, or what is outlined in it.

    Attributes:
        path: the file.
        box_px: (top, left, bottom, right) in pixels; None for all of it.
    """

    path: str
    box_px: tuple[int, int, int, int] | None = None


class Pair(NamedTuple):
    """Two views of the same thing."""

    query: View
    positive: View


def read_pairs(file: str, folder: str) -> list[Pair]:
    """Read pairs of photos' names.

    Args:
        file: CSV with two names a line (a first line "query,positive" is a heading), or JSON with a
            list of lists of two names.
        folder: what the names are relative to.

    Returns:
        The pairs, in the file's order.

    Raises:
        ValueError: the file is not as expected, or names no pair.
        OSError: it cannot be read, or photos that it names are not there.
    """
    rows = _json_rows(file) if file.lower().endswith(".json") else _csv_rows(file)
    if not rows:
        raise ValueError(f"{file!r} names no pair: give two photos' names a line")
    pairs = [Pair(*(View(os.path.join(folder, name)) for name in names)) for names in rows]
    missing = [view.path for pair in pairs for view in pair if not os.path.isfile(view.path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {2 * len(pairs)} photos that {file!r} names are not there, the "
            f"first is {missing[0]!r}: names are relative to {folder!r}"
        )
    return pairs


def pairs_of(truth: "GroundTruth") -> list[Pair]:
    """Each query's outlined object with each photo that shows it too, outlined where that is known.

    A query's own photo is no pair with it.

    Args:
        truth: photos with queries whose answers are known.

    Raises:
        ValueError: there is not one pair.
    """
    pairs = []
    for query in truth.queries:
        for index in query.positives.tolist():
            path = truth.paths[index]
            if os.path.abspath(path) != os.path.abspath(query.path):
                positive = View(path, query.boxes.get(index))
                pairs.append(Pair(View(query.path, query.box_px), positive))
    if not pairs:
        raise ValueError(
            f"no query of {truth.name!r} has another photo that shows the same: there are no pairs "
            "to learn from"
        )
    return pairs


def _csv_rows(file: str) -> list[Sequence[str]]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        try:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file!r} is no CSV in UTF-8: {error}") from error
    checked: list[Sequence[str]] = []
    for number, row in enumerate(rows, 1):
        if not any(row) or (number == 1 and [cell.lower() for cell in row] == NAMES_OF_COLUMNS):
            continue
        if len(row) != 2 or not all(row):
            raise ValueError(f"{file!r}, line {number}: a pair is two names, not {len(row)}")
        checked.append(row)
    return checked


def _json_rows(file: str) -> list[Sequence[str]]:
    with open(file, encoding="utf-8-sig") as text:
        try:
            rows = json.load(text)
        except ValueError as error:
            raise ValueError(f"{file!r} is not JSON in UTF-8: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file!r} should hold a list of pairs of names at its top")
    for number, row in enumerate(rows, 1):
        two = isinstance(row, list) and len(row) == 2
        if not two or not all(isinstance(name, str) and name for name in row):
            raise ValueError(f"{file!r}, pair {number}: a pair is a list of two names, not {row!r}")
    return rows
