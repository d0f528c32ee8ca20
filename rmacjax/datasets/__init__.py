"""Collections with known answers: photos, outlined queries, and which photos show what.

`read_ground_truth` recognises a folder by its files: this package's own format (`own`), Oxford5k
and Paris6k (`oxford`), the museum (`museum`). All become a `GroundTruth` (`ground_truth`).

Files give boxes as left, top, right, bottom, often with fractions. Here they are ``(top, left,
bottom, right)`` in whole pixels, rounded outward and clipped to the image. Of the images only
headers are read.
"""

from pathlib import Path

from rmacjax.datasets.ground_truth import FileName, GroundTruth, Query, add_distractors
from rmacjax.datasets.museum import read_museum, read_museum_reversed
from rmacjax.datasets.own import GROUND_TRUTH_FILE, read_own, write_ground_truth
from rmacjax.datasets.oxford import (
    NamedQuery,
    parse_oxford_text,
    read_oxford_mini,
    read_oxford_text,
)

__all__ = [
    "GroundTruth",
    "NamedQuery",
    "Query",
    "add_distractors",
    "parse_oxford_text",
    "read_ground_truth",
    "read_museum",
    "read_museum_reversed",
    "read_own",
    "read_oxford_mini",
    "read_oxford_text",
    "write_ground_truth",
]


def read_ground_truth(path: FileName, *, subset: str | None = None) -> GroundTruth:
    """Read a ground truth, whichever of these formats it is in.

    What the folder holds, tried in this order, says who reads it: ``queries.json`` and ``gallery``,
    `read_museum`; ``ground_truth.json``, `read_own`; ``gnd_mini.json``, `read_oxford_mini`;
    ``*_query.txt`` in it or one folder below, with the photos in ``jpg``, `read_oxford_text`.

    Args:
        path: a folder, or a JSON file in this package's own format.
        subset: of a museum, the set of queries: qsd1_w1, qsd1_w3 or qsd2_w2; None: all of them.

    Returns:
        The collection's images and the queries.

    Raises:
        FileNotFoundError: the folder holds no known ground truth, or images are missing.
        ValueError: a file is not as its format demands, or a subset where there is none.
    """
    folder = Path(path)
    if (folder / "queries.json").is_file() and (folder / "gallery").is_dir():
        return read_museum(folder, subset=subset)
    if subset is not None:
        raise ValueError(f"{folder} is no museum and has no subsets; leave out {subset!r}.")
    if folder.is_file():
        return read_own(folder)
    if (folder / GROUND_TRUTH_FILE).is_file():
        return read_own(folder / GROUND_TRUTH_FILE)
    if (folder / "gnd_mini.json").is_file():
        return read_oxford_mini(folder)
    texts = sorted(folder.glob("*_query.txt")) or sorted(folder.glob("*/*_query.txt"))
    if texts:
        return read_oxford_text(texts[0].parent, folder / "jpg")
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder} to read a ground truth from.")
    raise FileNotFoundError(
        f"{folder} holds no ground truth; expected {GROUND_TRUTH_FILE}, gnd_mini.json beside jpg, "
        "*_query.txt files beside jpg, or queries.json beside gallery."
    )
