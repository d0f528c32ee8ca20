"""The data sets as tensorflow-datasets: prepared once, then read at random, without TensorFlow.

Importing this module makes the names known; nothing is downloaded, see `known` for where photos
come from and where they are looked for::

    import tensorflow_datasets as tfds
    import rmacjax.datasets.builders

    photos = tfds.data_source("oxford5k", split="database")
    photos[17]["image"]                                     # (H, W, 3) uint8
    mine = tfds.builder("image_folder", folder="my_photos")  # or one's own photos
    mine.download_and_prepare()
    mine.as_data_source(split="queries")[0]["positives"]    # positions in "database"

Names are those of `read_dataset`, but for ``roxford5k_1m`` and ``rparis6k_1m``, as a name must not
hold a plus. There are two splits, in the ground truth's order: "database", the collection, and
"queries", which is not there if there are none. All examples have the same fields: ``image``,
``filename`` and ``index`` (the position in the split); of queries also ``name``, ``box`` (top,
left, bottom, right, pixels), ``positives``, ``hard`` and ``junk`` (positions in "database"), and
where the object's true box in a positive is known, ``boxes`` and in which photos, ``boxed``. Of
photos of the collection these are empty, and the box is the whole photo.

A photo that cannot be decoded is left out and listed, with the reason, in
``builder.info.metadata["left_out"]``; positions count without it, and it is in no query's lists. A
query whose photo cannot be decoded is left out too. Scores of what is left can be higher than those
of ``rmacjax evaluate``, where such a photo counts as missed and such a query finds nothing.

Files are stored as they are where everyone's decoder makes the same upright RGB pixels of them,
else as PNG.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from rmacjax.datasets.ground_truth import FileName, Query
from rmacjax.datasets.known import KNOWN, Counts, default_folder, lies_in, read_dataset
from rmacjax.preprocessing import encode_png, load_image, read_size

__all__ = [
    "Holidays",
    "ImageFolder",
    "Instre",
    "Oxford105k",
    "Oxford5k",
    "Paris106k",
    "Paris6k",
    "RetrievalBuilder",
    "Roxford5k",
    "Roxford5k1m",
    "Rparis6k",
    "Rparis6k1m",
]

SHARD_BYTES = 1 << 27
"""Photos of about so many bytes go into one file; while it is written they are all in memory."""

_PERMISSIONS = tfds.core.utils.file_utils.Permissions(mode=0o775)
"""Of what is written, as tensorflow-datasets has it."""

_AT_ONCE = 64
"""So many photos are checked before results are collected: a million futures take a gigabyte."""


class RetrievalBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the builders of all data sets share.

    They say themselves which photos go into which file, in order. The usual builder, which
    shuffles, needs TensorFlow as soon as a split has more than 1 GB, as Oxford5k has.

    Attributes:
        DATASET: the name by which `read_dataset` knows the data set.
    """

    DATASET = ""
    VERSION = tfds.core.Version("1.0.0")
    # Beside the code, checksums of downloads would lie, of which there are none; and the search for
    # it takes a package (importlib_resources) that tensorflow-datasets does not ask for.
    code_path = None

    def __init_subclass__(cls, *, dataset: str = "", skip_registration: bool = False) -> None:
        """Name a data set's builder, before tensorflow-datasets makes the name known."""
        if dataset:
            cls.DATASET, cls.name = dataset, dataset.replace("+", "_")
        if dataset in KNOWN:
            cls.MANUAL_DOWNLOAD_INSTRUCTIONS = KNOWN[dataset].download
        super().__init_subclass__(skip_registration=skip_registration)

    def __init__(
        self,
        *,
        folder: FileName | None = None,
        counts: Counts | None = None,
        file_format: Any = "array_record",
        data_dir: Any = None,
        config: Any = None,
        version: Any = None,
    ) -> None:
        """Name the folder of the photos; nothing is read yet.

        Args:
            folder: where the data set lies as distributed; None: NAME in the manual directory of
                `download_and_prepare`'s configuration if that is there, else `default_folder`.
                What was prepared so is kept for one such place: `download_and_prepare` refuses to
                let it stand for photos that lie elsewhere now.
            counts: how much there must be; None: the published numbers.
            file_format: that of the prepared files.
            data_dir: where they are written; what a `folder` holds is kept for each one apart, by
                its path.
            config: as tensorflow-datasets has it.
            version: likewise.
        """
        self._folder = None if folder is None else Path(folder).expanduser()
        self._counts = counts
        self._place = self._folder or default_folder(self.DATASET)
        if config is None and self._folder is not None:
            path = os.path.abspath(self._folder)
            known_by = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            config = tfds.core.BuilderConfig(name=f"folder_{known_by}", description=path)
        super().__init__(file_format=file_format, data_dir=data_dir, config=config, version=version)

    def download_and_prepare(
        self,
        *,
        download_dir: Any = None,
        download_config: Any = None,
        file_format: Any = None,
        permissions: Any = _PERMISSIONS,
    ) -> None:
        """Prepare the photos, unless they are prepared already.

        Args:
            download_dir: as tensorflow-datasets has it, and so are the others.
            download_config: see there; its ``manual_dir`` may hold the data set.
            file_format: see there.
            permissions: see there.

        Raises:
            ValueError: photos are found in another folder than those that were prepared.
        """
        how = download_config or tfds.download.DownloadConfig()
        downloads = Path(download_dir or self.data_dir_root / "downloads")
        manual = Path(how.manual_dir or downloads / "manual").expanduser()
        usual = default_folder(self.DATASET).parent
        there = [home for home in (manual, usual) if lies_in(self.DATASET, home)]
        self._place = self._folder or (there[0] if there else usual) / self.DATASET
        before = self.info.metadata.get("folder") if self.data_path.exists() else None
        if (
            before is not None
            and (there or self._folder)
            and os.path.realpath(before) != os.path.realpath(self._place)
            and not how.download_mode.overwrite_dataset
        ):
            raise ValueError(
                f"{self.data_dir} holds what was prepared from {before}, and photos of "
                f"{self.DATASET} lie in {self._place} now: name that folder (folder=...), which is "
                "kept apart, or prepare anew (GenerateMode.REUSE_CACHE_IF_EXISTS)."
            )
        super().download_and_prepare(
            download_dir=download_dir,
            download_config=download_config,
            file_format=file_format,
            permissions=permissions,
        )

    def _info(self) -> Any:
        known = KNOWN.get(self.DATASET)
        features = tfds.features
        numbers = features.Tensor(shape=(None,), dtype=np.int64)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{known.title if known else 'A folder of photos'}, for retrieval.",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "filename": features.Text(),
                    "index": np.int64,
                    "name": features.Text(),
                    "box": features.Tensor(shape=(4,), dtype=np.int32),
                    "positives": numbers,
                    "hard": numbers,
                    "junk": numbers,
                    "boxes": features.Tensor(shape=(None, 4), dtype=np.int32),
                    "boxed": numbers,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        truth = read_dataset(self.DATASET, self._place, counts=self._counts)
        everything = [*truth.paths, *(query.path for query in truth.queries)]
        states = _check(everything)
        photos, asked = states[: len(truth.paths)], states[len(truth.paths) :]
        left_out = dict(truth.left_out)
        left_out |= {
            path: state
            for path, state in zip(everything, states, strict=True)
            if isinstance(state, str)
        }
        if left_out:
            logging.getLogger(__name__).warning(
                "%s: %d photos were left out; the first: %s",
                self.DATASET,
                len(left_out),
                next(iter(left_out.values())),
            )
        self.info.metadata.update(
            protocol=truth.protocol,
            folder=os.path.abspath(self._place),
            left_out=[list(item) for item in left_out.items()],
        )
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in everything])
        if all(isinstance(state, str) for state in photos):
            raise OSError(f"None of {len(photos)} photos can be decoded; the first: {photos[0]}.")
        kept = np.asarray([isinstance(state, _Stored) for state in photos], np.int64)
        # Position of each photo that is kept, -1 of the others.
        positions = np.where(kept == 1, np.cumsum(kept) - 1, -1)
        splits = {
            "database": [
                _Row(path, state, {})
                for path, state in zip(truth.paths, photos, strict=True)
                if isinstance(state, _Stored)
            ],
            "queries": [
                _Row(query.path, state, _answers(query, positions))
                for query, state in zip(truth.queries, asked, strict=True)
                if isinstance(state, _Stored)
            ],
        }
        return {name: _shards(rows, root) for name, rows in splits.items() if rows}


class Oxford5k(RetrievalBuilder, dataset="oxford5k"):
    """Oxford5k, 5063 photos and 55 queries."""


class Paris6k(RetrievalBuilder, dataset="paris6k"):
    """Paris6k, 6392 photos and 55 queries."""


class Roxford5k(RetrievalBuilder, dataset="roxford5k"):
    """Revisited Oxford, 4993 photos and 70 queries."""


class Rparis6k(RetrievalBuilder, dataset="rparis6k"):
    """Revisited Paris, 6322 photos and 70 queries."""


class Oxford105k(RetrievalBuilder, dataset="oxford105k"):
    """Oxford5k among 100,071 distractors."""


class Paris106k(RetrievalBuilder, dataset="paris106k"):
    """Paris6k among 100,071 distractors."""


class Roxford5k1m(RetrievalBuilder, dataset="roxford5k+1m"):
    """Revisited Oxford among a million distractors."""


class Rparis6k1m(RetrievalBuilder, dataset="rparis6k+1m"):
    """Revisited Paris among a million distractors."""


class Holidays(RetrievalBuilder, dataset="holidays"):
    """INRIA Holidays, 1491 photos of which 500 are queries."""


class Instre(RetrievalBuilder, dataset="instre"):
    """INSTRE, 27293 photos and 1250 queries."""


class ImageFolder(RetrievalBuilder, dataset="image_folder"):
    """Photos of one's own, with ``ground_truth.json`` or ``ground_truth.csv`` or without.

    `counts` is not looked at. What is prepared is not renewed when photos are added or changed:
    prepare again, with ``tfds.GenerateMode.REUSE_CACHE_IF_EXISTS`` as the ``download_mode`` of the
    ``tfds.download.DownloadConfig``.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put photos there, and ground_truth.json or ground_truth.csv."


class _Stored(NamedTuple):
    """How a photo is stored, as its file is or as PNG, and how many bytes the file has."""

    as_is: bool
    size: int


class _Row(NamedTuple):
    """A photo of a split, and what is known of it if it is a query's."""

    path: str
    stored: _Stored
    answers: dict[str, Any]


def _check(paths: Sequence[str]) -> list[_Stored | str]:
    """Decode every photo; say for each how to store it, or why it is left out."""
    states: list[_Stored | str] = []
    with (
        ThreadPoolExecutor() as threads,
        # The bar that tensorflow-datasets shows for all that takes long, and turns off if told so.
        tfds.core.utils.tqdm(desc="Checking photos...", total=len(paths), leave=False) as bar,
    ):
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            states += threads.map(_state, some)
            bar.update(len(some))
    return states


def _state(path: str) -> _Stored | str:
    try:
        pixels = load_image(path).pixels
        data = Path(path).read_bytes()
    except OSError as error:  # an ImageError is one, and names the file
        return str(error)
    try:
        plain = tfds.features.Image(shape=(None, None, 3)).decode_example_np_with_pil(data, 3)
    except (OSError, ValueError, TypeError, SyntaxError):  # not for everyone's decoder
        return _Stored(False, len(data))
    return _Stored(np.array_equal(plain, pixels), len(data))


def _encoded(path: str, state: _Stored) -> bytes:
    return Path(path).read_bytes() if state.as_is else encode_png(load_image(path).pixels)


def _shards(
    rows: Sequence[_Row], root: str
) -> list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]:
    """Divide a split among files; each is a function that yields positions and examples."""
    starts, filled = [0], 0
    for position, row in enumerate(rows):
        if filled and filled + row.stored.size > SHARD_BYTES:
            starts.append(position)
            filled = 0
        filled += row.stored.size
    ends = [*starts[1:], len(rows)]
    return [
        partial(_examples, rows[start:end], start, root)
        for start, end in zip(starts, ends, strict=True)
    ]


def _examples(rows: Sequence[_Row], start: int, root: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, row in enumerate(rows, start):
        yield position, _example(row, position, root)


def _example(row: _Row, position: int, root: str) -> dict[str, Any]:
    return {
        "image": _encoded(row.path, row.stored),
        "filename": Path(os.path.relpath(row.path, root)).as_posix(),
        "index": position,
        "name": "",
        "box": np.asarray((0, 0, *read_size(row.path)), np.int32),
        "positives": np.zeros(0, np.int64),
        "hard": np.zeros(0, np.int64),
        "junk": np.zeros(0, np.int64),
        "boxes": np.zeros((0, 4), np.int32),
        "boxed": np.zeros(0, np.int64),
        **row.answers,
    }


def _answers(query: Query, positions: np.ndarray) -> dict[str, Any]:
    def kept(numbers: np.ndarray) -> np.ndarray:
        found: np.ndarray = positions[numbers]
        return found[found >= 0]

    boxes = {number: box for number, box in query.boxes.items() if positions[number] >= 0}
    answers: dict[str, Any] = {
        "name": query.name,
        "positives": kept(query.positives),
        "hard": kept(query.hard),
        "junk": kept(query.junk),
        "boxes": np.asarray(list(boxes.values()), np.int32).reshape(-1, 4),
        "boxed": positions[np.asarray(list(boxes), np.int64)],
    }
    if query.box_px is not None:
        answers["box"] = np.asarray(query.box_px, np.int32)
    return answers
