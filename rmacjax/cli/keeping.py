"""What `rmacjax evaluate` keeps from one run to the next: descriptions, and learned whitenings."""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rmacjax.cli.seals import damaged_file, is_sealed, seal, unseal
from rmacjax.cli.terminal import list_skipped, progress, say

if TYPE_CHECKING:
    import numpy as np

    from rmacjax.collection import AddReport, Collection
    from rmacjax.datasets import GroundTruth
    from rmacjax.descriptors import Params, Settings


DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading arrays raises where their file was cut off or overwritten."""


def is_published(name: str) -> bool:
    """Whether it names a published set, and no folder here."""
    from rmacjax.datasets import KNOWN

    return name in KNOWN and not os.path.isdir(name)


@contextmanager
def kept_in(cache: str | None, no_cache: bool) -> Iterator[str]:
    """The folder for descriptions; a passing one where nothing is to be kept."""
    if no_cache:
        with tempfile.TemporaryDirectory(prefix="rmacjax-evaluate-") as folder:
            yield folder
        return
    import platformdirs

    default = os.path.join(platformdirs.user_cache_dir("rmacjax", appauthor=False), "evaluate")
    folder = os.path.abspath(cache or default)
    os.makedirs(folder, exist_ok=True)
    with _alone(folder):
        yield folder


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Refuse to work in a cache where another evaluation is at work.

    Raises:
        OSError: where one is.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where the file below cannot be shared anyway
        yield
        return
    with open(os.path.join(folder, "in-use"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                f"another evaluation is at work in {folder!r}: wait for it, or name another --cache"
            ) from error
        yield


def kept_arrays(
    path: str, axes: Mapping[str, int], channels: int
) -> "dict[str, np.ndarray] | None":
    """Arrays that an earlier run kept; None where there are none.

    What is damaged (cut off, empty, of other sizes) is as if it had never been, which is said.

    Args:
        path: an .npz file, or where one would be.
        axes: the arrays that have to be in it, and how many axes each has.
        channels: the length of every last axis.

    Raises:
        OSError: it is there and cannot be opened, which says nothing of what is in it.
    """
    import numpy as np

    if not os.path.exists(path):
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OSError(
            f"{path!r}, where an earlier run kept what it learned, cannot be read: "
            f"{error.strerror}; make it readable, or remove it"
        ) from error
    try:
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: np.asarray(stored[name]) for name in axes}
        whole = all(
            array.ndim == axes[name]
            and array.shape[-1:] in ((), (channels,))
            and np.isfinite(array).all()
            for name, array in arrays.items()
        )
    except DAMAGED:
        whole = False
    if whole:
        return arrays
    say(f"{path!r} is damaged, and made anew")
    return None


def whitened_on(
    params: "Params",
    source: str,
    data_dir: str | None,
    settings: "Settings",
    folder: str,
    searched: Sequence[str],
) -> "Params":
    """The network with a whitening learned on other photos, this time or an earlier one.

    That some of them are `searched` too is said.
    """
    import jax.numpy as jnp
    import numpy as np

    from rmacjax.cli.learning import learn
    from rmacjax.datasets import read_dataset
    from rmacjax.descriptors import fingerprint
    from rmacjax.preprocessing import find_images
    from rmacjax.whitening import Whitening

    if is_published(source):
        place = None if data_dir is None else os.path.join(data_dir, source)
        files: list[str] = read_dataset(source, place).paths
    else:
        files = find_images(source).files
    if not files:
        raise OSError(f"there is no photo in {source!r} to learn whitening on")
    both = len(set(map(os.path.realpath, files)) & set(map(os.path.realpath, searched)))
    if both:
        say(
            f"{both} of the {len(files)} photos that whitening is learned on are searched as well: "
            "published scores are for a whitening learned on others"
        )
    digest = hashlib.sha256(fingerprint(params, replace(settings, whiten=False)).encode())
    for file in files:
        status = os.stat(file)
        digest.update(f"{os.path.abspath(file)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    kept = os.path.join(folder, f"whitening-{digest.hexdigest()[:16]}.npz")
    arrays = kept_arrays(kept, {"mean": 1, "projection": 2}, params.network.channels)
    if arrays is None:
        say(f"Learning whitening on {len(files)} photos of {source}")
        learned, _ = learn(params, files, settings, kept=f"{kept}.begun")
        unfinished = f"{kept}.unfinished"
        with open(unfinished, "wb") as file_:
            np.savez(file_, mean=learned.mean, projection=learned.projection)
        os.replace(unfinished, kept)
        arrays = learned._asdict()
    learned = Whitening(*(jnp.asarray(arrays[name]) for name in Whitening._fields))
    network = replace(params.network, whitens_scales=False)  # it is learned afterwards
    return params._replace(network=network, whitening=learned)


def described_in(
    truth: "GroundTruth", params: "Params", settings: "Settings", regions: bool, folder: str
) -> "tuple[Collection, AddReport]":
    """The collection of a ground truth's photos, whatever was described before taken as it is.

    One that is not as it was written is made anew, which is said.
    """
    from rmacjax.collection import Collection
    from rmacjax.descriptors import fingerprint

    name = "".join(c if c.isalnum() else "-" for c in truth.name)[:40]
    photos = hashlib.sha256("\0".join(map(os.path.abspath, truth.paths)).encode("utf-8", "replace"))
    kind = f"{fingerprint(params, settings)}{'-regions' if regions else ''}"
    place = os.path.join(folder, f"{name}-{photos.hexdigest()[:8]}-{kind}")
    collection = _opened(place, params) if os.path.lexists(place) else None
    if collection is None:
        unseal(place)
        collection = Collection.create(place, params, settings=settings, regions=regions)
    with progress("photos") as update:
        added = collection.add(truth.paths, progress=update)
    list_skipped(added.skipped)
    # What could be read the last time and cannot now is as if it had never been.
    if added.skipped:
        collection.remove([path for path, _ in added.skipped])
    seal(place)
    if not len(collection):
        raise OSError(f"none of the photos of {truth.name} could be used")
    return collection, added


def _opened(place: str, params: "Params") -> "Collection | None":
    """A kept collection; None where it is damaged, and then its place is free.

    One that is sealed is damaged where the seal says so, and what else keeps it from being opened
    is told. One that is not, as after a run that was killed, is read through. Where there is none
    it is removed; what is damaged is kept beside it.

    Raises:
        OSError, ValueError, RuntimeError: one that is sound, or cannot be read, was not opened.
    """
    from rmacjax.collection import Collection

    if is_sealed(place):
        file = damaged_file(place)
        if file is None:
            return Collection.open(place, params)
        _set_aside(place, f"{file!r} in it is not as it was written")
        return None
    try:
        kept = Collection.open(place, params)
        _read_through(kept)
        return kept
    except FileNotFoundError:
        _clear(place)
        say(f"{place!r} is damaged, and made anew")
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        _set_aside(place, str(error))
    return None


def _read_through(collection: "Collection") -> None:
    """Read all that a collection holds once, which fails where it is damaged.

    Raises:
        ValueError, RuntimeError: it is.
    """
    import numpy as np

    if len(collection.paths) != len(collection):  # which reads its rows, and not only their number
        raise ValueError("its rows are not as many as they should be")
    gallery = collection.gallery()
    for start in range(0, len(collection), 256):
        numbers = range(start, min(start + 256, len(collection)))
        for packed in gallery.read_levels(numbers):
            packed.unpack()
    if collection.regions:
        dimensions = gallery.snapshot.descriptors.shape[1]
        gallery.region_scores(np.zeros((1, dimensions), np.float32))


def _set_aside(place: str, reason: str) -> None:
    """Make room for a new collection where a damaged one lies, which is kept beside it."""
    aside = f"{place}.damaged"
    _clear(aside)
    os.replace(place, aside)
    say(f"{place!r} is damaged, and made anew; it was set aside as {aside!r}: {reason}")


def _clear(place: str) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    elif os.path.lexists(place):
        os.unlink(place)
