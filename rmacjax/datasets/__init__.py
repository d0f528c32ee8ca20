"""Collections with known answers: photos, outlined queries, and which photos show what.

`read_dataset` reads the data sets that papers report on, by name and as they are distributed
(`known` says where they come from); `read_ground_truth` recognises a folder by its files: this
package's own formats (`own`, `sheets`), Oxford5k and Paris6k and their revisited forms (`oxford`,
`indexed`), INRIA Holidays (`holidays`), INSTRE, the museum (`museum`). All become a `GroundTruth`
(`ground_truth`). `builders` makes tensorflow-datasets of them.

Files give boxes as left, top, right, bottom, often with fractions. Here they are ``(top, left,
bottom, right)`` in whole pixels, rounded outward and clipped to the image. Of the images only
headers are read.
"""

from pathlib import Path

from rmacjax.datasets.distractors import read_distractors
from rmacjax.datasets.ground_truth import (
    FileName,
    GroundTruth,
    Protocol,
    Query,
    add_distractors,
    without_answers,
)
from rmacjax.datasets.holidays import is_holidays, read_holidays
from rmacjax.datasets.indexed import INDEXED_SUFFIXES, Indexed, parse_indexed, read_indexed
from rmacjax.datasets.known import KNOWN, Counts, Known, default_folder, find_texts, read_dataset
from rmacjax.datasets.museum import read_museum, read_museum_reversed
from rmacjax.datasets.named import NamedQuery
from rmacjax.datasets.own import (
    GROUND_TRUTH_FILE,
    read_image_folder,
    read_own,
    write_ground_truth,
)
from rmacjax.datasets.oxford import (
    CORRUPTED_PARIS,
    parse_oxford_text,
    read_oxford_mini,
    read_oxford_text,
)
from rmacjax.datasets.photos import jpg_or_self
from rmacjax.datasets.sheets import SHEET_FILE, read_csv

__all__ = [
    "CORRUPTED_PARIS",
    "Counts",
    "GroundTruth",
    "Indexed",
    "KNOWN",
    "Known",
    "NamedQuery",
    "Protocol",
    "Query",
    "add_distractors",
    "default_folder",
    "parse_indexed",
    "parse_oxford_text",
    "read_csv",
    "read_dataset",
    "read_distractors",
    "read_ground_truth",
    "read_holidays",
    "read_image_folder",
    "read_indexed",
    "read_museum",
    "read_museum_reversed",
    "read_own",
    "read_oxford_mini",
    "read_oxford_text",
    "without_answers",
    "write_ground_truth",
]


def read_ground_truth(path: FileName, *, subset: str | None = None) -> GroundTruth:
    """Read a ground truth, whichever of these formats it is in.

    What the folder holds, tried in this order, says who reads it: ``queries.json`` and ``gallery``,
    `read_museum`; ``ground_truth.json``, `read_own`; ``ground_truth.csv``, `read_csv`;
    ``gnd_mini.json``, `read_oxford_mini`; ``gnd_NAME.pkl``, ``.mat`` or ``.json``, `read_indexed`;
    ``*_query.txt`` in it or one or two folders below, with the photos in ``jpg`` or in the folder,
    `read_oxford_text`; photos called by six digits, `read_holidays`. How many photos there are is
    not checked; `read_dataset` does.

    Args:
        path: a folder, or a file: a JSON or CSV file in this package's own formats, or gnd_NAME.
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
        if folder.name.startswith("gnd_"):
            return read_indexed(folder)
        return read_csv(folder) if folder.suffix == ".csv" else read_own(folder)
    if (folder / GROUND_TRUTH_FILE).is_file() or (folder / SHEET_FILE).is_file():
        return read_image_folder(folder)
    if (folder / "gnd_mini.json").is_file():
        return read_oxford_mini(folder)
    for suffix in INDEXED_SUFFIXES:
        if files := sorted(folder.glob(f"gnd_*{suffix}")):
            if len({file.stem for file in files}) > 1:
                raise ValueError(
                    f"{folder} holds several ground truths: give the file, such as {files[0]}."
                )
            return read_indexed(files[0])
    texts = find_texts(folder)
    if texts is not None:
        return read_oxford_text(texts, jpg_or_self(folder))
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder} to read a ground truth from.")
    if is_holidays(folder):
        return read_holidays(folder)
    raise FileNotFoundError(
        f"{folder} holds no ground truth; expected {GROUND_TRUTH_FILE}, {SHEET_FILE}, gnd_NAME.pkl "
        "(or .mat, .json) or *_query.txt files beside jpg, photos called as those of Holidays, or "
        "queries.json beside gallery."
    )
