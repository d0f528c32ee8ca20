"""Whitening learned on photos: the vectors of thousands of them, of which only sums are kept."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rmacjax.cli.keeping import kept_arrays
from rmacjax.cli.pairs import Pair, View
from rmacjax.cli.terminal import list_skipped, progress

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
        moments, done = _resumed(kept, params.network.channels, len(views))
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


def _resumed(kept: str | None, channels: int, photos: int) -> "tuple[Moments | None, int]":
    """Sums of an interrupted run, and how many photos are in them; none where they are damaged."""
    from rmacjax.whitening import Moments

    axes = {"total": 0, "mean": 1, "scatter": 2, "done": 0}
    arrays = None if kept is None else kept_arrays(kept, axes, channels)
    if arrays is None or not 0 < int(arrays["done"]) <= photos:
        return None, 0
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


def _files(photos: str | Sequence[str], skipped: list[tuple[str, str]]) -> list[str]:
    from rmacjax.preprocessing import find_images

    if not isinstance(photos, str):
        return list(photos)
    files, problems = find_images(photos)
    skipped += problems
    return list(files)


def _named(photos: str | Sequence[str]) -> str:
    return repr(photos) if isinstance(photos, str) else f"these {len(photos)} files"
