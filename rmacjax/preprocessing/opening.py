"""Open an image file, and say in one sentence what is wrong when that or its reading fails."""

import contextlib
import errno
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import cast

from PIL import Image

__all__ = ["ImageError", "explained", "name_of", "opened", "refusal"]


class ImageError(OSError):
    """A file that cannot be read as an image; its text is one sentence that names the file.

    Attributes:
        path: the file, as it was given.
    """

    def __init__(self, sentence: str, path: str = "") -> None:
        super().__init__(sentence)
        self.path = path


def name_of(path: str) -> str:
    """Spell a file's name for a message: quoted, with line breaks and broken letters escaped."""
    return repr(path)


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """Open a file; the system's refusals become sentences."""
    name = name_of(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name} is a folder, not an image: give the files in it", path)
        # Reading a pipe could wait for ever, and images need to be read back and forth.
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name} is not a regular file: save the image to a file", path)
        file = open(path, "rb")  # noqa: SIM115
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(refusal(path, error), path) from error
    with file:
        yield file


def refusal(path: str, error: OSError | ValueError) -> str:
    """Say in one sentence why the system does not open a file or folder.

    Args:
        path: what was to be opened.
        error: what the system raised.

    Returns:
        The sentence.
    """
    name = name_of(path)
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            target = name_of(os.readlink(path))
            return (
                f"{name} is a broken link to {target}: restore the file it points to or remove it"
            )
        return f"There is no file or folder {name}: check the path"
    if isinstance(error, PermissionError):
        return f"No permission to read {name}: change its permissions or leave it out"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return f"{name} is a link that leads back to itself: remove it"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{name} cannot be opened ({reason}): check the path and the disk"


@contextlib.contextmanager
def explained(path: str, name: str) -> Iterator[None]:
    """Keep Pillow's warnings quiet and turn whatever it raises into a sentence."""
    with _quiet:
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{name} claims a part too large to decode: leave it out", path
            ) from error
        # Damaged bytes can make a decoder raise nearly anything.
        except Exception as error:
            # A damaged file may send the decoder to a place that cannot be: EINVAL is its doing.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                sentence = f"{name} cannot be read ({error.strerror}): check the disk"
            elif _means_the_end(error):
                sentence = f"{name} is cut short: copy or download it again, or leave it out"
            else:
                sentence = (
                    f"{name} is damaged or of a kind that cannot be decoded ({_reason(error)}): "
                    "copy it again, or save it anew as JPEG or PNG"
                )
            raise ImageError(sentence, path) from error


def _cause(error: BaseException) -> BaseException:
    # Pillow wraps what it stumbled over in a header into a SyntaxError.
    return error.__cause__ or error if isinstance(error, SyntaxError) else error


def _means_the_end(error: BaseException) -> bool:
    return isinstance(_cause(error), EOFError | IndexError | struct.error) or any(
        words in str(error).lower()
        for words in ("truncated", "missing dimensions", "not enough image data")
    )


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, LookupError):
        return f"unknown value {cause} in its header"
    return " ".join(str(cause).split()) or type(cause).__name__


class _Quiet:
    """Keeps Pillow's warnings (odd metadata, big pictures) to itself, in any number of threads.

    `warnings.catch_warnings` is not for threads: two that overlap may leave their filters behind.
    Here one filter, for Pillow's modules alone, is put in by the first and taken out by the last.
    """

    # The comment in the pattern sets it apart from a filter that the caller may have put in.
    _filter = ("ignore", None, Warning, re.compile(r"(?#rmacjax)PIL\."), 0)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._filters: list[object] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._filters = cast("list[object]", warnings.filters)
                self._filters.insert(0, self._filter)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                with contextlib.suppress(ValueError):
                    self._filters.remove(self._filter)


_quiet = _Quiet()
