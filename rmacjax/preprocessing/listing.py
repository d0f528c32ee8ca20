"""Find the image files of a folder.

Folders are read depth first, in the order of names, so the same folder gives the same list on every
machine. A file counts if its suffix or its first bytes say image: one that is named ``.jpg`` and
turns out to be broken is then reported when it is read, not passed over in silence.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rmacjax.preprocessing.headers import HEADER_BYTES, sniff
from rmacjax.preprocessing.opening import refusal

__all__ = ["IMAGE_SUFFIXES", "FoundImages", "find_images"]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"),
    # Not read, but photos: better an error with advice than silence.
    *(".heic", ".heif", ".avif", ".jp2", ".jxl"),
)
"""Suffixes (lower case) that make a file in a folder an image, whatever is in it."""


class FoundImages(NamedTuple):
    """What `find_images` found.

    Attributes:
        files: paths, in order, each once.
        problems: (path, sentence) for what could not be looked into.
    """

    files: list[str]
    problems: list[tuple[str, str]]


def find_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> FoundImages:
    """List image files: those named, and those in the folders named.

    A file that is named is always taken. In folders, all the way down, a file is taken if its
    suffix or its first bytes say image; names that begin with a dot are passed over. Links are
    followed, but each folder is read once, so links that go in circles do no harm. A broken link
    with an image's suffix is listed: reading it says what is wrong.

    Args:
        paths: a file or folder, or several.

    Returns:
        `FoundImages`: files in the order given, depth first and by name within a folder; problems
        are folders that cannot be read and names that do not exist.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    found: dict[str, None] = {}
    problems: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    for item in given:
        path = os.fsdecode(item)
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            problems.append((path, refusal(path, error)))
            continue
        if stat.S_ISDIR(mode):
            found.update(dict.fromkeys(_walk(path, seen, problems)))
        else:
            found[path] = None
    return FoundImages(list(found), problems)


def _walk(top: str, seen: set[tuple[int, int]], problems: list[tuple[str, str]]) -> Iterator[str]:
    """Yield a folder's images; a stack, not recursion, so that depth has no limit."""
    stack = [(top, True)]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            problems.append((path, refusal(path, error)))
            continue
        for entry in sorted(inside, key=lambda entry: entry.name, reverse=True):
            if _is_folder(entry):
                stack.append((entry.path, True))
            elif _is_image(entry):
                stack.append((entry.path, False))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return bool(sniff(file.read(HEADER_BYTES)))
    except OSError:  # neither its name nor its bytes say image
        return False
