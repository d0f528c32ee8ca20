"""Whether the files of a kept collection are as they were written."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

WRITTEN_ONCE = {
    "data": (".lance", ".blob"),
    "_deletions": (".arrow", ".bin"),
    "_versions": (".manifest",),
}
"""Folders of a collection, and the endings of those of its files that are never written over."""


def seal(place: str) -> None:
    """Note what each file of a collection holds that is written once.

    Files noted before are not read again, and where there is nothing new nothing is written.
    """
    noted = _noted(place)
    files = {name: noted.get(name) or _digest(place, name) for name in _names(place)}
    if files != noted:
        unfinished = f"{place}.seal.unfinished"
        document = {"files": files, "digest": _digest_of(files)}
        Path(unfinished).write_text(json.dumps(document), encoding="utf-8")
        os.replace(unfinished, f"{place}.seal")


def is_sealed(place: str) -> bool:
    """Whether a sound seal says what the collection's files should hold."""
    return bool(_noted(place))


def unseal(place: str) -> None:
    """Forget what the files held, before others come to lie there."""
    Path(f"{place}.seal").unlink(missing_ok=True)


def damaged_file(place: str) -> str | None:
    """The first file of a sealed collection that is not as it was noted, or gone; None if none is.

    Where later versions came that no seal knows, as when a run was killed, merging may have removed
    files; what is missing then shows when it is read.

    Raises:
        OSError: a file is there and cannot be read, which says nothing of what it holds.
    """
    noted = _noted(place)
    moved_on = any(name.startswith("_versions/") for name in set(_names(place)) - set(noted))
    for name, digest in noted.items():
        try:
            if _digest(place, name) != digest:
                return name
        except FileNotFoundError:
            if not moved_on:
                return name
    return None


def _names(place: str) -> list[str]:
    names = []
    for folder, endings in WRITTEN_ONCE.items():
        for file in Path(place, folder).rglob("*"):
            if file.suffix in endings and not file.name.startswith(".") and file.is_file():
                names.append(file.relative_to(place).as_posix())
    return sorted(names)


def _digest(place: str, name: str) -> str:
    with open(os.path.join(place, name), "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _noted(place: str) -> dict[str, str]:
    """By name; nothing where there is no seal, or a damaged one."""
    try:
        document = json.loads(Path(f"{place}.seal").read_text(encoding="utf-8"))
        files: dict[str, str] = document["files"]
        return files if document["digest"] == _digest_of(files) else {}
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return {}
