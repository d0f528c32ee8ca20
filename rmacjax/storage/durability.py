"""Flushing a local table to the disk, and setting right what a power cut has left.

Lance writes its files without flushing them. `kill -9` does no harm then, but after a power cut
the newest manifest (the file that a commit consists of) may be there by name and empty or full of
zeros. Order makes a commit durable: the rows' files and their folders first, then the manifest
and its folder. A manifest that is torn nevertheless belongs to a commit that nobody was told of,
so it can be set aside and the version before it opened.
"""

import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lance.fragment import FragmentMetadata

_NEWEST_NAME = 2**64 - 1  # manifests are named by this minus the version: the newest sorts first


def sync_fragments(folder: Path, fragments: Sequence[FragmentMetadata]) -> None:
    """Flush the data, blob and deletion files of fragments, and the folders that name them.

    Args:
        folder: the table's.
        fragments: what was written and is not committed yet.
    """
    folders = {folder}
    for fragment in fragments:
        for data_file in fragment.files:
            path = folder / "data" / str(data_file.path)
            blobs = path.with_suffix("")
            for file in [path, *(blobs.iterdir() if blobs.is_dir() else [])]:
                _sync_file(file)
                folders.add(file.parent)
        if fragment.deletion_file is not None:
            path = folder / fragment.deletion_file.path(fragment.id)
            _sync_file(path)
            folders.add(path.parent)
    for one in folders:
        sync_folder(one)


def sync_manifests(folder: Path, before: int, after: int) -> None:
    """Flush the commits that made the versions after `before`, up to `after`.

    Args:
        folder: the table's.
        before: last version known to be on the disk.
        after: newest version.
    """
    for version in range(before + 1, after + 1):
        with suppress(FileNotFoundError):  # another process may have cleaned it up already
            _sync_file(folder / "_versions" / f"{_NEWEST_NAME - version:020d}.manifest")
    sync_folder(folder / "_versions")
    sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder.

    Args:
        path: the folder; on Windows, where there is no such thing, nothing happens.
    """
    if os.name != "nt":
        _sync_file(path)


def set_torn_manifests_aside(folder: Path, try_to_open: Callable[[], object]) -> list[str]:
    """Rename newest manifests that a power cut has torn, until one is whole.

    Args:
        folder: the table's.
        try_to_open: opens the newest version, or raises what Lance raises.

    Returns:
        A sentence per manifest that was renamed; its name has the suffix ``.unreadable`` now.

    Raises:
        FileNotFoundError: where there is no manifest at all.
        RuntimeError: when there is no other version.
    """
    sentences: list[str] = []
    while True:
        manifests = sorted((folder / "_versions").glob("[0-9]*.manifest"))[:2]
        if not manifests:
            raise FileNotFoundError(f"there is no collection at {folder}; create it first")
        path = manifests[0]
        damage = _damage(path, try_to_open)
        if damage is None:
            return sentences
        version = _NEWEST_NAME - int(path.stem)
        if len(manifests) == 1:
            raise RuntimeError(
                f"the collection at {folder} cannot be opened: its only version is unreadable "
                f"({damage}); remove the folder and create the collection again"
            )
        path.rename(path.with_name(path.name + ".unreadable"))
        sync_folder(path.parent)
        sentences.append(
            f"version {version} of the collection at {folder} was unreadable ({damage}) and was "
            f"set aside as {path.name}.unreadable; version "
            f"{_NEWEST_NAME - int(manifests[1].stem)} is in use"
        )


def _damage(path: Path, try_to_open: Callable[[], object]) -> str | None:
    """Say what is wrong with the newest manifest, None for a whole one.

    Lance takes a manifest of zeros for an empty table, so its frame is checked here: the file ends
    with the position of its message, a version and ``LANC``; the message begins with its length.
    """
    data = path.read_bytes()
    if len(data) < 20:
        return f"its manifest has {len(data)} bytes"
    position, _, magic = struct.unpack("<QI4s", data[-16:])
    if magic != b"LANC" or position + 4 > len(data) - 16:
        return "its manifest has no end"
    (length,) = struct.unpack_from("<I", data, position)
    if length == 0 or position + 4 + length > len(data) - 16:
        return "its manifest has no content"
    try:
        try_to_open()
    except (ValueError, OSError) as error:
        # Anything else, a table of a newer Lance for one, is no reason to set a version aside.
        if "failed to decode Protobuf" in str(error):
            return "its manifest cannot be decoded"
    return None


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
