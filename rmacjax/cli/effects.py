"""Options that change nothing beside others: what contradicts itself is refused, the rest is said.

A search that is asked for and not made looks like one that was made. What a word on the command
line contradicts is an error; what the number of photos makes idle is a sentence.
"""

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from rmacjax.retrieval import FirstStage

PUBLISHED_EXPANSION = 5
"""Boxes that join the query where --expand does not say how many."""

IDLE_EXPANSION = (
    "Nothing was expanded: --expand searches once more with the boxes that re-ranking finds, and "
    "--rerank 0 leaves both out"
)
"""What is said where boxes are to join the query and none are looked for."""


class SearchOptions(TypedDict):
    """How to search, as `rmacjax.Collection.search` takes it."""

    rerank: "int | Literal['all']"
    expand: int
    fusion: float
    first_stage: "FirstStage"
    expand_alpha: float | None
    augment: int


def refuse_idle(
    *,
    rerank: "int | Literal['all']",
    expand: int,
    fusion: float,
    first_stage: "FirstStage",
    expand_alpha: float | None = None,
    augment: int = 0,
    instances: int = 1,
    filter_shown: bool = False,
) -> None:
    """Refuse options of a search that others leave without any effect.

    Args:
        rerank: as for `rmacjax.Collection.search`, and so are the others.
        expand: see there.
        fusion: see there.
        first_stage: see there.
        expand_alpha: see there.
        augment: see there.
        instances: see there.
        filter_shown: whether the first stage's own ranking is shown.

    Raises:
        ValueError: naming both options.
    """
    if expand_alpha is not None and (expand == 0 or rerank == 0):
        off = "--expand 0" if expand == 0 else "--rerank 0"
        raise ValueError(
            f"--expand-alpha weighs the finds that join the query, and with {off} none do: leave "
            "one of them out"
        )
    if rerank == 0:
        for idle, words in (
            (fusion > 0, "--fusion counts the whole photo beside the box that is found"),
            (instances > 1, "--instances asks for boxes"),
        ):
            if idle:
                raise ValueError(f"{words}, and --rerank 0 looks for none: leave one of them out")
    if rerank == "all" and not filter_shown:
        if augment and not fusion:
            raise ValueError(
                "--augment changes which photos are re-ranked, and with --rerank all every one is: "
                "leave one of them out, or let the whole photo count too (--fusion)"
            )
        if first_stage != "descriptor":
            raise ValueError(
                f"--first-stage {first_stage} chooses the photos that are re-ranked, and with "
                "--rerank all every one is: leave one of them out"
            )


def idle_here(
    photos: int,
    *,
    rerank: "int | Literal['all']",
    expand: int,
    fusion: float,
    first_stage: "FirstStage",
    expand_alpha: float | None = None,
    augment: int = 0,
    expansion_asked: bool = True,
) -> list[str]:
    """Say which options changed nothing in a collection of this size, a sentence each.

    Args:
        photos: how many the collection holds.
        rerank: as for `rmacjax.Collection.search`, and so are the others.
        expand: see there.
        fusion: see there.
        first_stage: see there.
        expand_alpha: see there.
        augment: see there.
        expansion_asked: whether the command named `expand`; what nobody asked for is not missed.

    >>> idle_here(100, rerank=10, expand=5, fusion=0.0, first_stage="regions")
    []
    """
    if rerank == 0:
        return [IDLE_EXPANSION] if expand and expansion_asked else []
    found = []
    if expand_alpha == 0:
        found.append("--expand-alpha 0 counts all finds alike, as a search does without it")
    if rerank == "all" or rerank < photos:
        return found
    every = f"all {photos:,} photos were re-ranked anyway (--rerank {rerank})"
    if first_stage != "descriptor":
        found.append(f"--first-stage {first_stage} changed nothing in the order: {every}")
    if augment and not fusion:
        found.append(f"--augment {augment} changed nothing in the order: {every}")
    return found
