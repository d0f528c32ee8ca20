"""`rmacjax evaluate`: how good the search is where the answers are known."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from rmacjax.cli.comparisons import Comparison, compared_ways, refuse_comparisons
from rmacjax.cli.describing import LevelsChoice, PoolChoice, ScalesChoice
from rmacjax.cli.effects import IDLE_EXPANSION, PUBLISHED_EXPANSION, refuse_idle
from rmacjax.cli.generated import is_generated, rendered_truth
from rmacjax.cli.keeping import described_in, is_published, kept_in, whitened_on
from rmacjax.cli.terminal import (
    ExpandCount,
    FirstStageName,
    Flag,
    JsonFile,
    OutFile,
    RerankDepth,
    check_writable,
    prepare,
    progress,
    say,
)

if TYPE_CHECKING:
    from rmacjax.datasets import GroundTruth
    from rmacjax.descriptors import Params, Settings
    from rmacjax.measurement import Trust

LEAST_HITS = 0.1
"""A threshold that finds a smaller share of what is there is not worth keeping."""

FEW_ABSENT = 30
"""A line learned from fewer searches for what is not there says little of others."""

LEARNED_ON = "thresholds learned on"
"""Under this name a weights file keeps, by kind of score, what each threshold was learned on."""


def evaluate(
    dataset: Annotated[
        Positional[str | None], arg(metavar="DATASET", help_behavior_hint="")
    ] = None,
    *,
    recipe: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    weights: Annotated[
        str | None, arg(metavar="NAME|FILE", help_behavior_hint="(default: default)")
    ] = None,
    last_pool: Flag = False,
    no_last_pool: Flag = False,
    pool: PoolChoice = None,
    levels: LevelsChoice = None,
    at_scales: ScalesChoice = None,
    whiten_on: Annotated[
        str | None, arg(name="whiten", metavar="DATASET", help_behavior_hint="")
    ] = None,
    no_whiten: Flag = False,
    distractors: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    reversed: Flag = False,
    subset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    queries: Annotated[Literal["cropped", "whole"], arg(metavar="cropped|whole")] = "cropped",
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1024,
    rerank: RerankDepth = 1000,
    expand: ExpandCount = None,
    fusion: Annotated[float, arg(metavar="SHARE")] = 0.0,
    first_stage: FirstStageName = "descriptor",
    also: Annotated[
        tuple[Comparison, ...],
        arg(metavar="regions|fused|alpha-qe|dba|diffusion", help_behavior_hint=""),
    ] = (),
    trust: Flag = False,
    save_thresholds: Annotated[str | None, arg(metavar="OUT", help_behavior_hint="")] = None,
    cache: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    no_cache: Flag = False,
    html: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    markdown: OutFile = None,
    json: JsonFile = None,
) -> None:
    """Measure the search on photos with known answers.

    Prints the mean average precision, how often the first photo is right, and how well the boxes
    lie where true boxes are known: by the first stage alone, re-ranked with boxes (AML), and with
    query expansion (QE); each with the interval in which it lies for other queries of the kind.

    What is described is kept, so that the same command can be interrupted and goes on from there.
    A photo that cannot be read counts as missed where it would be right, and a query without a
    photo finds nothing; prepared data sets (rmacjax.datasets.builders) leave both out.

    For example:

        rmacjax evaluate --recipe paper-oxford5k --data-dir ~/datasets
        rmacjax evaluate oxford5k --weights vgg16 --whiten paris6k
        rmacjax evaluate museum --subset qsd1_w1 --markdown scores.md
        rmacjax evaluate museum --reversed --subset qsd2_w2 --trust
        rmacjax evaluate oxford5k_mini --distractors others --long-side 512 --json -

    Args:
        dataset: A folder of photos with their ground truth, or the name of a published set:
            oxford5k, paris6k, roxford5k, rparis6k, holidays, instre and others; or "scenes", photos
            that are generated on the spot ("scenes:1", "scenes:2": others of the kind).
        recipe: A published table's settings, and the scores to compare with: paper-oxford5k,
            paper-paris6k, paper-oxford5k-mac, paper-paris6k-alexnet, revisited-roxford5k,
            revisited-rparis6k, sfm-gem-oxford5k and others.
        data_dir: Where published sets lie, each in a folder of its name.
        weights: The network: "default", "vgg16-scenes", another name, or a weights file; by
            default a recipe's own.
        last_pool: End with the network's last pooling, as the paper does.
        no_last_pool: Stop before it.
        pool: How a photo's map becomes a vector: by regions (rmac, rgem), or as a whole.
        levels: Scales of the grid of regions.
        at_scales: Describe each photo at these multiples of its size.
        whiten_on: Learn whitening on these photos first, others than those searched: a folder, or
            the name of a published set.
        no_whiten: Leave the weights' whitening out.
        distractors: More photos to search, none of which shows a query.
        reversed: In a museum, look for the paintings in the visitors' photos.
        subset: One set of queries, where the folder has several.
        queries: What is searched for: the outlined part, as published, or the whole photo, which
            is easier and says so in the table.
        long_side: Larger photos are shrunk to this long side first.
        rerank: How many of the best photos to look into for the object; "all": into every one.
        expand: How many of the best finds to search with once more. 0: none.
        fusion: How much the whole photo counts beside the box that was found, 0 to 1.
        first_stage: What the row "filter" ranks by: one descriptor per photo, regions, or
            diffusion.
        also: Compare with other ways: a first stage by regions, half photo and half box, expansion
            weighted by scores, descriptors joined by their nearest, diffusion.
        trust: Look for each object also where it is not, and say which score to believe.
        save_thresholds: Write a weights file with the scores that count as found, which search
            then goes by (--min-score auto).
        cache: Where descriptions are kept; without it, in the user's cache.
        no_cache: Keep nothing.
        html: Write a page per query to this folder, the worst queries first.
        markdown: Write the table as Markdown.
        json: Write the scores as JSON to this file, "-" for stdout.
    """
    given = dict(locals())  # as the command was called, for the report and the recipe's check
    from rmacjax.cli.index import pooling_choice
    from rmacjax.cli.published import departures, recipe_of, recipes_weights
    from rmacjax.cli.scores import Facts, report

    parameters = inspect.signature(evaluate).parameters
    defaults = {option: parameter.default for option, parameter in parameters.items()}
    chosen = recipe_of(recipe, given, defaults)
    asked = bool(expand)
    expand = PUBLISHED_EXPANSION if expand is None else expand
    wanted = pooling_choice(last_pool, no_last_pool)
    if chosen is not None:
        dataset, wanted, whiten_on = chosen.dataset, chosen.last_pool, chosen.whiten
        pool, levels, at_scales = chosen.pool, chosen.levels, chosen.scales
        rerank, expand, long_side = chosen.rerank, chosen.expand, chosen.long_side
        weights = recipes_weights(weights, chosen, str(recipe))
    weights = "default" if weights is None else weights
    if dataset is None:
        raise ValueError("name a dataset or a folder to measure on, or a --recipe")
    if no_whiten and whiten_on is not None:
        raise ValueError("--whiten and --no-whiten contradict each other: leave one out")
    if no_cache and cache is not None:
        raise ValueError("--cache and --no-cache contradict each other: leave one out")
    if is_generated(dataset):
        if cache is not None:
            raise ValueError("generated photos are rendered anew each time: leave --cache out")
        no_cache = True
    refuse_comparisons(also, rerank=rerank, expand=expand, fusion=fusion, first_stage=first_stage)
    refuse_idle(
        rerank=rerank, expand=expand, fusion=fusion, first_stage=first_stage, filter_shown=True
    )
    published = any(name is not None and is_published(name) for name in (dataset, whiten_on))
    if data_dir is not None and not published:
        raise ValueError(
            "--data-dir says where published sets lie, and only folders are named: leave it out"
        )
    check_writable(markdown, json, save_thresholds)
    if html is not None:
        try:
            os.makedirs(html, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--html names a folder for the pages, and {html!r} cannot be one: {error.strerror}"
            ) from error
        if not os.access(html, os.W_OK):
            raise ValueError(f"--html names a folder for the pages, and {html!r} is not writable")
    prepare()
    from rmacjax.cli.describing import chosen_settings, warn_of_other_pool
    from rmacjax.cli.query_pages import Pages
    from rmacjax.measurement import measure
    from rmacjax.weights import load

    truth, more = _read(dataset, data_dir, reversed, subset, distractors)
    if not truth.queries:
        raise ValueError(f"{truth.name} has no queries: say in its ground truth what to search for")
    if queries == "whole" and all(query.box_px is None for query in truth.queries):
        say(f"--queries whole changes nothing: no query of {truth.name} has an outline")
    if rerank == 0 and asked:
        say(IDLE_EXPANSION)
    params = load(weights, last_pool=wanted)
    settings = chosen_settings(
        weights,
        long_side=long_side,
        pool=pool,
        levels=levels,
        scales=at_scales,
        whiten=not no_whiten,
    )
    ways = compared_ways(
        len(truth.paths),
        also,
        rerank=rerank,
        expand=expand,
        fusion=fusion,
        first_stage=first_stage,
    )
    regions = any(way.first_stage == "regions" for way in ways)
    with kept_in(cache, no_cache) as folder:
        if whiten_on is not None:
            params = whitened_on(params, whiten_on, data_dir, settings, folder, truth.paths)
        else:
            warn_of_other_pool(weights, params, settings)

        collection, added = described_in(truth, params, settings, regions, folder)
        pages = None if html is None else Pages(html, collection, truth)
        with progress("queries") as update:
            measured = measure(
                collection,
                truth,
                ways,
                whole_queries=queries == "whole",
                progress=update,
                seen=None if pages is None else pages.draw,
            )
        trusted: list[Trust] = []
        if trust or save_thresholds is not None:
            from rmacjax.measurement import trust as compare

            with progress("queries, with and without their answers") as update:
                trusted = compare(
                    collection, truth, ways[0], whole_queries=queries == "whole", progress=update
                )
        facts = Facts(
            truth=truth,
            distractors=more,
            collection=collection,
            added=added,
            weights=weights,
            whitening=whiten_on,
            recipe=None if recipe is None else str(recipe),
            options={
                **{name: value for name, value in given.items() if name not in ("json", "html")},
                **{"weights": weights, "rerank": rerank, "expand": expand, "long_side": long_side},
            },
        )
        different: list[str] = []
        if chosen is not None:
            left_out = len(added.skipped) + len(measured.unusable)
            different = departures(chosen, weights, collection.params, settings, truth, left_out)
        report(measured, trusted, facts, chosen, different, markdown, json)
        if pages is not None:
            pages.finish(measured)
    if save_thresholds is not None:
        _save_thresholds(save_thresholds, weights, params, whiten_on, settings, trusted, truth.name)


def _read(
    dataset: str,
    data_dir: str | None,
    reversed: bool,
    subset: str | None,
    distractors: str | None,
) -> "tuple[GroundTruth, int]":
    """The ground truth of a folder or of a published set, and how many distractors it got."""
    from rmacjax.datasets import (
        add_distractors,
        read_dataset,
        read_ground_truth,
        read_museum_reversed,
    )
    from rmacjax.preprocessing import find_images

    if reversed:
        truth = read_museum_reversed(dataset, **({} if subset is None else {"subset": subset}))
    elif is_generated(dataset):
        if subset is not None:
            raise ValueError(f"{dataset} has no subsets: leave --subset out")
        truth = rendered_truth(dataset)
    elif is_published(dataset):
        if subset is not None:
            raise ValueError(f"{dataset} has no subsets: leave --subset out")
        folder = None if data_dir is None else os.path.join(data_dir, dataset)
        truth = read_dataset(dataset, folder)
    else:
        truth = read_ground_truth(dataset, subset=subset)
    more = [] if distractors is None else find_images(distractors).files
    if distractors is not None and not more:
        raise OSError(f"there is no photo in {distractors!r}")
    return add_distractors(truth, more), len(more)


def _save_thresholds(
    out: str,
    weights: str,
    params: "Params",
    whiten_on: str | None,
    settings: "Settings",
    trusted: "Sequence[Trust]",
    learned_on: str,
) -> None:
    """Write the network, its whitening and the scores that count as found.

    What was learned before for other kinds of scores stays, and so does what that was learned on,
    unless the whitening is new. A line that finds hardly anything is none.
    """
    from rmacjax.cli.describing import settings_facts
    from rmacjax.cli.scores import may_be_found
    from rmacjax.descriptors import REGIONAL
    from rmacjax.weights import describe_file, provenance, save

    known, facts = provenance(weights), describe_file(weights)
    whitening, stored = facts.get("whitening"), facts.get("settings")
    told = dict(stored) if isinstance(stored, dict) else {}
    thresholds = dict(params.network.thresholds) if whiten_on is None else {}
    before = told.get(LEARNED_ON)
    # Files of old have one name for all lines.
    sources = {
        kind: str(before.get(kind, "unknown") if isinstance(before, dict) else before or "unknown")
        for kind in thresholds
    }
    origin = whitening["origin"] if isinstance(whitening, dict) else ""
    if whiten_on is not None:
        name = os.path.basename(os.path.abspath(whiten_on))
        of = "regions of the photos" if settings.pool in REGIONAL else "whole photos"
        origin = f"PCA, learned on the {of} in {name!r}, pooled by {settings.pool}"
        told = settings_facts(settings)
    fewest = FEW_ABSENT
    for each in trusted:
        thresholds.pop(each.kind, None)
        sources.pop(each.kind, None)
        if each.stage == "expand":
            continue  # photos are judged by their scores before expansion
        if each.hits < LEAST_HITS:
            say(
                f"No threshold for {each.kind!r}: it would find {each.hits:.0%} of what is there, "
                f"less than {LEAST_HITS:.0%}"
            )
        else:
            thresholds[each.kind] = float(each.threshold)
            sources[each.kind] = f"{learned_on}, {len(each.absent)} absent"
            fewest = min(fewest, len(each.absent))
    save(
        out,
        params._replace(network=replace(params.network, thresholds=tuple(thresholds.items()))),
        origin=known["origin"],
        licence=known["licence"],
        dtype="float16" if facts.get("dtype") == "float16" else "float32",
        made_by=known["made_by"],
        source_sha256=known["source_sha256"],
        whitening_origin=origin,
        settings=told | {LEARNED_ON: sources},
    )
    if fewest < FEW_ABSENT:
        say(
            f"These lines were learned from {fewest} searches for what is not there, which are few "
            f"(fewer than {FEW_ABSENT}): of other absent objects, {may_be_found(fewest):.0%} may "
            "count as found"
        )
    kept = "with" if thresholds else "without"
    say(f"Wrote {out} {kept} scores that count as found, learned on {learned_on}")
