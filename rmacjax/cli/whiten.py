"""`rmacjax whiten`: whitening learned on any folder of photos, or on pairs that show the same."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.describing import (
    LevelsChoice,
    PoolChoice,
    ScalesChoice,
    chosen_settings,
    settings_facts,
)
from rmacjax.cli.pairs import Pair, pairs_of, read_pairs
from rmacjax.cli.terminal import (
    Flag,
    JsonFile,
    check_writable,
    count,
    prepare,
    say,
    tell,
    write_json,
)

if TYPE_CHECKING:
    from rmacjax.descriptors import Settings
    from rmacjax.whitening import Whitening

from rmacjax.cli.learning import FULL, learn, learn_from_pairs


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
        weights: The network: "default", "vgg16-scenes", another name, or a weights file.
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
        settings=settings_facts(settings),
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
            "settings": settings_facts(settings),
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


def _with_pairs(photos: str, file: str | None) -> tuple[str | list[str], list[Pair]]:
    """What to learn from: all photos, and the pairs that a file or the ground truth names."""
    if file is not None:
        return photos, read_pairs(file, photos)
    from rmacjax.datasets import read_ground_truth

    truth = read_ground_truth(photos)
    return truth.paths, pairs_of(truth)


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
