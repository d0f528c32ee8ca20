"""INRIA Holidays: 500 scenes, each with one query photo and the others that show it.

Photos are called by six digits: the first four are the scene, and the one that ends in 00 is its
query. The queries are part of the collection; the published evaluation takes each out of its own
ranking, so here it is its own junk. The whole photo is the query.

References:
    Jégou, Douze and Schmid 2008.
"""

import re
from pathlib import Path

import numpy as np

from rmacjax.datasets.ground_truth import NONE, FileName, GroundTruth, Query
from rmacjax.datasets.photos import check_named, jpg_or_self, photos_by_name

__all__ = ["LIST_FILE", "is_holidays", "read_holidays"]

LIST_FILE = "holidays_images.dat"
"""The list of all photos, which comes with the published evaluation and need not be there."""

_NAME = re.compile(r"\d{6}")


def is_holidays(folder: Path) -> bool:
    """Whether a folder's photos are called as those of Holidays are, at least one as a query."""
    jpg = jpg_or_self(folder)
    stems = [path.stem for path in jpg.glob("*.jpg")] if jpg.is_dir() else []
    return any(stem.endswith("00") for stem in stems) and all(map(_NAME.fullmatch, stems))


def read_holidays(folder: FileName, *, advice: str = "") -> GroundTruth:
    """Read INRIA Holidays.

    Args:
        folder: holds the photos, or a folder ``jpg`` that does; if the list ``holidays_images.dat``
            is there too, all photos that it names must be.
        advice: what to do about missing photos, for the error.

    Returns:
        The photos by name; the query's own photo is junk.

    Raises:
        FileNotFoundError: photos are missing.
        ValueError: a photo that is not called by six digits, or a scene without its query.
    """
    root = Path(folder)
    jpg = jpg_or_self(root)
    photos = photos_by_name(jpg)
    if (root / LIST_FILE).is_file():
        names = [Path(name).stem for name in (root / LIST_FILE).read_text("utf-8-sig").split()]
        check_named(names, photos, str(root / LIST_FILE), jpg, advice=advice)
    scenes: dict[str, list[int]] = {}
    for number, name in enumerate(photos):
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{photos[name]} is no photo of Holidays, whose names are six digits; take it away."
            )
        scenes.setdefault(name[:4], []).append(number)
    asked = [f"{scene}00" for scene in scenes]
    check_named(asked, photos, "the naming of its scenes", jpg, advice=advice)
    order = {name: number for number, name in enumerate(photos)}
    queries = []
    for scene, members in sorted(scenes.items()):
        own = order[f"{scene}00"]
        others = np.asarray([number for number in members if number != own], np.int64)
        path = photos[f"{scene}00"]
        queries.append(Query(path, None, others, np.asarray([own]), {}, f"{scene}00", NONE))
    return GroundTruth("holidays", list(photos.values()), queries)
