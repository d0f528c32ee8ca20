"""Ground truth in one file, photos by number: ``gnd_NAME.pkl``, ``.mat`` or ``.json``.

``imlist`` names the collection's photos; ``qimlist`` names the queries' (or ``qidx`` numbers them,
where they are part of the collection); ``gnd`` holds for each query its box ``bbx`` and lists of
numbers. In the classic protocol those are ``ok`` and ``junk``; in the revisited one ``easy``,
``hard`` and ``junk``, and the queries are not part of the collection. In ``.mat`` files numbers
count from 1. INSTRE's ``gnd_instre.mat`` names photos by path and gives boxes as left, top, width
and height.

References:
    Radenović et al. 2018, "Revisiting Oxford and Paris"; Wang and Jiang 2015 (INSTRE), with the
    queries of Iscen et al. 2017.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmacjax.datasets.ground_truth import (
    FileName,
    GroundTruth,
    Protocol,
    four_numbers,
    quoted,
    read_json,
    value_at,
)
from rmacjax.datasets.matlab import read_mat
from rmacjax.datasets.named import NamedQuery, resolve
from rmacjax.datasets.photos import check_named, jpg_or_self, photos_by_name
from rmacjax.datasets.pickles import read_pickle
from rmacjax.preprocessing import IMAGE_SUFFIXES

__all__ = ["INDEXED_SUFFIXES", "Indexed", "parse_indexed", "read_indexed"]

INDEXED_SUFFIXES = (".pkl", ".mat", ".json")
"""The forms in which the file is distributed, in the order in which they are looked for."""


class Indexed(NamedTuple):
    """What a ground truth file says, before photos are looked for.

    Attributes:
        names: the collection's photos, without suffix, or as paths with suffix.
        queries: the queries; photos by name.
        protocol: "revisited" where positives are easy or hard, else "classic".
    """

    names: list[str]
    queries: list[NamedQuery]
    protocol: Protocol


def read_indexed(
    file: FileName,
    images: FileName | None = None,
    *,
    without: tuple[FileName, ...] = (),
    advice: str = "",
) -> GroundTruth:
    """Read such a file and find its photos.

    Args:
        file: gnd_NAME.pkl, .mat or .json.
        images: where the photos are, in one folder or below it; None: the folder ``jpg`` beside
            the file, or where there is none, the file's own folder.
        without: folders below that are passed over.
        advice: what to do about missing photos, for the error.

    Returns:
        The photos in the file's order, and the queries.

    Raises:
        FileNotFoundError: the file or photos are missing.
        ValueError: the file is not as it should be.
    """
    source = Path(file)
    content = parse_indexed(source)
    root = jpg_or_self(source.parent) if images is None else Path(images)
    wanted = [*dict.fromkeys([*content.names, *(query.image for query in content.queries)])]
    if content.names and content.names[0].lower().endswith(IMAGE_SUFFIXES):
        photos = {name: str(root / name) for name in wanted if (root / name).is_file()}
    else:
        photos = photos_by_name(root, without=without)
    check_named(wanted, photos, str(source), root, advice=advice)
    # Queries for one object share their positives; it is all that says so here.
    objects = [(*query.good, *query.ok, *query.hard) for query in content.queries]
    queries = resolve(content.queries, content.names, photos, str(source), objects=objects)
    paths = [photos[name] for name in content.names]
    return GroundTruth(source.stem.removeprefix("gnd_"), paths, queries, content.protocol)


def parse_indexed(file: FileName) -> Indexed:
    """Read such a file without looking for photos.

    Args:
        file: gnd_NAME.pkl, .mat or .json.

    Returns:
        Names, queries and protocol.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not as it should be.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    matlab = path.suffix == ".mat"
    if matlab:
        content: Any = read_mat(path)
    elif path.suffix == ".pkl":
        content = read_pickle(path)
    else:
        content = read_json(path, dict)
    where, base = str(path), 1 if matlab else 0
    names = _names(content, "imlist", where)
    if len(set(names)) < len(names):
        raise ValueError(f"{where} lists a photo twice in 'imlist'; name each once.")
    if "qimlist" not in content and "qidx" in content:
        images = [names[i] for i in _numbers(content["qidx"], len(names), base, where)]
    else:
        images = _names(content, "qimlist", where)
    entries = value_at(content, "gnd", list, where)
    if len(entries) != len(images):
        raise ValueError(f"{where} has {len(images)} queries but {len(entries)} lists of answers.")
    queries, revisited = [], False
    for number, (image, entry) in enumerate(zip(images, entries, strict=True)):
        at = f"{where}, query {number}"
        if not isinstance(entry, dict) or not {"ok", "easy"} & entry.keys():
            raise ValueError(f"{at} has neither 'ok' nor 'easy' photos.")
        lists = {
            key: [names[i] for i in _numbers(entry.get(key, []), len(names), base, f"{at}, {key}")]
            for key in ("easy", "ok", "hard", "junk")
        }
        revisited = revisited or "easy" in entry
        box = _box(entry.get("bbx"), at, sized=path.stem == "gnd_instre")
        queries.append(
            NamedQuery(image, image, box, lists["easy"], lists["ok"], lists["junk"], lists["hard"])
        )
    return Indexed(names, _apart(queries), "revisited" if revisited else "classic")


def _names(content: Any, key: str, where: str) -> list[str]:
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{where} has no {key!r}.")
    value = content[key]
    names = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: {key!r} should be a list of names.")
    for name in names:
        if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in Path(name).parts:
            raise ValueError(f"{where}: {quoted(name)} is no name of a photo in its folder.")
    return list(names)


def _numbers(values: Any, count: int, base: int, where: str) -> list[int]:
    """Return numbers of photos, counted from 0, each once."""
    flat = _flat(values)
    if flat is None:
        raise ValueError(f"{where} should be a list of numbers of photos.")
    strange = [value for value in flat if value not in range(base, count + base)]
    if strange:
        raise ValueError(
            f"{where} should be numbers of photos, {base} to {count - 1 + base}, not "
            f"{quoted(strange[0])}."
        )
    return [*dict.fromkeys(int(value) - base for value in flat)]


def _flat(values: Any) -> list[int | float] | None:
    """Return the numbers of an array, or of a list or tuple; None if they aren't."""
    if isinstance(values, np.ndarray) and (values.dtype.kind in "iuf" or not values.size):
        values = values.reshape(-1).tolist()
    if isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values):
        return list(values)
    return None


def _box(values: Any, where: str, *, sized: bool) -> tuple[float, float, float, float] | None:
    flat = [] if values is None else _flat(values)
    if flat == []:
        return None
    left, top, right, bottom = four_numbers(values if flat is None else flat, where)
    return (left, top, left + right, top + bottom) if sized else (left, top, right, bottom)


def _apart(queries: Sequence[NamedQuery]) -> list[NamedQuery]:
    """Number queries that share a photo, so that each has a name of its own."""
    seen: dict[str, int] = {}
    named = []
    for query in queries:
        seen[query.name] = seen.get(query.name, 0) + 1
        number = seen[query.name]
        named.append(query if number == 1 else query._replace(name=f"{query.name} #{number}"))
    return named
