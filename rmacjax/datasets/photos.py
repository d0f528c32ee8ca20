"""The photos of a collection by name, wherever below a folder an edition has put them."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rmacjax.datasets.ground_truth import FileName
from rmacjax.preprocessing import find_images

__all__ = ["OXFORD_PREFIX", "check_named", "jpg_or_self", "photos_by_name"]

OXFORD_PREFIX = "oxc1_"
"""What Oxford5k's query files, and some copies of its photos, put before the name of a photo."""

_SHOWN = 5


def jpg_or_self(folder: Path) -> Path:
    """Return the folder ``jpg`` in a folder if there is one, else the folder itself."""
    return folder / "jpg" if (folder / "jpg").is_dir() else folder


def photos_by_name(folder: FileName, *, without: Iterable[FileName] = ()) -> dict[str, str]:
    """Find all photos in a folder and below.

    Args:
        folder: where to look: one flat folder, or folders in it, as the editions differ.
        without: folders below it that are passed over.

    Returns:
        Path by name; the name is the file's, without suffix and without ``oxc1_``. In the order of
        the paths.

    Raises:
        ValueError: two photos have the same name.
    """
    passed = tuple(os.path.abspath(other) + os.sep for other in without)
    found: dict[str, str] = {}
    for path in find_images(folder).files:
        if passed and os.path.abspath(path).startswith(passed):
            continue
        name = Path(path).stem.removeprefix(OXFORD_PREFIX)
        if name in found:
            raise ValueError(
                f"Two photos in {folder} are called {name}; the ground truth knows one: take "
                f"{found[name]} or {path} away."
            )
        found[name] = path
    return found


def check_named(
    names: Sequence[str] | Collection[str],
    photos: Mapping[str, str],
    source: str,
    folder: FileName,
    *,
    advice: str = "",
) -> None:
    """Raise FileNotFoundError, with the first names, if photos that a file names are not there."""
    missing = sorted(name for name in names if name not in photos)
    if missing:
        first = "the first is" if len(missing) == 1 else "the first are"
        shown = ", ".join(missing[:_SHOWN])
        more = f"; {advice}" if advice else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} photos that {source} names are not in {folder}, "
            f"{first} {shown}{more}."
        )
