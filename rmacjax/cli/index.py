"""`rmacjax index`, `add` and `remove`: photos into and out of a collection."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.describing import (
    LevelsChoice,
    PoolChoice,
    ScalesChoice,
    chosen_settings,
    warn_of_other_pool,
)
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
    from rmacjax.collection import AddReport, Collection
    from rmacjax.descriptors import Params, Settings


def index(
    photos: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="PHOTOS... COLLECTION", help_behavior_hint="(required)"),
    ],
    *,
    weights: Annotated[
        str | None, arg(metavar="NAME|FILE", help_behavior_hint="(default: default)")
    ] = None,
    long_side: Annotated[
        int | None, arg(metavar="PIXELS", help_behavior_hint="(default: 1024)")
    ] = None,
    last_pool: Flag = False,
    no_last_pool: Flag = False,
    pool: PoolChoice = None,
    levels: LevelsChoice = None,
    at_scales: ScalesChoice = None,
    no_whiten: Flag = False,
    regions: Flag = False,
    json: JsonFile = None,
) -> None:
    """Describe photos and keep them in a collection.

    Give it folders (searched with their sub-folders) or single files, and last the collection's
    folder, which is made. Interrupted or run again, it goes on: only new and changed photos are
    described.

    For example:

        rmacjax index ~/Pictures holiday
        rmacjax index paris.jpg rome/ holiday --long-side 768
        rmacjax index ~/Pictures holiday --weights vgg16
        rmacjax index ~/Pictures holiday --regions
        rmacjax index ~/Pictures holiday --pool gem --scales 1 0.7071 0.5

    Args:
        photos: Folders and image files, then the collection.
        weights: The network: "default", "vgg16-scenes", another name, or a weights file.
        long_side: Larger photos are shrunk to this long side first.
        last_pool: End with the network's last pooling, as the paper does.
        no_last_pool: Stop before it: finer boxes, larger maps.
        pool: How a photo's map becomes a vector: by regions (rmac, rgem), or as a whole. Weights
            that were made for a pool bring it along.
        levels: Scales of the grid of regions.
        at_scales: Describe each photo at these multiples of its size, none above 1.
        no_whiten: Leave out the whitening that the weights have.
        regions: Keep vectors of regions too, for search --first-stage regions (20 KB a photo).
        json: Write the report as JSON to this file, "-" for stdout.
    """
    *sources, target = _at_least(2, photos, "name the photos or their folder, then the collection")
    check_writable(json)
    wanted = pooling_choice(last_pool, no_last_pool)
    prepare()
    from rmacjax.preprocessing import find_images

    if not collection_exists(target) and not find_images(sources).files:
        _report_nothing(sources, find_images(sources).problems)
    if collection_exists(target):
        given = {"long_side": long_side, "pool": pool, "levels": levels, "scales": at_scales}
        collection = _opened(target, weights, given, no_whiten, wanted, regions)
    else:
        settings = chosen_settings(
            weights or "default",
            long_side=long_side,
            pool=pool,
            levels=levels,
            scales=at_scales,
            whiten=not no_whiten,
        )
        collection = _created(target, weights or "default", settings, wanted, regions)
    _add(collection, target, sources, json, "index")


def add(
    collection: Annotated[Positional[str], arg(metavar="COLLECTION")],
    photos: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PHOTOS...", help_behavior_hint="(required)")
    ],
    *,
    json: JsonFile = None,
) -> None:
    """Add photos to a collection.

    They are described as the collection's other photos are. Files that changed are described anew,
    those that did not are passed over.

    For example:

        rmacjax add holiday ~/Pictures/2026
        rmacjax add holiday new1.jpg new2.jpg

    Args:
        collection: The collection's folder.
        photos: Folders and image files.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    _at_least(1, photos, "name photos or their folders")
    check_writable(json)
    check_collection(collection)
    prepare()
    from rmacjax.collection import Collection

    _add(Collection.open(collection), collection, photos, json, "add")


def remove(
    collection: Annotated[Positional[str], arg(metavar="COLLECTION")],
    paths: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PHOTOS...", help_behavior_hint="(required)")
    ],
    *,
    json: JsonFile = None,
) -> None:
    """Take photos out of a collection. The files themselves stay where they are.

    A folder stands for all photos in it, also for those that were deleted meanwhile.

    For example:

        rmacjax remove holiday ~/Pictures/blurred.jpg
        rmacjax remove holiday ~/Pictures/2019

    Args:
        collection: The collection's folder.
        paths: Photos, or folders of photos.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    _at_least(1, paths, "name the photos to remove")
    check_writable(json)
    check_collection(collection)
    from rmacjax.storage import Table

    stored = Table.open(collection)
    known = stored.signatures()
    chosen: set[str] = set()
    missing = []
    for path in paths:
        whole = os.path.abspath(path)
        inside = {p for p in known if p in (path, whole) or p.startswith(whole + os.sep)}
        chosen |= inside
        if not inside:
            missing.append(path)
    removed = stored.delete(sorted(chosen)) if chosen else 0
    for path in missing:
        say(f"{path!r} is not in the collection")
    if json is not None:
        write_json(json, {"removed": removed, "photos": len(stored), "not_there": missing})
    if json != "-":
        left = count(len(stored), "photo")
        tell(f"{count(removed, 'photo')} removed, {left} left in {collection!r}")
    if missing and not chosen:
        raise OSError("nothing was removed: the collection holds none of these photos")


def pooling_choice(last_pool: bool, no_last_pool: bool) -> bool | None:
    """What two flags say about the last pooling; None leaves it to the weights."""
    if last_pool and no_last_pool:
        raise ValueError("--last-pool and --no-last-pool exclude each other: give one of them")
    return True if last_pool else False if no_last_pool else None


def _at_least(least: int, words: Sequence[str], advice: str) -> Sequence[str]:
    if len(words) < least:
        raise ValueError(f"too few arguments: {advice} (see --help)")
    return words


def collection_exists(target: str) -> bool:
    """Whether there is a collection that can be opened."""
    from rmacjax.storage import Table

    try:
        Table.open(target)
    except FileNotFoundError:
        return False
    return True


def check_collection(collection: str) -> None:
    """Refuse a place where no collection is.

    Raises:
        FileNotFoundError: with the command that makes one.
    """
    if not collection_exists(collection):
        raise FileNotFoundError(
            f"there is no collection at {collection!r}: make it with rmacjax index PHOTOS... "
            f"{collection}"
        )


def _created(
    target: str,
    weights: str,
    settings: "Settings",
    last_pool: bool | None,
    regions: bool,
) -> "Collection":
    from rmacjax.collection import Collection

    params = _loaded(weights, last_pool)
    warn_of_other_pool(weights, params, settings)
    return Collection.create(target, params, settings=settings, regions=regions)


def _opened(
    target: str,
    weights: str | None,
    given: Mapping[str, object],
    no_whiten: bool,
    last_pool: bool | None,
    regions: bool,
) -> "Collection":
    """The collection to go on with, provided that it is as the options say."""
    from rmacjax.collection import Collection

    params = (
        None if weights is None and last_pool is None else _loaded(weights or "default", last_pool)
    )
    collection = Collection.open(target, params)
    made = asdict(collection.settings)
    empty = "" if len(collection) else ", or delete this one, which is empty"
    if regions and not collection.regions:
        raise ValueError(
            f"the collection {target!r} was made without --regions, and photos that are in it have "
            f"none: leave the option out, or index into another collection{empty}"
        )
    others = [name for name, value in given.items() if value is not None and value != made[name]]
    if others or (no_whiten and made["whiten"]):
        was = f"with {_option(others[0], made[others[0]])}" if others else "without --no-whiten"
        raise ValueError(
            f"the collection {target!r} was made {was}, and all photos of a collection are "
            f"described alike: leave the option out, or index into another collection{empty}"
        )
    return collection


def _option(name: str, value: object) -> str:
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')} {words}"


def _loaded(weights: str, last_pool: bool | None) -> "Params":
    from rmacjax.weights import load

    return load(weights, last_pool=last_pool)


def _add(
    collection: "Collection", target: str, photos: Sequence[str], json: str | None, command: str
) -> None:
    for sentence in collection.recovered:
        say(sentence)
    with progress("photos") as update:
        report = collection.add(list(photos), progress=update)
    list_skipped(report.skipped)
    total = len(collection)
    if json is not None:
        write_json(json, _document(report, target, total))
    if json != "-" and report.added + report.replaced + report.unchanged:
        tell(_summary(report))
        tell(f"{count(total, 'photo')} in {target!r}")
    if not report.added + report.replaced + report.unchanged:
        _report_nothing(photos, ())


def _report_nothing(photos: Sequence[str], problems: Sequence[tuple[str, str]]) -> None:
    list_skipped(problems)
    names = ", ".join(repr(photo) for photo in photos[:3]) + (", ..." if len(photos) > 3 else "")
    raise OSError(
        f"there is no photo that could be used in {names}: give JPEG, PNG, WebP, TIFF, GIF or BMP "
        "files, or folders that hold some"
    )


def _summary(report: "AddReport") -> str:
    from rmacjax.pictures import duration

    done = report.added + report.replaced
    parts = [f"{count(report.added, 'photo')} added"]
    parts += [f"{report.replaced:,} described anew"] if report.replaced else []
    parts += [f"{report.unchanged:,} already there"] if report.unchanged else []
    parts += [f"{len(report.skipped):,} skipped"] if report.skipped else []
    rate = f", {done / report.seconds:.1f} per second" if done and report.seconds > 0 else ""
    return f"{', '.join(parts)}, in {duration(report.seconds)}{rate}"


def _document(report: "AddReport", target: str, total: int) -> dict[str, object]:
    return {
        "collection": target,
        "photos": total,
        "added": report.added,
        "replaced": report.replaced,
        "unchanged": report.unchanged,
        "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
        "seconds": round(report.seconds, 3),
    }
