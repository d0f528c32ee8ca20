"""`rmacjax whiten`: PCA-whitening learned on the regions of any folder of photos."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.terminal import (
    Flag,
    JsonFile,
    check_writable,
    count,
    list_skipped,
    prepare,
    progress,
    tell,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

    from rmacjax.descriptors import Params, Settings
    from rmacjax.whitening import Moments, Whitening

CHUNK = 64
"""So many photos' maps are in memory at a time."""


def whiten(
    photos: Annotated[Positional[str], arg(metavar="FOLDER")],
    out: Annotated[Positional[str], arg(metavar="OUT")],
    *,
    weights: Annotated[str, arg(metavar="NAME|FILE")] = "default",
    dimensions: Annotated[int | None, arg(metavar="D", help_behavior_hint="")] = None,
    shrinkage: Annotated[float, arg(metavar="S")] = 0.5,
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1024,
    last_pool: Flag = False,
    no_last_pool: Flag = False,
    json: JsonFile = None,
) -> None:
    """Learn whitening from your photos.

    Describes the regions of all photos in a folder, learns PCA-whitening on them and writes a
    weights file that has it inside. A few hundred photos do; they should be of the kind that you
    search, but not the same ones. Whitening that the weights had before is replaced.

    For example:

        rmacjax whiten ~/Pictures/2019 mine.safetensors
        rmacjax whiten ~/Pictures/2019 mine.safetensors --weights vgg16 --dimensions 256
        rmacjax index ~/Pictures/2020 holiday --weights mine.safetensors

    Args:
        photos: The folder to learn from.
        out: The weights file to write.
        weights: The network: "default", another name, or a weights file.
        dimensions: How many dimensions a descriptor keeps; without it, all.
        shrinkage: Exponent of the eigenvalues: 0.5 whitens fully, less keeps more of the spectrum.
        long_side: Larger photos are shrunk to this long side first.
        last_pool: End with the network's last pooling, as the paper does.
        no_last_pool: Stop before it.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    from rmacjax.cli.index import pooling_choice

    wanted = pooling_choice(last_pool, no_last_pool)
    check_writable(out, json)
    prepare()
    from rmacjax.descriptors import Settings
    from rmacjax.weights import load, provenance, save

    params = load(weights, last_pool=wanted)
    learned, moments = learn(
        params,
        photos,
        Settings(long_side=long_side),
        dimensions=dimensions,
        shrinkage=shrinkage,
    )
    name = os.path.splitext(os.path.basename(out))[0]
    known = provenance(weights)
    save(
        out,
        params._replace(network=replace(params.network, name=name), whitening=learned),
        origin=known["origin"],
        licence=known["licence"],
        made_by=known["made_by"],
        source_sha256=known["source_sha256"],
        whitening_origin=_origin(photos, moments),
    )
    size, channels = learned.projection.shape
    if json is not None:
        write_json(
            json,
            {"file": out, "regions": moments.total, "channels": channels, "dimensions": size},
        )
    if json != "-":
        tell(
            f"Learned on {count(moments.total, 'region')}: {channels} channels to {size} dimensions"
        )
        tell(f"Wrote {out}")


def learn(
    params: "Params",
    photos: str,
    settings: "Settings",
    *,
    dimensions: int | None = None,
    shrinkage: float = 0.5,
) -> "tuple[Whitening, Moments]":
    """PCA-whitening of the region vectors of a folder's photos.

    Args:
        params: the network; its own whitening plays no part.
        photos: a folder, or one file.
        settings: long side and levels of the region grid.
        dimensions: how many to keep; None for all.
        shrinkage: the eigenvalues' exponent.

    Returns:
        The whitening, and the moments of the regions that it was learned on.

    Raises:
        OSError: no photo of the folder can be used.
    """
    from rmacjax.preprocessing import find_images
    from rmacjax.whitening import pca_whitening_from_moments, update_moments

    files, skipped = find_images(photos)
    moments: Moments | None = None
    with progress("photos") as update:
        for start in range(0, len(files), CHUNK):
            vectors = _regions(params, files[start : start + CHUNK], settings, skipped)
            if len(vectors):
                moments = update_moments(moments, vectors)
            update(min(start + CHUNK, len(files)), len(files))
    list_skipped(skipped)
    if moments is None:
        raise OSError(f"there is no photo that could be used in {photos!r}")
    return pca_whitening_from_moments(moments, dimensions=dimensions, shrinkage=shrinkage), moments


def _regions(
    params: "Params", files: list[str], settings: "Settings", skipped: list[tuple[str, str]]
) -> "np.ndarray":
    """Unit vectors of all regions of some photos; those that cannot be used are noted."""
    import numpy as np

    from rmacjax.extraction import activations
    from rmacjax.regions import rmac_regions

    try:
        maps = activations(params, files, settings=settings)
    except (OSError, ValueError) as error:
        if len(files) > 1:
            parts = [_regions(params, [file], settings, skipped) for file in files]
            return np.concatenate(parts)
        skipped.append((files[0], str(error)))
        return np.zeros((0, params.network.channels), np.float32)
    # Every map has its own size: NumPy needs no compilation for it.
    rows = []
    for a1 in map(np.asarray, maps):
        h, w, _ = a1.shape
        for top, left, bottom, right in rmac_regions(h, w, settings.levels):
            rows.append(a1[top:bottom, left:right].max((0, 1)))
    vectors = np.stack(rows)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _origin(photos: str, moments: "Moments") -> str:
    name = os.path.basename(os.path.abspath(photos))
    return f"PCA, learned on {moments.total} regions of the photos in {name!r}"
