"""Fetching published networks: download, compare with the makers' checksum, convert, keep.

A network is kept only when all of that went well; nothing half done stays behind.
"""

import dataclasses
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from rmacjax.weights.conversion import convert_file
from rmacjax.weights.files import save
from rmacjax.weights.formats import NEEDS_H5PY
from rmacjax.weights.manifest import CONVERTED_ONLY, PACKAGED, PUBLISHED, Published, weights_folder

TIMEOUT_S = 30

Progress = Callable[[int, int], None]


class _Meter:
    """What the downloader wants of a progress bar, told as bytes done and bytes in all."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.total = 0
        self.done = 0

    def update(self, amount: int) -> None:
        self.done += amount
        self.report(min(self.done, self.total) if self.total else self.done, self.total)

    def reset(self) -> None:
        self.done = 0 if self.total else self.done

    def close(self) -> None:
        """Leave nothing behind: the caller's bar is closed by the caller."""


def fetch(
    name: str,
    folder: str | Path | None = None,
    *,
    url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a published network, check it, convert it and keep it under its name.

    Args:
        name: "vgg16" (Keras' file of the original, 59 MB), "vgg16-torchvision" (553 MB), "alexnet"
            (244 MB), "squeezenet1_1" (5 MB), "resnet18" (47 MB), "resnet34" (87 MB), "resnet50"
            (103 MB) or "resnet101" (179 MB).
        folder: where to keep it; None: where `rmacjax.load` looks for names.
        url: where to get it instead; the makers' checksum stays in force.
        progress: told the bytes done and the bytes in all (0 where unknown) from time to time.

    Returns:
        The file's path.

    Raises:
        ValueError: if nobody publishes such a network.
        RuntimeError: if the file is not what its makers published, or a library is missing.
        OSError: if it cannot be downloaded or written.
    """
    published = PUBLISHED.get(name)
    if published is None:
        raise ValueError(_cannot_fetch(name))
    if published.needs_h5py and importlib.util.find_spec("h5py") is None:
        raise RuntimeError(NEEDS_H5PY.format(name))
    folder = weights_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        urls = (url,) if url else published.urls
        source, used = _download(urls, Path(scratch), progress)
        _verify(source, published, name)
        conversion = convert_file(source, architecture=published.architecture)
        network = conversion.params.network
        return save(
            folder / f"{name}.safetensors",
            conversion.params._replace(network=dataclasses.replace(network, name=name)),
            origin=f"{conversion.origin} ({used})",
            licence=published.licence,
            source_sha256=conversion.source_sha256,
            made_by="rmacjax weights fetch",
        )


def _cannot_fetch(name: str) -> str:
    if name in PACKAGED:
        return f"{name} ships with rmacjax and needs no fetching"
    if name in CONVERTED_ONLY:
        return (
            f"nobody publishes {name} in a form to fetch: convert a file of it with "
            "`rmacjax weights convert`"
        )
    return f"no network {name!r} can be fetched; there are {', '.join(PUBLISHED)}"


def _download(urls: tuple[str, ...], scratch: Path, progress: Progress | None) -> tuple[Path, str]:
    """Try each place in turn."""
    failures = []
    for url in urls:
        path = scratch / (Path(urlsplit(url).path).name or "download")
        meter = _Meter(progress) if progress else False
        try:
            pooch.HTTPDownloader(progressbar=meter, timeout=TIMEOUT_S)(url, str(path), None)
            return path, url
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{url}: {_reason(error)}")
    raise OSError(f"the download failed, nothing was kept; {'; '.join(failures)}")


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    if getattr(error, "errno", None) is not None:  # a full disk, say
        return str(error)
    return f"no connection, or it broke off ({type(error).__name__})"


def _verify(path: Path, published: Published, name: str) -> None:
    algorithm, _, digits = published.checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(digits):
        raise RuntimeError(
            f"what was downloaded is not the published {name} and was thrown away: its {algorithm} "
            f"starts with {found[: len(digits)]} instead of {digits}; try again later"
        )
