"""`rmacjax evaluate`: how good the search is where the answers are known."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import Positional, arg

from rmacjax.cli.terminal import (
    FirstStageName,
    Flag,
    JsonFile,
    OutFile,
    RerankDepth,
    check_writable,
    count,
    finite,
    list_skipped,
    prepare,
    progress,
    say,
    table,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    import numpy as np

    from rmacjax.collection import Collection
    from rmacjax.datasets import GroundTruth, Query
    from rmacjax.retrieval import Depth, FirstStage, Retrieved

ROWS = ("filter", "+ AML", "+ AML + QE")
"""The paper's three rows: by the filter alone, re-ranked by the boxes found, and with expansion."""


class Row(NamedTuple):
    """The scores of one stage.

    Attributes:
        name: one of `ROWS`.
        mean_average_precision: 0..1.
        first_place: share of queries whose first photo is right.
        overlap: mean intersection over union with the true boxes, NaN where there are none.
        per_query: average precision of each query.
    """

    name: str
    mean_average_precision: float
    first_place: float
    overlap: float
    per_query: list[float]


class Outcome(NamedTuple):
    """All that a measurement says.

    Attributes:
        rows: the scores, stage by stage.
        seconds: median time of each stage per query.
        boxes: how many true boxes the overlap was measured on.
    """

    rows: list[Row]
    seconds: dict[str, float]
    boxes: int


def evaluate(
    folder: Annotated[Positional[str], arg(metavar="FOLDER")],
    *,
    weights: Annotated[str, arg(metavar="NAME|FILE")] = "default",
    last_pool: Flag = False,
    no_last_pool: Flag = False,
    distractors: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    reversed: Flag = False,
    subset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    whiten_on: Annotated[
        str | None, arg(name="whiten", metavar="FOLDER", help_behavior_hint="")
    ] = None,
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1024,
    rerank: RerankDepth = 1000,
    expand: Annotated[int, arg(metavar="N")] = 5,
    fusion: Annotated[float, arg(metavar="SHARE")] = 0.0,
    first_stage: FirstStageName = "descriptor",
    markdown: OutFile = None,
    json: JsonFile = None,
) -> None:
    """Measure the search on photos with known answers.

    Prints the mean average precision, how often the first photo is right, and how well the boxes
    lie where true boxes are known: by the first stage alone, re-ranked with boxes (AML), and with
    query expansion (QE).

    For example:

        rmacjax evaluate oxford5k --weights vgg16
        rmacjax evaluate museum --subset qsd1_w1 --markdown scores.md
        rmacjax evaluate museum --reversed --subset qsd2_w2
        rmacjax evaluate oxford5k_mini --distractors others --long-side 512 --json -

    Args:
        folder: Photos with their ground truth.
        weights: The network: "default", another name, or a weights file.
        last_pool: End with the network's last pooling, as the paper does.
        no_last_pool: Stop before it.
        distractors: More photos to search, none of which shows a query.
        reversed: In a museum, look for the paintings in the visitors' photos.
        subset: One set of queries, where the folder has several.
        whiten_on: Learn whitening on this folder's photos first, others than those searched.
        long_side: Larger photos are shrunk to this long side first.
        rerank: How many of the best photos to look into for the object; "all": into every one.
        expand: How many of the best finds to search with once more. 0: none.
        fusion: How much the whole photo counts beside the box that was found, 0 to 1.
        first_stage: What the row "filter" ranks by: one descriptor per photo, or regions.
        markdown: Write the table as Markdown.
        json: Write the scores as JSON to this file, "-" for stdout.
    """
    from rmacjax.cli.index import pooling_choice

    wanted = pooling_choice(last_pool, no_last_pool)
    check_writable(markdown, json)
    prepare()
    from rmacjax.collection import Collection
    from rmacjax.datasets import add_distractors, read_ground_truth, read_museum_reversed
    from rmacjax.descriptors import Settings
    from rmacjax.preprocessing import find_images
    from rmacjax.weights import load

    if reversed:
        truth = read_museum_reversed(folder, **({} if subset is None else {"subset": subset}))
    else:
        truth = read_ground_truth(folder, subset=subset)
    more = [] if distractors is None else find_images(distractors).files
    if distractors is not None and not more:
        raise OSError(f"there is no photo in {distractors!r}")
    truth = add_distractors(truth, more)
    params = load(weights, last_pool=wanted)
    settings = Settings(long_side=long_side)
    if whiten_on is not None:
        from rmacjax.cli.whiten import learn

        learned, _ = learn(params, whiten_on, settings)
        params = params._replace(whitening=learned)
    with tempfile.TemporaryDirectory(prefix="rmacjax-evaluate-") as scratch:
        collection = Collection.create(
            os.path.join(scratch, "photos"),
            params,
            settings=settings,
            regions=first_stage == "regions",
        )
        say(f"{truth.name}: {count(len(truth.paths), 'photo')}, {len(truth.queries)} queries")
        with progress("photos") as update:
            report = collection.add(truth.paths, progress=update)
        list_skipped(report.skipped)
        with progress("queries") as update:
            outcome = measure(
                collection,
                truth,
                rerank=rerank,
                expand=expand,
                fusion=fusion,
                first_stage=first_stage,
                progress=update,
            )
        photos = len(collection)
    facts: dict[str, object] = {
        "data": truth.name,
        "queries": len(truth.queries),
        "photos": photos,
        "distractors": len(more),
        "weights": weights,
        "whitening": whiten_on or ("that of the weights" if params.whitening else "none"),
        "long_side": long_side,
        "rerank": rerank,
        "expand": expand,
        "fusion": fusion,
        "first_stage": first_stage,
        "photos_per_second": round(photos / max(report.seconds, 1e-9), 2),
    }
    _report(outcome, facts, markdown, json)


def measure(
    collection: "Collection",
    truth: "GroundTruth",
    *,
    rerank: "Depth" = 1000,
    expand: int = 5,
    fusion: float = 0.0,
    first_stage: "FirstStage" = "descriptor",
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Search for every query of a ground truth and score each stage.

    Args:
        collection: holds the ground truth's images; others count as wrong.
        truth: from `rmacjax.datasets`.
        rerank: how many of the best photos are re-ranked; 0 for none, "all" for every one.
        expand: how many of the best boxes join the query; 0 for none.
        fusion: share of the whole photo's descriptor in what is re-ranked.
        first_stage: what the filter ranks by; "regions" wants a collection that keeps them.
        progress: called with (done, total) after each query.
    """
    import numpy as np

    from rmacjax.retrieval import describe_query, retrieve

    gallery = collection.gallery()
    known = {os.path.abspath(path): number for number, path in enumerate(truth.paths)}
    # The ground truth's number of each photo of the collection; strangers get the next ones.
    numbers = np.asarray(
        [known.get(path, len(known) + i) for i, path in enumerate(collection.paths)], np.int64
    )
    params, settings = collection.params, collection.settings
    stages: dict[str, list[np.ndarray]] = {name: [] for name in ROWS}
    overlaps: list[float] = []
    seconds: list[dict[str, float]] = []
    for done, query in enumerate(truth.queries):
        described = describe_query(params, query.path, query.box_px, settings=settings)
        found = retrieve(
            described,
            gallery,
            whitening=params.whitening if settings.whiten else None,
            settings=settings,
            keep=len(numbers),
            rerank=rerank,
            expand=expand,
            fusion=fusion,
            first_stage=first_stage,
        )
        orders = (found.filtered, found.reranked, found.ranking if expand else None)
        for name, stage in zip(ROWS, orders, strict=True):
            if stage is not None and (name == "filter" or rerank):
                stages[name].append(numbers[stage.indices])
        overlaps += _overlaps(found, gallery.map_sizes, numbers, collection, query)
        seconds.append(found.seconds)
        if progress is not None:
            progress(done + 1, len(truth.queries))
    rows = [
        _row(name, np.stack(columns, axis=1), truth, overlaps if name != "filter" else [])
        for name, columns in stages.items()
        if columns
    ]
    keys = dict.fromkeys(key for each in seconds for key in each)
    typical = {key: float(np.median([each.get(key, 0.0) for each in seconds])) for key in keys}
    return Outcome(rows, typical, len(overlaps))


def _row(name: str, ranks: "np.ndarray", truth: "GroundTruth", overlaps: Sequence[float]) -> Row:
    from rmacjax.evaluation import first_place, mean_average_precision

    positives = [query.positives for query in truth.queries]
    junk = [query.junk for query in truth.queries]
    precision = mean_average_precision(ranks, positives, junk)
    first = first_place(ranks, positives, junk=junk)
    overlap = sum(overlaps) / len(overlaps) if overlaps else float("nan")
    return Row(name, precision.map, first, overlap, [float(ap) for ap in precision.per_query])


def _report(
    outcome: Outcome, facts: dict[str, object], markdown: str | None, json: str | None
) -> None:
    from rmacjax.pictures import duration

    lines = [
        (
            row.name,
            f"{row.mean_average_precision:.3f}",
            f"{row.first_place:.1%}",
            "-" if row.overlap != row.overlap else f"{row.overlap:.3f}",
        )
        for row in outcome.rows
    ]
    headings = {"search": "left", "mAP": "right", "first place": "right", "overlap": "right"}
    if json != "-":
        table(headings, lines)
        times = ", ".join(f"{stage} {duration(t)}" for stage, t in outcome.seconds.items())
        say(f"{facts['photos_per_second']} photos described per second; per query: {times}")
        say(f"first stage (the row {ROWS[0]!r}): {facts['first_stage']}")
    if markdown is not None:
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
        rows = [" | ".join(line) for line in lines]
        text = "\n".join(["| " + " | ".join(headings) + " |", "|---|--:|--:|--:|"])
        text += "".join(f"\n| {row} |" for row in rows) + f"\n\n{settings}\n"
        write_text(markdown, text)
    if json is not None:
        scores = [
            {
                "search": row.name,
                "map": finite(row.mean_average_precision),
                "first_place": finite(row.first_place),
                "overlap": finite(row.overlap),
                "per_query": [finite(ap) for ap in row.per_query],
            }
            for row in outcome.rows
        ]
        seconds = {stage: round(t, 6) for stage, t in outcome.seconds.items()}
        write_json(
            json,
            facts | {"rows": scores, "true_boxes": outcome.boxes, "seconds_per_query": seconds},
        )


def _overlaps(
    found: "Retrieved",
    map_sizes: "np.ndarray",
    numbers: "np.ndarray",
    collection: "Collection",
    query: "Query",
) -> list[float]:
    """How well the boxes lie on the true ones, for one query's photos whose true box is known."""
    import numpy as np

    from rmacjax.preprocessing import read_size
    from rmacjax.regions import box_iou
    from rmacjax.retrieval import boxes_in_pixels

    position = {int(number): i for i, number in enumerate(numbers)}
    paths = collection.paths
    overlaps = []
    for number, true in query.boxes.items():
        index = position.get(number)
        if index is None or index not in found.boxes:
            continue
        size = read_size(paths[index])
        boxes = boxes_in_pixels(found, index, map_sizes[index].tolist(), size)
        if boxes:
            overlaps.append(float(box_iou(np.asarray([boxes[0]]), np.asarray([true]))[0]))
    return overlaps
