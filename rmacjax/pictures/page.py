"""The result page: one HTML file that asks nobody for anything.

Thumbnails, style and script lie in the page, and its content security policy forbids all else: not
even a file name that is written like a script can run. Boxes are SVG over the photos, in pixels of
the original, so they stay sharp at any size.
"""

import base64
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

import numpy as np

from rmacjax import __version__, preprocessing
from rmacjax.pictures.rankings import (
    Box,
    Picture,
    Ranking,
    box_for_people,
    duration,
    in_words,
    load,
    name_of,
    overlap,
    printable,
)

THUMBNAIL_PX = 480
"""Long side of the photos inside a page."""

NAVIGATION_PX = 160

NOTHING_SECONDS = 5e-4
"""Stages that take less time are not worth a word."""

STAGES = {
    "describe": "describe the query",
    "open": "open the collection",
    "filter": "rank by descriptor",
    "read": "read maps",
    "localize": "find the object",
    "rescore": "score the boxes",
    "rerank": "score the boxes",
    "expand": "expand the query",
}
"""The stages of a search in people's words."""


def result_page(
    rankings: Sequence[Ranking],
    *,
    title: str,
    lead: str = "",
    facts: Mapping[str, object] | None = None,
    thumbnail_px: int = THUMBNAIL_PX,
    quality: int = 80,
) -> str:
    """One HTML page that shows queries, ranked photos and boxes, with nothing outside itself.

    A photo that cannot be read any more gets a sentence in its place.

    Args:
        rankings: one or more queries with their results.
        title: the page's heading.
        lead: a sentence below it.
        facts: what to list at the bottom, such as the number of photos and the settings.
        thumbnail_px: long side of the photos inside the page.
        quality: of their JPEG coding.

    Returns:
        The page's text, which encodes as UTF-8.
    """
    folder = files("rmacjax.pictures")
    style = (folder / "style.css").read_text("utf-8")
    script = (folder / "script.js").read_text("utf-8")
    sections = [
        _section(each, number, thumbnail_px, quality) for number, each in enumerate(rankings, 1)
    ]
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        version=_text(__version__),
        title=_text(title),
        lead=f'<p class="lead">{_text(lead)}</p>' if lead else "",
        legend=_legend(rankings),
        navigation=_navigation(rankings, quality) if len(rankings) > 1 else "",
        rankings="\n".join(sections),
        facts=_facts(facts or {}),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _text(value: object) -> str:
    """Whatever comes from outside goes through here."""
    return html.escape(printable(value), quote=True)


def _legend(rankings: Sequence[Ranking]) -> str:
    """What the two kinds of outlines mean, where there are both."""
    if not any(picture.truth_px for each in rankings for picture in each.results):
        return ""
    sample = (
        '<svg viewBox="0 0 32 18" aria-hidden="true">'
        '<rect class="{}" x="2" y="2" width="28" height="14"/></svg>'
    )
    return (
        f'<p class="legend"><span>{sample.format("box")}where it was found</span>'
        f"<span>{sample.format('truth')}where it is</span></p>"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _section(each: Ranking, number: int, thumbnail_px: int, quality: int) -> str:
    query = each.query
    rows: dict[str, object] = {}
    if not isinstance(query.image, np.ndarray):
        rows["File"] = os.fspath(query.image)
    rows["Size"] = f"{query.width_px} × {query.height_px} pixels"
    if each.timings:
        rows["Time"] = duration(sum(each.timings.values()))
    best = max((p.score for p in each.results if p.score is not None), default=0.0)
    cards = "".join(
        _card(picture, rank, best, thumbnail_px, quality)
        for rank, picture in enumerate(each.results, 1)
    )
    verdict = f'<p class="verdict">{_text(each.verdict)}</p>' if each.verdict else ""
    return (
        f'<section class="ranking" id="q{number}" aria-labelledby="q{number}-title">'
        f'<div class="query">{_button(query, "Query", thumbnail_px, quality)}'
        f'<div><p class="kind">Query</p><h2 id="q{number}-title">{_text(name_of(query))}</h2>'
        f"{verdict}{_facts(rows)}{_coordinates(query)}{_times(each.timings)}</div></div>"
        f'<div id="q{number}-results" tabindex="-1">'
        + (f'<ol class="results">{cards}</ol>' if cards else '<p class="empty">Nothing found.</p>')
        + "</div></section>"
    )


def _card(picture: Picture, rank: int, best: float, thumbnail_px: int, quality: int) -> str:
    kind = {True: " good", False: " bad", None: ""}[picture.correct]
    tag = {True: "✓ right", False: "✗ another", None: ""}[picture.correct]
    shared = overlap(picture)
    if shared is not None:
        tag += f", overlap {shared:.2f}"
    score = bar = ""
    if picture.score is not None:
        part = 100 * max(0.0, min(1.0, picture.score / best)) if best > 0 else 0.0
        score = f'<span class="score" title="score">{picture.score:.3f}</span>'
        bar = (
            '<svg class="bar" viewBox="0 0 100 3" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{part:.1f}" height="3"/></svg>'
        )
    path = "" if isinstance(picture.image, np.ndarray) else os.fspath(picture.image)
    return (
        f'<li class="card{kind}">{_button(picture, f"Result {rank}", thumbnail_px, quality)}'
        f'<div class="caption"><div class="line"><span class="rank">{rank}</span>'
        + (f'<span class="tag">{tag}</span>' if tag else "")
        + f"{score}</div>{bar}"
        f'<span class="path" title="{_text(path)}">{_text(name_of(picture))}</span>'
        f"{_coordinates(picture)}</div></li>"
    )


def _button(picture: Picture, what: str, thumbnail_px: int, quality: int) -> str:
    said = _text(in_words(picture, what))
    return (
        f'<button type="button" class="picture" data-text="{said}" title="Enlarge">'
        f"{_shot(picture, said, thumbnail_px, quality)}</button>"
    )


def _shot(picture: Picture, alt: str, thumbnail_px: int, quality: int) -> str:
    """The photo and, over it, its boxes: both fit into one frame, so they lie on each other."""
    pixels = load(picture, thumbnail_px)
    if pixels is None:
        return f'<span class="gone">{alt}<br>This file could not be read.</span>'
    coded = base64.b64encode(preprocessing.encode_jpeg(pixels, quality)).decode()
    shot = f'<img src="data:image/jpeg;base64,{coded}" alt="{alt}">'
    marks = [] if picture.truth_px is None else [_rectangle(picture.truth_px, "truth")]
    for i, box in reversed(list(enumerate(picture.boxes_px))):
        marks += [_rectangle(box, "halo"), _rectangle(box, "box further" if i else "box")]
    if marks:
        shot += (
            f'<svg class="boxes" viewBox="0 0 {picture.width_px} {picture.height_px}" '
            f'preserveAspectRatio="xMidYMid meet" aria-hidden="true">{"".join(marks)}</svg>'
        )
    return shot


def _rectangle(box: Box, kind: str) -> str:
    top, left, bottom, right = box
    return (
        f'<rect class="{kind}" x="{left}" y="{top}" width="{max(0, right - left)}" '
        f'height="{max(0, bottom - top)}"/>'
    )


def _coordinates(picture: Picture) -> str:
    lines = []
    for box in picture.boxes_px:
        text = box_for_people(box)
        lines.append(
            '<div class="coordinates"><span class="unseen">Box: left, top, right, bottom in pixels '
            '</span><span aria-hidden="true">box</span>'
            f'<code title="left top right bottom, in pixels">{text}</code>'
            f'<button type="button" class="copy" data-copy="{text}" '
            f'aria-label="Copy the box {text}">Copy</button></div>'
        )
    return "".join(lines)


def _times(timings: Mapping[str, float]) -> str:
    total = sum(timings.values())
    if total <= 0:
        return ""
    at, bars, items = 0.0, [], []
    shown = [(name, seconds) for name, seconds in timings.items() if seconds >= NOTHING_SECONDS]
    for i, (name, seconds) in enumerate(shown):
        width = 1000 * seconds / total
        kind = f"s{i % 6}"
        bars.append(f'<rect class="{kind}" x="{at:.1f}" width="{width:.1f}" height="10"/>')
        words = _text(STAGES.get(name, name))
        items.append(f'<li class="{kind}">{words} {duration(seconds)}</li>')
        at += width
    return (
        '<div class="times"><svg viewBox="0 0 1000 10" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(bars)}</svg><ul aria-label="Time per stage">'
        f"{''.join(items)}</ul></div>"
    )


def _facts(facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _navigation(rankings: Sequence[Ranking], quality: int) -> str:
    links = "".join(
        f'<li><a href="#q{number}"><span class="picture">'
        f"{_shot(each.query, '', NAVIGATION_PX, quality)}</span>"
        f'<span class="name">{_text(name_of(each.query))}</span></a></li>'
        for number, each in enumerate(rankings, 1)
    )
    return f'<nav class="queries" aria-label="Queries"><ol>{links}</ol></nav>'
