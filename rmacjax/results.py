"""What a search answers: photos with boxes and scores, and whether they count as found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, overload

from rmacjax.descriptors import REGIONAL, Params, Settings
from rmacjax.extraction import DEFAULTS
from rmacjax.retrieval import Depth, FirstStage, Retrieved, boxes_in_pixels
from rmacjax.storage import Snapshot

PUBLISHED_EXPANSION = 5
"""Boxes that join the query, as published."""

MinScore = float | Literal["auto"]
"""The least score that is wanted; "auto" is what was learned with the network."""

Box = tuple[int, int, int, int]


class Hit(NamedTuple):
    """One photo found.

    Attributes:
        path: the photo, which is also its id in the collection.
        score: what it is ranked by: after expansion, after re-ranking, or the filter's.
        box_px: where the object is, (top, left, bottom, right) in pixels of the original after
            EXIF orientation; None where the photo was not localised.
        boxes_px: all boxes where several instances were asked for, best first.
        filter_score: the first stage's: cosine of the query's descriptor with the whole photo's, or
            the mean, over the query's regions, of the largest with any of the photo's.
        box_score: cosine of localization, None where the photo was not localised.
        height_px: height of the original.
        width_px: width of the original.
        found: whether the photo counts as showing the object: its `rerank_score`, or its score
            where it was not re-ranked, is at least the threshold learned for scores of that kind.
            None where none was learned.
        rerank_score: what the object's box scored before the query was expanded, None where the
            photo was not re-ranked. It tells presence, where expanded scores tell next to nothing:
            an expanded query is like its own finds, whatever they show.
    """

    path: str
    score: float
    box_px: Box | None
    boxes_px: list[Box]
    filter_score: float
    box_score: float | None
    height_px: int
    width_px: int
    found: bool | None = None
    rerank_score: float | None = None


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """The hits of one search, best first, with what was asked and how long it took.

    Attributes:
        hits: best first.
        query_path: the query's file, or None for an array.
        query_box_px: the outlined box in the query image.
        query_size_px: height and width of the query image.
        searched: number of photos in the collection.
        timings: seconds per stage.
        scored_by: the kind of the best hit's score, see `score_kind`.
        threshold: the least score that counts as found, of the kind `judged_by`; None where none
            was learned.
        min_score: the least score that was asked for; None where all hits were wanted.
        best_score: the best score of all photos, also of those below the least that was asked for;
            None in an empty collection.
        judged_by: the kind of the scores that say what was found: those of re-ranking, before
            expansion; the first stage's where nothing was re-ranked.
        best_judged: the best score of that kind of all photos; None in an empty collection.
    """

    hits: list[Hit]
    query_path: str | None
    query_box_px: Box
    query_size_px: tuple[int, int]
    searched: int
    timings: dict[str, float]
    scored_by: str = ""
    threshold: float | None = None
    min_score: float | None = None
    best_score: float | None = None
    judged_by: str = ""
    best_judged: float | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]


def score_kind(
    *,
    rerank: Depth = 1000,
    expand: int = 5,
    fusion: float = 0.0,
    first_stage: FirstStage = "descriptor",
    expand_alpha: float | None = None,
    augment: int = 0,
    alpha: float | None = None,
    settings: Settings = DEFAULTS,
) -> str:
    """Name what a search's scores are, so that only scores of one kind are compared.

    Thresholds are learned and kept under these names: "filter", "rerank" and "expand" stand for
    searches with all options as published; an option that changes the scores is part of the name,
    and so is what photos are described with, where it is not the default.

    Args:
        rerank: as for `rmacjax.retrieval.retrieve`; 0: the scores are the first stage's.
        expand: as for `retrieve`.
        fusion: as for `retrieve`.
        first_stage: as for `retrieve`; it only counts where nothing is re-ranked.
        expand_alpha: as for `retrieve`.
        augment: how many neighbours joined each image's descriptor.
        alpha: as for `retrieve`: the exponent by which boxes were found.
        settings: how the photos are described.

    >>> score_kind(), score_kind(expand=0, fusion=0.5), score_kind(rerank=0)
    ('expand', 'rerank fusion=0.5', 'filter')
    """
    described = {
        name: value
        for name, value in asdict(settings).items()
        if value != getattr(DEFAULTS, name) and (name != "levels" or settings.pool in REGIONAL)
    }
    if rerank == 0:
        options: dict[str, object] = {
            "first_stage": None if first_stage == "descriptor" else first_stage,
            "augment": augment or None,
        }
        return _named("filter", options | described)
    # Other maxima, other boxes; whole images count in what is re-ranked by fusion alone.
    found: dict[str, object] = {"alpha": None if alpha is None else f"{alpha:g}"}
    if fusion:
        found |= {"fusion": f"{fusion:g}", "augment": augment or None}
    if expand == 0:
        return _named("rerank", found | described)
    options = {
        "expand": None if expand == PUBLISHED_EXPANSION else expand,
        "expand_alpha": None if expand_alpha is None else f"{expand_alpha:g}",
    }
    return _named("expand", options | found | described)


def _named(stage: str, options: Mapping[str, object]) -> str:
    named = [f"{name}={value}" for name, value in options.items() if value is not None]
    return " ".join([stage, *named])


class Lines(NamedTuple):
    """Where a search draws its lines between found and not found.

    Attributes:
        learned: the threshold of the scores of re-ranking, before expansion, or None; where nothing
            is re-ranked, that of the first stage's.
        learned_first: that of the first stage's, for photos that were not re-ranked.
        asked: what hits must reach to be returned: a score, "auto", or None.
    """

    learned: float | None
    learned_first: float | None
    asked: MinScore | None

    @classmethod
    def of(cls, params: Params, kind: str, first: str, asked: MinScore | None) -> "Lines":
        """Look up what was learned for two kinds of scores, see `score_kind`.

        Args:
            params: what the photos are described with.
            kind: of the scores that photos are judged by.
            first: of the first stage's.
            asked: the least score that is wanted.

        Raises:
            ValueError: "auto" was asked for, and nothing was learned for scores of this kind.
        """
        learned = dict(params.network.thresholds)
        if isinstance(asked, str) and kind not in learned:
            others = ", ".join(f'"{name}"' for name in learned)
            raise ValueError(
                f"no least score was learned with {params.network.name or 'these weights'!r} for "
                f'scores of the kind "{kind}"'
                + (f" (only for {others})" if others else "")
                + ": give a number, or learn one with rmacjax evaluate --save-thresholds on "
                "queries whose object is in no photo"
            )
        return cls(learned.get(kind), learned.get(first), asked)

    def found(self, score: float, *, reranked: bool) -> bool | None:
        """Whether a score counts as found; None where nothing was learned for its kind."""
        line = self.learned if reranked else self.learned_first
        return None if line is None else score >= line

    def wanted(self, score: float, found: bool | None) -> bool:
        """Whether a photo reaches what was asked for, by its final score or by being found."""
        if self.asked is None:
            return True
        return bool(found) if isinstance(self.asked, str) else score >= self.asked


def hits_of(retrieved: Retrieved, snapshot: Snapshot, top: int, lines: Lines) -> Iterator[Hit]:
    """The best images of a search, as people want to see them.

    Those of the first `top` that reach the score that was asked for; where that is "auto", the
    first `top` of all that count as found, as expansion may have put others before them.
    """
    first = dict(
        zip(retrieved.filtered.indices.tolist(), retrieved.filtered.scores.tolist(), strict=True)
    )
    before = retrieved.reranked or retrieved.filtered
    judged = dict(zip(before.indices.tolist(), before.scores.tolist(), strict=True))
    deep = isinstance(lines.asked, str)
    looked = len(retrieved.ranking.indices) if deep else top
    places = retrieved.ranking.indices[:looked].tolist()
    left = top
    for index, score in zip(places, retrieved.ranking.scores, strict=False):
        reranked = index in retrieved.boxes
        found = lines.found(judged[index], reranked=reranked)
        if not left or not lines.wanted(float(score), found):
            continue
        left -= 1
        height, width = (int(side) for side in snapshot.sizes_px[index])
        cells = snapshot.map_sizes[index].tolist()
        boxes = boxes_in_pixels(retrieved, index, cells, (height, width))
        cosines = retrieved.box_scores.get(index)
        yield Hit(
            path=snapshot.paths[index],
            score=float(score),
            box_px=boxes[0] if boxes else None,
            boxes_px=boxes,
            filter_score=first[index],
            box_score=None if cosines is None else float(cosines[0]),
            height_px=height,
            width_px=width,
            found=found,
            rerank_score=judged[index] if reranked else None,
        )
