"""What every format is read into, and the checks that all readers share."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from rmacjax.foreign.pickles import LONGEST_QUOTE
from rmacjax.preprocessing import read_size

__all__ = [
    "Box",
    "FileName",
    "GroundTruth",
    "NONE",
    "Protocol",
    "Query",
    "add_distractors",
    "box_from_ltrb",
    "check_apart",
    "check_present",
    "four_numbers",
    "look_up",
    "names_at",
    "quoted",
    "read_json",
    "value_at",
    "without_answers",
]

Box = tuple[int, int, int, int]
FileName = str | os.PathLike[str]

Protocol = Literal["classic", "revisited"]
"""How rankings are scored: one list of positives, or easy and hard ones, scored apart."""

NONE: Int[np.ndarray, "_"] = np.zeros(0, np.int64)
"""No indices; it cannot be written to, so that all may share it."""
NONE.setflags(write=False)

_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


class Query(NamedTuple):
    """An outlined object and where it is to be found.

    Attributes:
        path: the image that shows it.
        box_px: its outline there, top, left, bottom, right; None: the whole image.
        positives: indices of the collection's images that show it too.
        junk: indices of images that count neither way.
        boxes: by index, the object's true outline in an image of the collection, where known.
        name: what the query is called.
        hard: those of the positives that are hard to find, in the revisited protocol.
    """

    path: str
    box_px: Box | None
    positives: Int[np.ndarray, "p"]
    junk: Int[np.ndarray, "j"]
    boxes: dict[int, Box]
    name: str
    hard: Int[np.ndarray, "m"] = NONE


class GroundTruth(NamedTuple):
    """A collection with queries whose answers are known.

    Attributes:
        name: what it is called.
        paths: the collection's images; indices count them from 0.
        queries: the queries. One without positives looks for what is not in the collection.
        protocol: "classic": all positives count alike; "revisited": easy and hard ones apart.
        left_out: (path, sentence) of images that belong to the collection but are known to be
            broken.
    """

    name: str
    paths: list[str]
    queries: list[Query]
    protocol: Protocol = "classic"
    left_out: tuple[tuple[str, str], ...] = ()


def add_distractors(ground_truth: GroundTruth, paths: Iterable[FileName]) -> GroundTruth:
    """Enlarge a collection by images that are right for no query.

    Args:
        ground_truth: the collection to enlarge; it is left as it was.
        paths: image files.

    Returns:
        The same queries over the larger collection; indices stay valid.

    Raises:
        ValueError: an image that the collection has already.
    """
    more = [os.fspath(path) for path in paths]
    known = {os.path.abspath(path) for path in ground_truth.paths}
    for path in more:
        if os.path.abspath(path) in known:
            raise ValueError(
                f"{path} is in the collection {ground_truth.name!r} already; distractors are other "
                "images, each named once."
            )
        known.add(os.path.abspath(path))
    return ground_truth._replace(paths=[*ground_truth.paths, *more])


def without_answers(ground_truth: GroundTruth) -> GroundTruth:
    """Make every query one for an object that is not in the collection.

    All queries share a collection, so a query's positives are not removed but made its junk: they
    are taken out of its ranking, and what is left shows nothing of the object.

    Args:
        ground_truth: what to change; it is left as it was.

    Returns:
        The same collection, and the same queries without positives; "(absent)" in the name.
    """
    queries = [
        query._replace(
            positives=NONE,
            hard=NONE,
            boxes={},
            junk=np.unique(np.concatenate([query.positives, query.junk])),
        )
        for query in ground_truth.queries
    ]
    return ground_truth._replace(name=f"{ground_truth.name} (absent)", queries=queries)


def box_from_ltrb(path: str, ltrb: Sequence[float], where: str) -> Box:
    """Turn left, top, right, bottom into a box on an image: whole pixels, outward, clipped.

    Args:
        path: the image; its header is read. Where it cannot be read, the box is clipped at the top
            and the left alone: who decodes the image will say what is wrong with it.
        ltrb: pixels, with fractions.
        where: file and place, for the error.

    Returns:
        (top, left, bottom, right), pixels.

    Raises:
        ValueError: nothing of the box is on the image.
    """
    left, top, right, bottom = ltrb
    try:
        height, width = read_size(path)
    except OSError:
        height, width = math.ceil(bottom), math.ceil(right)
    box = (
        max(math.floor(top), 0),
        max(math.floor(left), 0),
        min(math.ceil(bottom), height),
        min(math.ceil(right), width),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"{where}: the box {left:g}, {top:g}, {right:g}, {bottom:g} (left, top, right, bottom) "
            f"holds no pixel of {path}, which is {width} wide and {height} high."
        )
    return box


def look_up(names: Sequence[str], index: Mapping[str, int], where: str) -> Int[np.ndarray, "p"]:
    """Return the indices of names, each once; ValueError if one is not in the collection.

    Names are listed twice even in published files: one of Oxford5k's does so.
    """
    unknown = [name for name in names if name not in index]
    if unknown:
        raise ValueError(
            f"{where}: {unknown[0][:LONGEST_QUOTE]} is not among the collection's "
            f"{len(index)} images ({len(unknown)} of {len(names)} names are not)."
        )
    return np.array([*dict.fromkeys(index[name] for name in names)], np.int64)


def check_present(paths: Sequence[str], file: FileName) -> None:
    """Raise FileNotFoundError if images that a file names are not there."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images that {file} names are missing, the first is "
            f"{missing[0]}."
        )


def check_apart(query: Query, paths: Sequence[str], where: str) -> None:
    """Raise ValueError if an image is among both a query's positives and its junk."""
    both = np.intersect1d(query.positives, query.junk)
    if both.size:
        raise ValueError(
            f"{where}, {query.name[:LONGEST_QUOTE]}: {paths[both[0]]} is both positive and junk; "
            "name it in one list alone."
        )


def quoted(value: object) -> str:
    """Say a value of a file again, in few characters: it may be huge, or hold itself."""
    if isinstance(value, str | bytes):
        whole = len(value) <= LONGEST_QUOTE
        return repr(value) if whole else f"{value[:LONGEST_QUOTE]!r}..."
    if isinstance(value, int) and value.bit_length() > LONGEST_QUOTE:
        return "a number of many digits"
    if value is None or isinstance(value, bool | int | float | np.number):
        return str(value)
    if isinstance(value, list | tuple) and len(value) <= 8:
        inside = (quoted(v) if isinstance(v, str | int | float) else _kind(v) for v in value)
        return f"[{', '.join(inside)}]"
    return _kind(value)


def _kind(value: object) -> str:
    length = f" of length {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"a {type(value).__name__}{length}"


def read_json(file: Path, kind: type) -> Any:
    """Read a JSON file that holds an object or a list; ValueError if it doesn't."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON in UTF-8: {error}.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{file} should hold {_KINDS[kind]} at its top.")
    return content


def value_at(entry: Any, key: str, kind: type, where: str) -> Any:
    """Return an entry's value; ValueError if it is missing or of another kind."""
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{where} has no {key!r}.")
    if not isinstance(entry[key], kind):
        raise ValueError(f"{where}: {key!r} should be {_KINDS[kind]}.")
    return entry[key]


def names_at(entry: Any, key: str, where: str) -> list[str]:
    """Return an entry's list of names; ValueError if it isn't one."""
    names = value_at(entry, key, list, where)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: {key!r} should be a list of names.")
    return names


def four_numbers(values: Any, where: str) -> tuple[float, float, float, float]:
    """Return the four finite numbers of a box; ValueError if they aren't."""
    left = top = right = bottom = math.nan
    if isinstance(values, list | tuple | np.ndarray) and len(values) == 4:
        try:
            left, top, right, bottom = (float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            left = math.nan
    if not all(math.isfinite(edge) for edge in (left, top, right, bottom)):
        raise ValueError(
            f"{where}: a box is four numbers (left, top, right, bottom), not {quoted(values)}."
        )
    return left, top, right, bottom
