"""Writing our own file: all of it or nothing, and the same bytes whenever it holds the same."""

import contextlib
import json
import os
import secrets
from pathlib import Path

__all__ = ["reproducible", "write_atomically"]


def reproducible(content: bytes) -> bytes:
    """Put the header's facts in order; the library writes them in a new order every time.

    Args:
        content: a file in safetensors' format.

    Returns:
        The same file, the same bytes whenever it holds the same.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete and on the disk.

    Args:
        path: the file; it is replaced where it exists, and its folder is made where it does not.
        content: its bytes.

    Raises:
        OSError: if it cannot be written; what was there before is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    if os.name == "posix":  # the folder's entry, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
