"""The contact sheet: queries and their ranked photos as one image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from rmacjax import preprocessing
from rmacjax.pictures.rankings import (
    Picture,
    Ranking,
    duration,
    load,
    name_of,
    overlap,
    whole_pixels,
)

Color = tuple[int, int, int]

BOX: Color = (255, 138, 0)
TRUTH: Color = (0, 229, 255)
GOOD: Color = (27, 127, 75)
BAD: Color = (179, 38, 30)
INK: Color = (34, 33, 30)
PAPER: Color = (247, 246, 243)
WELL: Color = (236, 235, 230)


def contact_sheet(
    rankings: Sequence[Ranking], *, columns: int = 6, cell_px: int = 240
) -> UInt8[np.ndarray, "H W 3"]:
    """All queries and their results on one sheet: the query at the left, its results beside it.

    Boxes are orange and true boxes thin and blue. Where the truth is known, a photo that shows the
    object has a green frame and another one a red frame. Each result carries its rank and score,
    each query the time its search took; the last line explains the colours.

    Args:
        rankings: one or more queries with their results.
        columns: results per row.
        cell_px: side of the square that holds a photo.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: fewer than one column, or cells too small to see anything.
    """
    if columns < 1 or cell_px < 32:
        raise ValueError(
            f"a sheet has at least 1 column and cells of 32 pixels, not {columns} and {cell_px}"
        )
    gap, label = max(6, cell_px // 20), max(16, cell_px // 10)
    down, right = cell_px + label + gap, cell_px + gap
    columns = max(1, min(columns, max((len(each.results) for each in rankings), default=1)))
    rows = [max(1, -(-len(each.results) // columns)) for each in rankings]
    height = gap + sum(rows) * down + max(0, len(rows) - 1) * gap + label + gap
    sheet = np.empty((height, 3 * gap + (columns + 1) * right, 3), np.uint8)
    sheet[:] = PAPER
    top = gap
    for each, count in zip(rankings, rows, strict=True):
        time = f"   {duration(sum(each.timings.values()))}" if each.timings else ""
        asked = f"query {name_of(each.query)}{time}"
        _put(sheet, each.query, asked, top, gap, cell_px, label)
        for i, picture in enumerate(each.results):
            row, column = divmod(i, columns)
            words = f"{i + 1}" if picture.score is None else f"{i + 1}   {picture.score:.3f}"
            shared = overlap(picture)
            words += "" if shared is None else f"   overlap {shared:.2f}"
            left = 3 * gap + (column + 1) * right
            _put(sheet, picture, words, top + row * down, left, cell_px, label)
        top += count * down + gap
    size = int(label * 0.62)
    words = _fitting(_legend(rankings), sheet.shape[1] - 2 * gap, size)
    return preprocessing.draw_text(sheet, words, (top - gap // 2, gap), size, INK)


def _legend(rankings: Sequence[Ranking]) -> str:
    """What the colours mean that are on the sheet, and what the stages of a search took."""
    pictures = [picture for each in rankings for picture in each.results]
    known = [picture.correct for picture in pictures if picture.correct is not None]
    words = ["orange box: found"] if any(len(picture.boxes_px) for picture in pictures) else []
    words += ["blue: true"] if any(picture.truth_px is not None for picture in pictures) else []
    words += (
        ["green frame: shows the object, red: does not, none: the query's own"] if known else []
    )
    stages = dict.fromkeys(stage for each in rankings for stage in each.timings)
    times = {
        stage: float(np.median([each.timings.get(stage, 0.0) for each in rankings]))
        for stage in stages
    }
    spent = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in times.items())
    return ";  ".join(words + ([f"a search: {spent}"] if spent else []))


def _put(
    sheet: np.ndarray, picture: Picture, words: str, top: int, left: int, cell_px: int, label: int
) -> None:
    """Write one photo with its marks, and its words below, onto the sheet."""
    frame = max(2, cell_px // 60)
    cell = np.empty((cell_px + label, cell_px, 3), np.uint8)
    cell[:] = PAPER
    square = cell[:cell_px]
    square[:] = WELL
    pixels = load(picture, cell_px - 2 * frame)
    if pixels is not None:
        pixels = _marked(pixels, picture, max(2, cell_px // 80))
        height, width = pixels.shape[:2]
        y, x = (cell_px - height) // 2, (cell_px - width) // 2
        square[y : y + height, x : x + width] = pixels
    if picture.correct is not None:
        color = GOOD if picture.correct else BAD
        square[:frame] = square[-frame:] = square[:, :frame] = square[:, -frame:] = color
    size = int(label * 0.62)
    cell = preprocessing.draw_text(
        cell, _fitting(words, cell_px, size), (cell_px + label // 6, 0), size, INK
    )
    sheet[top : top + cell_px + label, left : left + cell_px] = cell


def _marked(pixels: np.ndarray, picture: Picture, width: int) -> np.ndarray:
    height_px, width_px = max(1, picture.height_px), max(1, picture.width_px)
    scale = np.tile([pixels.shape[0] / height_px, pixels.shape[1] / width_px], 2)
    for box in reversed(picture.boxes_px):
        pixels = preprocessing.draw_box(pixels, whole_pixels(box * scale), BOX, width)
    if picture.truth_px is not None:
        box = whole_pixels(picture.truth_px * scale)
        pixels = preprocessing.draw_box(pixels, box, TRUTH, max(1, width - 1))
    return pixels


def _fitting(words: str, width: int, size: int) -> str:
    """The words, cut at their end until they are no wider than this many pixels."""
    words = words.encode("ascii", "replace").decode()
    whole = words
    while whole and preprocessing.text_size(words, size)[1] > width:
        whole = whole[:-1].rstrip()
        words = whole + "..."
    return words
