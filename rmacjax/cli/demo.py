"""`rmacjax demo`: the whole way on generated photos, or on yours."""

from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rmacjax.cli.terminal import (
    JsonFile,
    PeoplesBox,
    box_px,
    check_writable,
    list_skipped,
    prepare,
    progress,
    say,
    tell,
    write_json,
)

if TYPE_CHECKING:
    from rmacjax.demo import DemoReport


def demo(
    folder: Annotated[
        Positional[str | None],
        arg(metavar="FOLDER", help_behavior_hint="(default: photos are generated)"),
    ] = None,
    *,
    out: Annotated[str, arg(metavar="DIR")] = "rmacjax-demo",
    query: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    box: PeoplesBox = None,
    weights: Annotated[str, arg(metavar="NAME|FILE")] = "default",
    long_side: Annotated[int, arg(metavar="PIXELS")] = 1024,
    json: JsonFile = None,
) -> None:
    """See it work: find outlined objects in generated photos, or in your own.

    Describes the photos, searches for a few objects, says how many were found where that is known,
    and writes a page with all boxes. A folder with a ground truth is searched for its first
    queries, any other one for the middle part of three of its photos.

    For example:

        rmacjax demo
        rmacjax demo ~/Pictures --out found
        rmacjax demo ~/Pictures --query church.jpg --box 120 80 460 390

    Args:
        folder: Photos to search.
        out: Where the page and all else is written.
        query: The photo to search for.
        box: Where the object is in it.
        weights: The network: "default", "vgg16-scenes", another name, or a weights file.
        long_side: Larger photos are shrunk to this long side first.
        json: Write the report as JSON to this file, "-" for stdout.
    """
    asked = box_px(box)
    check_writable(json)
    prepare()
    from rmacjax.demo import in_sentences, run_demo
    from rmacjax.pictures import duration

    with progress("photos") as update:
        report = run_demo(
            folder,
            out,
            query=query,
            box_px=asked,
            weights=weights,
            long_side=long_side,
            step=say,
            progress=update,
        )
    list_skipped(report.added.skipped)
    if json is not None:
        write_json(json, document(report))
    if json == "-":
        return
    described = report.added.added + report.added.replaced
    if described:
        rate = described / max(report.added.seconds, 1e-9)
        seconds = duration(report.added.seconds)
        tell(f"{described} photos described in {seconds} ({rate:.1f} per second).")
    for sentence in in_sentences(report):
        tell(sentence)
    tell(f"A search takes {duration(report.seconds_per_search)}.")
    tell(f"Contact sheet: {report.sheet}")
    tell(f"Page: {report.page}")


def document(report: "DemoReport") -> dict[str, object]:
    """The demo's report as a JSON document."""
    overlaps = [overlap for each in report.found for overlap in each.overlaps]
    known = bool(report.found)
    return {
        "page": report.page,
        "contact_sheet": report.sheet,
        "photos": report.photos,
        "queries": report.queries,
        "wanted": sum(each.wanted for each in report.found) if known else None,
        "found": sum(each.found for each in report.found) if known else None,
        "ahead": sum(each.ahead for each in report.found) if known else None,
        "mean_overlap": sum(overlaps) / len(overlaps) if overlaps else None,
        "per_query": [each._asdict() for each in report.found],
        "described": report.added.added + report.added.replaced,
        "seconds_describing": round(report.added.seconds, 3),
        "seconds_per_search": round(report.seconds_per_search, 6),
        "skipped": [{"path": path, "reason": reason} for path, reason in report.added.skipped],
    }
