"""What is computed from all rows of a table, kept beside it until the rows are others.

Neighbours of all images take time that grows with the square of their number, and a command that
searches once would compute them each time. They are kept in the table's folder, one ``.npz`` file
for each thing that is computed, with a checksum of all that went into it: where that is another,
or the file is damaged, all is computed again and the file replaced. A file appears under its name
only when it is complete. Where nothing can be written (no rights, a full disk, an object store),
nothing is kept, and nobody need know.
"""

import hashlib
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["derived", "derived_key"]

FOLDER = "derived"
"""Where it is kept, in the table's folder."""

MOST_FILES = 8
"""So many things are kept; the one that was written first gives way to another."""

STALE_SECONDS = 3600.0
"""What was not completed by then never will be."""

_KEY = "key"


def derived_key(rows: np.ndarray, *facts: object) -> str:
    """A checksum of what something is computed from.

    Args:
        rows: (n, d) the rows.
        facts: the options, and a number that is raised when the computation becomes another.
    """
    digest = hashlib.sha256(repr((facts, rows.shape, rows.dtype.str)).encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def derived(
    folder: Path | None,
    name: str,
    key: str,
    compute: Callable[[], Mapping[str, np.ndarray]],
) -> Mapping[str, np.ndarray]:
    """Take what was computed before, or compute and keep it.

    Args:
        folder: the table's; None for none, then nothing is kept.
        name: what is computed, a file's name without its end.
        key: of what it is computed from, see `derived_key`.
        compute: makes the arrays, by name.

    Returns:
        The arrays by name.
    """
    if folder is None:
        return compute()
    path = folder / FOLDER / f"{name}.npz"
    kept = _read(path, key)
    if kept is not None:
        return kept
    arrays = compute()
    with suppress(OSError):
        _write(path, key, arrays)
    return arrays


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """What is kept under a name, where it was computed from the same; None otherwise."""
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile) or str(stored[_KEY]) != key:
                return None
            return {name: stored[name] for name in stored.files if name != _KEY}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError):
        return None


def _write(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(exist_ok=True)
    _tidy(path)
    content: dict[str, Any] = {_KEY: np.asarray(key), **arrays}
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            np.savez(file, **content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _tidy(path: Path) -> None:
    """Make room for one more file, and remove what was never completed."""
    for torn in path.parent.glob(".*.unfinished"):
        with suppress(OSError):
            if torn.stat().st_mtime < time.time() - STALE_SECONDS:
                torn.unlink()
    others = [file for file in path.parent.glob("*.npz") if file != path]
    with suppress(OSError):
        others.sort(key=lambda file: file.stat().st_mtime_ns)
    for old in others[: max(0, len(others) + 1 - MOST_FILES)]:
        with suppress(OSError):
            old.unlink()
