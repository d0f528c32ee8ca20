"""From what a user writes to a source."""

import os
import re

from rmacjax.finetune.sources.folders import FolderOfFolders
from rmacjax.finetune.sources.generated import GeneratedScenes
from rmacjax.finetune.sources.geometry import RetrievalSfm, find_geometry
from rmacjax.finetune.sources.protocols import Drawn, Source
from rmacjax.finetune.sources.views import PhotoViews
from rmacjax.preprocessing import find_images

__all__ = ["open_source"]

KINDS = (
    "'scenes' (generated images), 'tfds:NAME[:SPLIT]' (a prepared data set), a folder with a "
    "folder of photos for each object, a folder with retrieval-SfM-NAME.pkl and ims, or a folder "
    "of photos alone (to learn from views of each)"
)


def open_source(
    text: str | os.PathLike[str],
    *,
    long_side: int = 1024,
    part: str = "train",
    n: int = 32,
    size: int = 256,
) -> Source | Drawn:
    """Open what to learn from.

    ``scenes``: generated images. ``tfds:NAME`` or ``tfds:NAME:SPLIT``: a data set that
    tensorflow-datasets prepared. A folder is recognised by what it holds: retrieval-SfM's list of
    pairs; else folders with photos, one for each object; else photos, of which views are made.
    ``views:FOLDER`` makes views whatever the folder holds.

    Args:
        text: as above.
        long_side: photos with labels are shrunk to this long side, in pixels.
        part: "train" or "val" of retrieval-SfM's list, and the split where none is named.
        n: photos of a step, where views are made of them.
        size: side of such views, in pixels.

    Returns:
        A `Source` (photos with labels) or a `Drawn` (images made for each step).

    Raises:
        FileNotFoundError: there is no such folder, or no photo in it, or nothing was prepared.
        OSError: it cannot be looked into.
        ValueError: it is none of these.
    """
    given = os.fsdecode(text)
    if given == "scenes" and not os.path.isdir(given):
        return GeneratedScenes()
    if given.startswith("tfds:"):
        # Late: tensorflow-datasets takes half a second.
        from rmacjax.finetune.sources.prepared import Prepared

        name, split = _name_and_split(given.removeprefix("tfds:"), part)
        if not name:
            raise ValueError("'tfds:' names no data set: write for example 'tfds:cars196:train'")
        return Prepared(name, split, long_side=long_side)
    if given.startswith("views:"):
        return PhotoViews(given.removeprefix("views:"), n=n, size=size)
    if not os.path.exists(given):
        raise FileNotFoundError(f"there is nothing to learn from at {given!r}: give {KINDS}")
    if find_geometry(given) is not None:
        return RetrievalSfm(given, part=part, long_side=long_side)
    if not os.path.isdir(given):
        raise ValueError(f"{given!r} is a file, not something to learn from: give {KINDS}")
    files, problems = find_images(given)
    if not files and problems:
        raise OSError(problems[0][1])
    if not files:
        raise FileNotFoundError(f"there is no photo in {given!r}: give {KINDS}")
    own = os.path.abspath(given)
    if all(os.path.dirname(os.path.abspath(path)) == own for path in files):
        return PhotoViews(given, n=n, size=size)
    return FolderOfFolders(given, long_side=long_side)


def _name_and_split(text: str, part: str) -> tuple[str, str]:
    """Take a name apart; what follows its last colon is the split unless it is a version."""
    name, colon, last = text.rpartition(":")
    if not colon or re.fullmatch(r"[\d*]+\.[\d*]+\.[\d*]+", last):
        return text, part
    return name, last or part
