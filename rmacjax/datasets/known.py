"""The data sets that papers report on: what belongs to them, where it comes from, where it lies.

Photos are downloaded by hand, from their makers. A data set's folder is the one that is given, or
``$RMACJAX_DATA/NAME``, or where tensorflow-datasets keeps what was downloaded by hand:
``~/tensorflow_datasets/downloads/manual/NAME``.
"""

import os
from pathlib import Path
from typing import NamedTuple

from rmacjax.datasets.distractors import read_distractors
from rmacjax.datasets.ground_truth import FileName, GroundTruth, add_distractors
from rmacjax.datasets.holidays import read_holidays
from rmacjax.datasets.indexed import INDEXED_SUFFIXES, read_indexed
from rmacjax.datasets.own import read_image_folder
from rmacjax.datasets.oxford import read_oxford_text
from rmacjax.datasets.photos import jpg_or_self

__all__ = ["KNOWN", "Counts", "Known", "default_folder", "find_texts", "lies_in", "read_dataset"]

MANUAL = Path("~/tensorflow_datasets/downloads/manual")
"""Where tensorflow-datasets keeps what was downloaded by hand."""


class Counts(NamedTuple):
    """How much a data set holds.

    Attributes:
        photos: photos of the collection, without distractors.
        queries: queries.
        distractors: distractors.
    """

    photos: int
    queries: int
    distractors: int = 0


class Known(NamedTuple):
    """What is known of a data set.

    Attributes:
        title: what it is called.
        counts: the published numbers.
        download: in words, what to download and where from.
        base: the data set that it enlarges by distractors, "" if it enlarges none.
        distractors: the folder of its distractors, "" if it has none.
    """

    title: str
    counts: Counts
    download: str
    base: str = ""
    distractors: str = ""


_OXFORD = (
    "oxbuild_images-v1.tgz and gt_files_170407.tgz from "
    "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/"
)
_PARIS = (
    "paris_1-v1.tgz, paris_2-v1.tgz and paris_120310.tgz from "
    "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/"
)
_REVISITED = "http://cmp.felk.cvut.cz/revisitop/"
_ROXFORD = f"{_OXFORD} and gnd_roxford5k.pkl from {_REVISITED}"
_RPARIS = f"{_PARIS} and gnd_rparis6k.pkl from {_REVISITED}"
_HUNDRED_THOUSAND = "the parts of oxc1_100k from https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/"
_MILLION = f"revisitop1m.1.tar.gz to revisitop1m.100.tar.gz from {_REVISITED}"

KNOWN: dict[str, Known] = {
    "oxford5k": Known("Oxford5k", Counts(5063, 55), _OXFORD),
    "paris6k": Known("Paris6k", Counts(6392, 55), _PARIS),
    "roxford5k": Known("Revisited Oxford", Counts(4993, 70), _ROXFORD),
    "rparis6k": Known("Revisited Paris", Counts(6322, 70), _RPARIS),
    "oxford105k": Known(
        "Oxford105k", Counts(5063, 55, 100_071), _HUNDRED_THOUSAND, "oxford5k", "oxc1_100k"
    ),
    "paris106k": Known(
        "Paris106k", Counts(6392, 55, 100_071), _HUNDRED_THOUSAND, "paris6k", "oxc1_100k"
    ),
    "roxford5k+1m": Known(
        "Revisited Oxford + 1M", Counts(4993, 70, 1_001_001), _MILLION, "roxford5k", "revisitop1m"
    ),
    "rparis6k+1m": Known(
        "Revisited Paris + 1M", Counts(6322, 70, 1_001_001), _MILLION, "rparis6k", "revisitop1m"
    ),
    "holidays": Known(
        "INRIA Holidays",
        Counts(1491, 500),
        "jpg1.tar.gz and jpg2.tar.gz from https://lear.inrialpes.fr/~jegou/data.php",
    ),
    "instre": Known(
        "INSTRE",
        Counts(27293, 1250),
        "instre.tar.gz and gnd_instre.mat from ftp://ftp.irisa.fr/local/texmex/corpus/instre/",
    ),
}
"""By name; `read_dataset` also takes "image_folder"."""


def default_folder(name: str) -> Path:
    """Return where a data set's files are looked for when no folder is given.

    Args:
        name: a data set's name.

    Returns:
        ``$RMACJAX_DATA/NAME`` where that variable is set, else tensorflow-datasets' folder.
    """
    chosen = os.environ.get("RMACJAX_DATA")
    return (Path(chosen) if chosen else MANUAL.expanduser()) / name


def lies_in(name: str, home: Path) -> bool:
    """Return whether a data set lies in a folder of data sets, under its own or its base's name."""
    base = KNOWN[name].base if name in KNOWN else ""
    return (
        (home / name).is_dir()
        or _indexed(name, home / name.removeprefix("r")) is not None
        or (base != "" and lies_in(base, home))
    )


def read_dataset(
    name: str, folder: FileName | None = None, *, counts: Counts | None = None
) -> GroundTruth:
    """Read a data set by name.

    Photos and ground truth lie as they are distributed. Oxford5k and Paris6k, also those with
    blurred faces: photos in one folder or in folders, in ``jpg`` or not, with the text files beside
    or below, or ``gnd_NAME.pkl``, ``.mat`` or ``.json`` beside; the revisited ones:
    ``gnd_NAME.pkl`` or the like, in the folder or beside it. Distractors lie in the folder or
    beside it, and the data set that they enlarge as well. Where there is no folder ``roxford5k``
    but ``gnd_roxford5k.pkl`` lies in the folder ``oxford5k`` beside it, that one's photos are
    taken; likewise for Paris.

    Args:
        name: oxford5k, paris6k, roxford5k, rparis6k, oxford105k, paris106k, roxford5k+1m,
            rparis6k+1m, holidays, instre, or image_folder for photos of one's own
            (`read_image_folder`).
        folder: where it lies; None: `default_folder`.
        counts: how much there must be; None: the published numbers.

    Returns:
        The collection and the queries.

    Raises:
        FileNotFoundError: files are missing; the sentence says which, and where they come from.
        ValueError: there is no such data set, or a file is not as it should be.
    """
    root = default_folder(name) if folder is None else Path(folder).expanduser()
    if name == "image_folder":
        return read_image_folder(root)
    if name not in KNOWN:
        raise ValueError(
            f"There is no data set {name!r}; there are {', '.join(KNOWN)} and image_folder."
        )
    known = KNOWN[name]
    wanted = known.counts if counts is None else counts
    if not known.base:
        return _read_alone(name, root, wanted, ())
    found = [place for place in (root / known.base, root.parent / known.base) if place.is_dir()]
    base = found[0] if found else root
    advice = _advice(known, root)
    places = [place / known.distractors for place in (root, root.parent)]
    there = [place for place in places if place.is_dir()]
    if not there:
        raise FileNotFoundError(
            f"{known.title} needs {known.distractors}, which is neither in {root} nor beside it: "
            f"{advice}."
        )
    truth = _read_alone(known.base, base, wanted, (there[0],))
    more = read_distractors(there[0], advice=advice)
    if len(more) != wanted.distractors:
        raise FileNotFoundError(
            f"{there[0]} holds {len(more)} distractors where {wanted.distractors} belong; {advice}."
        )
    return add_distractors(truth, more)._replace(name=name)


def find_texts(folder: Path) -> Path | None:
    """Return the folder of the text files (``*_query.txt``), if it is this or one or two below."""
    for pattern in ("*_query.txt", "*/*_query.txt", "*/*/*_query.txt"):
        if found := sorted(folder.glob(pattern)):
            return found[0].parent
    return None


def _read_alone(
    name: str, root: Path, counts: Counts, without: tuple[FileName, ...]
) -> GroundTruth:
    known = KNOWN[name]
    advice = _advice(known, root)
    classic = root.parent / name.removeprefix("r")
    if not root.is_dir() and _indexed(name, classic) is not None:
        root = classic
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} with {known.title}: {advice}.")
    file = _indexed(name, root) or _indexed(name, root.parent)
    texts = find_texts(root) if name in ("oxford5k", "paris6k") else None
    if name == "holidays":
        truth = read_holidays(root, advice=advice)
    elif name == "instre" and file is not None:
        images = next((root / at for at in ("images", "instre") if (root / at).is_dir()), root)
        truth = read_indexed(file, images, advice=advice)
    elif file is not None:
        truth = read_indexed(file, jpg_or_self(root), without=without, advice=advice)
    elif texts is not None:
        truth = read_oxford_text(texts, jpg_or_self(root), without=without, advice=advice)
    else:
        raise FileNotFoundError(f"{root} holds no ground truth of {known.title}: {advice}.")
    for have, want, what in (
        (len(truth.paths), counts.photos, "photos"),
        (len(truth.queries), counts.queries, "queries"),
    ):
        if have != want:
            raise FileNotFoundError(
                f"{root} holds {have} {what} of {known.title} where {want} belong; {advice}."
            )
    return truth._replace(name=name)


def _indexed(name: str, folder: Path) -> Path | None:
    """A data set's ground truth in one file, where it lies in this folder."""
    files = (folder / f"gnd_{name}{end}" for end in INDEXED_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _advice(known: Known, root: Path) -> str:
    where = root / known.distractors if known.distractors else root
    return f"download {known.download} and unpack them in {where}"
