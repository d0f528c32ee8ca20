"""Photos that are right for no query: Flickr's 100,000 and the revisited million.

Oxford105k and Paris106k are Oxford5k and Paris6k among `oxc1_100k`, photos in a folder for each
Flickr tag; `revisitop1m` keeps its photos in folders within ``jpg``, and ``revisitop1m.txt`` beside
them lists them all.

References:
    Philbin et al. 2007 (100,000); Radenović et al. 2018 (the million).
"""

from pathlib import Path

from rmacjax.datasets.ground_truth import FileName
from rmacjax.datasets.photos import check_named, jpg_or_self
from rmacjax.preprocessing import find_images

__all__ = ["read_distractors"]


def read_distractors(folder: FileName, *, advice: str = "") -> list[str]:
    """List distractors.

    Args:
        folder: holds the photos, in a folder ``jpg`` or not, in folders or not. If a list of the
            folder's name and ``.txt`` lies in it, all photos that it names must be there.
        advice: what to do about missing photos, for the error.

    Returns:
        Paths: in the list's order, or by name.

    Raises:
        FileNotFoundError: there is no such folder, or photos of the list are missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} of distractors.")
    photos = jpg_or_self(root)
    listing = root / f"{root.resolve().name}.txt"
    if not listing.is_file():
        return find_images(photos).files
    names = listing.read_text(encoding="utf-8-sig").split()
    # The list's names begin in the folder itself or in its folder of photos.
    base = root if names and (root / names[0]).is_file() else photos
    found = {name: str(base / name) for name in names if (base / name).is_file()}
    check_named(names, found, str(listing), base, advice=advice)
    return [found[name] for name in names]
