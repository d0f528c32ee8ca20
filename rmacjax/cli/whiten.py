"""`rmacjax whiten`: whitening learned on any folder of photos, or on pairs that show the same."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.describing import LevelsChoice, PoolChoice, ScalesChoice, chosen_settings
from rmacjax.cli.pairs import Pair, View, pairs_of, read_pairs
from rmacjax.cli.terminal import (
    Flag,
    JsonFile,
    check_writable,
    count,
    list_skipped,
    prepare,
    progress,
    say,
    tell,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

    from rmacjax.descriptors import Params, Settings
    from rmacjax.extraction import Source
    from rmacjax.whitening import Moments, PairMoments, Whitening

KEPT_PHOTOS = 256
"""After so many photos the sums are kept, where they are to be kept."""

ROWS = 2048
"""So many vectors are gathered before they are added up."""

PAIRS = 64
"""So many pairs are described at a time."""

KEPT_VIEWS = 1024
"""Photos whose vectors are kept for the pairs to come; beyond them, they are described again."""

FULL = 0.5
"""The exponent that whitens fully, which is the only one for pairs."""


def whiten(
    photos: Annotated[Positional[str], arg(metavar="FOLDER")],
    out: Annotated[Positional[str], arg(metavar="OUT")],
    *,
    weights: Annotated[str, arg(metavar="NAME|FILE")] = "default",
    dimensions: Annotated[int | None, arg(metavar="D", help_behavior_hint="")] = None,
    shrinkage: Annotated[float, arg(metavar="S")] = FULL,
    pairs: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    truth: Flag = False,
    pool: PoolChoice = None,
    levels: LevelsChoice = None,
    at_scales: ScalesChoice = None,
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1024,
    last_pool: Flag = False,
    no_last_pool: Flag = False,
    json: JsonFile = None,
) -> None:
    """Learn whitening from your photos.

    Describes all photos in a folder, learns PCA-whitening on their vectors (of regions, or of whole
    photos, as the pool has it) and writes a weights file that has it inside. A few hundred photos
    do; they should be of the kind that you search, but not the same ones. Whitening that the
    weights had before is replaced.

    From pairs of photos that show the same thing it learns what does not matter: name them in a
    file, or take them from the folder's ground truth. Regions are paired with those most like them.

    For example:

        rmacjax whiten ~/Pictures/2019 mine.safetensors
        rmacjax whiten ~/Pictures/2019 mine.safetensors --weights vgg16 --dimensions 256
        rmacjax whiten ~/Pictures/2019 mine.safetensors --pool gem --pairs pairs.csv
        rmacjax whiten paris6k mine.safetensors --truth
        rmacjax index ~/Pictures/2020 holiday --weights mine.safetensors

    Args:
        photos: The folder to learn from.
        out: The weights file to write.
        weights: The network: "default", another name, or a weights file.
        dimensions: How many dimensions a descriptor keeps; without it, all.
        shrinkage: Exponent of the eigenvalues: 0.5 whitens fully, less keeps more of the spectrum.
        pairs: Learn from these pairs: CSV or JSON with two photos' names each, as the folder has
            them.
        truth: Learn from the outlined objects of the folder's ground truth and what shows them too.
        pool: How a photo's map becomes a vector: by regions (rmac, rgem), or as a whole.
        levels: Scales of the grid of regions.
        at_scales: Describe each photo at these multiples of its size, none above 1.
        long_side: Larger photos are shrunk to this long side first.
        last_pool: End with the network's last pooling, as the paper does.
        no_last_pool: Stop before it.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    from rmacjax.cli.index import pooling_choice

    wanted = pooling_choice(last_pool, no_last_pool)
    if truth and pairs is not None:
        raise ValueError("--pairs and --truth exclude each other: give one of them")
    if (truth or pairs is not None) and shrinkage != FULL:
        raise ValueError(
            "--shrinkage is an exponent of PCA-whitening, and pairs are always whitened fully: "
            "leave it out"
        )
    check_writable(out, json)
    prepare()
    from rmacjax.descriptors import REGIONAL
    from rmacjax.weights import describe_file, load, provenance, save

    settings = chosen_settings(
        weights, long_side=long_side, pool=pool, levels=levels, scales=at_scales
    )
    if settings.pool in REGIONAL and len(settings.scales) > 1:
        if at_scales is not None:
            raise ValueError(
                f"--scales belong to pools without regions, as regions are whitened each at one "
                f"scale, by {settings.pool} too: leave them out"
            )
        say(f"The regions of {settings.pool} are whitened at scale 1 alone")
        settings = replace(settings, scales=(1.0,))
    params = load(weights, last_pool=wanted)
    skipped: list[tuple[str, str]] = []
    if truth or pairs is not None:
        files, found = _with_pairs(photos, pairs)
        learned, moments, of_pairs, paired = learn_from_pairs(
            params, files, found, settings, dimensions=dimensions, skipped=skipped
        )
        matched = of_pairs.total
    else:
        learned, moments = learn(
            params, photos, settings, dimensions=dimensions, shrinkage=shrinkage, skipped=skipped
        )
        matched = paired = 0
    things = "region" if settings.pool in REGIONAL else "whole photo"
    told = count(paired, "pair")
    if settings.pool in REGIONAL:
        told += f" ({count(matched, 'pair')} of regions)"
    origin = _origin(
        photos, moments.total, things, told if paired else "", settings, learned, shrinkage
    )
    name = os.path.splitext(os.path.basename(out))[0]
    known = provenance(weights)
    # What was a good score with another whitening is none with this one.
    network = replace(params.network, name=name, thresholds=(), whitens_scales=False)
    save(
        out,
        params._replace(network=network, whitening=learned),
        origin=known["origin"],
        licence=known["licence"],
        dtype="float16" if describe_file(weights).get("dtype") == "float16" else "float32",
        made_by=known["made_by"],
        source_sha256=known["source_sha256"],
        whitening_origin=origin,
        settings=_facts(settings),
    )
    size, channels = learned.projection.shape
    if moments.total < size:
        say(
            f"{moments.total} vectors cannot tell {size} dimensions apart: give more photos, or a "
            "smaller number of --dimensions"
        )
    if json is not None:
        document: dict[str, object] = {
            "file": out,
            "vectors": moments.total,
            "channels": channels,
            "dimensions": size,
            "pairs": paired,
            "origin": origin,
            "settings": _facts(settings),
            "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
        }
        if settings.pool in REGIONAL:
            document |= {"regions": moments.total, "region_matches": matched}
        write_json(json, document)
    if json != "-":
        also = f" and {told}" if paired else ""
        tell(
            f"Learned on {count(moments.total, things)}{also}: {channels} channels to {size} "
            "dimensions"
        )
        tell(f"Wrote {out}")


def learn(
    params: "Params",
    photos: str | Sequence[str],
    settings: "Settings",
    *,
    dimensions: int | None = None,
    shrinkage: float = FULL,
    skipped: list[tuple[str, str]] | None = None,
    kept: str | None = None,
) -> "tuple[Whitening, Moments]":
    """PCA-whitening of the vectors of photos: of their regions, or of each as a whole.

    What is asked for is checked before any photo is described. Of the photos, only sums are kept.

    Args:
        params: the network; its own whitening plays no part.
        photos: a folder, or one file; or a list of files.
        settings: long side, pool, levels and scales.
        dimensions: how many to keep; None for all.
        shrinkage: the eigenvalues' exponent.
        skipped: path and reason of photos that could not be used are added to it.
        kept: a file for the sums so far, so that an interrupted run goes on from there; it belongs
            to this network, these photos and settings, and is gone when all is done.

    Returns:
        The whitening, and the moments of the vectors that it was learned on.

    Raises:
        ValueError: dimensions or shrinkage out of range.
        OSError: no photo can be used.
    """
    from rmacjax.whitening import check_options, pca_whitening_from_moments

    check_options(params.network.channels, dimensions=dimensions, shrinkage=shrinkage)
    unusable = [] if skipped is None else skipped
    before = len(unusable)
    files = _files(photos, unusable)
    with progress("photos") as update:
        views = [View(file) for file in files]
        moments, done = _resumed(kept)
        for start in range(done, len(views), KEPT_PHOTOS):
            some = views[start : start + KEPT_PHOTOS]
            told = partial(_shifted, update, start, len(views))
            moments = _add_all(moments, params, some, settings, unusable, told)
            _keep(kept, moments, start + len(some))
    list_skipped(unusable[before:])
    if kept is not None:
        Path(kept).unlink(missing_ok=True)
    if moments is None:
        raise OSError(f"there is no photo that could be used in {_named(photos)}")
    return pca_whitening_from_moments(moments, dimensions=dimensions, shrinkage=shrinkage), moments


def learn_from_pairs(
    params: "Params",
    photos: str | Sequence[str],
    pairs: Sequence[Pair],
    settings: "Settings",
    *,
    dimensions: int | None = None,
    skipped: list[tuple[str, str]] | None = None,
) -> "tuple[Whitening, Moments, PairMoments, int]":
    """Whitening learned from pairs of views that show the same thing.

    Pools with one vector per image pair those of two views. With regions, each region of the first
    view is paired with the second's that is most like it. All vectors of all views and photos say
    what tells things apart.

    Args:
        params: the network; its own whitening plays no part.
        photos: a folder, or a list of files: more vectors than those of the pairs.
        pairs: the pairs; views that are in several are described once, within limits.
        settings: long side, pool, levels and scales.
        dimensions: how many to keep; None for all.
        skipped: path and reason of photos that could not be used are added to it.

    Returns:
        The whitening, the moments of all vectors, those of the pairs of vectors, and how many pairs
        of views these come from.

    Raises:
        ValueError: dimensions out of range.
        OSError: there is not one pair whose photos can both be used.
    """
    import numpy as np

    from rmacjax.whitening import (
        check_options,
        pair_whitening_from_moments,
        update_moments,
        update_pair_moments,
    )

    check_options(params.network.channels, dimensions=dimensions)
    unusable = [] if skipped is None else skipped
    before = len(unusable)
    moments: Moments | None = None
    found: PairMoments | None = None
    used = 0
    kept: OrderedDict[View, np.ndarray] = OrderedDict()
    tried: set[View] = set()
    with progress("pairs") as update:
        for start in range(0, len(pairs), PAIRS):
            part = pairs[start : start + PAIRS]
            needed = list(dict.fromkeys(view for pair in part for view in pair))
            fresh = [view for view in needed if view not in kept]
            again: list[tuple[str, str]] = []
            for view, rows in _vectors(params, fresh, settings, again):
                kept[view] = rows
                if view not in tried:
                    moments = update_moments(moments, rows)
            known = dict(unusable)
            unusable += [(path, why) for path, why in again if path not in known]
            tried.update(fresh)
            both = [pair for pair in part if all(len(kept.get(view, ())) for view in pair)]
            used += len(both)
            if both:
                matches = [_matched(kept[pair.query], kept[pair.positive]) for pair in both]
                queries, positives = (np.concatenate(rows) for rows in zip(*matches, strict=True))
                found = update_pair_moments(found, queries, positives)
            while len(kept) > KEPT_VIEWS:
                kept.popitem(last=False)
            update(min(start + PAIRS, len(pairs)), len(pairs))
    seen = {os.path.abspath(view.path) for view in tried if view.box_px is None}
    others = [View(file) for file in _files(photos, unusable) if os.path.abspath(file) not in seen]
    with progress("photos") as update:
        moments = _add_all(moments, params, others, settings, unusable, update)
    list_skipped(unusable[before:])
    if moments is None or found is None:
        raise OSError(f"there is not one pair whose photos could both be used in {_named(photos)}")
    learned = pair_whitening_from_moments(moments, found, dimensions=dimensions)
    return learned, moments, found, used


def _shifted(
    update: Callable[[int, int], None], start: int, every: int, done: int, some: int
) -> None:
    """Tell how far a part of the photos is as a part of all."""
    del some
    update(start + done, every)


def _resumed(kept: str | None) -> "tuple[Moments | None, int]":
    """Sums of an interrupted run, and how many photos are in them."""
    import numpy as np

    from rmacjax.whitening import Moments

    if kept is None or not os.path.exists(kept):
        return None, 0
    with np.load(kept) as arrays:
        moments = Moments(int(arrays["total"]), arrays["mean"], arrays["scatter"])
        return moments, int(arrays["done"])


def _keep(kept: str | None, moments: "Moments | None", done: int) -> None:
    import numpy as np

    if kept is None or moments is None:
        return
    unfinished = f"{kept}.unfinished"
    with open(unfinished, "wb") as file:
        np.savez(file, **moments._asdict(), done=done)
    os.replace(unfinished, kept)


def _add_all(
    moments: "Moments | None",
    params: "Params",
    views: Sequence[View],
    settings: "Settings",
    skipped: list[tuple[str, str]],
    update: Callable[[int, int], None],
) -> "Moments | None":
    """Add the vectors of all views to running moments, some thousand at a time."""
    import numpy as np

    from rmacjax.whitening import update_moments

    waiting: list[np.ndarray] = []
    before = len(skipped)
    for done, (_, rows) in enumerate(_vectors(params, views, settings, skipped), 1):
        waiting.append(rows)
        if sum(map(len, waiting)) >= ROWS:
            moments = update_moments(moments, np.concatenate(waiting))
            waiting.clear()
        update(done + len(skipped) - before, len(views))
    if sum(map(len, waiting)):
        moments = update_moments(moments, np.concatenate(waiting))
    return moments


def _vectors(
    params: "Params",
    views: Sequence[View],
    settings: "Settings",
    skipped: list[tuple[str, str]],
) -> "Iterator[tuple[View, np.ndarray]]":
    """Each view's unit vectors before whitening, (k, c); those that cannot be used are noted.

    A region without activations has no direction and is left out.
    """
    from rmacjax.extraction import Failed, extract

    given: list[View] = []
    sources = _sources(views, settings.long_side, given, skipped)
    plain = replace(settings, whiten=False)
    for item in extract(params, sources, settings=plain, keep_regions=True):
        view = given[item.index]
        if isinstance(item, Failed):
            skipped.append((view.path, str(item.error)))
        elif item.regions is not None:
            yield view, item.regions[item.regions.any(axis=1)]


def _sources(
    views: Sequence[View], long_side: int, given: list[View], skipped: list[tuple[str, str]]
) -> "Iterator[Source]":
    """Files as they are, outlined parts as pixels; `given` says which view each one is."""
    from rmacjax.retrieval import cut_query

    for view in views:
        source: Source = view.path
        if view.box_px is not None:
            try:
                source = cut_query(view.path, view.box_px, long_side)[0]
            except (OSError, ValueError) as error:
                skipped.append((view.path, str(error)))
                continue
        given.append(view)
        yield source


def _matched(query: "np.ndarray", positive: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Each vector of a query with the one of its match that is most like it."""
    return query, positive[(query @ positive.T).argmax(axis=1)]


def _with_pairs(photos: str, file: str | None) -> tuple[str | list[str], list[Pair]]:
    """What to learn from: all photos, and the pairs that a file or the ground truth names."""
    if file is not None:
        return photos, read_pairs(file, photos)
    from rmacjax.datasets import read_ground_truth

    truth = read_ground_truth(photos)
    return truth.paths, pairs_of(truth)


def _files(photos: str | Sequence[str], skipped: list[tuple[str, str]]) -> list[str]:
    from rmacjax.preprocessing import find_images

    if not isinstance(photos, str):
        return list(photos)
    files, problems = find_images(photos)
    skipped += problems
    return list(files)


def _named(photos: str | Sequence[str]) -> str:
    return repr(photos) if isinstance(photos, str) else f"these {len(photos)} files"


def _facts(settings: "Settings") -> dict[str, object]:
    """The settings that the whitening belongs to, as they are written into the file."""
    from rmacjax.descriptors import REGIONAL

    facts: dict[str, object] = {"pool": settings.pool, "long_side": settings.long_side}
    if settings.pool in REGIONAL:
        facts |= {"levels": settings.levels, "with_global": settings.with_global}
    if settings.scales != (1.0,):
        facts["scales"] = list(settings.scales)
    return facts


def _origin(
    photos: str,
    total: int,
    things: str,
    paired: str,
    settings: "Settings",
    learned: "Whitening",
    shrinkage: float,
) -> str:
    """One sentence that says what the whitening was learned on, for the file."""
    name = os.path.basename(os.path.abspath(photos))
    size, channels = learned.projection.shape
    where = f"{things}s of the photos in" if things == "region" else f"{things}s in"
    how = f"learned on {paired} and" if paired else "PCA, learned on"
    words = f"{how} {total} {where} {name!r}, pooled by {settings.pool}"
    words += "" if paired else f", shrinkage {shrinkage:g}"
    return f"{words}, {size} of {channels} dimensions"
