"""Oxford5k and Paris6k: landmarks, five outlined queries each, in four text files per query.

``NAME_query.txt`` names a photo (Oxford5k's with ``oxc1_`` before it) and a box;
``NAME_good.txt``, ``NAME_ok.txt`` and ``NAME_junk.txt`` list photos that show the landmark clearly,
more than a quarter of it, or less. Good and ok photos are positive, junk counts neither way, and
the query's own photo is part of the collection. ``gnd_mini.json`` says the same of a few photos of
Oxford5k in one file.

The photos may lie in one flat folder (Oxford5k as distributed) or in a folder per landmark (Paris6k
as distributed); the edition with blurred faces keeps the names. Twenty files of Paris6k are broken
as distributed and belong to no evaluation.

References:
    Philbin et al. 2007 (Oxford5k) and 2008 (Paris6k).
"""

import re
from pathlib import Path

from rmacjax.datasets.ground_truth import (
    FileName,
    GroundTruth,
    check_present,
    four_numbers,
    names_at,
    read_json,
    value_at,
)
from rmacjax.datasets.named import NamedQuery, keep_only, named_photos, resolve
from rmacjax.datasets.photos import OXFORD_PREFIX, check_named, photos_by_name

__all__ = [
    "CORRUPTED_PARIS",
    "parse_oxford_text",
    "read_oxford_mini",
    "read_oxford_text",
]

CORRUPTED_PARIS = frozenset(
    f"paris_{name}"
    for name in (
        *("louvre_000136", "louvre_000146", "moulinrouge_000422", "museedorsay_001059"),
        *("notredame_000188", "pantheon_000284", "pantheon_000960", "pantheon_000974"),
        *("pompidou_000195", "pompidou_000196", "pompidou_000201", "pompidou_000467"),
        *("pompidou_000640", "sacrecoeur_000299", "sacrecoeur_000330", "sacrecoeur_000353"),
        *("triomphe_000662", "triomphe_000833", "triomphe_000863", "triomphe_000867"),
    )
)
"""The photos of Paris6k that are broken as distributed: 6412 files make 6392 photos."""


def read_oxford_text(
    folder: FileName,
    images: FileName,
    *,
    present_only: bool = False,
    without: tuple[FileName, ...] = (),
    advice: str = "",
) -> GroundTruth:
    """Read Oxford5k or Paris6k from the text files.

    Where a positive is itself the photo of a query for the same landmark, its box is known.

    Args:
        folder: the text files.
        images: the folder of the photos; all in it and below are the collection, but for those of
            Paris6k that are known to be broken: they are listed in `left_out`.
        present_only: leave out photos that are not there, and the queries of those; otherwise a
            missing photo is an error.
        without: folders below `images` that are passed over.
        advice: what to do about missing photos, for the error.

    Returns:
        The photos by name, and the queries.

    Raises:
        FileNotFoundError: text files or photos are missing.
        ValueError: a text file is not as it should be, or two photos have the same name.
    """
    queries = parse_oxford_text(folder)
    if not Path(images).is_dir():
        raise FileNotFoundError(f"There is no folder {images} with the photos of {folder}.")
    photos = photos_by_name(images, without=without)
    broken = [photos.pop(name) for name in sorted(CORRUPTED_PARIS & photos.keys())]
    sound = named_photos(queries) - CORRUPTED_PARIS
    queries = [keep_only(query, sound) for query in queries]
    if present_only:
        queries = [keep_only(query, photos) for query in queries if query.image in photos]
    check_named(named_photos(queries), photos, str(folder), images, advice=advice)
    place = Path(images).resolve()
    resolved = resolve(
        queries, list(photos), photos, str(folder), objects=[_landmark(q) for q in queries]
    )
    return GroundTruth(
        place.parent.name if place.name == "jpg" else place.name,
        list(photos.values()),
        resolved,
        left_out=tuple((path, f"{path} is broken as distributed.") for path in broken),
    )


def read_oxford_mini(folder: FileName) -> GroundTruth:
    """Read ``gnd_mini.json``: some photos of Oxford5k and the queries that they allow.

    Scores on it are not comparable with those on Oxford5k.

    Args:
        folder: holds gnd_mini.json and jpg.

    Returns:
        The photos as the file orders them, and the queries, as `read_oxford_text` gives them.

    Raises:
        FileNotFoundError: the file or photos are missing.
        ValueError: the file is not as it should be.
    """
    file = Path(folder) / "gnd_mini.json"
    content = read_json(file, dict)
    queries = []
    for number, entry in enumerate(value_at(content, "queries", list, str(file))):
        where = f"{file}, query {number}"
        queries.append(
            NamedQuery(
                value_at(entry, "query", str, where),
                value_at(entry, "image", str, where),
                four_numbers(value_at(entry, "bbox_xyxy", list, where), where),
                names_at(entry, "good", where),
                names_at(entry, "ok", where),
                names_at(entry, "junk", where),
            )
        )
    names = names_at(content, "imlist", str(file))
    paths = [str(Path(folder) / "jpg" / f"{name}.jpg") for name in names]
    check_present(paths, file)
    photos = dict(zip(names, paths, strict=True))
    check_named([query.image for query in queries], photos, str(file), Path(folder) / "jpg")
    resolved = resolve(
        queries, names, photos, str(file), objects=[_landmark(query) for query in queries]
    )
    return GroundTruth("Oxford5k-mini", paths, resolved)


def parse_oxford_text(folder: FileName) -> list[NamedQuery]:
    """Read the text files of Oxford5k or Paris6k without looking for photos.

    Args:
        folder: the text files.

    Returns:
        The queries by name; 55 in either.

    Raises:
        FileNotFoundError: no query files, or one of a query's other three is missing.
        ValueError: a query file that does not hold a name and four numbers.
    """
    found = sorted(Path(folder).glob("*_query.txt"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no *_query.txt files; give the folder that does.")
    queries = []
    for file in found:
        words = file.read_text(encoding="utf-8-sig").split()
        if len(words) != 5:
            raise ValueError(f"{file} should hold a photo's name and four numbers.")
        name = file.name.removesuffix("_query.txt")
        good, ok, junk = (
            _read_names(file.with_name(f"{name}_{kind}.txt")) for kind in ("good", "ok", "junk")
        )
        image = words[0].removeprefix(OXFORD_PREFIX)
        queries.append(NamedQuery(name, image, four_numbers(words[1:], str(file)), good, ok, junk))
    return queries


def _read_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, though its query file is there.")
    names = file.read_text(encoding="utf-8-sig").split()
    return [name.removeprefix(OXFORD_PREFIX) for name in names]


def _landmark(query: NamedQuery) -> str:
    return re.sub(r"_\d+$", "", query.name)
