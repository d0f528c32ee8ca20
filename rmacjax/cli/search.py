"""`rmacjax search`: the outlined object, found in a collection."""

import os
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.effects import PUBLISHED_EXPANSION, SearchOptions, idle_here, refuse_idle
from rmacjax.cli.terminal import (
    ExpandCount,
    FirstStageName,
    JsonFile,
    LeastScore,
    OutFile,
    PeoplesBox,
    RerankDepth,
    box_px,
    check_writable,
    count,
    prepare,
    say,
    table,
    tell,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from rmacjax.collection import SearchResult

FOUND = {True: "yes", False: "no", None: "-"}
"""Whether a score reaches what was learned, in a table."""


def search(
    collection: Annotated[Positional[str], arg(metavar="COLLECTION")],
    query: Annotated[Positional[str], arg(metavar="QUERY")],
    *,
    box: PeoplesBox = None,
    top: Annotated[int, arg(metavar="N")] = 20,
    rerank: RerankDepth = 1000,
    expand: ExpandCount = None,
    fusion: Annotated[float, arg(metavar="SHARE")] = 0.0,
    first_stage: FirstStageName = "descriptor",
    expand_alpha: Annotated[float | None, arg(metavar="POWER", help_behavior_hint="")] = None,
    augment: Annotated[int, arg(metavar="N")] = 0,
    min_score: LeastScore = None,
    instances: Annotated[int, arg(metavar="N")] = 1,
    html: OutFile = None,
    png: OutFile = None,
    json: JsonFile = None,
) -> None:
    """Find the photos that show an outlined object, and where it is in each.

    The box is left, top, right, bottom in pixels of the query photo, as an image editor shows it;
    without one the whole photo is the query. The boxes that are found are printed the same way.

    For example:

        rmacjax search holiday church.jpg --box 120 80 460 390
        rmacjax search holiday church.jpg --box 120 80 460 390 --html found.html
        rmacjax search holiday church.jpg --top 5 --json -
        rmacjax search holiday church.jpg --box 120 80 460 390 --first-stage regions
        rmacjax search holiday church.jpg --box 120 80 460 390 --min-score 0.6

    Args:
        collection: The collection's folder.
        query: The photo that shows the object.
        box: Where the object is in the query photo.
        top: How many photos to show.
        rerank: How many of the best photos to look into for the object; "all": into every one.
            0: none, no boxes.
        expand: How many of the best finds to search with once more. 0: none. Needs boxes, so
            without re-ranking nothing is expanded.
        fusion: How much the whole photo counts beside the box that was found, 0 to 1.
        first_stage: Rank all photos by one descriptor each; or by regions (see index --regions);
            or by diffusion, likeness handed on from each photo to its nearest. These are looked
            for first: seconds for 20,000 photos, four times as long for twice as many; and kept in
            the collection until photos come or go.
        expand_alpha: Let each find count by its likeness to this power, 3 for instance, not alike.
        augment: Let so many of its nearest photos join each photo's descriptor first; takes as long
            as diffusion, and is kept too.
        min_score: Show what scores at least this; "auto": what counts as found by the least score
            learned with the weights, of scores before expansion.
            By default all is shown, and where a least score was learned each photo is marked as
            found or not.
        instances: How many boxes per photo, where the object is there more than once.
        html: Write a page with photos and boxes.
        png: Write one picture with photos and boxes.
        json: Write the result as JSON to this file, "-" for stdout.
    """
    asked = box_px(box)
    how = SearchOptions(
        rerank=rerank,
        expand=PUBLISHED_EXPANSION if expand is None else expand,
        fusion=fusion,
        first_stage=first_stage,
        expand_alpha=expand_alpha,
        augment=augment,
    )
    refuse_idle(**how, instances=instances)
    check_writable(html, png, json)
    from rmacjax.cli.index import check_collection

    check_collection(collection)
    prepare()
    from rmacjax.collection import Collection

    opened = Collection.open(collection)
    if not len(opened):
        raise OSError(f"the collection {collection!r} is empty: rmacjax add {collection} PHOTOS...")
    result = opened.search(query, asked, top=top, instances=instances, min_score=min_score, **how)
    for sentence in idle_here(result.searched, **how, expansion_asked=expand is not None):
        say(sentence)
    if json != "-":
        _print(result)
    if json is not None:
        write_json(json, document(result))
    if html is not None or png is not None:
        from rmacjax.pictures import settings_in_words

        _draw(result, settings_in_words(opened, **how), html, png)


def document(result: "SearchResult") -> dict[str, object]:
    """A search's result as a JSON document. `box_px` is top, left, bottom, right.

    A hit's `found` is true or false where a least score was learned for scores of the kind
    `judged_by`, which are those before expansion, and null where none was; `hits` is empty where
    nothing scores `min_score`.
    """
    height, width = result.query_size_px
    return {
        "query": {
            "path": result.query_path,
            "box_px": list(result.query_box_px),
            "box": _sides(result.query_box_px),
            "height_px": height,
            "width_px": width,
        },
        "photos": result.searched,
        "scored_by": result.scored_by,
        "threshold": result.threshold,
        "min_score": result.min_score,
        "best_score": result.best_score,
        "judged_by": result.judged_by,
        "best_judged": result.best_judged,
        "hits": [
            {
                "rank": rank,
                "path": hit.path,
                "score": hit.score,
                "found": hit.found,
                "box_px": None if hit.box_px is None else list(hit.box_px),
                "box": None if hit.box_px is None else _sides(hit.box_px),
                "boxes_px": [list(box) for box in hit.boxes_px],
                "filter_score": hit.filter_score,
                "rerank_score": hit.rerank_score,
                "box_score": hit.box_score,
                "height_px": hit.height_px,
                "width_px": hit.width_px,
            }
            for rank, hit in enumerate(result, 1)
        ],
        "box_px_order": ["top", "left", "bottom", "right"],
        "seconds": {stage: round(seconds, 6) for stage, seconds in result.timings.items()},
    }


def _sides(box: tuple[int, int, int, int]) -> dict[str, int]:
    top, left, bottom, right = box
    return {"left": left, "top": top, "right": right, "bottom": bottom}


def _print(result: "SearchResult") -> None:
    from rmacjax.pictures import box_for_people, duration

    if not result.hits:
        tell(_not_found(result))
        return
    judged = any(hit.found is not None for hit in result)
    rows = [
        (
            str(rank),
            f"{hit.score:.3f}",
            ", ".join(box_for_people(box) for box in hit.boxes_px) or "-",
            *([FOUND[hit.found]] if judged else []),
            hit.path,
        )
        for rank, hit in enumerate(result, 1)
    ]
    columns = {"rank": "right", "score": "right", "left top right bottom": "right"}
    table(columns | ({"found": "left"} if judged else {}) | {"photo": "left"}, rows)
    if result.threshold is not None and not any(hit.found for hit in result):
        say(_not_found(result))
    elif result.threshold is not None and result.judged_by != result.scored_by:
        say(f"Found is what scored at least {result.threshold:.3f} before the query was expanded")
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in result.timings.items())
    total = duration(sum(result.timings.values()))
    say(f"{count(result.searched, 'photo')} searched in {total} ({stages})")


def _not_found(result: "SearchResult") -> str:
    # A score that was learned is one before expansion, a score that was given is the one shown.
    asked = result.min_score is not None and result.min_score != result.threshold
    line = result.min_score if asked else result.threshold
    best = result.best_score if asked else result.best_judged
    photos = "the only photo" if result.searched == 1 else f"the best of {result.searched:,} photos"
    return f"Not found: {photos} scores {best:.3f}, and at least {line:.3f} " + (
        "is asked for" if asked else "was learned to count as found"
    )


def _draw(
    result: "SearchResult", facts: dict[str, object], html: str | None, png: str | None
) -> None:
    from rmacjax.pictures import contact_sheet, ranking, result_page
    from rmacjax.preprocessing import save_png

    shown = ranking(result)
    if html is not None:
        name = os.path.basename(result.query_path or "the query")
        whole = not shown.query.boxes_px
        lead = (
            f"{count(result.searched, 'photo')} searched for "
            + (f"what {name} shows" if whole else f"the outlined part of {name}")
            + ("; the boxes are where it was found." if result.hits else f". {_not_found(result)}.")
        )
        write_text(html, result_page([shown], title=f"Found for {name}", lead=lead, facts=facts))
    if png is not None:
        save_png(png, contact_sheet([shown], columns=5))
        say(f"Wrote {png}")
